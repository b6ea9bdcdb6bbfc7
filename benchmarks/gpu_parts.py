"""The parts of gpu.py. Each yields a row for every figure, and begins none when its time has passed."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import chains
import numpy as np
import sampling
import torch
import training
from device import operations, replayed, training_flops, waits
from gpu_recipe import bare_arguments, run_recipe
from gpu_tables import Row
from measure import chance, interleaved, seconds

from gm_discrete import Adaptive, Euler, MaskedPath, TauLeaping, UniformPath, simulate, time_grid
from gm_discrete.paths.check import ExactModel


class Clock:
    """The time that a part may take: it begins nothing when it has passed."""

    def __init__(self, allowed: float) -> None:
        self.end = time.monotonic() + allowed

    def has_time(self, needed: float = 0.0) -> bool:
        """Whether something may begin that takes so many seconds."""
        return time.monotonic() + needed < self.end


def training_part(args: argparse.Namespace, clock: Clock) -> Iterator[Row]:
    for path_name in args.paths:
        sides = training.Sides(path_name, args)
        optimizer = torch.optim.AdamW(sides.model.parameters(), lr=0.0, fused=True)
        yield from training_steps(sides, optimizer, path_name, False, args)
        if clock.has_time():
            compile_layers(sides.model, args)
            yield from training_steps(sides, optimizer, path_name, True, args)
        del sides, optimizer
        release()


def training_steps(
    sides: training.Sides, optimizer: torch.optim.Optimizer, path_name: str, compiled: bool, args: argparse.Namespace
) -> Iterator[Row]:
    """A row for each side, after all have taken turns."""

    def step(side: str, number: int = 1) -> None:
        for _ in range(number):
            sides.seed += 1
            sides.step(side, optimizer)

    on_gpu = args.device.startswith("cuda")
    first = {side: seconds(partial(step, side), args.device) for side in training.SIDES}  # compiles
    functions = {side: partial(step, side, args.steps_per_round) for side in training.SIDES}
    interleaved(functions, 1, args.device)  # warms up
    times = interleaved(functions, args.pairs, args.device)
    tokens, config = args.batch_size * args.length, sides.model.config
    flops = training_flops(
        config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.vocab_size, args.length,
        tokens, len(sides.scored),
    )  # fmt: skip
    for side in training.SIDES:
        each = median(times[side]) / args.steps_per_round
        with waits(args.device) as found:
            step(side)
        yield {
            "path": path_name,
            "compiled": compiled,
            "side": side,
            "step_s": each,
            "tokens_per_s": tokens / each,
            "peak_share": flops / each / args.peak if args.peak else None,
            "memory_gib": peak_gib(partial(step, side), args.device),
            **operations(partial(step, side), args.device),
            "waits": len(found) if on_gpu else None,
            "waits_at": found[:20],
            "first_step_s": first[side],
            "rounds": times[side],
        }


def compile_layers(model: Any, args: argparse.Namespace) -> None:
    """Compiles each layer, for good."""
    model.compile_layers(backend=args.backend)


def peak_gib(function: Callable[[], object], device: str) -> float | None:
    """GiB allocated at the peak of a call, weights and optimizer included; `None` on a CPU."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


@torch.no_grad()
def sampling_part(args: argparse.Namespace, clock: Clock) -> Iterator[Row]:
    for sequences in args.sequences:
        sides = sampling.Sides("masked", argparse.Namespace(**{**vars(args), "batch_size": sequences}))
        sizes: dict[int, list[int]] = {}
        if clock.has_time():
            yield from sampled(sides, sizes, False, args, clock)
        if clock.has_time():
            compile_layers(sides.model, args)
            yield from sampled(sides, sizes, True, args, clock)
        del sides
        release()


def generate(sides: sampling.Sides, steps: int, compiled: bool) -> None:
    sequences, length = sides.x_0.shape
    sides.model.generate(batch_size=sequences, length=length, num_steps=steps, seed=sides.seed, compile=compiled)


def counted(sides: sampling.Sides, steps: int, sizes: dict[int, list[int]]) -> None:
    """Generates, and records the number of sequences in each call of the backbone."""
    sizes[steps] = []
    hook = sides.model.backbone.register_forward_pre_hook(lambda _, given: sizes[steps].append(len(given[0][""])))
    generate(sides, steps, False)
    hook.remove()


def sampled(
    sides: sampling.Sides, sizes: dict[int, list[int]], compiled: bool, args: argparse.Namespace, clock: Clock
) -> Iterator[Row]:
    """A row for each number of steps, of which the least is timed in several rounds and the others once.

    Args:
        sizes: of the calls that each number of steps needs, filled by the eager runs, which the peer takes turns with.
    """
    shortest, per_step = min(args.sampling_steps), 0.0
    peer = not compiled and fits(lambda: sides.peer(2))
    generate(sides, shortest, compiled)  # warms up
    with waits(args.device) as found:
        generate(sides, shortest, compiled)
    graphs = graph_times(sides, args)
    for steps in args.sampling_steps:
        if not clock.has_time(per_step * steps) or (compiled and steps not in sizes):
            continue
        if compiled and steps > shortest:  # fewer rows at a time for the head, for which it is compiled anew
            generate(sides, min(steps, 4 * shortest), True)
        ours = partial(generate, sides, steps, True) if compiled else partial(counted, sides, steps, sizes)
        functions: dict[str, Callable[[], object]] = {"ours": ours}
        peer_steps = min(steps, args.peer_steps)
        if peer:
            functions["peer"] = partial(sides.peer, peer_steps)
        times = interleaved(functions, args.pairs if steps == shortest else 1, args.device)
        per_step, each = median(times["ours"]) / steps, sizes[steps]
        yield {
            "sequences": len(sides.x_0),
            "steps": steps,
            "compiled": compiled,
            "ours_s": median(times["ours"]),
            "peer_s": median(times["peer"]) * steps / peer_steps if peer else None,
            "peer_extrapolated": peer_steps < steps,
            "calls": len(each),
            "calls_per_sample": sum(each) / len(sides.x_0),
            "graphs_s": float(np.interp(each, list(graphs), list(graphs.values())).sum()),
            "waits_per_step": len(found) / shortest if args.device.startswith("cuda") else None,
            "rounds": times,
        }


def graph_times(sides: sampling.Sides, args: argparse.Namespace) -> dict[int, float]:
    """Seconds of a replayed graph of one call of the backbone, by the number of its sequences: powers of two, and all."""
    found = {}
    for size in sorted({min(2**power, len(sides.x_0)) for power in range(len(sides.x_0).bit_length() + 1)}):
        x, t = {"": sides.x_0[:size].clone()}, torch.full((size,), 0.5, device=args.device)
        replay = replayed(lambda x=x, t=t: sides.model.backbone(x, t), args.device)
        replay()
        times = interleaved({"": lambda replay=replay: [replay() for _ in range(10)]}, args.pairs, args.device)
        found[size] = median(times[""]) / 10
    return found


def fits(function: Callable[[], object]) -> bool:
    """Whether a call finds the memory that it needs."""
    try:
        function()
    except torch.OutOfMemoryError:
        release()
        return False
    return True


def distributions_part(args: argparse.Namespace, clock: Clock) -> Iterator[Row]:
    masked, uniform = MaskedPath(chains.SYMBOLS + 1), UniformPath(chains.SYMBOLS)
    cases: list[tuple[Any, Any, Any]] = [
        (masked, TauLeaping(), chains.tau_leaping),
        (masked, "first_hitting", None),
        (masked, Adaptive(max_expected_changes=args.expected_changes), None),
        (uniform, Euler(), chains.euler),
        (uniform, "uniformization", None),
    ]
    for path, sampler, step in cases:
        if clock.has_time():
            yield distribution(path, sampler, step, args)


def distribution(path: Any, sampler: Any, step: chains.Step | None, args: argparse.Namespace) -> Row:
    """Total variation of the samples from the distribution that the sampler should have."""
    exact = chains.chain(path, 4)
    times = time_grid(path, args.grid_steps)
    truth = exact.marginal(1.0) if step is None else chains.exact_distribution(exact, step, times)[0]
    process = ExactModel(path, exact.data.to(args.device), exact.weights.to(args.device))
    rng = torch.Generator(args.device).manual_seed(args.seed)
    x_0 = path.prior((args.samples, exact.length), rng, args.device)
    grid = [0.0, 1.0] if step is None else times
    taken = seconds(lambda: x_0.copy_(simulate(process, x_0, grid, rng, sampler)), args.device)
    seen = torch.bincount(exact.index(x_0.cpu()), minlength=len(truth)) / args.samples
    return {
        "path": "masked" if path.is_masked else "uniform",
        "sampler": sampler if isinstance(sampler, str) else sampler.type_name,
        "samples": args.samples,
        "total_variation": float((seen - truth).abs().sum() / 2),
        "by_chance": chance(truth, args.samples),
        "time_s": taken,
    }


def recipe_part(args: argparse.Namespace, clock: Clock) -> Iterator[Row]:
    found = run_recipe(args)
    yield found
    release()
    own = bare_arguments(args, found)
    sides = training.Sides("masked", own)
    optimizer = torch.optim.AdamW(sides.model.parameters(), lr=0.0, fused=True)
    if found["compiled"]:
        compile_layers(sides.model, args)

    def steps(number: int) -> None:
        for _ in range(number):
            sides.seed += 1
            sides.step("ours", optimizer)

    steps(3)
    times = interleaved({"": partial(steps, 4 * args.steps_per_round)}, args.pairs, args.device)[""]
    bare = own.batch_size * own.length * 4 * args.steps_per_round / median(times)
    yield {"bare_tokens_per_s": bare, "share_of_bare": found["tokens_per_s"] / bare, "rounds": times}


def release() -> None:
    """Gives the memory of what is no longer referred to back to the device."""
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
