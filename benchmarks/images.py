"""How good the samples of image models are, against the network calls that they take, and what images cost in bits.

    python benchmarks/images.py --model runs/mnist_flow runs/mnist_masked --data mnist --calls 25,50,100,200

1. Distances of samples from real images of `--data` in the features of a network that the column names: FD-classifier of one
   trained on the spot, FID-EffLite0 of EfficientNet-Lite0, FID of Inception. They compare only at equal numbers of images.
   Above them stand real images that are not in the reference: what a perfect model would have, also with as few grey
   levels as the models have. Classes are asked for in the proportions of the reference.
2. Calls are those that `generate` counts, per sample: a masked image needs none for a step without an event, and a guided
   call is two passes. Samplers that choose their own steps have one row; adaptive steps of symbols are about `--calls`.
3. Bits per dimension of held-out images given their classes, ± standard error: of symbols the likelihood bound, which does
   not compare between numbers of levels; of flows that of dequantised bytes under the flow alone, by Hutchinson's estimate.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import environment, markdown, report, seconds
from perplexity import fingerprint
from torch import Tensor
from tqdm.auto import tqdm

from gm_discrete import GaussianPath, GMModel, MaskedPath, evaluation, flow_likelihood, simulate
from gm_discrete.data import ImageCollator, load_images, to_uint8
from gm_discrete.paths import FinitePath
from gm_discrete.samplers import EUCLIDEAN_STEPS, GRID_FREE, STEPS

sys.path.append(str(Path(__file__).parents[1]))
from recipes.pictures import image_grid

DISTANCES = {"classifier": "FD-classifier", "efficientnet_lite0": "FID-EffLite0", "inception": "FID"}
SCORES = ("precision", "recall", "density", "coverage")
QUICK = {"calls": "2,4", "num_samples": 20, "limit": 200, "classifier_steps": 9, "bound_images": 8, "flow_steps": 2}

Way = dict[str, Any]  # to sample: the sampler, and the calls that are asked for
Rows = Sequence[Mapping[str, Any]]
"""Images as `load_images` gives them: pixel_values [C, H, W] of bytes, and class_labels if the data have classes."""


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    models = load_models(args)
    plans = {name: plan(name, model, args) for name, model in models.items()}
    shape = next(iter(models.values())).config.image_shape or []
    train, held_out = (load(args, split, shape) for split in ("train", "validation"))
    network = feature_network(train, args)
    real, others, called = (train, held_out, "held-out") if args.against == "train" else (held_out, train, "training")
    features = evaluation.extract_features(as_bytes(real), network)

    def scored(pixels: Tensor) -> dict[str, Any]:
        return {**vars(evaluation.evaluate_images(features, pixels, network)), "images": len(pixels)}

    unseen = some(others, args.num_samples)
    figures = [{"model": f"{called} images", **scored(as_bytes(unseen))}]
    for count in sorted({levels(model) for model in models.values()} - {256}, reverse=True):
        figures.append({"model": f"{called} images, {count} levels", **scored(as_bytes(unseen, count))})
    bits = []
    for name, model in models.items():
        labels = wanted(model, real, args.num_samples)
        for way in plans[name]:
            pixels, cost = sample(model, labels, way, args)
            figures.append({"model": name, **way, **cost, **scored(pixels)})
        bits.append({"model": name, **bits_per_dim(model, some(held_out, args.bound_images), args)})
        picture(args.figures / f"images_{name}.png", model, max(plans[name], key=lambda way: way["asked"] or 0), args)
    record = {
        "benchmark": "images",
        "environment": environment(args.device, __file__, argv),
        "settings": vars(args),
        "models": {n: {"config": m.config.to_dict(), "weights_sha256": fingerprint(m)} for n, m in models.items()},
        "reference": {"split": args.against, "images": len(real), "distance": DISTANCES[args.features]},
        "samples": figures,
        "bits": bits,
    }
    columns = {"": ("model", ""), "sampler": ("sampler", ""), "calls": ("network_calls", ".1f")}
    columns |= {DISTANCES[args.features]: ("frechet", ".4g"), **{name: (name, ".3f") for name in SCORES}}
    columns |= {"images": ("images", ""), "seconds per sample": ("seconds", ".3g")}
    of_bits = {"": ("model", ""), "bits per dimension": ("bits_per_dim", ".4f"), "±": ("stderr", ".4f")}
    of_bits |= {name: (name, "") for name in ("levels", "of", "images")}
    report(record, [table(figures, columns), table(bits, of_bits)], args.output)


def load_models(args: argparse.Namespace) -> dict[str, GMModel]:
    """By the names of their folders, in evaluation mode."""
    models = {Path(folder).name: GMModel.from_pretrained(folder).to(args.device).eval() for folder in args.model}
    shapes = {tuple(model.config.image_shape or ()) for model in models.values()}
    if len(models) < len(args.model):
        raise ValueError(f"--model {' '.join(args.model)}: the names of the folders must differ, as figures bear them")
    if len(shapes) > 1 or () in shapes:
        raise ValueError(f"--model: give models of images of one shape; they have {sorted(shapes)}")
    return models


def plan(name: str, model: GMModel, args: argparse.Namespace) -> list[Way]:
    """Sampler and calls of every row, of the samplers that do not refuse the model's first moment."""
    ways, start = [], model.path.prior((1, *model.config.state_shape(0)), device=model.device)
    for sampler in args.samplers:
        try:
            simulate(model, start, [0.0, 1e-6], sampler=sampler)
        except (TypeError, ValueError) as refusal:
            print(f"{name} without {sampler}: {refusal}", file=sys.stderr)
            continue
        counted = sampler not in GRID_FREE or (sampler == "adaptive" and isinstance(model.path, FinitePath))
        ways += [{"sampler": sampler, "asked": calls} for calls in (args.calls if counted else [None])]
    if not ways:
        raise ValueError(f"--samplers {','.join(args.samplers)}: none fits {name}, {model.path!r}")
    return ways


def load(args: argparse.Namespace, split: Any, shape: list[int]) -> Rows:
    """At most `--limit` images of the split, in the models' shape (cropped if that is a square)."""
    size, channels = shape[1] if shape[1] == shape[2] else None, 1 if shape[0] == 1 else 3
    return some(load_images(args.data, split, image_size=size, channels=channels, **args.data_options), args.limit)


def feature_network(train: Rows, args: argparse.Namespace) -> Any:
    if args.features != "classifier":
        return getattr(evaluation, args.features)().to(args.device)
    batch = ImageCollator()(train)
    if "class_labels" not in batch:
        raise ValueError(f"--features classifier: data={args.data!r} has no classes; take efficientnet_lite0")
    pixels, labels = (tensor.to(args.device) for tensor in (as_bytes(train), batch["class_labels"]))
    return evaluation.train_classifier(pixels, labels, num_steps=args.classifier_steps)


def levels(model: GMModel) -> int:
    """Grey levels of a sample: the data symbols, or all the bytes."""
    path = model.path
    return path.vocab_size - isinstance(path, MaskedPath) if isinstance(path, FinitePath) else 256


def as_bytes(rows: Rows, count: int = 256) -> Tensor:
    """uint8 [N, C, H, W], with so many grey levels."""
    shape = tuple(rows[0]["pixel_values"].shape)
    return to_uint8(ImageCollator(levels=count)(rows)["input_ids"], levels=count, shape=shape)


def wanted(model: GMModel, real: Rows, number: int) -> Tensor:
    """So many classes [N], in the proportions of the data, or evenly where those have none."""
    known = sorted(int(row["class_labels"]) for row in real if "class_labels" in row)
    known = known or range(max(1, model.config.num_classes))
    return torch.tensor([known[(2 * i + 1) * len(known) // (2 * number)] for i in range(number)])


def sample(model: GMModel, labels: Tensor, way: Way, args: argparse.Namespace) -> tuple[Tensor, dict[str, float]]:
    """One sample as bytes for each label [N, C, H, W], and what one of them took; every batch has a seed of its own."""
    sampler, calls = way["sampler"], way["asked"]
    options = {"sampler": sampler, "num_steps": calls, "guidance_scale": args.guidance_scale}
    if sampler in ("heun", "trapezoidal"):
        options["num_steps"] = (calls + 1) // 2  # two calls each, but the last
    elif sampler == "adaptive" and calls:
        options["max_expected_changes"] = 2 * model.config.state_shape(0)[0] / calls
    found: list[Any] = []

    def generate() -> None:
        for part in tqdm(labels.split(args.batch_size), desc=f"{sampler} {calls or ''}", leave=False):
            given = {"class_labels": part} if model.config.num_classes else {"batch_size": len(part)}
            seed = args.seed + args.batch_size * len(found)
            found.append(model.generate(**given, **options, seed=seed, return_dict_in_generate=True))

    time = seconds(generate, args.device) / len(labels)
    needed, states = (torch.cat([part[name].cpu() for part in found]) for name in ("network_calls", "sequences"))
    pixels = to_uint8(states, levels=None if states.is_floating_point() else levels(model))
    return pixels, {"network_calls": float(needed.double().mean()), "seconds": time}


def bits_per_dim(model: GMModel, rows: Rows, args: argparse.Namespace) -> dict[str, Any]:
    """Mean over images and its standard error; nothing of a model without a likelihood."""
    rng, symbols = torch.Generator(model.device).manual_seed(args.seed), isinstance(model.path, FinitePath)
    collate = ImageCollator(levels(model)) if symbols else ImageCollator(dequantize=True)
    torch.manual_seed(args.seed)  # of the noise that the collator adds
    batches = [collate(rows[i : i + args.batch_size]) for i in range(0, len(rows), args.batch_size)]
    figures = {"levels": levels(model), "images": len(rows)}
    if symbols:
        bound = evaluation.evaluate_bound(model, batches, num_samples=args.bound_samples, rng=rng)
        return figures | {"bits_per_dim": bound.bits_per_token, "stderr": bound.stderr, "of": f"bound, {bound.kind}"}
    if not isinstance(model.path, GaussianPath) or "flow" not in model.path.generators:
        return {}
    parts = []
    for batch in tqdm(batches, desc="Flow"):
        z, classes = batch["labels"].to(model.device), batch.get("class_labels") if model.config.num_classes else None
        given: Any = {} if classes is None else {"class_labels": classes.to(model.device)}
        parts.append(flow_likelihood(model, z, num_steps=args.flow_steps, rng=rng, **given).bits_per_dim(2 / 255))
    bits = torch.cat(parts)
    return figures | {"bits_per_dim": float(bits.mean()), "stderr": float(bits.std()) / len(bits) ** 0.5, "of": "flow"}


def picture(file: Path, model: GMModel, way: Way, args: argparse.Namespace) -> None:
    """Eight rows of samples, with a column for each class."""
    columns = model.config.num_classes if 0 < model.config.num_classes <= 20 else 8
    pixels, _ = sample(model, torch.arange(8 * columns) % (model.config.num_classes or 1), way, args)
    image_grid(pixels, file, columns)


def some(rows: Any, number: int) -> Rows:
    """At most so many of them, by chance and always the same: evenly spread, rows in the order of classes miss some."""
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:number]
    return [rows[i] for i in chosen.sort().values.tolist()]


def table(rows: Rows, columns: Mapping[str, tuple[str, str]]) -> str:
    """Columns by title, each of a figure in a format; – in rows without it."""
    return markdown([{t: f"{row[n]:{form}}" if n in row else "–" for t, (n, form) in columns.items()} for row in rows])


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=raw)
    add = parser.add_argument
    add("--model", nargs="+", required=True, help="folders or hub ids of GMModels of images")
    add("--data", default="mnist", help="mnist, fashion_mnist, emoji32, a folder, or a hub id")
    add("--data-options", type=json.loads, default={}, help='JSON of more for load_images, as {"image_column": "img"}')
    add("--against", choices=("train", "validation"), default="train", help="split that samples are compared with")
    add("--limit", type=int, default=5000, help="most images of a split")
    add("--features", choices=tuple(DISTANCES), default="classifier", help="network in whose features to compare")
    add("--classifier-steps", type=int, default=400)
    add("--num-samples", type=int, default=500, help="samples of each row")
    add("--samplers", default="tau_leaping,heun", help="of generate, separated by commas")
    add("--calls", default="25,50,100,200", help="network calls of a sample, at most")
    add("--guidance-scale", type=float, help="towards the class; 1, none, by default")
    add("--bound-images", type=int, default=256, help="held-out images whose bits are counted")
    add("--bound-samples", type=int, default=8, help="draws of the bound per image")
    add("--flow-steps", type=int, default=50, help="of the integration of a flow's likelihood, two calls each")
    add("--batch-size", type=int, default=100)
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=torch.get_num_threads(), help="of torch, on the CPU")
    add("--figures", type=Path, default=Path(__file__).parent / "figures", help="folder for the grids of samples")
    add("--quick", action="store_true", help=f"sizes that only show that it works: {QUICK}")
    add("--output", type=Path, help="JSON file with every setting and figure")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args(argv)
    args.samplers, args.calls = args.samplers.split(","), sorted(map(int, args.calls.split(",")))
    if unknown := set(args.samplers) - {*STEPS, *EUCLIDEAN_STEPS}:
        parser.error(f"--samplers {', '.join(unknown)}: choose from {', '.join(STEPS | EUCLIDEAN_STEPS)}")
    return args


if __name__ == "__main__":
    main()
