from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gm_discrete import GMConfig, GMModel, MaskedPath
from gm_discrete.data import character_tokenizer


@pytest.mark.slow
def test_likelihoods_benchmark__bounds_and_rows(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows are those that the method needs; weights are random, and there are 4 repetitions."""
    tokenizer = character_tokenizer(alphabet="abcd ")
    torch.manual_seed(0)
    path = MaskedPath(len(tokenizer), tokenizer.mask_token_id)
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8}
    model = GMModel(GMConfig(path=path.to_dict(), pad_token_id=tokenizer.pad_token_id, **tiny))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "data.txt").write_text("abcd dab cab\n" * 60, encoding="utf-8")
    places = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "data.txt")]
    sizes = ["--stretches", "2", "--length", "8", "--scored", "3", "--orders", "1", "20", "--repeats", "4"]
    script("likelihoods").main([*places, *sizes, "--threads", "1", "--output", str(tmp_path / "found.json")])
    record = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert record["summary"]["rows"] == 2**3 - 1
    one, many = record["bounds"]
    assert one["rows"] == 3
    assert 3 < many["rows"] <= 2**3 - 1  # orders share them
    assert 0 < many["any_order"]["error"] < one["any_order"]["error"]
    assert len(record["ranking"]) == 4
    assert "gap, any_order_bound" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"scored=8 .*length=8"):
        script("likelihoods").main([*places, "--length", "8", "--scored", "8"])
