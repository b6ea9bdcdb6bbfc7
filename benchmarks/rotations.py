"""Errors of flow, jump, diffusion and superpositions of rotations against the number of network calls.

    python benchmarks/rotations.py --threads 1 --output benchmarks/results/rotations.json
    python benchmarks/rotations.py --threads 1 --length 4 --samples 1200 --output benchmarks/results/rotations_joint.json
    python benchmarks/rotations.py --picture benchmarks/figures/rotations.png

Data: four symmetrised von Mises–Fisher components of different width and weight. Their exact posterior stands in for the
network, so that all that is wrong with the samples is the sampler's doing; and one network, trained once, serves every
generator. The geodesic path has a network of its own, trained as long; its posterior has no closed form.

The distance is that of Kolmogorov and Smirnov (KS) between the half angles of samples and of data to a rotation, the
largest over eight rotations: the four centres and four at random. Beside it stands the total variation (TV) over a
partition of all rotations: by the likeliest component, and by twelve shells around its centre. Samples of the data
themselves have a distance, too, the `noise`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from measure import environment, markdown, output_file, report
from torch import Tensor

from gm_discrete import (
    ExactRotationModel,
    GeodesicSO3Path,
    GMConfig,
    GMModel,
    SO3Path,
    conditional_loss,
    quaternions,
    simulate,
    time_grid,
)
from gm_discrete.generators.von_mises_fisher import log_density
from gm_discrete.paths.rotations import RotationPath

TILTS = torch.tensor([[0.8, 0, 0], [0, 0.9, 0], [-0.7, 0, 0], [0, -0.8, 0]], dtype=torch.float64)
TURNS = torch.tensor([[0, 0, 0], [0, 0, 1.5], [0, 0, 3.0], [0, 0, 4.7]], dtype=torch.float64)
"""Each component has its centre at a turn about the z-axis, and then a tilt of that axis: rotation vectors."""
CONCENTRATIONS, WEIGHTS = (3.0, 12.0, 60.0, 400.0), (0.35, 0.3, 0.2, 0.15)
ALL = {"flow": 0.4, "jump": 0.3, "diffusion": 0.3}
METHODS: dict[str, tuple[dict[str, float], str, str]] = {  # generators, sampler, spacing of the steps
    "flow": ({"flow": 1.0}, "tau_leaping", "linear"),
    "flow, Heun, quadratic steps": ({"flow": 1.0}, "heun", "quadratic"),
    "jump": ({"jump": 1.0}, "tau_leaping", "geometric"),
    "jump, even steps": ({"jump": 1.0}, "tau_leaping", "linear"),
    "diffusion": ({"diffusion": 1.0}, "tau_leaping", "linear"),
    "flow + jump": ({"flow": 0.5, "jump": 0.5}, "tau_leaping", "linear"),
    "flow + jump, quadratic steps": ({"flow": 0.5, "jump": 0.5}, "tau_leaping", "quadratic"),
}
GEODESIC = {"geodesic path, flow": ({"flow": 1.0}, "tau_leaping", "linear")}
SHELLS = 12
QUICK: dict[str, Any] = {
    "calls": [2, 4], "network_calls": [2], "samples": 40, "network_samples": 20, "reference": 500, "seconds": 0.05,
    "hidden_size": 16, "repeats": 2,
}  # fmt: skip


def toy(generators: Mapping[str, float], length: int = 1) -> ExactRotationModel:
    """The exact model of the data, with these generators. Position l has the centres in an order that is moved on by l."""
    centers = quaternions.multiply(quaternions.exp(TILTS), quaternions.exp(TURNS))
    centers = torch.stack([centers.roll(position, 0) for position in range(length)], 1)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    return ExactRotationModel(SO3Path(dict(generators)), centers, torch.tensor(CONCENTRATIONS), weights)


class Reference:
    """Data to compare samples with: sorted half angles to eight rotations, and the shares of the cells of a partition."""

    def __init__(self, number: int, rng: torch.Generator, length: int = 1) -> None:
        self.model, self.number_of_shells = toy(ALL, length), SHELLS if length == 1 else 1
        others = quaternions.uniform((4, 1), rng, dtype=torch.float64).expand(-1, length, -1)
        self.to = torch.cat([self.model.centers, others]).transpose(0, 1)  # [L, 8, 4]
        data = self.model.sample(number, rng)
        self.angles = self._angles(data)
        nearest, angle = self._component(data)
        levels = torch.arange(1, self.number_of_shells, dtype=torch.float64) / self.number_of_shells
        self.shells = torch.stack([angle[nearest[:, 0] == j, 0].quantile(levels) for j in range(len(TILTS))])
        self.shares = self._shares(data)

    def _angles(self, x: Tensor) -> Tensor:
        """Half angles to the eight rotations of each position, each sorted: [N, 8 L]."""
        return quaternions.half_angle(x[:, :, None], self.to).flatten(1).sort(0).values

    def _component(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest component of each rotation by itself, and the half angle to its centre: [N, L]."""
        angles = quaternions.half_angle(x[:, :, None], self.to[:, : len(TILTS)])
        component = (self.model.weights.log() + log_density(angles, self.model.concentration)).argmax(-1)
        return component, angles.gather(2, component[..., None])[..., 0]

    def _shares(self, x: Tensor) -> Tensor:
        component, angle = self._component(x)
        cell = (angle[:, :1] > self.shells[component[:, 0]]).sum(-1)
        for place in component.T:
            cell = cell * len(TILTS) + place
        return torch.bincount(cell, minlength=self.number_of_shells * len(TILTS) ** x.shape[1]).double() / len(x)

    def distances(self, x: Tensor) -> dict[str, float]:
        """KS and TV of samples [N, L, 4]."""
        x, gaps = x.double(), []
        for mine, data in zip(self._angles(x).T.contiguous(), self.angles.T.contiguous(), strict=True):
            reached = torch.searchsorted(data, mine, right=True).double() / len(data)
            steps = torch.arange(len(mine) + 1, dtype=torch.float64) / len(mine)
            gaps.append(float(torch.maximum((steps[1:] - reached).max(), (reached - steps[:-1]).max())))
        return {"ks": max(gaps), "tv": float((self._shares(x) - self.shares).abs().sum() / 2)}

    def noise(self, number: int, repeats: int, rng: torch.Generator) -> dict[str, float]:
        """Mean distances of samples of the data themselves."""
        found = [self.distances(self.model.sample(number, rng)) for _ in range(repeats)]
        return {name: sum(each[name] for each in found) / repeats for name in found[0]}


# Sampling


def sample(
    model: Any, method: tuple[dict[str, float], str, str], calls: int, number: int, seed: int, length: int = 1
) -> Tensor:
    """Samples [number, length, 4] in as many network calls; a Heun step takes two, and the last one is an Euler step."""
    generators, sampler, spacing = method
    rng = torch.Generator().manual_seed(seed)
    path: RotationPath = model.path
    steps = (calls + 1) // 2 if sampler == "heun" else calls
    x_0 = path.prior((number, length, 4), rng)
    grid = time_grid(path, steps, spacing)
    if isinstance(model, ExactRotationModel):  # which has the generators already
        return simulate(model, x_0, grid, rng, sampler)
    return simulate(model, x_0, grid, rng, sampler, generators=generators)


@torch.no_grad()
def curves(
    models: Mapping[str, Any], reference: Reference, calls: list[int], number: int, seed: int, length: int = 1
) -> Iterator[dict[str, Any]]:
    """Distances of every method and number of calls."""
    for name, method in (METHODS | GEODESIC).items():
        if name in models:
            for budget in calls:
                start = time.process_time()
                x = sample(models[name], method, budget, number, seed, length)
                seconds = time.process_time() - start
                found = {"method": name, "calls": budget, **reference.distances(x), "seconds": seconds}
                print(found, file=sys.stderr, flush=True)
                yield found


def error_table(figures: list[dict[str, Any]], noise: Mapping[str, float]) -> str:
    """KS (TV) by method and calls."""
    budgets = sorted({figure["calls"] for figure in figures})
    rows = []
    for method in dict.fromkeys(figure["method"] for figure in figures):
        own = {figure["calls"]: figure for figure in figures if figure["method"] == method}
        cells = {f"{calls} calls": f"{own[calls]['ks']:.3f} ({own[calls]['tv']:.3f})" for calls in budgets}
        rows.append({"KS (TV)": method, **cells})
    last = {f"{calls} calls": f"{noise['ks']:.3f} ({noise['tv']:.3f})" for calls in budgets}
    return markdown([*rows, {"KS (TV)": "noise", **last}])


# Networks


def network(path: RotationPath, length: int, hidden_size: int, layers: int = 2, seed: int = 0) -> GMModel:
    """A transformer on sequences of `length` rotations."""
    torch.manual_seed(seed)
    config = GMConfig(
        path=path, hidden_size=hidden_size, num_hidden_layers=layers, num_attention_heads=max(1, hidden_size // 32),
        max_position_embeddings=length,
    )  # fmt: skip
    return GMModel(config)


def train(model: GMModel, batches: Iterator[Tensor], seconds: float, seed: int = 0, lr: float = 2e-3) -> int:
    """Trains for that much processor time, with Adam and a learning rate that falls to 0; returns the updates."""
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    start, updates, spent = time.process_time(), 0, 0.0
    model.train()
    while spent < seconds:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, updates / 20) * (1 - spent / seconds)
        loss = conditional_loss(model, next(batches), rng=rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        updates, spent = updates + 1, time.process_time() - start
    model.eval()
    return updates


def toy_batches(size: int, seed: int = 0) -> Iterator[Tensor]:
    """Fresh data [size, 1, 4], without end."""
    rng, model = torch.Generator().manual_seed(seed), toy(ALL)
    while True:
        yield model.sample(size, rng).float()


# The whole


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, nargs="+", default=[4, 8, 16, 32, 64], help="with the posterior")
    parser.add_argument("--network_calls", type=int, nargs="+", default=[4, 8, 16, 32], help="with a network")
    parser.add_argument("--length", type=int, default=1, help="L; with more than one rotation no network is trained")
    parser.add_argument("--samples", type=int, default=4000, help="with the exact posterior")
    parser.add_argument("--network_samples", type=int, default=2000, help="with a network")
    parser.add_argument("--reference", type=int, default=200_000, help="data that samples are compared with")
    parser.add_argument(
        "--repeats", type=int, default=20, help="samples of the data, of whose distance the noise is the mean"
    )
    parser.add_argument("--seconds", type=float, default=50, help="of processor time to train a network")
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--hidden_size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help=f"tiny sizes: {QUICK}")
    parser.add_argument("--picture", type=output_file, help="PNG file of the processes, and nothing else")
    parser.add_argument("--output", type=output_file, help="JSON file with every setting and figure")
    argv = sys.argv[1:] if argv is None else argv
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.picture is not None:
        from rotation_pictures import picture

        picture(args.picture, number=20 if args.quick else 500, steps=4 if args.quick else 64)
        return
    started, rng = time.perf_counter(), torch.Generator().manual_seed(args.seed)
    reference, results = Reference(args.reference, rng, args.length), {}
    noise = {name: reference.noise(number, args.repeats, rng) for name, number in samples_of(args).items()}
    posteriors = {name: toy(generators, args.length) for name, (generators, *_) in METHODS.items()}
    results["exact"] = list(curves(posteriors, reference, args.calls, args.samples, args.seed, args.length))
    updates = {}
    if "network" in noise:
        learned, updates = networks(args)
        calls, number = args.network_calls, args.network_samples
        results["network"] = list(curves(learned, reference, calls, number, args.seed))
    record = {
        "environment": environment("cpu", __file__, argv),
        "settings": vars(args) | {"output": str(args.output), "picture": None},
        "noise": noise, "updates": updates, **results, "wall": time.perf_counter() - started,
    }  # fmt: skip
    report(record, [error_table(results[name], noise[name]) for name in results], args.output)


def samples_of(args: argparse.Namespace) -> dict[str, int]:
    """By what takes the place of the posterior, the number of samples."""
    return {"exact": args.samples} | ({"network": args.network_samples} if args.length == 1 else {})


def networks(args: argparse.Namespace) -> tuple[dict[str, GMModel], dict[str, int]]:
    """By method a trained network, the same for all but the geodesic path; and their updates."""
    model = network(SO3Path(ALL), 1, args.hidden_size, seed=args.seed)
    geodesic = network(GeodesicSO3Path(), 1, args.hidden_size, seed=args.seed)
    updates = {
        name: train(each, toy_batches(args.batch_size, args.seed), args.seconds, args.seed)
        for name, each in {"SO3Path": model, "GeodesicSO3Path": geodesic}.items()
    }
    return dict.fromkeys(METHODS, model) | dict.fromkeys(GEODESIC, geodesic), updates


if __name__ == "__main__":
    main()
