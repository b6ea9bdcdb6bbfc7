from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gm_discrete import GMConfig, GMModel, MaskedPath, UniformPath
from gm_discrete.data import character_tokenizer

Script = Callable[[str], ModuleType]
LENGTH, SAMPLES = 8, 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models, with the run.json of their recipe, and a judge, all tiny."""
    root = tmp_path_factory.mktemp("generation")
    tokenizer = character_tokenizer(alphabet="abcd ")
    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": LENGTH}
    size, mask = len(tokenizer), tokenizer.mask_token_id
    uniform = UniformPath(size, special_token_ids=tokenizer.all_special_ids)
    for name, path in {"masked": MaskedPath(size, mask), "uniform": uniform}.items():
        GMModel(GMConfig(path=path.to_dict(), pad_token_id=tokenizer.pad_token_id, **tiny)).save_pretrained(root / name)
        data = {"data": str(root / "data.txt"), "data_config": None, "text_column": "text", "streaming": False}
        (root / name / "run.json").write_text(
            json.dumps(data | {"validation_size": None, "add_eos": False}), encoding="utf-8"
        )
    LlamaForCausalLM(LlamaConfig(vocab_size=size, intermediate_size=16, **tiny)).save_pretrained(root / "judge")
    for name in ("masked", "uniform", "judge"):
        tokenizer.save_pretrained(root / name)
    (root / "data.txt").write_text("abcd dab cab\n" * 600, encoding="utf-8")
    return {name: root / name for name in ("masked", "uniform", "judge")}


def run(script: Script, folders: dict[str, Path], models: list[str], output: Path, *arguments: str) -> dict:
    places = ["--models", *(str(folders[name]) for name in models), "--judge", str(folders["judge"])]
    sizes = ["--num-samples", str(SAMPLES), "--batch-size", "3", "--threads", "1", "--output", str(output)]
    script("generation").main([*places, *sizes, *arguments])
    return json.loads(output.read_text(encoding="utf-8"))


def untimed(part: Any) -> Any:
    if isinstance(part, dict):
        return {name: untimed(value) for name, value in part.items() if name not in ("cpu_s", "wall_s")}
    return [untimed(value) for value in part] if isinstance(part, list) else part


def test_generation_benchmark__rows(
    script: Script, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure, again = tmp_path / "new" / "figure.png", tmp_path / "again.png"
    filters = ["--rows", "tau-leaping, (8|16) steps", "first hitting"]
    record = run(script, folders, ["masked", "uniform"], tmp_path / "a.json", *filters, "--figure", str(figure))
    names = {name: [(row["curve"], row["point"]) for row in m["rows"]] for name, m in record["models"].items()}
    leaps = [("data", ""), ("tau-leaping", "8 steps"), ("tau-leaping", "16 steps")]
    assert names == {"masked": [*leaps, ("first hitting", "")], "uniform": leaps}
    for model in record["models"].values():
        data, *rows = model["rows"]
        assert all(text in "abcd dab cab" * 3 for text in data["texts"])  # the tokenizer has no line ends
        assert data["tv"] == pytest.approx(sum(model["noise"]["of_sets"]) / len(model["noise"]["of_sets"]))
        for row in rows:
            assert len(row["texts"]) == SAMPLES
            assert 0 < max(map(len, row["texts"])) <= LENGTH  # special symbols are not printed
            assert 0 <= row["entropy"] <= math.log(LENGTH)
            assert row["judge_perplexity"] > 1
            assert data["tv"] < row["tv"] <= 1  # an untrained network does not know the data
            assert row["calls"] > 0
            assert row["cpu_s"] > 0
    assert record["models"]["masked"]["rows"][1]["calls"] <= 8
    assert record["models"]["masked"]["rows"][3]["calls"] == LENGTH
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in figure.parent.iterdir()] == ["figure.png"]
    printed = capsys.readouterr().out
    assert printed.count("| tau-leaping, 16 steps |") == 2

    # In two runs the same, but for the times.
    run(script, folders, ["masked"], tmp_path / "b.json", "--rows", "tau-leaping, 8 steps", "first hitting")
    run(script, folders, ["masked", "uniform"], tmp_path / "c.json", "--rows", "tau-leaping, (8|16) steps")
    parts, joined = [str(tmp_path / "b.json"), str(tmp_path / "c.json")], tmp_path / "d.json"
    script("generation").main(["--records", *parts, "--output", str(joined), "--figure", str(again)])
    assert untimed(json.loads(joined.read_text(encoding="utf-8"))["models"]) == untimed(record["models"])
    assert again.read_bytes() == figure.read_bytes()
    run(script, folders, ["masked"], tmp_path / "b.json", "--rows", "tau-leaping, 8 steps", "--seed", "1")
    with pytest.raises(ValueError, match="seed=1 and 0"):
        script("generation").main(["--records", *parts])


def test_generation_benchmark__the_seed_makes_the_samples(
    script: Script, folders: dict[str, Path], tmp_path: Path
) -> None:
    def texts(seed: str, output: str) -> list[str]:
        filters = ["--rows", "order margin, 16 steps", "--seed", seed]
        record = run(script, folders, ["masked"], tmp_path / output, *filters)
        return record["models"]["masked"]["rows"][1]["texts"]

    first = texts("3", "a.json")
    assert texts("3", "b.json") == first
    assert texts("4", "c.json") != first


def test_generation_benchmark__every_row_is_one_that_generate_takes(script: Script, folders: dict[str, Path]) -> None:
    """As `generate` refuses options that do not go together, and the rows run for minutes before the last is reached."""
    model = GMModel.from_pretrained(folders["masked"]).eval()
    for points in script("generation").ROWS.values():
        for options in points.values():
            assert not bool((model.generate(batch_size=1, seed=0, **options) == model.config.mask_token_id).any())


def test_total_variation__of_ngrams(script: Script) -> None:
    counts, total_variation = script("generation").counts, script("generation").total_variation
    first, second = counts(torch.tensor([[0, 1, 1, 1]]), 2, 3), counts(torch.tensor([[1, 1], [2, 0]]), 2, 3)
    assert first == {0 + 1 * 3: 1, 1 + 1 * 3: 2}
    assert second == {1 + 1 * 3: 1, 2 + 0 * 3: 1}
    assert total_variation(first, second) == pytest.approx(0.5 * (1 / 3 + 1 / 6 + 1 / 2))
    assert total_variation(first, first) == 0


def test_generation_benchmark__too_little_text_for_the_noise_is_refused(
    script: Script, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="needs twice as many"):
        run(script, folders, ["masked"], tmp_path / "a.json", "--num-samples", "1000")
