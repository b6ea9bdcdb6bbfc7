"""D(F, F̂) = Σ_{y≠x} [R log(R/R̂) − R + R̂]: gathered = dense, finite gradients, precision, and the right minimiser."""

import pytest
import torch
from flow_matching.loss import MixturePathGeneralizedKL
from flow_matching.path import MixtureDiscreteProbPath
from flow_matching.path.scheduler import PolynomialConvexScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gm_discrete import (
    CosineSchedule,
    Jump,
    MaskedPath,
    MixturePath,
    PowerSchedule,
    UniformPath,
    bregman,
)
from gm_discrete.generators.kernels import Categorical, TensorReadout
from tests.helpers.chunks import set_chunks
from tests.helpers.distributions import PATHS, chain

SERIES = 2.5e-8
"""u e^u − e^u + 1 is a series to u⁶ for |u| < 0.1, of relative error u⁵/420; the derivative, u e^u, of error u⁵/120."""

every_path = pytest.mark.parametrize("name", PATHS)


def times(t: float, n: int) -> Tensor:
    return torch.full((n,), t, dtype=torch.float64)


def case(name: str, t: float = 0.4, dtype: torch.dtype = torch.float64) -> tuple:
    """(path, z, x ~ p_t(·|z), t, logits of a wrong belief) with x = z and x ≠ z among them."""
    path, symbols = PATHS[name][0](CosineSchedule()), PATHS[name][1]
    rng = torch.Generator().manual_seed(0)
    z = torch.randint(symbols, (40, 5), generator=rng)
    if name == "mask is 1":
        z = z + (z >= 1)
    time = times(t, 40)
    logits = torch.randn(40, 5, path.vocab_size, generator=rng, dtype=torch.float64)
    return path, z, path.sample(z, time, rng), time, logits.to(dtype)


def dense_kl(target: Jump, predicted: Jump, x: Tensor) -> Tensor:
    """The definition, from the dense rates."""
    rate, rate_hat = (jump.rates(x).scatter(2, x[..., None], 0.0) for jump in (target, predicted))
    terms = torch.where(rate > 0, rate * torch.log(rate / rate_hat), 0.0) - rate + rate_hat
    return terms.sum(2)


# ---- values


@every_path
@pytest.mark.parametrize("t", [0.05, 0.4, 0.95])
def test_divergence__gathered_form_is_the_sum_over_the_rates(name: str, t: float) -> None:
    path, z, x, time, logits = case(name, t)
    target, predicted = path.conditional(z, x, time), path.marginal(logits, x, time)
    expected = dense_kl(target, predicted, x)
    torch.testing.assert_close(bregman.divergence(target, predicted, x), expected, rtol=SERIES, atol=1e-13)
    assert float(expected.max()) > 1e-3


@pytest.mark.parametrize("n", [1.0, 2.0])
@pytest.mark.parametrize("symbols", [3, 50])
def test_divergence__mixture_rates_agree_with_flow_matching(n: float, symbols: int) -> None:
    """MixturePathGeneralizedKL of flow_matching 1.0.10, in float32: 1e-5 of the largest value."""
    rng = torch.Generator().manual_seed(1)
    z, x = (torch.randint(symbols, (64, 7), generator=rng) for _ in range(2))
    x = torch.where(torch.rand(64, 7, generator=rng) < 0.5, z, x)
    time, logits = 0.98 * torch.rand(64, generator=rng), 2 * torch.randn(64, 7, symbols, generator=rng)
    theirs = MixturePathGeneralizedKL(MixtureDiscreteProbPath(PolynomialConvexScheduler(n=n)), reduction="none")
    path = UniformPath(symbols, PowerSchedule(n), rates="mixture")
    ours = bregman.divergence(path.conditional(z, x, time), path.marginal(logits, x, time), x)
    expected = theirs(logits, z, x, time)
    scale = 1 / (1 - time[:, None] ** n)  # the hazard: what both multiply by
    torch.testing.assert_close(ours.float() / scale, expected / scale, rtol=1e-5, atol=1e-5)


def test_divergence__masking_agrees_with_flow_matching_at_the_masks() -> None:
    rng = torch.Generator().manual_seed(1)
    z, time = torch.randint(9, (64, 7), generator=rng), 0.98 * torch.rand(64, generator=rng)
    logits = torch.randn(64, 7, 10, generator=rng)
    logits[..., 9] = -torch.inf
    x = torch.full_like(z, 9)
    theirs = MixturePathGeneralizedKL(MixtureDiscreteProbPath(PolynomialConvexScheduler(n=1.0)), reduction="none")
    path = MaskedPath(10)
    ours = bregman.divergence(path.conditional(z, x, time), path.marginal(logits, x, time), x)
    torch.testing.assert_close(ours.float(), theirs(logits, z, x, time), rtol=1e-5, atol=0)


@every_path
def test_divergence__cross_entropy_is_that_of_the_belief_about_the_data(name: str) -> None:
    """Where a token can still move; nothing is left to learn at the others."""
    path, z, x, time, logits = case(name)
    if path.excluded:
        logits[..., path.mask_token_id] = -torch.inf
    expected = F.cross_entropy(logits.flatten(0, 1), z.flatten(), reduction="none").view_as(z)
    expected = torch.where(path.prior_probs(x.device)[x] > 0, expected, 0.0)
    target, predicted = path.conditional(z, x, time), path.marginal(logits, x, time)
    values = bregman.divergence(target, predicted, x, kind="cross_entropy")
    torch.testing.assert_close(values, expected, rtol=1e-13, atol=1e-13)


@every_path
@pytest.mark.parametrize("kind", ["generalized_kl", "cross_entropy"])
def test_divergence__where_selects_positions_and_reads_no_others(name: str, kind: str) -> None:
    path, z, x, time, logits = case(name)
    where = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.3
    asked = []

    def readout(head: str, rows: Tensor) -> Tensor:
        asked.extend(rows.tolist())
        return TensorReadout(logits, path.excluded)(head, rows)

    target, predicted = path.conditional(z, x, time), path.marginal(readout, x, time)
    values = bregman.divergence(target, predicted, x, where, kind)
    whole = bregman.divergence(target, path.marginal(logits, x, time), x, kind=kind)
    assert torch.equal(values, torch.where(where, whole, 0.0))
    active = where & (path.prior_probs(x.device)[x] > 0)
    assert asked == active.flatten().nonzero().squeeze(1).tolist()


def test_divergence__nothing_to_look_at_is_zero() -> None:
    path, z, x, time, logits = case("masked")
    target, predicted = path.conditional(z, x, time), path.marginal(logits, x, time)
    values = bregman.divergence(target, predicted, x, torch.zeros_like(x, dtype=torch.bool))
    assert values.shape == x.shape
    assert float(values.abs().max()) == 0


# ---- a divergence


@given(
    name=st.sampled_from(list(PATHS)),
    t=st.floats(1e-3, 1 - 1e-3),
    seed=st.integers(0, 2**20),
    scale=st.sampled_from([0.01, 1.0, 10.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_divergence__is_never_negative(name: str, t: float, seed: int, scale: float, dtype: torch.dtype) -> None:
    """Down to the rounding of its largest term: the rate of candidates, in the precision of the logits."""
    path, z, x, time, _ = case(name, t)
    rng = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(*x.shape, path.vocab_size, generator=rng)).to(dtype)
    target = path.conditional(z, x, time)
    values = bregman.divergence(target, path.marginal(logits, x, time), x)
    assert bool(values.isfinite().all())
    assert float((values / target.intensity.clamp(min=1)).min()) >= -4 * torch.finfo(dtype).eps


@every_path
@pytest.mark.parametrize("t", [0.01, 0.4, 0.99])
def test_divergence__of_a_generator_from_itself_is_zero(name: str, t: float) -> None:
    path, z, x, time, logits = case(name, t)
    marginal = path.marginal(logits, x, time)
    assert float(bregman.divergence(marginal, marginal, x).abs().max()) == 0
    sure = torch.full_like(logits, -800.0).scatter(2, z[..., None], 0.0)  # e^-800 is 0, yet no logit is infinite
    values = bregman.divergence(path.conditional(z, x, time), path.marginal(sure, x, time), x)
    assert float(values.abs().max()) < 1e-12


# ---- gradients


@every_path
@pytest.mark.parametrize("kind", ["generalized_kl", "cross_entropy"])
@pytest.mark.parametrize("t", [1e-6, 0.4, 1 - 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_divergence__gradients_are_finite_with_excluded_symbols(
    name: str, kind: str, t: float, dtype: torch.dtype
) -> None:
    """Logits of −∞, as networks give to the mask: the special symbol is excluded where the data does not hold it."""
    path, z, x, time, logits = case(name, t, dtype)
    if name.startswith("special"):
        z, x = z.clamp(max=2), x.clamp(max=2)
        logits[..., 3] = -torch.inf
    if path.excluded:
        x[:, 0] = path.mask_token_id  # at every t something is left to learn
    logits.requires_grad_()
    target, predicted = path.conditional(z, x, time), path.marginal(logits, x, time)
    values = bregman.divergence(target, predicted, x, kind=kind)
    values.sum().backward()
    assert bool(values.isfinite().all())
    assert bool(logits.grad.isfinite().all())
    assert float(logits.grad.abs().max()) > 0


@pytest.mark.parametrize("rates", ["reversal", "mixture"])
@pytest.mark.parametrize("vocab_size", [3, 1000])
@pytest.mark.parametrize("confidence", [20.0, 40.0, 100.0])
@pytest.mark.parametrize("kappa", [0.5, 0.999, 1 - 1e-9, 1 - 1e-12])
def test_divergence__gradients_are_finite_for_a_confident_network(
    rates: str, vocab_size: int, confidence: float, kappa: float
) -> None:
    """A belief that x is noise so sure that the kernel's probability of staying rounds to 0 in float32."""
    path, x, time = UniformPath(vocab_size, rates=rates), torch.tensor([[1, 1]]), times(kappa, 1)
    logits = torch.zeros(1, 2, vocab_size)
    logits[..., 0] = confidence
    logits.requires_grad_()
    target = path.conditional(torch.tensor([[0, 1]]), x, time)  # right about the first token, wrong about the second
    values = bregman.divergence(target, path.marginal(logits, x, time), x)
    values.sum().backward()
    assert bool(values.isfinite().all())
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("rates", ["reversal", "mixture"])
def test_divergence__a_sure_and_right_belief_has_no_loss_and_no_gradient(rates: str) -> None:
    """Exact posteriors of sure tokens have logits of 0 and −∞, at x = z too."""
    path, x = UniformPath(3, rates=rates), torch.tensor([[0, 1]])
    logits = torch.full((1, 2, 3), -torch.inf, dtype=torch.float64)
    logits[..., 0] = 0
    logits.requires_grad_()
    target = path.conditional(torch.zeros_like(x), x, times(0.5, 1))
    values = bregman.divergence(target, path.marginal(logits, x, times(0.5, 1)), x)
    values.sum().backward()
    torch.testing.assert_close(values, torch.zeros(1, 2, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool(logits.grad.isfinite().all())


@every_path
def test_divergence__conditional_and_marginal_loss_have_the_same_gradient(name: str) -> None:
    """Generator Matching, proposition 2, with the expectation over (z, x) summed: ∇θ E D(F^z, F_θ) = ∇θ E D(F, F_θ)."""
    model = chain(name, 2)
    path, states = model.path, model.states()
    time = times(0.4, len(states))
    joint = model.likelihood(states, time) * model.weights  # [X, Z]
    noise = torch.randn(*states.shape, path.vocab_size, generator=torch.Generator().manual_seed(2)).double()
    theta = (noise + model.logits(states, time).clamp(min=-5)).requires_grad_()
    predicted = path.marginal(theta, states, time)
    target = model.generator(states, time)
    marginal_loss = (joint.sum(1) * bregman.divergence(target, predicted, states).sum(1)).sum()
    conditional_loss = 0.0
    for z, weight in zip(model.data, joint.T, strict=True):
        loss = bregman.divergence(path.conditional(z.expand_as(states), states, time), predicted, states).sum(1)
        conditional_loss = conditional_loss + (torch.where(weight > 0, weight * loss, 0.0)).sum()
    gradients = [torch.autograd.grad(loss, theta)[0] for loss in (marginal_loss, conditional_loss)]
    torch.testing.assert_close(
        *gradients, rtol=4 * SERIES, atol=1e-9
    )  # atol: the softmax subtracts gradients of size 0.01
    assert float(gradients[0].abs().max()) > 1e-3
    assert float(conditional_loss.detach()) > float(marginal_loss.detach()) > 0  # Jensen


@pytest.mark.parametrize("kind", ["generalized_kl", "cross_entropy"])
@every_path
def test_divergence__chunks_have_the_loss_and_the_gradient_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    results = []
    for elements in (2**24, 21):
        set_chunks(elements, monkeypatch)
        path, z, x, time, logits = case(name)
        logits.requires_grad_()
        values = bregman.divergence(path.conditional(z, x, time), path.marginal(logits, x, time), x, kind=kind)
        results.append((values, torch.autograd.grad(values.sum(), logits)[0]))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(
            whole, chunked, rtol=1e-13, atol=1e-15
        )  # exponentials are vectorised in other groups


# ---- precision


@pytest.mark.parametrize("kappa", [1e-6, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-6])
@pytest.mark.parametrize("rates", ["reversal", "mixture"])
def test_divergence__float32_logits_give_the_float64_divergence_at_both_ends(rates: str, kappa: float) -> None:
    """With the evidence in the logits, as models add it, K = 50.

    The rate of candidates λ times the rounding of the kernel's log-probabilities, whose size is log(K/(1 − κ)) ≤ 18, is
    what float32 may cost: λ · 18 · 6e-8, relative to λ times the kernel's own 1 − k(x) and to the divergence itself.
    """
    path, rng = UniformPath(50, rates=rates), torch.Generator().manual_seed(4)
    z = torch.randint(50, (200, 10), generator=rng)
    time = times(kappa, 200)
    x = path.sample(z, time, rng)
    x[:, 0] = (z[:, 0] + 1) % 50  # noise, however rare
    belief = torch.randn(200, 10, 50, generator=rng).double()
    logits = belief.scatter_add(2, x[..., None], path.evidence(x, time)[..., None])
    target = path.conditional(z, x, time)
    single, double = (bregman.divergence(target, path.marginal(rows, x, time), x) for rows in (logits.float(), logits))
    rate = path.conditional(z, x, time).intensity
    leave = Categorical(TensorReadout(logits), x.shape, 50, x.device).log_landing(
        z.flatten(), x.flatten(), torch.arange(x.numel())
    )[1].exp().view_as(x)  # fmt: skip
    rounding = 20 * 6e-8
    allowed = rounding * (4 * double + rate * (leave + (z != x))) + 1e-12 * rate
    assert bool(((single - double).abs() <= allowed).all())


@every_path
def test_divergence__mixed_precision_ends_at_the_logits(name: str) -> None:
    """Within autocast a divergence of given logits is what it is without."""
    path, z, x, time, logits = case(name, dtype=torch.float32)
    target, predicted = path.conditional(z, x, time), path.marginal(logits, x, time)
    expected = bregman.divergence(target, predicted, x)
    with torch.autocast("cpu", torch.bfloat16):
        values = bregman.divergence(target, predicted, x)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=0)


# ---- errors


def test_divergence__unknown_divergence_is_named() -> None:
    path, z, x, time, logits = case("masked")
    with pytest.raises(ValueError, match=r"kind='l2'.*generalized_kl, cross_entropy"):
        bregman.divergence(path.conditional(z, x, time), path.marginal(logits, x, time), x, kind="l2")


def test_divergence__cross_entropy_needs_a_target_headed_for_one_symbol() -> None:
    path, _, x, time, logits = case("prior mixture")
    marginal = path.marginal(logits, x, time)
    with pytest.raises(TypeError, match=r"cross_entropy.*Categorical"):
        bregman.divergence(marginal, marginal, x, kind="cross_entropy")


def test_divergence__the_arguments_are_not_symmetric() -> None:
    """Target first: swapping them is another loss, and no longer one whose minimiser is the marginal."""
    path, x, time = MixturePath(3, [0.5, 0.3, 0.2], rates="mixture"), torch.tensor([[0]]), times(0.5, 1)
    rows = torch.tensor([[[0.1, 0.2, 0.7]]]).log(), torch.tensor([[[0.1, 0.7, 0.2]]]).log()
    first, second = (path.marginal(r.double(), x, time) for r in rows)
    forward = 2 * (0.2 * torch.tensor(0.2 / 0.7).log() + 0.7 * torch.tensor(0.7 / 0.2).log())
    assert float(bregman.divergence(first, second, x)) == pytest.approx(float(forward), rel=1e-6)
    skewed = path.marginal(torch.tensor([[[0.1, 0.1, 0.8]]]).double().log(), x, time)
    assert float(bregman.divergence(first, skewed, x)) != pytest.approx(
        float(bregman.divergence(skewed, first, x)), 0.01
    )
