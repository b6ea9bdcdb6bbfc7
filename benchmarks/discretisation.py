"""Error of the samplers of continuous states against network calls, where the marginal generator is known.

    python benchmarks/discretisation.py --threads 1 --output discretisation.json --plot benchmarks/figures/discretisation.png
    python benchmarks/discretisation.py --peers --threads 1 --output peers.json

The exact posterior of a Gaussian mixture stands in for the network, so that all that is wrong with the samples is the
sampler's doing. Data: `line`, two modes of a number, and `plane`, three of two correlated numbers. The distance is that of
Kolmogorov and Smirnov (KS) from the distribution p_t in closed form, in the plane the largest of four projections, at
about t = ½ and at the end. Samples of the distribution itself have a distance, too, the `noise` (measured); it adds to
a true error nearly in quadrature, so that √(KS² − noise²) is the `error` that is compared.

Methods of one call a step are run on each spacing; `heun`, which takes two, on the path's own. Adaptive steps and dopri5
are given tolerances; their calls are means over the sequences. The ratio compares them to the best of all fixed grids at
the same number of calls, found between its budgets on straight lines of the logarithms.

With `--peers` instead: the flow alone, of one and the same velocity function, by this library, flow_matching's `ODESolver`
and torchdiffeq's `odeint`, with which the examples of torchcfm sample (it has no solver of its own). KS at equal calls with
the exact velocity; time of a step with a network, the solvers taking turns.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import environment, interleaved, markdown, medians, output_file, report
from torch import Tensor

from gm_discrete import (
    Adaptive,
    CondOTSchedule,
    ExactGaussianModel,
    GaussianPath,
    GMConfig,
    GMModel,
    TrigonometricSchedule,
    simulate,
)
from gm_discrete.paths.affine import AffineSchedule
from gm_discrete.samplers import time_grid

SCHEDULES: dict[str, AffineSchedule] = {"condot": CondOTSchedule(), "trigonometric": TrigonometricSchedule()}
KINDS = {
    "flow": {"flow": 1.0},
    "diffusion": {"diffusion": 1.0},
    "jump": {"jump": 1.0},
    "flow + jump": {"flow": 0.5, "jump": 0.5},
}
DATA = {  # means, standard deviations, weights
    "line": ([[-1.5], [1.0]], [0.3, 0.5], [0.35, 0.65]),
    "plane": ([[-1.4, -1.0], [0.1, 0.4], [1.3, 1.1]], [0.3, 0.45, 0.25], [0.4, 0.35, 0.25]),
}
SPACINGS = ("linear", "quadratic", "geometric")
QUICK: dict[str, Any] = {
    "budgets": [4, 8], "samples": 200, "tolerances": [0.1, 0.03], "ode_tolerances": [1e-2], "repeats": 3,
    "calls": [4], "rounds": 1, "batch_sizes": [2], "hidden_size": 16, "layers": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One setting of a method: a number of steps, or a tolerance. `error` is 0 where KS is within the noise."""

    setting: float
    calls: int
    middle: float
    end: float
    error: float


Curves = dict[str, list[Point]]


class MixtureOnPath:
    """A Gaussian mixture on a path: exact models, distribution functions, and the noise of n samples."""

    def __init__(self, data: str, schedule: AffineSchedule) -> None:
        means, stds, weights = (torch.tensor(v, dtype=torch.float64) for v in DATA[data])
        self.means, self.stds, self.weights, self.schedule = means, stds, weights, schedule
        size = means.shape[1]
        angles = torch.arange(4 if size == 2 else 1, dtype=torch.float64) * math.pi / 4
        self.axes = torch.stack([angles.cos(), angles.sin()])[:size]  # [size, directions]

    def model(self, generators: Mapping[str, float]) -> ExactGaussianModel:
        path = GaussianPath(dict(generators), schedule=self.schedule)
        return ExactGaussianModel(path, self.means[:, None], self.stds, self.weights)

    def distance(self, x: Tensor, t: float) -> float:
        """KS of samples [N, 1, size] from p_t, the largest over the projections."""
        time = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = self.schedule.alpha(time), self.schedule.sigma(time)
        along = (x.flatten(1).double() @ self.axes).sort(0).values  # [N, directions]
        std = ((alpha * self.stds) ** 2 + sigma**2).sqrt()
        w = (along[..., None] - alpha * (self.means @ self.axes).T) / std
        function = (self.weights * torch.special.ndtr(w)).sum(-1)
        i = torch.arange(len(x) + 1, dtype=torch.float64)[:, None] / len(x)
        return float(torch.maximum((i[1:] - function).max(), (function - i[:-1]).max()))

    def noise(self, number: int, repeats: int, rng: torch.Generator) -> float:
        """Mean distance of samples of the distribution itself."""
        model = self.model(KINDS["flow"])
        return sum(self.distance(model.sample(number, rng), 1.0) for _ in range(repeats)) / repeats


def methods(kind: str, args: argparse.Namespace) -> Iterator[tuple[str, str, str | None, float]]:
    """(label, method, spacing or None, number of steps or tolerance)."""
    for budget in args.budgets:
        for spacing in SPACINGS:
            yield f"one call, {spacing}", "tau_leaping", spacing, budget
        if kind != "jump":  # of which it knows nothing that one call does not
            yield "heun", "heun", None, (budget + 1) // 2  # its last step takes one call
    for tolerance in args.tolerances:
        yield "adaptive", "adaptive", None, tolerance
    if kind == "flow":
        for tolerance in args.ode_tolerances:
            yield "dopri5", "dopri5", None, tolerance


def curves(mixture: MixtureOnPath, kind: str, args: argparse.Namespace, noise: float) -> Curves:
    """KS of every method of a kind of generator."""
    found: Curves = {}
    model = mixture.model(KINDS[kind])
    for label, method, spacing, setting in methods(kind, args):
        rng = torch.Generator().manual_seed(args.seed)
        x_0 = model.path.prior((args.samples, 1, mixture.means.shape[1]), rng).double()
        own = spacing is None and method != "heun"
        times = torch.tensor([0, 0.5, 1.0]) if own else time_grid(model.path, int(setting), spacing)
        middle = int((times < 0.5).sum())
        sampler = {"type": method, "tolerance": setting} if own else method
        run = simulate(model, x_0, times, rng, sampler, save_at=[middle], return_info=True)
        end = mixture.distance(run.x, 1.0)
        error = math.sqrt(max(end**2 - noise**2, 0.0))
        between = mixture.distance(run.states[0], float(times[middle]))
        found.setdefault(label, []).append(
            Point(setting, round(float(run.network_calls.double().mean())), between, end, error)
        )
    return found


def best_fixed(found: Curves, calls: int, noise: float) -> tuple[float, str]:
    """(error, name) of the best fixed grid at that number of calls; infinite beyond its budgets."""
    errors = []
    for name, points in found.items():
        if name not in ("adaptive", "dopri5"):
            known = sorted((p.calls, max(p.error, noise / 4)) for p in points)  # less cannot be told from nothing
            for (c, e), (c_next, e_next) in itertools.pairwise(known):
                if c <= calls <= c_next:
                    part = math.log(calls / c) / math.log(c_next / c)
                    errors.append((e * (e_next / e) ** part, name))
    return min(errors, default=(math.inf, ""))


def tables(found: Mapping[str, Curves], args: argparse.Namespace, noise: float) -> list[str]:
    """KS at the end (in the middle) by calls; and adaptive steps against the best fixed grid."""
    fixed, own = [], []
    for kind, of_kind in found.items():
        for name, points in of_kind.items():
            if name in ("adaptive", "dopri5"):
                for point in points:
                    row = {"": f"{kind}, {name}", "tolerance": f"{point.setting:g}", "calls": str(point.calls)}
                    row |= {"KS (at ½)": f"{point.end:.4f} ({point.middle:.4f})"}
                    error, best = best_fixed(of_kind, point.calls, noise)
                    ratio = max(point.error, noise / 4) / error
                    compared = f"{math.hypot(error, noise):.4f} ({best})" if best else "–"
                    own.append(row | {"best fixed grid": compared, "error ratio": f"{ratio:.2f}" if best else "–"})
            else:
                cells = {
                    str(budget): f"{p.end:.4f} ({p.middle:.4f})" for budget, p in zip(args.budgets, points, strict=True)
                }
                fixed.append({"calls": f"{kind}, {name}", **cells})
    return [markdown(fixed), markdown(own)]


# Picture

LOOKS = {  # colour, line, marker
    "one call, linear": ("#0072B2", "-", ""), "one call, quadratic": ("#0072B2", "--", ""),
    "one call, geometric": ("#0072B2", ":", ""), "heun": ("#009E73", "-", ""),
    "adaptive": ("#D55E00", "-", "o"), "dopri5": ("#CC79A7", "-", "s"),
}  # fmt: skip


def picture(panels: Mapping[str, Mapping[str, Curves]], noise: Mapping[str, float], file: Path) -> None:
    """A row for each distribution, a column for each kind: KS at the end against calls. Grey: less than the noise."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 2.8 * len(panels) + 0.6), layout="constrained")
    axes = figure.subplots(len(panels), len(KINDS), squeeze=False, sharex=True, sharey=True)
    handles: dict[str, Any] = {}
    for row, (title, kinds) in zip(axes, panels.items(), strict=True):
        for axis, (kind, found) in zip(row, kinds.items(), strict=False):
            for name, points in found.items():
                color, style, marker = LOOKS[name]
                points = sorted(points, key=lambda p: p.calls)
                calls, ends = [p.calls for p in points], [p.end for p in points]
                width = 2.2 if name == "adaptive" else 1.2
                (handles[name],) = axis.loglog(calls, ends, color=color, ls=style, marker=marker, ms=4, lw=width)
            axis.axhspan(noise[title] / 3, noise[title], color="0.85", zorder=0)
            axis.set_title(f"{title}: {kind}", fontsize=9)
            axis.grid(which="major", alpha=0.3)
        row[0].set_ylabel("KS at t = 1")
    for axis in axes[-1]:
        axis.set_xlabel("network calls")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(file.name + ".draft")
    figure.savefig(draft, format="png", dpi=80)
    draft.replace(file)


# Peers

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x [B, …], t, a number) → u
TABLEAUX = {"euler": ("euler", 1), "midpoint": ("midpoint", 2), "heun": ("heun2", 2)}
"""By name that of torchdiffeq, and calls of a step."""


def solvers(model: Any, end: float) -> dict[str, Callable[[Tensor, int], Tensor]]:
    """By name (x_0, steps) → the state at `end`, of an even grid."""
    from flow_matching.solver import ODESolver
    from torchdiffeq import odeint

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return model.generator(x, t.double().expand(len(x))).parts["flow"].velocity

    def ours(method: str) -> Callable[[Tensor, int], Tensor]:
        return lambda x, n: simulate(model, x, torch.linspace(0, end, n + 1, dtype=torch.float64), None, method)

    def meta(method: str) -> Callable[[Tensor, int], Tensor]:
        solver = ODESolver(velocity_model=lambda x, t, **_: velocity(x, t))
        times = torch.tensor([0.0, end], dtype=torch.float64)
        return lambda x, n: solver.sample(x, step_size=end / n, method=method, time_grid=times)  # pyright: ignore

    def diffeq(method: str) -> Callable[[Tensor, int], Tensor]:
        def solve(x: Tensor, n: int) -> Tensor:
            times: Any = torch.linspace(0, end, n + 1, dtype=torch.float64)
            solution: Any = odeint(lambda t, y: velocity(y, t), x, times, method=method)
            return solution[-1]

        return solve

    found = {f"{name}, gm_discrete": ours(name) for name in ("euler", "heun")}
    for name, (method, _) in TABLEAUX.items():
        found |= {f"{name}, flow_matching": meta(method), f"{name}, torchdiffeq": diffeq(method)}
    return found


STEPS = 4
"""That are timed together."""


def steps_of(model: GMModel, x: Tensor, end: float) -> dict[str, Callable[[], object]]:
    """By solver, `STEPS` of its steps; and as many calls of the network."""
    t = torch.full((len(x),), 0.5, dtype=torch.float64)
    timed: dict[str, Callable[[], object]] = {
        name: partial(solve, x, STEPS) for name, solve in solvers(model, end).items()
    }
    timed["network alone, one call"] = lambda: [model.generator(x, t) for _ in range(STEPS)]
    return timed


@torch.no_grad()
def peers(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """KS of the flow at equal calls, and the time of a step."""
    mixture, kinds = MixtureOnPath("line", CondOTSchedule()), KINDS["flow"]
    exact = mixture.model(kinds)
    end = 1 - exact.path.stop  # where every velocity is finite
    rng = torch.Generator().manual_seed(args.seed)
    x_0 = exact.path.prior((args.samples, 1, 1), rng).double()
    quality: dict[str, dict[str, float]] = {}
    for name, solve in solvers(exact, end).items():
        each = TABLEAUX[name.split(",")[0]][1]
        quality[name] = {str(calls): mixture.distance(solve(x_0, max(calls // each, 1)), end) for calls in args.calls}
    controlled: dict[str, list[float]] = {}
    for tolerance in args.tolerances:
        run = simulate(exact, x_0, [0.0, end], None, Adaptive(tolerance=tolerance), return_info=True)
        controlled[f"{tolerance:g}"] = [float(run.network_calls.double().mean()), mixture.distance(run.x, end)]
    seconds: dict[str, dict[str, float]] = {}
    for batch in args.batch_sizes:
        timed = steps_of(network(args), torch.randn(batch, args.length, args.channels), end)
        for function in timed.values():
            function()
        seconds[str(batch)] = {
            name: value / STEPS for name, value in medians(interleaved(timed, args.rounds, "cpu")).items()
        }
    rows = [
        {"solver": name, **{f"KS, {calls} calls": f"{v:.4f}" for calls, v in quality.get(name, {}).items()}}
        | ({} if name in quality else {f"KS, {calls} calls": "–" for calls in args.calls})
        | {f"ms a step, batch {batch}": f"{1e3 * seconds[batch][name]:.2f}" for batch in seconds}
        for name in next(iter(seconds.values()))
    ]
    own = [{"tolerance": key, "calls": f"{calls:.0f}", "KS": f"{v:.4f}"} for key, (calls, v) in controlled.items()]
    record = {"quality": quality, "adaptive": controlled, "seconds per step": seconds}
    return record, [markdown(rows), f"Adaptive steps:\n\n{markdown(own)}"]


def network(args: argparse.Namespace) -> GMModel:
    """A transformer with random weights, the same for all."""
    torch.manual_seed(args.seed)
    path = GaussianPath(num_channels=args.channels)
    sizes = {"hidden_size": args.hidden_size, "num_hidden_layers": args.layers, "num_attention_heads": 2}
    return GMModel(GMConfig(path=path, max_position_embeddings=args.length, **sizes)).eval()


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--schedules", nargs="+", choices=list(SCHEDULES), default=list(SCHEDULES))
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--budgets", type=int, nargs="+", default=[10, 20, 50, 100, 200], help="network calls")
    parser.add_argument("--tolerances", type=float, nargs="+", default=[0.05, 0.02, 0.01, 0.005, 0.002, 0.001])
    parser.add_argument("--ode-tolerances", type=float, nargs="+", default=[1e-2, 1e-3, 1e-4], help="of dopri5")
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=20, help="samples that measure the noise")
    parser.add_argument("--peers", action="store_true", help="compare the flow's solvers instead")
    parser.add_argument("--calls", type=int, nargs="+", default=[10, 20, 50, 100], help="of the peers' KS")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds, of which the median is reported")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help=f"tiny settings: {QUICK}")
    parser.add_argument("--output", type=output_file, help="JSON file with every setting and figure")
    parser.add_argument("--plot", type=output_file, help="PNG file")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args(argv)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    record = {"benchmark": "discretisation", "environment": environment("cpu", __file__, argv), "settings": vars(args)}
    if args.peers:
        results, printed = peers(args)
        report(record | results, printed, args.output)
        return
    started, noise = time.perf_counter(), {}
    found: dict[str, dict[str, Curves]] = {}
    printed = [f"{args.samples} samples; KS at t = 1 (at about t = ½)."]
    for data in args.data:
        for schedule in args.schedules:
            title, mixture = f"{data}, {schedule}", MixtureOnPath(data, SCHEDULES[schedule])
            noise[title] = mixture.noise(args.samples, args.repeats, torch.Generator().manual_seed(args.seed))
            found[title] = {kind: curves(mixture, kind, args, noise[title]) for kind in args.kinds}
            printed += [f"### {title}\n\nNoise {noise[title]:.4f}.", *tables(found[title], args, noise[title])]
            print(f"{title}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    if args.plot is not None:
        picture(found, noise, args.plot)
    plain = {
        title: {
            kind: {name: list(map(asdict, points)) for name, points in each.items()} for kind, each in kinds.items()
        }
        for title, kinds in found.items()
    }
    report(record | {"noise": noise, "results": plain, "wall": time.perf_counter() - started}, printed, args.output)


if __name__ == "__main__":
    main()
