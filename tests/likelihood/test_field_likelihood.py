"""The likelihood of several fields against a law that is known: a class, and a number that is normal given the class."""

from __future__ import annotations

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
def test_it_is_the_likelihood_of_an_exact_posterior(symbols: MaskedPath | UniformPath, schedule: object) -> None:
    """Of the number within what 100 Heun steps and ε leave, seen to be below 0.01 nats; of the class by Monte Carlo."""
    z = drawn(300)
    found = field_likelihood(
        exact(symbols, schedule=schedule), z, num_samples=64, num_steps=100, trace="exact", rng=rng()
    )
    joint = torch.distributions.Normal(MEANS, STDS).log_prob(z["size"].flatten()[:, None]) + LAW.log()
    assert torch.allclose(found.fields["size"], -joint.logsumexp(1), atol=0.01)
    error = found.fields["kind"] + joint.log_softmax(1).gather(1, z["kind"]).squeeze(1)
    assert float(error.mean().abs()) < SIGMAS * float(error.std()) / len(error) ** 0.5
    assert torch.allclose(found.nats, found.fields["kind"] + found.fields["size"])
    assert found.mean == pytest.approx(float(found.nats.mean()))
    assert found.stderr == pytest.approx(float(found.nats.std()) / 300**0.5)


def test_hutchinson_estimates_the_same() -> None:
    z = drawn(200)
    kwargs = {"num_samples": 1, "num_steps": 40}
    one, two = (
        field_likelihood(exact(MaskedPath(4)), z, trace=trace, rng=rng(), **kwargs)  # pyright: ignore
        for trace in ("exact", "hutchinson")
    )
    assert torch.allclose(one.fields["size"], two.fields["size"])  # of one number v ∇u v is ∇u


def test_of_a_network() -> None:
    """An untrained network's belief is even: of three classes log 3, and of the prior what the flow makes of it."""
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


def test_of_fields_of_one_kind() -> None:
    """Without a field of the other kind one time will do."""
    path = ProductPath(kind=MaskedPath(4), other=MaskedPath(4))
    model = ExactProductModel(path, {"kind": torch.arange(3)[:, None], "other": torch.arange(3)[:, None]}, weights=LAW)
    z = {"kind": torch.tensor([[0], [1], [2]]), "other": torch.tensor([[0], [1], [2]])}
    found = field_likelihood(model, z, num_samples=2, rng=rng())
    # Of the pair only the first symbol to show tells anything; of two draws one has both masked, of weight 2/2, two terms.
    assert torch.allclose(found.nats, -LAW.log())


def test_what_has_no_likelihood_is_refused() -> None:
    z = drawn(4)
    shared = exact(MaskedPath(4))
    shared.path = ProductPath(shared.path.factors)
    with pytest.raises(ValueError, match="share one time"):
        field_likelihood(shared, z)
    with pytest.raises(TypeError, match=r"needs Gaussian paths with a flow"):
        field_likelihood(exact(MaskedPath(4), generators={"jump": 1.0}, bins=Bins(-5, 5, 8)), z)
    with pytest.raises(TypeError, match="has a single field: use likelihood_bound"):
        field_likelihood(GMModel(GMConfig(path=MaskedPath(4), hidden_size=8, num_attention_heads=2)), z)
    with pytest.raises(ValueError, match="attention_mask leaves out numbers"):
        field_likelihood(exact(MaskedPath(4)), z, {"size": torch.zeros(4, 1)})
