"""Error of the samplers' final distribution against network calls, on chains whose distribution can be summed.

    python benchmarks/chains.py --threads 1 --output chains.json --plot benchmarks/figures/chains.png

The exact posterior of a distribution over K^L sequences stands in for the network, so that the total variation TV between
the distribution that a sampler draws from and that of the data is the sampler's own error. It is held against two prices,
means per sequence:

    steps    evaluations if the network is run on every sequence whenever a step may need it (what the budgets count),
    calls    evaluations that the library makes: none for a sequence in which nothing happens.

They differ wherever steps are fine: masks cost at most L calls however fine the grid, mixture rates about L log N. The peer
runs the network in every step: for it steps are calls. So they are for exact methods, which know when a jump comes. Long
sequences have an event in every step, and steps are what they pay.

The distributions of fixed grids are products of step matrices made of the library's own generators: no sampling, no noise,
and the calls are exact too. Everything else is simulated. The TV of n samples of p from p itself is on average about

    noise = ½ Σ_x √(2 p(x) (1 − p(x)) / (π n)),

the mean of |normal| in each cell. It adds to a true error nearly in quadrature, so that √(TV² − noise²) is the `error`
that is compared, where it exceeds the noise. Comparisons interpolate log error against log price. The peer is
flow_matching's `MixtureDiscreteEulerSolver` with the same posterior, on the even grid, one call a step; it knows mixture
rates only.
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

import numpy as np
import torch
from flow_matching.path import MixtureDiscreteProbPath
from flow_matching.path.scheduler import PolynomialConvexScheduler
from flow_matching.solver import MixtureDiscreteEulerSolver
from flow_matching.utils import ModelWrapper
from measure import chance, environment, markdown, output_file, report
from torch import Tensor
from torch.nn.functional import one_hot

from gm_discrete import (
    Adaptive,
    Corrector,
    DetailedBalance,
    EntropyBounded,
    MaskedPath,
    MetricPath,
    MixturePath,
    ReMDM,
    TauLeaping,
    UniformPath,
    simulate,
    time_grid,
)
from gm_discrete.generators import Jump
from gm_discrete.generators.transport import Extrapolated
from gm_discrete.paths import FinitePath, TokenMixturePath
from gm_discrete.paths.check import ExactModel
from gm_discrete.samplers import SPACINGS

SYMBOLS = 3
ORDERED = [[float(abs(x - z)) for z in range(SYMBOLS)] for x in range(SYMBOLS)]
PATHS: dict[str, Callable[[], FinitePath]] = {
    "masked": lambda: MaskedPath(SYMBOLS + 1),
    "uniform, mixture rates": lambda: UniformPath(SYMBOLS, rates="mixture"),
    "uniform, reversal rates": lambda: UniformPath(SYMBOLS),
    "prior (.5, .3, .2), mixture rates": lambda: MixturePath(SYMBOLS, [0.5, 0.3, 0.2], rates="mixture"),
    "metric, ordered symbols, kinetic": lambda: MetricPath(SYMBOLS, distance=ORDERED),
}
CORRECTORS: dict[str, Corrector] = {
    "detailed balance ×1": DetailedBalance(1), "detailed balance ×3": DetailedBalance(3),
    "ReMDM": ReMDM(),
}  # fmt: skip
ORDERS = {f"order {name}": name for name in ("confidence", "margin", "entropy")}
OWN_STEPS = ("adaptive", "first hitting", "uniformization", "entropy bounded")
MIXED = "mixed batch, uniform, mixture rates"
FIRST_ORDER, SECOND_ORDER = (
    [f"{method}, {spacing}" for method in methods for spacing in SPACINGS]
    for methods in (("tau-leaping", "Euler"), ("trapezoidal",))
)
COMPARED = (*FIRST_ORDER[: len(SPACINGS)], *SECOND_ORDER, "flow_matching")
PRICES = ("steps", "calls")
FINE = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Calls of the fixed grids that are interpolated between, beside the budgets of the tables."""
BATCH = 25_000
"""Sequences simulated at a time: their joint with 81 data points then takes 16 MiB."""
QUICK: dict[str, Any] = {
    "lengths": [2], "budgets": [2, 4, 8], "samples": 2000, "expected_changes": [1.0, 0.25],
    "mixed_steps": 8, "entropy_bounds": [0.001],
}  # fmt: skip


class Enumerated(ExactModel):
    """The exact posterior of a distribution over all sequences of SYMBOLS^L, looked up in a table where a batch shares
    its time."""

    def __init__(self, path: FinitePath, probs: Tensor) -> None:
        length = round(math.log(len(probs), SYMBOLS))
        super().__init__(path, torch.tensor(list(itertools.product(range(SYMBOLS), repeat=length))), probs)
        self.length, self._states = length, super().states()
        self.evaluations = 0  # of sequences that are not yet at t = 1, whether the answer is read or not

    def states(self) -> Tensor:
        return self._states

    def likelihood(self, x: Tensor, t: Tensor) -> Tensor:
        """p_t(x|z) [B, Z], position by position: every z occurs, in the order of their digits."""
        table = self.path.table(t)[:, :SYMBOLS]  # [B, z, x]
        each = table.gather(2, x[:, None].expand(-1, SYMBOLS, -1))  # [B, z, L]
        joint = each[:, :, 0]
        for position in range(1, self.length):
            joint = (joint[:, :, None] * each[:, None, :, position]).flatten(1)
        return joint

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, **_: Any) -> Jump:
        self.evaluations += int((t < 1).sum())
        if bool((t == t[0]).all()):
            logits = self.logits(self.states(), at(self.states(), float(t[0])))[self.index(x)]
        else:  # at t = 1 nothing is left to ask
            logits = torch.zeros(*x.shape, self.path.vocab_size, dtype=torch.float64)
            logits[t < 1] = self.logits(x[t < 1], t[t < 1])
        return self.path.marginal(logits, x, t, t_next)


def at(x: Tensor, t: float) -> Tensor:
    return torch.full((len(x),), t, dtype=torch.float64)


def chain(path: FinitePath, length: int) -> Enumerated:
    """A random distribution far from uniform, of a fixed seed for each length."""
    rng = torch.Generator().manual_seed({3: 1, 4: 5}.get(length, 0))
    return Enumerated(path, torch.rand(SYMBOLS**length, generator=rng, dtype=torch.float64) ** 4)


@dataclass(frozen=True)
class Point:
    """One setting of a method: M, ε, or the number of steps.

    `error` is √(TV² − noise²), `None` where that is below the noise; `error_bound` the library's, of an exact method.
    """

    setting: float
    steps: float
    calls: float
    tv: float
    noise: float = 0.0
    error: float | None = None
    error_bound: float | None = None


Curves = dict[str, list[Point]]
Step = Callable[[Enumerated, float, float], tuple[Tensor, Tensor]]
"""(model, t, s) → the distribution of the next state for every state [from, to], and the calls that the step makes
there [from]."""


# Exact distributions of fixed grids


def transition(generator: Jump, probability: Tensor, model: Enumerated, x: Tensor) -> tuple[Tensor, Tensor]:
    """(distribution of the next state [n, X] of the states x [n, L], probability that no position has an event [n])."""
    kernel = generator.kernel.probs().nan_to_num(nan=0.0)  # not a number where x is impossible, and so never reached
    stay = one_hot(x, model.path.vocab_size).double()
    token = probability[..., None] * kernel + (1 - probability)[..., None] * stay
    columns = [token[:, i][:, model.states()[:, i]] for i in range(model.length)]
    return torch.stack(columns).prod(0), (1 - probability).prod(1)


def tau_leaping(model: Enumerated, t: float, s: float) -> tuple[Tensor, Tensor]:
    x = model.states()
    generator = model.generator(x, at(x, t), at(x, s))
    assert generator.probability is not None
    matrix, idle = transition(generator, generator.probability, model, x)
    return matrix, 1 - idle


def euler(model: Enumerated, t: float, s: float) -> tuple[Tensor, Tensor]:
    x = model.states()
    generator = model.generator(x, at(x, t))
    if s >= 1 or bool(generator.intensity.isinf().any()):
        return tau_leaping(model, t, s)
    matrix, idle = transition(generator, (generator.intensity * (s - t)).clamp(max=1), model, x)
    return matrix, 1 - idle


def trapezoidal(model: Enumerated, t: float, s: float) -> tuple[Tensor, Tensor]:
    """θ = ½: over all pairs of a state and a state in the middle of the step that it can reach."""
    if s >= 1:
        return tau_leaping(model, t, s)
    x, schedule = model.states(), model.path.schedule
    left, left_next = schedule.complement(torch.tensor([t, s], dtype=torch.float64))
    inner = float(schedule.inverse(1 - (left * left_next).sqrt()))
    first, some = tau_leaping(model, t, inner)
    a, b = first.nonzero().unbind(1)
    start, middle = (model.generator(x[i], at(i, time)).posterior for i, time in ((a, t), (b, inner)))
    assert start is not None
    assert middle is not None
    second = middle.over(at(b, s), Extrapolated(middle.belief, start.belief, 2.0))
    assert second.probability is not None
    moved, idle = transition(second, second.probability, model, x[b])
    weight, empty = first[a, b], torch.zeros(len(x), dtype=torch.float64)
    matrix = torch.zeros_like(first).index_add(0, a, weight[:, None] * moved)
    finished = empty.index_add(0, a, weight * (1 - idle))
    same = a == b  # without any event the state in the middle is that of the beginning
    return matrix, finished + 1 - (1 - some) * empty.index_put((a[same],), idle[same])


def exact_distribution(model: Enumerated, step: Step, times: Tensor) -> tuple[Tensor, float]:
    """The final distribution of the steps [X], and the calls that they make on average."""
    probs, calls = model.marginal(0.0), 0.0
    for t, s in itertools.pairwise(times.tolist()):
        matrix, each = step(model, t, s)
        calls += float(probs @ each)
        probs = probs @ matrix
    assert abs(float(probs.sum()) - 1) < 1e-9, f"the steps of {step.__name__} lose probability: {float(probs.sum())}"
    return probs, calls


def total_variation(model: Enumerated, probs: Tensor) -> float:
    return float((probs - model.marginal(1.0)).abs().sum() / 2)


def fixed_grids(model: Enumerated, budgets: Sequence[int]) -> Curves:
    curves: Curves = {}
    methods = {"tau-leaping": (tau_leaping, 1), "Euler": (euler, 1), "trapezoidal": (trapezoidal, 2)}
    for (name, (step, evaluations)), spacing in itertools.product(methods.items(), SPACINGS):
        points = curves[f"{name}, {spacing}"] = []
        for budget in sorted({fine for fine in FINE if fine <= max(budgets)} | set(budgets)):
            if budget % evaluations == 0:
                probs, calls = exact_distribution(model, step, time_grid(model.path, budget // evaluations, spacing))
                tv = total_variation(model, probs)
                points.append(Point(budget, budget - evaluations + 1, calls, tv, error=tv))  # the last step is a leap
    return curves


# Simulated distributions


def measured(
    model: Enumerated, x: Tensor, setting: float, steps: float, calls: float, error_bound: float | None = None
) -> Point:
    truth, n = model.marginal(1.0), len(x)
    tv = total_variation(model, torch.bincount(model.index(x), minlength=len(truth)) / n)
    noise = chance(truth, n)
    error = math.sqrt(max(tv**2 - noise**2, 0.0))
    return Point(setting, steps, calls, tv, noise, error if error > noise else None, error_bound)


def batches(samples: int) -> Iterator[int]:
    return (min(BATCH, samples - done) for done in range(0, samples, BATCH))


def simulated(
    model: Enumerated, samples: int, rng: torch.Generator, setting: float, times: Any = (0.0, 1.0), **options: Any
) -> Point:
    before = model.evaluations
    runs = [
        simulate(model, model.path.prior((n, model.length), rng), times, rng, return_info=True, **options)
        for n in batches(samples)
    ]
    calls = float(torch.cat([run.network_calls for run in runs]).double().mean())
    bounds = [float(run.error_bound.max()) for run in runs if run.error_bound is not None]
    steps = calls if bounds else (model.evaluations - before) / samples
    return measured(model, torch.cat([run.x for run in runs]), setting, steps, calls, max(bounds, default=None))


class PeerModel(ModelWrapper):
    """What the peer asks of a network: probabilities [B, L, K] of the data symbols."""

    def __init__(self, model: Enumerated) -> None:
        super().__init__(torch.nn.Module())
        self.exact = model

    def forward(self, x: Tensor, t: Tensor, **_: object) -> Tensor:
        states = self.exact.states()
        return self.exact.logits(states, at(states, float(t[0]))).exp()[self.exact.index(x)]


def peer(model: Enumerated, samples: int, rng: torch.Generator, steps: int) -> Point:
    path = MixtureDiscreteProbPath(PolynomialConvexScheduler(1.0))
    solver = MixtureDiscreteEulerSolver(PeerModel(model), path, model.path.vocab_size)
    grid = torch.linspace(0, 1, steps + 1)
    starts = (model.path.prior((n, model.length), rng) for n in batches(samples))
    x = torch.cat([solver.sample(x_0, step_size=None, time_grid=grid) for x_0 in starts])
    return measured(model, x, steps, steps, steps)


def monte_carlo(model: Enumerated, args: argparse.Namespace, rng: torch.Generator) -> Curves:
    path, run = model.path, partial(simulated, model, args.samples, rng)
    mixture, masked = isinstance(path, TokenMixturePath), path.rates == "masked"
    curves: Curves = {
        "adaptive": [run(m, sampler=Adaptive(m)) for m in args.expected_changes],
        "uniformization": [run(0, sampler="uniformization")],
    }
    if masked:
        curves["first hitting"] = [run(0, sampler="first_hitting")]
    middling = [steps for steps in args.budgets if 4 <= steps <= 64]
    for name, corrector in CORRECTORS.items():
        if masked or isinstance(corrector, DetailedBalance):
            few = [steps for steps in middling if steps <= 16]
            curves[name] = [run(steps, time_grid(path, steps), corrector=corrector) for steps in few]
    if mixture:
        curves["flow_matching"] = [peer(model, args.samples, rng, steps) for steps in middling]
    return curves | (decoding_orders(model, args) if masked else {})


def decoding_orders(model: Enumerated, args: argparse.Namespace) -> Curves:
    """What need not preserve the distribution. It has its own random numbers, so that other figures do not depend on it."""
    run = partial(simulated, model, args.samples, torch.Generator().manual_seed(args.seed))
    budgets = [steps for steps in args.budgets if steps <= 16]  # with L steps and more every token is alone
    curves = {
        name: [run(steps, time_grid(model.path, steps), sampler=TauLeaping(order)) for steps in budgets]
        for name, order in ORDERS.items()
    }
    bounds = args.entropy_bounds
    return curves | {"entropy bounded": [run(ε, sampler=EntropyBounded(ε)) for ε in bounds]}


# Sequences of different length and difficulty in one batch


def mixed_batch(args: argparse.Namespace, rng: torch.Generator) -> Curves:
    """Curves of the mean over groups that share a grid, or M: error and calls are means over the groups."""
    path = UniformPath(SYMBOLS, rates="mixture")
    copies = torch.full((SYMBOLS,) * 3, 0.001, dtype=torch.float64)
    copies[range(3), range(3), range(3)] = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    one = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    bumps = torch.randn(SYMBOLS**4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    independent = torch.einsum("a,b,c,d->abcd", one, one, one.flip(0), one).flatten() * (0.1 * bumps).exp()
    groups = [Enumerated(path, one), Enumerated(path, copies.flatten()), chain(path, 4), Enumerated(path, independent)]
    curves: Curves = {}
    for spacing in SPACINGS:
        points = curves[f"tau-leaping, {spacing}"] = []
        for steps in range(1, args.mixed_steps + 1):
            found = [exact_distribution(group, tau_leaping, time_grid(path, steps, spacing)) for group in groups]
            tv = sum(total_variation(group, probs) for group, (probs, _) in zip(groups, found, strict=True)) / len(
                groups
            )
            points.append(Point(steps, steps, sum(calls for _, calls in found) / len(groups), tv, error=tv))
    curves["adaptive"] = []
    for m in args.expected_changes:
        each = [simulated(group, args.samples, rng, m, sampler=Adaptive(m)) for group in groups]
        steps, calls, tv, noise = (
            sum(getattr(p, key) for p in each) / len(each) for key in ("steps", "calls", "tv", "noise")
        )
        error = sum(math.sqrt(max(p.tv**2 - p.noise**2, 0)) for p in each) / len(each)
        curves["adaptive"].append(Point(m, steps, calls, tv, noise, error if error > noise else None))
    return curves


# Comparisons


def price_of(points: Sequence[Point], error: float, price: str) -> tuple[str, float]:
    """Price at which a curve comes down to an error: ("", price), or beyond its ends ("<" or ">", price of the end)."""
    known = sorted((getattr(p, price), p.error) for p in points if p.error)
    if known[0][1] <= error:
        return "<", known[0][0]
    for (c, e), (c_next, e_next) in itertools.pairwise(known):
        if e_next <= error:
            return "", c * (c_next / c) ** (math.log(e / error) / math.log(e / e_next))
    return ">", known[-1][0]


def error_at(points: Sequence[Point], value: float, price: str) -> float:
    """Error of a curve at that price; infinite beyond its ends."""
    c, e = np.log(sorted((getattr(p, price), p.error) for p in points if p.error)).T
    return float(np.exp(np.interp(math.log(value), c, e, left=np.inf, right=np.inf)))


def comparison(curves: Curves, price: str) -> list[dict[str, Any]]:
    """For each M of adaptive: the price of the others at equal error, and its error over the best first-order grid's."""
    rows = []
    for point in curves["adaptive"]:
        row: dict[str, Any] = {"M": point.setting, "price": getattr(point, price), "error": point.error, "needed": {}}
        if point.error is not None:
            known = [name for name in COMPARED if any(p.error for p in curves.get(name, ()))]
            row["needed"] = {name: price_of(curves[name], point.error, price) for name in known}
            grids = [(error_at(curves[name], row["price"], price), name) for name in FIRST_ORDER if name in curves]
            least, best = min(grids, key=lambda grid: round(grid[0], 9))  # Euler's is often the leap's: the first, then
            row |= {"ratio": point.error / least, "best": best} if least < math.inf else {}
        rows.append(row)
    return rows


def needed_table(comparisons: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    table = []
    for label, rows in comparisons.items():
        for row in rows:
            error = "in the noise" if row["error"] is None else f"{row['error']:.4f}"
            line = {"": label, "M": f"{row['M']:g}", "error": error, "adaptive": f"{row['price']:.2f}"}
            for name in COMPARED:
                sign, needed = row["needed"].get(name, ("", 0))
                line[name] = f"{sign}{needed:.1f} ({needed / row['price']:.2f})" if needed else "–"
            table.append(line | {"error / best grid": f"{row['ratio']:.2f} ({row['best']})" if "ratio" in row else "–"})
    return markdown(table)


def summary_table(comparisons: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    def mean(values: Sequence[float]) -> str:
        return f"{math.exp(sum(map(math.log, values)) / len(values)):.2f}" if values else "–"

    table = []
    for label, rows in comparisons.items():
        line = {"": label}
        for name in COMPARED:
            found = [(row["needed"][name], row["price"]) for row in rows if name in row["needed"]]
            inside = [needed / own for (sign, needed), own in found if not sign]
            line[name] = mean(inside) + (f" [{len(inside)}/{len(found)}]" if len(inside) < len(found) else "")
        ratios = [row["ratio"] for row in rows if "ratio" in row]
        table.append(line | {"error / best grid": f"{mean(ratios)} (≤ {max(ratios, default=math.nan):.2f})"})
    return markdown(table)


def law_tables(cases: Sequence[Curves], budgets: Sequence[int]) -> list[str]:
    """TV of the methods on grids, by steps; then calls and TV of those that choose their steps. One value for each L."""

    def cell(points: Sequence[Point], key: str, digits: int) -> str:
        return " / ".join(f"{getattr(p, key):.{digits}f}" for p in points if getattr(p, key) is not None) or "–"

    grids, own = [], []
    for name in cases[0]:
        columns = list(zip(*(curves[name] for curves in cases), strict=True))
        if name in OWN_STEPS:
            for points in columns:
                row = {"": f"{name} {points[0].setting:g}".removesuffix(" 0"), "steps": cell(points, "steps", 2)}
                row |= {"calls": cell(points, "calls", 2)}
                own.append(row | {"TV": cell(points, "tv", 4), "bound": cell(points, "error_bound", 4)})
        else:
            found = {points[0].setting: points for points in columns}
            for label, key, digits in ((name, "tv", 4), (f"{name}: calls", "calls", 1)):
                if key == "tv" or name in (*CORRECTORS, *ORDERS, FIRST_ORDER[0]):
                    row = {str(budget): cell(found.get(budget, ()), key, digits) for budget in budgets}
                    grids.append({"steps": label} | row)
    return [markdown(grids), markdown(own)]


# Picture

BLUE, GREEN, RED, PINK = "#0072B2", "#009E73", "#D55E00", "#CC79A7"  # Okabe and Ito
LOOKS: dict[str, tuple[str, str, str]] = {  # colour, line, marker
    "adaptive": (RED, "-", "o"),
    "tau-leaping, linear": (BLUE, "-", ""), "tau-leaping, quadratic": (BLUE, "--", ""),
    "tau-leaping, geometric": (BLUE, ":", ""), "Euler, linear": ("0.5", "-", ""),
    "trapezoidal, linear": (GREEN, "-", ""), "trapezoidal, quadratic": (GREEN, "--", ""),
    "trapezoidal, geometric": (GREEN, ":", ""), "flow_matching": ("black", "-", "x"),
    "detailed balance ×1": (PINK, "-", "1"), "detailed balance ×3": (PINK, "--", "2"),
    "ReMDM": (PINK, "-", "+"),
    "uniformization": ("black", "", "*"), "first hitting": ("black", "", "D"),
}  # fmt: skip


def picture(panels: Mapping[str, Curves], price: str, file: Path) -> None:
    """One panel for each path: TV against the price, both on logarithmic axes. Grey: what is less than the noise."""
    from matplotlib.figure import Figure

    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(16, 4.6 * rows + 1.3), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False).flatten()
    handles: dict[str, Any] = {}
    for axis in axes[len(panels) :]:
        axis.axis("off")
    for axis, (title, curves) in zip(axes, panels.items(), strict=False):
        for name in LOOKS.keys() & curves.keys():
            points = sorted(curves[name], key=lambda p: getattr(p, price))
            color, line, marker = LOOKS[name]
            width = 2.6 if name == "adaptive" else 1.3
            prices, errors = [getattr(p, price) for p in points], [p.tv for p in points]
            (handles[name],) = axis.loglog(prices, errors, color=color, ls=line, marker=marker, ms=6, lw=width)
        noise = max(point.noise for points in curves.values() for point in points)
        axis.axhspan(noise / 2, noise, color="0.85", zorder=0)
        axis.set(
            title=title,
            xlabel=f"network evaluations per sequence ({price})",
            ylabel="total variation from the data distribution",
        )
        axis.set_ylim(bottom=noise / 2)
        axis.grid(which="major", alpha=0.3)
    names = [name for name in LOOKS if name in handles]
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=6, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(file.name + ".draft")
    figure.savefig(draft, format="png", dpi=110)
    draft.replace(file)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--paths", nargs="+", choices=list(PATHS), default=list(PATHS))
    parser.add_argument("--lengths", type=int, nargs="+", choices=(2, 3, 4), default=[3, 4], help="L of the chains")
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64, 128], help="steps of the tables"
    )
    parser.add_argument("--samples", type=int, default=100_000, help="of each simulated distribution")
    changes = [2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25, 0.125]
    parser.add_argument("--expected-changes", type=float, nargs="+", default=changes, help="M of adaptive")
    parser.add_argument("--entropy-bounds", type=float, nargs="+", default=[2.0, 0.5, 0.1, 0.05], help="ε, in nats")
    parser.add_argument("--mixed-steps", type=int, default=64, help="most steps of a common grid")
    parser.add_argument("--price", choices=PRICES, default="steps", help="of the picture")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--seed", type=int, default=0, help="of the simulations")
    parser.add_argument("--quick", action="store_true", help=f"tiny settings: {QUICK}")
    parser.add_argument("--output", type=output_file, help="JSON file with every setting and figure")
    parser.add_argument("--plot", type=output_file, help="PNG file")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args(argv)


def plain(curves: Curves) -> dict[str, list[dict[str, Any]]]:
    return {name: [asdict(point) for point in points] for name, points in curves.items()}


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)  # the peer knows the global generator only
    rng, started = torch.Generator().manual_seed(args.seed), time.perf_counter()
    found: dict[str, dict[int, Curves]] = {name: {} for name in args.paths}
    for name, length in itertools.product(args.paths, args.lengths):
        model = chain(PATHS[name](), length)
        found[name][length] = fixed_grids(model, args.budgets) | monte_carlo(model, args, rng)
        print(f"{name}, L = {length}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    mixed = {MIXED: mixed_batch(args, rng)}

    tables = [
        f"Values for L = {' / '.join(map(str, args.lengths))}; {args.samples} samples of simulated distributions."
    ]
    for name, cases in found.items():
        noise = " / ".join(f"{curves['adaptive'][0].noise:.4f}" for curves in cases.values())
        tables += [
            f"### {name}\n\nTV; noise of simulated ones {noise}",
            *law_tables(list(cases.values()), args.budgets),
        ]
    every = {f"{name}, L = {n}": curves for name, cases in found.items() for n, curves in cases.items()} | mixed
    comparisons = {price: {name: comparison(curves, price) for name, curves in every.items()} for price in PRICES}
    for price, compared in comparisons.items():
        tables += [f"### {price.capitalize()} needed at equal error (over those of adaptive)", needed_table(compared)]
        tables += [f"### {price.capitalize()} over those of adaptive: geometric mean over M", summary_table(compared)]
    if args.plot is not None:
        longest = max(args.lengths)
        picture(
            {f"{name}, L = {longest}": cases[longest] for name, cases in found.items()} | mixed, args.price, args.plot
        )
    record = {
        "benchmark": "chains",
        "environment": environment("cpu", __file__, argv),
        "settings": vars(args),
        "seconds": {"wall": time.perf_counter() - started, "processor": time.process_time()},
        "results": {name: {n: plain(curves) for n, curves in cases.items()} for name, cases in found.items()},
        "mixed": plain(mixed[MIXED]),
        "comparisons": comparisons,
    }
    report(record, tables, args.output)


if __name__ == "__main__":
    main()
