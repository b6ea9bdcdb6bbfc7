"""recipes/text.py from start to end, with every path and tokenizer."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from shutil import rmtree
from types import ModuleType

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, TrainingArguments

from gm_discrete import GMModel

LONG = {
    "max_steps": 12, "save_steps": 2, "save_total_limit": 2, "eval_strategy": "steps", "eval_steps": 4, "muon": True,
    "ema_decay": 0.9, "model_options": '{"hidden_dropout": 0.1}', "prompt": "the _it", "seed": 5,
}  # fmt: skip


def flags(arguments: dict[str, object]) -> list[str]:
    return [part for name, value in arguments.items() for part in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def unbroken(recipe: ModuleType, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    recipe.main([*tiny, *flags(LONG | {"output_dir": folder})])
    return folder


@pytest.mark.slow
def test_text_recipe__writes_model_metrics_and_sample(unbroken: Path) -> None:
    published = {
        "config.json",
        "README.md",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    shown = {"run.json", "metrics.json", "curve.png", "sample.txt", "sample.gif", "trajectory.png"}
    assert {file.name for file in unbroken.iterdir() if file.is_file()} == published | shown
    assert sorted(folder.name for folder in unbroken.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-12"]

    metrics = json.loads((unbroken / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["bits_per_token"] == pytest.approx(metrics["bits_per_character"], rel=0.2)  # but for special symbols
    assert metrics["perplexity"] == pytest.approx(2 ** metrics["bits_per_token"])
    assert 0 < metrics["bits_per_character_stderr"] < math.inf
    assert (metrics["sequences"], metrics["dynamics"]) == (4, "masked")
    with Image.open(unbroken / "curve.png") as curve, Image.open(unbroken / "sample.gif") as animation:
        assert (curve.format, animation.format) == ("PNG", "GIF")
        assert animation.n_frames == 5  # the prior and four steps
    with Image.open(unbroken / "trajectory.png") as curves:
        assert curves.format == "PNG"


@pytest.mark.slow
def test_text_recipe__the_sample_contains_the_prompt(unbroken: Path) -> None:
    text = (unbroken / "sample.txt").read_text(encoding="utf-8")
    assert "[MASK]" not in text
    assert re.match(r"the (.|\n|\[[A-Z]+\])it", text)
    tokenizer = AutoTokenizer.from_pretrained(unbroken)
    assert len(tokenizer(text)["input_ids"]) == 16


@pytest.mark.slow
def test_text_recipe__saves_the_averaged_weights(unbroken: Path) -> None:
    published = load_file(unbroken / "model.safetensors")
    averages = load_file(unbroken / "checkpoint-12" / "ema-0.safetensors")
    torch.testing.assert_close(published, averages, rtol=0, atol=0)
    assert isinstance(AutoModel.from_pretrained(unbroken), GMModel)


@pytest.mark.slow
def test_text_recipe__a_finished_run_does_not_change(recipe: ModuleType, tiny: list[str], unbroken: Path) -> None:
    before = (unbroken / "model.safetensors").read_bytes(), (unbroken / "metrics.json").read_text(encoding="utf-8")
    recipe.main([*tiny, *flags(LONG | {"output_dir": unbroken})])
    assert (
        (unbroken / "model.safetensors").read_bytes(),
        (unbroken / "metrics.json").read_text(encoding="utf-8"),
    ) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "before"),
    [("learning_rate", 0.5, 5e-05), ("tokenizer", "bpe", "'characters'"), ("per_device_train_batch_size", 4, 2)],
)
def test_text_recipe__a_run_is_not_resumed_with_other_settings(
    recipe: ModuleType, tiny: list[str], unbroken: Path, name: str, value: object, before: object
) -> None:
    files = {file: file.read_bytes() for file in unbroken.iterdir() if file.is_file()}
    name_in_record = "global_batch_size" if "batch" in name else name
    with pytest.raises(ValueError, match=rf"started with {name_in_record}={before}, now it is {value!r}"):
        recipe.main([*tiny, *flags(LONG | {"output_dir": unbroken, name: value})])
    assert {file: file.read_bytes() for file in unbroken.iterdir() if file.is_file()} == files


@pytest.mark.slow
def test_text_recipe__unknown_characters_in_the_prompt_are_an_error(
    recipe: ModuleType, tiny: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="prompt='§'"):
        recipe.main([*tiny, "--prompt", "§", "--output_dir", str(tmp_path)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "tokenizer"),
    [
        *(("masked", tokenizer) for tokenizer in ("characters", "bpe", "sentencepiece")),
        ("uniform reversal", "sentencepiece"), ("uniform mixture", "bpe"),
        ("unigram reversal", "characters"), ("unigram reversal", "bpe"),
    ],
)  # fmt: skip
def test_text_recipe__paths_and_tokenizers(
    recipe: ModuleType, tiny: list[str], tmp_path: Path, path: str, tokenizer: str
) -> None:
    name, rates = (path.split() * 2)[:2]
    choice = {"path": name, "tokenizer": tokenizer, "tokenizer_size": 300, "output_dir": tmp_path}
    metrics = recipe.main([*tiny, *flags(choice), *(["--rates", rates] if rates != name else [])])
    assert metrics["dynamics"] == rates
    assert 0 < metrics["bits_per_character"] < 100
    model, symbols = AutoModel.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.config.vocab_size == len(symbols)
    assert model.config.mask_token_id == symbols.mask_token_id
    assert symbols.mask_token not in (tmp_path / "sample.txt").read_text(encoding="utf-8")
    if name == "unigram" and tokenizer == "characters":
        prior = torch.tensor(model.path.probabilities())
        assert prior[symbols.mask_token_id] == prior[symbols.pad_token_id] == 0
        assert prior.argmax() == symbols.convert_tokens_to_ids(" ")


@pytest.mark.slow
def test_text_recipe__trains_on_padded_texts(recipe: ModuleType, tiny: list[str], tmp_path: Path) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text("".join(json.dumps({"body": "ab " * (1 + row % 6)}) + "\n" for row in range(40)), encoding="utf-8")
    choice = {"data": short, "text_column": "body", "packed": False, "output_dir": tmp_path / "run"}
    metrics = recipe.main([*tiny, *flags(choice)])
    assert 0 < metrics["bits_per_character"] < 100


@pytest.mark.slow
def test_text_recipe__trains_on_separate_documents(recipe: ModuleType, tiny: list[str], tmp_path: Path) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text("".join(json.dumps({"text": "ab " * (1 + row % 6)}) + "\n" for row in range(60)), encoding="utf-8")
    choice = {"data": short, "separate": True, "validation_size": 0.2, "output_dir": tmp_path / "run"}
    options, _ = recipe.parse_arguments((recipe.TextArguments, TrainingArguments), [*tiny, *flags(choice)])
    tokenizer = recipe.build_tokenizer(options, tmp_path / "run")
    assert max(max(row["attention_mask"]) for row in recipe.tokenized(options, tokenizer, "train")) > 1
    assert 0 < recipe.main([*tiny, *flags(choice)])["bits_per_character"] < 100
    with pytest.raises(ValueError, match="separate=True needs packed=True"):
        recipe.main([*tiny, *flags(choice | {"packed": False, "output_dir": tmp_path / "other"})])


@pytest.mark.slow
def test_text_recipe__learns_lengths_from_scored_padding(recipe: ModuleType, tiny: list[str], tmp_path: Path) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text(
        "".join(json.dumps({"text": "Cl[nH]" * (1 + row % 6)}) + "\n" for row in range(40)), encoding="utf-8"
    )
    choice = {"data": short, "tokenizer": "smiles", "packed": False, "output_dir": tmp_path / "run"}
    tokens = {}
    for padded in (False, True):
        options, _ = recipe.parse_arguments(
            (recipe.TextArguments, TrainingArguments), [*tiny, *flags(choice | {"pad_to_length": padded})]
        )
        tokenizer = recipe.build_tokenizer(options, tmp_path / "run")
        assert len(tokenizer) == 2 + 4
        tokens[padded] = recipe.tokenized(options, tokenizer, "train")["input_ids"][:]
    pad = tokenizer.pad_token_id
    assert [row + [pad] * (16 - len(row)) for row in tokens[False]] == tokens[True]
    assert {len(row) for row in tokens[False]} == {3, 5, 7, 9, 11, 13}
    metrics = recipe.main([*tiny, *flags(choice | {"pad_to_length": True})])
    characters = sum(len("Cl[nH]") * (1 + row % 6) for row in (38, 39))  # the two that are held out
    assert metrics["bits_per_character"] * characters == pytest.approx(metrics["bits_per_token"] * 16 * 2)
    with pytest.raises(ValueError, match="pad_to_length=True needs packed=False"):
        recipe.main([*tiny, *flags(choice | {"pad_to_length": True, "packed": True, "output_dir": tmp_path / "other"})])


@pytest.fixture(scope="module")
def strings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty texts of 6 to 11 characters."""
    file = tmp_path_factory.mktemp("strings") / "strings.jsonl"
    lines = (json.dumps({"text": f"hot is{'!' * (row % 6)}"}) + "\n" for row in range(40))
    file.write_text("".join(lines), encoding="utf-8")
    return file


EDITS: dict[str, object] = {"path": "edits", "packed": False, "add_eos": False}


@pytest.mark.slow
@pytest.mark.parametrize("choice", [{}, {"prior": "uniform", "alignment": "random"}], ids=["empty", "uniform"])
def test_text_recipe__trains_edits(
    recipe: ModuleType, tiny: list[str], strings: Path, tmp_path: Path, choice: dict[str, object]
) -> None:
    run = EDITS | choice | {"data": strings, "output_dir": tmp_path / "run", "prompt": "is_t"}
    metrics = recipe.main([*tiny, *flags(run)])
    assert metrics["dynamics"] == "edits"
    assert 0 < metrics["bits_per_character"] < 1000
    model, symbols = AutoModel.from_pretrained(tmp_path / "run"), AutoTokenizer.from_pretrained(tmp_path / "run")
    assert model.path.blank_token_id == symbols.pad_token_id
    assert model.path.prior_name == choice.get("prior", "empty")
    if choice:
        assert model.path.alignment == "random"
        assert model.path.lengths == pytest.approx([0] * 6 + [count / 38 for count in (7, 7, 6, 6, 6, 6)])
    text = (tmp_path / "run" / "sample.txt").read_text(encoding="utf-8")
    assert text.startswith("is")  # the hole and all after it may hold anything, special symbols included
    assert "[PAD]" not in text


@pytest.mark.slow
def test_text_recipe__a_run_of_edits_resumes_as_if_unbroken(
    recipe: ModuleType, tiny: list[str], strings: Path, tmp_path: Path
) -> None:
    run = EDITS | {"data": strings, "prior": "uniform", "max_steps": 6, "save_steps": 3, "eval_strategy": "no"}
    recipe.main([*tiny, *flags(run | {"output_dir": tmp_path / "unbroken"})])
    recipe.main([*tiny, *flags(run | {"output_dir": tmp_path / "broken"})])
    for file in (tmp_path / "broken" / "checkpoint-6", tmp_path / "broken" / "model.safetensors"):
        rmtree(file) if file.is_dir() else file.unlink()
    recipe.main([*tiny, *flags(run | {"output_dir": tmp_path / "broken"})])
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("unbroken", "broken"))
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("choice", [{"packed": True}, {"pad_to_length": True}])
def test_text_recipe__edits_are_of_single_strings_without_padding(
    recipe: ModuleType, tiny: list[str], strings: Path, tmp_path: Path, choice: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="path='edits' needs packed=False and pad_to_length=False"):
        recipe.main([*tiny, *flags(EDITS | choice | {"data": strings, "output_dir": tmp_path})])
