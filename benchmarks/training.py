"""Time and memory of a training step: `gm_discrete.conditional_loss` against the dense loss of flow_matching.

    python benchmarks/training.py --threads 2 --output training.json

Same network, same data z, times uniform on (0, 1), linear schedule, mixture rates. A step draws (t, x_t), runs forward
and backward (with `--optimizer`, also AdamW). The peer (flow_matching, arXiv 2412.06264, the installed package) draws x_t
with its own path and puts the network's dense logits [B, L, K] into `MixturePathGeneralizedKL`. All sides are warmed up,
then take turns; the median of the rounds is reported.

The floor is a lower bound of the time: forward and backward of the backbone, and of the head with a cross-entropy on the
positions that can jump (masking: those that are masked; uniform: all), at the (t, x_t) of our step. Memory is the peak
beyond the model and z, each side in a process of its own; it includes the gradients. Before the clock starts, both losses
and their gradients are compared at one (t, x_t): the last column is the greater of the relative differences.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from statistics import median

import torch
from flow_matching.loss import MixturePathGeneralizedKL
from flow_matching.path import MixtureDiscreteProbPath
from flow_matching.path.scheduler import PolynomialConvexScheduler
from measure import (
    environment,
    in_fresh_process,
    interleaved,
    markdown,
    mebibytes,
    medians,
    network,
    network_arguments,
    parse,
    path_of,
    peak_memory,
    report,
)
from torch import Tensor
from torch.nn import functional as F

from gm_discrete import UniformTimeSampler, conditional_loss
from gm_discrete.objective import corrupt

SIDES = ("ours", "floor", "peer")


class Sides:
    """The losses to compare, for one network and one batch."""

    def __init__(self, path_name: str, args: argparse.Namespace) -> None:
        self.path, self.seed, self.device = path_of(path_name, args.vocab_size), args.seed, args.device
        self.bf16 = args.bf16
        self.model = network(self.path, args).train()
        symbols, shape = args.vocab_size - 1, (args.batch_size, args.length)  # never the mask
        self.z = torch.randint(symbols, shape, generator=self._rng(), device=args.device)
        whole = {"": torch.ones_like(self.z, dtype=torch.bool)}
        x, self.t = corrupt(self.path, {"": self.z}, whole, self._rng(), UniformTimeSampler())
        self.x = x[""]
        self.scored = (self.path.conditional(self.z, self.x, self.t).intensity > 0).flatten().nonzero().squeeze(1)
        self.peer_path = MixtureDiscreteProbPath(PolynomialConvexScheduler(1.0))
        self.peer_loss = MixturePathGeneralizedKL(self.peer_path)

    def ours(self) -> Tensor:
        return conditional_loss(self.model, self.z, rng=self._rng(), time_sampler=UniformTimeSampler())

    def peer(self) -> Tensor:
        torch.manual_seed(self.seed)  # it uses the global generator only
        t = torch.rand(len(self.z), device=self.device)
        x_0 = self.path.prior(self.z.shape, device=self.device)
        return self.dense(self.peer_path.sample(x_0, self.z, t).x_t, t)

    def dense(self, x: Tensor, t: Tensor) -> Tensor:
        """The peer's loss at (t, x)."""
        return self.peer_loss(self.model(input_ids=x, time=t).logits, self.z, x, t)

    def floor(self) -> Tensor:
        hidden = self.model.backbone.finish(self.model.network.hidden({"": self.x}, self.t), self.t)
        return F.cross_entropy(
            self.model.heads["tokens"](hidden.flatten(0, 1)[self.scored]), self.z.flatten()[self.scored]
        )

    def disagreement(self) -> float:
        """Greater of the relative differences of the two losses and of their gradients, at our (t, x)."""
        values, gradients = [], []
        for loss in (self.ours(), self.dense(self.x, self.t)):
            gradients.append(torch.autograd.grad(loss, list(self.model.parameters())))
            values.append(float(loss.detach()))
        distance = sum((a - b).square().sum() for a, b in zip(*gradients, strict=True))
        size = sum(b.square().sum() for b in gradients[1])
        return max(abs(values[0] / values[1] - 1), float(torch.as_tensor(distance / size).sqrt()))

    def step(self, side: str, optimizer: torch.optim.Optimizer | None = None) -> None:
        """One training step of a side."""
        self.model.zero_grad()
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16):
            loss = getattr(self, side)()
        loss.backward()
        if optimizer is not None:
            optimizer.step()

    def _rng(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed)


def compare(path_name: str, args: argparse.Namespace) -> dict:
    """All figures of one path."""
    sides = Sides(path_name, args)
    disagreement = sides.disagreement()
    optimizer = torch.optim.AdamW(sides.model.parameters(), lr=0.0) if args.optimizer else None
    functions: dict[str, Callable[[], object]] = {side: lambda side=side: sides.step(side, optimizer) for side in SIDES}
    interleaved(functions, 1, args.device)  # warms up
    times = interleaved(functions, args.pairs, args.device)
    typical = medians(times)
    return {
        "path": path_name,
        "scored_positions": len(sides.scored),
        **{f"{side}_s": typical[side] for side in SIDES},
        "speedup": typical["peer"] / typical["ours"],
        "over_floor": median(ours / floor for ours, floor in zip(times["ours"], times["floor"], strict=True)),
        "relative_disagreement": disagreement,
        "rounds": times,
    }


def peak(side: str, path_name: str, args: argparse.Namespace) -> int:
    """Peak memory of a step of one side."""
    torch.set_num_threads(args.threads)
    sides = Sides(path_name, args)
    with torch.no_grad():
        sides.model.backbone({"": sides.x[:1]}, sides.t[:1])  # so that torch's lazy initialisation is not counted
    return peak_memory(lambda: sides.step(side), args.device)


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    network_arguments(parser)
    parser.add_argument("--optimizer", action="store_true", help="also take a step of AdamW")
    args = parse(parser, argv)

    memory = {}
    for path_name in () if args.skip_memory else args.paths:
        memory[path_name] = {side: in_fresh_process(peak, side, path_name, args) for side in SIDES}
    results = [compare(path_name, args) for path_name in args.paths]

    table = [
        {
            "path": result["path"],
            "positions that can jump": f"{result['scored_positions']} of {args.batch_size * args.length}",
            "ours": f"{result['ours_s']:.2f} s",
            "flow_matching": f"{result['peer_s']:.2f} s",
            "speedup": f"{result['speedup']:.1f}×",
            "floor": f"{result['floor_s']:.2f} s",
            "ours / floor": f"{result['over_floor']:.2f}",
            "disagreement": f"{result['relative_disagreement']:.0e}",
        }
        for result in results
    ]
    tables = [markdown(table)]
    if memory:
        sizes = [
            {
                "path": path_name,
                "ours": mebibytes(sides["ours"]),
                "flow_matching": mebibytes(sides["peer"]),
                "floor": mebibytes(sides["floor"]),
            }
            for path_name, sides in memory.items()
        ]
        tables.append(f"Peak memory beyond model and z:\n\n{markdown(sizes)}")
    record = {
        "benchmark": "training",
        "environment": environment(args.device, __file__, argv),
        "settings": vars(args),
        "results": results,
        "peak_memory_bytes": memory,
    }
    report(record, tables, args.output)


if __name__ == "__main__":
    main()
