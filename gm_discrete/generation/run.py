"""The loop of `generate`: from the state at t = 0 to samples, all entries together or block by block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from gm_discrete.generation.blocks import BlockRun
from gm_discrete.generation.canvas import Canvas
from gm_discrete.generation.config import GMGenerationConfig
from gm_discrete.generation.given import Observed
from gm_discrete.generation.observers import Recorder
from gm_discrete.generation.outputs import GMGenerateOutput, Samples
from gm_discrete.generation.request import Model, Request
from gm_discrete.generators import Generator
from gm_discrete.paths import EuclideanPath, Path
from gm_discrete.process import Process, State, pack, unpack
from gm_discrete.samplers import Sampler, Simulation
from gm_discrete.samplers.banned import Avoiding
from gm_discrete.samplers.simulate import simulate_state


@torch.no_grad()
def generate(model: Model, request: Request) -> Samples | GMGenerateOutput:
    """Samples by simulating the process of the model from t = 0 to t = 1.

    Returns:
        The samples, in natural units; or a `GMGenerateOutput` with `return_dict_in_generate=True`.
    """
    config, observers, fields = request.config, request.observers, request.fields
    state, single = request.start(model), "" in fields
    if config.output_trajectory:
        observers.recorder = Recorder(state[""], request.fixed.get("", torch.zeros_like(state[""], dtype=torch.bool)))
    training = model.training
    model.train(False)
    try:
        run, masks = (_at_once if request.blocks is None else _in_blocks)(model, request, state)
    finally:
        model.train(training)
    x = cast(State, run.x)
    if single:
        observers.end(x[""])
    end = request.natural(x)
    if single and fields[""].image_shape and end[""].dim() == 2:  # images of tokens
        end = {"": end[""].unflatten(1, fields[""].image_shape)}
    samples = cast(Samples, unpack(end))
    if not config.return_dict_in_generate:
        return samples
    if single and not masks and fields[""].path.is_discrete:
        masks = {"": torch.ones_like(x[""])}
    trajectory = None if observers.recorder is None else observers.recorder.trajectory(end[""], masks.get(""))
    real = cast(Samples, unpack(masks)) if masks else None
    return GMGenerateOutput(samples, run.network_calls, run.jumps, run.error_bound, real, trajectory)


def _at_once(model: Model, request: Request, state: dict[str, Tensor]) -> tuple[Simulation, dict[str, Tensor]]:
    """All entries together, from t = 0 to t = 1; with the attention masks of the samples."""
    process: Process = model if request.guidance is None else request.guidance.guided(model)
    if request.observed:
        process = NoisedObservations(process, request.observed, request.fixed, request.rng, request.x_0)
    if request.new is not None and request.observers.streamer is not None:
        canvas = Canvas(request.observed[""].state, request.fixed[""], request.attention_mask[""], request.new)
        request.observers.begin(canvas.ids, canvas.prompt_length)
    free: dict[str, Tensor] = {}
    for name, x in state.items():
        free[name] = ~request.fixed[name] if name in request.fixed else torch.ones_like(x, dtype=torch.bool)
    conditioning = request.conditioning() | {"generators": request.config.generators}
    return _simulated(process, request, state, free, _sampler(request.config), conditioning), request.attention_mask


def _in_blocks(model: Model, request: Request, state: dict[str, Tensor]) -> tuple[Simulation, dict[str, Tensor]]:
    """Block by block, each from t = 0 to t = 1, for the sequences that have not ended; with their attention mask."""
    config, observers, blocks = request.config, request.observers, request.blocks
    canvas = Canvas.empty(request.shapes[""], model.device)
    if request.new is not None:
        canvas = Canvas(state[""], request.fixed[""], request.attention_mask[""], request.new)
        observers.begin(canvas.ids, canvas.prompt_length)
    canvas.ids, eos = state[""], config.eos_token_id
    ends = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    pads = [pad for pad in (config.pad_token_id, model.config.pad_token_id, *ends) if pad is not None]
    assert blocks is not None
    causal = model.config.block_size is not None
    loop = BlockRun(model.network, canvas, blocks, causal, ends, pads[0] if pads else 0)
    for block, rows in loop.to_fill(request.class_labels):
        here = slice(block.start, block.stop)
        sampler = _sampler(config, block.whole[:, : block.start], block.whole[:, block.stop :])
        observers.next_block(canvas.ids, rows, here)
        x, free = {"": canvas.ids[rows, here]}, {"": ~canvas.fixed[rows, here]}
        request.attention_mask = {"": canvas.real}
        run = _simulated(block, request, x, free, sampler, request.conditioning(rows, block.whole.shape[1]))
        loop.put(block, rows, run)
        unfinished = (~canvas.fixed[:, block.stop :]).any(1)
        if observers.stopped_at is not None or observers.met(canvas.ids[:, : block.stop], ~unfinished):
            loop.stop(block)
            break
        observers.put(canvas.ids[:, : block.stop])
    length = int(canvas.real.any(0).sum())  # columns after it are padding in every row
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return (
        Simulation({"": canvas.ids[:, :length]}, times, loop.calls, loop.jumps, loop.error),
        {"": canvas.real[:, :length]},
    )


def _sampler(config: GMGenerationConfig, before: Tensor | None = None, after: Tensor | None = None) -> Sampler:
    """The sampler of a config with its corrector and its banned sequences.

    Args:
        before, after: tokens on both sides of the state that do not move, and that banned sequences may reach into.
    """
    sampler = config.sampler if config.corrector is None else config.corrector.corrected(config.sampler)
    return Avoiding(sampler, config.bad_words_ids, before, after) if config.bad_words_ids else sampler


def _simulated(
    process: Process,
    request: Request,
    x: State,
    free: State,
    sampler: Sampler,
    conditioning: Mapping[str, Any],
) -> Simulation:
    """The process from t = 0 to t = 1; if the stopping criteria hold at some time, with one last step from there."""
    config, observers = request.config, request.observers
    observed = observers if "" in x else None  # products have no observers
    path: Path = process.path
    if config.generators is not None and isinstance(path, EuclideanPath):
        path = path.reweighted(cast(Any, config.generators))  # its grid may be spaced in another way
    grid = config.times(path, observers.needs_grid)
    run = simulate_state(process, x, grid, request.rng, sampler, free, None, observed, (), conditioning)
    if observers.stopped_at is not None:
        rest = torch.tensor([observers.stopped_at, 1.0], dtype=torch.float64)
        x = cast(State, run.x)
        run = run.then(simulate_state(process, x, rest, request.rng, sampler, free, None, observed, (), conditioning))
    return run


class NoisedObservations:
    """A process whose network input holds the observed values at the noise level of the time, as in training.

    Masked paths need no such noise: an observed token is as in training, and conditioning on it is exact. For other paths
    the observed values are drawn from p_t(·|value), which is an approximation. With independent times a field that is
    observed in all entries enters at its time 1, without noise; the rest is conditioned on it exactly.
    """

    def __init__(
        self,
        process: Process,
        observed: Mapping[str, Observed],
        fixed: Mapping[str, Tensor],
        rng: torch.Generator,
        x_0: State | None = None,
    ) -> None:
        self.process, self.path, self.rng, self.source = process, process.path, rng, x_0
        self.values = {name: cells.state for name, cells in observed.items()}
        self.fixed = {name: fixed[name] for name in observed}
        self.whole = {name: mask.flatten(1).all(1) for name, mask in self.fixed.items()}

    def generator(
        self, x: Tensor | State, t: Tensor, t_next: Tensor | None = None, **conditioning: object
    ) -> Generator:
        """The generator of the process at the state with noised observations."""
        state, times = dict(pack(x)), self.path.times(t)
        network_times, independent = dict(times), getattr(self.path, "independent_times", False)
        for name, fixed in self.fixed.items():
            path, values = self.path.fields[name], self.values[name].to(state[name].dtype)
            noised = values
            if getattr(path, "rates", None) != "masked":
                noised = path.sample(values, times[name], self.rng, None if self.source is None else self.source[name])
            if independent:
                whole = self.whole[name]
                noised = torch.where(whole.view(-1, *[1] * (values.dim() - 1)), values, noised)
                network_times[name] = torch.where(whole, 1.0, times[name])
            state[name] = torch.where(fixed, noised, state[name])
        if independent:
            conditioning["network_time"] = self.path.joined(network_times)
        return self.process.generator(unpack(state), t, t_next, **conditioning)
