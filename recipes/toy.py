"""Compares flow, diffusion, jump process and their superpositions on continuous data in one and two dimensions.

    python recipes/toy.py [--output_dir runs/toy] [--divergence '{"flow": "cosh"}'] [--ablation]

After the first experiments of Generator Matching (Holderrieth et al., ICLR 2025): different processes with the same marginal
distribution at every time. Small networks learn them on two paths, the mixture path from uniform noise and CondOT; a
superposition is one network or two. Takes under five minutes on two cores. It writes to `output_dir`: processes.png with a
row for each process, metrics.json with the distances in the picture, and the models. Distances are Kolmogorov-Smirnov (KS)
in one dimension and sliced Wasserstein (SW₁) in two; the picture also shows that of an exact sample of the same size.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # imports start at the root of the repository: `datasets` in this folder is another package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import matplotlib
import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor
from transformers import HfArgumentParser, get_cosine_schedule_with_warmup

from gm_discrete import (
    Bins,
    EuclideanMixturePath,
    GaussianPath,
    GMConfig,
    GMModel,
    conditional_loss,
    simulate,
    superpose,
)
from gm_discrete.objective.bregman import DIVERGENCES
from gm_discrete.paths import EuclideanPath, TimeLike
from gm_discrete.samplers import time_grid
from gm_discrete.training import locked, published
from recipes.common import print_anywhere, run_script, write_json
from recipes.options import json_dict

matplotlib.use("Agg")
from matplotlib import pyplot


@dataclass
class ToyArguments:
    """Sizes of the networks, their training and the samples."""

    output_dir: str = field(default="runs/toy", metadata={"help": "folder for picture, metrics and models"})
    training_steps: int = field(default=1500, metadata={"help": "optimizer steps per network"})
    batch_size: int = field(default=512, metadata={"help": "data points per step"})
    learning_rate: float = field(default=4e-3, metadata={"help": "peak learning rate of AdamW"})
    hidden_size: int = field(default=32, metadata={"help": "width of the networks"})
    num_hidden_layers: int = field(default=2, metadata={"help": "layers of the networks"})
    num_frequencies: int = field(default=6, metadata={"help": "sine and cosine features of the input"})
    num_bins: int = field(default=64, metadata={"help": "bins in which jumps are predicted"})
    divergence: str = field(
        default="{}", metadata={"help": f"JSON, for a generator one of {', '.join(sorted(DIVERGENCES))}"}
    )
    num_samples: int = field(default=10_000, metadata={"help": "samples of each process"})
    num_steps: int = field(default=100, metadata={"help": "sampling steps; four times as many for a pure diffusion"})
    ablation: bool = field(default=False, metadata={"help": "also train without input features and preconditioning"})
    workers: int = field(default=os.cpu_count() or 1, metadata={"help": "processes that train and sample"})
    seed: int = field(default=0, metadata={"help": "seed of weights, data and samples"})
    quick: bool = field(default=False, metadata={"help": "tiny sizes, which only test the script"})


# Data

Data = Callable[[int, torch.Generator], Tensor]
MEANS, STDS, MODE_WEIGHTS = (torch.tensor(v, dtype=torch.float64) for v in ((-1.5, 1.0), (0.3, 0.5), (0.35, 0.65)))
LIMIT = 4.0
"""One-dimensional data lie in [−4, 4]; the modes are at least six standard deviations inside."""


def two_modes(number: int, rng: torch.Generator) -> Tensor:
    """Draws [number, 1, 1] from Σ_k w_k N(m_k, s_k²)."""
    k = torch.multinomial(MODE_WEIGHTS, number, replacement=True, generator=rng)
    z = MEANS[k] + STDS[k] * torch.randn(number, generator=rng, dtype=torch.float64)
    return z.clamp(-LIMIT, LIMIT).float().view(-1, 1, 1)


def checkerboard(number: int, rng: torch.Generator) -> Tensor:
    """Draws [number, 1, 2], uniform on the eight black squares of [−2, 2]²."""
    x, y = 4 * torch.rand(2, number, generator=rng) - 2
    y = torch.where((x.floor() + y.floor()) % 2 == 0, y, torch.where(y < 1, y + 1, y - 3))
    return torch.stack([x, y], -1).view(-1, 1, 2)


def mixture_path(generators: dict[str, float], bins: int) -> EuclideanPath:
    return EuclideanMixturePath(generators, -LIMIT, LIMIT, bins=Bins(-LIMIT, LIMIT, bins))


def condot(generators: dict[str, float], bins: int, path: type[GaussianPath] = GaussianPath) -> EuclideanPath:
    return fitted(two_modes, LIMIT, generators, bins, path)


def condot_plane(generators: dict[str, float], bins: int) -> EuclideanPath:
    return fitted(checkerboard, 2.0, generators, bins)


def fitted(
    data: Data, limit: float, generators: dict[str, float], bins: int, path: type[GaussianPath] = GaussianPath
) -> EuclideanPath:
    """The path for the data, in [−limit, limit]; a flow alone is predicted by its velocity, as in the paper."""
    sample = data(10_000, torch.Generator().manual_seed(0))
    prediction = "belief" if "jump" in generators else "velocity"
    return path.fit(sample, generators, prediction=prediction, bins=Bins(-limit, limit, bins))


# Networks and processes

FLOW, JUMP, BOTH = {"flow": 1.0}, {"jump": 1.0}, {"flow": 0.5, "jump": 0.5}


@dataclass(frozen=True)
class Network:
    """The data, the path and the generators that one network is trained on."""

    data: Data
    path: Callable[..., EuclideanPath]
    generators: dict[str, float]
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of GMConfig


NETWORKS = {
    "mixture_flow": Network(two_modes, mixture_path, FLOW),
    "mixture_jump": Network(two_modes, mixture_path, JUMP),
    "mixture_diffusion": Network(two_modes, mixture_path, {"diffusion": 1.0}),
    "mixture_both": Network(two_modes, mixture_path, BOTH),
    "condot_flow": Network(two_modes, condot, FLOW),
    "condot_jump": Network(two_modes, condot, JUMP),
    "condot_both": Network(two_modes, condot, BOTH),
    "plane_flow": Network(checkerboard, condot_plane, FLOW),
    "plane_jump": Network(checkerboard, condot_plane, JUMP),
    "plane_both": Network(checkerboard, condot_plane, BOTH),
}
PROCESSES: dict[str, tuple[str, ...]] = {  # the networks that are superposed, by title
    "mixture path: flow": ("mixture_flow",),
    "mixture path: jump": ("mixture_jump",),
    "mixture path: diffusion": ("mixture_diffusion",),
    "mixture path: ½ flow + ½ jump, one network": ("mixture_both",),
    "CondOT: flow": ("condot_flow",),
    "CondOT: jump": ("condot_jump",),
    "CondOT: ½ flow + ½ jump, one network": ("condot_both",),
    "CondOT: ½ flow + ½ jump, trained apart": ("condot_flow", "condot_jump"),
    "plane, CondOT: flow": ("plane_flow",),
    "plane, CondOT: jump": ("plane_jump",),
    "plane, CondOT: ½ flow + ½ jump, one network": ("plane_both",),
}


class PlainGaussianPath(GaussianPath):
    """Without preconditioning: the network's output is the velocity; its squared error has the same weight at all times."""

    type_name = "plain_gaussian"

    def output(self, head: str, raw: Tensor, x: Tensor, t: TimeLike) -> Tensor:
        return raw

    def units(self, t: TimeLike) -> Mapping[str, Tensor]:
        return {**super().units(t), "flow": torch.ones_like(self.at(t).alpha)}


def plain_condot(generators: dict[str, float], bins: int) -> EuclideanPath:
    return condot(generators, bins, PlainGaussianPath)


ABLATIONS = {
    "without input features": Network(two_modes, condot, FLOW, {"num_frequencies": 0}),
    "without preconditioning": Network(two_modes, plain_condot, FLOW),
    "without both": Network(two_modes, plain_condot, FLOW, {"num_frequencies": 0}),
}


def train(name: str, options: ToyArguments) -> float:
    """Trains one network, saves it, and returns the seconds of processor time."""
    started, network = time.process_time(), (NETWORKS | ABLATIONS)[name]
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    path = network.path(network.generators, options.num_bins)
    sizes: dict[str, Any] = {
        "hidden_size": options.hidden_size,
        "num_hidden_layers": options.num_hidden_layers,
        "num_attention_heads": 1,
        "num_frequencies": options.num_frequencies,
        "max_position_embeddings": 1,
    }
    chosen = json_dict("divergence", options.divergence)
    divergence = {part: kind for part, kind in chosen.items() if part in path.default_divergence}
    config = GMConfig(path=path, divergence=divergence, **sizes | network.options)
    model, rng = GMModel(config), torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0)
    warmup = min(100, options.training_steps // 10)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, options.training_steps)
    for _ in range(options.training_steps):
        loss = conditional_loss(model, network.data(options.batch_size, rng), rng=rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with published(folder_of(name, options)) as draft:
        model.save_pretrained(draft)
    return time.process_time() - started


def folder_of(name: str, options: ToyArguments) -> Path:
    return Path(options.output_dir) / "models" / name.replace(" ", "_")


@dataclass(frozen=True)
class Run:
    """A simulation: the states [S, N, L, C] at the times [S], the network calls and the seconds of processor time."""

    times: Tensor
    states: Tensor
    calls: int
    seconds: float


def sample(names: Sequence[str], options: ToyArguments) -> Run:
    """Simulates a network, or the superposition of two."""
    started = time.process_time()
    torch.set_num_threads(1)
    models = [GMModel.from_pretrained(folder_of(name, options)).eval() for name in names]
    model = superpose(models[0], models[1]) if len(models) == 2 else models[0]
    path: Any = model.path
    pure = set(path.generators) == {"diffusion"}  # on the mixture path its coarse steps would jump over the modes
    grid = time_grid(path, (4 if pure else 1) * options.num_steps, "geometric" if pure else None)
    rng = torch.Generator().manual_seed(options.seed + 1)
    x_0 = path.prior((options.num_samples, 1, path.num_channels), rng)
    run = simulate(model, x_0, grid, rng, save_at=range(len(grid)), return_info=True)
    calls = len(models) * int(run.network_calls[0])
    return Run(grid, torch.stack(run.states), calls, time.process_time() - started)


# Distances


def marginal_at(path: EuclideanPath, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """(density, distribution function) of p_t at the points x, for `two_modes` as data."""
    if isinstance(path, GaussianPath):
        alpha, sigma = t, 1 - t  # CondOT
        mass = torch.ones(())
    else:
        alpha, sigma, mass = 1.0, 0.0, torch.tensor(t)
    std = ((alpha * STDS) ** 2 + sigma**2).sqrt()
    w = (x.double()[..., None] - alpha * MEANS) / std
    density = (MODE_WEIGHTS * torch.exp(-w * w / 2) / std).sum(-1) / math.sqrt(2 * math.pi)
    function = (MODE_WEIGHTS * torch.special.ndtr(w)).sum(-1)
    uniform = ((x.double() + LIMIT) / (2 * LIMIT)).clamp(0, 1)
    return mass * density + (1 - mass) / (2 * LIMIT), mass * function + (1 - mass) * uniform


def kolmogorov(x: Tensor, path: EuclideanPath, t: float) -> float:
    """sup |F_n − F| of the samples against p_t."""
    x = x.flatten().double().sort().values
    function, i = marginal_at(path, t, x)[1], torch.arange(len(x) + 1, dtype=torch.float64) / len(x)
    return float(torch.maximum((i[1:] - function).max(), (function - i[:-1]).max()))


KOLMOGOROV_MEAN = math.sqrt(math.pi / 2) * math.log(2)
"""Mean of √n KS for exact samples, as n → ∞."""


def sliced_wasserstein(x: Tensor, y: Tensor, directions: int = 64) -> float:
    """Mean over directions of ∫ |F⁻¹ − G⁻¹| of the projections of two sets of N points [N, …]."""
    angles = torch.arange(directions, dtype=torch.float64) * math.pi / directions
    axes = torch.stack([angles.cos(), angles.sin()])
    along = [(points.flatten(1).double() @ axes).sort(0).values for points in (x, y)]
    return float((along[0] - along[1]).abs().mean())


def distances(names: Sequence[str], run: Run, options: ToyArguments) -> dict[str, Any]:
    """Distances from the exact marginals at about t = ½ and at t = 1, and that of an exact sample."""
    network = (NETWORKS | ABLATIONS)[names[0]]
    path, n = network.path(network.generators, options.num_bins), run.states.shape[1]
    middle = int((run.times < 0.5).sum())
    found: dict[str, Any] = {"network calls": run.calls, "steps": len(run.times) - 1, "t": float(run.times[middle])}
    if network.data is two_modes:
        at = {"middle": (middle, float(run.times[middle])), "end": (-1, 1.0)}
        found |= {f"KS, {when}": kolmogorov(run.states[i], path, t) for when, (i, t) in at.items()}
        return found | {"KS of the truth": KOLMOGOROV_MEAN / math.sqrt(n)}
    rng = torch.Generator().manual_seed(options.seed + 2)
    truth, again = network.data(n, rng), network.data(n, rng)
    noised = path.sample(truth, run.times[middle].expand(n), rng)
    found |= {"SW, middle": sliced_wasserstein(run.states[middle], noised)}
    found |= {"SW, end": sliced_wasserstein(run.states[-1], truth), "SW of the truth": sliced_wasserstein(again, truth)}
    return found


# Picture

INK, TRUTH = "#0072B2", "#D55E00"
CELLS, PATHS_SHOWN, FRAMES, COLOURS = 100, 25, (0.0, 0.4, 0.7, 1.0), 64


def picture(runs: Mapping[str, Run], results: Mapping[str, dict[str, Any]], options: ToyArguments, file: Path) -> None:
    """Draws a row for each process: p_t as simulated, exact p_t, sample paths, and the samples at t = 1."""
    figure, axes = pyplot.subplots(len(runs), 4, figsize=(13, 2.2 * len(runs)), layout="constrained", squeeze=False)
    heads = ("p_t, simulated", "p_t, exact", "sample paths", "at t = 1")
    for row, (title, run) in zip(axes, runs.items(), strict=True):
        network = NETWORKS[PROCESSES[title][0]]
        path = network.path(network.generators, options.num_bins)
        (line if network.data is two_modes else plane)(row, run, path, network.data, options)
        found = results[title]
        kind = "KS" if "KS, end" in found else "SW"
        label = "KS" if kind == "KS" else "SW₁"
        row[0].set_ylabel(title.replace(": ", ":\n").replace(", ", ",\n", 1), fontsize=8)
        row[3].set_title(f"{label} {found[f'{kind}, end']:.3f} (truth {found[f'{kind} of the truth']:.3f})", fontsize=8)
        row[0].set_title(f"{label} {found[f'{kind}, middle']:.3f} at t = {found['t']:.2f}", fontsize=8)
        row[2].set_title(f"{found['network calls']} network calls", fontsize=8)
    for axis, head in zip(axes[0], heads, strict=True):
        axis.set_title(f"{head}\n{axis.get_title()}", fontsize=8)
    for axis in axes.flatten():
        axis.tick_params(labelsize=6)
    drawn, draft = BytesIO(), file.with_name(f"{file.name}.draft")
    figure.savefig(drawn, format="png", dpi=75)
    pyplot.close(figure)
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(draft, "PNG", optimize=True)
    draft.replace(file)


def line(row: Any, run: Run, path: EuclideanPath, data: Data, options: ToyArguments) -> None:
    """Draws the row of a one-dimensional process."""
    edges = torch.linspace(-LIMIT, LIMIT, CELLS + 1)
    centers, width = ((edges[1:] + edges[:-1]) / 2).double(), 2 * LIMIT / CELLS
    times = run.times.float()
    simulated = torch.stack([state.flatten().float().histc(CELLS, -LIMIT, LIMIT) for state in run.states])
    simulated = simulated / run.states.shape[1] / width
    exact = torch.stack([marginal_at(path, float(t), centers)[0] for t in run.times])
    for axis, density in zip(row, (simulated, exact), strict=False):
        axis.pcolormesh(times, centers, density.T, vmax=0.55, cmap="magma", rasterized=True)
    row[2].plot(times, run.states[:, :PATHS_SHOWN].flatten(1), lw=0.5, alpha=0.8)
    for axis in row[:3]:
        axis.set(xlim=(0, 1), ylim=(-LIMIT, LIMIT))
    row[3].stairs(simulated[-1], edges, fill=True, color=INK, alpha=0.6)
    row[3].plot(centers, exact[-1], color=TRUTH, lw=1)
    row[3].set(xlim=(-LIMIT, LIMIT), ylim=(0, 0.6))


def plane(row: Any, run: Run, path: EuclideanPath, data: Data, options: ToyArguments) -> None:
    """Draws the row of a two-dimensional process: p_t at a few times, side by side."""
    rng = torch.Generator().manual_seed(options.seed + 3)
    n, cells, reach = run.states.shape[1], 48, 2.4

    def shown(points: Tensor) -> Tensor:
        bins = [torch.linspace(-reach, reach, cells + 1)] * 2
        return torch.histogramdd(points.flatten(1).float().cpu(), bins).hist.T

    places = [min(int((run.times < t).sum()), len(run.times) - 1) for t in FRAMES]
    times = [run.times[i].expand(n) for i in places]
    exact = [path.sample(data(n, rng), t, rng) if float(t[0]) < 1 else data(n, rng) for t in times]
    for axis, points in ((row[0], [run.states[i] for i in places]), (row[1], exact)):
        axis.imshow(torch.cat([shown(each) for each in points], 1), origin="lower", cmap="magma", aspect="auto")
        labels = [f"t = {abs(float(t[0])):.2g}" for t in times]
        axis.set(xticks=[cells * (i + 0.5) for i in range(len(times))], xticklabels=labels, yticks=[])
    row[2].plot(*run.states[:, : PATHS_SHOWN // 2].flatten(2).permute(2, 0, 1), lw=0.5, alpha=0.8)
    row[3].plot(*run.states[-1, :4000].flatten(1).T, ".", ms=1, color=INK)
    for axis in row[2:]:
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach))


# The whole run


@contextmanager
def pool(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """A `map` over worker processes; with one worker, in this process."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        yield executor.map


def main(argv: list[str] | None = None) -> dict[str, Any]:
    print_anywhere()
    (options,) = HfArgumentParser(ToyArguments).parse_args_into_dataclasses(argv)  # pyright: ignore
    if options.quick:
        options = replace(options, training_steps=2, batch_size=16, num_samples=64, num_steps=4, hidden_size=8)
    with locked(options.output_dir):
        return run(options) if PartialState().is_main_process else {}  # other processes have nothing to do


def run(options: ToyArguments) -> dict[str, Any]:
    """Trains all networks, samples them, and draws."""
    started, output = time.perf_counter(), Path(options.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    learned = list(NETWORKS) + (list(ABLATIONS) if options.ablation else [])
    with pool(options.workers) as spread:
        seconds = dict(zip(learned, spread(train, learned, [options] * len(learned)), strict=True))
        print(f"{len(learned)} networks trained, {time.perf_counter() - started:.0f} s", flush=True)
        wanted = PROCESSES | {name: (name,) for name in learned if name in ABLATIONS}
        runs = dict(zip(wanted, spread(sample, wanted.values(), [options] * len(wanted)), strict=True))
    results = {title: distances(wanted[title], run, options) for title, run in runs.items()}
    for title, found in results.items():
        figures = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        print(f"{title}: {figures}", flush=True)
    picture({title: runs[title] for title in PROCESSES}, results, options, output / "processes.png")
    spent = {"training": seconds, "sampling": {title: run.seconds for title, run in runs.items()}}
    spent |= {"wall": time.perf_counter() - started}
    metrics = {"settings": vars(options), "processes": results, "seconds": spent}
    write_json(output / "metrics.json", metrics)
    print(f"{spent['wall']:.0f} s; written to {output}/: processes.png, metrics.json, models", flush=True)
    return metrics


if __name__ == "__main__":
    run_script(main)
