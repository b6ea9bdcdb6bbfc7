from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("biotite", reason="an extra: pip install gm_discrete[scores]")
pytest.importorskip("tmtools", reason="an extra: pip install gm_discrete[scores]")

from benchmarks import readme
from gm_discrete import GaussianPath, GeodesicSO3Path, ProductPath, SO3Path
from tests.helpers.proteins import hairpin, helix, pdb_text

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NETWORKS = {
    "flow": "so3",
    "jump": "so3",
    "flow+jump": "so3",
    "geodesic": "geodesic",
    "plugged": "geodesic",
    "plugged-jump": "geodesic",
}


def walk(residues: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1.5, (residues, 3, 3)).cumsum(0)


class Fakes:
    """Random walks in place of data and samples; a model is the name of its network and its seed."""

    def __init__(self) -> None:
        self.trained: list[tuple[str, int]] = []
        self.sampled: list[tuple[Any, str, tuple[int, ...], int, int]] = []

    def chains(self, data: str, split: str, shortest: int) -> list[tuple[np.ndarray, np.ndarray]]:
        seeds = range(8) if split == "train" else range(8, 14)
        return [(walk(18 + seed % 3, seed), np.arange(18 + seed % 3) == 9) for seed in seeds]

    def train(self, config: Any, seed: int) -> Any:
        self.trained.append((config.network, seed))
        return config.network, seed

    def sample(self, model: Any, mode: str, lengths: list[int], steps: int, seed: int) -> list[np.ndarray]:
        self.sampled.append((model, mode, tuple(lengths), steps, seed))
        start = 1000 * seed + 100 * steps + 10 * list(NETWORKS).index(mode)
        return [walk(length, start + i) for i, length in enumerate(lengths)]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/proteins.py, whose name is also that of its scores."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # the script's choice must not outlive the test
    spec = importlib.util.spec_from_file_location("proteins_benchmark", BENCHMARKS / "proteins.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "proteins_benchmark", module)  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fakes(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    found = Fakes()
    for name in ("chains", "train", "sample"):
        monkeypatch.setattr(benchmark, name, getattr(found, name))
    return found


def run(benchmark: ModuleType, folder: Path, *arguments: str) -> dict[str, Any]:
    places = ["--folder", str(folder / "runs"), "--output", str(folder / "proteins.json")]
    benchmark.main(["--quick", "--device", "cpu", "--threads", "1", *places, *arguments])
    return json.loads((folder / "proteins.json").read_text(encoding="utf-8"))


def test_proteins_benchmark__a_row_per_mode_and_number_of_steps(
    benchmark: ModuleType, fakes: Fakes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run(
        benchmark, tmp_path, "--modes", "jump,plugged", "--steps", "2,5", "--plot", str(tmp_path / "samples.png")
    )
    rows = record["rows"]
    assert [(row[""], row["steps"]) for row in rows] == [
        ("held-out chains", None), *((mode, steps) for mode in ("jump", "plugged") for steps in (2, 5))
    ]  # fmt: skip
    assert sorted(fakes.trained) == [("geodesic", 0), ("geodesic", 1), ("so3", 0), ("so3", 1)]
    for model, mode, lengths, _, seed in fakes.sampled:
        assert model == (NETWORKS[mode], seed)
        assert lengths == (16, 20, 16, 20)
    own = record["seeds"]["jump, 5 steps"]
    radii = [figures["radius"] for figures in own]
    row = next(row for row in rows if (row[""], row["steps"]) == ("jump", 5))
    assert row["radius"] == pytest.approx(mean(radii))
    assert row["radius se"] == pytest.approx(stdev(radii) / 2**0.5)
    assert (tmp_path / "samples.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "| plugged | 5 |" in printed
    text = readme.render("{{proteins *}}", {"proteins": record})
    assert "proteins.py --quick" in text
    assert len(record["tables"]) == 2
    first = record["tables"][0]
    assert first["rows"][0][:2] == ["held-out chains", None]
    assert len(first["rows"]) == 5


def test_proteins_benchmark__figures_in_the_folder_are_not_made_again(
    benchmark: ModuleType, fakes: Fakes, tmp_path: Path
) -> None:
    first = run(benchmark, tmp_path, "--modes", "jump", "--seeds", "1")
    assert (len(fakes.trained), len(fakes.sampled)) == (1, 1)
    both = run(benchmark, tmp_path, "--modes", "jump,flow")
    assert fakes.trained[1:] == [("so3", 0), ("so3", 1)]
    assert len(fakes.sampled) == 4
    assert both["seeds"]["jump, 2 steps"][1] == first["seeds"]["jump, 2 steps"][0]
    again = run(benchmark, tmp_path, "--modes", "jump,flow")
    assert len(fakes.sampled) == 4
    assert again["rows"][1:] == both["rows"][1:]
    with pytest.raises(ValueError, match=r"jump-2-0\.json.*--folder.*'num_samples': 5"):
        run(benchmark, tmp_path, "--modes", "jump", "--num-samples", "5")


def test_proteins_benchmark__designability_by_a_command(benchmark: ModuleType, fakes: Fakes, tmp_path: Path) -> None:
    program = tmp_path / "fold.py"
    text = "import sys\nprint(1.5 if sum('CA' in line for line in open(sys.argv[1])) == 16 else 4)\n"
    program.write_text(text, encoding="utf-8")
    command = f"{sys.executable} {program} {{pdb}}"
    record = run(benchmark, tmp_path, "--modes", "plugged", "--seeds", "0", "--designability-command", command)
    (scores,) = record["seeds"]["plugged, 2 steps"]
    assert (scores["designable"], scores["scrmsd"]) == (0.5, 2.75)
    columns = [column["name"] for column in record["tables"][1]["columns"]]
    assert "designable" in columns
    assert record["rows"][1]["designable se"] == pytest.approx(0.5 / 3**0.5)  # of one seed: over four samples


def test_proteins_benchmark__has_all_modes_by_default(benchmark: ModuleType) -> None:
    args = benchmark.arguments([])
    assert args.modes == list(NETWORKS)
    assert (args.steps, args.seeds) == ([25, 100, 250], [0, 1, 2])
    assert benchmark.NETWORKS == NETWORKS


@pytest.mark.slow
def test_proteins_benchmark__trains_and_samples_all_modes(benchmark: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("gemmi", reason="an extra: pip install gm_discrete[proteins]")
    (tmp_path / "files").mkdir()
    for number in range(24):  # of which 1 to 3 are for validation
        atoms = helix(22 + number % 3) if number % 2 else hairpin(10)
        (tmp_path / "files" / f"{number}abc.pdb").write_text(pdb_text(atoms, "A" * len(atoms)), encoding="utf-8")
    record = run(benchmark, tmp_path, "--data", str(tmp_path / "files"), "--seeds", "1")
    assert [row[""] for row in record["rows"]] == ["held-out chains", *NETWORKS]
    assert record["rows"][0]["valid"] == 1.0
    for row in record["rows"]:
        assert 0 <= row["bonds"] <= 1
    assert sorted(folder.name for folder in (tmp_path / "runs").glob("*-2-1")) == ["geodesic-2-1", "so3-2-1"]


@pytest.mark.parametrize("mode", ["plugged", "plugged-jump"])
def test_plugged_jumps__are_those_given_the_predicted_rotation(benchmark: ModuleType, mode: str) -> None:
    networks = sys.modules[benchmark.sample.__module__]
    rng = torch.Generator().manual_seed(0)
    path = ProductPath(rotation=GeodesicSO3Path(), translation=GaussianPath(num_channels=3))
    z = path.prior({"rotation": (50, 4, 4), "translation": (50, 4, 3)}, rng)

    class Certain:
        """A network that predicts z."""

        def __init__(self) -> None:
            self.path, self.device = path, torch.device("cpu")

        def generator(self, x: Any, t: Any, t_next: Any = None) -> Any:
            return path.conditional(z, x, t, t_next)

    process = networks.PluggedJumps(Certain(), networks.WEIGHTS[mode])
    x, t = path.prior({"rotation": (50, 4, 4), "translation": (50, 4, 3)}, rng), torch.full((50,), 0.5)
    found = process.generator(x, t).factors["rotation"]
    wanted: Any = SO3Path({"jump": 1.0}).conditional(z["rotation"], x["rotation"], t).parts["jump"]
    torch.testing.assert_close(found.parts["jump"].intensity, wanted.intensity, rtol=1e-4, atol=1e-4)
    assert found.weights["flow"][0] == {"plugged": 0.5, "plugged-jump": 0.0}[mode]
    end = networks.plugged_samples(Certain(), networks.WEIGHTS[mode], 50, 4, 10, 0)
    apart = (end["rotation"] * z["rotation"]).sum(-1).abs()  # the last step is the flow's, and ends at z
    torch.testing.assert_close(apart, torch.ones_like(apart), rtol=0, atol=1e-5)


def test_middle__of_a_long_and_a_short_chain(benchmark: ModuleType) -> None:
    atoms, breaks = walk(20, 0), np.arange(20) == 7
    part, marks = benchmark.middle(atoms, breaks, 11)
    np.testing.assert_array_equal(part, atoms[4:15])
    assert marks.nonzero()[0].tolist() == [3]
    assert len(benchmark.middle(atoms, breaks, 30)[0]) == 20


def test_over_seeds__leaves_out_what_is_not_defined(benchmark: ModuleType) -> None:
    rows = [{"a": 1.0, "a se": 9.0, "b": None, "c": None}, {"a": 3.0, "a se": 9.0, "b": 4.0, "c": float("nan")}]
    found = benchmark.over_seeds(rows)
    assert found == {"a": 2, "a se": 1, "b": 4, "b se": None, "c": None, "c se": None}
    assert benchmark.over_seeds(rows[:1]) == rows[0]


def test_table__a_missing_score_is_a_dash(benchmark: ModuleType) -> None:
    rows = [{"": "real", "steps": None, "a": 1.0}, {"": "jump", "steps": 5, "a": 0.5, "a se": 0.01, "b": 2.0}]
    found = benchmark.table(rows, {"a": "A", "b": "B", "c": "C"})
    assert found.splitlines() == [
        "|  | steps | A | B |",
        "| --- | --- | --- | --- |",
        "| real | – | 1.000 | – |",
        "| jump | 5 | 0.500 ± 0.010 | 2.000 |",
    ]


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("--modes", "flow,diffusion", "'diffusion' is none of flow, jump"),
        ("--steps", "5,0", "--steps 5,0"),
        ("--lengths", "64,4", "--lengths 64,4"),
        ("--seeds", "a", "--seeds a"),
        ("--num-samples", "1", "--num-samples 1 must be at least 2"),
    ],
)
def test_proteins_benchmark__wrong_arguments_are_an_error(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], argument: str, value: str, message: str
) -> None:
    with pytest.raises(SystemExit):
        benchmark.arguments([argument, value])
    assert message in capsys.readouterr().err
