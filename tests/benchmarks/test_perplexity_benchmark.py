from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gm_discrete import GMConfig, GMModel, MaskedPath
from gm_discrete.data import character_tokenizer

Script = Callable[[str], ModuleType]
LENGTH = 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, a judge and data, all tiny."""
    root = tmp_path_factory.mktemp("perplexity")
    tokenizer = character_tokenizer(alphabet="abcd ")
    torch.manual_seed(0)
    path = MaskedPath(len(tokenizer), tokenizer.mask_token_id)
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": LENGTH}
    model = GMModel(GMConfig(path=path.to_dict(), pad_token_id=tokenizer.pad_token_id, **tiny))
    judge = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), intermediate_size=16, **tiny))
    for name, network in {"model": model, "judge": judge}.items():
        network.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    (root / "data.txt").write_text("abcd dab cab\n" * 60, encoding="utf-8")
    return {"model": root / "model", "judge": root / "judge", "data": root / "data.txt"}


def run(script: Script, folders: dict[str, Path], output: Path, *arguments: str) -> dict:
    places = ["--model", str(folders["model"]), "--data", str(folders["data"]), "--output", str(output)]
    sizes = ["--limit", "4", "--num-samples", "3", "--batch-size", "2", "--num-steps", "4", "--threads", "1"]
    script("perplexity").main([*places, *sizes, *arguments])
    return json.loads(output.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_perplexity_benchmark__scores(
    script: Script, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--judge", str(folders["judge"]), "--seed", "3"]
    record, again = (run(script, folders, tmp_path / f"{i}.json", *arguments) for i in range(2))
    for part in ("bound", "samples", "data", "model", "judge"):
        assert record[part] == again[part]
    bound = record["bound"]
    assert bound["blocks"] == 4
    assert bound["dynamics"] == "masked"
    assert bound["perplexity"] == pytest.approx(2 ** bound["bits_per_token"])
    tokens_per_character = bound["bits_per_character"] / bound["bits_per_token"]
    assert tokens_per_character == pytest.approx(4 * LENGTH / bound["characters"])
    assert record["settings"]["length"] == LENGTH
    assert record["settings"]["seed"] == 3
    assert len(record["model"]["weights_sha256"]) == 64
    for scores in (record["samples"], record["data"]):
        assert 0 < scores["entropy"] <= math.log(LENGTH)
        assert scores["judge_perplexity"] > 1
        assert scores["judge_entropy"] > 0
    assert "perplexity under the judge" in capsys.readouterr().out


def test_perplexity_benchmark__without_a_judge_the_seed_changes_the_samples(
    script: Script, folders: dict[str, Path], tmp_path: Path
) -> None:
    first, second = (run(script, folders, tmp_path / f"{i}.json", "--seed", str(i)) for i in range(2))
    assert first["judge"] is None
    assert not any(name.startswith("judge") for name in first["samples"])
    assert first["samples"] != second["samples"]


def test_perplexity_benchmark__refuses_a_tokenizer_of_another_size(
    script: Script, folders: dict[str, Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    GMModel.from_pretrained(folders["model"]).save_pretrained(model)
    character_tokenizer(alphabet="abcdefgh ").save_pretrained(model)
    with pytest.raises(ValueError, match="vocab_size=9"):
        run(script, folders | {"model": model}, tmp_path / "scores.json")
    assert not (tmp_path / "scores.json").exists()


def test_perplexity_benchmark__reports_unknown_tokens(
    script: Script, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "strange.txt").write_text("abcd § dab ¶\n" * 60, encoding="utf-8")
    run(script, folders | {"data": tmp_path / "strange.txt"}, tmp_path / "scores.json")
    assert re.search(r"[1-9]\d* of 32 tokens are unknown to the tokenizer", capsys.readouterr().out)
