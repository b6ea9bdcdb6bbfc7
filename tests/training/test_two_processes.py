"""Two processes are one, but for dropout: the same noise, losses, weights, averages, and the same end at a loss of NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gm_discrete.training import is_complete, last_complete_checkpoint
from tests.helpers import forks
from tests.helpers.small_run import checkpoint, losses, rows, weights
from tests.helpers.two_processes import EQUAL, RAGGED, run_equal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    folder = tmp_path_factory.mktemp("two")
    forks.start("two_processes", folder, processes=2)
    return folder


def record(folder: Path, rank: int) -> dict[str, Any]:
    file = folder / f"record-{rank}.json"
    assert file.exists(), (folder / "log.txt").read_text(encoding="utf-8")[-4000:]
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", EQUAL)
def test_two_processes__losses_and_weights_are_those_of_one(folder: Path, tmp_path: Path, name: str) -> None:
    alone = run_equal(tmp_path, name, world_size=1)
    assert alone.ema is not None
    for rank in range(2):
        found = record(folder, rank)["losses"]
        assert name in found, (folder / "log.txt").read_text(encoding="utf-8")[-4000:]
        # Sums of float32 taken in another order differ by about 1e-7 of their size, and by 1e-2 / ε = 10 times that
        # after each of four AdamW steps. Other noise, or another scale, moves the losses by 1e-1, the weights by 1e-2.
        assert found[name] == pytest.approx(losses(alone), rel=1e-5)
        for suffix, expected in (("", weights(alone.model)), ("-average", alone.ema.average)):
            torch.testing.assert_close(
                load_file(folder / f"{name}-{rank}{suffix}.safetensors"), expected, rtol=0, atol=2e-5
            )


def test_two_processes__hold_the_same_weights(folder: Path) -> None:
    for name in record(folder, 0)["losses"]:
        for suffix in ("", "-average"):
            first, second = (load_file(folder / f"{name}-{rank}{suffix}.safetensors") for rank in range(2))
            torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_two_processes__bound_counts_every_sequence_once(folder: Path) -> None:
    first, second = record(folder, 0), record(folder, 1)
    assert first["bound"] == first["bound again"] == second["bound"]
    lengths = [len(row) for row in rows(7, RAGGED, seed=1)["input_ids"]]
    assert first["bound"]["num_tokens"] == lengths


def test_two_processes__resumed_is_unbroken(folder: Path) -> None:
    unbroken, resumed = (checkpoint(folder / name, 6) for name in ("unbroken", "resumed"))
    for file in ("model.safetensors", "ema-0.safetensors"):
        assert (unbroken / file).read_bytes() == (resumed / file).read_bytes()


def test_two_processes__neither_starts_where_another_run_is(folder: Path) -> None:
    for rank in range(2):
        assert f"output_dir='{folder / 'held'}' is in use by another run" in record(folder, rank)["held"]
    assert [file.name for file in (folder / "held").iterdir()] == ["_RUNNING"]


def test_two_processes__nan_on_one_stops_both(folder: Path) -> None:
    healthy, spoilt = (record(folder, rank)["error"] for rank in range(2))
    assert spoilt.startswith("the loss is nan at step 3;")
    assert healthy.startswith("another process has a loss that is not finite at step 3;")
    saved = checkpoint(folder / "poisoned", 2)
    assert last_complete_checkpoint(folder / "poisoned") == str(saved)
    assert is_complete(saved)
    for rank in range(2):
        torch.testing.assert_close(
            load_file(folder / f"poisoned-{rank}.safetensors"), load_file(saved / "model.safetensors"), rtol=0, atol=0
        )
