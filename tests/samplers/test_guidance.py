"""Guided rates against Bayes' rule and against what they are defined as, on enumerable chains."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import ClassifierGuidance, ClassifierGuided, MaskedPath, MetricPath, MixturePath, UniformPath, simulate
from gm_discrete.samplers.guidance import check_predictor, classifier_free, tilted
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
        self.given.law = self.plain.law * self.chance
        self.given.law = self.given.law / self.given.law.sum()

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        joint = (
            self.plain.likelihood(x, t.clamp(min=1e-9)) * self.plain.law
        )  # neighbours at t = 0 are of the time behind it
        return ((joint * self.chance).sum(1) / joint.sum(1)).log()

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, c: Tensor | None = None) -> Any:
        return (self.plain if c is None else self.given).generator(x, t, t_next)


def with_states(model: Any, like: EnumeratedChain) -> Any:
    model.states, model.length = like.states, like.length
    return model


@every_reversal
@pytest.mark.parametrize("t", [0.1, 0.4, 0.9])
def test_a_predictor_at_scale_1_is_bayes_rule(name: str, t: float) -> None:
    case = Conditioned(REVERSALS[name])
    guided = with_states(ClassifierGuided(case.plain, ClassifierGuidance(case.log_prob)), case.plain)
    possible = case.given.joint_marginal(t) > 0
    torch.testing.assert_close(
        joint_rates(guided, t)[:, possible], joint_rates(case.given, t)[:, possible], rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_the_scale_is_an_exponent(scale: float) -> None:
    case = Conditioned(MaskedPath(4))
    plain, given = joint_rates(case.plain, 0.4), joint_rates(case.given, 0.4)
    guided = with_states(ClassifierGuided(case.plain, ClassifierGuidance(case.log_prob, scale)), case.plain)
    possible = (case.given.joint_marginal(0.4) > 0) & (plain.diagonal() < 0)
    off = ~torch.eye(len(plain), dtype=torch.bool) & possible[None] & (plain > 0)
    expected = plain * (given / plain) ** scale
    torch.testing.assert_close(joint_rates(guided, 0.4)[off], expected[off], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "path", [UniformPath(3, rates="mixture"), MixturePath(3, [0.5, 0.3, 0.2], rates="mixture"),
             MetricPath(3, distance=(torch.arange(3)[:, None] - torch.arange(3)).abs().double())], ids=repr
)  # fmt: skip
def test_rates_for_which_bayes_rule_fails_are_refused_with_the_reason(path: Any) -> None:
    with pytest.raises(ValueError, match="Bayes' rule"):
        ClassifierGuided(EnumeratedChain(path, 3, 3), ClassifierGuidance(lambda x, t: t))


def test_the_refusal_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Conditioned(UniformPath(3, rates="mixture"))
    monkeypatch.setattr("gm_discrete.samplers.guidance.check_predictor", lambda path: None)
    guided = with_states(ClassifierGuided(case.plain, ClassifierGuidance(case.log_prob)), case.plain)
    assert (joint_rates(guided, 0.4) - joint_rates(case.given, 0.4)).abs().max() > 0.05


@every_reversal
@pytest.mark.parametrize("method", ["tau_leaping", "euler"])
def test_guided_steps_have_the_law_given_the_condition(name: str, method: str) -> None:
    case = Conditioned(REVERSALS[name])
    guided = ClassifierGuided(case.plain, ClassifierGuidance(case.log_prob))
    rng = torch.Generator().manual_seed(0)
    x_0 = case.path.prior((1500, 3), rng)
    run = simulate(guided, x_0, torch.linspace(0, 1, 161), rng, method, return_info=True)
    counts = torch.bincount(index_of(run.x, 3), minlength=27)
    assert chi_square(counts, case.given.law) > LEAST_P
    assert chi_square(counts, case.plain.law) < 1e-12
    assert (run.network_calls >= 3).all()


@every_reversal
@pytest.mark.parametrize("interval", [True, False])
def test_a_tilt_of_nothing_changes_nothing(name: str, interval: bool) -> None:
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


def test_classifier_free_rates_are_a_geometric_mean_with_its_own_speed() -> None:
    case, scale = Conditioned(UniformPath(3)), 2.5
    x = case.plain.states()
    t = torch.full((len(x),), 0.4, dtype=torch.float64)
    given, free = case.given.generator(x, t), case.plain.generator(x, t)
    guided = classifier_free(given, free, scale, x).rates(x)
    expected = given.rates(x).clamp(min=0) ** scale * free.rates(x).clamp(min=0) ** (1 - scale)
    expected = torch.where(given.rates(x) > 0, expected, 0.0)
    off = torch.nn.functional.one_hot(x, 3) == 0
    torch.testing.assert_close(guided[off], expected[off])
    assert (guided.sum(-1).abs() < 1e-9).all()
    assert (guided[off].sum() / given.rates(x)[off].sum()) > 1.2


def test_raw_guidance_reveals_masks_as_fast_as_its_rates_say() -> None:
    """Z = Σ π_c^γ π_u^{1−γ} multiplies the hazard: 1 − κ of the masks are left at κ without guidance, (1 − κ)^Z with it."""
    probs_c, probs_u = torch.tensor([0.9, 0.1, 0.0]).double(), torch.tensor([0.4, 0.6, 0.0]).double()
    path, scale = MaskedPath(3), 3.0

    class Guided:
        path = MaskedPath(3)

        def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Any:
            given, free = (path.marginal(probs.log().expand(*x.shape, 3), x, t, t_next) for probs in (probs_c, probs_u))
            return classifier_free(given, free, scale, x)

    z = float((probs_c[:2] ** scale * probs_u[:2] ** (1 - scale)).sum())
    assert z > 4
    rng = torch.Generator().manual_seed(0)
    run = simulate(Guided(), torch.full((500, 200), 2), [0, 0.1, 0.2, 0.3, 1], rng, save_at=[1, 3], return_info=True)
    for kappa, state in zip((0.1, 0.3), run.states, strict=True):
        left = (1 - kappa) ** z
        share = float((state == 2).double().mean())
        assert abs(share - left) < 4.5 * (left * (1 - left) / 100_000) ** 0.5
    ones = float((run.x == 1).double().mean())
    law = float(probs_c[1] ** scale * probs_u[1] ** (1 - scale)) / z
    assert abs(ones - law) < 4.5 * (law / 100_000) ** 0.5 + 1e-9


def test_taylor_is_exact_for_a_predictor_that_is_linear_in_one_hot_states() -> None:
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    def linear(x: Tensor, t: Tensor) -> Tensor:
        x = x if x.is_floating_point() else torch.nn.functional.one_hot(x, 4).float()
        return (x * weight).sum((1, 2))

    model = EnumeratedChain(MaskedPath(4), 3, 3)
    x = torch.tensor([[3, 3, 1], [0, 3, 2]])
    t = torch.full((2,), 0.4).double()
    rates = [
        ClassifierGuided(model, ClassifierGuidance(linear, 2.0, method)).generator(x, t).rates(x)
        for method in ("exact", "taylor")
    ]
    torch.testing.assert_close(rates[0], rates[1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(rates[0], model.generator(x, t).rates(x))


def test_taylor_is_of_first_order() -> None:
    """Its error falls with the square of the predictor's slope."""
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    model, x, t = EnumeratedChain(MaskedPath(4), 3, 3), torch.tensor([[3, 3, 1]]), torch.full((1,), 0.4).double()
    errors = []
    for slope in (0.2, 0.1):

        def curved(x: Tensor, t: Tensor, slope: float = slope) -> Tensor:
            x = x if x.is_floating_point() else torch.nn.functional.one_hot(x, 4).float()
            return torch.nn.functional.logsigmoid(slope * (x * weight).sum((1, 2)))

        exact, taylor = (
            ClassifierGuided(model, ClassifierGuidance(curved, 1.0, method)).generator(x, t).rates(x)
            for method in ("exact", "taylor")
        )
        errors.append(float((exact - taylor).abs().max()))
    assert 3 < errors[0] / errors[1] < 5


@pytest.mark.parametrize(
    ("options", "message"), [({"scale": -1.0}, "scale"), ({"method": "best"}, "'exact' or 'taylor'")]
)
def test_bad_predictors_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassifierGuidance(lambda x, t: t, **options)


def test_what_has_no_rates_of_a_reversal_has_no_predictor() -> None:
    check_predictor(MaskedPath(3))
    with pytest.raises(ValueError, match="MaskedPath"):
        check_predictor(None)
