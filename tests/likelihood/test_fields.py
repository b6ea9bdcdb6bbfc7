"""`field_likelihood` against a known distribution: a class, and a number that is normal given the class."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    Bins,
    ExactProductModel,
    GaussianPath,
    GMConfig,
    GMModel,
    MaskedPath,
    ProductPath,
    TrigonometricSchedule,
    UniformPath,
    field_likelihood,
)
from tests.helpers.distributions import SIGMAS
from tests.helpers.euclid import rng

MEANS, STDS = torch.tensor([-1.5, 0.2, 1.6]).double(), torch.tensor([0.5, 0.6, 0.4]).double()
LAW = torch.tensor([0.5, 0.3, 0.2]).double()


def exact(symbols: MaskedPath | UniformPath, **numbers: object) -> ExactProductModel:
    path = ProductPath(kind=symbols, size=GaussianPath(**numbers), independent_times=True)  # pyright: ignore
    data = {"kind": torch.arange(3)[:, None], "size": MEANS[:, None, None]}
    return ExactProductModel(path, data, {"size": STDS}, LAW)


def drawn(number: int) -> dict[str, Tensor]:
    k = torch.multinomial(LAW, number, True, generator=rng(1))
    size = MEANS[k] + STDS[k] * torch.randn(number, generator=rng(2), dtype=torch.float64)
    return {"kind": k[:, None], "size": size[:, None, None]}


@pytest.mark.parametrize("symbols", [MaskedPath(4), UniformPath(3)], ids=["masked", "uniform"])
@pytest.mark.parametrize("schedule", [None, TrigonometricSchedule()], ids=["condot", "trigonometric"])
def test_field_likelihood__of_an_exact_posterior(symbols: MaskedPath | UniformPath, schedule: object) -> None:
    """The number to the error of 100 Heun steps and ε, seen to be below 0.01 nats; the class by Monte Carlo."""
    z = drawn(300)
    found = field_likelihood(
        exact(symbols, schedule=schedule), z, num_samples=64, num_steps=100, trace="exact", rng=rng()
    )
    joint = torch.distributions.Normal(MEANS, STDS).log_prob(z["size"].flatten()[:, None]) + LAW.log()
    assert torch.allclose(found.fields["size"], -joint.logsumexp(1), atol=0.01)
    error = found.fields["kind"] + joint.log_softmax(1).gather(1, z["kind"]).squeeze(1)
    assert float(error.mean().abs()) < SIGMAS * float(error.std()) / len(error) ** 0.5
    assert torch.allclose(found.nats, found.fields["kind"] + found.fields["size"])
    masked = symbols.is_masked  # else the flow's noise of the symbols is another chance
    assert (found.draws is None) != masked
    if found.draws is not None:
        assert torch.allclose(found.draws.mean(1), found.nats)
        assert found.draws.shape == (300, 64)
    assert found.kind == "fields"
    assert found.num_tokens.tolist() == [2] * 300
    assert found.stderr == pytest.approx(float(found.nats.std()) / 300**0.5 / (2 * math.log(2)))


def test_field_likelihood__hutchinson_is_exact_for_one_number() -> None:
    z = drawn(200)
    kwargs = {"num_samples": 1, "num_steps": 40}
    one, two = (
        field_likelihood(exact(MaskedPath(4)), z, trace=trace, rng=rng(), **kwargs)  # pyright: ignore
        for trace in ("exact", "hutchinson")
    )
    assert two.draws is None  # in general the noise of the trace is another chance
    assert torch.allclose(one.fields["size"], two.fields["size"])  # for one number v ∇u v is ∇u


def test_field_likelihood__of_a_network() -> None:
    """An untrained network's belief is uniform: log 3 for three classes, and for the numbers what the flow makes of it."""
    path = ProductPath(
        kind=MaskedPath(4), a=GaussianPath(prediction="belief", bins=Bins(-3, 3, 8)), b=GaussianPath(prediction="data"),
        independent_times=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GMModel(GMConfig(path=path, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).train()
    z = {"kind": torch.zeros(4, 1, dtype=torch.long), "a": torch.randn(4, 1, 1), "b": torch.randn(4, 1, 1)}
    found = field_likelihood(model, z, num_samples=4, num_steps=4, rng=rng())
    assert list(found.fields) == ["kind", "a", "b"]
    assert model.training
    assert torch.isfinite(found.nats).all()
    assert torch.allclose(found.fields["kind"], torch.tensor(3.0).double().log())  # one mask has no chance in it


def test_field_likelihood__of_discrete_fields_alone_needs_no_independent_times() -> None:
    """Without continuous fields one time is enough."""
    path = ProductPath(kind=MaskedPath(4), other=MaskedPath(4))
    model = ExactProductModel(path, {"kind": torch.arange(3)[:, None], "other": torch.arange(3)[:, None]}, weights=LAW)
    z = {"kind": torch.tensor([[0], [1], [2]]), "other": torch.tensor([[0], [1], [2]])}
    found = field_likelihood(model, z, num_samples=2, rng=rng())
    assert torch.isfinite(found.nats_stderr).all()
    # Only the first of the pair to be revealed carries information; of two draws one has both masked: weight 2/2, two terms.
    assert torch.allclose(found.nats, -LAW.log())


def test_field_likelihood__refuses_what_has_no_likelihood() -> None:
    z = drawn(4)
    shared = exact(MaskedPath(4))
    shared.path = ProductPath(shared.path.factors)
    with pytest.raises(ValueError, match="independent_times=True"):
        field_likelihood(shared, z)
    with pytest.raises(TypeError, match=r"GaussianPath.*jump"):
        field_likelihood(exact(MaskedPath(4), generators={"jump": 1.0}, bins=Bins(-5, 5, 8)), z)
    with pytest.raises(TypeError, match=r"MaskedPath.*likelihood_bound"):
        field_likelihood(GMModel(GMConfig(path=MaskedPath(4), hidden_size=8, num_attention_heads=2)), z)
    with pytest.raises(ValueError, match=r"attention_mask\['size'\]"):
        field_likelihood(exact(MaskedPath(4)), z, {"size": torch.zeros(4, 1)})
