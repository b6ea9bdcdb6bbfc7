"""Draws the pictures of docs/concepts and docs/developing: each plots what the library computes.

    python docs/pictures.py [NAME …]

A picture has two functions: one computes its data, with seeds, and one draws them. Both results are committed: `NAME.svg`,
and `NAME.json` with the data, which the tests compute again (`tests/pictures/test_pictures_of_docs.py`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline
from torch import Tensor

from gm_discrete import (
    Adaptive,
    DetailedBalance,
    Euler,
    ExactGaussianModel,
    ExactModel,
    FinitePath,
    FirstHitting,
    GaussianPath,
    MaskedPath,
    MetricPath,
    TauLeaping,
    Trapezoidal,
    Uniformization,
    UniformPath,
    bregman,
    likelihood_bound,
    simulate,
    time_grid,
)
from gm_discrete.generators import Jump

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

PAPER, PALE, LINE, SOFT, INK = "#fbfbfd", "#eef2f7", "#d5d9e0", "#6b7280", "#23272f"
"""An opaque light ground, so that a picture can be read on a dark page, too."""
BLUE, ORANGE, GREEN, RED = "#2f6fb2", "#d9822b", "#3a8f5c", "#c4455a"
FILLS = ("#a9cbea", "#f6cf9c", "#b4dcbc", "#efb4bd", "#cdbfe6")
"""One for each letter, light enough for dark text."""
STYLE: Any = {
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER, "text.color": INK,
    "axes.edgecolor": LINE, "axes.labelcolor": INK, "xtick.color": SOFT, "ytick.color": SOFT,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10.5, "axes.titlelocation": "left",
    "axes.titlecolor": INK, "font.size": 9.5, "axes.labelsize": 9.5, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "legend.fontsize": 9, "legend.frameon": False, "font.family": "DejaVu Sans", "lines.linewidth": 1.8,
    "svg.fonttype": "path", "svg.hashsalt": "gm_discrete",
}  # fmt: skip

MOVE, LINE_TO, CLOSE = Outline.MOVETO, Outline.LINETO, Outline.CLOSEPOLY

FIVE_LETTERS = ("stone", "shone", "shore", "store", "score", "scone", "snore", "spore")
THREE_LETTERS = ("ate", "eat", "eta", "tea", "sat", "set")
Data = dict[str, Any]


@dataclass(frozen=True)
class Words:
    """Words of one length as data, with the exact posterior in place of a network."""

    words: Sequence[str]

    @property
    def letters(self) -> str:
        return "".join(sorted(set("".join(self.words))))

    @property
    def z(self) -> Tensor:
        return torch.tensor([[self.letters.index(letter) for letter in word] for word in self.words])

    def text(self, x: Tensor) -> list[str]:
        """The strings of states [B, L]; the mask, if there is one, is the symbol after the letters."""
        return ["".join((self.letters + "·")[symbol] for symbol in row) for row in x.tolist()]

    def masked(self) -> ExactModel:
        return ExactModel(MaskedPath(len(self.letters) + 1), self.z)

    def uniform(self, rates: str = "reversal") -> ExactModel:
        return ExactModel(UniformPath(len(self.letters), rates=rates), self.z)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The whole idea


class Tempered:
    """An exact posterior to a power, in place of a network that is too unsure or too sure."""

    def __init__(self, model: ExactModel, power: float) -> None:
        self.model, self.path, self.power = model, model.path, power

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
        return self.path.marginal((self.power * self.model.logits(x, t)).log_softmax(-1), x, t, t_next)


class WithoutContext:
    """The frequencies of the letters at each position, in place of a network that reads no other letter."""

    def __init__(self, model: ExactModel) -> None:
        self.path: FinitePath = model.path
        counts = torch.nn.functional.one_hot(model.data, model.path.vocab_size).double().mean(0)
        self.logits = counts.log()

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
        return self.path.marginal(self.logits.expand(*x.shape, -1).clone(), x, t, t_next)


def expected_divergence(process: Any, z: Tensor, kappa: float) -> float:
    """E D(F(x|z), F_θ(x)) per unit of κ for one sequence z [L], summed over every state x. κ is t here."""
    path: FinitePath = process.path
    x = torch.cartesian_prod(*[torch.arange(path.vocab_size)] * len(z))
    t = torch.full((len(x),), kappa, dtype=torch.float64)
    data = z.expand(len(x), -1)
    p = path.table(t[:1])[0][data, x].prod(1)
    x, t, data, p = x[p > 0], t[p > 0], data[p > 0], p[p > 0]
    loss = bregman.divergence(path.conditional(data, x, t), process.generator(x, t), x)
    return float(p @ loss.sum(1))


def nodes(number: int) -> list[tuple[float, float]]:
    """(κ, weight) of a quadrature on (0, 1), dense near both ends."""
    u, w = np.polynomial.legendre.leggauss(number)
    u, w = (u + 1) / 2, w / 2
    return list(zip(np.sin(np.pi * u / 2) ** 2, w * np.pi / 2 * np.sin(np.pi * u), strict=True))


def idea_data() -> Data:
    words, short = Words(FIVE_LETTERS), Words(THREE_LETTERS)
    model, small = words.masked(), short.masked()
    path, z = model.path, words.z[2:3]
    times = torch.linspace(0, 1, 7, dtype=torch.float64)
    noisy = [
        path.sample(z, times[i : i + 1], rng(7)) for i in range(7)
    ]  # one seed: what is masked later is masked before
    x = words.z[2:3].clone()
    x[0, [1, 2, 4]] = path.vocab_size - 1
    half = torch.tensor([0.5], dtype=torch.float64)
    rates = model.generator(x, half).per(path.schedule.hazard(half)[:, None]).rates(x)[0, :, :-1].clamp(min=0)
    powers = [0.25, 0.4, 0.6, 0.8, 1.0, 1.25, 1.6, 2.0, 2.5]
    losses = [
        sum(w * expected_divergence(Tempered(small, power), z, k) for k, w in nodes(8) for z in small.data)
        / len(small.data)
        for power in powers
    ]
    run = simulate(model, path.prior((1, 5)), times, rng(5), save_at=range(7), return_info=True)
    return {
        "data": list(words.words),
        "path": [words.text(x)[0] for x in noisy],
        "letters": words.letters,
        "state": words.text(x)[0],
        "rates": rates.T.tolist(),
        "powers": powers,
        "losses": losses,
        "sample": [words.text(x)[0] for x in run.states],
    }


def cells(
    axes: Axes, corners: Sequence[tuple[float, float]], colour: Any, size: float = 0.92, alpha: float = 1.0
) -> None:
    """Squares at these cells of a grid, as one path."""
    low, high = (1 - size) / 2, (1 + size) / 2
    square = [(low, low), (high, low), (high, high), (low, high), (low, low)]
    points = [(x + dx, y + dy) for x, y in corners for dx, dy in square]
    codes = [MOVE, LINE_TO, LINE_TO, LINE_TO, CLOSE] * len(corners)
    if points:
        axes.add_patch(PathPatch(Outline(points, codes), facecolor=colour, alpha=alpha, linewidth=0))


def strings(axes: Axes, rows: Sequence[str], labels: Sequence[str] = ()) -> None:
    """Strings under each other, a cell for every symbol; masks are grey."""
    places = [(j, i, letter) for i, row in enumerate(rows) for j, letter in enumerate(row)]
    cells(axes, [(j, i) for j, i, letter in places if letter == "·"], LINE)
    cells(axes, [(j, i) for j, i, letter in places if letter != "·"], FILLS[0])
    for j, i, letter in places:
        if letter != "·":
            axes.text(j + 0.5, i + 0.52, letter, ha="center", va="center")
    axes.set(xlim=(0, len(rows[0])), ylim=(len(rows), 0), xticks=[])
    axes.set_yticks([i + 0.5 for i in range(len(labels))], labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def idea_figure(data: Data) -> Figure:
    figure = Figure(figsize=(7.2, 5.4), layout="constrained")
    grid = figure.add_gridspec(2, 6, hspace=0.1)
    times = [f"t = {i / 6:.2g}" for i in range(7)]
    axes = figure.add_subplot(grid[0, :2], title="1  data: z")
    strings(axes, data["data"])
    axes = figure.add_subplot(grid[0, 2:4], title="2  path: x ~ p$_t$(·|z)")
    strings(axes, data["path"], times)
    axes = figure.add_subplot(grid[0, 4:], title=f"3  generator at x = {data['state']}")
    for i, row in enumerate(data["rates"]):
        for j, rate in enumerate(row):
            cells(axes, [(j, i)], BLUE, alpha=0.04 + 0.9 * rate)
            if rate > 0.01:
                colour = "white" if rate > 0.45 else INK
                axes.text(j + 0.5, i + 0.52, f"{rate:.2g}", ha="center", va="center", fontsize=8, color=colour)
    axes.set(xlim=(0, 5), ylim=(len(data["letters"]), 0))
    axes.set_xticks([i + 0.5 for i in range(5)], list(data["state"]))
    axes.set_yticks([i + 0.5 for i in range(len(data["letters"]))], list(data["letters"]))
    axes.set(ylabel="jumps to", xlabel="rate / hazard")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes = figure.add_subplot(grid[1, :3], title="4  loss: D(target, prediction)")
    axes.plot(data["powers"], data["losses"], color=BLUE, marker="o", markersize=4)
    axes.axvline(1, color=ORANGE, linewidth=1.2)
    axes.annotate(
        "the marginal generator", (1, max(data["losses"])), (1.08, max(data["losses"])), color=ORANGE, va="top"
    )
    axes.set(xlabel="power to which the exact belief is raised", ylabel="nats per word")
    axes = figure.add_subplot(grid[1, 3:], title="5  sampler: jump, from t = 0 to 1")
    strings(axes, data["sample"], times)
    axes.set_xlim(-1.5, 6.5)
    return figure


# Paths


def paths_data() -> Data:
    kappa = torch.linspace(0, 1, 41, dtype=torch.float64)
    place = torch.arange(6, dtype=torch.float64)
    distance = (place[:, None] - place).abs()
    found: Data = {"t": kappa.tolist()}
    for name, path in {
        "masked": MaskedPath(5),
        "uniform": UniformPath(5),
        "metric": MetricPath(6, distance, c=0.5, a=1.0),
    }.items():
        z = torch.full_like(kappa, 1, dtype=torch.long)
        found[name] = path.probs(z, kappa).T.tolist()
    gauss, z = GaussianPath({"flow": 1.0}), torch.ones(1, 2000, 1, dtype=torch.float64)
    x = torch.stack([gauss.sample(z, kappa[i : i + 1], rng(1))[0, :, 0] for i in range(41)])  # one seed for all times
    found["gaussian"] = x.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]).double(), dim=1).tolist()
    found["paths"] = x[::40, :5].T.tolist()
    return found


def paths_figure(data: Data) -> Figure:
    figure = Figure(figsize=(7.2, 4.9), layout="constrained")
    panels = figure.subplots(2, 2)
    titles = {
        "masked": "MaskedPath: p$_t$(x|z = b)",
        "uniform": "UniformPath: p$_t$(x|z = b)",
        "metric": "MetricPath: near letters go last",
    }
    for axes, (name, title) in zip(panels.flat, titles.items(), strict=False):
        rows = data[name]
        order = [1, *[i for i in range(len(rows)) if i != 1]]
        symbols = "abcd·" if name == "masked" else "abcdef"
        fills = [LINE if symbols[i] == "·" else BLUE if i == 1 else [*FILLS, "#dfe3c4"][(i + 4) % 6] for i in order]
        shown = [i for i in order if max(rows[i]) > 0]
        fills = [fill for i, fill in zip(order, fills, strict=True) if i in shown]
        axes.stackplot(data["t"], [rows[i] for i in shown], colors=fills, edgecolor=PAPER, linewidth=0.8)
        below = 0.0
        for i in shown:
            p = rows[i][4]
            if p > 0.05:
                label = "mask" if symbols[i] == "·" else symbols[i]
                axes.text(0.1, below + p / 2, label, ha="center", va="center", color="white" if i == 1 else INK)
            below += p
        axes.set(title=title, xlim=(0, 1), ylim=(0, 1), yticks=[0, 0.5, 1], ylabel="probability")
    axes = panels.flat[3]
    low, left, middle, right, high = data["gaussian"]
    axes.fill_between(data["t"], low, high, color=FILLS[0], alpha=0.5, linewidth=0)
    axes.fill_between(data["t"], left, right, color=FILLS[0], linewidth=0)
    axes.plot(data["t"], middle, color=BLUE)
    for line in data["paths"]:
        axes.plot([0, 1], line, color=SOFT, linewidth=0.8)
    axes.set(title="GaussianPath: 50 % and 90 % of x, z = 1", xlim=(0, 1), ylabel="x")
    for axes in panels[1]:
        axes.set_xlabel("t")
    return figure


# Generators

PROCESSES = {
    "flow": {"flow": 1.0},
    "diffusion": {"diffusion": 1.0},
    "jump": {"jump": 1.0},
    "½ flow + ½ jump": {"flow": 0.5, "jump": 0.5},
}
LINES = 8
EVERY = 4
"""Of the steps, which are drawn."""


def generators_data() -> Data:
    means, steps = torch.tensor([[[-1.0]], [[1.0]]]).double(), 120
    found: Data = {}
    for name, parts in PROCESSES.items():
        model = ExactGaussianModel(GaussianPath(parts), means, std=0.25, weights=torch.tensor([0.35, 0.65]).double())
        times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        x_0 = torch.randn(LINES, 1, 1, generator=rng(2), dtype=torch.float64)
        run = simulate(model, x_0, times, rng(4), save_at=range(steps + 1), return_info=True)
        x = torch.stack(run.states)[:, :, 0, 0]
        found[name] = x[::EVERY].T.round(decimals=3).tolist()
    return found


def generators_figure(data: Data) -> Figure:
    figure = Figure(figsize=(7.2, 4.9), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    y, t = np.linspace(-3, 3, 41), np.linspace(0, 1, 21)
    density = np.zeros((len(y), len(t)))
    for weight, mean in ((0.35, -1.0), (0.65, 1.0)):  # α = t, σ = 1 − t
        std = np.sqrt((t * 0.25) ** 2 + (1 - t) ** 2)
        density += weight * np.exp(-((y[:, None] - t * mean) ** 2) / (2 * std**2)) / std
    times = np.linspace(0, 1, len(data["flow"][0]))
    fills = LinearSegmentedColormap.from_list("density", [PAPER, "#d5e5f4", FILLS[0]])
    for axes, name in zip(panels.flat, PROCESSES, strict=True):
        axes.contourf(t, y, density**0.5, levels=[0.3, 0.6, 0.9], cmap=fills, extend="max")
        for i, line in enumerate(data[name]):
            where = "post" if name == "jump" else "pre"
            draw = axes.step if name == "jump" else axes.plot
            options = {"where": where} if name == "jump" else {}
            colour = ORANGE if i < 2 else INK
            draw(times, line, color=colour, linewidth=1.8 if i < 2 else 0.6, alpha=1 if i < 2 else 0.6, **options)
        axes.set(title=name, xlim=(0, 1), ylim=(-2.6, 2.6))
    for axes in panels[1]:
        axes.set_xlabel("t")
    for axes in panels[:, 0]:
        axes.set_ylabel("x")
    return figure


# Losses


def losses_data() -> Data:
    words = Words(THREE_LETTERS)
    masked, z = words.masked(), words.z[1]
    processes = {
        "masks, exact belief": masked,
        "masks, belief without context": WithoutContext(masked),
        "uniform noise, mixture rates, exact belief": words.uniform("mixture"),
    }
    curves = {}
    for name, process in processes.items():
        found = [(float(k), float(w), expected_divergence(process, z, float(k))) for k, w in nodes(24)]
        curves[name] = {
            "kappa": [k for k, _, _ in found],
            "value": [d for _, _, d in found],
            "area": sum(w * d for _, w, d in found),
        }
    estimates = {}
    for estimator in ("time", "mask_count"):
        rows = []
        for number in (4, 16, 64, 256, 1024):
            bound = likelihood_bound(masked, z[None], num_samples=number, rng=rng(number + 1), estimator=estimator)
            rows.append([number, float(bound.nats), float(bound.nats_stderr)])
        estimates[estimator] = rows
    return {"exact": math.log(len(words.words)), "curves": curves, "estimates": estimates}


def losses_figure(data: Data) -> Figure:
    figure = Figure(figsize=(7.2, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    for (name, curve), colour in zip(data["curves"].items(), (BLUE, RED, GREEN), strict=True):
        left.plot(curve["kappa"], curve["value"], color=colour, label=f"{name}: {curve['area']:.2f}")
        if colour == BLUE:
            left.fill_between(curve["kappa"], curve["value"], color=FILLS[0], alpha=0.6, linewidth=0)
    left.set(title="E D per unit of κ; areas in nats", xlabel="κ", xlim=(0, 1), ylim=(0, 4 * data["exact"]))
    left.legend(loc="upper left", borderaxespad=0.1)
    right.axhline(data["exact"], color=INK, linewidth=1)
    right.text(0.75, data["exact"], "−log p", va="bottom")
    for (name, rows), colour, shift in zip(data["estimates"].items(), (ORANGE, BLUE), (0.9, 1.1), strict=True):
        number, mean, error = zip(*rows, strict=True)
        place = [n * shift for n in number]
        right.errorbar(place, mean, error, fmt="o", color=colour, markersize=4, linewidth=1.4, capsize=2, label=name)
    right.set(title="likelihood_bound ± stderr", xscale="log", xlabel="num_samples", xlim=(0.7, 1600))
    right.set_xticks([4, 16, 64, 256, 1024], ["4", "16", "64", "256", "1024"])
    right.minorticks_off()
    right.legend(loc="lower right")
    return figure


# Samplers


class Watched:
    """A process that notes every state it is asked about, and where its belief is read.

    Attributes:
        seen: (t, state, positions that were read), in order; of one sequence.
    """

    def __init__(self, model: ExactModel) -> None:
        self.model, self.path = model, model.path
        self.seen: list[tuple[float, list[int], list[int]]] = []

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
        read: list[int] = []
        self.seen.append((float(t[0]), x[0].tolist(), read))
        logits = self.model.logits(x, t).flatten(0, 1)

        def readout(head: str, where: Tensor | None = None) -> Tensor:
            if where is None:
                where = torch.arange(len(logits))
            read.extend(where.tolist())
            return logits[where].clone()

        return self.path.marginal(readout, x, t, t_next)


def samplers_data() -> Data:
    words = Words(THREE_LETTERS)
    mixture, reversal, masked = words.uniform("mixture"), words.uniform("reversal"), words.masked()
    grid = time_grid(mixture.path, 8)
    kinds: dict[str, tuple[ExactModel, Any, Any, Any]] = {
        "Euler, 8 steps": (mixture, Euler(), grid, None),
        "TauLeaping, 8 steps": (mixture, TauLeaping(), grid, None),
        "Trapezoidal, 4 steps": (mixture, Trapezoidal(), time_grid(mixture.path, 4), None),
        "Adaptive": (mixture, Adaptive(max_expected_changes=0.5), [0, 1], None),
        "Uniformization": (mixture, Uniformization(1e-2), [0, 1], None),
        "Uniformization, reversal": (reversal, Uniformization(1e-2), [0, 1], None),
        "TauLeaping + DetailedBalance": (mixture, TauLeaping(), grid, DetailedBalance(sweeps=1)),
        "TauLeaping, masks": (masked, TauLeaping(), time_grid(masked.path, 8), None),
        "FirstHitting, masks": (masked, FirstHitting(), [0, 1], None),
    }
    found: Data = {"letters": words.letters, "rows": {}}
    for name, (model, sampler, times, corrector) in kinds.items():
        seed = 0
        while True:  # the first run in which the position changes as often as is to be seen
            process, source = Watched(model), rng(seed)
            x_0 = model.path.prior((1, 3), source)
            x = simulate(process, x_0, times, source, sampler, corrector=corrector)
            states = [[t, state[0]] for t, state, _ in process.seen] + [[1.0, int(x[0, 0])]]
            changes = sum(a[1] != b[1] and b[0] < 0.95 for a, b in itertools.pairwise(states))
            if changes >= (1 if model is masked else 2):
                break
            seed += 1
        reads = sorted({t for t, _, read in process.seen if read})
        found["rows"][name] = {"seed": seed, "states": states, "reads": reads}
    return found


def samplers_figure(data: Data) -> Figure:
    rows = data["rows"]
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    axes = figure.subplots()
    for i, row in enumerate(rows.values()):
        states = [[0.0, row["states"][0][1]], *row["states"]]
        pieces: list[list[Any]] = []  # start, end, symbol
        for (t, symbol), (after, _) in zip(states, [*states[1:], [1.0, 0]], strict=True):
            if pieces and pieces[-1][2] == symbol:
                pieces[-1][1] = after
            else:
                pieces.append([t, after, symbol])
        for start, end, symbol in pieces:
            masked = symbol == len(data["letters"])
            width = max(end - start, 0.004)
            fill = LINE if masked else FILLS[symbol]
            axes.add_patch(Rectangle((start, i + 0.08), width, 0.5, facecolor=fill, edgecolor=PAPER))
            if end - start > 0.025:
                axes.text(
                    (start + end) / 2, i + 0.34, "mask" if masked else data["letters"][symbol], ha="center", va="center"
                )
        last = row["states"][-1][1]
        masked = last == len(data["letters"])
        axes.add_patch(Rectangle((1.0, i + 0.08), 0.03, 0.5, facecolor=LINE if masked else FILLS[last]))
        axes.text(1.015, i + 0.34, data["letters"][last], ha="center", va="center")
        axes.vlines(row["reads"], i + 0.63, i + 0.86, color=INK, linewidth=1.2)
    axes.set(xlim=(0, 1.035), ylim=(len(rows), 0), xlabel="t", title="One position of a word; ticks: the network runs")
    axes.set_yticks([i + 0.34 for i in range(len(rows))], list(rows))
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    return figure


# Lazy evaluation

LONG = ("sphinx of black quartz", "jackdaws love my quilt", "five boxes of dark ink", "a quick brown fox leaps")


def lazy_data() -> Data:
    words = Words([text[:22].ljust(22) for text in LONG])
    process = Watched(words.masked())
    steps = 48
    path = process.path
    simulate(process, path.prior((1, 22)), time_grid(path, steps), rng(3), TauLeaping())
    return {"length": 22, "read": [sorted(set(read)) for _, _, read in process.seen]}


def lazy_figure(data: Data) -> Figure:
    read, length = data["read"], data["length"]
    steps = len(read)
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    top, axes = figure.subplots(2, 1, sharex=True, height_ratios=[1, 9])
    calls = [i for i, where in enumerate(read) if where]
    cells(top, [(i, 0) for i in range(steps) if i not in calls], LINE)
    cells(top, [(i, 0) for i in calls], BLUE)
    for j in range(length):
        first = next(i for i in range(steps) if j in read[i])
        for start, end, colour in ((0, first, LINE), (first, first + 1, ORANGE), (first + 1, steps, PALE)):
            axes.add_patch(Rectangle((start, j + 0.08), end - start, 0.84, facecolor=colour, linewidth=0))
    rows = sum(map(len, read))
    top.set(
        ylim=(0, 1),
        title=f"{steps} steps: {len(calls)} network calls (blue), {rows} of {steps * length} rows of logits (orange)",
    )
    top.set_yticks([0.5], ["network"])
    axes.set(xlim=(0, steps), ylim=(length, 0), xlabel="step", ylabel="position")
    axes.set_yticks([0.5, 10.5, 20.5], ["0", "10", "20"])
    axes.set_xticks([0.5, 12.5, 24.5, 36.5, 47.5], ["0", "12", "24", "36", "47"])
    for part in (top, axes):
        part.tick_params(length=0)
        part.spines[:].set_visible(False)
    return figure


# Layers


def layers_data() -> Data:
    sys.path.insert(0, str(ROOT))
    from tests.test_layers import EDGES, ROWS

    sys.path.remove(str(ROOT))
    parts = [part for row in ROWS for part in sorted(row, reverse=True)]
    edges = sorted((part, other) for part, other in EDGES if part != other and part in parts)
    return {"rows": [sorted(row, reverse=True) for row in ROWS], "edges": [list(edge) for edge in edges]}


def layers_figure(data: Data) -> Figure:
    parts = [part for row in data["rows"] for part in row]
    place = {part: i for i, part in enumerate(parts)}
    figure = Figure(figsize=(7.2, 5.6), layout="constrained")
    axes = figure.subplots()
    at = 0
    for number, row in enumerate(data["rows"]):
        if number % 2 == 0:
            axes.axhspan(at - 0.5, at + len(row) - 0.5, color=PALE, linewidth=0)
        at += len(row)
    axes.plot([-0.5, at - 0.5], [-0.5, at - 0.5], color=LINE, linewidth=1)
    for part, other in data["edges"]:
        axes.plot(place[other], place[part], "o", color=BLUE, markersize=6)
    axes.set(xlim=(-0.5, at - 0.5), ylim=(at - 0.5, -0.5), ylabel="this part …")
    axes.set_yticks(range(at), parts)
    axes.set_xticks(range(at), parts, rotation=50, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("… imports from this one: always a part further down")
    axes.xaxis.set_label_position("bottom")
    return figure


PICTURES: dict[str, tuple[str, Callable[[], Data], Callable[[Data], Figure]]] = {
    "idea": ("concepts", idea_data, idea_figure),
    "paths": ("concepts", paths_data, paths_figure),
    "generators": ("concepts", generators_data, generators_figure),
    "losses": ("concepts", losses_data, losses_figure),
    "samplers": ("concepts", samplers_data, samplers_figure),
    "lazy": ("concepts", lazy_data, lazy_figure),
    "layers": ("developing", layers_data, layers_figure),
}
"""name → (folder of docs/, data, drawing)."""


def rounded(value: Any) -> Any:
    """The data with six significant digits."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def compute(name: str) -> Data:
    """The data of a picture."""
    return rounded(PICTURES[name][1]())


def svg(name: str, data: Data, file: Path) -> None:
    """Draws a picture of its data."""
    with matplotlib.rc_context(STYLE):
        PICTURES[name][2](data).savefig(file, format="svg", metadata={"Date": None})
    text = file.read_text(encoding="utf-8")
    outlines = re.sub(r'(?<= d=")[^"]*', lambda found: re.sub(r"(\.\d)\d+", r"\1", found[0]), text)
    file.write_text(re.sub(r"\s*\n\s*", "\n", re.sub(r"<!--.*?-->", "", outlines, flags=re.DOTALL)), encoding="utf-8")


def file_of(name: str) -> Path:
    return DOCS / PICTURES[name][0] / "figures" / f"{name}.svg"


def main() -> None:
    """Draws the pictures that are named, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", choices=[[], *PICTURES], help="default: all")
    for name in parser.parse_args().names or PICTURES:
        file, data = file_of(name), compute(name)
        file.with_suffix(".json").write_text(json.dumps(data, ensure_ascii=False) + "\n", encoding="utf-8")
        svg(name, data, file)
        print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
