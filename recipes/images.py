"""Trains and samples an image model: discrete pixels that jump, or continuous ones that flow, jump, or do both.

    accelerate launch recipes/images.py --config recipes/configs/mnist_superposition.yaml [--any_argument value]

Stopped at any moment and started again with the same command, it goes on from the last complete checkpoint. What it
leaves in `output_dir`: the model (load it with `AutoModel`), metrics.json, curve.png, samples.png and samples.gif.
"""

from __future__ import annotations

import json
import sys
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
from datasets import Dataset
from pictures import animate_images, image_grid
from transformers import TrainingArguments, set_seed

from gm_discrete import (
    Bins,
    GaussianPath,
    GMConfig,
    GMModel,
    LogitNormalTimeSampler,
    MaskedPath,
    UniformPath,
    UniformTimeSampler,
    flow_likelihood,
)
from gm_discrete.data import ImageCollator, download_emoji, download_fashion_mnist, load_images, to_uint8
from gm_discrete.paths import FinitePath
from gm_discrete.paths import Path as ProbabilityPath
from gm_discrete.training import GMTrainer

DOWNLOADS = {"fashion_mnist": download_fashion_mnist, "emoji32": download_emoji}

SHOWN = {"num_steps", "sampler", "guidance_scale", "num_images", "num_eval_samples", "max_eval_images", "download"}
"""Arguments that weights do not depend on."""

MEASURED = 2000
"""Images of which mean and standard deviation are taken."""


@dataclass
class ImageArguments:
    """Data, path, model and sampling; everything else is `TrainingArguments`."""

    data: str = field(default="mnist", metadata={"help": "mnist, fashion_mnist, emoji32, a folder, or a hub id"})
    data_config: str | None = field(default=None, metadata={"help": "configuration of a hub data set"})
    download: bool = field(default=False, metadata={"help": "fetch fashion_mnist or emoji32 first"})
    image_column: str = "image"
    label_column: str = "label"
    image_size: int | None = None
    streaming: bool = False
    max_eval_images: int = 512

    path: str = field(default="gaussian", metadata={"help": "gaussian (numbers), masked or uniform (symbols)"})
    generators: str = field(default='{"flow": 1.0}', metadata={"help": "JSON of weights of flow, diffusion and jump"})
    divergence: str = field(default="{}", metadata={"help": 'JSON of divergences by part, such as {"flow": "cosh"}'})
    loss_weights: str = field(default="{}", metadata={"help": "JSON of weights by part in the loss"})
    prediction: str | None = field(
        default=None, metadata={"help": "belief (default with a jump), velocity (default without), data or noise"}
    )
    bins: int = field(default=64, metadata={"help": "over the range of a pixel, of a belief or of landings"})
    levels: int = field(default=256, metadata={"help": "grey levels of symbols"})
    rates: str = field(default="reversal", metadata={"help": "reversal or mixture, of the uniform path"})
    schedule: str = field(default="{}", metadata={"help": "JSON of a schedule"})
    by_class: bool = field(default=True, metadata={"help": "condition on the class, where the data have classes"})

    patch_size: int = 4
    hidden_size: int = 256
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    model_options: str = field(default="{}", metadata={"help": "JSON of further arguments of GMConfig"})

    times: str = field(default="uniform", metadata={"help": "logit_normal or uniform, the law of training times"})
    muon: bool = field(
        default=False, metadata={"help": "Muon at muon_learning_rate for the matrices, AdamW for the rest"}
    )
    muon_learning_rate: float = 0.02
    muon_momentum: float = 0.95
    ema_decay: float = field(default=0.0, metadata={"help": "0: no average of the weights"})
    num_eval_samples: int = 2
    num_steps: int = 100
    sampler: str = "tau_leaping"
    guidance_scale: float | None = None
    num_images: int = field(default=64, metadata={"help": "samples to show"})


def main(argv: list[str] | None = None) -> dict[str, float]:
    options, training = parse_arguments((ImageArguments, TrainingArguments), argv)
    set_seed(training.seed)
    output = Path(training.output_dir)
    with training.main_process_first(desc="data"):
        if options.download and options.data in DOWNLOADS and training.process_index == 0:
            DOWNLOADS[options.data]()
        if training.local_process_index == 0:
            check_run(output, settings_of_run(options, training, SHOWN))
        train, held_out = (load(options, split) for split in ("train", "validation"))
    rows = (
        held_out if isinstance(held_out, Dataset) else Dataset.from_list(list(held_out.take(options.max_eval_images)))
    )
    held_out = rows.select(range(min(options.max_eval_images, len(rows))))
    model = GMModel(build_config(options, train))
    symbols = isinstance(model.path, FinitePath)
    print_once(training, f"{sum(p.numel() for p in model.parameters()):,} parameters, {model.path!r}")

    if options.times not in ("logit_normal", "uniform"):
        raise ValueError(f"times={options.times!r} must be logit_normal or uniform")
    collate = ImageCollator(levels=options.levels if symbols else None)
    trainer = GMTrainer(
        model,
        training,
        time_sampler=LogitNormalTimeSampler() if options.times == "logit_normal" else UniformTimeSampler(),
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=collate,
        **trainer_options(options, training),
    )
    go_on(trainer)

    metrics = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items() if "eval_" in name}
    trainer.save_model(str(output))
    if training.should_save:
        if symbols:
            metrics["bits_per_dim"], metrics["levels"] = metrics["bits_per_token"], options.levels
        elif "flow" in json.loads(options.generators):
            metrics |= flow_bits(GMModel.from_pretrained(output).to(training.device), held_out)
        write_json(output / "metrics.json", metrics)
        plot_curve(trainer.state.log_history, "dimension" if symbols else "", output / "curve.png")
        show_samples(options, output, training.device)
    shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    print_once(
        training, f"\nheld out: {shown}\nwritten to {output}/: model, metrics.json, curve.png, samples.png, samples.gif"
    )
    return metrics


def load(options: ImageArguments, split: Any) -> Any:
    rows = load_images(
        options.data,
        split,
        name=options.data_config,
        image_column=options.image_column,
        label_column=options.label_column if options.by_class else None,
        image_size=options.image_size,
        streaming=options.streaming,
    )
    return rows if isinstance(rows, Dataset) or split != "train" else rows.shuffle(seed=0, buffer_size=10_000)


def build_config(options: ImageArguments, train: Any) -> GMConfig:
    """The path, with the data's mean and standard deviation where it needs them, and the transformer around it."""
    first = train.select(range(min(MEASURED, len(train)))) if isinstance(train, Dataset) else train.take(MEASURED)
    sample = collated(first)
    shape = list(sample["input_values"].shape[1:])
    classes = 0
    if options.by_class and "class_labels" in sample:
        feature = (train.features or {}).get("class_labels")
        classes = getattr(feature, "num_classes", 0) or int(sample["class_labels"].max()) + 1
    return GMConfig(
        path=build_path(options, shape, sample["input_values"]),
        image_shape=shape,
        patch_size=options.patch_size,
        num_classes=classes,
        divergence=json.loads(options.divergence) or None,
        loss_weights=json.loads(options.loss_weights) or None,
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_hidden_layers,
        num_attention_heads=options.num_attention_heads,
        **json.loads(options.model_options),
    )


def build_path(options: ImageArguments, shape: list[int], sample: torch.Tensor) -> ProbabilityPath:
    schedule = json.loads(options.schedule) or None
    if options.path == "masked":
        return MaskedPath(options.levels + 1, schedule=schedule)
    if options.path == "uniform":
        return UniformPath(options.levels, schedule, options.rates)
    if options.path != "gaussian":
        raise ValueError(f"path={options.path!r} must be gaussian, masked or uniform")
    generators, number = json.loads(options.generators), options.bins
    lands = "jump" in generators and options.prediction not in (None, "belief")
    # Of a belief, with the first and the last bin around black and white; of landings, which noise spreads, as wide.
    reach, number = (4.0, 4 * number) if lands else (number / (number - 1), number)
    return GaussianPath(
        generators,
        num_channels=shape[0],
        schedule=schedule,
        data_mean=round(float(sample.mean()), 4),
        data_std=round(float(sample.std()), 4),
        prediction=options.prediction,
        bins=Bins(-reach, reach, number),
    )


def flow_bits(model: GMModel, held_out: Dataset, number: int = 64) -> dict[str, float]:
    """Bits per dimension of bytes under the flow: of pixels with uniform noise of one byte's width, an upper bound."""
    batch = collated(held_out.select(range(min(number, len(held_out)))), dequantize=True)
    rng = torch.Generator(model.device).manual_seed(0)
    classes = batch["class_labels"].to(model.device) if model.config.num_classes else None
    values = batch["input_values"].to(model.device)
    found = flow_likelihood(model, values, num_steps=50, rng=rng, class_labels=classes)
    bits = found.bits_per_dim(2 / 255)
    return {"flow_bits_per_dim": float(bits.mean()), "flow_bits_per_dim_stderr": float(bits.std() / len(bits) ** 0.5)}


def collated(rows: Any, dequantize: bool = False) -> dict[str, torch.Tensor]:
    return ImageCollator(dequantize=dequantize)(list(rows))


def show_samples(options: ImageArguments, output: Path, device: Any) -> None:
    """Loads the model that was written and writes a grid of samples, by class where there are classes, and how they came."""
    model = GMModel.from_pretrained(output).to(device)
    classes = [i % model.config.num_classes for i in range(options.num_images)] if model.config.num_classes else None
    sample = model.generate(
        batch_size=options.num_images,
        class_labels=classes,
        guidance_scale=options.guidance_scale if classes else None,
        num_steps=options.num_steps,
        sampler=options.sampler,
        seed=0,
        return_dict_in_generate=True,
        output_trajectory=True,
    )
    levels = options.levels if isinstance(model.path, FinitePath) else None
    columns = model.config.num_classes if 0 < model.config.num_classes <= 20 else None
    image_grid(to_uint8(sample.sequences.cpu(), levels=levels), output / "samples.png", columns)
    states = sample.trajectory.states[:, :16]
    chosen = [*states[:-1][:: max(1, len(states) // 40)], states[-1]]
    animate_images([visible(state, options, model) for state in chosen], output / "samples.gif")


def visible(state: torch.Tensor, options: ImageArguments, model: GMModel) -> torch.Tensor:
    """An unfinished state as bytes; masks are grey."""
    if not isinstance(model.path, FinitePath):
        return to_uint8(state)
    masked = state >= options.levels
    return to_uint8(state.masked_fill(masked, options.levels // 2), levels=options.levels)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from the last checkpoint")
