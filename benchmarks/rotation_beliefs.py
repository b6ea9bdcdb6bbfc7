"""Forms of the belief about a clean rotation: mixtures of M components, and fixed grids of rotations.

    python benchmarks/rotation_beliefs.py --threads 1 --output benchmarks/results/rotation_beliefs.json

A grid is a mixture, too: its centres are the points of a super-Fibonacci spiral, and the network predicts their logits.
All components have one concentration K = 1/r², where a ball of radius r has the volume of a point's share, or one that is
predicted with the logits; with offsets each centre is moved by a predicted rotation, too. Everything else is the library's.

- toy: the four components of rotations.py; the floor is the loss of the exact posterior.
- proteins: rotations between neighbouring residues, windows of 32 of them, of the packaged chains
  (`recipes.datasets.download_theseus`); held out are the families of the splits for validation and test.

Every form has the same transformer, and the same processor time to train. The loss is −log π(z|x) + log p(x|z), in nats
per rotation, with the same noise for all; ± is one standard error, of differences between forms for the same data. The
time of a step is that of the flow for one rotation, without the network.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from measure import environment, markdown, output_file, report
from rotations import Reference, network, sample, toy, toy_batches, train
from torch import Tensor

from gm_discrete import SO3Path, conditional_loss, quaternions
from gm_discrete.generators import Flow, Superposition
from gm_discrete.generators.kernels import Readout
from gm_discrete.generators.rotation_belief import RotationMixture
from gm_discrete.paths.continuous import Weights
from gm_discrete.paths.rotations import LEAST_LOG_K, MOST_LOG_K, spiral
from gm_discrete.paths.schedules import TimeLike

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

GENERATORS = {"flow": 0.5, "jump": 0.5}
FORMS: dict[str, dict[str, Any]] = {
    "mixture of 4": {"num_components": 4},
    "mixture of 8": {"num_components": 8},
    "mixture of 16": {"num_components": 16},
    "mixture of 32": {"num_components": 32},
    "mixture of 64": {"num_components": 64},
    "mixture of 128": {"num_components": 128},
    "grid of 576": {"num_points": 576, "form": "fixed"},
    "grid of 576, K predicted": {"num_points": 576, "form": "common"},
    "grid of 576, K and offsets predicted": {"num_points": 576, "form": "offsets"},
    "grid of 4,608": {"num_points": 4608, "form": "fixed"},
    "grid of 4,608, K predicted": {"num_points": 4608, "form": "common"},
}
BASE = "mixture of 8"
WINDOW = 32
QUICK: dict[str, Any] = {
    "forms": ["mixture of 8", "grid of 576, K and offsets predicted"], "seconds": 0.05, "batch_size": 4, "windows": 2,
    "hidden_size": 16, "test": 8, "samples": 20, "calls": 2, "timed": 2,
}  # fmt: skip


class GridSO3Path(SO3Path):
    """An `SO3Path` whose network predicts logits of fixed rotations.

    Args:
        num_points: G of the grid.
        form: `"fixed"`; `"common"`: one concentration is predicted with the logits; `"offsets"`: and where each point is.
        generators: as those of `SO3Path`.
    """

    type_name = "grid_so3"

    def __init__(self, num_points: int = 576, form: str = "fixed", generators: Weights | None = None) -> None:
        super().__init__(generators)
        self.num_points, self.form = num_points, form

    @cached_property
    def radius(self) -> float:
        """r in half angles: (4/3) π r³ is the share of a point in half of S³, whose volume is π²."""
        return (3 * math.pi / (4 * self.num_points)) ** (1 / 3)

    @cached_property
    def points(self) -> Tensor:
        return spiral(self.num_points)

    @property
    def heads(self) -> dict[str, int]:
        more = {"fixed": 0, "common": 1, "offsets": 1 + 3 * self.num_points}
        return {"belief": self.num_points + more[self.form]}

    def output(self, head: str, raw: Tensor, x: Tensor, t: TimeLike) -> Tensor:
        return raw

    def mixture(self, rows: Tensor) -> RotationMixture:
        """The belief of rows [n, …]: logits, log K + 2 log r, and offsets in units of r."""
        logits, count = rows[..., : self.num_points].double(), self.num_points
        k = torch.full_like(logits[..., :1], self.radius**-2)
        if self.form != "fixed":
            log_k = rows[..., count : count + 1].double() - 2 * math.log(self.radius)
            k = log_k.clamp(LEAST_LOG_K, MOST_LOG_K).exp()
        centers = self.points.to(rows.device).expand(*logits.shape, 4)
        if self.form == "offsets":
            offsets = 2 * self.radius * rows[..., count + 1 :].double().unflatten(-1, (count, 3))
            centers = quaternions.multiply(centers, quaternions.exp(offsets))
        return RotationMixture(logits, k.expand(logits.shape), centers)

    def marginal(
        self, readout: Readout | Tensor, x: Tensor, t: TimeLike, t_next: TimeLike | None = None, *, check: bool = True
    ) -> Superposition:
        rows = readout.flatten(0, -2) if isinstance(readout, Tensor) else readout("belief")
        return self.generator(self.mixture(rows), x, t, t_next)

    def turned(self, head: str, output: Tensor, by: Tensor) -> Tensor:
        raise ValueError(
            f"head={head!r}: a grid does not turn with the frame; predict rotations in the frame of the data"
        )


def path_of(form: str) -> SO3Path:
    options = FORMS[form]
    return GridSO3Path(**options, generators=GENERATORS) if "form" in options else SO3Path(GENERATORS, **options)


# Data


def windows(chains: Any, length: int = WINDOW) -> Tensor:
    """Rotations from each residue to the next, cut into windows [N, length, 4]."""
    found = []
    for chain in chains:
        q = torch.as_tensor(np.asarray(chain["rotation"]), dtype=torch.float64)
        steps = quaternions.multiply(quaternions.conjugate(q[:-1]), q[1:])
        found.extend(quaternions.normalized(steps).float().split(length))
    return torch.stack([window for window in found if len(window) == length])


def proteins(cache_dir: str | None) -> tuple[Tensor, Tensor]:
    """Windows for training, and held out."""
    from recipes.datasets.theseus import load_theseus

    train_, validation, test = (windows(load_theseus(split, cache_dir)) for split in ("train", "validation", "test"))
    return train_, torch.cat([validation, test])


def shuffled(data: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Batches of random rows, without end."""
    rng = torch.Generator().manual_seed(seed)
    while True:
        yield data[torch.randint(len(data), (size,), generator=rng)]


@final
class Toy:
    """The four components of rotations.py: `test` data, scored `size` at a time, and the loss of the exact posterior."""

    def __init__(self, args: argparse.Namespace) -> None:
        rng, exact = torch.Generator().manual_seed(args.seed), toy(GENERATORS)
        self.test, self.size = exact.sample(16 * args.test, rng).float(), min(128, 8 * args.test)
        self.floor = float(losses(exact, self.test, self.size).mean())
        self.reference = Reference(20 * args.samples, rng)

    def batches(self, args: argparse.Namespace) -> Iterator[Tensor]:
        return toy_batches(args.batch_size, args.seed)


@final
class Proteins:
    """Windows of the packaged chains, likewise; their posterior is not known."""

    floor = None

    def __init__(self, args: argparse.Namespace) -> None:
        self.train, test = proteins(args.cache_dir)
        rng = torch.Generator().manual_seed(args.seed)
        self.test, self.size = test[torch.randperm(len(test), generator=rng)[: args.test]], min(8, args.test // 2)

    def batches(self, args: argparse.Namespace) -> Iterator[Tensor]:
        return shuffled(self.train, args.windows, args.seed)


# Figures


@torch.no_grad()
def losses(process: Any, data: Tensor, size: int, seed: int = 1) -> Tensor:
    """The held-out loss of parts of `size` rows, the same noise for all processes."""
    rng = torch.Generator().manual_seed(seed)
    return torch.stack([conditional_loss(process, part, rng=rng).double() for part in data.split(size)])


@torch.no_grad()
def step_time(path: SO3Path, number: int) -> float:
    """Seconds of processor time of a step of the flow, for each rotation."""
    rng = torch.Generator().manual_seed(0)
    x, t = path.prior((number, 1, 4), rng), torch.full((number,), 0.5, dtype=torch.float64)
    rows = path.output("belief", torch.randn((number, path.heads["belief"]), generator=rng), x, t)
    start = time.process_time()
    flow = path.marginal(rows[:, None], x, t, t + 0.05).parts["flow"]
    assert isinstance(flow, Flow)
    _ = flow.mean  # parts are made when they are read
    return (time.process_time() - start) / number


def figures(form: str, task: Toy | Proteins, args: argparse.Namespace) -> dict[str, Any]:
    """Updates, held-out losses and the time of a step; and distances of samples, where they are known and cheap."""
    path = path_of(form)
    model = network(path, task.test.shape[1], args.hidden_size, seed=args.seed)
    figure: dict[str, Any] = {"updates": train(model, task.batches(args), args.seconds, args.seed)}
    figure["losses"] = losses(model, task.test, task.size).tolist()
    figure["step"] = step_time(path, args.timed)
    if isinstance(task, Toy) and "num_components" in FORMS[form]:
        with torch.no_grad():
            x = sample(model, (GENERATORS, "tau_leaping", "quadratic"), args.calls, args.samples, args.seed)
        figure |= task.reference.distances(x)
    return figure


def compared(own: Tensor, base: Tensor) -> tuple[float, float]:
    """The mean of the differences, and its standard error."""
    apart = own - base
    return float(apart.mean()), float(apart.std() / math.sqrt(len(apart)))


def table(figures: Mapping[str, dict[str, Any]], floor: float | None) -> str:
    base = torch.tensor(figures[BASE]["losses"]) if BASE in figures else None
    rows = []
    for form, found in figures.items():
        own = torch.tensor(found["losses"])
        error = float(own.std() / math.sqrt(len(own)))
        row = {"belief": form, "updates": f"{found['updates']:,}", "loss": f"{float(own.mean()):.3f} ± {error:.3f}"}
        if base is not None:
            gap, width = compared(own, base)
            row[f"against {BASE}"] = "–" if form == BASE else f"{gap:+.3f} ± {width:.3f}"
        if floor is not None:
            row["above the exact posterior"] = f"{float(own.mean()) - floor:.3f}"
        if any("ks" in each for each in figures.values()):
            row["KS"] = f"{found['ks']:.3f}" if "ks" in found else "–"
        rows.append(row | {"μs per step": f"{1e6 * found['step']:,.0f}"})
    return markdown(rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--data", nargs="+", choices=("toy", "proteins"), default=["toy", "proteins"])
    parser.add_argument("--cache_dir", help="where the protein chains are; the Hugging Face cache by default")
    parser.add_argument("--seconds", type=float, default=60, help="of processor time to train each form")
    parser.add_argument("--batch_size", type=int, default=256, help="of the toy")
    parser.add_argument("--windows", type=int, default=16, help="of a batch of proteins")
    parser.add_argument("--hidden_size", type=int, default=64)
    parser.add_argument("--test", type=int, default=512, help="held-out windows; 16 times as many rotations of the toy")
    parser.add_argument("--samples", type=int, default=2000, help="of each mixture, for KS on the toy")
    parser.add_argument("--calls", type=int, default=32, help="network calls for a sample: flow and jump")
    parser.add_argument("--timed", type=int, default=64, help="rotations of the step whose time is taken")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help=f"tiny sizes: {QUICK}")
    parser.add_argument("--output", type=output_file, help="JSON file with every setting and figure")
    argv = sys.argv[1:] if argv is None else argv
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    started, found, tables = time.perf_counter(), {}, []
    for name in args.data:
        task = Toy(args) if name == "toy" else Proteins(args)
        found[name] = {"floor": task.floor, "forms": {}}
        for form in args.forms:
            figure = found[name]["forms"][form] = figures(form, task, args)
            mean = sum(figure["losses"]) / len(figure["losses"])
            print(name, form, figure["updates"], mean, task.floor, file=sys.stderr, flush=True)
        tables.append(table(found[name]["forms"], task.floor))
    record = {
        "environment": environment("cpu", __file__, argv), "settings": vars(args) | {"output": str(args.output)},
        "results": found, "wall": time.perf_counter() - started,
    }  # fmt: skip
    report(record, tables, args.output)


if __name__ == "__main__":
    main()
