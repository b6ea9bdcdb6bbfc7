"""Bounds on −log p(continuation | context) of token sequences, by windows of the model's length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from gm_discrete.likelihood import Likelihood, any_order_bound, any_order_likelihood, likelihood_bound
from gm_discrete.models import GMModel
from gm_discrete.paths import MaskedPath


@dataclass(frozen=True)
class ContinuationScorer:
    """Scores continuations of token sequences with a `GMModel`.

    Args:
        model: a model of text.
        max_length: the most tokens of context and continuation together; longer ones are scored by `windows`.
        rolling_context: the least number of tokens on the left of what a window scores, where there are as many.
        num_samples: draws of `likelihood_bound` for each window.
        num_orders: M of `any_order_bound`, used instead of `likelihood_bound` for a masked model; 0 to use the latter. It is
            the better estimate for short continuations, and takes up to M network rows per token.
        exact_up_to: continuations of at most so many tokens are scored exactly, by `any_order_likelihood` (masked models
            without time conditioning).
        batch_size: sequences in one call of the network.

    Raises:
        ValueError: an argument is out of range, or the model cannot be scored that way.
    """

    model: GMModel
    max_length: int
    rolling_context: int = 1
    num_samples: int = 64
    num_orders: int = 0
    exact_up_to: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name, least in (
            ("batch_size", 1), ("num_samples", 1), ("num_orders", 0), ("exact_up_to", 0), ("max_length", 2),
            ("rolling_context", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.rolling_context >= self.max_length:
            raise ValueError(f"rolling_context={self.rolling_context} must be less than max_length={self.max_length}")
        for name in ("num_orders", "exact_up_to"):
            if getattr(self, name) and not self.model.path.is_masked:
                raise ValueError(
                    f"{name}={getattr(self, name)} needs a MaskedPath, not {self.model.path!r}; leave it out"
                )
        if self.exact_up_to and self.model.config.time_conditioning:
            raise ValueError(
                f"exact_up_to={self.exact_up_to} needs a model without time conditioning; use num_orders instead"
            )

    def nats(self, context: list[int], tokens: list[int], rng: torch.Generator) -> float:
        """The bound on −log p(tokens | context), summed over windows."""
        parts = windows(context, tokens, self.max_length, self.rolling_context)
        return sum(float(self._window(*part, rng).nats) for part in parts)

    def _window(self, context: list[int], tokens: list[int], rng: torch.Generator) -> Likelihood:
        z = torch.tensor([context + tokens], device=self.model.device)
        common: dict[str, Any] = {"scored": _from(z, len(context)), "batch_size": self.batch_size}
        if len(tokens) <= self.exact_up_to:
            return any_order_likelihood(self.model, z, max_scored=self.exact_up_to, **common)
        if self.num_orders:
            return any_order_bound(self.model, z, num_orders=self.num_orders, rng=rng, **common)
        return likelihood_bound(self.model, z, num_samples=self.num_samples, rng=rng, **common)

    @torch.no_grad()
    def is_greedy(self, context: list[int], tokens: list[int]) -> bool:
        """Whether a masked model decodes exactly these tokens, one at a time, always the most probable token of the position
        with the greatest maximum. False for other models, and for continuations longer than `max_length`."""
        path = cast(MaskedPath, self.model.path)
        if not path.is_masked or not tokens or len(tokens) > self.max_length:
            return not tokens
        z = torch.tensor([(context + tokens)[-self.max_length :]], device=self.model.device)
        count, size = len(tokens), self.model.config.block_size
        masked = _from(z, z.shape[1] - count)
        for left in range(count, 0, -1):
            t = path.schedule.inverse(torch.tensor([1 - left / count], dtype=torch.float64, device=z.device))
            x, where = torch.where(masked, path.mask_token_id, z), masked.flatten().nonzero().squeeze(1)
            if size:  # one block after the other, as a block model generates
                where = where[where // size == where[0] // size]
            probability, token = self.model.generator(x, t).kernel.log_probs(where).max(1)  # pyright: ignore
            best = int(probability.argmax())
            if int(token[best]) != int(z[0, where[best]]):
                return False
            masked = masked.clone()
            masked[0, where[best]] = False
        return True


def _from(z: Tensor, start: int) -> Tensor:
    """bool [B, L]: the positions from `start` on."""
    return (torch.arange(z.shape[1], device=z.device) >= start).expand(z.shape)


def windows(context: list[int], tokens: list[int], length: int, kept: int = 1) -> Iterator[tuple[list[int], list[int]]]:
    """(left context, tokens to score) of windows of at most `length` tokens.

    Every token is scored once, after as much left context as fits, and after at least `kept` tokens where there are as many.
    """
    done = 0
    while done < len(tokens):
        before = context + tokens[:done]
        scored = tokens[done : done + length - min(kept, len(before))]
        yield before[max(0, len(before) + len(scored) - length) :], scored
        done += len(scored)
