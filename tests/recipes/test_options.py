"""Options of recipes: words and JSON, counts and checks before training, JSON without NaN."""

from __future__ import annotations

import importlib
import io
import json
import logging
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import TrainingArguments

from gm_discrete import GMConfig, GMModel, MaskedPath
from gm_discrete.json_text import json_text
from gm_discrete.training.checkpoints import STARTED
from gm_discrete.training.lock import LOCK
from recipes import mixed, pictures
from recipes.common import parse_arguments, run_script, running
from recipes.options import check_sampling, json_dict, json_option, samples_may_be_longer, weights_option


def flags(arguments: dict[str, object]) -> list[str]:
    return [part for name, value in arguments.items() for part in (f"--{name}", str(value))]


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training would be an error."""

    def refuse(*_: object) -> None:
        raise AssertionError("the training began")

    for name in ("text", "mixed", "images"):
        monkeypatch.setattr(f"recipes.{name}.train", refuse)


def test_json_option__takes_words_and_json() -> None:
    assert json_option("scalers", "log") == json_option("scalers", '"log"') == "log"
    assert json_option("scalers", '{"a": "standard"}') == {"a": "standard"}
    assert weights_option("generators", "jump") == {"jump": 1.0}
    assert json_dict("loss_weights", "{}") == {}
    with pytest.raises(ValueError, match=r"scalers='\{a: b\}'"):
        json_option("scalers", "{a: b}")
    with pytest.raises(ValueError, match="model_options='dropout'"):
        json_dict("model_options", "dropout")


def test_json_text__is_valid_json() -> None:
    content = {"a": float("nan"), "b": [float("inf"), np.float64("nan"), 1.5], "c": Path("x")}
    assert json.loads(json_text(content), parse_constant=pytest.fail) == {"a": None, "b": [None, None, 1.5], "c": "x"}


def test_check_sampling__refuses_what_generate_refuses() -> None:
    model = GMModel(GMConfig(path=MaskedPath(5), hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    check_sampling(model, length=4, num_steps=2, seed=0, sampler="tau_leaping")
    for wrong in ({"num_steps": 0}, {"sampler": "nothing"}, {"batch_size": 0}, {"class_labels": [1]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            check_sampling(model, **wrong)


@pytest.mark.parametrize("name", ["text", "images", "mixed", "toy"])
def test_recipes__print_on_an_ascii_terminal(
    recipe: ModuleType, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"recipes.{name}")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(module, "run", lambda *_: print("0.5 ± 0.1", flush=True))
    module.main(["--output_dir", str(tmp_path), *([] if name == "toy" else ["--use_cpu", "true"])])
    assert written.getvalue().split() == [b"0.5", b"?", b"0.1"]


def test_text_recipe__own_data_do_not_have_the_prompt_of_the_config(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipe, "run", lambda options, _: options.prompt)
    config = str(Path(__file__).parents[2] / "recipes/configs/shakespeare.yaml")
    words = ["--config", config, "--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]
    assert recipe.main(words) == "ROMEO: "
    assert recipe.main([*words, "--data", "my.txt", "--prompt", "It was "]) == "It was "
    assert recipe.main([*words, "--data", "my.txt", "--prompt=ROMEO: "]) == "ROMEO: "
    assert capsys.readouterr().out == ""
    for data in (["--data", "my.txt"], ["--data=my.txt"]):
        assert recipe.main([*words, *data]) == ""
        (line,) = capsys.readouterr().out.splitlines()
        assert line == "the config's prompt 'ROMEO: ' is left out, as --data is given; --prompt gives one"


@pytest.mark.parametrize("found", [None, "unfinished", "whole"])
def test_run_script__an_interrupt_tells_how_the_run_goes_on(tmp_path: Path, found: str | None) -> None:
    training = TrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to="none")

    def main() -> None:
        with running(training):
            if found is not None:
                (tmp_path / "run/checkpoint-2").mkdir()
            if found == "unfinished":
                (tmp_path / "run/checkpoint-2" / STARTED).touch()
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as end:
            run_script(main)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)
    goes_on = "the same command resumes from the last checkpoint"
    anew = "no checkpoint yet: the same command begins anew"
    assert end.value.code == f"\nstopped; {goes_on if found == 'whole' else anew}"
    assert not (tmp_path / "run" / LOCK).exists()


def test_samples_may_be_longer__hides_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("gm_discrete.generation.request")
    with samples_may_be_longer():
        logger.handle(logger.makeRecord(logger.name, 30, "f", 1, "256 …; max_position_embeddings=128", (), None))
        logger.handle(logger.makeRecord(logger.name, 30, "f", 1, "another", (), None))
    assert [record.getMessage() for record in caplog.records] == ["another"]
    assert logger.filters == []


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"prompt": "§"}, "prompt='§'"),
        ({"prompt": "the " * 8}, r"prompt='the .*length=16"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"schedule": "nothing"}, "nothing"),
        ({"model_options": "{"}, "model_options='{'"),
        ({"validation_size": 0.001, "length": 200}, r"held-out part .*--validation_size"),
        ({"length": 3000}, r"training: .*at least 8|held-out part"),
        ({"alphabet": "xyz"}, r"training: .*% .*alphabet='xyz'"),
        ({"sample_by": "word"}, "sample_by='word'"),
    ],
)
def test_text_recipe__checks_before_training(
    recipe: ModuleType, tiny: list[str], tmp_path: Path, changes: dict[str, object], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        recipe.main([*tiny, *flags({"output_dir": tmp_path, **changes})])


@pytest.mark.usefixtures("untrained")
def test_text_recipe__reads_a_text_a_line_and_counts(
    recipe: ModuleType, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "molecules.txt"
    file.write_text("\n".join(["CCO", "c1ccccc1", "CC(C)N", "OC1CCCCC1"] * 50), encoding="utf-8")
    options = {"data": file, "tokenizer": "smiles", "packed": False, "output_dir": tmp_path / "run"}
    with pytest.raises(AssertionError, match="the training began"):
        recipe.main([*tiny, *flags(options)])
    shown = capsys.readouterr().out
    assert "training: 190 sequences of 4 to 10 tokens, 1,423 tokens in all" in shown
    assert "held out: 4 sequences" in shown
    with pytest.raises(ValueError, match=r"training: 1 sequences .*at least 8 .*--sample_by line"):
        recipe.main([*tiny, *flags({**options, "sample_by": "document", "output_dir": tmp_path / "other"})])


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    """A category that one row alone has, names with signs, a missing number, and dates."""
    table = pd.DataFrame({"town": ["Aarhus", "Brno"] * 20, "$ price $x^": [i + 0.5 for i in range(40)]})
    table["petal.length"] = [*[0.5, 1.5] * 19, None, 2.5]
    table["day"] = pd.date_range("2024-01-01", periods=40).strftime("%d.%m.%Y")
    table.to_csv(tmp_path / "orders.csv", sep=";", decimal=",", index=False)
    return tmp_path / "orders.csv"


SMALL = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "bins": 8, "max_steps": 1, "num_steps": 2,
    "num_samples": 5, "num_eval_samples": 1, "report_to": "none", "disable_tqdm": True, "use_cpu": True,
    "per_device_train_batch_size": 2, "scalers": "standard", "sampler": "tau_leaping", "generators": "flow",
}  # fmt: skip


@pytest.mark.slow
def test_mixed_recipe__trains_on_a_table_as_people_have_it(
    orders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = orders.read_text(encoding="utf-8").split("\n")
    seen: list[str] = []
    monkeypatch.setattr("recipes.mixed.compare_columns", lambda real, made, file: seen.extend(made))
    for row in (1, 20):  # wherever the town is, it may be held out
        changed = list(text)
        changed[row] = changed[row].replace("Aarhus", "Cork").replace("Brno", "Cork")
        orders.write_text("\n".join(changed), encoding="utf-8")
        mixed.main(flags({**SMALL, "data": orders, "output_dir": tmp_path / f"run{row}"}))
    shown = capsys.readouterr().out
    assert "town: text, 3 categories: 'Aarhus', 'Brno', 'Cork'" in shown
    assert "day: date from 2024-01-01 to 2024-02-09" in shown
    assert "petal.length: number from 0.5 to 2.5, 1 decimal, 1 missing" in shown
    assert seen[:4] == ["town", "$ price $x^", "petal.length", "day"]
    samples = pd.read_csv(tmp_path / "run1" / "samples.csv")
    assert pd.to_datetime(samples["day"], format="%Y-%m-%d").dt.year.eq(2024).all()


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"scalers": "log"}, "scalers='log'"),
        ({"sampler": "nothing"}, "nothing"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_samples": 0}, "batch_size=0"),
        ({"columns": "town,country"}, "'country'"),
        ({"date_columns": "town"}, "'town'"),
        ({"loss_weights": "heavy"}, "loss_weights='heavy'"),
    ],
)
def test_mixed_recipe__checks_before_training(
    orders: Path, tmp_path: Path, changes: dict[str, object], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        mixed.main(flags({**SMALL, "data": orders, "output_dir": tmp_path / "run", **changes}))


def test_compare_columns__any_names_dates_and_empty_columns(tmp_path: Path) -> None:
    days: Any = pd.date_range("2024-01-01", periods=4).to_pydatetime().tolist()
    real = {"$ a_^": [1, 2, 3, None], "$\\b": ["$x", "y$", "$", None], "day": days, "gone": [None] * 4}
    made = {"$ a_^": [None] * 4, "$\\b": [None] * 4, "day": days[::-1], "gone": [None] * 4}
    assert pictures.compare_columns(real, made, tmp_path / "columns.png").stat().st_size > 0


def test_parse_arguments__takes_torch_compile_from_a_config(tmp_path: Path) -> None:
    config = tmp_path / "compiled.yaml"
    config.write_text("torch_compile: true\ntorch_compile_mode: max-autotune\n", encoding="utf-8")
    for argv in (["--config", str(config)], ["--torch_compile", "true", "--torch_compile_mode", "max-autotune"]):
        (training,) = parse_arguments((TrainingArguments,), argv)
        assert training.torch_compile
        assert (training.torch_compile_backend, training.torch_compile_mode) == ("inductor", "max-autotune")


@pytest.mark.parametrize(
    ("device", "given", "expected"), [("cuda", {}, 4), ("cuda", {"dataloader_num_workers": 0}, 0), (None, {}, 0)]
)
def test_parse_arguments__batches_are_made_by_several_processes_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str | None, given: dict[str, object], expected: int
) -> None:
    found = None if device is None else torch.device(device)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: found)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    argv = ["--output_dir", str(tmp_path), *flags(given)]
    (training,) = parse_arguments((TrainingArguments,), argv)
    assert training.dataloader_num_workers == expected
    assert training.dataloader_persistent_workers == (expected > 0)


def test_parse_arguments__names_an_unknown_option_and_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^there is no option --max_step_count; did you mean --max_steps"):
        parse_arguments((TrainingArguments,), ["--max_step_count=3", "--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match=r"^'my.csv' belongs to no option; .* --data my.csv"):
        parse_arguments((TrainingArguments,), ["my.csv"])


def test_run_script__an_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        error = FileNotFoundError("no such\nfile.")
        error.add_note("Give another.")
        raise error

    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["recipes/mixed.py"])
    monkeypatch.setenv("GM_DISCRETE_TRACEBACK", "")
    with pytest.raises(SystemExit) as end:
        run_script(fail)
    assert end.value.code == 2
    assert capsys.readouterr().err == "mixed.py: error: no such file. Give another\n"
    with pytest.raises(SystemExit, match="stopped"):
        run_script(stop)
    monkeypatch.setenv("GM_DISCRETE_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        run_script(fail)
