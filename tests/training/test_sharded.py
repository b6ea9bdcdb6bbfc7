"""A model whose weights FSDP 2 has spread over two processes trains, is scored, saved and resumed as a whole one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gm_discrete import GMModel
from tests.helpers import forks
from tests.helpers.sharded_training import bounds, trainer
from tests.helpers.small_run import checkpoint, losses, weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    folder = tmp_path_factory.mktemp("sharded")
    forks.start("sharded_training", folder, processes=2)
    return folder


@pytest.fixture(scope="module", params=[0, 1])
def record(folder: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What one of them wrote down."""
    file = folder / f"record-{request.param}.json"
    assert file.exists(), (folder / "log.txt").read_text(encoding="utf-8")[-4000:]
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same run by one process."""
    run = trainer(tmp_path_factory.mktemp("alone"), 4)
    run.train()
    return run


def test_sharded__losses_and_bounds_are_those_of_one_process(record: dict[str, Any], alone: Any) -> None:
    """Losses but for sums of float32 taken in another order, as in test_two_processes.py.

    The noise of evaluation is that of each process: the bounds of different draws, of 8 each, are near one another.
    """
    assert record["losses"] == pytest.approx(losses(alone), rel=1e-5)
    assert record["bounds"] == pytest.approx(bounds(alone), rel=0.1)
    assert len(record["bounds"]) == 2
    assert len(record["final"]) == 6


def test_sharded__the_head_is_called_once_a_loss(record: dict[str, Any]) -> None:
    """By the fused operation, while its weights are gathered, and equally often by both processes."""
    assert record["sums"] == ["FSDPLinear"] * len(record["losses"])


def test_sharded__each_process_holds_half_of_the_weights(record: dict[str, Any]) -> None:
    assert 0.3 < record["shard"] / record["all"] < 0.7


def test_sharded__averaged_weights_are_published_whole(folder: Path, record: dict[str, Any], alone: Any) -> None:
    published = GMModel.from_pretrained(folder / "published")
    torch.testing.assert_close(weights(published), alone.ema.average, rtol=0, atol=2e-5)
    assert not (folder / "published" / "training_args.bin").exists()


def test_sharded__resumed_is_unbroken(folder: Path, record: dict[str, Any]) -> None:
    assert record["resumed"] == record["losses"]
    unbroken, resumed = (checkpoint(folder / name, 4) for name in ("unbroken", "resumed"))
    for file in ("model.safetensors", "ema-0.safetensors", "ema-1.safetensors"):
        assert (unbroken / file).read_bytes() == (resumed / file).read_bytes()


def test_sharded__times_and_losses_keep_their_precision_in_bfloat16(record: dict[str, Any]) -> None:
    """A time above 0.998 would be 1 in bfloat16, and its hazard infinite. Eight bits of weights move losses by 2 %."""
    assert record["precision"] == ["loss torch.float32", "time torch.float64"]
    assert record["bfloat16"] == pytest.approx(record["losses"], rel=0.02)
    assert record["bfloat16"] != record["losses"]


def test_sharded__unsupported_options_are_refused(record: dict[str, Any]) -> None:
    assert "sharded over processes" in record["generate"]
    assert "max_steps" in record["finished"]
    assert record["muon"].startswith("optimizer_cls_and_kwargs")
    assert record["eval_on_start"].startswith("eval_on_start")
