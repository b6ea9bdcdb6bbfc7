"""Guided rates against Bayes' rule and against what they are defined as, on enumerable chains."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import ClassifierGuidance, GaussianPath, MaskedPath, MetricPath, MixturePath, UniformPath, simulate
from gm_discrete.samplers.guidance import tilted
from tests.helpers.chains import EnumeratedChain, index_of, joint_rates
from tests.helpers.distributions import LEAST_P, chi_square

REVERSALS = {
    "masked": MaskedPath(4),
    "uniform": UniformPath(3),
    "prior": MixturePath(3, [0.5, 0.3, 0.2]),
}
every_reversal = pytest.mark.parametrize("name", REVERSALS)


class Conditioned:
    """An exact chain, a condition c with p(c|z), the chain given c, and p(c|x) at every time."""

    def __init__(self, path: Any) -> None:
        self.path, self.plain, self.given = path, EnumeratedChain(path, 3, 3), EnumeratedChain(path, 3, 3)
        self.chance = torch.rand(27, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 2
        self.given.weights = self.plain.weights * self.chance
        self.given.weights = self.given.weights / self.given.weights.sum()

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        joint = (
            self.plain.likelihood(x, t.clamp(min=1e-9)) * self.plain.weights
        )  # neighbours at t = 0 are of a time before it
        return ((joint * self.chance).sum(1) / joint.sum(1)).log()

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, c: Tensor | None = None) -> Any:
        return (self.plain if c is None else self.given).generator(x, t, t_next)


def with_states(model: Any, like: EnumeratedChain) -> Any:
    model.states, model.length = like.states, like.length
    return model


@every_reversal
@pytest.mark.parametrize("t", [0.1, 0.4, 0.9])
def test_classifier_guidance__scale_1_is_bayes_rule(name: str, t: float) -> None:
    case = Conditioned(REVERSALS[name])
    guided = with_states(ClassifierGuidance(case.log_prob).guided(case.plain), case.plain)
    possible = case.given.joint_marginal(t) > 0
    torch.testing.assert_close(
        joint_rates(guided, t)[:, possible], joint_rates(case.given, t)[:, possible], rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_classifier_guidance__scale_is_an_exponent(scale: float) -> None:
    case = Conditioned(MaskedPath(4))
    plain, given = joint_rates(case.plain, 0.4), joint_rates(case.given, 0.4)
    guided = with_states(ClassifierGuidance(case.log_prob, scale).guided(case.plain), case.plain)
    possible = (case.given.joint_marginal(0.4) > 0) & (plain.diagonal() < 0)
    off = ~torch.eye(len(plain), dtype=torch.bool) & possible[None] & (plain > 0)
    expected = plain * (given / plain) ** scale
    torch.testing.assert_close(joint_rates(guided, 0.4)[off], expected[off], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "path", [UniformPath(3, rates="mixture"), MixturePath(3, [0.5, 0.3, 0.2], rates="mixture"),
             MetricPath(3, distance=(torch.arange(3)[:, None] - torch.arange(3)).abs().double())], ids=repr
)  # fmt: skip
def test_classifier_guidance__rates_for_which_bayes_rule_fails_are_refused(path: Any) -> None:
    with pytest.raises(ValueError, match="Bayes' rule"):
        ClassifierGuidance(lambda x, t: t).guided(EnumeratedChain(path, 3, 3))


def test_classifier_guidance__mixture_rates_are_refused_for_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Conditioned(UniformPath(3, rates="mixture"))
    monkeypatch.setattr(ClassifierGuidance, "check", lambda self, path: None)
    guided = with_states(ClassifierGuidance(case.log_prob).guided(case.plain), case.plain)
    assert (joint_rates(guided, 0.4) - joint_rates(case.given, 0.4)).abs().max() > 0.05


@pytest.mark.slow
@every_reversal
@pytest.mark.parametrize("method", ["tau_leaping", "euler"])
def test_classifier_guidance__steps_have_the_distribution_given_the_condition(name: str, method: str) -> None:
    case = Conditioned(REVERSALS[name])
    guided = ClassifierGuidance(case.log_prob).guided(case.plain)
    rng = torch.Generator().manual_seed(0)
    x_0 = case.path.prior((1500, 3), rng)
    run = simulate(guided, x_0, torch.linspace(0, 1, 81), rng, method, return_info=True)
    counts = torch.bincount(index_of(run.x, 3), minlength=27)
    assert chi_square(counts, case.given.weights) > LEAST_P
    assert chi_square(counts, case.plain.weights) < 1e-12
    assert (run.network_calls >= 3).all()


@every_reversal
@pytest.mark.parametrize("interval", [True, False])
def test_tilted__by_nothing_changes_nothing(name: str, interval: bool) -> None:
    model = EnumeratedChain(REVERSALS[name], 3, 3)
    x = model.states()
    t = torch.full((len(x),), 0.4, dtype=torch.float64)
    x, t = x[model.joint_marginal(0.4) > 0], t[model.joint_marginal(0.4) > 0]
    jump = model.generator(x, t, t + 0.6 if interval else None)
    same = tilted(jump, x, lambda where: torch.zeros(len(where), 4 if name == "masked" else 3).double())
    torch.testing.assert_close(same.rates(x), jump.rates(x))
    if interval:
        everywhere = torch.arange(x.numel())
        leave = jump.chance.flatten() * jump.kernel.leave(x.flatten(), everywhere)
        torch.testing.assert_close(same.chance.flatten(), leave)


def test_classifier_guidance__taylor_is_exact_for_a_classifier_that_is_linear_in_one_hot_states() -> None:
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    def linear(x: Tensor, t: Tensor) -> Tensor:
        x = x if x.is_floating_point() else torch.nn.functional.one_hot(x, 4).float()
        return (x * weight).sum((1, 2))

    model = EnumeratedChain(MaskedPath(4), 3, 3)
    x = torch.tensor([[3, 3, 1], [0, 3, 2]])
    t = torch.full((2,), 0.4).double()
    rates = [
        ClassifierGuidance(linear, 2.0, method).guided(model).generator(x, t).rates(x) for method in ("exact", "taylor")
    ]
    torch.testing.assert_close(rates[0], rates[1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(rates[0], model.generator(x, t).rates(x))


def test_classifier_guidance__taylor_is_of_first_order() -> None:
    """Its error falls with the square of the predictor's slope."""
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    model, x, t = EnumeratedChain(MaskedPath(4), 3, 3), torch.tensor([[3, 3, 1]]), torch.full((1,), 0.4).double()
    errors = []
    for slope in (0.2, 0.1):

        def curved(x: Tensor, t: Tensor, slope: float = slope) -> Tensor:
            x = x if x.is_floating_point() else torch.nn.functional.one_hot(x, 4).float()
            return torch.nn.functional.logsigmoid(slope * (x * weight).sum((1, 2)))

        exact, taylor = (
            ClassifierGuidance(curved, 1.0, method).guided(model).generator(x, t).rates(x)
            for method in ("exact", "taylor")
        )
        errors.append(float((exact - taylor).abs().max()))
    assert 3 < errors[0] / errors[1] < 5


@pytest.mark.parametrize(
    ("options", "message"), [({"scale": -1.0}, "scale"), ({"method": "best"}, "'exact' or 'taylor'")]
)
def test_classifier_guidance__arguments_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassifierGuidance(lambda x, t: t, **options)


def test_classifier_guidance__needs_rates_of_a_reversal() -> None:
    guidance = ClassifierGuidance(lambda x, t: t)
    guidance.check(MaskedPath(3))
    with pytest.raises(ValueError, match=r"rates=None.*MaskedPath"):
        guidance.check(GaussianPath())
