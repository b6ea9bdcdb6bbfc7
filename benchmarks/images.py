"""Quality of samples of image models against network calls, and bits per dimension of held-out images.

    python benchmarks/images.py --model runs/mnist_flow runs/mnist_masked --data mnist --calls 25,50,100,200

1. Distances of samples from real images of `--data` in the features of the network that the column names: FD-classifier, a
   classifier trained on the data; FID-EffLite0, EfficientNet-Lite0; FID, Inception. Compare them at equal numbers of images
   only. The first rows are real images that are not in the reference, the score of a perfect model, also with as few grey
   levels as the models have. Classes have the proportions of the reference.
2. Calls are those counted by `generate`, per sample: a masked image needs none for a step without an event, and a guided
   call is two passes. Samplers that choose their own steps have one row; adaptive steps of discrete pixels take `--calls`.
3. Bits per dimension of held-out images given their classes, ± standard error. For discrete pixels the likelihood bound
   (different numbers of levels cannot be compared); for flows the likelihood of dequantised bytes under the flow alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import environment, markdown, output_file, output_folder, report, seconds
from perplexity import fingerprint
from torch import Tensor
from tqdm.auto import tqdm

from gm_discrete import Adaptive, GaussianPath, GMModel, MaskedPath, flow_likelihood
from gm_discrete.data import ImageCollator, to_uint8
from gm_discrete.evaluation import evaluate_bound
from gm_discrete.paths import FinitePath
from gm_discrete.samplers import SAMPLERS, Sampler

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.scores import images as scores
from recipes.datasets import load_images
from recipes.pictures import image_grid

DISTANCES = {"classifier": "FD-classifier", "efficientnet_lite0": "FID-EffLite0", "inception": "FID"}
SCORES = ("precision", "recall", "density", "coverage")
QUICK = {"calls": "2,4", "num_samples": 20, "limit": 200, "classifier_steps": 9, "bound_images": 8, "flow_steps": 2}

Way = dict[str, Any]
"""How to sample: the name of the sampler, and the number of calls asked for."""
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
    features = scores.extract_features(as_bytes(real), network)

    def scored(pixels: Tensor) -> dict[str, Any]:
        return {**vars(scores.evaluate_images(features, pixels, network)), "images": len(pixels)}

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
        raise ValueError(f"--model {' '.join(args.model)}: the names of the folders must differ: they name the rows")
    if len(shapes) > 1 or () in shapes:
        raise ValueError(f"--model: give models of images of one shape; they have {sorted(shapes)}")
    return models


def plan(name: str, model: GMModel, args: argparse.Namespace) -> list[Way]:
    """Sampler and calls of every row, for the samplers that can simulate the model."""
    ways = []
    for sampler in args.samplers:
        try:
            Sampler.of(sampler).check(model.path)
        except ValueError as error:
            print(f"{name} without {sampler}: {error}", file=sys.stderr)
            continue
        counted = not SAMPLERS[sampler].chooses_times or (sampler == "adaptive" and model.path.is_discrete)
        ways += [{"sampler": sampler, "asked": calls} for calls in (args.calls if counted else [None])]
    if not ways:
        raise ValueError(f"--samplers {','.join(args.samplers)}: none fits {name}, {model.path!r}")
    return ways


def load(args: argparse.Namespace, split: Any, shape: list[int]) -> Rows:
    """At most `--limit` images of the split, in the models' shape (cropped, if that is a square)."""
    size, channels = shape[1] if shape[1] == shape[2] else None, 1 if shape[0] == 1 else 3
    return some(load_images(args.data, split, image_size=size, channels=channels, **args.data_options), args.limit)


def feature_network(train: Rows, args: argparse.Namespace) -> Any:
    if args.features != "classifier":
        return getattr(scores, args.features)().to(args.device)
    batch = ImageCollator()(train)
    if "class_labels" not in batch:
        raise ValueError(f"--features classifier: data={args.data!r} has no classes; take efficientnet_lite0")
    pixels, labels = (tensor.to(args.device) for tensor in (as_bytes(train), batch["class_labels"]))
    return scores.train_classifier(pixels, labels, num_steps=args.classifier_steps)


def levels(model: GMModel) -> int:
    """Grey levels of a sample: the data symbols, or all the bytes."""
    path = model.path
    return path.vocab_size - isinstance(path, MaskedPath) if isinstance(path, FinitePath) else 256


def as_bytes(rows: Rows, count: int = 256) -> Tensor:
    """Images uint8 [N, C, H, W], with `count` grey levels."""
    shape = tuple(rows[0]["pixel_values"].shape)
    return to_uint8(ImageCollator(levels=count)(rows)["input_ids"], levels=count, shape=shape)


def wanted(model: GMModel, real: Rows, number: int) -> Tensor:
    """Classes [N] in the proportions of the data, or evenly if the data have none."""
    known = sorted(int(row["class_labels"]) for row in real if "class_labels" in row)
    known = known or range(max(1, model.config.num_classes))
    return torch.tensor([known[(2 * i + 1) * len(known) // (2 * number)] for i in range(number)])


def sample(model: GMModel, labels: Tensor, way: Way, args: argparse.Namespace) -> tuple[Tensor, dict[str, float]]:
    """A sample per label, uint8 [N, C, H, W], and the calls and seconds per sample. Every batch has its own seed."""
    sampler, calls = Sampler.of(way["sampler"]), way["asked"]
    num_steps = calls
    if way["sampler"] in ("heun", "trapezoidal"):
        num_steps = (calls + 1) // 2  # two calls per step, but for the last
    elif way["sampler"] == "adaptive" and calls:
        sampler, num_steps = Adaptive(max_expected_changes=2 * model.config.state_shape(0)[0] / calls), None
    options: dict[str, Any] = {"sampler": sampler, "num_steps": num_steps, "guidance_scale": args.guidance_scale}
    found: list[Any] = []

    def generate() -> None:
        for part in tqdm(labels.split(args.batch_size), desc=f"{way['sampler']} {calls or ''}", leave=False):
            condition: dict[str, Any] = {"batch_size": len(part)}
            if model.config.num_classes:
                condition = {"class_labels": part}
            seed = args.seed + args.batch_size * len(found)
            found.append(model.generate(**condition, **options, seed=seed, return_dict_in_generate=True))

    time = seconds(generate, args.device) / len(labels)
    needed, states = (torch.cat([part[name].cpu() for part in found]) for name in ("network_calls", "sequences"))
    pixels = to_uint8(states, levels=None if states.is_floating_point() else levels(model))
    return pixels, {"network_calls": float(needed.double().mean()), "seconds": time}


def bits_per_dim(model: GMModel, rows: Rows, args: argparse.Namespace) -> dict[str, Any]:
    """Mean over images and its standard error; empty for a model without a likelihood."""
    rng = torch.Generator(model.device).manual_seed(args.seed)
    collate = ImageCollator(levels(model)) if model.path.is_discrete else ImageCollator(dequantize=True)
    torch.manual_seed(args.seed)  # for the noise that the collator adds
    batches = [collate(rows[i : i + args.batch_size]) for i in range(0, len(rows), args.batch_size)]
    figures = {"levels": levels(model), "images": len(rows)}
    if model.path.is_discrete:
        bound = evaluate_bound(model, batches, num_samples=args.bound_samples, rng=rng)
        return figures | {"bits_per_dim": bound.bits_per_token, "stderr": bound.stderr, "of": f"bound, {bound.kind}"}
    if not isinstance(model.path, GaussianPath) or "flow" not in model.path.generators:
        return {}
    parts = []
    for batch in tqdm(batches, desc="Flow"):
        z, classes = batch["labels"].to(model.device), batch.get("class_labels") if model.config.num_classes else None
        condition: Any = {} if classes is None else {"class_labels": classes.to(model.device)}
        parts.append(flow_likelihood(model, z, num_steps=args.flow_steps, rng=rng, **condition).bits_per_dim(2 / 255))
    bits = torch.cat(parts)
    return figures | {"bits_per_dim": float(bits.mean()), "stderr": float(bits.std()) / len(bits) ** 0.5, "of": "flow"}


def picture(file: Path, model: GMModel, way: Way, args: argparse.Namespace) -> None:
    """Eight rows of samples, with a column for each class."""
    columns = model.config.num_classes if 0 < model.config.num_classes <= 20 else 8
    pixels, _ = sample(model, torch.arange(8 * columns) % (model.config.num_classes or 1), way, args)
    image_grid(pixels, file, columns)


def some(rows: Any, number: int) -> Rows:
    """At most `number` random rows, always the same. Evenly spaced rows could miss classes of sorted data."""
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:number]
    return [rows[i] for i in chosen.sort().values.tolist()]


def table(rows: Rows, columns: Mapping[str, tuple[str, str]]) -> str:
    """A Markdown table: by title the name of a figure and its format; – in rows without it."""
    return markdown([{t: f"{row[n]:{form}}" if n in row else "–" for t, (n, form) in columns.items()} for row in rows])


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, formatter_class=raw)
    add = parser.add_argument
    add("--model", nargs="+", required=True, help="folders or hub ids of GMModels of images")
    add("--data", default="mnist", help="mnist, fashion_mnist, emoji32, a folder, or a hub id")
    add("--data-options", type=json.loads, default={}, help='JSON of more for load_images, as {"image_column": "img"}')
    add("--against", choices=("train", "validation"), default="train", help="split that samples are compared with")
    add("--limit", type=int, default=5000, help="maximum number of images of a split")
    add("--features", choices=tuple(DISTANCES), default="classifier", help="network in whose features to compare")
    add("--classifier-steps", type=int, default=400)
    add("--num-samples", type=int, default=500, help="samples per row")
    add("--samplers", default="tau_leaping,heun", help="names of samplers, separated by commas")
    add("--calls", default="25,50,100,200", help="maximum network calls per sample, separated by commas")
    add("--guidance-scale", type=float, help="classifier-free guidance; none by default")
    add("--bound-images", type=int, default=256, help="held-out images whose bits are counted")
    add("--bound-samples", type=int, default=8, help="draws of the bound per image")
    add("--flow-steps", type=int, default=50, help="steps of the likelihood of a flow, two calls each")
    add("--batch-size", type=int, default=100)
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=torch.get_num_threads(), help="threads of torch, on the CPU")
    add(
        "--figures",
        type=output_folder,
        default=str(Path(__file__).parent / "figures"),
        help="folder for the grids of samples",
    )
    add("--quick", action="store_true", help=f"sizes that only show that it works: {QUICK}")
    add("--output", type=output_file, help="JSON file with every setting and figure")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args(argv)
    args.samplers, args.calls = args.samplers.split(","), sorted(map(int, args.calls.split(",")))
    if unknown := set(args.samplers) - {*SAMPLERS}:
        parser.error(f"--samplers {', '.join(unknown)}: choose from {', '.join(SAMPLERS)}")
    return args


if __name__ == "__main__":
    main()
