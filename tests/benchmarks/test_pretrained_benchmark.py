from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from gm_discrete import GMModel
from gm_discrete.data import character_tokenizer, load_tokenizer

Script = Callable[[str], ModuleType]
TINY = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY |= {"max_position_embeddings": 64}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A decoder, an encoder and two files of text, all tiny; the decoder prefers the letter after each letter."""
    root = tmp_path_factory.mktemp("pretrained")
    tokenizer = character_tokenizer(alphabet="abcd \n")
    torch.manual_seed(0)
    sizes = {**TINY, "vocab_size": len(tokenizer)}
    decoder = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True))
    for name, network in {"decoder": decoder, "encoder": BertForMaskedLM(BertConfig(**sizes))}.items():
        network.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    for name, line in {"one.txt": "abcd dab cab\n", "two.txt": "cab abc dd\n"}.items():
        (root / name).write_text(line * 200, encoding="utf-8")
    return {name: root / name for name in ("decoder", "encoder", "one.txt", "two.txt")}


def run(script: Script, folders: dict[str, Path], output: Path, *arguments: str) -> dict[str, Any]:
    places = ["--decoder", str(folders["decoder"]), "--encoder", str(folders["encoder"]), "--output", str(output)]
    data = ["--data", str(folders["one.txt"]), str(folders["two.txt"])]
    script("pretrained").main([*places, *data, "--quick", "--dtype", "float32", "--threads", "1", *arguments])
    return json.loads(output.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_pretrained_benchmark__tables_and_models(
    script: Script, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run(script, folders, tmp_path / "found.json", "--models", str(tmp_path / "models"))
    decoder, encoder = record["decoder"], record["encoder"]
    assert [len(group["runs"]) for group in (decoder, encoder)] == [6, 3]
    assert decoder["sizes"] == encoder["sizes"]  # the same passages
    assert len(decoder["sizes"]) == 4
    for found in (*decoder["runs"], *encoder["runs"]):
        assert [point["updates"] for point in found["points"]] == [0, 8, 10]
        assert found["points"][-1]["seconds"] > found["points"][1]["seconds"] > found["points"][0]["seconds"] == 0
        assert found["points"][-1]["cpu_seconds"] > 0
        scores = [sum(found["nats"]) / math.log(2) / sum(decoder["sizes"])]
        assert [found["final"]["all"]["bits_per_byte"]] == pytest.approx(scores, rel=1e-3)
    lora = {found["name"]: found["trained"] < found["parameters"] for found in decoder["runs"]}
    assert [name for name, partly in lora.items() if partly] == [name for name in lora if "LoRA" in name]
    own, pretrained = decoder["runs"][-1]["parameters"], decoder["runs"][0]["parameters"]
    assert own == pytest.approx(pretrained, rel=0.2)
    assert [len(table["rows"]) for table in record["tables"]][::2] == [8, 4]
    assert "above the first" in capsys.readouterr().out

    model = GMModel.from_pretrained(tmp_path / "models" / "decoder-pretrained-shift")
    assert model.config.shift
    assert load_tokenizer(tmp_path / "models" / "decoder-pretrained-shift").mask_token_id == model.config.mask_token_id
    adapted = load_file(tmp_path / "models" / "decoder-pretrained-shift-LoRA" / "model.safetensors")
    assert not [name for name in adapted if "lora" in name]


def test_pretrained_benchmark__mark_is_the_likelihood_of_the_decoder(
    script: Script, folders: dict[str, Path], tmp_path: Path
) -> None:
    record = run(script, folders, tmp_path / "found.json", "--networks", "decoder", "--runs", "own backbone")
    model, tokenizer = LlamaForCausalLM.from_pretrained(folders["decoder"]), load_tokenizer(folders["decoder"])
    held_out = script("pretrained_text").held_out
    passages = [text for name in ("one.txt", "two.txt") for text in held_out(str(folders[name]), 2, 12)]
    assert [len(text) for text in passages] == record["decoder"]["sizes"]
    nats = 0.0
    for text in passages:
        tokens = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            nats += float(model(input_ids=tokens, labels=tokens).loss) * (tokens.shape[1] - 1)
    bits = nats / math.log(2) / sum(map(len, passages))
    assert record["decoder"]["marks"]["the decoder itself, autoregressive"]["all"]["bits_per_byte"] == pytest.approx(
        bits, rel=1e-4
    )


def test_pretrained_benchmark__runs_share_batches_and_noise(
    script: Script, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Two runs of one name differ in nothing."""
    first, second = (
        run(script, folders, tmp_path / f"{i}.json", "--networks", "encoder", "--runs", "pretrained")["encoder"][
            "runs"
        ][0]
        for i in range(2)
    )
    assert first["nats"] == pytest.approx(second["nats"], rel=1e-3)
    assert first["curve_nats"]["8"] == pytest.approx(second["curve_nats"]["8"], rel=1e-3)
    assert first["curve_nats"]["0"] != first["curve_nats"]["8"]


def test_pretrained_benchmark__runs_end_with_their_time(
    script: Script, folders: dict[str, Path], tmp_path: Path
) -> None:
    options = ["--networks", "encoder", "--runs", "pretrained", "--updates", "99999", "--minutes", "0.005"]
    last = run(script, folders, tmp_path / "found.json", *options)["encoder"]["runs"][0]["points"][-1]
    assert last["seconds"] >= 0.3
    assert 0 < last["updates"] < 99999


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--passages", "9999"], "passages of passage_bytes=12; 9999"), (["--passage-bytes", "40"], "length=16 is fewer")],
)
def test_pretrained_benchmark__passages_that_do_not_fit_are_refused(
    arguments: list[str], message: str, script: Script, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(script, folders, tmp_path / "found.json", *arguments)
