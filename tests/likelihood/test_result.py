"""`Likelihood`: units, standard errors over sequences and draws, joining."""

from __future__ import annotations

import math

import pytest
import torch

import gm_discrete
from gm_discrete import Likelihood


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_likelihood__bits_and_perplexity() -> None:
    bound = Likelihood(torch.tensor([2.0, 4.0]).double(), torch.tensor([3, 5]))
    assert bound.bits_per_token == pytest.approx(6 / 8 / math.log(2), rel=1e-14)
    assert bound.perplexity == pytest.approx(math.exp(6 / 8), rel=1e-14)


def test_likelihood__stderr_of_equal_lengths_is_that_of_a_mean() -> None:
    nats = torch.randn(50, generator=rng(11), dtype=torch.float64).exp()
    bound = Likelihood(nats, torch.full((50,), 7))
    assert bound.stderr == pytest.approx(float(nats.std()) / math.sqrt(50) / (7 * math.log(2)), rel=1e-12)
    assert math.isnan(Likelihood(nats[:1], torch.tensor([7])).stderr)


def test_likelihood__stderr_of_unequal_lengths_is_that_of_the_bootstrap() -> None:
    """Linearisation against 4000 resamples of 400 sequences, whose own error is 1 %: within 6 %."""
    lengths = torch.randint(1, 40, (400,), generator=rng(12))
    nats = lengths * (1 + 0.3 * torch.randn(400, generator=rng(13), dtype=torch.float64))
    bound = Likelihood(nats, lengths)
    drawn = torch.randint(400, (4000, 400), generator=rng(14))
    resampled = nats[drawn].sum(1) / lengths[drawn].sum(1) / math.log(2)
    assert bound.stderr == pytest.approx(float(resampled.std()), rel=0.06)
    naive = float((nats / lengths).std()) / math.sqrt(400) / math.log(2)
    assert bound.stderr != pytest.approx(naive, rel=0.1)


def test_likelihood__draw_stderr_is_the_spread_of_the_total_over_the_draws() -> None:
    """300 estimates of 20 sequences from 8 draws each: the spread of their bits, whose own error is 4 %, within 12 %."""
    lengths, scale = torch.arange(1, 21), torch.arange(1, 21).double()
    draws = 5 + scale[:, None] * torch.randn(300, 20, 8, generator=rng(15), dtype=torch.float64)
    bounds = [Likelihood(part.mean(1), lengths, draws=part) for part in draws]
    spread = torch.tensor([bound.bits_per_token for bound in bounds]).std()
    assert sum(bound.draw_stderr for bound in bounds) / 300 == pytest.approx(float(spread), rel=0.12)
    assert math.isnan(Likelihood(draws[0].mean(1), lengths).draw_stderr)
    assert math.isnan(Likelihood(torch.zeros(2), torch.zeros(2, dtype=torch.long)).draw_stderr)


def test_likelihood__perplexity_stderr_is_that_of_bits_by_the_slope() -> None:
    nats = 14 + torch.randn(50, generator=rng(16), dtype=torch.float64)
    bound = Likelihood(nats, torch.full((50,), 7))
    slope = (Likelihood(nats + 7e-6, bound.num_tokens).perplexity - bound.perplexity) / (1e-6 / math.log(2))
    assert bound.perplexity_stderr == pytest.approx(slope * bound.stderr, rel=1e-5)
    assert math.isnan(Likelihood(nats[:1], torch.tensor([7])).perplexity_stderr)


def test_likelihood__cat_joins_sequences() -> None:
    parts = [Likelihood(torch.rand(n, generator=rng(n)).double(), torch.arange(1, n + 1), "masked") for n in (2, 3, 1)]
    whole = Likelihood.cat(parts)
    assert whole.nats.tolist() == [v for part in parts for v in part.nats.tolist()]
    assert whole.num_tokens.tolist() == [1, 2, 1, 2, 3, 1]
    assert whole.kind == "masked"


def test_likelihood__cat_refuses_parts_of_several_kinds() -> None:
    bound = Likelihood(torch.ones(2), torch.ones(2), "masked")
    with pytest.raises(ValueError, match=r"'masked', 'mixture'"):
        Likelihood.cat([bound, Likelihood(torch.ones(2), torch.ones(2), "mixture")])
    with pytest.raises(ValueError, match=r"\[\]"):
        Likelihood.cat([])


def test_likelihood__repr_has_figures_and_no_tensors() -> None:
    bound = Likelihood(torch.tensor([8.0, 12.0]).double() * math.log(2), torch.tensor([4, 4]), "masked")
    assert repr(bound) == "Likelihood(2.5000 ± 0.5000 bits per token, 2 sequences, 8 tokens, kind='masked')"


def test_likelihood__bits_per_dim() -> None:
    """−log₂ of the mass of a bin of the given width per entry: a uniform byte in [−1, 1] has 8 bits, but for 255/256."""
    uniform = Likelihood(
        torch.tensor([12 * math.log(2)] * 2, dtype=torch.float64), num_tokens=torch.tensor([12, 12]), kind="flow"
    )
    assert uniform.bits_per_dim().tolist() == pytest.approx([1.0, 1.0])
    assert uniform.bits_per_dim(2 / 255).tolist() == pytest.approx([1 + math.log2(255 / 2)] * 2)


def test_likelihood__cat_joins_fields_and_entries() -> None:
    parts = [
        Likelihood(
            torch.full((n,), 3.0), torch.full((n,), 2), "fields", fields={"a": torch.ones(n), "b": 2 * torch.ones(n)},
            entries=torch.ones(n, 2), x_0=torch.zeros(n, 2, 1),
        )
        for n in (1, 2)
    ]  # fmt: skip
    whole = Likelihood.cat(parts)
    assert whole.fields is not None
    assert {name: part.tolist() for name, part in whole.fields.items()} == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert whole.entries is not None
    assert whole.x_0 is not None
    assert (whole.entries.shape, whole.x_0.shape) == ((3, 2), (3, 2, 1))
    assert Likelihood.cat([*parts, Likelihood(torch.ones(1), torch.ones(1), "fields")]).fields is None


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("LikelihoodBound", "Likelihood"),
        ("FlowLikelihood", "Likelihood"),
        ("FieldLikelihood", "Likelihood"),
        ("flow_log_likelihood", "flow_likelihood"),
        ("UniformTimes", "UniformTimeSampler"),
    ],
)
def test_renamed__old_names_name_the_new_ones(name: str, cure: str) -> None:
    assert not hasattr(gm_discrete, name)
    with pytest.raises(AttributeError, match=rf"{name} .*{cure}"):
        getattr(gm_discrete, name)
    with pytest.raises(ImportError, match=rf"{name} .*{cure}"):
        exec(f"from gm_discrete import {name}")
