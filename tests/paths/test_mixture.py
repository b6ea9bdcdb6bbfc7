"""p_t(x|z) = (1 − κ) p0(x) + κ 1[x = z] per token: its distributions, the Kolmogorov equation of its generators, its
configs."""

import itertools
import json
import math
import re
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gm_discrete import (
    CosineSchedule,
    ExponentialSchedule,
    MaskedPath,
    MixturePath,
    PowerSchedule,
    SquaredSineSchedule,
    UniformPath,
)
from gm_discrete.paths import Path
from gm_discrete.paths.schedules import Schedule
from tests.helpers.chains import EnumeratedChain, index_of, joint_rates
from tests.helpers.distributions import LEAST_P, PATHS, Lookup, chain, chi_square, token_step

every_path = pytest.mark.parametrize("name", PATHS)
SCHEDULES = [
    None,
    PowerSchedule(0.5),
    PowerSchedule(3),
    CosineSchedule(),
    SquaredSineSchedule(),
    ExponentialSchedule(3),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.type_name if s else "linear")


class Given(EnumeratedChain):
    """The chain whose data is always z: its generator is the conditional one."""

    z: Tensor

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, **conditioning):
        return self.path.conditional(self.z.expand(len(x), -1), x, t, t_next)


def times(t: float, n: int) -> Tensor:
    return torch.full((n,), t, dtype=torch.float64)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def law_and_derivative(model: EnumeratedChain, t: float, law: Tensor) -> tuple[Tensor, Tensor]:
    """p_t over all states and dp_t/dt, by forward differentiation: exact to rounding."""
    states = model.states()

    def marginal(time: Tensor) -> Tensor:
        return model.likelihood(states, time.expand(len(states))) @ law

    return torch.autograd.functional.jvp(marginal, *(torch.tensor(v, dtype=torch.float64) for v in (t, 1.0)))


# ---- Kolmogorov forward equation


@every_path
@every_schedule
@pytest.mark.parametrize("t", [0.03, 0.5, 0.97])
def test_mixture_path__marginal_generator_solves_the_kolmogorov_equation(
    name: str, schedule: Schedule | None, t: float
) -> None:
    """dp_t/dt = R p_t over all states of the sequence; rates reach 10³ near the ends, so rounding reaches 1e-13."""
    model = chain(name, 2, schedule)
    p, dp = law_and_derivative(model, t, model.weights)
    assert float((dp - joint_rates(model, t) @ p).abs().max()) < 1e-12
    assert float(dp.abs().max()) > 1e-4


@every_path
@every_schedule
@pytest.mark.parametrize("t", [0.03, 0.5, 0.97])
def test_mixture_path__conditional_generator_solves_the_kolmogorov_equation(
    name: str, schedule: Schedule | None, t: float
) -> None:
    """dp_t(·|z)/dt = R^z p_t(·|z), for every z. States of probability 0 (behind a wrong special symbol) have no equation."""
    model = chain(name, 2, schedule, Given)
    for index, z in enumerate(model.data):
        model.z = z
        law = torch.zeros(len(model.data), dtype=torch.float64).index_fill(0, torch.tensor(index), 1.0)
        p, dp = law_and_derivative(model, t, law)
        flow = torch.where(p > 0, joint_rates(model, t) * p, 0.0).sum(1)
        assert float((dp - flow).abs().max()) < 1e-12


def test_mixture_path__marginal_generator_is_the_posterior_mean_of_the_conditional_ones() -> None:
    """Generator Matching, proposition 1: R(y, x) = E[R^z(y, x) | x]."""
    for name in PATHS:
        model, average = chain(name, 2), 0.0
        states = model.states()
        t = times(0.4, len(states))
        joint = model.likelihood(states, t) * model.weights
        posterior = joint / joint.sum(1, keepdim=True)
        for index, z in enumerate(model.data):
            rates = model.path.conditional(z.expand_as(states), states, t).rates(states)
            weight = posterior[:, index, None, None]
            average = average + torch.where(weight > 0, weight * rates, 0.0)
        torch.testing.assert_close(model.generator(states, t).rates(states), average, rtol=1e-12, atol=1e-12)


# ---- distributions


@every_path
@pytest.mark.parametrize("t", [0.0, 0.3, 0.9, 1.0])
def test_mixture_path__samples_have_the_distribution_p_t(name: str, t: float) -> None:
    """Jointly over two tokens, so that their independence is tested too."""
    model = chain(name, 2, SquaredSineSchedule())
    z = model.data[5]
    x = model.path.sample(z.expand(40_000, 2), times(t, 40_000), rng(1))
    states = model.states()
    law = model.likelihood(states, times(t, len(states)))[:, 5]
    counts = torch.bincount(index_of(x, model.path.vocab_size), minlength=len(states))
    assert chi_square(counts, law) > LEAST_P
    if t == 1:
        assert bool((x == z).all())


@every_path
def test_mixture_path__prior_has_its_probabilities(name: str) -> None:
    path = chain(name).path
    law = path.prior_probs(torch.device("cpu"))
    assert float(law.sum()) == pytest.approx(1, abs=1e-15)
    x = path.prior((100, 400), rng(2))
    assert x.shape == (100, 400)
    assert x.dtype == torch.long
    assert chi_square(torch.bincount(x.flatten(), minlength=path.vocab_size), law) > LEAST_P


def test_mixture_path__priors_are_those_of_the_paths() -> None:
    cpu = torch.device("cpu")
    assert MaskedPath(3).prior_probs(cpu).tolist() == [0, 0, 1]
    assert MaskedPath(3, mask_token_id=0).prior_probs(cpu).tolist() == [1, 0, 0]
    assert UniformPath(4).prior_probs(cpu).tolist() == [0.25] * 4
    assert UniformPath(4, special_token_ids=(1, 3)).prior_probs(cpu).tolist() == [0.5, 0, 0.5, 0]
    assert MixturePath(2, torch.tensor([0.25, 0.75])).prior_probs(cpu).tolist() == [0.25, 0.75]


def test_mixture_path__sample_is_reproducible_and_does_not_change_its_arguments() -> None:
    path, z = UniformPath(5), torch.arange(5)[None]
    before = z.clone()
    assert torch.equal(path.sample(z, times(0.3, 1), rng(0)), path.sample(z, times(0.3, 1), rng(0)))
    assert torch.equal(z, before)


# ---- intervals


def transition(model: EnumeratedChain, t: float, s: float) -> Tensor:
    """What the generator of the step [t, s] does to each token of each state: P k(y) + (1 − P) 1[y = x], [X, L, K]."""
    states = model.states()
    jump = model.generator(states, times(t, len(states)), times(s, len(states)))
    stay = torch.nn.functional.one_hot(states, model.path.vocab_size).double()
    probability = jump.probability[..., None]
    return torch.where(probability > 0, probability * jump.kernel.probs(), 0.0) + (1 - probability) * stay


@every_path
def test_mixture_path__conditional_step_is_the_exact_transition_of_the_token(name: str) -> None:
    """P(x_s|x_t, z): for reversal rates p_s(y|z) K(x_t|y) / p_t(x_t|z); for mixture rates a jump to z with probability
    (κ_s − κ_t)/(1 − κ_t). Either leads from p_t(·|z) to p_s(·|z), and over two intervals it composes."""
    model = chain(name, 1, PowerSchedule(2), Given)
    prior, K = model.path.prior_probs(torch.device("cpu")), model.path.vocab_size
    t, r, s = 0.3, 0.5, 0.8
    for z in model.data:
        model.z = z
        step = transition(model, t, s)[:, 0]  # [x, y]
        p = [(1 - k) * prior + k * torch.eye(K, dtype=torch.float64)[z[0]] for k in (t**2, s**2)]
        possible = p[0] > 0
        torch.testing.assert_close(step.sum(1), torch.ones(K, dtype=torch.float64), rtol=0, atol=1e-14)
        torch.testing.assert_close(p[0] @ step, p[1], rtol=0, atol=1e-14)
        twice = transition(model, t, r)[:, 0] @ transition(model, r, s)[:, 0]
        torch.testing.assert_close(twice[possible], step[possible], rtol=0, atol=1e-14)
        if model.path.rates == "reversal":
            kept = (t / s) ** 2
            back = kept * torch.eye(K, dtype=torch.float64) + (1 - kept) * prior  # K(x_t|x_s = y), [y, x]
            bayes = p[1] * back.T / p[0][:, None]
        else:
            jump = (s**2 - t**2) / (1 - t**2) * (prior > 0).double()
            bayes = torch.diag(1 - jump)
            bayes[:, z[0]] += jump
        torch.testing.assert_close(step[possible], bayes[possible], rtol=0, atol=1e-14)


@every_path
@pytest.mark.parametrize(("t", "s"), [(0.0, 0.2), (0.3, 0.5), (0.5, 1.0)])
def test_mixture_path__marginal_step_is_the_average_of_the_exact_transitions(name: str, t: float, s: float) -> None:
    """Against the sums over z of `laws.token_step`, for every state of the sequence."""
    model = chain(name, 2, PowerSchedule(2))
    expected = token_step(model, t, s, "tau_leaping")
    possible = model.joint_marginal(t) > 0
    torch.testing.assert_close(transition(model, t, s)[possible], expected[possible], rtol=0, atol=1e-13)


@every_path
def test_mixture_path__step_of_a_single_token_is_exact(name: str) -> None:
    """L = 1: the marginal step maps p_t to p_s exactly, however long it is. Errors come from tokens that move together."""
    model = chain(name, 1)
    for t, s in [(0.0, 0.4), (0.4, 0.9), (0.4, 1.0)]:
        step = transition(model, t, s)[:, 0]
        torch.testing.assert_close(model.joint_marginal(t) @ step, model.joint_marginal(s), rtol=0, atol=1e-14)


@every_path
def test_mixture_path__step_becomes_the_rate_as_it_shrinks(name: str) -> None:
    """(P(t, t + δ) k_δ − R(t)) is O(δ): ten times smaller for a step ten times shorter."""
    model = chain(name, 2, SquaredSineSchedule())
    states, t = model.states(), 0.4
    rates = model.generator(states, times(t, len(states))).rates(states)
    errors = []
    for delta in (1e-3, 1e-4):
        moved = transition(model, t, t + delta).scatter(-1, states[..., None], 0.0) / delta
        errors.append(float((moved - rates.scatter(-1, states[..., None], 0.0)).abs().max()))
    assert errors[0] < 0.1
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)


@every_path
def test_mixture_path__symbol_outside_the_prior_never_moves(name: str) -> None:
    """It can only be the data symbol itself: no intensity, no event."""
    model = chain(name, 2)
    states = model.states()
    jump = model.generator(states, times(0.4, len(states)), times(1.0, len(states)))
    outside = model.path.prior_probs(states.device)[states] == 0
    assert bool((jump.intensity[outside] == 0).all())
    assert bool((jump.probability[outside] == 0).all())
    assert bool((jump.probability[~outside] == 1).all())


@every_schedule
def test_mixture_path__intensity_at_the_start_is_not_nan(schedule: Schedule | None) -> None:
    """The reversal rate κ'/κ is unbounded there (+∞, never 0/0); the mixture rate is κ'(0)."""
    x, t = torch.zeros(1, 2, dtype=torch.long), times(0.0, 1)
    logits = torch.zeros(1, 2, 3)
    assert float(UniformPath(3, schedule).marginal(logits, x, t).intensity[0, 0]) == math.inf
    mixture = UniformPath(3, schedule, rates="mixture")
    assert float(mixture.marginal(logits, x, t).intensity[0, 0]) == float(mixture.schedule.derivative(0.0))


# ---- evidence


@every_path
@pytest.mark.parametrize("t", [0.0, 0.3, 0.999])
def test_mixture_path__leave_one_out_logits_plus_evidence_are_the_posterior(name: str, t: float) -> None:
    """log P(z_i = k | x without x_i) + evidence of x_i at k = x_i, normalised, is P(z_i = k | x): by brute force."""
    model = chain(name)
    states, path = model.states(), model.path
    kappa, prior = float(path.schedule.kappa(t)), path.prior_probs(states.device)
    tokens = (1 - kappa) * prior[states][:, None] + kappa * (
        states[:, None] == model.data
    ).double()  # p_t(x_l|z_l), [X, Z, L]
    possible = model.joint_marginal(t) > 0
    posterior = model.logits(states, times(t, len(states))).softmax(-1)
    evidence = path.evidence(states, times(t, len(states)))
    for i in range(model.length):
        others = tokens[..., [j for j in range(model.length) if j != i]].prod(-1) * model.weights
        onehot = torch.nn.functional.one_hot(model.data[:, i], path.vocab_size).double()
        belief = (others @ onehot).log()
        logits = belief.scatter_add(1, states[:, i, None], evidence[:, i, None])
        torch.testing.assert_close(logits.softmax(1)[possible], posterior[possible, i], rtol=0, atol=1e-13)


def test_mixture_path__evidence_stays_finite_at_both_ends() -> None:
    """None at t = 0; at t = 1, and of a symbol that noise never shows, enough to be certain in every float type."""
    path, x = UniformPath(4, special_token_ids=(3,)), torch.tensor([[0, 3]])
    assert path.evidence(x, times(0.0, 1))[0].tolist()[0] == 0
    for certain in (path.evidence(x, times(1.0, 1)), path.evidence(x, times(0.5, 1))[:, 1:]):
        assert bool(certain.isfinite().all())
        assert float(certain.neg().exp().max()) == 0
    near = path.evidence(x, times(1 - 1e-12, 1))[0, 0]  # log(1 + κ K'/(1 − κ)) with K' = 3 symbols in the prior
    assert float(near) == pytest.approx(math.log(3e12), rel=1e-5)


# ---- the distribution as a table, and noising again


@every_path
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_mixture_path__probs_and_mean_probs_are_the_mixture(name: str, t: float) -> None:
    """(1 − κ) p0 + κ 1[z], and (1 − κ) p0 + κ π for a belief π."""
    path = PATHS[name][0](SquaredSineSchedule())
    kappa, prior = float(path.schedule.kappa(t)), path.prior_probs(torch.device("cpu"))
    z = torch.arange(path.vocab_size)
    data = torch.eye(path.vocab_size, dtype=torch.float64)
    torch.testing.assert_close(path.probs(z, times(t, len(z))), (1 - kappa) * prior + kappa * data, rtol=0, atol=1e-15)
    belief = torch.rand(7, path.vocab_size, generator=rng(0), dtype=torch.float64)
    expected = (1 - kappa) * prior + kappa * belief
    torch.testing.assert_close(path.mean_probs(belief, times(t, 7)), expected, rtol=0, atol=1e-15)


# ---- the data's own frequencies


def test_mixture_path__unigram_prior_has_the_frequencies_of_the_counts() -> None:
    """p0(k) = (counts[k] + 1) / Σ (counts + 1), over the symbols that are not `never`."""
    path = MixturePath.unigram([7, 0, 1, 9], CosineSchedule(), "mixture", never=[3])
    assert path.probabilities() == pytest.approx([8 / 11, 1 / 11, 2 / 11, 0], rel=1e-15)
    assert (path.vocab_size, path.rates, path.schedule, path.coupled) == (4, "mixture", CosineSchedule(), False)
    assert path == MixturePath.unigram(torch.tensor([7, 0, 1, 9]), CosineSchedule(), "mixture", never=(3,))
    assert path == Path.from_dict(json.loads(json.dumps(path.to_dict())))
    plain = MixturePath.unigram([0, 0, 0])
    assert plain.probabilities() == pytest.approx([1 / 3] * 3, rel=1e-15)
    assert plain.rates == "reversal"


def test_mixture_path__unigram_takes_linear_time_in_the_vocabulary() -> None:
    """K = 20 000 in well under a second; a sum for every symbol would take two."""
    start = time.perf_counter()
    path = MixturePath.unigram(torch.arange(20_000), never=range(10))
    assert time.perf_counter() - start < 1
    assert math.fsum(path.probabilities()) == pytest.approx(1, abs=1e-12)
    assert path.probabilities()[-1] / path.probabilities()[10] == pytest.approx(20_000 / 11)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": [3, -1]}, r"counts\[1\]=-1"),
        ({"counts": [3.0, math.nan]}, "prior must hold|counts"),
        ({"counts": [3, 1], "never": [0, 1]}, r"never=\[0, 1\]"),
        ({"counts": [3]}, "vocab_size=1 must be an integer from 2"),
        ({"counts": []}, "counts|vocab_size=0"),
    ],
)
def test_mixture_path__unigram_names_bad_counts(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixturePath.unigram(**arguments)


# ---- configs and errors


@every_path
@every_schedule
def test_mixture_path__travels_through_json(name: str, schedule: Schedule | None) -> None:
    path = PATHS[name][0](schedule)
    copy = Path.from_dict(json.loads(json.dumps(path.to_dict())))
    assert copy == path
    assert hash(copy) == hash(path)
    assert type(copy) is type(path)
    assert (copy.rates, copy.schedule, copy.vocab_size) == (path.rates, path.schedule, path.vocab_size)
    assert copy.prior_probs(torch.device("cpu")).tolist() == path.prior_probs(torch.device("cpu")).tolist()
    assert type(path).__name__ in repr(path)


@given(weights=st.lists(st.just(0.0) | st.floats(1e-90, 1), min_size=2, max_size=60).filter(lambda w: sum(w) > 1e-3))
def test_mixture_path__prior_survives_the_round_trip_bit_for_bit(weights: list[float]) -> None:
    """A model saved and loaded a hundred times has the prior that it was trained with."""
    path = MixturePath(len(weights), [w / sum(weights) for w in weights])
    copy = MixturePath.from_dict(path.to_dict())
    assert copy == path
    assert math.fsum(path.probabilities()) == pytest.approx(1, abs=1e-14)


def test_mixture_path__paths_that_differ_are_not_equal() -> None:
    paths = [
        factory(schedule) for (factory, _), schedule in itertools.product(PATHS.values(), (None, CosineSchedule()))
    ]
    for first, second in itertools.combinations(paths, 2):
        assert first != second


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MaskedPath(1), "vocab_size=1 must be an integer from 2"),
        (lambda: MaskedPath(4, mask_token_id=4), "mask_token_id=4 must be an integer from 0 to 3"),
        (lambda: MaskedPath(4, mask_token_id=-1), "mask_token_id=-1"),
        (lambda: UniformPath(4, rates="sedd"), "rates='sedd' must be 'reversal' or 'mixture'"),
        (lambda: UniformPath(4, rates="masked"), "rates='masked' must be 'reversal' or 'mixture'"),
        (lambda: UniformPath(4, special_token_ids=(4,)), "special_token_ids=4"),
        (lambda: UniformPath(4, special_token_ids=(0, 1, 2)), "fewer than 2 of 4 symbols"),
        (lambda: MixturePath(3, [0.5, 0.5]), "vocab_size=3 probabilities of sum 1; got 2"),
        (lambda: MixturePath(2, [1.5, -0.5]), "the least -0.5"),
        (lambda: MixturePath(2, [0.5, 0.6]), "of sum 1.1"),
        (lambda: MixturePath(2, [math.nan, 1.0]), r"prior\[0\]=nan"),
        (
            lambda: Path.from_dict({"type": "blurred"}),
            "path='blurred'.*euclidean_mixture, gaussian, geodesic_so3, masked, metric, mixture, product, so3, uniform",
        ),
        (
            lambda: Path.from_dict({"type": "masked", "vocab_size": 3, "rates": "x"}),
            "MaskedPath takes no argument rates",
        ),
        (lambda: MaskedPath(3, schedule={"type": "linear", "n": 1}), "LinearSchedule takes no argument n"),
    ],
)
def test_mixture_path__names_bad_arguments(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_mixture_path__names_a_bad_schedule() -> None:
    assert UniformPath(3, schedule="cosine") == UniformPath(3, schedule=CosineSchedule())
    for schedule in (0.5, CosineSchedule):
        with pytest.raises(TypeError, match=r"schedule=.* must be a Schedule"):
            UniformPath(3, schedule=schedule)


GOOD, HALF = torch.zeros(2, 3, dtype=torch.long), times(0.5, 2)


@pytest.mark.parametrize(
    ("x", "t", "message"),
    [
        (GOOD.float(), HALF, "must be a long tensor [B, L], got torch.float32"),
        (GOOD[0], HALF, "must be a long tensor [B, L], got torch.int64 of shape (3,)"),
        (GOOD + 3, HALF, "holds ids from 3 to 3; vocab_size=3"),
        (GOOD - 1, HALF, "holds ids from -1 to -1; vocab_size=3"),
        (GOOD, HALF[:1], "t must have shape [B] = [2], got (1,)"),
        (GOOD, HALF + 1, "times must lie in [0, 1] (0: prior, 1: data), got t=1.5 to 1.5"),
        (GOOD, -HALF, "times must lie in [0, 1]"),
        (GOOD, HALF * math.nan, "times must lie in [0, 1]"),
    ],
)
def test_mixture_path__names_bad_states_and_times(x: Tensor, t: Tensor, message: str) -> None:
    path = UniformPath(3)
    for call in (
        lambda: path.sample(x, t),
        lambda: path.conditional(x, x, t),
        lambda: path.marginal(torch.zeros(2, 3, 3), x, t),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


def test_mixture_path__names_states_and_logits_of_other_shapes() -> None:
    path = UniformPath(3)
    with pytest.raises(ValueError, match=re.escape("z has shape (2, 2), x has (2, 3)")):
        path.conditional(GOOD[:, :2], GOOD, HALF)
    with pytest.raises(
        ValueError, match=re.escape("readout has shape [2, 3, 4]; expected [B, L, vocab_size] = [2, 3, 3]")
    ):
        path.marginal(torch.zeros(2, 3, 4), GOOD, HALF)


def test_mixture_path__names_data_outside_the_vocabulary() -> None:
    with pytest.raises(ValueError, match="z holds ids from 7 to 7; vocab_size=3"):
        UniformPath(3).conditional(GOOD + 7, GOOD, HALF)


def test_masked_path__mask_has_no_probability_whatever_its_logit() -> None:
    path = MaskedPath(3)
    logits = torch.zeros(1, 1, 3)
    logits[..., 2] = 50
    jump = path.marginal(logits, torch.tensor([[2]]), times(0.5, 1))
    assert jump.kernel.probs()[0, 0].tolist() == [0.5, 0.5, 0.0]
    assert logits[0, 0, 2] == 50  # the caller's tensor is not written to


def test_exact_model__agrees_with_a_lookup() -> None:
    """The faster stand-in of the sampler tests answers what `EnumeratedChain` answers."""
    exact, fast = chain("prior reversal"), chain("prior reversal", kind=Lookup)
    x, t = exact.states().flip(0), times(0.3, 27)
    torch.testing.assert_close(fast.generator(x, t).rates(x), exact.generator(x, t).rates(x), rtol=0, atol=1e-15)


@pytest.mark.parametrize("least", [0.0, 1e-100])
def test_mixture_path__probabilities_too_small_for_rates_are_refused(least: float) -> None:
    path, z, t = MixturePath(3, prior=[least, 0.5, 0.5]), torch.tensor([[0, 1]]), torch.tensor([0.5])
    assert bool(path.conditional(z, z, t).rates(z).isfinite().all())
    with pytest.raises(ValueError, match="prior holds 1e-300"):
        MixturePath(3, prior=[1e-300, 0.5, 0.5])
