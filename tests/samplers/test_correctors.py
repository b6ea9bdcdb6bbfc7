"""Correctors: detailed balance on every state, exact laws of their composed steps, and the limit of small steps."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from gm_discrete import (
    DetailedBalance,
    EntropyBounded,
    MaskedPath,
    ProductPath,
    ReMDM,
    SquaredSineSchedule,
    TauLeaping,
    simulate,
)
from gm_discrete.samplers.correctors import Corrector
from tests.helpers.chains import index_of
from tests.helpers.distributions import (
    ALL_PATHS,
    LEAST_P,
    EnumeratedChain,
    Lookup,
    chain,
    draw,
    joint,
    p_value,
    posterior,
    rng,
    step_matrix,
    token_law,
    total_variation,
)

UNCOUPLED = [name for name in ALL_PATHS if name != "coupled"]
MASKED = ["masked", "mask is 1"]


def renewal(model: EnumeratedChain, t: float, probability: float) -> Tensor:
    """Every token anew from Σ_z π(z) p_t(·|z) with that probability, [from, to]."""
    stay = one_hot(model.states(), model.path.vocab_size).double()
    return joint(model, probability * (posterior(model, t) @ token_law(model, t)) + (1 - probability) * stay)


def corrected_matrix(model: EnumeratedChain, corrector: Corrector, t: float, s: float) -> Tensor:
    """Law of the next state of a corrected leap, [from, to]."""
    schedule, mask = model.path.schedule, getattr(model.path, "mask_token_id", None)
    kappa_t, kappa_s = float(schedule.kappa(t)), float(schedule.kappa(s))
    if isinstance(corrector, DetailedBalance):
        matrix = step_matrix(model, t, s, "tau_leaping")
        if s < 1:
            matrix = matrix @ torch.matrix_power(renewal(model, s, 1 - math.exp(-corrector.strength)), corrector.sweeps)
        return matrix
    if isinstance(corrector, ReMDM):
        sigma = corrector.eta * min(1.0, (1 - kappa_s) / kappa_t if kappa_t else 1.0)
        reveal = (kappa_s - (1 - sigma) * kappa_t) / (1 - kappa_t)
        states = model.states()
        masked, stay = (states == mask)[..., None], one_hot(states, model.path.vocab_size).double()
        to_mask = one_hot(torch.tensor(mask), model.path.vocab_size).double()
        revealed = reveal * posterior(model, t) + (1 - reveal) * stay
        return joint(model, torch.where(masked, revealed, sigma * to_mask + (1 - sigma) * stay))
    raise TypeError(corrector)


def laws(model: EnumeratedChain, corrector: Corrector, times: list[float]) -> list[Tensor]:
    law = [model.joint_marginal(times[0])]
    for t, s in pairwise(times):
        law.append(law[-1] @ corrected_matrix(model, corrector, t, s))
    return law


CORRECTED = [(name, DetailedBalance(sweeps=2)) for name in UNCOUPLED]
CORRECTED += [(name, ReMDM(0.7)) for name in MASKED]
every_corrected = pytest.mark.parametrize(("name", "corrector"), CORRECTED, ids=lambda value: str(value))


@pytest.mark.slow
@every_corrected
def test_correctors__samples_follow_the_exact_distribution_of_the_corrected_steps(
    name: str, corrector: Corrector
) -> None:
    """Four steps, at t = 1/2 and t = 1."""
    model, times = chain(name, 2, SquaredSineSchedule(), Lookup), [0.0, 0.3, 0.5, 0.8, 1.0]
    expected = laws(model, corrector, times)
    x_0 = draw(model, expected[0], 40_000, 1)
    result = simulate(model, x_0, times, rng(2), corrector=corrector, save_at=[2, 4], return_info=True)
    for x, law in zip(result.states, (expected[2], expected[4]), strict=True):
        assert p_value(model, x, law) > LEAST_P


@every_corrected
def test_correctors__distributions_converge_to_the_path(name: str, corrector: Corrector) -> None:
    """By exact matrices: ever closer to p_t from 8 to 64 steps, at t = 1/2 and t = 1.

    Redrawing and remasking whole states is in parallel itself, and must become rare with the steps.
    """
    model, errors = chain(name, 2), []
    for steps in (8, 64):
        if isinstance(corrector, DetailedBalance):
            corrector = DetailedBalance(strength=4 / steps)
        if isinstance(corrector, ReMDM):
            corrector = ReMDM(eta=4 / steps)
        law = laws(model, corrector, torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist())
        ends = (law[steps // 2], 0.5), (law[-1], 1.0)
        errors.append([total_variation(value, model.joint_marginal(t)) for value, t in ends])
    for coarse, fine in zip(*errors, strict=True):
        assert fine < min(0.02, 0.5 * coarse)


@pytest.mark.parametrize("name", UNCOUPLED)
@pytest.mark.parametrize("t", [0.2, 0.7])
def test_detailed_balance__holds_for_every_pair_of_neighbours(name: str, t: float) -> None:
    """p_t(x) G(x → y) = p_t(y) G(y → x) for every pair of neighbours, so that G leaves p_t alone."""
    model = chain(name, 2)
    states, law, symbols = model.states(), model.joint_marginal(t), model.path.vocab_size
    believed = model.generator(states, torch.full((len(states),), t, dtype=torch.float64)).posterior
    assert believed is not None
    rates = believed.corrector().rates(states)
    flow = torch.zeros(len(states), len(states), dtype=torch.float64)
    for position in range(2):
        for symbol in range(symbols):
            y = states.clone()
            y[:, position] = symbol
            moved = (y != states).any(1) & (law > 0)
            flow[moved, index_of(y, symbols)[moved]] = (law * rates[:, position, symbol])[moved]
    assert float(flow.max()) > 1e-3
    assert float((flow - flow.T).abs().max()) < 1e-12


def test_detailed_balance__more_sweeps_reduce_the_error() -> None:
    """From a law that is not p_t: a corrector with more sweeps ends closer to the data."""
    model = chain("uniform mixture", 2)
    grid = torch.linspace(0, 1, 5, dtype=torch.float64).tolist()
    errors = [total_variation(laws(model, DetailedBalance(n), grid)[-1], model.joint_marginal(1.0)) for n in (1, 4)]
    plain = model.joint_marginal(0.0)
    for t, s in pairwise(grid):
        plain = plain @ step_matrix(model, t, s, "tau_leaping")
    assert errors[1] < errors[0] < total_variation(plain, model.joint_marginal(1.0))


def test_correctors__calls_and_fixed_tokens() -> None:
    """Nothing is redrawn where it is fixed; a sweep costs a call only where a token is redrawn."""
    for name, corrector in CORRECTED:
        model = chain(name, 2, kind=Lookup)
        x_0 = draw(model, model.joint_marginal(0.2), 200, 1)
        fixed = torch.rand(200, 2, generator=rng(2)) < 0.5
        result = simulate(model, x_0, [0.2, 0.5, 0.6], rng(3), fixed=fixed, corrector=corrector, return_info=True)
        assert torch.equal(result.x[fixed], x_0[fixed])
        assert bool((result.x != x_0)[~fixed].any())
        assert bool((result.network_calls[fixed.all(1)] == 0).all())
        assert int(result.network_calls.max()) <= 2 * (1 + getattr(corrector, "sweeps", 0))
        assert result.error_bound is None


@pytest.mark.parametrize(
    ("name", "sampler", "corrector", "message"),
    [
        ("uniform mixture", "tau_leaping", ReMDM(), r"ReMDM\(eta=0.2\).*MaskedPath.*DetailedBalance"),
        ("masked", "euler", ReMDM(), r"ReMDM\(eta=0.2\).*tau_leaping"),
        ("coupled", "tau_leaping", DetailedBalance(strength=9.0), "DetailedBalance.*coupled"),
        ("masked", TauLeaping("confidence"), DetailedBalance(), "DetailedBalance.*order='confidence'.*order='random'"),
        ("masked", EntropyBounded(), DetailedBalance(), "DetailedBalance.*EntropyBounded"),
    ],
)
def test_correctors__are_refused_where_they_do_not_apply(
    name: str, sampler: Any, corrector: Corrector, message: str
) -> None:
    model = chain(name, 2)
    x_0 = draw(model, model.joint_marginal(0.0), 20, 1)
    with pytest.raises(ValueError, match=message):
        simulate(model, x_0, [0.0, 0.5, 1.0], rng(1), sampler, corrector=corrector)


def test_correctors__are_for_a_single_discrete_field() -> None:
    with pytest.raises(ValueError, match=r"DetailedBalance.*product"):
        DetailedBalance().check(ProductPath(a=MaskedPath(3)), TauLeaping())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DetailedBalance(sweeps=0), "sweeps=0 must be an integer from 1"),
        (lambda: DetailedBalance(strength=0.0), "strength=0.0 must be"),
        (lambda: ReMDM(1.5), "eta=1.5 must be a finite number > 0 and ≤ 1"),
    ],
)
def test_correctors__arguments_out_of_range_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("corrector", [DetailedBalance(3, 0.5), ReMDM(0.4)])
def test_correctors__travel_as_json(corrector: Corrector) -> None:
    assert Corrector.from_dict(corrector.to_dict()) == corrector


@pytest.mark.parametrize("steps", [1, 2])
def test_remdm__leaves_no_mask(steps: int) -> None:
    """Its σ at t = 0, where nothing is revealed, is 0."""
    model = chain("masked", 3)
    x = simulate(model, torch.full((50, 3), 3), torch.linspace(0, 1, steps + 1), rng(1), corrector=ReMDM())
    assert not bool((x == 3).any())


@pytest.mark.parametrize("corrector", [DetailedBalance(), ReMDM()])
def test_corrector__names_and_json_are_short_for_it(corrector: Corrector) -> None:
    x_0, forms = torch.full((20, 3), 3), (corrector, corrector.type_name, corrector.to_dict())
    assert all(Corrector.of(form) == corrector for form in forms)
    first, *others = (simulate(chain("masked"), x_0, [0, 0.5, 1], rng(1), corrector=form) for form in forms)
    assert all(torch.equal(x, first) for x in others)


def test_corrector__options_travel_as_json() -> None:
    assert Corrector.of({"type": "remdm", "eta": 0.7}) == ReMDM(0.7)
    with pytest.raises(ValueError, match="takes no argument sweeps"):
        Corrector.of({"type": "remdm", "sweeps": 1})


@pytest.mark.parametrize("value", ["magic", {"type": "magic"}, {}, {"type": ["remdm"]}])
def test_corrector__unknown_names_are_refused_with_those_that_exist(value: Any) -> None:
    with pytest.raises(ValueError, match=r"corrector.*detailed_balance, remdm"):
        Corrector.of(value)


@pytest.mark.parametrize(
    "value", ["eta_noise", {"type": "eta_noise", "eta": 0.5}, {"type": "backward_noise", "b": 0.5}]
)
def test_corrector__removed_names_name_their_replacement(value: Any) -> None:
    with pytest.raises(ValueError, match=r"(eta|backward)_noise.*use remdm or detailed_balance"):
        simulate(chain("masked"), torch.full((2, 3), 3), [0, 1], corrector=value)


@pytest.mark.parametrize("value", [3, TauLeaping()])
def test_corrector__anything_else_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"corrector=(3|TauLeaping)"):
        simulate(chain("masked"), torch.full((2, 3), 3), [0, 1], corrector=value)
