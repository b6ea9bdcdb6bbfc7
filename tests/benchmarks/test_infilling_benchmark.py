from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import stdev
from types import ModuleType
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import readme
from gm_discrete import EditPath, GMConfig, GMModel, MaskedPath
from gm_discrete.data import character_tokenizer

PLAY = "KING\nBe gone, my lord, and take thy men.\nI go.\n\nQUEEN\nHe's gone; my lord's men stay-at-home.\n" + "".join(
    f"The {word} was never seen again in all the land.\n" for word in ("horse", "crown", "o", "duke")
)
LINES = [line for line in PLAY.splitlines() if not line.isupper() and len(line) > 8]
WORDS = ("man", "cat", "crown", "emperor")
TRAINING = [f"The {word} was seen in Rome." for word in WORDS] * 6 + [" ".join(sorted({*PLAY} - {"\n"}))]
PLACES = {"masked": 66, "edits": 64}


@pytest.fixture
def benchmark(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/infilling.py with a play of seven lines."""
    module = script("infilling")
    texts = {
        ("shakespeare", "validation"): [PLAY],
        ("shakespeare_lines", "validation"): LINES,
        ("shakespeare_lines", "train"): TRAINING,
    }

    def load_text(source: str, split: str = "train", **_: object) -> Dataset:
        return Dataset.from_dict({"text": texts[source, split]})

    monkeypatch.setattr(module, "load_text", load_text)
    monkeypatch.setattr(module.recipe, "load_text", load_text)
    return module


def source(benchmark: ModuleType, name: str, folder: Path) -> Any:
    tokenizer = character_tokenizer(LINES)
    size, blank = len(tokenizer), tokenizer.pad_token_id
    path = MaskedPath(size, tokenizer.mask_token_id) if name == "masked" else EditPath(size, blank_token_id=blank)
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"mask_token_id": tokenizer.mask_token_id, "pad_token_id": blank}
    torch.manual_seed(0)
    GMModel(GMConfig(path=path.to_dict(), max_position_embeddings=PLACES[name], **special, **tiny)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return benchmark.Source.of(str(folder), None, "cpu")


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    tokenizer = character_tokenizer([PLAY])
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **tiny)).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    return tmp_path / "judge"


@pytest.mark.slow
def test_infilling_benchmark__trains_and_fills(
    benchmark: ModuleType, judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = '{"masked": [{"num_steps": 4}], "edits": [{"num_steps": 4}, {"num_steps": 4, "start_time": 0.8}]}'
    places = ["--folder", str(tmp_path / "runs"), "--output", str(tmp_path / "infilling.json"), "--ways", ways]
    common = ["--quick", "--device", "cpu", "--threads", "1", *places]
    benchmark.main([*common, "--networks", "masked"])
    first = (tmp_path / "runs" / "masked" / "model.safetensors").stat().st_mtime_ns
    benchmark.main([*common, "--judge", str(judge)])
    assert (tmp_path / "runs" / "masked" / "model.safetensors").stat().st_mtime_ns == first  # found, not trained again
    record = json.loads((tmp_path / "infilling.json").read_text(encoding="utf-8"))
    names = ["original", "random word", "masked, true length, num_steps 4", "masked, wrong length, num_steps 4"]
    names += ["edits, num_steps 4", "edits, num_steps 4, start_time 0.8"]
    assert [row[""] for row in record["rows"]] == names
    rows = dict(zip(names, record["rows"], strict=True))
    words = [task["word"] for task in record["tasks"]]
    assert rows["original"]["fills"] == words
    assert rows["original"]["exact"] == [1, 0]
    assert rows["original"]["nats over the original"] == [0, 0]
    assert set(rows["random word"]["fills"]) <= {"The", "was", "seen", "Rome", *WORDS}
    assert rows[names[2]]["length equal"] == [1, 0]
    assert rows[names[3]]["length equal"] == [0, 0]
    assert all(1 <= abs(len(fill) - len(word)) <= 2 for fill, word in zip(rows[names[3]]["fills"], words, strict=True))
    for row in record["rows"]:
        lengths = [float(len(fill)) for fill in row["fills"]]
        assert row["length"] == pytest.approx([sum(lengths) / 6, stdev(lengths) / 6**0.5])
        assert row["judge perplexity"][0] > 1
        assert row["judge perplexity"][1] > 0
    assert 0 < rows["edits, num_steps 4"]["calls"] <= 4
    assert [record["training"][name]["steps"] for name in ("masked", "edits")] == [2, 2]
    assert [record["training"][name]["dynamics"] for name in ("masked", "edits")] == ["masked", "edits"]
    assert "| random word | " in capsys.readouterr().out
    assert "infilling.py --quick" in readme.render("{{infilling *}}", {"infilling": record})


def test_tasks__are_words_of_held_out_lines(benchmark: ModuleType) -> None:
    found = benchmark.tasks(100, 0)
    assert [task.left + task.word + task.right for task in found] == LINES  # each of them has a word
    assert all(3 <= len(task.word) <= 8 and task.word.isalpha() for task in found)
    assert [task.before for task in found[:2]] == ["KING", "QUEEN"]
    assert found == benchmark.tasks(100, 0)
    assert found != benchmark.tasks(100, 1)
    assert len(benchmark.tasks(3, 0)) == 3
    words = {benchmark.tasks(100, seed)[1].word for seed in range(40)}
    assert words == {"gone", "men"}  # the others are parts of words with a hyphen or an apostrophe


def test_prompt_of__a_hole_or_as_many_masks_as_asked(benchmark: ModuleType, tmp_path: Path) -> None:
    task = benchmark.Task("KING", "Be ", "gone", ", my lord")
    edits, masked = (source(benchmark, name, tmp_path / name) for name in ("edits", "masked"))
    left, right = (edits.tokenizer(text)["input_ids"] for text in (task.left, task.right))
    assert benchmark.prompt_of(edits, task, 4) == [*left, edits.hole, *right]
    prompt = benchmark.prompt_of(masked, task, 6)
    ends = [masked.tokenizer.eos_token_id] + [masked.tokenizer.pad_token_id] * (66 - len(left) - 6 - len(right) - 1)
    assert prompt == [*left, *[masked.hole] * 6, *right, *ends]
    assert len(prompt) == 66


@pytest.mark.parametrize("name", ["masked", "edits"])
def test_filled__takes_the_fill_out_of_the_line(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    args = benchmark.arguments(["--device", "cpu"])
    task = benchmark.Task("", "a l", "horse", "n a")
    model = source(benchmark, name, tmp_path)
    end = model.tokenizer.eos_token_id

    def fill(text: str) -> Any:
        rows = [model.tokenizer(text)["input_ids"]]
        rows[0] += [end] + [model.tokenizer.pad_token_id] * (66 - len(rows[0]) - 1) if name == "masked" else []
        monkeypatch.setattr(benchmark, "generate", lambda *_: (rows, {"calls": 1.0}))
        return benchmark.filled(model, [task], "true length", {}, args)

    assert fill("a lhorsen a") == (["horse"], {"calls": 1.0})
    assert fill("a lon[EOS]onn a")[0] == ["on□on"]
    for text in ("a n a", "n lnnnnnn a", "a lnnnnnn n"):  # too short for both pieces; another start; another end
        with pytest.raises(RuntimeError, match=rf"Task.*returned '{text}"):
            fill(text)


def test_scores__of_fills(benchmark: ModuleType) -> None:
    asked = [benchmark.Task("", "", word, "") for word in ("king", "lord", "queen", "duke")]
    found = benchmark.scores(asked, ["king", "kings", "", "dukf"], {"king", "lord"})
    assert {name: value[0] for name, value in found.items()} == {
        "exact": 1 / 4, "a word": 1 / 4, "length equal": 2 / 4, "length": 13 / 4, "length − true": -1,
        "distance of lengths": 6 / 4,
    }  # fmt: skip
    assert found["exact"][1] == pytest.approx((0.25 * 0.75 / 3) ** 0.5)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("--networks", "masked,words", "'words' is none of masked, edits"),
        ("--ways", '{"masked": []}', "--ways has nothing of edits"),
        ("--limit", "1", "--limit 1 must be at least 2"),
    ],
)
def test_infilling_benchmark__wrong_arguments_are_an_error(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str], argument: str, value: str, message: str
) -> None:
    with pytest.raises(SystemExit):
        benchmark.arguments([argument, value])
    assert message in capsys.readouterr().err
