"""D_φ of numbers, target first: closed forms, the reason why conditional targets will do, and what is refused."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import bregman
from gm_discrete.generators import Diffusion, Flow, Jump
from gm_discrete.generators.kernels import Categorical, TensorReadout
from gm_discrete.generators.landings import Bins
from gm_discrete.objective.bregman import DIVERGENCES, Bregman, divergence, named
from gm_discrete.paths import GaussianPath
from gm_discrete.paths.gaussian_belief import BinnedBelief
from tests.helpers.euclid import numbers, rng, times

# φ, φ' and φ'', written out.
FAMILIES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "squared": (lambda a: a * a / 2, lambda a: a, torch.ones_like),
    "generalized_kl": (lambda a: a * a.log() - a, lambda a: a.log(), lambda a: 1 / a),
    "itakura_saito": (lambda a: -a.log(), lambda a: -1 / a, lambda a: 1 / a**2),
    "root": (lambda a: -2 * a.sqrt(), lambda a: -1 / a.sqrt(), lambda a: a**-1.5 / 2),
    "cosh": (torch.cosh, torch.sinh, torch.cosh),
    "log_cosh": (lambda a: a.cosh().log(), torch.tanh, lambda a: a.cosh() ** -2),
    "exponential": (torch.exp, torch.exp, torch.exp),
}
POSITIVE = ["generalized_kl", "itakura_saito", "root"]
every_family = pytest.mark.parametrize("name", FAMILIES)
RATES = ["squared", *POSITIVE]
"""Of rates and squared scales: positive and unbounded."""
VELOCITIES = [name for name in FAMILIES if name not in POSITIVE]


def samples(name: str, seed: int, n: int = 200) -> Tensor:
    values = torch.randn(n, generator=rng(seed), dtype=torch.float64)
    return values.exp() if name in POSITIVE else 1.5 * values


# ---- closed forms


@every_family
def test_bregman__closed_form_is_the_definition(name: str) -> None:
    """φ(a) − φ(b) − φ'(b)(a − b), with the target a first; nowhere negative, and 0 where the two agree."""
    phi, slope, _ = FAMILIES[name]
    a, b = samples(name, 1), samples(name, 2)
    values = DIVERGENCES[name](a, b)
    torch.testing.assert_close(values, phi(a) - phi(b) - slope(b) * (a - b), rtol=1e-11, atol=1e-12)
    assert bool((values >= 0).all())
    assert float(values.min()) < 0.1 < float(values.max())
    torch.testing.assert_close(DIVERGENCES[name](a, a), torch.zeros_like(a), rtol=0, atol=1e-13)


@every_family
def test_bregman__automatic_form_is_the_closed_one(name: str) -> None:
    """From φ alone, whether or not gradients are recorded, and with the same gradient where they are."""
    own = Bregman(DIVERGENCES[name].phi, DIVERGENCES[name].positive)
    a, b = samples(name, 1), samples(name, 2)
    torch.testing.assert_close(own(a, b), DIVERGENCES[name](a, b), rtol=1e-11, atol=1e-12)
    assert not own(a, b).requires_grad
    with torch.no_grad():
        torch.testing.assert_close(own(a, b), DIVERGENCES[name](a, b), rtol=1e-11, atol=1e-12)
    b.requires_grad_()
    slopes = [torch.autograd.grad(d(a, b).sum(), b)[0] for d in (own, DIVERGENCES[name])]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-10, atol=1e-11)


@every_family
def test_bregman__gradient_in_the_prediction_is_linear_in_the_target(name: str) -> None:
    """∂D/∂b = φ''(b)(b − a): what makes a conditional target as good as the marginal one."""
    a, b = samples(name, 1), samples(name, 2).requires_grad_()
    (slope,) = torch.autograd.grad(DIVERGENCES[name](a, b).sum(), b)
    expected = FAMILIES[name][2](b.detach()) * (b.detach() - a)
    torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", [*RATES])
def test_bregman__a_rate_may_be_zero(name: str) -> None:
    """φ(0) is left out where it is infinite: it is no matter of the prediction. So in both forms."""
    a, b = torch.zeros(3, dtype=torch.float64), numbers(0.2, 1.0, 5.0)
    expected = {
        "squared": b * b / 2,
        "generalized_kl": b,
        "itakura_saito": b.log() - 1,
        "root": b.sqrt(),
    }[name]
    own = Bregman(DIVERGENCES[name].phi, DIVERGENCES[name].positive)
    torch.testing.assert_close(DIVERGENCES[name](a, b), expected)
    torch.testing.assert_close(own(a, b), expected)


def test_bregman__log_cosh_does_not_overflow() -> None:
    big = numbers(-1e4, 1e4)
    torch.testing.assert_close(DIVERGENCES["log_cosh"](big, -big), 2 * big.abs())


# ---- conditional and marginal


LAW = numbers(0.2, 0.5, 0.3)
"""Posterior of three data points."""


def velocities(z: int) -> Tensor:
    return torch.randn(5, 2, generator=rng(10 + z), dtype=torch.float64)


def scales(z: int) -> Tensor:
    return torch.rand(5, 2, generator=rng(20 + z), dtype=torch.float64) + 0.3


def bin_rates(z: int) -> Tensor:
    """Rates into four bins, [5, 2, 4]; those of the first data point are 0 somewhere, as a conditional jump's are."""
    rates = torch.rand(5, 2, 4, generator=rng(30 + z), dtype=torch.float64) + 0.1
    return rates if z else rates * (torch.arange(5) % 2)[:, None, None]


def jump_of(rates: Tensor, x: Tensor) -> Jump:
    total = rates.sum(-1)
    logits = torch.where(
        total[..., None] > 0, rates, 1.0
    ).log()  # where nothing jumps, any distribution of landings will do
    return Jump(total, Categorical(TensorReadout(logits), x.shape, 4, x.device))


def both_losses(part: str, name: str, swapped: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(conditional loss, marginal loss, parameters that both are functions of)."""
    x = torch.zeros(5, 2, dtype=torch.float64)
    if part == "flow":
        raw = velocities(9).requires_grad_()
        targets, predicted = [Flow(velocities(z)) for z in range(3)], Flow(raw)
        mean: Any = Flow(sum(w * velocities(z) for z, w in enumerate(LAW)))
    elif part == "diffusion":  # what is averaged is the squared scale
        raw = scales(9).requires_grad_()
        targets, predicted = [Diffusion(scales(z)) for z in range(3)], Diffusion(raw)
        mean = Diffusion(sum(w * scales(z) ** 2 for z, w in enumerate(LAW)).sqrt())
    else:  # and of a jump the product of rate and mass
        raw = torch.randn(5, 2, 5, generator=rng(39), dtype=torch.float64).requires_grad_()
        targets = [jump_of(bin_rates(z), x) for z in range(3)]
        predicted = Jump(raw[..., 4].exp(), Categorical(TensorReadout(raw[..., :4]), x.shape, 4, x.device))
        mean = jump_of(sum(w * bin_rates(z) for z, w in enumerate(LAW)), x)

    def loss(target: Any) -> Tensor:
        pair = (predicted, target) if swapped else (target, predicted)
        return divergence(*pair, x, kind=name).sum()

    return sum(w * loss(target) for w, target in zip(LAW, targets, strict=True)), loss(mean), raw


CASES = [("flow", name) for name in VELOCITIES]
CASES += [(part, name) for part in ("diffusion", "jump") for name in RATES]


@pytest.mark.parametrize(("part", "name"), CASES)
def test_bregman__conditional_targets_have_the_gradient_of_the_marginal_one(part: str, name: str) -> None:
    conditional, marginal, raw = both_losses(part, name)
    slopes = [torch.autograd.grad(loss, raw, retain_graph=True)[0] for loss in (conditional, marginal)]
    assert float(slopes[0].abs().max()) > 1e-2
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("part", "name"), [case for case in CASES if case[1] != "squared"])
def test_bregman__swapped_arguments_have_not(part: str, name: str) -> None:
    if part == "jump":  # a target may be 0 where no prediction is: swapped, that is infinite at once
        conditional, marginal, _ = both_losses(part, name, swapped=True)
        difference = float((conditional - marginal).detach().abs())
        assert difference > 1e-2 or not math.isfinite(difference)
        return
    conditional, marginal, raw = both_losses(part, name, swapped=True)
    slopes = [torch.autograd.grad(loss, raw, retain_graph=True)[0] for loss in (conditional, marginal)]
    assert float((slopes[0] - slopes[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("name", VELOCITIES)
def test_bregman__the_losses_differ_by_what_jensen_says(name: str) -> None:
    """E φ(F^z) − φ(E F^z), whatever the prediction."""
    phi = FAMILIES[name][0]
    mean = sum(w * velocities(z) for z, w in enumerate(LAW))
    expected = sum(w * phi(velocities(z)).sum() for z, w in enumerate(LAW)) - phi(mean).sum()
    conditional, marginal, _ = both_losses("flow", name)
    assert float((conditional - marginal).detach()) == pytest.approx(float(expected), rel=1e-10)
    assert float(expected) > 0.1


# ---- bins of a jump


@pytest.mark.parametrize("prediction", ["belief", "velocity"])
def test_bregman__kl_over_bins_is_the_full_sum(prediction: str) -> None:
    """Where the target has rate 0, or is headed for one bin, less is computed; Σ_b [Q log(Q/Q̂) − Q + Q̂] is the same."""
    path = GaussianPath({"jump": 1.0}, prediction=prediction, bins=Bins(-4, 4, 12))
    z, x = (torch.randn(6, 3, generator=rng(i), dtype=torch.float64) for i in (1, 2))
    x = 2 * x
    z = z.clamp(-4, 4)
    logits = torch.randn(6, 3, 12, generator=rng(3), dtype=torch.float64)
    readout = {"flow": x, "rate": 0.3 * x, "landing": logits, "belief": logits}

    def read(head: str, where: Tensor | None = None) -> Tensor:
        value = readout[head].flatten(0, 1) if readout[head].dim() == 3 else readout[head]
        return value if where is None else value[where].clone()

    t = times(0.4, 6)
    target, predicted = path.conditional(z, x, t).parts["jump"], path.marginal(read, x, t).parts["jump"]
    assert isinstance(target, Jump)
    assert 3 < int((target.intensity == 0).sum()) < 15
    everywhere = torch.arange(18)
    q = target.intensity.flatten()[:, None] * target.kernel.log_probs(everywhere).exp()
    landing = torch.softmax(logits, -1).flatten(0, 1)
    if prediction == "belief":
        landing = landing * BinnedBelief.normal(x.flatten(), path.at(times(0.4, 18)), path.bins).rate.clamp(min=1e-6)
    q_hat = predicted.intensity.flatten()[:, None] * landing / landing.sum(1, keepdim=True)
    full = (torch.xlogy(q, q / q_hat) - q + q_hat).sum(1).view(6, 3)
    values = divergence(target, predicted, x)
    torch.testing.assert_close(values, full, rtol=1e-11, atol=1e-12)
    general = Bregman(lambda a: torch.xlogy(a, a) - a, positive=True)
    torch.testing.assert_close(divergence(target, predicted, x, kind=general), full, rtol=1e-9, atol=1e-11)
    where = torch.arange(18).view(6, 3) % 3 == 0
    for kind in ("generalized_kl", general, "squared"):
        seen = divergence(target, predicted, x, where, kind)
        torch.testing.assert_close(seen, torch.where(where, divergence(target, predicted, x, kind=kind), 0.0))
    # in other units D is not the same number, but that of the rates in those units
    unit = numbers(2.0).expand(6)[:, None]
    scaled = divergence(target.per(unit), predicted.per(unit), x, kind="squared")
    torch.testing.assert_close(scaled, divergence(target, predicted, x, kind="squared") / 4)


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("prediction", ["belief", "velocity"])
def test_bregman__every_divergence_over_bins_is_its_sum(name: str, prediction: str) -> None:
    path = GaussianPath({"jump": 1.0}, prediction=prediction, bins=Bins(-4, 4, 6))
    z, x = torch.randn(4, 2, generator=rng(1)).double(), 2 * torch.randn(4, 2, generator=rng(2)).double()
    z = z.clamp(-4, 4)
    target = path.conditional(z, x, times(0.4, 4)).parts["jump"]
    rates = torch.rand(4, 2, 6, generator=rng(5), dtype=torch.float64) + 0.1
    q = target.intensity.flatten()[:, None] * target.kernel.log_probs(torch.arange(8)).exp()
    expected = DIVERGENCES[name](q, rates.flatten(0, 1)).sum(1).view(4, 2)
    torch.testing.assert_close(divergence(target, jump_6(rates, x), x, kind=name), expected, rtol=1e-9, atol=1e-10)


def jump_6(rates: Tensor, x: Tensor) -> Jump:
    total = rates.sum(-1)
    return Jump(total, Categorical(TensorReadout((rates / total[..., None]).log()), x.shape, 6, x.device))


def test_bregman__gradients_are_finite_where_nothing_jumps() -> None:
    """Of a rate and of logits that the target does not ask for."""
    path = GaussianPath({"jump": 1.0}, bins=Bins(-4, 4, 6))
    z, x = torch.zeros(3, 1), torch.zeros(3, 1)  # in the middle, where the density rises
    raw = torch.randn(3, 1, 7, generator=rng(), requires_grad=True)
    target = path.conditional(z, x, times(0.5, 3)).parts["jump"]
    predicted = Jump(raw[..., 6].exp(), Categorical(TensorReadout(raw[..., :6]), x.shape, 6, x.device))
    assert float(target.intensity.sum()) == 0
    for kind in RATES:
        (slope,) = torch.autograd.grad(divergence(target, predicted, x, kind=kind).sum(), raw, retain_graph=True)
        assert bool(slope.isfinite().all())
    (slope,) = torch.autograd.grad(divergence(target, predicted, x).sum(), raw)
    torch.testing.assert_close(slope[..., 6], raw.detach()[..., 6].exp())  # D = R̂
    assert float(slope[..., :6].abs().max()) == 0


# ---- one's own


def test_bregman__a_divergence_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """φ = a³ᐟ², by itself and by a name: D = a^1.5 − b^1.5 − 1.5 √b (a − b)."""
    own = Bregman(lambda a: a**1.5, positive=True)
    monkeypatch.setitem(DIVERGENCES, "mine", own)
    a, b = scales(1), scales(2).requires_grad_()
    x = torch.zeros_like(a)
    u, v = a**2, b**2
    expected = u**1.5 - v**1.5 - 1.5 * v.sqrt() * (u - v)
    for kind in (own, "mine"):
        values = divergence(Diffusion(a), Diffusion(b), x, kind=kind)
        torch.testing.assert_close(values, expected)
        slopes = [torch.autograd.grad(d.sum(), b, retain_graph=True)[0] for d in (values, expected)]
        torch.testing.assert_close(slopes[0], slopes[1])
    with pytest.raises(ValueError, match=r"'mine'.*positive"):
        divergence(Flow(a), Flow(b), x, kind="mine")
    skewed = Bregman(lambda a: a**4 + a.exp())  # on the whole line: also of velocities
    torch.testing.assert_close(
        divergence(Flow(a), Flow(b), x, kind=skewed),
        a**4 + a.exp() - b**4 - b.exp() - (4 * b**3 + b.exp()) * (a - b),
    )


# ---- what is refused


@pytest.mark.parametrize("name", POSITIVE)
def test_bregman__velocities_have_either_sign(name: str) -> None:
    flow = Flow(torch.ones(2, 2))
    with pytest.raises(ValueError, match=f"'{name}'.*velocities"):
        divergence(flow, flow, torch.zeros(2, 2), kind=name)


@pytest.mark.parametrize("part", ["diffusion", "jump"])
@pytest.mark.parametrize("name", ["cosh", "log_cosh", "exponential"])
def test_bregman__rates_are_positive_and_unbounded(part: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}'.*squared.*generalized_kl"):
        named(name, part)
    assert named("squared", part) is DIVERGENCES["squared"]


@pytest.mark.parametrize("part", ["flow", "diffusion", "jump"])
def test_bregman__unknown_names_are_named(part: str) -> None:
    with pytest.raises(ValueError, match=r"divergence='l1'.*squared, generalized_kl"):
        named("l1", part)


def test_bregman__generators_of_one_kind_only() -> None:
    x = torch.zeros(2, 2, dtype=torch.float64)
    flow, diffusion, jump = Flow(x), Diffusion(x + 1), jump_of(torch.ones(2, 2, 4).double(), x)
    for pair in ((flow, diffusion), (diffusion, jump), (jump, flow)):
        names = " and ".join(type(part).__name__ for part in pair)
        with pytest.raises(TypeError, match=f"divergence of {names}"):
            divergence(*pair, x, kind="squared")
    with pytest.raises(TypeError, match="Diffusion with a drift"):
        divergence(Diffusion(x + 1, x), Diffusion(x + 1, x), x, kind="squared")
    assert bregman.divergence(flow, flow, x, kind="squared").tolist() == x.tolist()
