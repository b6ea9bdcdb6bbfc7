"""The loop of `generate`: from the state at t = 0 to samples, all entries together or block by block."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from gm_discrete.generation.blocks import BlockRun
from gm_discrete.generation.canvas import Canvas
from gm_discrete.generation.draft import noised, without_banned
from gm_discrete.generation.given import Observed
from gm_discrete.generation.observers import Observers, Recorder, StringRecorder
from gm_discrete.generation.outputs import GMGenerateOutput, Samples
from gm_discrete.generation.processors import Sharpening
from gm_discrete.generation.request import Model, Request
from gm_discrete.generation.strings import StringStart
from gm_discrete.generators import Generator
from gm_discrete.generators.strings import Tracks
from gm_discrete.nn.replay import compiled
from gm_discrete.paths import ContinuousPath, EditPath
from gm_discrete.paths.continuous import Weights
from gm_discrete.process import Process, State, evaluation_mode, pack, unpack
from gm_discrete.samplers import Avoiding, Simulation, simulate_state, time_grid


@torch.no_grad()
def generate(model: Model, request: Request) -> Samples | GMGenerateOutput:
    """Samples by simulating the process of the model from t = 0 to t = 1.

    Returns:
        The samples, in natural units; or a `GMGenerateOutput` with `return_dict_in_generate=True`.
    """
    config, observers, fields = request.config, request.observers, request.fields
    single = "" in fields
    with evaluation_mode(model), compiled(model) if config.compile else nullcontext():
        if request.strings is not None:
            run, masks = _of_strings(model, request, request.strings)
        else:
            run, masks = (_at_once if request.blocks is None else _in_blocks)(model, request, _start(model, request))
    if observers is not None:
        observers.end(run.x[""])
    end = request.natural(run.x)
    if single and fields[""].image_shape and end[""].dim() == 2:  # images of tokens
        end = {"": end[""].unflatten(1, fields[""].image_shape)}
    samples = unpack(end)
    if not config.return_dict_in_generate:
        return samples
    if single and not masks and fields[""].path.is_discrete:
        masks = {"": torch.ones_like(run.x[""])}
    recorder = None if observers is None else observers.recorder
    if isinstance(recorder, StringRecorder):
        trajectory = recorder.trajectory(cast(StringStart, request.strings).pad_token_id)
    else:
        trajectory = None if recorder is None else recorder.trajectory(end[""], masks.get(""))
    real = unpack(masks) if masks else None
    return GMGenerateOutput(samples, run.network_calls, run.jumps, run.error_bound, real, trajectory)


def _start(model: Model, request: Request) -> dict[str, Tensor]:
    """The state at the start, with observed values; a recorder begins with it."""
    config, observers = request.config, request.observers
    prior = model.path.prior(unpack(request.shapes), request.rng, model.device) if request.x_0 is None else None  # pyright: ignore[reportArgumentType]
    state: dict[str, Tensor] = {**(request.x_0 or {}), **({} if prior is None else pack(prior))}
    if request.draft:
        state = noised(model.path, request.draft, request.start_time, state, request.fixed, request.rng)
    for name, cells in request.observed.items():
        state[name] = torch.where(request.fixed[name], cells.state.to(state[name].dtype), state[name])
    if request.draft and config.bad_words_ids:
        state[""] = without_banned(model.path, state[""], config.bad_words_ids, request.fixed.get(""))
    if observers is not None and config.output_trajectory:
        fixed = request.fixed.get("", torch.zeros_like(state[""], dtype=torch.bool))
        observers.recorder = Recorder(state[""], fixed, request.start_time)
    return state


def _of_strings(model: Model, request: Request, start: StringStart) -> tuple[Simulation[State], dict[str, Tensor]]:
    """Strings, from the time of the start to t = 1; with the attention masks of the samples."""
    path, observers = cast(EditPath, model.path), request.observers
    x, fixed, free = start.begin(path, request.start_time, request.rng)
    tracks = {}
    if observers is not None:
        observers.shown = partial(start.shown, path)
        observers.begin(start.pieces, start.prompt_length(path.blank_token_id))
        if request.config.output_trajectory:
            tracks[""] = Tracks(x, path.strings)
            observers.recorder = StringRecorder(start.shown(path, x), tracks[""], fixed, request.start_time)
    conditioning, sharpening = request.conditioning()
    run = _simulated(model, request, {"": x}, {"": free}, conditioning, sharpening, tracks=tracks)
    end = path.strings.trimmed(run.x[""])
    return replace(run, x={"": start.shown(path, end)}), {"": (end != path.blank_token_id).long()}


def _at_once(model: Model, request: Request, state: dict[str, Tensor]) -> tuple[Simulation[State], dict[str, Tensor]]:
    """All entries together, from t = 0 to t = 1; with the attention masks of the samples."""
    process: Process = model if request.guidance is None else request.guidance.guided(model)
    if request.observed:
        process = NoisedObservations(process, request.observed, request.fixed, request.rng, request.x_0)
    if request.new is not None and request.observers is not None and request.observers.streamer is not None:
        canvas = Canvas(request.observed[""].state, request.fixed[""], request.attention_mask[""], request.new)
        request.observers.begin(canvas.ids, canvas.prompt_length)
    free = {name: torch.ones_like(x, dtype=torch.bool) for name, x in state.items()}
    free |= {name: ~fixed for name, fixed in request.fixed.items()}
    conditioning, sharpening = request.conditioning()
    conditioning["generators"] = request.config.generators
    return _simulated(process, request, state, free, conditioning, sharpening), request.attention_mask


def _in_blocks(model: Model, request: Request, state: dict[str, Tensor]) -> tuple[Simulation[State], dict[str, Tensor]]:
    """Block by block, each from t = 0 to t = 1, for the sequences that have not ended; with their attention mask."""
    blocks, observers, eos = request.blocks, request.observers or Observers(), request.eos
    assert blocks is not None
    canvas = Canvas.empty(request.shapes[""], model.device)
    if request.new is not None:
        canvas = Canvas(state[""], request.fixed[""], request.attention_mask[""], request.new)
        observers.begin(canvas.ids, canvas.prompt_length)
    elif request.attention_mask:  # of a draft
        canvas = Canvas(state[""], request.fixed[""], request.attention_mask[""].long(), canvas.new)
    canvas.ids = state[""]
    pads = [pad for pad in (request.config.pad_token_id, model.config.pad_token_id, *eos, 0) if pad is not None]
    loop = BlockRun(model.network, canvas, blocks, model.config.block_size is not None, list(eos), pads[0])
    for block, rows in loop.to_fill(request.class_labels):
        here = slice(block.start, block.stop)
        observers.next_block(canvas.ids, rows, here)
        x, free = {"": canvas.ids[rows, here]}, {"": ~canvas.fixed[rows, here]}
        request.attention_mask = {"": canvas.real}
        conditioning, sharpening = request.conditioning(rows, block.whole.shape[1])
        around = block.whole[:, : block.start], block.whole[:, block.stop :]
        loop.put(block, rows, _simulated(block, request, x, free, conditioning, sharpening, around))
        unfinished = (~canvas.fixed[:, block.stop :]).any(1)
        if observers.stopped_at is not None or observers.met(canvas.ids[:, : block.stop], ~unfinished):
            loop.stop(block)
            break
        observers.put(canvas.ids[:, : block.stop])
    length = int(canvas.real.any(0).sum())  # columns after it are padding in every row
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    end: State = {"": canvas.ids[:, :length]}
    return Simulation(end, times, loop.calls, loop.jumps, loop.error), {"": canvas.real[:, :length]}


def _simulated(
    process: Process,
    request: Request,
    x: State,
    free: State,
    conditioning: Mapping[str, object],
    sharpening: Sharpening | None,
    around: tuple[Tensor | None, Tensor | None] = (None, None),
    tracks: Mapping[str, Tracks] | None = None,
) -> Simulation[State]:
    """The process from t = 0, or from the time of a draft, to t = 1.

    If the stopping criteria hold at some time, it is one last step from there.

    Args:
        sharpening: temperature, top_k and top_p, if the sampler applies them itself.
        around: tokens before and after the state that do not move, and that banned sequences may reach into.
        tracks: of strings that are recorded.
    """
    config, observers, path, rng = request.config, request.observers, process.path, request.rng
    sampler = config.sampler if config.corrector is None else config.corrector.corrected(config.sampler)
    if config.bad_words_ids:
        sampler = Avoiding(sampler, config.bad_words_ids, *around)
    if config.generators is not None and isinstance(path, ContinuousPath):
        path = path.reweighted(cast("Weights", config.generators))  # its grid may be spaced in another way
    if isinstance(config.grid, list):
        grid = torch.tensor(config.grid, dtype=torch.float64)
    else:  # [0, 1] is enough for a sampler that chooses its own times, unless something else needs the grid
        observed = observers is not None and observers.needs_grid
        free_times = config.sampler.chooses_times and config.corrector is None and not observed
        grid = time_grid(path, 1 if free_times else config.num_steps, cast("str | None", config.grid))
    if (start := request.start_time) > 0:
        grid = torch.cat([torch.tensor([start], dtype=torch.float64), grid[grid > start]])
    most = None if request.strings is None else request.strings.max_length
    more = (), conditioning, sharpening, most, tracks
    run = simulate_state(process, x, grid, rng, sampler, free, observers, *more)
    if observers is not None and observers.stopped_at is not None:
        rest = torch.tensor([observers.stopped_at, 1.0], dtype=torch.float64)
        run = run.then(simulate_state(process, run.x, rest, rng, sampler, run.free, observers, *more))
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
        network_times, independent = dict(times), self.path.independent_times
        for name, fixed in self.fixed.items():
            path, values = self.path.fields[name], self.values[name].to(state[name].dtype)
            noised = values
            if path.rates != "masked":
                noised = path.sample(values, times[name], self.rng, None if self.source is None else self.source[name])
            if independent:
                whole = self.whole[name]
                noised = torch.where(whole.view(-1, *[1] * (values.dim() - 1)), values, noised)
                network_times[name] = torch.where(whole, 1.0, times[name])
            state[name] = torch.where(fixed, noised, state[name])
        if independent:
            conditioning["network_time"] = self.path.joined(network_times)
        return self.process.generator(unpack(state), t, t_next, **conditioning)
