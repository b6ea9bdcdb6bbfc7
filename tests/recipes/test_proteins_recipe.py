"""recipes/proteins.py: its configs build their models; data in a folder; the files of a run; resuming."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import AutoModel, TrainingArguments

from gm_discrete import GMModel
from gm_discrete.data import read_chains
from gm_discrete.data.proteins import chain_of_atoms
from gm_discrete.generators import Product, quaternions
from recipes.datasets import load_proteins, windows
from recipes.protein_geometry import geometry, torsion_shares
from tests.helpers.proteins import hairpin, helix, pdb_text
from tests.helpers.recipe_configs import RECIPES, configs

pytest.importorskip("gemmi", reason="an extra: pip install gm_discrete[proteins]")

CONFIGS = configs("proteins")
LEFT = {
    "README.md", "config.json", "generation_config.json", "model.safetensors", "metrics.json", "run.json", "curve.png",
    "samples.png",
}  # fmt: skip


@pytest.fixture(scope="session")
def protein_recipe(recipe: ModuleType) -> ModuleType:
    """recipes/proteins.py."""
    return importlib.import_module("recipes.proteins")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen PDB files with a helix or a hairpin of 14 to 17 residues, and files that are no structures."""
    place = tmp_path_factory.mktemp("proteins")
    for number in range(16):
        atoms = helix(14 + number % 4) if number % 2 else hairpin(6 + number % 3)
        sequence = "ACDEFGHIKLMNPQRSTVWY"[: len(atoms)]
        (place / f"{number}abc.pdb").write_text(pdb_text(atoms, sequence), encoding="utf-8")
    (place / "notes.txt").write_text("no structure", encoding="utf-8")
    (place / "torn.pdb").write_text("HEADER\n", encoding="utf-8")
    return place


@pytest.fixture(scope="session")
def few(folder: Path) -> list[str]:
    """Arguments that make any config a run of two steps on the folder."""
    sizes = {
        "data": folder, "held_out": 0.2, "length": 14, "shortest_crop": 12, "shortest": 12, "hidden_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_components": 2, "max_steps": 2, "warmup_steps": 1,
        "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4, "num_steps": 3,
        "num_samples": 3, "sample_lengths": "9,12", "dataloader_num_workers": 0, "report_to": "none",
        "disable_tqdm": True, "use_cpu": True, "bf16": False, "torch_compile": False,
    }  # fmt: skip
    return flags(sizes)


def flags(arguments: dict[str, object]) -> list[str]:
    return [part for name, value in arguments.items() for part in (f"--{name}", str(value))]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_proteins_recipe__a_config_describes_a_model_of_full_size(protein_recipe: ModuleType, file: Path) -> None:
    kinds = (protein_recipe.ProteinArguments, TrainingArguments)
    options, training = protein_recipe.parse_arguments(kinds, ["--config", str(file), "--use_cpu", "true"])
    config = protein_recipe.build_config(options, 0.8)
    with torch.device("meta"):
        model = GMModel(config)
    least, most = {"theseus_frames": (1e6, 2e6), "pdb_frames": (15e6, 35e6)}[file.stem]
    assert least < sum(weight.numel() for weight in model.parameters()) < most
    assert config.max_position_embeddings == options.length
    assert training.output_dir == f"runs/{file.stem}"
    assert training.max_steps % training.eval_steps == training.max_steps % training.save_steps == 0
    assert max(protein_recipe.sample_lengths(options)) <= options.length


def test_proteins_recipe__configs_exist() -> None:
    assert {file.stem for file in CONFIGS} == {"theseus_frames", "pdb_frames"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["theseus_frames", "pdb_frames"])
def test_proteins_recipe__trains_and_writes_structures(
    protein_recipe: ModuleType, few: list[str], tmp_path: Path, name: str
) -> None:
    config = RECIPES / "configs" / f"{name}.yaml"
    metrics = protein_recipe.main(["--config", str(config), *few, "--output_dir", str(tmp_path)])
    assert {entry.name for entry in tmp_path.iterdir() if entry.is_file()} == LEFT
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert {"rotation", "translation", "residue", "samples/valid", "samples/bonds"} <= metrics.keys()
    assert [name for name, value in metrics.items() if not math.isfinite(value)] == []
    chains = [read_chains(tmp_path / "samples" / f"{number}.pdb")[0] for number in range(3)]
    assert [len(chain) for chain in chains] == [9, 12, 9]
    model = AutoModel.from_pretrained(tmp_path)
    assert model.config.frames == ["rotation", "translation"]
    assert model.config.independent_times
    assert model.path.fields["translation"].data_std == pytest.approx(0.5, abs=0.3)  # of chains of 15 residues, in nm


@pytest.mark.slow
def test_proteins_recipe__resumes_to_the_same_weights(
    protein_recipe: ModuleType, few: list[str], tmp_path: Path
) -> None:
    choice = {"rotations": "geodesic", "residues": False, "lr_scheduler_type": "constant"}
    for folder, steps in (("unbroken", 4), ("resumed", 2), ("resumed", 4)):
        protein_recipe.main([*few, *flags({**choice, "max_steps": steps, "output_dir": tmp_path / folder})])
    for file in ("model.safetensors", "samples/0.pdb"):
        assert (tmp_path / "resumed" / file).read_bytes() == (tmp_path / "unbroken" / file).read_bytes(), file
    with pytest.raises(ValueError, match=r"started with length=14, now it is 13"):
        protein_recipe.main([*few, *flags({**choice, "length": 13, "output_dir": tmp_path / "resumed"})])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rotations", "euler", "rotations='euler' must be so3 or geodesic"),
        ("generators", '{"leap": 1.0}', r"generators.leap "),
        ("prediction", "angles", "prediction='angles'"),
        ("data", "/nowhere", "/nowhere"),
        ("sample_lengths", "9,a", "sample_lengths='9,a'"),
        ("shortest_crop", "15", "shortest_crop=15"),
        ("shortest", "90", "90 or more residues"),
        ("held_out", "0.7", "held_out=0.7"),
    ],
)
def test_proteins_recipe__an_unknown_choice_is_an_error(
    protein_recipe: ModuleType, few: list[str], tmp_path: Path, name: str, value: str, message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        protein_recipe.main([*few, f"--{name}", value, "--output_dir", str(tmp_path)])


def test_proteins_recipe__a_geodesic_path_has_no_jump(protein_recipe: ModuleType) -> None:
    options = protein_recipe.ProteinArguments(rotations="geodesic", generators="jump")
    with pytest.raises(ValueError, match="generators='jump'"):
        protein_recipe.build_config(options, 0.8)


def test_load_proteins__a_file_is_in_one_split(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {}
    for split in ("train", "validation", "test"):
        names[split] = {
            chain.name.partition(":")[0] for chain in load_proteins(folder, split, shortest=5, held_out=0.2)
        }
    assert len(set.union(*names.values())) == sum(map(len, names.values())) == 16
    assert len(names["train"]) > len(names["validation"]) > 0
    assert "left out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="split='dev'"):
        load_proteins(folder, "dev")


def test_load_proteins__cuts_at_breaks(tmp_path: Path) -> None:
    atoms = helix(14)
    atoms[8:] += 10.0
    (tmp_path / "1abc.pdb").write_text(pdb_text(atoms, "A" * 14), encoding="utf-8")
    found = load_proteins(tmp_path, shortest=7, held_out=0.0)
    assert [len(chain) for chain in found] == [8]
    assert len(load_proteins(tmp_path, shortest=2, held_out=0.0)) == 2
    assert found[0].breaks.tolist() == [True] + [False] * 7


def test_windows__are_successive() -> None:
    atoms = helix(14).float().numpy()
    chain = chain_of_atoms("a", "ACDEFGHIKLMNPQ", atoms, np.arange(14), " " * 14)
    parts = windows([chain], 6)
    assert [part.sequence for part in parts] == ["ACDEFG", "HIKLMN"]
    assert all(part.breaks.tolist() == [True] + [False] * 5 for part in parts)
    assert [len(part) for part in windows([chain], 20)] == [14]


def test_torsion_shares__of_a_helix_and_a_strand() -> None:
    assert torsion_shares(helix(12)) == {"alpha": 1.0, "beta": 0.0}
    shares = torsion_shares(hairpin(8))
    assert shares["beta"] > 0.7
    assert geometry(hairpin(8))["bonds"] == 1.0


@pytest.mark.parametrize("rotations", ["so3", "geodesic"])
def test_proteins_recipe__the_process_is_equivariant(protein_recipe: ModuleType, rotations: str) -> None:
    """Turning all frames turns velocities and beliefs, and leaves the probabilities of amino acids as they are."""
    options = protein_recipe.ProteinArguments(
        rotations=rotations, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_components=3
    )
    torch.manual_seed(0)
    model = GMModel(protein_recipe.build_config(options, 0.8)).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    rng = torch.Generator().manual_seed(1)
    path: Any = model.path
    x = path.prior({"rotation": (2, 7, 4), "translation": (2, 7, 3), "residue": (2, 7)}, rng)
    x["residue"][:, ::2] = 3
    turn = quaternions.normalized(quaternions.uniform((1, 1), rng).double())
    x |= {"translation": x["translation"].double(), "rotation": quaternions.normalized(x["rotation"].double())}
    turned = {
        "rotation": quaternions.multiply(turn, x["rotation"]),
        "translation": quaternions.rotate(turn, x["translation"]),
        "residue": x["residue"],
    }
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    here, there = (cast(Product, model.generator(state, t)).factors for state in (x, turned))
    velocities = [cast(Any, factors["rotation"]).parts["flow"].velocity for factors in (here, there)]
    torch.testing.assert_close(velocities[1], quaternions.multiply(turn, velocities[0]), rtol=1e-5, atol=1e-6)
    moves = [cast(Any, factors["translation"]).parts["flow"].velocity for factors in (here, there)]
    torch.testing.assert_close(moves[1], quaternions.rotate(turn, moves[0]), rtol=1e-5, atol=1e-6)
    rows = torch.arange(14)
    tokens = [cast(Any, factors["residue"]).kernel.log_probs(rows) for factors in (here, there)]
    torch.testing.assert_close(tokens[1], tokens[0], rtol=1e-5, atol=1e-6)
    if rotations == "so3":
        beliefs = [cast(Any, factors["rotation"]).belief for factors in (here, there)]
        clean = quaternions.uniform((14,), rng).double()
        ratios = [
            belief.log_likelihood_ratio(z)
            for belief, z in zip(
                beliefs, (clean.view(2, 7, 4), quaternions.multiply(turn, clean.view(2, 7, 4))), strict=True
            )
        ]
        torch.testing.assert_close(ratios[1], ratios[0], rtol=1e-5, atol=1e-6)
