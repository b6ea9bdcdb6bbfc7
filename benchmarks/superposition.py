"""Flow, jump and their superposition on images: one network for both, two networks, Euler steps and second order.

    python benchmarks/superposition.py --runs flow,jump,joint --seeds 0,1,2 --folder runs/superposition
    python benchmarks/superposition.py --table --folder runs/superposition

Every run trains a model, unless it lies in the folder already, and writes its figures beside it; the table is made of
whatever lies there, so that runs may be spread over processes and machines. Distances are taken in the features of a
classifier that is trained on the spot.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from measure import environment, markdown, output_folder
from torch import Tensor

from gm_discrete import Bins, GaussianPath, GMConfig, GMModel, bregman, conditional_loss, simulate, superpose, time_grid
from gm_discrete.data import ImageCollator, to_uint8
from gm_discrete.json_text import json_text
from gm_discrete.training import MuonAdamW

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.scores.images import evaluate_images, extract_features, train_classifier
from recipes.datasets import load_images

bregman.DIVERGENCES["quartic"] = bregman.Bregman(lambda a: a**4 / 12 + a**2 / 2)  # a convex function of one's own

JUMP, BOTH = {"jump": 1.0}, {"flow": 0.5, "jump": 0.5}
VELOCITY = {"prediction": "velocity"}
PATHS = {  # of a run that is not named, VELOCITY: a flow, whose velocity the network predicts
    "flow_belief": {"prediction": "belief"},
    "jump": {"generators": JUMP},
    "jump_rate": {"generators": JUMP, "prediction": "velocity"},  # log-rate, and bins of the landing
    "joint": {"generators": BOTH},
}
DIVERGENCES = ("cosh", "log_cosh", "exponential", "quartic")  # of the flow, beside the squared error of the run "flow"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--runs", default="flow,jump,joint", help=f"of flow, {', '.join((*PATHS, *DIVERGENCES))}")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--calls", default="25,50,100,200", help="network calls per sample")
    parser.add_argument("--steps", type=int, default=2000, help="of the optimizer, batches of 64")
    parser.add_argument("--images", type=int, default=500, help="samples that are compared with the training images")
    parser.add_argument("--hidden_size", type=int, default=96)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--patch_size", type=int, default=7)
    parser.add_argument("--bins", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=output_folder, default="runs/superposition")
    parser.add_argument(
        "--table", action="store_true", help="make the tables of the figures in the folder, and train nothing"
    )
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    if unknown := set(args.runs.split(",")) - {"flow", *PATHS, *DIVERGENCES}:
        parser.error(f"--runs {', '.join(sorted(unknown))}: no such run")
    torch.set_num_threads(args.threads)
    if args.table:
        print(tables(args.folder))
        return
    torch.manual_seed(0)
    data = Data(args)
    for run in args.runs.split(","):
        for seed in map(int, args.seeds.split(",")):
            file = args.folder / f"{Path(args.data).name}-{run}-{seed}.json"
            if file.exists():
                continue
            start, folder = time.perf_counter(), file.with_suffix("")
            if folder.exists():
                model = GMModel.from_pretrained(folder).to(args.device).eval()
            else:
                model = trained(run, seed, data, args)
                model.save_pretrained(folder)
            record = {
                "settings": vars(args),
                "run": run, "seed": seed, "data": args.data, "steps": args.steps, "seconds": time.perf_counter() - start,
                "environment": environment(args.device, __file__, argv), "floor": data.floor,
                "figures": list(figures(run, seed, model, data, args)),
            }  # fmt: skip
            file.parent.mkdir(parents=True, exist_ok=True)
            draft = file.with_suffix(".draft")
            draft.write_text(json_text(record, indent=1), encoding="utf-8")
            draft.replace(file)
            print(file, flush=True)


class Data:
    """Training images as numbers and as features, with the network that makes features."""

    def __init__(self, args: argparse.Namespace) -> None:
        train, held_out = (load_images(args.data, split) for split in ("train", "validation"))
        batch = ImageCollator()(list(train))
        self.z, self.labels = batch["input_values"].to(args.device), batch["class_labels"].to(args.device)
        self.shape, self.classes = list(self.z.shape[1:]), int(self.labels.max()) + 1
        real = to_uint8(self.z.cpu())
        self.network = train_classifier(real, self.labels.cpu(), rng=torch.Generator().manual_seed(0))
        self.features = extract_features(real, self.network)
        unseen = to_uint8(ImageCollator()(list(held_out)[: args.images])["input_values"])
        self.floor = vars(evaluate_images(self.features, extract_features(unseen, self.network)))


def trained(run: str, seed: int, data: Data, args: argparse.Namespace) -> GMModel:
    """A model of the run's generators, with averaged weights."""
    torch.manual_seed(seed)
    reach = 4 if run == "jump_rate" else 1
    path = GaussianPath(
        num_channels=data.shape[0], data_mean=float(data.z.mean()), data_std=float(data.z.std()),
        bins=Bins(-reach, reach, reach * args.bins), **PATHS.get(run, VELOCITY),
    )  # fmt: skip
    config = GMConfig(
        path=path, image_shape=data.shape, patch_size=args.patch_size, num_classes=data.classes, num_frequencies=0,
        hidden_size=args.hidden_size, num_hidden_layers=args.layers, num_attention_heads=args.hidden_size // 32,
        hidden_act="relu2", divergence={"flow": run} if run in DIVERGENCES else None,
    )  # fmt: skip
    model = GMModel(config).to(args.device)
    optimizer = MuonAdamW(model, lr=0.01, adamw_lr=2e-3)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, i / 50) * (1 - i / args.steps))
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995))
    rng = torch.Generator(args.device).manual_seed(seed)
    for _ in range(args.steps):
        rows = torch.randint(len(data.z), (64,), generator=rng, device=args.device)
        loss = conditional_loss(model, data.z[rows], rng=rng, class_labels=data.labels[rows])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
        average.update_parameters(model)
    model.load_state_dict(average.module.state_dict())
    return model.eval()


def figures(run: str, seed: int, model: GMModel, data: Data, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Distances of samples, for every way to sample a run's model and every number of calls."""
    labels = torch.arange(args.images, device=args.device) % data.classes
    for name, sample in samplers(run, seed, model, args).items():
        for calls in map(int, args.calls.split(",")[-1:] if "alone" in name else args.calls.split(",")):
            images = torch.cat([sample(part, calls) for part in labels.split(100)])
            found = evaluate_images(data.features, extract_features(to_uint8(images.cpu()), data.network))
            yield {"sampler": name, "calls": calls, **vars(found)}


Sampler = Callable[[Tensor, int], Tensor]
"""(class labels [B], network calls) → images [B, C, H, W]."""


def samplers(run: str, seed: int, model: GMModel, args: argparse.Namespace) -> dict[str, Sampler]:
    config, rng = model.config, torch.Generator(args.device).manual_seed(seed)

    def of(model: Any, method: str, generators: dict[str, float] | None = None) -> Sampler:
        def sample(labels: Tensor, calls: int) -> Tensor:
            path = model.path if generators is None else model.path.reweighted(generators)
            # A Heun step takes two calls, and the last one is an Euler step.
            steps = calls if method == "euler" else (calls + 1) // 2
            x_0 = path.prior((len(labels), *(config.image_shape or ())), rng, args.device)
            networks = len(getattr(model, "models", [model]))
            grid = time_grid(path, max(1, steps // networks))
            return simulate(model, x_0, grid, rng, method, class_labels=labels, generators=generators)

        return sample

    if run == "jump":
        ways = {"jump, Euler": of(model, "euler")}
        flow = args.folder / f"{Path(args.data).name}-flow-{seed}"
        if flow.exists():  # trained apart; each step asks both networks
            pair = superpose(GMModel.from_pretrained(flow).to(args.device).eval(), model)
            ways |= {"separate, Euler": of(pair, "euler"), "separate, mixed": of(pair, "heun")}
        return ways
    if run == "jump_rate":
        return {"jump_rate, Euler": of(model, "euler")}
    if run == "joint":
        return {
            "joint, Euler": of(model, "euler"),
            "joint, mixed": of(model, "heun"),
            "joint, flow alone": of(model, "euler", {"flow": 1.0}),
            "joint, jump alone": of(model, "euler", JUMP),
        }
    return {f"{run}, Euler": of(model, "euler"), f"{run}, second order": of(model, "heun")}


def tables(folder: Path) -> str:
    """Fréchet distance by sampler and calls: mean and standard deviation over seeds; and recall beside precision."""
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    parts = []
    for data in sorted({record["data"] for record in records}):
        cells: dict[str, dict[int, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
        own = [record for record in records if record["data"] == data]
        for figure in (figure for record in own for figure in record["figures"]):
            cells[figure["sampler"]][figure["calls"]].append(figure)
        rows, budgets = [], sorted({calls for by_calls in cells.values() for calls in by_calls})
        for sampler, by_calls in cells.items():
            row = {"sampler": sampler, "seeds": str(max(map(len, by_calls.values())))}
            row |= {f"{calls} calls": spread([each["frechet"] for each in by_calls[calls]]) for calls in budgets}
            last = by_calls[budgets[-1]]
            row |= {name: spread([each[name] for each in last], 2) for name in ("precision", "recall", "coverage")}
            rows.append(row)
        floor = own[0]["floor"]
        where = own[0]["environment"]
        parts.append(
            f"{data}: {own[0]['steps']} steps; held-out images have distance {floor['frechet']:.2f}, precision "
            f"{floor['precision']:.2f}, recall {floor['recall']:.2f}, coverage {floor['coverage']:.2f}. "
            f"{where['processor']}, {where['threads']} thread(s), {where['device']}.\n\n{markdown(rows)}"
        )
    return "\n\n".join(parts)


def spread(values: list[float], digits: int = 1) -> str:
    if not values:
        return "–"
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


if __name__ == "__main__":
    main()
