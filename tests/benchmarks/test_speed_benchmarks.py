from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from gm_discrete import MaskedPath
from gm_discrete.samplers import SAMPLERS, samplers_for

pytest.importorskip(
    "flow_matching.solver", reason="the peer, an extra: pip install flow_matching", exc_type=ImportError
)

Script = Callable[[str], ModuleType]
LENGTH, BATCH = 16, 2  # of --quick


def run(script: Script, name: str, output: Path, *arguments: str) -> dict:
    argv = ["--quick", "--skip-memory", "--threads", "1", "--output", str(output), *arguments]
    script(name).main(argv)
    record = json.loads(output.read_text(encoding="utf-8"))
    assert record["benchmark"] == name
    assert record["environment"]["command"].startswith(f"python benchmarks/{name}.py --quick --skip-memory")
    assert record["settings"]["length"] == LENGTH
    assert {"torch", "flow_matching"} <= record["environment"]["versions"].keys()
    return record


@pytest.mark.slow
def test_sampling_benchmark__quick_run(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run(script, "sampling", tmp_path / "new" / "sampling.json", "--steps", "2", "8", "--peer-steps", "4")
    masked = [result for result in record["results"] if result["path"] == "masked"]
    uniform = [result for result in record["results"] if result["path"] == "uniform"]
    assert [result["steps"] for result in masked] == [result["steps"] for result in uniform] == [2, 8]
    for result in record["results"]:
        assert result["peer_extrapolated"] == (result["steps"] > 4)
        per_step = result["peer_s"] / result["steps"]
        assert per_step == pytest.approx(result["rounds"]["peer"][0] / result["peer_steps"])
        assert result["calls_per_sample"] <= min(result["steps"], LENGTH)
        assert all(result[name] > 0 for name in ("ours_s", "peer_s", "backbone_s", "head_s"))
    # A masked token jumps once; a uniform one at most once, since mixture rates land on data for good.
    assert [result["rows_per_position"] for result in masked] == [1, 1]
    table = capsys.readouterr().out
    assert table.count("| masked |") == table.count("| uniform |") == 2
    assert table.count("| ~") == 2


@pytest.mark.slow
def test_sampling_benchmark__samplers_against_their_own_floor(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run(script, "sampling", tmp_path / "methods.json", "--steps", "4", "--methods", *SAMPLERS)
    results = {(result["path"], result["method"]): result for result in record["results"]}
    assert {method for _, method in results} == SAMPLERS.keys() & set(samplers_for(MaskedPath(3)))
    assert results["masked", "first_hitting"]["calls_per_sample"] == LENGTH
    assert results["uniform", "trapezoidal"]["calls_per_sample"] <= 7  # two for each step but the last
    assert all(result["ours_s"] > 0 and result["backbone_s"] > 0 for result in record["results"])
    assert capsys.readouterr().out.count("first_hitting") == 2  # the command and the row


@pytest.mark.slow
def test_blocks_benchmark__quick_run(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run(script, "blocks", tmp_path / "blocks.json", "--lengths", "12", "24")
    assert [result["length"] for result in record["results"]] == [12, 24]
    assert all(result["same"] == 1 and result["cached"] > 0 < result["uncached"] for result in record["results"])
    assert capsys.readouterr().out.count("100.00%") == 2


@pytest.mark.slow
def test_training_benchmark__quick_run(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run(script, "training", tmp_path / "training.json", "--optimizer", "--pairs", "2")
    masked, uniform = record["results"]
    assert 0 < masked["scored_positions"] < uniform["scored_positions"] == BATCH * LENGTH
    for result in (masked, uniform):
        assert result["relative_disagreement"] < 1e-4  # float32, against the peer's
        assert all(len(times) == 2 for times in result["rounds"].values())
        assert math.isclose(result["speedup"], result["peer_s"] / result["ours_s"])
    assert capsys.readouterr().out.count("| masked |") == 1


@pytest.mark.slow
def test_measure__peak_memory_is_that_of_the_call(script: Script) -> None:
    measure = script("measure")
    size = 2**26
    peak = measure.in_fresh_process(measure.peak_memory, AllocateTwice(size), "cpu")
    assert 1.98 * size <= peak <= 2.2 * size  # the kernel counts pages in batches


class AllocateTwice:
    """Holds two blocks of memory at once, four in all."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self) -> None:
        for _ in range(2):
            blocks = [bytearray(b"x") * self.size for _ in range(2)]
            del blocks


def test_sampling_benchmark__unknown_arguments_are_refused(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script("sampling").main(["--step", "2"])
    assert "--step" in capsys.readouterr().err
