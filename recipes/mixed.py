"""Trains and samples a model of symbols and numbers together: tables, and music as notes.

    accelerate launch recipes/mixed.py --config recipes/configs/diamonds.yaml [--any_argument value]

Stopped at any moment and started again with the same command, it goes on from the last complete checkpoint. What it
leaves in `output_dir`: the model (load it with `AutoModel`), metrics.json and curve.png; of tables samples.csv and
columns.png, which compares real and synthetic columns; of music samples.mid and samples.png, a piano roll.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import (
    check_run,
    go_on,
    parse_arguments,
    plot_curve,
    print_once,
    settings_of_run,
    trainer_options,
    write_json,
)
from datasets import Dataset, IterableDataset
from pictures import compare_columns
from transformers import TrainingArguments, set_seed

from gm_discrete import FieldTimeSampler, GMConfig, GMModel, LogitNormalTimeSampler, UniformTimeSampler
from gm_discrete.data import (
    SequenceCollator,
    TableCollator,
    cut,
    decode_rows,
    decode_sequences,
    download_flights,
    encoded_dataset,
    fit_codecs,
    load_chorales,
    load_table,
    piano_roll,
    table_path,
    write_midi,
)
from gm_discrete.training import GMTrainer

SHOWN = {"num_steps", "sampler", "num_samples", "num_eval_samples", "max_eval_rows", "download"}
"""Arguments that weights do not depend on."""


@dataclass
class MixedArguments:
    """Data, path, model and sampling; everything else is `TrainingArguments`."""

    data: str = field(
        default="diamonds", metadata={"help": "diamonds, flights, chorales, a csv or parquet, or a hub id"}
    )
    data_config: str | None = field(default=None, metadata={"help": "configuration of a hub data set"})
    download: bool = field(default=False, metadata={"help": "fetch the flights first"})
    streaming: bool = False
    columns: str | None = field(default=None, metadata={"help": "comma-separated, all unless told"})
    fit_rows: int | None = field(
        default=None, metadata={"help": "of a stream, that codecs are fitted on; all unless told"}
    )
    max_eval_rows: int = 2000
    length: int = field(default=1, metadata={"help": "notes of a piece; 1 for the rows of a table"})

    scalers: str = field(
        default='"quantile"', metadata={"help": "JSON: quantile, standard or log, or a dict by column"}
    )
    symbols: str = field(default="masked", metadata={"help": "masked or uniform, the path of categories"})
    generators: str = field(default='{"flow": 1.0}', metadata={"help": "JSON of weights of flow, diffusion and jump"})
    prediction: str = field(default="belief", metadata={"help": "belief, velocity, data or noise"})
    bins: int = field(default=64, metadata={"help": "of a belief, over what the scaler gives"})
    independent_times: bool = field(
        default=False, metadata={"help": "a time for each field: any of them given any other"}
    )
    aligned: bool = field(default=True, metadata={"help": "all fields share their positions; else one after another"})
    loss_weights: str = field(default="{}", metadata={"help": "JSON of weights by field"})

    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    model_options: str = field(default="{}", metadata={"help": "JSON of further arguments of GMConfig"})

    times: str = field(default="uniform", metadata={"help": "logit_normal or uniform, the law of training times"})
    muon: bool = field(
        default=False, metadata={"help": "Muon at muon_learning_rate for the matrices, AdamW for the rest"}
    )
    muon_learning_rate: float = 0.02
    muon_momentum: float = 0.95
    ema_decay: float = field(default=0.0, metadata={"help": "0: no average of the weights"})
    num_eval_samples: int = 4
    num_steps: int = 50
    sampler: str = "tau_leaping"
    num_samples: int = field(default=2000, metadata={"help": "rows, or pieces of music, to show"})


def main(argv: list[str] | None = None) -> dict[str, float]:
    options, training = parse_arguments((MixedArguments, TrainingArguments), argv)
    set_seed(training.seed)
    output, music = Path(training.output_dir), options.data == "chorales"
    with training.main_process_first(desc="data"):
        if options.download and options.data == "flights" and training.process_index == 0:
            download_flights()
        if training.local_process_index == 0:
            check_run(output, settings_of_run(options, training, SHOWN))
        train, held_out = (load(options, split) for split in ("train", "validation"))
        codecs = fit_codecs(train, scalers=json.loads(options.scalers), first=options.fit_rows)
    real, collate = held_out, SequenceCollator(codecs) if music else TableCollator(codecs)
    if not music:
        train, held_out = encoded_dataset(train, codecs), encoded_dataset(held_out, codecs, seed=1)
    model = GMModel(build_config(options, codecs))
    print_once(training, f"{sum(p.numel() for p in model.parameters()):,} parameters; {', '.join(codecs)}")

    if options.times not in ("logit_normal", "uniform"):
        raise ValueError(f"times={options.times!r} must be logit_normal or uniform")
    law = LogitNormalTimeSampler() if options.times == "logit_normal" else UniformTimeSampler()
    trainer = GMTrainer(
        model,
        training,
        time_sampler=FieldTimeSampler(law) if options.independent_times else law,
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=collate,
        **trainer_options(options, training),
    )
    go_on(trainer)

    metrics = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items() if "eval_" in name}
    trainer.save_model(str(output))
    if training.should_save:
        write_json(output / "metrics.json", metrics)
        plot_curve(trainer.state.log_history, "", output / "curve.png")
        model = GMModel.from_pretrained(output).to(training.device)
        show_music(options, model, output) if music else show_table(options, model, real, output)
    return metrics


def load(options: MixedArguments, split: str) -> Any:
    """Rows of natural values; those of the evaluation in memory."""
    if options.data == "chorales":
        return cut(load_chorales(split), options.length)
    rows = load_table(options.data, split, name=options.data_config, streaming=options.streaming)
    if options.columns:
        rows = rows.select_columns(options.columns.split(","))
    if split == "train":
        return rows if isinstance(rows, Dataset) else rows.shuffle(seed=0, buffer_size=10_000)
    if isinstance(rows, IterableDataset):
        return Dataset.from_list(list(rows.take(options.max_eval_rows)))
    return rows.select(range(min(options.max_eval_rows, len(rows))))


def build_config(options: MixedArguments, codecs: Mapping[str, Any]) -> GMConfig:
    path = table_path(
        codecs,
        {"generators": json.loads(options.generators), "prediction": options.prediction},
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
        loss_weights=json.loads(options.loss_weights) or None,
        **json.loads(options.model_options),
    )


def show_table(options: MixedArguments, model: GMModel, real: Any, output: Path) -> None:
    """Synthetic rows as a csv, and their columns beside the real ones."""
    sample = model.generate(
        batch_size=options.num_samples, num_steps=options.num_steps, sampler=options.sampler, seed=0
    )
    synthetic = decode_rows(sample, model.config.codecs)
    with (output / "samples.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(synthetic)
        writer.writerows(zip(*synthetic.values(), strict=True))
    compare_columns({name: real[name] for name in synthetic}, synthetic, output / "columns.png")


def show_music(options: MixedArguments, model: GMModel, output: Path) -> None:
    """A piece as MIDI and as a piano roll."""
    sample = model.generate(
        batch_size=options.num_samples,
        length=options.length,
        num_steps=options.num_steps,
        sampler=options.sampler,
        seed=0,
    )
    for number, notes in enumerate(decode_sequences(sample, model.config.codecs)):
        name = "samples" if options.num_samples == 1 else f"samples-{number}"
        write_midi(notes, output / f"{name}.mid")
        piano_roll(notes, output / f"{name}.png")


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from the last checkpoint")
