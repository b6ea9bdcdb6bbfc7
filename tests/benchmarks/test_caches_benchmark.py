from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from gm_discrete.data import character_tokenizer
from tests.helpers.networks import MASK, K, network


def test_caches_benchmark__rows(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = character_tokenizer(["to be or not to be"])
    assert (len(tokenizer), tokenizer.mask_token_id) == (K, MASK)
    network().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "text.txt").write_text("to be or not to be " * 10, encoding="utf-8")
    sizes = {"prompt-length": 5, "new-tokens": 8, "block": 4, "num-samples": 3, "rounds": 1, "thresholds": 0.5}
    numbers = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    places = ["--model", str(tmp_path), "--text", str(tmp_path / "text.txt"), "--output", str(tmp_path / "caches.json")]
    script("caches").main([*places, *numbers, "--device", "cpu"])
    rows = json.loads((tmp_path / "caches.json").read_text(encoding="utf-8"))["rows"]
    found = {(row["way"], row["cache"]): row for row in rows}
    assert len(found) == 4 * 3
    first = found["one token a call", None]
    assert (first["same"], first["calls"], first["positions"]) == (1.0, 8.0, 8 * 13)
    assert found["one token a call", "dual"]["positions"] == 2 * 13 + 6 * 4
    assert found["one token a call", "prefix"]["positions"] == 2 * 13 + 3 * 8 + 3 * 4
    for (_, cache), row in found.items():
        assert 0 <= row["same"] <= 1
        assert row["s"] > 0
        assert cache is not None or row["same_order"] == 1.0
    assert "| threshold 0.5 | dual |" in capsys.readouterr().out
