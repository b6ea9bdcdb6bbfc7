"""Time and memory of sampling: `gm_discrete.simulate` against flow_matching's `MixtureDiscreteEulerSolver`.

    python benchmarks/sampling.py --threads 2 --output sampling.json

Both simulate the same process (linear schedule, mixture rates) with the same network on the same grid: ours by
tau-leaping, the peer (flow_matching, arXiv 2412.06264, the installed package) by its Euler steps, with the softmax of the
network's dense logits as its model. Both are warmed up and then take turns; the median of the rounds is reported. A step
costs the peer the same at any time, so beyond `--peer-steps` steps its time is extrapolated from its time per step and
marked with ~.

The floor is what the network alone costs: the backbone on the very inputs that it saw in our run, one call after the
other; and then the head on the very rows that it was asked for. `calls` counts sequences sent through the backbone, per
sample; the peer needs one per step. `--methods` runs other samplers in place of the peer's: each against its own floor.
Memory is the peak beyond the model and x_0, each in a process of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from flow_matching.path import MixtureDiscreteProbPath
from flow_matching.path.scheduler import PolynomialConvexScheduler
from flow_matching.solver import MixtureDiscreteEulerSolver
from flow_matching.utils import ModelWrapper
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

from gm_discrete import Adaptive, GMModel, Sampler, Uniformization, simulate
from gm_discrete.samplers import SAMPLERS, samplers_for


class DenseModel(ModelWrapper):
    """What the peer asks of a network: probabilities [B, L, K] of the data symbols."""

    def __init__(self, model: GMModel) -> None:
        super().__init__(model)

    def forward(self, x: Tensor, t: Tensor, **_: object) -> Tensor:
        return self.model(input_ids=x, time=t).logits.softmax(-1)


class Sides:
    """Our sampler and the peer's, from the same x_0 with the same network."""

    def __init__(self, path_name: str, args: argparse.Namespace) -> None:
        path = path_of(path_name, args.vocab_size)
        self.seed, self.device = args.seed, args.device
        self.model = network(path, args).eval()
        if args.bf16:
            self.model.bfloat16()
        self.x_0 = path.prior((args.batch_size, args.length), self._rng(), args.device)
        peer_path = MixtureDiscreteProbPath(PolynomialConvexScheduler(1.0))
        self.solver = MixtureDiscreteEulerSolver(DenseModel(self.model), peer_path, args.vocab_size)

    def ours(self, steps: int, sampler: str | Sampler = "tau_leaping") -> Tensor:
        return simulate(self.model, self.x_0, torch.linspace(0, 1, steps + 1), self._rng(), sampler)

    def peer(self, steps: int) -> Tensor:
        torch.manual_seed(self.seed)  # it knows the global generator only
        return self.solver.sample(self.x_0, step_size=None, time_grid=torch.linspace(0, 1, steps + 1))

    def recorded(self, steps: int, sampler: str | Sampler = "tau_leaping") -> tuple[list[tuple], list[Tensor]]:
        """The arguments of every call of the backbone and of the head in the run `ours(steps, sampler)`."""
        calls: list[tuple] = []
        rows: list[Tensor] = []
        hooks = [
            self.model.backbone.register_forward_pre_hook(lambda _, given: calls.append(given)),
            self.model.heads["tokens"].register_forward_pre_hook(lambda _, given: rows.append(given[0])),
        ]
        self.ours(steps, sampler)
        for hook in hooks:
            hook.remove()
        return calls, rows

    def backbone(self, *call: Any) -> Tensor:
        """Final hidden states of every position, in a recorded call of the backbone."""
        return self.model.backbone.finish(self.model.backbone(*call), call[1])

    def _rng(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed)


@torch.no_grad()
def compare(path_name: str, args: argparse.Namespace) -> list[dict]:
    """One entry for each number of steps."""
    sides = Sides(path_name, args)
    sides.peer(2)
    results = []
    for steps in args.steps:
        peer_steps = min(steps, args.peer_steps)
        calls, rows = sides.recorded(steps)  # also warms up
        functions: dict[str, Callable[[], object]] = {
            "ours": lambda steps=steps: sides.ours(steps),
            "backbone": lambda calls=calls: [sides.backbone(*given) for given in calls],
            "head": lambda rows=rows: [sides.model.heads["tokens"](hidden) for hidden in rows],
        }
        if steps <= args.peer_steps or not results:
            functions["peer"] = lambda peer_steps=peer_steps: sides.peer(peer_steps)
        times = interleaved(functions, args.pairs, args.device)
        if "peer" not in times:  # the longest run so far tells its time per step
            times["peer"] = results[-1]["rounds"]["peer"]
            peer_steps = results[-1]["peer_steps"]
        typical = medians(times)
        peer = typical["peer"] * steps / peer_steps
        results.append(
            {
                "path": path_name,
                "steps": steps,
                "ours_s": typical["ours"],
                "peer_s": peer,
                "peer_steps": peer_steps,
                "peer_extrapolated": peer_steps < steps,
                "speedup": peer / typical["ours"],
                "backbone_s": typical["backbone"],
                "head_s": typical["head"],
                "over_backbone": median(_ratios(times, "backbone")),
                "over_backbone_and_head": median(_ratios(times, "backbone", "head")),
                "calls_per_sample": sum(len(given[0][""]) for given in calls) / args.batch_size,
                "rows_per_position": sum(map(len, rows)) / (args.batch_size * args.length),
                "rounds": times,
            }
        )
        print(f"{path_name}, {steps} steps: ours {typical['ours']:.2f} s, peer {peer:.2f} s", file=sys.stderr)
    return results


@torch.no_grad()
def compare_methods(path_name: str, args: argparse.Namespace) -> list[dict]:
    """One entry for each sampler that suits the path, on the first number of steps where it has a grid."""
    sides, results = Sides(path_name, args), []
    for method in (method for method in args.methods if method in samplers_for(sides.model.path)):
        steps, options = 1 if SAMPLERS[method].chooses_times else args.steps[0], {}
        if method == "adaptive":
            options, sampler = {"max_expected_changes": args.max_expected_changes}, Adaptive(args.max_expected_changes)
        elif method == "uniformization":
            options, sampler = {"tolerance": args.tolerance}, Uniformization(args.tolerance)
        else:
            sampler = Sampler.of(method)
        calls, rows = sides.recorded(steps, sampler)
        functions: dict[str, Callable[[], object]] = {
            "ours": lambda steps=steps, sampler=sampler: sides.ours(steps, sampler),
            "backbone": lambda calls=calls: [sides.backbone(*given) for given in calls],
            "head": lambda rows=rows: [sides.model.heads["tokens"](hidden) for hidden in rows],
        }
        times = interleaved(functions, args.pairs, args.device)
        results.append(
            {
                "path": path_name,
                "method": method,
                "options": options or {"steps": steps},
                "ours_s": median(times["ours"]),
                "backbone_s": median(times["backbone"]),
                "over_backbone": median(_ratios(times, "backbone")),
                "over_backbone_and_head": median(_ratios(times, "backbone", "head")),
                "calls_per_sample": sum(len(given[0][""]) for given in calls) / args.batch_size,
                "rows_per_position": sum(map(len, rows)) / (args.batch_size * args.length),
                "rounds": times,
            }
        )
        print(f"{path_name}, {method}: {results[-1]['ours_s']:.2f} s", file=sys.stderr)
    return results


def _ratios(times: dict[str, list[float]], *floor: str) -> list[float]:
    """Our time over the sum of the floor's parts, round by round."""
    return [ours / sum(parts) for ours, *parts in zip(times["ours"], *(times[name] for name in floor), strict=True)]


def peak(side: str, path_name: str, args: argparse.Namespace) -> int:
    """Peak memory of one side: of two steps for the peer, whose steps are all alike, of the coarsest grid for ours."""
    torch.set_num_threads(args.threads)
    sides = Sides(path_name, args)
    with torch.no_grad():
        sides.model.backbone(
            {"": sides.x_0[:1]}, torch.zeros(1, device=args.device)
        )  # loads what torch loads on first use
    return peak_memory(lambda: sides.peer(2) if side == "peer" else sides.ours(min(args.steps)), args.device)


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    network_arguments(parser)
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[16, 32, 128, 1024], help="numbers of steps, increasing"
    )
    parser.add_argument("--peer-steps", type=int, default=32, help="most steps for which the peer is run")
    parser.add_argument("--methods", nargs="+", choices=list(SAMPLERS), help="samplers to time in place of the peer")
    parser.add_argument("--max-expected-changes", type=float, default=8.0, help="of adaptive")
    parser.add_argument("--tolerance", type=float, default=0.1, help="of uniformization")
    args = parse(parser, argv, steps=[2, 4, 8], peer_steps=4)
    if args.methods:
        results = [result for path_name in args.paths for result in compare_methods(path_name, args)]
        table = [
            {
                "path": result["path"],
                "sampler": result["method"],
                "with": ", ".join(f"{name} {value:g}" for name, value in result["options"].items()).replace("_", " "),
                "time": f"{result['ours_s']:.2f} s",
                "calls": f"{result['calls_per_sample']:.1f}",
                "backbone alone": f"{result['backbone_s']:.2f} s",
                "time / backbone": f"{result['over_backbone']:.2f}",
                "time / (backbone + head)": f"{result['over_backbone_and_head']:.2f}",
            }
            for result in results
        ]
        record = {
            "benchmark": "sampling",
            "environment": environment(args.device, __file__, argv),
            "settings": vars(args),
            "results": results,
        }
        report(record, [markdown(table)], args.output)
        return

    memory = {}
    for path_name in () if args.skip_memory else args.paths:
        memory[path_name] = {side: in_fresh_process(peak, side, path_name, args) for side in ("ours", "peer")}
    results = [result for path_name in args.paths for result in compare(path_name, args)]

    table = [
        {
            "path": result["path"],
            "steps": str(result["steps"]),
            "ours": f"{result['ours_s']:.2f} s",
            "flow_matching": f"{'~' * result['peer_extrapolated']}{result['peer_s']:.2f} s",
            "speedup": f"{result['speedup']:.1f}×",
            "calls": f"{result['calls_per_sample']:.1f}",
            "backbone alone": f"{result['backbone_s']:.2f} s",
            "ours / backbone": f"{result['over_backbone']:.2f}",
            "ours / (backbone + head)": f"{result['over_backbone_and_head']:.2f}",
        }
        for result in results
    ]
    tables = [markdown(table)]
    if any(result["peer_extrapolated"] for result in results):
        tables.append("~: extrapolated from its time per step in the longest run that was measured.")
    if memory:
        sizes = [
            {"path": path_name, "ours": mebibytes(sides["ours"]), "flow_matching": mebibytes(sides["peer"])}
            for path_name, sides in memory.items()
        ]
        tables.append(f"Peak memory beyond model and x_0:\n\n{markdown(sizes)}")
    record = {
        "benchmark": "sampling",
        "environment": environment(args.device, __file__, argv),
        "settings": vars(args),
        "results": results,
        "peak_memory_bytes": memory,
    }
    report(record, tables, args.output)


if __name__ == "__main__":
    main()
