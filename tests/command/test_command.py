"""`gm-discrete`: what each command prints and writes, and errors of one line."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import HfArgumentParser, TrainingArguments

from gm_discrete import GMModel, MaskedPath, field_likelihood, likelihood_bound
from gm_discrete.command import main
from gm_discrete.command.main import COMMANDS, parse
from gm_discrete.command.recipes import configs, recipe_of, root
from gm_discrete.command.train import process, split, uses_cpu
from gm_discrete.data import encode_rows, prompt_ids
from tests.helpers import small_run
from tests.helpers.chats import chat_tokenizer

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Five texts, and an empty line."""
    file = tmp_path / "lines.txt"
    file.write_text("abcd\nabab\n\ndd\ncabdacba\nabcd\n", encoding="utf-8")
    return file


def printed(capsys: Capture, *words: object) -> str:
    capsys.readouterr()
    main([str(word) for word in words])
    return capsys.readouterr().out


def refused(capsys: Capture, *words: object) -> str:
    """The one line of an error, which ends the command with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert out == ""
    (line,) = [part for part in err.splitlines() if "\r" not in part and part]
    assert line.startswith(f"gm-discrete {words[0]}: error: ")
    return line


def test_help__does_not_import_transformers() -> None:
    program = """
import sys
from gm_discrete.command import main
for words in ["--help"], ["--version"], ["generate", "--help"], ["train", "--help"]:
    try:
        main(words)
    except SystemExit:
        print([name for name in ("transformers", "datasets", "accelerate") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    assert lines.count("[]") == 4
    assert done.stderr == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_help__tells_every_option_and_its_default(name: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert "None" not in text
    if name == "score":
        assert "(default: 8)" in text
        assert "(default: 0)" in text


def test_command__without_a_command_is_an_error(capsys: Capture) -> None:
    for words in ([], ["speak"], ["--speak"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        assert all(name in err for name in COMMANDS) or words  # the help


def commands() -> list[tuple[str, ...]]:
    """The words of every `gm-discrete` command in the shell blocks of the documentation."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    blocks = "".join(re.findall(r"^```(?:shell|bash)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))
    lines = blocks.replace("\\\n", " ").splitlines()
    words = [tuple(shlex.split(line, comments=True)) for line in lines if line.strip().startswith("gm-discrete ")]
    return list(dict.fromkeys(words))


@cache
def arguments_of(recipe: str) -> set[str]:
    """The options of a recipe and of `TrainingArguments`, with their two dashes."""
    module = import_module(f"recipes.{recipe}")
    (own,) = (kind for kind in vars(module).values() if is_dataclass(kind) and kind.__module__ == module.__name__
              and getattr(kind, "__name__", "").endswith("Arguments"))  # fmt: skip
    parser = HfArgumentParser([own, TrainingArguments])  # pyright: ignore[reportArgumentType]
    return set(parser._option_string_actions)


def unknown(words: Sequence[str]) -> set[str]:
    """The options of a `gm-discrete train` command that its recipe does not have; of a file that is not here, no recipe."""
    config, *options = words[2:]
    files = [configs()[config]] if config in configs() else [] if config.endswith(".yaml") else [Path(config)]
    recipes = [recipe_of(file).stem for file in files] or ["text", "images", "mixed", "proteins", "sft"]
    names = {word.partition("=")[0] for word in split(options)[1] if word.startswith("--")}
    return names - set().union(*map(arguments_of, recipes))


def test_documentation__its_commands_have_the_options_that_they_name() -> None:
    words = "gm-discrete train shakespeare --num_processes 2 --prompt a --max_steps=3 --no_such 1"
    assert unknown(words.split()) == {"--no_such"}
    found = commands()
    assert {words[1] for words in found} >= COMMANDS.keys()
    for words in found:
        parse(words[1:])
        if words[1] == "train":
            assert unknown(words) == set(), words


# generate


def test_generate__prints_text(text_model: str, capsys: Capture) -> None:
    words = ("generate", text_model, "--num-steps", 4, "--seed", 3, "--num-samples", 2)
    found = printed(capsys, *words)
    model = GMModel.from_pretrained(text_model)
    expected = [small_run.TOKENIZER.decode(sample) for sample in model.generate(batch_size=2, num_steps=4, seed=3)]
    assert found.splitlines() == [expected[0], "-" * 64, expected[1]]
    assert printed(capsys, *words) == found


def test_generate__fills_the_prompt(text_model: str, tmp_path: Path, capsys: Capture) -> None:
    found = printed(capsys, "generate", text_model, "--prompt", "a[MASK]cd", "--seed", 1, "--temperature", 0).strip()
    assert (found[0], found[-2:]) == ("a", "cd")
    file, output = tmp_path / "prompt.txt", tmp_path / "out.txt"
    file.write_text("ab", encoding="utf-8")
    words = ("--prompt-file", file, "--max-new-tokens", 3, "--sampler", '{"type": "first_hitting"}')
    assert printed(capsys, "generate", text_model, *words, "--seed", 0, "--output", output) == ""
    text = output.read_text(encoding="utf-8").strip()
    assert text.startswith("ab")
    assert len(small_run.TOKENIZER(text)["input_ids"]) == 5
    whole = printed(capsys, "generate", text_model, "--prompt", "ab", "--seed", 0, "--options", '{"top_k": 2}').strip()
    assert len(small_run.TOKENIZER(whole)["input_ids"]) == small_run.LENGTH


def test_generate__reads_the_prompt_from_standard_input(
    text_model: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("dcb"))
    assert printed(capsys, "generate", text_model, "--prompt-file", "-", "--max-new-tokens", 1).startswith("dcb")


def test_generate__answers_a_message_in_the_chat_template(tmp_path: Path, capsys: Capture) -> None:
    tokenizer = chat_tokenizer()
    path = MaskedPath(len(tokenizer), tokenizer.mask_token_id)
    model = small_run.small_model(path, max_position_embeddings=24)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids = prompt_ids(tokenizer, [{"role": "user", "content": "say red"}])
    assert tokenizer.decode(ids) == "<u>say red[EOS]|<a>"
    sample = model.generate(torch.tensor([ids]), max_new_tokens=6, num_steps=4, seed=1)[0].tolist()[len(ids) :]
    words = ("generate", tmp_path, "--chat", "say red", "--num-steps", 4, "--seed", 1, "--max-new-tokens", 6)
    for end in (tokenizer.eos_token_id, sample[2]):  # that of the tokenizer, and another of the generation config
        model.generation_config.eos_token_id = end
        model.generation_config.save_pretrained(tmp_path)
        answer = sample[: sample.index(end)] if end in sample else sample
        assert printed(capsys, *words) == tokenizer.decode(answer, skip_special_tokens=True) + "\n"
    assert "vocabulary" in refused(capsys, "generate", tmp_path, "--chat", "é")


def test_generate__shows_the_steps_on_a_terminal(
    text_model: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("generate", text_model, "--prompt", "ab", "--seed", 0, "--num-steps", 4)
    plain = printed(capsys, *words, "--show")
    assert "\033" not in plain  # the output is no terminal
    assert plain == printed(capsys, *words)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    shown = printed(capsys, *words, "--show", "0")
    assert "\0338" in shown  # the cursor goes back
    assert "[MASK]" not in shown
    assert "·" in shown
    assert shown.rpartition("\033[J")[2].strip() == plain.strip() or shown.strip().endswith(plain.strip())


def test_generate__writes_rows_of_a_table(table_model: str, capsys: Capture) -> None:
    rows = list(
        csv.DictReader(io.StringIO(printed(capsys, "generate", table_model, "--num-samples", 5, "--num-steps", 2)))
    )
    assert len(rows) == 5
    assert {row["animal"] for row in rows} <= {"cat", "dog"}
    assert all(4.0 <= float(row["weight"]) <= 7.9 for row in rows)


def test_generate__fills_the_cells_of_rows(own_table: str, capsys: Capture) -> None:
    words = ("generate", own_table, "--num-steps", 2, "--options")
    for given, count, ages, heights in (
        ({"age": 30}, 3, ["30"] * 3, None),
        ({"age": [30], "height": 1.7}, 9, ["30"] * 9, ["1.7"] * 9),  # as it is given, it is not missing
        ({"age": [30, 31], "town": "Ur"}, 2, ["30", "31"], None),
    ):
        text = printed(capsys, *words, json.dumps({"given": given}), "--num-samples", count)
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [row["age"] for row in rows] == ages
        assert heights is None or [row["height"] for row in rows] == heights
        assert "town" not in given or {row["town"] for row in rows} == {"Ur"}
    message = refused(capsys, *words, '{"given": {"age": [30, 31]}}', "--num-samples", 3)
    assert "given['age'] has 2 cells" in message
    assert "--num-samples 3" in message


def test_generate__writes_images(image_models: dict[str, str], tmp_path: Path, capsys: Capture) -> None:
    for name, words, mode in (("numbers", ("--class-labels", 1), "RGB"), ("levels", (), "L")):
        file = tmp_path / f"{name}.png"
        printed(capsys, "generate", image_models[name], "--num-samples", 3, "--num-steps", 2, *words, "--output", file)
        image = Image.open(file)
        assert (image.size, image.mode) == ((3 * 5 - 1, 4), mode)
        assert (np.asarray(image)[:, 4] == 0).all()  # between two of them
        assert np.asarray(image).std() > 0


def test_generate__refuses_what_does_not_fit(
    text_model: str, table_model: str, image_models: dict[str, str], tmp_path: Path, capsys: Capture
) -> None:
    for words, match in (
        ((text_model, "--prompt", "xyz"), "prompt='xyz' holds characters that are not in the tokenizer's vocabulary: 'x'"),
        ((text_model, "--prompt", "ab", "--length", 3), "--length"),
        ((text_model, "--max-new-tokens", 3), "--max-new-tokens"),
        ((text_model, "--show", "--num-samples", 2), "--show"),
        ((text_model, "--temperature", -1), "temperature=-1.0"),
        ((text_model, "--sampler", "jump"), "sampler='jump'"),
        ((text_model, "--num-steps", 0), "'0'"),
        ((text_model, "--options", "[1]"), "'[1]'"),
        ((text_model, "--options", '{"num_beam": 2}'), "num_beam"),
        ((text_model, "--options", '{"batch_size": 2}'), "--num-samples"),
        ((text_model, "--options", '{"num_return_sequences": 2}'), "--num-samples"),
        ((text_model, "--options", '{"num_steps": 2}'), "--num-steps"),
        ((text_model, "--options", '{"output_trajectory": true}'), "output_trajectory"),
        ((text_model, "--chat", "a"), "--chat"),
        ((text_model, "--num-samples", 10**11), "memory"),
        ((text_model, "--class-labels", 1), "class_labels"),
        ((text_model, "--no-such", 1), "--no-such"),
        ((text_model, "--output", tmp_path / "no" / "a.txt"), "--output"),
        ((text_model, "--prompt-file", tmp_path / "no.txt"), "no.txt"),
        ((text_model, "--device", "cuda:99"), "cuda:99"),
        ((table_model, "--prompt", "a"), f"--prompt is for models of text, and {table_model} generates a table; known"),
        ((table_model, "--output", tmp_path / "x.parquet"), "ends in .csv"),
        ((image_models["numbers"],), "--output None"),
        ((image_models["numbers"], "--output", tmp_path / "a.png", "--class-labels", 0, 1, "--num-samples", 3), "2 classes"),
    ):  # fmt: skip
        message = refused(capsys, "generate", *words)
        assert match in message


# score


def test_score__is_the_bound_of_the_library(text_model: str, lines: Path, capsys: Capture) -> None:
    found = json.loads(
        printed(capsys, "score", text_model, lines, "--json", "--lines", "--num-draws", 256, "--no-add-eos")
    )
    model = GMModel.from_pretrained(text_model)
    texts = [text for text in lines.read_text(encoding="utf-8").split("\n") if text]
    bounds = [
        likelihood_bound(
            model, torch.tensor([small_run.TOKENIZER(text)["input_ids"]]), None, 256, torch.Generator().manual_seed(1)
        )
        for text in texts
    ]
    nats = sum(float(bound.nats.sum()) for bound in bounds)
    tokens = sum(map(len, texts))
    assert found["tokens"] == tokens
    assert found["sequences"] == len(texts)
    error = 5 * math.sqrt(sum(float((bound.nats_stderr**2).sum()) for bound in bounds)) / (tokens * math.log(2))
    assert abs(found["bits_per_token"] - nats / (tokens * math.log(2))) < 2 * error
    assert found["bits_per_character"] == pytest.approx(found["bits_per_token"])  # a token is a character, and a byte
    assert found["bits_per_byte"] == pytest.approx(found["bits_per_token"])
    assert found["perplexity"] == pytest.approx(2 ** found["bits_per_token"])
    text = printed(capsys, "score", text_model, lines, "--limit", 2)
    assert [line.split()[0] for line in text.splitlines()] == ["bits", "bits", "bits", "perplexity", "upper"]


def test_score__ranks_lines(text_model: str, lines: Path, tmp_path: Path, capsys: Capture) -> None:
    values = [float(value) for value in printed(capsys, "score", text_model, lines, "--ranking").splitlines()]
    assert len(values) == 5
    assert values[0] == values[4]  # the same text and the same noise
    rows = tmp_path / "rows.csv"
    rows.write_text("id,line\n1,abcd\n2,abab\n3,dd\n4,cabdacba\n5,abcd\n", encoding="utf-8")
    words = ("score", text_model, rows, "--ranking", "--text-column", "line", "--batch-size", 1, "--json")
    assert json.loads(printed(capsys, *words)) == pytest.approx(values, abs=1e-3)
    many = tmp_path / "many.txt"  # several batches have the noise of one
    many.write_text("abcd\ncab\n" * 10 + "cabdacb\n", encoding="utf-8")
    found = json.loads(printed(capsys, "score", text_model, many, "--ranking", "--batch-size", 4, "--json"))
    texts = [small_run.TOKENIZER(text + "[EOS]")["input_ids"] for text in many.read_text("utf-8").split()]
    z = torch.tensor([text + [small_run.TOKENIZER.pad_token_id] * (8 - len(text)) for text in texts])
    mask = torch.tensor([[int(at < len(text)) for at in range(8)] for text in texts])
    model, rng = GMModel.from_pretrained(text_model), torch.Generator().manual_seed(0)
    expected = likelihood_bound(model, z, mask, rng=rng, scored=mask > 0, paired=True).nats
    assert found == pytest.approx(expected.tolist(), rel=1e-5)


def test_score__warns_of_unknown_characters_and_shows_no_error_of_one_sequence(
    text_model: str, lines: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "text.txt"
    file.write_text("abéc", encoding="utf-8")
    for words in (("--ranking",), ("--lines",), ("--lines", "--json")):
        capsys.readouterr()
        main(["score", text_model, str(file), "--no-add-eos", *words])
        out, err = capsys.readouterr()
        assert "warning: 1 of 4 tokens are unknown to the tokenizer ([UNK]); bits per character" in err
        if words == ("--lines",):
            assert [line.split()[-1] for line in out.splitlines()[:3]] == ["–"] * 3
    found = json.loads(out)
    assert found["unknown_tokens"] == 1
    assert found["bits_per_token_stderr"] is None
    main(["score", text_model, str(lines), "--lines"])
    out, err = capsys.readouterr()
    assert "unknown" not in err
    assert "±" in out


def test_score__is_a_bound_for_each_row_of_a_table(own_table: str, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "rows.csv"
    lines = ["id,town,age,height", "7,Ur,30,1.6", "8,Tyre,22,", "9,Ur,38,1.52"]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = json.loads(printed(capsys, "score", own_table, file, "--json", "--num-draws", 3))
    model, rng = GMModel.from_pretrained(own_table), torch.Generator().manual_seed(0)
    rows = {"town": ["Ur", "Tyre", "Ur"], "age": [30, 22, 38], "height": [1.6, None, 1.52]}
    state = encode_rows(rows, model.config.codecs, torch.Generator().manual_seed(0))
    expected = field_likelihood(model, state, num_samples=3, rng=rng).nats
    assert found == pytest.approx(expected.tolist(), rel=1e-4)
    words = ("score", own_table, file, "--limit", 2, "--batch-size", 1, "--num-draws", 1)
    assert len([float(value) for value in printed(capsys, *words).splitlines()]) == 2
    assert "--lines is for texts" in refused(capsys, "score", own_table, file, "--lines")
    file.write_text("town,age\nUr,30\n", encoding="utf-8")
    assert "no column 'height'" in refused(capsys, "score", own_table, file)


def test_score__refuses_what_it_cannot_score(
    text_model: str,
    table_model: str,
    image_models: dict[str, str],
    lines: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    assert "how-to/likelihood" in refused(capsys, "score", image_models["numbers"], lines)
    assert "nowhere.csv" in refused(capsys, "score", table_model, tmp_path / "nowhere.csv")
    assert "no.txt" in refused(capsys, "score", text_model, tmp_path / "no.txt")
    assert "--num-draws" in refused(capsys, "score", text_model, lines, "--num-draws", "many")
    rows = tmp_path / "rows.csv"
    rows.write_text("id,line\n1,abcd\n", encoding="utf-8")
    assert "line" in refused(capsys, "score", text_model, rows)


# info


def test_info__describes_a_folder(
    text_model: str, table_model: str, image_models: dict[str, str], capsys: Capture
) -> None:
    text = printed(capsys, "info", text_model)
    count = sum(weight.numel() for weight in GMModel.from_pretrained(text_model).parameters())
    for part in (
        "MaskedPath(vocab_size=8",
        "8 positions, 8 symbols",
        f"{count:,} parameters",
        "'[MASK]' 7",
        "config.json",
    ):
        assert part in text
    found = json.loads(printed(capsys, "info", table_model, "--json"))
    assert [line.partition(":")[0] for line in found["path"]] == ["animal", "weight"]
    assert found["tokenizer"] == "none"
    assert "2 classes" in printed(capsys, "info", image_models["numbers"])


def test_info__does_not_count_tables_of_the_path(tmp_path: Path, capsys: Capture) -> None:
    folder = ROOT / "tests/data_0_1/metric_embeddings"
    stored = load_file(folder / "model.safetensors")
    count = sum(tensor.numel() for name, tensor in stored.items() if not name.startswith("path_tables."))
    assert f"{count:,} parameters" in printed(capsys, "info", folder)


def test_info__refuses_what_is_no_model(text_model: str, tmp_path: Path, capsys: Capture) -> None:
    assert "no/such/folder" in refused(capsys, "info", "no/such/folder")
    assert "config.json" in refused(capsys, "info", tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert "adapter" in refused(capsys, "info", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    assert "gpt2" in refused(capsys, "info", tmp_path)
    (tmp_path / "config.json").write_text((Path(text_model) / "config.json").read_text("utf-8"), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not json at all.")
    assert "damaged" in refused(capsys, "info", tmp_path)


# convert, recipes, train


def test_convert__is_that_of_the_module(tmp_path: Path, capsys: Capture) -> None:
    printed(capsys, "convert", ROOT / "tests/data_0_1/masked_order", tmp_path / "new")
    assert GMModel.from_pretrained(tmp_path / "new").config.build_path().rates == "masked"
    assert "--family" in refused(capsys, "convert", tmp_path / "new", tmp_path / "other", "--family", "gpt2")
    assert "nowhere" in refused(capsys, "convert", tmp_path / "nowhere", tmp_path / "other")


def test_recipes__lists_every_config(capsys: Capture) -> None:
    text = printed(capsys, "recipes")
    assert text == printed(capsys, "recipes", "--list")
    names = [line.split()[0] for line in text.splitlines()]
    assert names == sorted(file.stem for file in (ROOT / "recipes/configs").glob("*.yaml"))
    assert all(len(line.split()) > 3 for line in text.splitlines())


def test_recipes__copies_and_does_not_overwrite(tmp_path: Path, capsys: Capture) -> None:
    assert str(tmp_path / "recipes") in printed(capsys, "recipes", "--copy", tmp_path)
    copied = {file.relative_to(tmp_path / "recipes") for file in (tmp_path / "recipes").rglob("*") if file.is_file()}
    here = {
        file.relative_to(root()) for file in root().rglob("*") if file.is_file() and "__pycache__" not in file.parts
    }
    assert copied == here
    (tmp_path / "recipes/text.py").write_text("mine", encoding="utf-8")
    assert str(tmp_path) in refused(capsys, "recipes", "--copy", tmp_path)
    assert (tmp_path / "recipes/text.py").read_text(encoding="utf-8") == "mine"


def test_train__finds_the_recipe_of_every_config() -> None:
    found = {name: recipe_of(file).stem for name, file in configs().items()}
    assert set(found.values()) == {"text", "images", "mixed", "sft", "proteins"}
    assert found["shakespeare"] == "text"
    assert found["chorales"] == "mixed"


def test_train__refuses_what_is_no_config(tmp_path: Path, capsys: Capture) -> None:
    assert "did you mean shakespeare" in refused(capsys, "train", "shakespear")
    assert "gm-discrete train table --data FILE" in refused(capsys, "train", "tabel_of_mine")
    table = tmp_path / "my table.csv"
    table.write_text("age\n3\n", encoding="utf-8")
    assert f"gm-discrete train table --data '{table}'" in refused(capsys, "train", table)
    assert "gm-discrete train shakespeare --data book.txt" in refused(capsys, "train", "book.txt")
    file = tmp_path / "mine.yaml"
    for content, match in (
        ("length: 3\n", "write `recipe: text`"),
        ("recipe: common\n", "'common'"),
        ("words", "no settings"),
        ("{", "no YAML"),
    ):
        file.write_text(content, encoding="utf-8")
        assert match in refused(capsys, "train", file)


def test_train__splits_the_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(tmp_path / "none.yaml"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    usual = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    assert split([]) == (["--quiet", "--num_processes", "1", *usual], [])
    words = "--learning_rate 3e-4 --num_processes=2 --multi_gpu --debug a b --prompt -1 --mixed_precision bf16"
    launch, others = split(words.split())
    assert launch[:4] == ["--num_processes=2", "--multi_gpu", "--mixed_precision", "bf16"]
    assert "--num_processes" not in launch
    assert others == ["--learning_rate", "3e-4", "--debug", "a", "b", "--prompt", "-1"]
    machines = split(["--num_machines", "2"])[0]  # accelerate counts the processes of all machines
    assert machines[machines.index("--num_processes") + 1] == "2"
    assert split(["--config_file", "mine.yaml"])[0] == ["--config_file", "mine.yaml", "--quiet"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert split([])[0][1:3] == ["--num_processes", "4"]
    assert split([])[0][-1] == "--multi_gpu"
    assert "--multi_gpu" not in split(["--num_processes", "1"])[0]
    machines = split(["--num_machines=2"])[0]
    assert machines[machines.index("--num_processes") + 1] == "8"
    assert "--multi_gpu" in machines
    assert split([], on_cpu=True)[0] == ["--quiet", "--num_processes", "1", *usual]
    assert split(["--cpu"])[0][2:4] == ["--num_processes", "1"]
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert int(split(["--num_processes", "1"])[0][-1]) >= 1


def test_train__finds_out_that_the_cpu_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for content, words, expected in (
        ("recipe: text", "--length 8", False),
        ("recipe: text", "--length 8 --use_cpu", True),
        ("recipe: text", "--use_cpu true --length 8", True),
        ("recipe: text", "--use_cpu=True", True),
        ("recipe: text\nuse_cpu: true", "", True),
        ("recipe: text\nuse_cpu: true", "--use_cpu false", False),
    ):
        file.write_text(content, encoding="utf-8")
        assert uses_cpu(file, words.split()) is expected


def test_train__runs_one_process_without_a_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("accelerate.commands.launch.default_config_file", str(tmp_path / "none.yaml"))
    usual = ["--num_machines", "1", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "3"]
    words = ["--num_processes", "1", *usual, "--mixed_precision", "bf16", "recipe.py", "--config", "mine.yaml"]
    program, environment = process(words)
    assert program == [sys.executable, "recipe.py", "--config", "mine.yaml"]
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert environment["OMP_NUM_THREADS"] == "3"
    for several in (["--multi_gpu"], ["--use_fsdp"]):
        words = ["--num_processes", "2", *usual, "--mixed_precision", "no", *several, "recipe.py"]
        assert process(words)[0] == [sys.executable, "-m", "accelerate.commands.launch", *words]


@pytest.mark.slow
def test_train__an_error_of_the_recipe_is_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    words = ["train", "table", "--data", "none.csv", "--output_dir", "run"]
    for first, has_traceback in (([], False), (["--traceback"], True)):
        command = [sys.executable, "-m", "gm_discrete", *first, *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert ("Traceback" in done.stderr) is has_traceback
        assert "source='none.csv' does not exist" in done.stderr.splitlines()[-2 if has_traceback else -1]
        assert done.returncode == (1 if has_traceback else 2)


@pytest.mark.slow
def test_train__a_signal_reaches_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n", "utf-8")
    (tmp_path / "mine.yaml").write_text("recipe: text\n", encoding="utf-8")
    program = """
import pathlib
from gm_discrete.command import main, train
train.recipe_of = lambda config: pathlib.Path("recipe.py").absolute()
main(["train", "mine.yaml"])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    run = [sys.executable, "-c", program]
    with subprocess.Popen(run, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        recipe = int(command.stdout.readline())
        command.send_signal(signal.SIGTERM)
        try:
            assert command.wait(20) == -signal.SIGTERM
            with pytest.raises(ProcessLookupError):
                os.kill(recipe, 0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(recipe, signal.SIGKILL)
