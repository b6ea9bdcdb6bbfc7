"""A model whose weights FSDP 2 has spread over two processes trains and is scored as the whole one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torchrun import torchrun


def test_sharded_weights_train_and_score_as_whole_ones(tmp_path: Path) -> None:
    log = torchrun("sharded.py", tmp_path)
    records = []
    for rank in range(2):
        file = tmp_path / f"sharded-{rank}.json"
        assert file.exists(), log.read_text()[-4000:]
        records.append(json.loads(file.read_text()))
    first, second = records
    assert sum(first["shard"]) + sum(second["shard"]) == sum(first["all"])
    assert 0.3 < sum(first["shard"]) / sum(first["all"]) < 0.7
    for (alone, mine), (_, other) in zip(first["losses"], second["losses"], strict=True):
        assert (mine + other) / 2 == pytest.approx(alone, rel=1e-5)
    for record in records:
        for whole, sharded in record["bounds"]:
            assert sharded == pytest.approx(whole, rel=1e-4)
    assert first["bounds"][0] != first["bounds"][2]
