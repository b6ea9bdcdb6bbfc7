"""One call of `generate` for the rows of several jobs."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from gm_discrete.generation import run
from gm_discrete.generation.outputs import GMGenerateOutput
from gm_discrete.generation.request import Request
from gm_discrete.generators import Generator
from gm_discrete.models import GMModel
from gm_discrete.nn.readout import Network
from gm_discrete.process import Process, State
from gm_discrete.serving.planning import Job, Row, padded


class Abandoned(Exception):
    """Nobody waits for the samples any more."""


def generate(model: GMModel, jobs: Sequence[Job]) -> list[list[int]]:
    """The samples of the rows of all jobs, one job after another.

    The jobs have the same key, so that the options of the first are those of all. Unfinished states go to the listeners of
    those that are observed.

    Raises:
        Abandoned: all jobs were cancelled; it is noticed in the next step, or at the next evaluation of the network.
    """
    first, rows = jobs[0], [row for job in jobs for row in job.rows]
    config = first.config if first.seeded else first.config.updated({"seed": secrets.randbits(62)})
    pad = next(token for token in (config.pad_token_id, model.config.pad_token_id, 0) if token is not None)
    ids, mask = padded(rows, pad)
    watcher = None
    if any(job.observed for job in jobs):
        path: Any = model.path
        stable = path.is_masked and config.corrector is None and not config.bad_words_ids
        gap = model.config.mask_token_id
        watcher = Watcher(jobs, gap, stable, path.strings is not None, pad)

    def check(*_: object) -> None:
        if all(job.cancelled for job in jobs):
            raise Abandoned

    interruptible = Interruptible(model, check)
    request = Request.of(interruptible, config, input_ids=ids, attention_mask=mask, streamer=watcher)
    hook = model.backbone.register_forward_pre_hook(check)
    try:
        found = run.generate(interruptible, request)
    finally:
        hook.remove()
    output = cast(GMGenerateOutput, found)
    samples, real = cast(Tensor, output.sequences), cast(Tensor, output.attention_mask)
    return [row[keep].tolist() for row, keep in zip(samples.cpu(), real.cpu().bool(), strict=True)]


class Interruptible:
    """A model whose steps begin with a call of `check`; its network is the same."""

    def __init__(self, model: GMModel, check: Callable[[], None]) -> None:
        self.model, self.check = model, check
        self.process: Process = model
        self.config, self.path, self.device = model.config, model.path, model.device
        self.compile_layers = model.compile_layers

    @property
    def network(self) -> Network:
        """Backbone and heads."""
        return self.model.network

    def generator(
        self, x: Tensor | State, t: Tensor, t_next: Tensor | None = None, **conditioning: object
    ) -> Generator:
        """That of the model."""
        self.check()
        return self.process.generator(x, t, t_next, **conditioning)


class Watcher:
    """A streamer that tells each job about the states of its rows, and how many of their first tokens stay as they are.

    Args:
        gap: the mask token of the model, if it has one.
        stable: whether a token that is no mask stays as it is.
        is_edits: whether the states are strings, followed by `pad`.
    """

    def __init__(self, jobs: Sequence[Job], gap: int | None, stable: bool, is_edits: bool, pad: int) -> None:
        self.places = [(job, number, row) for job in jobs for number, row in enumerate(job.rows)]
        self.gap, self.stable, self.is_edits, self.pad = gap, stable, is_edits, pad
        self.done = torch.zeros(len(self.places), 0, dtype=torch.long)

    def put(self, value: Tensor) -> None:
        """Takes finished columns [B, n]."""
        self.done = torch.cat([self.done, value], 1)

    def put_draft(self, value: Tensor) -> None:
        """Takes the unfinished columns [B, n] after the finished ones."""
        for state, (job, number, row) in zip(torch.cat([self.done, value], 1).tolist(), self.places, strict=True):
            if job.observed and not job.cancelled:
                job.listener(("draft", number, *self._read(state, row)))

    def end(self) -> None:
        """The samples themselves are what `generate` returns."""

    def _read(self, state: list[int], row: Row) -> tuple[list[int], int]:
        """(ids, how many of the first ones stay) of a row."""
        settled = self.done.shape[1]
        if self.is_edits:
            while state and state[-1] == self.pad:
                state.pop()
            return state, 0
        whole = [*row.ids, *[self.gap] * (row.length - len(row.ids))]
        ids = cast("list[int]", [*state[: row.length], *whole[len(state) :]])
        if self.stable:
            settled = next((at for at in range(settled, len(ids)) if ids[at] == self.gap), len(ids))
        return ids, min(settled, len(ids))
