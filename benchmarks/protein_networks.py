"""Networks of proteins.py: their data, training and sampling."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gm_discrete import GMModel, ProductPath, SO3Path, simulate
from gm_discrete.generators import Flow, Product, Superposition, quaternions
from gm_discrete.process import State, Times
from recipes import proteins
from recipes.datasets import download_theseus, load_proteins

NETWORKS = {
    "flow": "so3", "jump": "so3", "flow+jump": "so3", "geodesic": "geodesic", "plugged": "geodesic",
    "plugged-jump": "geodesic",
}  # fmt: skip
"""The network of each mode."""
WEIGHTS = {
    "flow": {"flow": 1.0}, "jump": {"jump": 1.0}, "flow+jump": {"flow": 0.5, "jump": 0.5},
    "plugged": {"flow": 0.5, "jump": 0.5}, "plugged-jump": {"flow": 0.0, "jump": 1.0},
}  # fmt: skip
"""Weights of the generators of rotations."""
SETTINGS = {
    "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 8, "num_components": 16, "residues": False,
    "times": "logit_normal", "times_mean": 1.0, "times_std": 1.5, "muon": True, "muon_learning_rate": 0.02,
    "learning_rate": 2e-3, "adam_beta2": 0.95, "warmup_steps": 50, "lr_scheduler_type": "linear", "ema_decay": 0.99,
    "per_device_train_batch_size": 16, "per_device_eval_batch_size": 32, "max_eval_windows": 64, "logging_steps": 100,
    "save_steps": 500, "save_total_limit": 1, "num_samples": 2, "num_steps": 2, "report_to": "none", "disable_tqdm": True,
}  # fmt: skip
"""Arguments of recipes/proteins.py: a network for the CPU."""

Atoms = NDArray[np.float64]
"""N, CA and C of each residue, [L, 3, 3] in Å."""
Breaks = NDArray[np.bool_]
"""Which residues are not bonded to the one before, [L]."""


@dataclass(frozen=True)
class Training:
    """What to train: the network "so3" or "geodesic", and the settings of the command line."""

    network: str
    settings: argparse.Namespace


def chains(data: str, split: str, shortest: int) -> list[tuple[Atoms, Breaks]]:
    """The backbones of a split, "train" or "validation", cut at breaks, of `shortest` or more residues; and their breaks."""
    if data == "theseus":
        download_theseus()
    return [(chain.atoms.astype(np.float64), chain.breaks) for chain in load_proteins(data, split, shortest=shortest)]


def train(config: Training, seed: int) -> GMModel:
    """Trains a network, or loads it from the folder where an earlier run left it."""
    args = config.settings
    folder = args.folder / f"{config.network}-{args.training_steps}-{seed}"
    if not (folder / "metrics.json").exists():  # the last file of a run
        options: dict[str, Any] = SETTINGS | {
            "data": args.data, "rotations": config.network, "max_steps": args.training_steps,
            "length": max(args.lengths), "shortest_crop": min(args.lengths), "shortest": max(args.lengths),
            "seed": seed, "output_dir": folder, "use_cpu": args.device == "cpu",
        }  # fmt: skip
        proteins.main([word for name, value in options.items() for word in (f"--{name}", str(value))])
    return GMModel.from_pretrained(folder).to(args.device)


def sample(model: GMModel, mode: str, lengths: Sequence[int], steps: int, seed: int) -> list[Atoms]:
    """One backbone for each length, in so many steps of a mode of `NETWORKS`."""

    def draw(count: int, length: int) -> State:
        if mode.startswith("plugged"):
            return plugged_samples(model, WEIGHTS[mode], count, length, steps, seed)
        generators = {"rotation": WEIGHTS[mode]} if mode in WEIGHTS else None
        return model.generate(batch_size=count, length=length, num_steps=steps, seed=seed, generators=generators)

    made: dict[int, list[dict[str, Tensor]]] = {}
    for length in sorted(set(lengths)):  # a batch of one length has no padding
        batch = draw(list(lengths).count(length), length)
        made[length] = [
            dict(zip(batch, row, strict=True)) for row in zip(*(x.cpu() for x in batch.values()), strict=True)
        ]
    return [proteins.backbone_of(made[length].pop(0)) for length in lengths]


@final
class PluggedJumps:
    """A network trained on the geodesic path, with jumps of the von Mises–Fisher path: those given its predicted rotation.

    The flow is the network's own. The two solve the Kolmogorov equations of different paths, so that their superposition
    solves neither. Source: MultiJump.

    Args:
        model: a network whose field `rotation` has a `GeodesicSO3Path`.
        weights: of "flow" and "jump".
    """

    def __init__(self, model: GMModel, weights: dict[str, float]) -> None:
        self.model, self.path, self.jumps = model, model.path, SO3Path(weights)

    def generator(self, x: State, t: Any, t_next: Any = None) -> Product:
        found = cast(Product, self.model.generator(x, t, t_next))
        own = cast(Superposition, found.factors["rotation"])
        now, end = _time(t), None if t_next is None else _time(t_next)
        velocity = cast(Flow, own.parts["flow"]).velocity
        clean = quaternions.move(x["rotation"], velocity * (1 - now).view(-1, 1, 1).to(velocity.dtype))
        given = self.jumps.conditional(clean, x["rotation"], now, end, check=False)
        parts = {"flow": own.parts["flow"], "jump": given.parts["jump"]}
        return Product(
            {**found.factors, "rotation": Superposition(parts, {name: given.weights[name] for name in parts})}
        )


def _time(t: Tensor | Times) -> Tensor:
    """[B]; the fields share it."""
    return t if isinstance(t, Tensor) else t["rotation"]


def plugged_samples(model: GMModel, weights: dict[str, float], count: int, length: int, steps: int, seed: int) -> State:
    """Samples of `PluggedJumps`."""
    rng = torch.Generator(model.device).manual_seed(seed)
    sizes = {"rotation": (4,), "translation": (3,), "residue": ()}
    path = cast(ProductPath, model.path)
    x_0 = path.prior({name: (count, length, *sizes[name]) for name in path.fields}, rng, model.device)
    return simulate(PluggedJumps(model, weights), x_0, torch.linspace(0, 1, steps + 1), rng)
