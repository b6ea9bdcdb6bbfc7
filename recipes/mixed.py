"""Trains and samples a model of categories and numbers together: rows of a table, or music as notes.

    accelerate launch recipes/mixed.py --config recipes/configs/diamonds.yaml [--any_argument value]

If it is interrupted, the same command resumes it from the last complete checkpoint. It writes to `output_dir`: the model
(load it with `AutoModel`), metrics.json and curve.png; for a table samples.csv, and columns.png, which compares real and
synthetic columns; for music samples.mid, and samples.png, a piano roll.
"""

from __future__ import annotations

import csv
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # imports start at the root of the repository: `datasets` in this folder is another package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from datasets import Dataset, IterableDataset, concatenate_datasets
from transformers import TrainingArguments, set_seed

from gm_discrete import FieldTimeSampler, GMConfig, GMModel
from gm_discrete.data import (
    SequenceCollator,
    TableCollator,
    decode_rows,
    decode_sequences,
    describe_columns,
    encoded_dataset,
    fit_codecs,
    table_path,
)
from gm_discrete.data.scalers import Codec
from gm_discrete.training import GMTrainer, published
from recipes.common import (
    check_run,
    model_card,
    parse_arguments,
    parse_sampler,
    plot_curve,
    print_once,
    run_script,
    running,
    time_sampler,
    train,
    trainer_options,
    weight_settings,
    write_json,
)
from recipes.datasets import download_flights, load_chorales, load_table, note_windows, piano_roll, write_midi
from recipes.options import check_sampling, json_dict, json_option, weights_option
from recipes.pictures import compare_columns

FEWEST = 8
"""The least number of rows of a table for training."""

DISPLAY = {"num_steps", "sampler", "num_samples", "num_eval_samples", "max_eval_rows", "download"}
"""Arguments that the weights do not depend on: they may change when a run is resumed."""


@dataclass
class MixedArguments:
    """Arguments for data, path, model and sampling. All others are those of `TrainingArguments`."""

    data: str = field(
        default="diamonds",
        metadata={"help": "diamonds, flights, chorales, a csv, json or parquet file, a folder of them, or a hub id"},
    )
    license: str | None = field(default=None, metadata={"help": "of the model, for its card, such as apache-2.0"})
    data_config: str | None = field(default=None, metadata={"help": "configuration of a hub data set"})
    download: bool = field(default=False, metadata={"help": "download the flights first"})
    streaming: bool = field(default=False, metadata={"help": "read the data while training"})
    columns: str | None = field(
        default=None, metadata={"help": "columns of the table, separated by commas; default: all"}
    )
    drop_columns: str = field(default="", metadata={"help": "columns to leave out, separated by commas"})
    separator: str | None = field(
        default=None, metadata={"help": "of a csv file; default: the one that cuts all lines into equally many cells"}
    )
    encoding: str | None = field(
        default=None, metadata={"help": "of local files; by default it is found from their content"}
    )
    decimal: str | None = field(
        default=None, metadata={"help": "decimal sign of a csv file; default: what its cells have"}
    )
    text_columns: str = field(default="", metadata={"help": "columns of a file that are text, separated by commas"})
    date_columns: str = field(
        default="", metadata={"help": "columns of dates, separated by commas, or JSON of their formats by column"}
    )
    fit_rows: int | None = field(
        default=None, metadata={"help": "rows of a stream from which encodings are fitted; default: all"}
    )
    max_eval_rows: int = field(default=2000, metadata={"help": "held-out rows that are scored"})
    length: int = field(default=1, metadata={"help": "notes of a sequence; 1 for a table"})

    scalers: str = field(default="quantile", metadata={"help": "quantile or standard, or JSON by column"})
    symbols: str = field(default="masked", metadata={"help": "path of categories: masked or uniform"})
    generators: str = field(
        default='{"flow": 1.0}', metadata={"help": "flow, diffusion or jump, or JSON of their weights"}
    )
    prediction: str = field(default="belief", metadata={"help": "of numbers: belief, velocity, data or noise"})
    bins: int = field(default=64, metadata={"help": "bins over the scaled numbers, in which a belief is predicted"})
    independent_times: bool = field(
        default=False, metadata={"help": "a time per field: allows to condition any fields on any others"}
    )
    aligned: bool = field(
        default=True, metadata={"help": "one position for all fields of a note or row; false: one per field"}
    )
    loss_weights: str = field(default="{}", metadata={"help": "JSON, weight of a field in the loss"})

    hidden_size: int = field(default=256, metadata={"help": "width of the transformer"})
    num_hidden_layers: int = field(default=4, metadata={"help": "layers of the transformer"})
    num_attention_heads: int = field(default=4, metadata={"help": "attention heads per layer"})
    model_options: str = field(default="{}", metadata={"help": "JSON of further arguments of GMConfig"})

    times: str = field(default="uniform", metadata={"help": "distribution of training times: logit_normal or uniform"})
    muon: bool = field(
        default=False, metadata={"help": "Muon for the weight matrices, AdamW with learning_rate for the rest"}
    )
    muon_learning_rate: float = field(default=0.02, metadata={"help": "learning rate of Muon"})
    muon_momentum: float = field(default=0.95, metadata={"help": "momentum of Muon"})
    ema_decay: float = field(default=0.0, metadata={"help": "decay of the average of the weights; 0: no average"})
    num_eval_samples: int = field(default=4, metadata={"help": "draws of the loss per held-out row"})
    num_steps: int = field(default=50, metadata={"help": "sampling steps"})
    sampler: str = field(default="tau_leaping", metadata={"help": "name or JSON of a sampler of generate"})
    num_samples: int = field(default=2000, metadata={"help": "number of sampled rows, or pieces of music"})


def main(argv: list[str] | None = None) -> dict[str, float]:
    options, training = parse_arguments((MixedArguments, TrainingArguments), argv)
    if not options.data:
        raise ValueError("--data is missing; give a csv, json or parquet file, a folder of them, or a hub id")
    with running(training):
        return run(options, training)


def run(options: MixedArguments, training: TrainingArguments) -> dict[str, float]:
    """Trains, scores, samples and draws."""
    set_seed(training.seed)
    output, music = Path(str(training.output_dir)), options.data == "chorales"
    with training.main_process_first(desc="data"):
        if options.download and options.data == "flights" and training.process_index == 0:
            download_flights()
        if training.local_process_index == 0:
            check_run(output, weight_settings(options, training, DISPLAY))
        rows, held_out = (load(options, split) for split in ("train", "validation"))
        # Of all rows, as one category may occur in the held-out ones alone.
        known: Any = rows if isinstance(rows, IterableDataset) else concatenate_datasets([rows, held_out])  # pyright: ignore
        print_once(training, "\n".join(described(options, known, held_out)))
        codecs = fit_codecs(known, scalers=json_option("scalers", options.scalers), first=options.fit_rows)
    real: Any = held_out
    collate = SequenceCollator(codecs) if music else TableCollator(codecs)
    if not music:
        rows, held_out = encoded_dataset(rows, codecs), encoded_dataset(held_out, codecs, seed=1)
    model = GMModel(build_config(options, codecs))
    check_sampling(model, **sampling(options))
    print_once(training, f"{sum(p.numel() for p in model.parameters()):,} parameters; {', '.join(codecs)}")

    times = time_sampler(options.times)
    trainer = GMTrainer(
        model,
        training,
        time_sampler=FieldTimeSampler(times) if options.independent_times else times,
        train_dataset=rows,
        eval_dataset=held_out,
        data_collator=collate,
        **trainer_options(options, training),
    )
    train(trainer)

    metrics = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items() if "eval_" in name}
    trainer.save_model(str(output))
    model_card(trainer, options.data, license=options.license)
    if training.should_save:
        write_json(output / "metrics.json", metrics)
        plot_curve(trainer.state.log_history, "", output / "curve.png")
        model = GMModel.from_pretrained(output).to(training.device)
        with published(output) as draft:
            show_music(options, model, draft) if music else show_table(options, model, real, draft)
    samples = "samples*.mid, samples*.png" if music else "samples.csv, columns.png"
    scored = f"sum over {len(codecs)} fields, {len(real):,} {'sequences' if music else 'rows'}"
    print_once(
        training,
        f"\nheld-out loss: {metrics['loss']:.4f} ({scored})\n"
        f"written to {output}/: model, metrics.json, curve.png, {samples}",
    )
    return metrics


def load(options: MixedArguments, split: str) -> Dataset | IterableDataset:
    """Loads one split, with natural values; held-out rows are in memory."""
    if options.data == "chorales":
        return note_windows(load_chorales(split), options.length)
    names = json_option("date_columns", options.date_columns) if options.date_columns.startswith("{") else None
    rows = load_table(
        options.data,
        split,
        name=options.data_config,
        streaming=options.streaming,
        separator=options.separator,
        encoding=options.encoding,
        decimal=options.decimal,
        text_columns=listed(options.text_columns),
        date_columns=names or listed(options.date_columns),
    )
    names, dropped = rows.column_names or [], listed(options.drop_columns)
    for option, given in (("columns", listed(options.columns or "")), ("drop_columns", dropped)):
        if absent := [name for name in given if name not in names]:
            raise ValueError(
                f"--{option} names {absent[0]!r}, which the table does not have; give some of {', '.join(names)}"
            )
    if options.columns or dropped:
        rows = rows.select_columns([name for name in listed(options.columns or "") or names if name not in dropped])
    if split == "train":
        return rows if isinstance(rows, Dataset) else rows.shuffle(seed=0, buffer_size=10_000)
    if isinstance(rows, IterableDataset):
        return Dataset.from_list(list(rows.take(options.max_eval_rows)))
    return rows.select(range(min(options.max_eval_rows, len(rows))))


def listed(names: str) -> list[str]:
    """Names that are separated by commas."""
    return [name.strip() for name in names.split(",") if name.strip()]


def described(options: MixedArguments, known: Dataset | IterableDataset, held_out: Any) -> list[str]:
    """What each column holds, and how many rows there are, a line each.

    Raises:
        ValueError: there are too few rows.
    """
    try:
        found = describe_columns(known, first=options.fit_rows or 100_000)
    except ValueError as error:
        error.add_note("--drop_columns NAME leaves a column out")
        raise
    lines = [f"{name}: {text}" for name, text in found.items()]
    if superfluous := [name for name, text in found.items() if "leave it out" in text]:
        lines.append(f"--drop_columns {shlex.quote(','.join(superfluous))} leaves out what looks like an identifier")
    if isinstance(known, IterableDataset):
        return [*lines, f"a stream; held out: {len(held_out):,} rows"]
    trained = len(known) - len(held_out)
    lines.append(f"training: {trained:,} rows, held out: {len(held_out):,} rows")
    if trained < FEWEST and options.data != "chorales":
        raise ValueError(f"{lines[-1]}: at least {FEWEST} are needed for training; give more")
    return lines


def build_config(options: MixedArguments, codecs: Mapping[str, Codec]) -> GMConfig:
    """The probability path of every column and the transformer."""
    path = table_path(
        codecs,
        {"generators": weights_option("generators", options.generators), "prediction": options.prediction},
        options.symbols,
        options.bins,
        options.independent_times,
    )
    return GMConfig(
        path=path,
        fields={name: {"codec": codec, "length": options.length} for name, codec in codecs.items()},
        aligned=[list(codecs)] if options.aligned else None,
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_hidden_layers,
        num_attention_heads=options.num_attention_heads,
        loss_weights=json_dict("loss_weights", options.loss_weights) or None,
        **json_dict("model_options", options.model_options),
    )


def sampling(options: MixedArguments) -> dict[str, Any]:
    """The arguments of `generate` for rows or pieces of music."""
    return {
        "batch_size": options.num_samples,
        "length": options.length,
        "num_steps": options.num_steps,
        "sampler": parse_sampler(options.sampler),
        "seed": 0,
    }


def show_table(options: MixedArguments, model: GMModel, real: Dataset, output: Path) -> None:
    """Writes synthetic rows as a csv, and a picture of their columns and the real ones."""
    sample = model.generate(**sampling(options))
    synthetic = decode_rows(sample, model.config.codecs)
    with (output / "samples.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(synthetic)
        writer.writerows(zip(*synthetic.values(), strict=True))
    compare_columns({name: real[name] for name in synthetic}, synthetic, output / "columns.png")


def show_music(options: MixedArguments, model: GMModel, output: Path) -> None:
    """Writes sampled pieces as MIDI and as piano rolls."""
    sample = model.generate(**sampling(options))
    for number, notes in enumerate(decode_sequences(sample, model.config.codecs)):
        name = "samples" if options.num_samples == 1 else f"samples-{number}"
        write_midi(notes, output / f"{name}.mid")
        piano_roll(notes, output / f"{name}.png")


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    run_script(main)
