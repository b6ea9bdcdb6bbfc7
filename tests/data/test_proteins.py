"""Chains of PDB and mmCIF files, and PDB files of frames."""

import gzip
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gm_discrete.data import AMINO_ACIDS, atoms_of, chain_example, frames_of, read_chains, write_pdb
from tests.helpers.proteins import THREE, hairpin, helix, mmcif_text, pdb_line, pdb_text

pytest.importorskip("gemmi")
SEQUENCE = "MKTAYIAKQRQG"


def saved(folder: Path, text: str | bytes, name: str = "1abc.pdb") -> Path:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def close(found: np.ndarray, expected: Tensor) -> bool:
    return np.allclose(found, expected.numpy(), atol=6e-4)  # files hold three decimals


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("kind", ["pdb", "cif"])
def test_read_chains__reads_both_formats(tmp_path: Path, kind: str, zipped: bool) -> None:
    numbers, insertions = [5, 6, 7, 8, 8, 8, 9, 10, 11, 12, 13, 14], "    AB      "
    if kind == "pdb":
        text = pdb_text(helix(), SEQUENCE, numbers, insertions=insertions)
    else:
        text = mmcif_text(helix(), SEQUENCE, numbers, insertions)
    data = gzip.compress(text.encode()) if zipped else text.encode()
    (chain,) = read_chains(saved(tmp_path, data, f"1abc.{kind}{'.gz' if zipped else ''}"))
    assert (chain.name, chain.sequence, chain.insertions, len(chain)) == ("1abc:A", SEQUENCE, insertions, 12)
    assert close(chain.atoms, helix())
    assert (chain.atoms.dtype, chain.numbers.dtype) == (np.float32, np.int64)
    assert chain.numbers.tolist() == numbers
    assert chain.breaks.tolist() == [True] + [False] * 11


def test_read_chains__missing_atoms_leave_a_break(tmp_path: Path) -> None:
    lines = pdb_text(helix(), SEQUENCE).split("\n")
    del lines[3 * 4 + 2]  # C of the fifth residue
    (chain,) = read_chains(saved(tmp_path, "\n".join(lines)))
    assert chain.sequence == SEQUENCE[:4] + SEQUENCE[5:]
    assert chain.breaks.nonzero()[0].tolist() == [0, 4]
    assert chain.numbers.tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12]


def test_read_chains__a_jump_of_numbers_is_no_break(tmp_path: Path) -> None:
    numbers = [16, 17, 18, 34, *range(37, 45)]
    (chain,) = read_chains(saved(tmp_path, pdb_text(helix(), SEQUENCE, numbers)))
    assert chain.breaks.sum() == 1
    assert chain.numbers.tolist() == numbers


def test_read_chains__takes_the_locations_of_highest_occupancy(tmp_path: Path) -> None:
    lines = pdb_text(helix(4), "MKTA").split("\n")
    point = helix(4)[1, 1].tolist()
    high = [point[0] + 0.1, *point[1:]]
    lines[4:5] = [
        pdb_line("CA", "LYS", 2, point, location="A", occupancy=0.4),
        pdb_line("CA", "LYS", 2, high, location="B", occupancy=0.6),
    ]
    (chain,) = read_chains(saved(tmp_path, "\n".join(lines)))
    expected = helix(4)
    expected[1, 1, 0] += 0.1
    assert close(chain.atoms, expected)
    # two amino acids at one place
    other = [
        pdb_line(name, "SER", 3, points, location="B", occupancy=0.7)
        for name, points in zip(("N", "CA", "C"), helix(4)[2].tolist(), strict=True)
    ]
    first = [line[:16] + "A" + line[17:54] + "  0.30" + line[60:] for line in lines[7:10]]
    (chain,) = read_chains(saved(tmp_path, "\n".join([*lines[:7], *first, *other, *lines[10:]])))
    assert chain.sequence == "MKSA"


def test_read_chains__leaves_out_what_is_no_amino_acid(tmp_path: Path) -> None:
    ligand = zip(("N", "CA", "C"), (helix(2)[0] + 30).tolist(), strict=True)
    text = pdb_text(helix(5), "MKXAG").replace("END\n", "")
    text = text.replace("ATOM  ", "HETATM", 3).replace("MET", "MSE")  # selenomethionine, in the chain
    text = text.replace("UNK", "SEP")  # phosphoserine
    extra = [
        pdb_line("O", "HOH", 100, [50, 50, 50], record="HETATM"),
        *(pdb_line(name, "GLY", 101, point, record="HETATM") for name, point in ligand),
        *(pdb_line(name, "NAD", 102, [40, 40, z], record="HETATM") for z, name in enumerate(("N", "CA", "C"))),
        pdb_line("P", "DA", 1, [60, 60, 60], chain="B"),
    ]
    (chain,) = read_chains(saved(tmp_path, text + "\n".join([*extra, "END", ""])))
    assert chain.sequence == "MKXAG"
    assert chain_example(chain)["residue"].tolist() == [AMINO_ACIDS.index(letter) for letter in "MKXAG"]


def test_read_chains__columns_after_72_are_not_read(tmp_path: Path) -> None:
    (chain,) = read_chains(saved(tmp_path, pdb_text(helix(), SEQUENCE, tail="1ABC 150")))
    assert chain.sequence == SEQUENCE


def test_read_chains__reads_the_first_model_or_all(tmp_path: Path) -> None:
    models = [pdb_text(atoms, "G" * 14).replace("END\n", "ENDMDL\n") for atoms in (hairpin(), helix(14))]
    text = "".join(f"MODEL     {number + 1:>4}\n{model}" for number, model in enumerate(models)) + "END\n"
    file = saved(tmp_path, text)
    assert [chain.name for chain in read_chains(file)] == ["1abc:A"]
    first, second = read_chains(file, models="all")
    assert (first.name, second.name) == ("1abc:A:1", "1abc:A:2")
    assert close(first.atoms, hairpin())
    assert close(second.atoms, helix(14))
    with pytest.raises(ValueError, match=r"models='last'.*'first' or 'all'"):
        read_chains(file, models="last")  # pyright: ignore[reportArgumentType]


def test_read_chains__chains_are_separate(tmp_path: Path) -> None:
    text = pdb_text(helix(), SEQUENCE, chain="H").replace("END\n", "") + pdb_text(hairpin(), "G" * 14, chain="L")
    assert [(chain.name, len(chain)) for chain in read_chains(saved(tmp_path, text))] == [
        ("1abc:H", 12),
        ("1abc:L", 14),
    ]


WHOLE = pdb_text(helix(), SEQUENCE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ATOM"),
        (b"Dear reader,\nno structure here.\n", "ATOM"),
        (bytes(range(256)) * 4, "ATOM"),
        (gzip.compress(WHOLE.encode())[:-20], "gzip"),
        (gzip.compress(WHOLE.encode())[:10] + b"\1" * 200, "gzip"),
        (WHOLE[:500], "cut off in line 7"),
        (WHOLE[:480], "line 7"),
        (WHOLE.replace("0.000", "  nan", 1), "line 1 .*nan"),
        (WHOLE.replace("   0.000   0.000   0.000", "****************0.000   ", 1), r"line 1 .*\*\*"),
        (WHOLE.replace("   1.459   0.000   0.000", "   0.000   0.000   0.000", 1), r"1abc:A.* at \[0\]"),
        (pdb_line("P", "DA", 1, [0, 0, 0]) + "\nEND\n", "no amino acid"),
        (mmcif_text(helix(), SEQUENCE, range(12), " " * 12)[:-30], "values in loop"),
        (mmcif_text(helix(), SEQUENCE, range(12), " " * 12).replace("1.459 0.000", "? 0.000"), "nan"),
        (b"data_empty\n", "no amino acid"),
        (b"data_a\n_cell.a 1\ndata_b\n_cell.a 1\n", "single data block"),
    ],
)
def test_read_chains__names_the_file_and_what_is_wrong(tmp_path: Path, data: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"1abc\.pdb.*{message}"):
        read_chains(saved(tmp_path, data))


def test_read_chains__missing_files_and_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pdb"):
        read_chains(tmp_path / "none.pdb")
    found = importlib.import_module

    def absent(name: str) -> object:
        if name == "gemmi":
            raise ImportError(name)
        return found(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"gm_discrete\[proteins\]"):
        read_chains(saved(tmp_path, WHOLE))


def frames(atoms: Tensor) -> tuple[Tensor, Tensor]:
    rotation, translation = frames_of(atoms.float())
    return rotation, translation


@pytest.mark.parametrize("letters", [SEQUENCE, AMINO_ACIDS])
def test_write_pdb__is_read_by_this_library_gemmi_and_biotite(tmp_path: Path, letters: str) -> None:
    import gemmi

    rotation, translation = frames(helix(len(letters)))
    residue = torch.tensor([AMINO_ACIDS.index(letter) for letter in letters])
    file = write_pdb(tmp_path / "new" / "helix.pdb", rotation, translation, residue, chain="B")
    (chain,) = read_chains(file)
    expected = atoms_of(rotation, translation)
    assert (chain.name, chain.sequence) == ("helix:B", letters)
    assert close(chain.atoms, expected[:, :3])
    assert chain.breaks.sum() == 1
    (part,) = gemmi.read_structure(str(file))[0]
    names = [["N", "CA", "C", "O", *(["CB"] if letter != "G" else [])] for letter in letters]
    assert [[atom.name for atom in one] for one in part] == names
    assert [[atom.element.name for atom in one] for one in part] == [[name[0] for name in one] for one in names]
    assert [one.name for one in part] == [THREE[letter] for letter in letters]
    assert close(np.array([one["O"][0].pos.tolist() for one in part]), expected[:, 3])
    biotite = pytest.importorskip("biotite.structure.io.pdb")
    array = biotite.PDBFile.read(str(file)).get_structure(model=1)
    assert array.atom_name.tolist() == [name for one in names for name in one]
    assert array.res_id.tolist() == [place + 1 for place, one in enumerate(names) for _ in one]
    assert set(array.chain_id.tolist()) == {"B"}
    assert close(array.coord[array.atom_name == "CA"], expected[:, 1])
    assert {len(line) for line in file.read_text(encoding="ascii").splitlines()} == {80}
    assert [line[:3] for line in file.read_text(encoding="ascii").splitlines()[-2:]] == ["TER", "END"]


def test_write_pdb__batches_become_models_without_padding(tmp_path: Path) -> None:
    one, other = frames(helix(8)), frames(hairpin(3))
    rotation, translation = (torch.stack(pair) for pair in zip(one, other, strict=True))
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    rotation[mask == 0], translation[mask == 0] = torch.nan, torch.nan
    file = write_pdb(tmp_path / "two.pdb", rotation, translation, mask=mask)
    first, second = read_chains(file, models="all")
    assert (first.sequence, second.sequence) == ("G" * 8, "G" * 5)
    assert close(first.atoms, helix(8))
    assert close(second.atoms, hairpin(3)[:5])
    text = file.read_text(encoding="ascii")
    assert [text.count(word) for word in ("MODEL ", "ENDMDL", "TER ", "END ")] == [2, 2, 2, 1]


def test_write_pdb__numbers_jump_at_breaks(tmp_path: Path) -> None:
    rotation, translation = frames(helix(6))
    translation[3:] += 2
    (chain,) = read_chains(write_pdb(tmp_path / "broken.pdb", rotation, translation))
    assert chain.numbers.tolist() == [1, 2, 3, 5, 6, 7]
    assert chain.breaks.tolist() == [True, False, False, True, False, False]


@pytest.mark.slow  # biotite reads its table of components
def test_write_pdb__breaks_are_not_bonded_in_biotite(tmp_path: Path) -> None:
    structure = pytest.importorskip("biotite.structure")
    pdb = importlib.import_module("biotite.structure.io.pdb")
    rotation, translation = frames(helix(6))
    translation[3:] += 2
    array = pdb.PDBFile.read(str(write_pdb(tmp_path / "broken.pdb", rotation, translation))).get_structure(model=1)
    bonds = structure.connect_via_residue_names(array).as_array()[:, :2]
    crossing = {
        tuple(sorted(array.res_id[pair].tolist())) for pair in bonds if len(set(array.res_id[pair].tolist())) > 1
    }
    assert crossing == {(1, 2), (2, 3), (5, 6), (6, 7)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residue": torch.full((4,), 21)}, "residue holds 21.*unmask"),
        ({"residue": torch.zeros(3).long()}, r"residue .*\(3,\).*\(4,\)"),
        ({"residue": torch.zeros(4)}, r"residue .*float32"),
        ({"mask": torch.zeros(4)}, "mask leaves 0 residues"),
        ({"mask": torch.zeros(2, 4)}, r"mask .*\(2, 4\)"),
        ({"translation": torch.zeros(3, 3)}, r"translation .*\(3, 3\).*\(4, 3\)"),
        ({"rotation": torch.zeros(4)}, r"rotation .*\(4,\)"),
        ({"rotation": torch.zeros(0, 4, 4)}, r"rotation .*\(0, 4, 4\)"),
        ({"translation": torch.full((4, 3), 200.0)}, "200.*Å"),
        ({"rotation": torch.zeros(4, 4)}, "rotation .*length 0"),
        ({"translation": torch.full((4, 3), torch.nan)}, "translation holds nan"),
        ({"chain": "AB"}, "chain='AB'"),
        ({"chain": " "}, "chain=' '"),
    ],
)
def test_write_pdb__refuses_and_keeps_the_file(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    file = saved(tmp_path, "before")
    rotation, translation = frames(helix(4))
    arguments: dict[str, object] = {"rotation": rotation, "translation": translation, **changes}
    with pytest.raises(ValueError, match=message):
        write_pdb(file, **arguments)  # pyright: ignore[reportArgumentType]
    assert [path.name for path in tmp_path.iterdir()] == ["1abc.pdb"]
    assert file.read_text(encoding="ascii") == "before"


def test_write_pdb__numbers_have_four_columns(tmp_path: Path) -> None:
    rotation, translation = frames(helix(1))
    apart = translation + 50.0 * (torch.arange(5001)[:, None] % 2)  # every other number is left out
    file = write_pdb(tmp_path / "most.pdb", rotation.expand(5000, 4), apart[:5000])
    assert read_chains(file)[0].numbers.tolist() == list(range(1, 10000, 2))
    with pytest.raises(ValueError, match=r"10001.*5001 residues.*9999"):
        write_pdb(tmp_path / "more.pdb", rotation.expand(5001, 4), apart)
