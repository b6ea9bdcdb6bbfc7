"""recipes/mixed.py: every config builds its model and trains; the files of a run; resuming."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, TrainingArguments

from gm_discrete import GMModel
from gm_discrete.data import fit_codecs
from tests.helpers.recipe_configs import RECIPES, configs

CONFIGS = configs("mixed")
LEFT = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "metrics.json",
    "run.json",
    "curve.png",
}
LEFT_OF_TABLES = LEFT | {"samples.csv", "columns.png"}


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty rows with whole numbers, decimals, names, and missing cells."""
    file = tmp_path_factory.mktemp("table") / "rows.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["age", "height", "town"])
        for row in range(60):
            writer.writerow(
                [20 + row % 40, "" if row % 9 == 0 else 1.5 + row % 7 / 10, ("Ur", "Tyre", "Susa")[row % 3]]
            )
    return file


@pytest.fixture(scope="session")
def few(table: Path) -> list[str]:
    """Arguments that make any config a run of two steps on the table."""
    sizes = {
        "data": table, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "bins": 8, "max_steps": 2,
        "warmup_steps": 1, "eval_steps": 2, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4,
        "max_eval_rows": 8, "num_eval_samples": 1, "num_steps": 3, "num_samples": 12, "report_to": "none",
        "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    return [part for name, value in sizes.items() for part in (f"--{name}", str(value))]


def flags(arguments: dict[str, object]) -> list[str]:
    return [part for name, value in arguments.items() for part in (f"--{name}", str(value))]


def notes() -> Dataset:
    """Three pieces of six notes."""
    piece = {
        "part": ["soprano", "bass"] * 3,
        "pitch": [60, 48] * 3,
        "onset": [0.0, 0.0, 1.0] * 2,
        "duration": [1.0] * 6,
    }
    return Dataset.from_list([piece, piece, {**piece, "duration": [1.0, 0.5] * 3}])


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_mixed_recipe__a_config_describes_a_model_of_full_size(mixed_recipe: ModuleType, file: Path) -> None:
    options, training = mixed_recipe.parse_arguments(
        (mixed_recipe.MixedArguments, TrainingArguments), ["--config", str(file), "--use_cpu", "true"]
    )
    config = mixed_recipe.build_config(options, fit_codecs(notes()))
    with torch.device("meta"):
        model = GMModel(config)
    assert 5e5 < sum(weight.numel() for weight in model.parameters()) < 5e6
    assert config.max_position_embeddings == options.length * (1 if options.aligned else 4)
    assert training.output_dir == f"runs/{file.stem}"
    assert training.max_steps % training.eval_steps == training.max_steps % training.save_steps == 0


def test_mixed_recipe__configs_exist() -> None:
    assert {"diamonds", "flights", "chorales", "table"} <= {file.stem for file in CONFIGS}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diamonds", "flights", "table"])
def test_mixed_recipe__trains_on_a_table(
    mixed_recipe: ModuleType, few: list[str], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = RECIPES / "configs" / f"{name}.yaml"
    metrics = mixed_recipe.main(["--config", str(config), *few, *flags({"output_dir": tmp_path, "streaming": False})])
    assert {entry.name for entry in tmp_path.iterdir() if entry.is_file()} == LEFT_OF_TABLES
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == metrics
    fields = {"age", "height", "height_missing", "town"}
    assert fields <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["loss"] == pytest.approx(sum(metrics[name] for name in fields))
    with (tmp_path / "samples.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 12
    assert {row["town"] for row in rows} <= {"Ur", "Tyre", "Susa"}
    assert all(20 <= int(row["age"]) <= 59 for row in rows)
    assert all(row["height"] == "" or 1.5 <= float(row["height"]) <= 2.1 for row in rows)
    model = AutoModel.from_pretrained(tmp_path)
    assert list(model.config.codecs) == ["age", "height", "height_missing", "town"]
    *_, loss, files = capsys.readouterr().out.splitlines()
    assert loss.startswith(f"held-out loss: {metrics['loss']:.4f} (sum over 4 fields, ")
    assert files == f"written to {tmp_path}/: model, metrics.json, curve.png, samples.csv, columns.png"
    if name == "table":
        assert model.generate(given={"town": ["Ur"] * 2}, num_steps=2)["town"].tolist() == [[2], [2]]


@pytest.mark.slow
def test_mixed_recipe__trains_on_music(
    mixed_recipe: ModuleType, few: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("music21")
    monkeypatch.setattr(mixed_recipe, "load_chorales", lambda split: notes())
    config = RECIPES / "configs" / "chorales.yaml"
    choice = {"data": "chorales", "length": 6, "output_dir": tmp_path, "num_samples": 1}
    metrics = mixed_recipe.main(["--config", str(config), *few, *flags(choice)])
    assert {"part", "pitch", "onset", "duration", "loss"} <= metrics.keys()
    assert {entry.name for entry in tmp_path.iterdir() if entry.is_file()} == LEFT | {"samples.mid", "samples.png"}
    assert (tmp_path / "samples.mid").read_bytes()[:4] == b"MThd"


@pytest.mark.slow
def test_mixed_recipe__resumes_a_stopped_run(mixed_recipe: ModuleType, few: list[str], tmp_path: Path) -> None:
    """Four steps at once, and two and then two more, with times and noise of their own: one and the same model."""
    choice = {"lr_scheduler_type": "constant", "independent_times": True, "generators": '{"flow": 0.5, "jump": 0.5}'}
    for folder, steps in (("unbroken", 4), ("resumed", 2), ("resumed", 4)):
        mixed_recipe.main([*few, *flags({**choice, "max_steps": steps, "output_dir": tmp_path / folder})])
    for file in ("model.safetensors", "samples.csv"):
        assert (tmp_path / "resumed" / file).read_bytes() == (tmp_path / "unbroken" / file).read_bytes(), file
    with pytest.raises(ValueError, match=r"started with bins=8, now it is 16"):
        mixed_recipe.main([*few, *flags({**choice, "bins": 16, "output_dir": tmp_path / "resumed"})])


@pytest.mark.slow
def test_mixed_recipe__trains_on_a_stream(
    mixed_recipe: ModuleType, few: list[str], table: Path, tmp_path: Path
) -> None:
    rows = table.read_text(encoding="utf-8").splitlines()
    for split, part in (("train", rows[:41]), ("validation", [rows[0], *rows[41:]])):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{split}.csv").write_text("\n".join(part) + "\n", encoding="utf-8")
    choice = {"data": tmp_path / "data", "streaming": True, "columns": "age,town", "output_dir": tmp_path / "run"}
    metrics = mixed_recipe.main([*few, *flags(choice)])
    assert {"age", "town"} <= metrics.keys()
    assert "height" not in metrics


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("times", "bell", "times='bell' must be logit_normal or uniform"),
        ("symbols", "blurred", "symbols='blurred' must be 'masked' or 'uniform'"),
        ("scalers", '"cubic"', "scalers='cubic'"),
        ("generators", '{"leap": 1.0}', r"generators.leap "),
        ("data", "/nowhere", "/nowhere"),
        ("data", "", "--data is missing"),
        (
            "columns",
            "age,prize",
            "--columns names 'prize', which the table does not have; give some of age, height, town",
        ),
        ("drop_columns", "prize", "--drop_columns names 'prize'"),
    ],
)
def test_mixed_recipe__an_unknown_choice_is_an_error(
    mixed_recipe: ModuleType, few: list[str], tmp_path: Path, name: str, value: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mixed_recipe.main([*few, f"--{name}", value, "--output_dir", str(tmp_path)])


def test_mixed_recipe__leaves_columns_out(mixed_recipe: ModuleType, table: Path) -> None:
    for given, expected in (
        ({"drop_columns": "age, town"}, ["height"]),
        ({"columns": "town,age", "drop_columns": "age"}, ["town"]),
        ({}, ["age", "height", "town"]),
    ):
        options = mixed_recipe.MixedArguments(data=str(table), **given)
        assert mixed_recipe.load(options, "train").column_names == expected


def test_mixed_recipe__names_the_option_that_leaves_a_column_out(mixed_recipe: ModuleType) -> None:
    rows = {"my id": [f"u{row}" for row in range(40)], "age": list(range(20)) * 2}
    options, held_out = mixed_recipe.MixedArguments(data="rows.csv"), Dataset.from_dict({"age": [1]})
    lines = mixed_recipe.described(options, Dataset.from_dict(rows), held_out)
    assert lines[2] == "--drop_columns 'my id' leaves out what looks like an identifier"
    with pytest.raises(ValueError, match="column 'none' is empty") as error:
        mixed_recipe.described(options, Dataset.from_dict({**rows, "none": [None] * 40}), held_out)
    assert error.value.__notes__ == ["--drop_columns NAME leaves a column out"]


def test_compare_columns__draws_both_tables(mixed_recipe: ModuleType, tmp_path: Path) -> None:
    compare: Any = mixed_recipe.compare_columns
    real = {"a": [1.0, 2.0, 3.0, None], "b": ["x", "y", "x", "y"]}
    assert compare(real, {"a": [1, 2, 2, 1], "b": ["x", "x", "z", "y"]}, tmp_path / "a.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(ValueError, match="real has the columns a, b; synthetic has a"):
        compare(real, {"a": [1.0]}, tmp_path / "b.png")
