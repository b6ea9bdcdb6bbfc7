"""The check that losses are finite, which does not wait for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gm_discrete.arguments import readable


@dataclass
class Checked:
    """The losses of an optimizer step.

    Attributes:
        step: its number, from 1.
        flags: [2] on the host: on how many processes a loss was not finite, and how many batches had nothing to learn.
        own: the loss of this process, on its device.
        is_unchanged: whether a loss that is not finite leaves the weights as they were.
        arrived: recorded after the copy of `flags` to the host; `None` if there was none.
    """

    step: int
    flags: Tensor
    own: Tensor
    is_unchanged: bool
    arrived: torch.Event | None = None

    @cached_property
    def counts(self) -> tuple[int, int]:
        """The values of `flags`."""
        if self.arrived is not None:
            self.arrived.synchronize()
        bad, empty = self.flags.tolist()
        return int(bad), int(empty)


class LossCheck:
    """Checks the losses of each optimizer step on all processes.

    Where values can be read, as on a CPU, it does so at once, before the weights change. Elsewhere they are copied to the
    host while the device goes on, and read when the loss of the next step has been launched, or by `read`. So the host
    does not wait for the step that it has just launched.

    Args:
        reduce: sums a tensor over the processes.
        report: is called with the result of each step, and raises an error if a loss is not finite.
    """

    def __init__(self, reduce: Callable[[Tensor], Tensor], report: Callable[[Checked], None]) -> None:
        self.reduce, self.report = reduce, report
        self.clear()

    def clear(self) -> None:
        """Forgets what has not been read."""
        self._open: tuple[Tensor, Tensor] | None = None
        self._pending: Checked | None = None

    def add(self, loss: Tensor, is_empty: Tensor) -> None:
        """Takes the loss of a micro-step, and whether its batch has nothing to learn."""
        own, empty = loss.detach().float(), is_empty.float()
        self._open = (own, empty) if self._open is None else (self._open[0] + own, self._open[1] + empty)

    def close(self, step: int, can_skip: bool) -> Tensor | None:
        """Ends the losses of an optimizer step, whose sum is finite if all of them are.

        Args:
            can_skip: whether the optimizer skips a step for which the result of this method is 1.

        Returns:
            1 if a loss of any process is not finite, else 0: float32, on the device. `None` if the check is done already.
        """
        assert self._open is not None  # `add`
        (own, empty), self._open = self._open, None
        flags = self.reduce(torch.stack([(~own.isfinite()).float(), empty]))
        if readable(flags):
            self._pending = Checked(step, flags, own, is_unchanged=True)
            self.read()
            return None
        self.read()  # the step before
        self._pending = _sent(Checked(step, flags, own, is_unchanged=can_skip))
        return flags[0].clamp(max=1)

    def read(self) -> None:
        """Reports what has not been read. An error is raised again at the next call if the weights have changed."""
        if (found := self._pending) is None:
            return
        if found.is_unchanged:
            self._pending = None
        self.report(found)
        self._pending = None


def _sent(found: Checked) -> Checked:
    """With the flags on their way to pinned memory of the host."""
    if found.flags.device.type != "cpu":
        device = found.flags.device
        found.flags, found.arrived = found.flags.to("cpu", non_blocking=True), torch.Event(device)
        found.arrived.record()
    return found
