"""Trains and samples an image model: discrete pixels, or continuous ones with a flow, a jump process, or both.

    accelerate launch recipes/images.py --config recipes/configs/mnist_superposition.yaml [--any_argument value]

If it is interrupted, the same command resumes it from the last complete checkpoint. It writes to `output_dir`: the model
(load it with `AutoModel`), metrics.json, curve.png, samples.png, and their steps as samples.gif.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":  # imports start at the root of the repository: `datasets` in this folder is another package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import TrainingArguments, set_seed

from gm_discrete import Bins, GaussianPath, GMConfig, GMModel, MaskedPath, UniformPath, flow_likelihood
from gm_discrete.data import ImageCollator, to_uint8
from gm_discrete.paths import Path as ProbabilityPath
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
from recipes.datasets import download_emoji, download_fashion_mnist, load_images
from recipes.options import check_sampling, json_dict, json_option, weights_option
from recipes.pictures import animate_images, image_grid

DOWNLOADS = {"fashion_mnist": download_fashion_mnist, "emoji32": download_emoji}

DISPLAY = {"num_steps", "sampler", "guidance_scale", "num_images", "num_eval_samples", "max_eval_images", "download"}
"""Arguments that the weights do not depend on: they may change when a run is resumed."""

STATISTICS_IMAGES = 2000
"""Number of images from which mean and standard deviation are estimated."""


@dataclass
class ImageArguments:
    """Arguments for data, path, model and sampling. All others are those of `TrainingArguments`."""

    data: str = field(default="mnist", metadata={"help": "mnist, fashion_mnist, emoji32, a folder or a hub id"})
    license: str | None = field(default=None, metadata={"help": "of the model, for its card, such as apache-2.0"})
    data_config: str | None = field(default=None, metadata={"help": "configuration of a hub data set"})
    download: bool = field(default=False, metadata={"help": "download fashion_mnist or emoji32 first"})
    image_column: str = field(default="image", metadata={"help": "column of the data set that holds the images"})
    label_column: str = field(default="label", metadata={"help": "column of the data set that holds the classes"})
    image_size: int | None = field(default=None, metadata={"help": "height and width; default: those of the data"})
    streaming: bool = field(default=False, metadata={"help": "read the data while training"})
    max_eval_images: int = field(default=512, metadata={"help": "held-out images that are scored"})

    path: str = field(
        default="gaussian", metadata={"help": "gaussian (continuous), masked or uniform (discrete pixels)"}
    )
    generators: str = field(
        default='{"flow": 1.0}', metadata={"help": "flow, diffusion or jump, or JSON of their weights"}
    )
    divergence: str = field(
        default="{}", metadata={"help": 'JSON, divergence of a generator, such as {"flow": "cosh"}'}
    )
    loss_weights: str = field(default="{}", metadata={"help": "JSON, weight of a generator in the loss"})
    prediction: str | None = field(
        default=None,
        metadata={"help": "of pixels: belief (a distribution over bins, the default), velocity, data or noise"},
    )
    bins: int = field(default=64, metadata={"help": "bins over the range of a pixel, in which a belief is predicted"})
    levels: int = field(default=256, metadata={"help": "grey levels of discrete pixels"})
    rates: str = field(default="reversal", metadata={"help": "reversal or mixture, for the uniform path"})
    schedule: str = field(default="{}", metadata={"help": "name or JSON of a schedule"})
    by_class: bool = field(default=True, metadata={"help": "condition on the class, if the data have classes"})

    patch_size: int = field(default=4, metadata={"help": "height and width of the patch that one position holds"})
    hidden_size: int = field(default=256, metadata={"help": "width of the transformer"})
    num_hidden_layers: int = field(default=8, metadata={"help": "layers of the transformer"})
    num_attention_heads: int = field(default=4, metadata={"help": "attention heads per layer"})
    model_options: str = field(default="{}", metadata={"help": "JSON of further arguments of GMConfig"})

    times: str = field(default="uniform", metadata={"help": "distribution of training times: logit_normal or uniform"})
    muon: bool = field(
        default=False, metadata={"help": "Muon for the weight matrices, AdamW with learning_rate for the rest"}
    )
    muon_learning_rate: float = field(default=0.02, metadata={"help": "learning rate of Muon"})
    muon_momentum: float = field(default=0.95, metadata={"help": "momentum of Muon"})
    ema_decay: float = field(default=0.0, metadata={"help": "decay of the average of the weights; 0: no average"})
    num_eval_samples: int = field(default=2, metadata={"help": "draws of the loss or bound per held-out image"})
    num_steps: int = field(default=100, metadata={"help": "sampling steps"})
    sampler: str = field(default="tau_leaping", metadata={"help": "name or JSON of a sampler of generate"})
    guidance_scale: float | None = field(default=None, metadata={"help": "classifier-free guidance of the samples"})
    num_images: int = field(default=64, metadata={"help": "number of samples"})


def main(argv: list[str] | None = None) -> dict[str, float]:
    options, training = parse_arguments((ImageArguments, TrainingArguments), argv)
    with running(training):
        return run(options, training)


def run(options: ImageArguments, training: TrainingArguments) -> dict[str, float]:
    """Trains, scores, samples and draws."""
    set_seed(training.seed)
    output = Path(str(training.output_dir))
    with training.main_process_first(desc="data"):
        if options.download and options.data in DOWNLOADS and training.process_index == 0:
            DOWNLOADS[options.data]()
        if training.local_process_index == 0:
            check_run(output, weight_settings(options, training, DISPLAY))
        rows, held_out_rows = load(options, "train"), load(options, "validation")
    held_out = in_memory(held_out_rows, options.max_eval_images)
    model = GMModel(build_config(options, rows))
    discrete = model.path.is_discrete
    check_sampling(model, **sampling(options, model))
    print_once(training, f"{sum(p.numel() for p in model.parameters()):,} parameters, {model.path!r}")

    trainer = GMTrainer(
        model,
        training,
        time_sampler=time_sampler(options.times),
        train_dataset=rows,
        eval_dataset=held_out,
        data_collator=ImageCollator(levels=options.levels if discrete else None),
        **trainer_options(options, training),
    )
    train(trainer)

    metrics = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items() if "eval_" in name}
    trainer.save_model(str(output))
    model_card(trainer, options.data, license=options.license)
    if training.should_save:
        if discrete:
            metrics["bits_per_dim"], metrics["levels"] = metrics["bits_per_token"], options.levels
        elif "flow" in weights_option("generators", options.generators):
            metrics |= flow_bits(GMModel.from_pretrained(output).to(training.device), held_out)
        write_json(output / "metrics.json", metrics)
        plot_curve(trainer.state.log_history, "dimension" if discrete else "", output / "curve.png")
        with published(output) as draft:
            show_samples(options, GMModel.from_pretrained(output).to(training.device), draft)
    shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    print_once(
        training, f"\nheld out: {shown}\nwritten to {output}/: model, metrics.json, curve.png, samples.png, samples.gif"
    )
    return metrics


def load(options: ImageArguments, split: Literal["train", "validation"]) -> Dataset | IterableDataset:
    """Loads one split; a stream of training images is shuffled."""
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


def in_memory(rows: Dataset | IterableDataset, most: int) -> Dataset:
    """The first `most` rows, read from the stream if it is one."""
    if isinstance(rows, Dataset):
        return rows.select(range(min(most, len(rows))))
    return Dataset.from_list(list(rows.take(most)))


def build_config(options: ImageArguments, rows: Dataset | IterableDataset) -> GMConfig:
    """The probability path, with mean and standard deviation of the first images, and the transformer."""
    count = STATISTICS_IMAGES
    sample = collated(rows.select(range(min(count, len(rows)))) if isinstance(rows, Dataset) else rows.take(count))
    shape = list(sample["input_values"].shape[1:])
    classes = 0
    if options.by_class and "class_labels" in sample:
        feature = (rows.features or {}).get("class_labels")
        classes = getattr(feature, "num_classes", 0) or int(sample["class_labels"].max()) + 1
    return GMConfig(
        path=build_path(options, sample["input_values"]),
        image_shape=shape,
        patch_size=options.patch_size,
        num_classes=classes,
        divergence=json_dict("divergence", options.divergence) or None,
        loss_weights=json_dict("loss_weights", options.loss_weights) or None,
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_hidden_layers,
        num_attention_heads=options.num_attention_heads,
        **json_dict("model_options", options.model_options),
    )


def build_path(options: ImageArguments, sample: Tensor) -> ProbabilityPath:
    """The path from noise to images; mean and standard deviation of a Gaussian path are those of `sample`."""
    schedule = json_option("schedule", options.schedule) or None
    if options.path == "masked":
        return MaskedPath(options.levels + 1, schedule=schedule)
    if options.path == "uniform":
        return UniformPath(options.levels, schedule, options.rates)
    if options.path != "gaussian":
        raise ValueError(f"path={options.path!r} must be gaussian, masked or uniform")
    generators = weights_option("generators", options.generators)
    if "jump" in generators and options.prediction not in (None, "belief"):
        bins = Bins(-4.0, 4.0, 4 * options.bins)  # of where a jump lands, a noisy pixel: a wider range, the same width
    else:
        bins = Bins.covering(-1.0, 1.0, options.bins)  # of clean pixels: from black to white
    return GaussianPath.fit(sample, generators, schedule=schedule, prediction=options.prediction, bins=bins)


def flow_bits(model: GMModel, held_out: Dataset, number: int = 64) -> dict[str, float]:
    """Bits per dimension under the flow, for bytes with uniform noise of their width: an upper bound for the bytes."""
    batch = collated(held_out.select(range(min(number, len(held_out)))), dequantize=True)
    rng = torch.Generator(model.device).manual_seed(0)
    classes = batch["class_labels"].to(model.device) if model.config.num_classes else None
    values = batch["input_values"].to(model.device)
    found = flow_likelihood(model, values, num_steps=50, rng=rng, class_labels=classes)
    bits = found.bits_per_dim(2 / 255)
    return {"flow_bits_per_dim": float(bits.mean()), "flow_bits_per_dim_stderr": float(bits.std() / len(bits) ** 0.5)}


def collated(rows: Dataset | IterableDataset, dequantize: bool = False) -> dict[str, Tensor]:
    """All rows as one batch."""
    return ImageCollator(dequantize=dequantize)(list(rows))


def sampling(options: ImageArguments, model: GMModel) -> dict[str, Any]:
    """The arguments of `generate` for a grid of samples, a column for each class."""
    classes = [i % model.config.num_classes for i in range(options.num_images)] if model.config.num_classes else None
    return {
        "batch_size": options.num_images,
        "class_labels": classes,
        "guidance_scale": options.guidance_scale if classes else None,
        "num_steps": options.num_steps,
        "sampler": parse_sampler(options.sampler),
        "seed": 0,
        "return_dict_in_generate": True,
        "output_trajectory": True,
    }


def show_samples(options: ImageArguments, model: GMModel, output: Path) -> None:
    """Writes a grid of samples, a column per class, and an animation of their steps."""
    sample = model.generate(**sampling(options, model))
    levels = options.levels if model.path.is_discrete else None
    columns = model.config.num_classes if 0 < model.config.num_classes <= 20 else None
    image_grid(to_uint8(sample.sequences.cpu(), levels=levels), output / "samples.png", columns)
    states = sample.trajectory.states[:, :16]
    chosen = [*states[:-1][:: max(1, len(states) // 40)], states[-1]]
    animate_images([visible(state, options, model) for state in chosen], output / "samples.gif")


def visible(state: Tensor, options: ImageArguments, model: GMModel) -> Tensor:
    """An intermediate state as bytes; masks are grey."""
    if not model.path.is_discrete:
        return to_uint8(state)
    masked = state >= options.levels
    return to_uint8(state.masked_fill(masked, options.levels // 2), levels=options.levels)


if __name__ == "__main__":
    run_script(main)
