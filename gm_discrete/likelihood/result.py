"""`Likelihood`: what all likelihoods and bounds of this library return."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, repr=False)
class Likelihood:
    """−log p of B examples, or upper bounds on it.

    >>> bound = Likelihood(torch.tensor([8.0, 12.0]), num_tokens=torch.tensor([4, 4]), kind="masked")
    >>> round(bound.bits_per_token, 3), round(bound.perplexity, 3)
    (3.607, 12.182)

    Attributes:
        nats: −log p or an upper bound on it, [B], float64. For continuous entries p is a density per unit volume of the
            state's own scale.
        num_tokens: scored tokens or entries of each example, [B].
        kind: what `nats` is. `"masked"`, `"reversal"`, `"mixture"` or `"kinetic"`: a bound for the jump process with these
            rates. `"any_order"`: exact, for a masked model. `"flow"`: by the change of variables, for a flow.
            `"fields"`: the flow's for continuous fields plus bounds for discrete ones. `"autoregressive"`: exact, for a
            causal language model.
        draws: the S Monte Carlo draws whose means are `nats`, [B, S], where they are kept.
        fields: the share of each field, [B]; for products.
        entries: the share of each entry, [B, N]; for flows. If entries depend on each other, only their sum has a meaning.
        x_0: the starting points of the flow, [B, …]; for flows.

    Raises:
        FloatingPointError: one of `nats` is NaN or −∞. It may be infinite: so is −log p of what a model excludes.
    """

    nats: Tensor
    num_tokens: Tensor
    kind: str = ""
    draws: Tensor | None = None
    fields: Mapping[str, Tensor] | None = None
    entries: Tensor | None = None
    x_0: Tensor | None = None

    def __post_init__(self) -> None:
        wrong = self.nats.isnan() | self.nats.isneginf()
        if bool(wrong.any()):
            raise FloatingPointError(
                f"nats={self.nats[:8].tolist()} is not a number for {int(wrong.sum())} of {len(self.nats)} examples: the "
                "output of the model is not, as its weights hold NaN, or overflow in float16; look at the weights, or use "
                "bfloat16 or float32"
            )

    @property
    def nats_stderr(self) -> Tensor:
        """Standard error of each of `nats` over its draws, std(draws) / √S, [B]; NaN where it is not known.

        The formula is that of independent draws. Stratified draws, as `likelihood_bound` makes them, have a smaller true
        variance V ≤ σ²/S, and the square of this is (σ² − V)/(S − 1) on average, so that it errs on the safe side. It does
        not include how far the bound lies above −log p. For a difference between paired rows a and b use
        std(draws[a] − draws[b]) / √S.
        """
        if self.draws is None:
            return torch.full_like(self.nats, math.nan)
        size = self.draws.shape[1]
        return self.draws.std(1) / math.sqrt(size) if size > 1 else torch.full_like(self.nats, math.nan)

    @property
    def bits_per_token(self) -> float:
        """Σ nats / (ln 2 · Σ scored tokens); NaN for empty strings alone."""
        tokens = int(self.num_tokens.sum())
        return float(self.nats.sum()) / (tokens * math.log(2)) if tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(Σ nats / Σ scored tokens); infinite where that exceeds the greatest float."""
        nats = self.bits_per_token * math.log(2)
        return math.exp(nats) if nats < math.log(sys.float_info.max) or math.isnan(nats) else math.inf

    @property
    def stderr(self) -> float:
        """Standard error of `bits_per_token` over examples, as a ratio of sums; NaN for a single example."""
        n = len(self.nats)
        if n < 2 or not int(self.num_tokens.sum()):
            return math.nan
        residual = self.nats - self.nats.sum() / self.num_tokens.sum() * self.num_tokens
        return math.sqrt(float(residual.square().sum()) * n / (n - 1)) / (int(self.num_tokens.sum()) * math.log(2))

    @property
    def draw_stderr(self) -> float:
        """Standard error of `bits_per_token` of these examples over the draws, √(Σ nats_stderr²) / (ln 2 · Σ scored tokens);
        NaN where it is not known, and not for `paired` draws, which all examples share."""
        tokens = int(self.num_tokens.sum())
        return float(self.nats_stderr.double().norm()) / (tokens * math.log(2)) if tokens else math.nan

    @property
    def perplexity_stderr(self) -> float:
        """Standard error of `perplexity` over examples, to first order: perplexity · ln 2 · stderr."""
        return self.perplexity * math.log(2) * self.stderr

    def bits_per_dim(self, bin_width: float = 1.0) -> Tensor:
        """Bits per entry of the probability of a bin of that width, [B]: nats / (ln 2 · entries) − log₂(bin_width).

        For continuous entries. Bytes in [−1, 1] have bins of width 2/255; if they were dequantised uniformly, the mean of
        this bounds their bits per dimension from above.
        """
        return self.nats / (self.num_tokens * math.log(2)) - math.log2(bin_width)

    def __repr__(self) -> str:
        tokens = int(self.num_tokens.sum())
        bits = f"{self.bits_per_token:.4f} ± {self.stderr:.4f} bits per token"
        return f"Likelihood({bits}, {len(self.nats)} sequences, {tokens} tokens, kind={self.kind!r})"

    @staticmethod
    def cat(parts: Sequence[Likelihood]) -> Likelihood:
        """The likelihood of all examples together. What some of the parts do not have is left out.

        Raises:
            ValueError: there are no parts, or they differ in `kind`.
        """
        kinds = sorted({part.kind for part in parts})
        if len(kinds) != 1:
            raise ValueError(f"parts of kinds {kinds} cannot be joined; give likelihoods of one kind")

        def joined(name: str) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            if any(value is None for value in values) or len({value.shape[1:] for value in values}) > 1:
                return None
            return torch.cat(values)

        fields = [part.fields for part in parts if part.fields is not None]
        return Likelihood(
            torch.cat([part.nats for part in parts]),
            torch.cat([part.num_tokens for part in parts]),
            kinds[0],
            joined("draws"),
            {name: torch.cat([part[name] for part in fields]) for name in fields[0]}
            if len(fields) == len(parts)
            else None,
            joined("entries"),
            joined("x_0"),
        )
