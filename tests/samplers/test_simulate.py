"""The loop: what it keeps, what it calls, what it refuses."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    Adaptive,
    DetailedBalance,
    GaussianPath,
    Jump,
    MaskedPath,
    ProductPath,
    TauLeaping,
    Trapezoidal,
    UniformPath,
    simulate,
)
from gm_discrete.generators.kernels import Categorical, TensorReadout
from gm_discrete.process import State, Times
from gm_discrete.samplers import SAMPLERS, Chain, Sampler, samplers_for, simulate_state
from tests.helpers.distributions import ALL_PATHS, PATHS, Lookup, chain, draw, rng

EVERYWHERE = ("tau_leaping", "euler", "trapezoidal", "uniformization", "adaptive")
"""Samplers of every discrete path."""
DISCRETE = (*EVERYWHERE, "first_hitting", "entropy_bounded")
every_path = pytest.mark.parametrize("name", PATHS)
GRID = torch.linspace(0, 1, 9, dtype=torch.float64)


class Counting:
    """A model with a fixed belief that counts the rows it is asked for, sequence by sequence."""

    def __init__(self, path: Any, batch: int, length: int, seed: int = 0) -> None:
        self.path = path
        self.logits = torch.randn(batch, length, path.vocab_size, generator=rng(seed), dtype=torch.float64)
        self.rows = torch.zeros(batch, length, dtype=torch.long)
        self.calls = torch.zeros(batch, dtype=torch.long)
        self.seen: list[dict] = []

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, **conditioning: Any) -> Jump:
        self.seen.append({"t": float(t[0]), "t_next": None if t_next is None else float(t_next[0]), **conditioning})

        def readout(head: str, where: Tensor) -> Tensor:
            self.rows.flatten()[where] += 1
            touched = torch.zeros(len(x), dtype=torch.long).index_fill(0, where // x.shape[1], 1)
            self.calls += touched
            return TensorReadout(self.logits, self.path.excluded)(head, where)

        return self.path.marginal(readout, x, t, t_next)


def run(path: Any, steps: int, method: str = "tau_leaping", batch: int = 40, length: int = 6, **options: Any) -> tuple:
    model = Counting(path, batch, length)
    x_0 = path.prior((batch, length), rng(1))
    grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return model, x_0, simulate(model, x_0, grid, rng(2), method, return_info=True, **options)


# ---- no jump, no call


@pytest.mark.parametrize("steps", [1, 8, 300])
def test_tau_leaping__masked_tokens_are_read_once_each_at_any_number_of_steps(steps: int) -> None:
    """One row of logits per unmasked token, and at most one network call per jump."""
    model, _, result = run(MaskedPath(5), steps)
    assert bool((model.rows == 1).all())
    assert torch.equal(result.jumps, torch.full((40,), 6))
    assert torch.equal(result.network_calls, model.calls)
    assert bool((result.network_calls <= min(steps, 6)).all())
    assert bool((result.x != 4).all())


@pytest.mark.parametrize("rates", ["mixture", "reversal"])
def test_tau_leaping__a_sequence_without_an_event_is_not_read(rates: str) -> None:
    """1000 steps: calls are the steps in which a sequence had an event, on average those of its clock.

    Mixture rates: ∫ h up to the last step is log 1000 ≈ 6.9 candidates per token, and one more at the end; reversal
    rates: ∫ κ'/(κ(1 − κ)) twice that. So at most 8 or 15 events for each of six tokens, far fewer than 1000.
    """
    model, _, result = run(UniformPath(5, rates=rates), 1000)
    assert torch.equal(result.network_calls, model.calls)
    assert bool((model.calls <= model.rows.sum(1)).all())
    assert bool((result.jumps <= model.rows.sum(1)).all())
    expected = {"mixture": 7.5, "reversal": 14.0}[rates]  # Σ 1/n and its double: the clock is a Bernoulli for each step
    assert float(model.rows.double().mean()) == pytest.approx(expected, rel=0.15)


def test_simulate__nothing_is_evaluated_where_everything_is_fixed() -> None:
    model = Counting(MaskedPath(5), 3, 4)
    x_0 = torch.full((3, 4), 4)
    x = simulate(model, x_0, GRID, rng(0), fixed=torch.ones_like(x_0, dtype=torch.bool))
    assert torch.equal(x, x_0)
    assert int(model.rows.sum()) == 0


# ---- what is kept


@every_path
@pytest.mark.parametrize("method", EVERYWHERE)
def test_simulate__fixed_entries_stay_and_the_initial_state_is_not_modified(name: str, method: str) -> None:
    model = Counting(PATHS[name][0](None), 200, 3)
    fixed = torch.rand((200, 3), generator=rng(4)) < 0.5
    x_0 = torch.where(fixed, torch.randint(3, (200, 3), generator=rng(3)), model.path.prior((200, 3), rng(5)))
    before = x_0.clone()
    x = simulate(model, x_0, GRID, rng(6), method, fixed)
    assert torch.equal(x_0, before)
    assert torch.equal(x[fixed], x_0[fixed])
    assert bool((x[~fixed] != x_0[~fixed]).any())


def test_simulate__saved_states_are_those_on_the_way() -> None:
    """In the order of `save_at`, by positive and negative index; 0 is x_0."""
    path, on_the_way = UniformPath(5), []
    model = Counting(path, 4, 6)
    x_0 = path.prior((4, 6), rng(1))
    result = simulate(
        model, x_0, GRID, rng(2), save_at=[-1, 0, 3], return_info=True,
        on_step=lambda x, t: on_the_way.append((t, x.clone())),
    )  # fmt: skip
    assert [t for t, _ in on_the_way] == GRID[1:].tolist()
    for state, expected in zip(result.states, (result.x, x_0, on_the_way[2][1]), strict=True):
        assert torch.equal(state, expected)
    assert torch.equal(result.times, GRID)
    assert torch.equal(simulate(Counting(path, 4, 6), x_0, GRID, rng(2)), result.x)


def test_simulate__a_true_answer_of_on_step_ends_it() -> None:
    path, seen = UniformPath(5), []
    model = Counting(path, 4, 6)
    result = simulate(
        model, path.prior((4, 6), rng(1)), GRID, rng(2), return_info=True, save_at=[2, 3],
        on_step=lambda x, t: seen.append(x) or t >= 0.25,
    )  # fmt: skip
    assert len(seen) == 2
    assert torch.equal(result.x, seen[-1])
    assert len(result.states) == 1  # the second was never reached
    assert [call["t_next"] for call in model.seen] == [0.125, 0.25]


SEEDED = [(name, "tau_leaping") for name in ALL_PATHS]
SEEDED += [("uniform reversal", method) for method in EVERYWHERE] + [
    ("masked", "first_hitting"),
    ("masked", "entropy_bounded"),
]


@pytest.mark.parametrize(("name", "method"), SEEDED)
def test_simulate__seeds_reproduce_and_differ(name: str, method: str) -> None:
    model = chain(name, 3)
    x_0 = draw(model, model.joint_marginal(0.0), 50, 1)
    first, again, other = (simulate(model, x_0, GRID, rng(seed), method) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_simulate__without_rng_the_global_one_is_used() -> None:
    model = chain("masked", 3, kind=Lookup)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(simulate(model, torch.full((20, 3), 3), GRID))
    assert torch.equal(*results)


def test_simulate__no_gradient_is_recorded() -> None:
    model = Counting(MaskedPath(5), 2, 3)
    model.logits.requires_grad_()
    assert not simulate(model, torch.full((2, 3), 4), GRID, rng(0)).requires_grad


# ---- what is passed on


def test_simulate__conditioning_is_passed_on_where_it_is_not_none() -> None:
    model = Counting(MaskedPath(5), 2, 3)
    mask = torch.ones(2, 3)
    simulate(model, torch.full((2, 3), 4), [0.0, 1.0], rng(0), attention_mask=mask, guidance=None)
    assert model.seen == [{"t": 0.0, "t_next": 1.0, "attention_mask": mask}]


def test_euler__asks_for_points_and_tau_leaping_for_intervals_until_the_last_step() -> None:
    for method, expected in (("tau_leaping", 0.5), ("euler", None)):
        model = Counting(MaskedPath(5), 2, 3)
        simulate(model, torch.full((2, 3), 4), [0.25, 0.5, 1.0], rng(0), method)
        assert model.seen[0]["t_next"] == expected
        assert model.seen[-1]["t_next"] == 1.0


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor])
def test_simulate__times_may_be_any_sequence(kind: Any) -> None:
    assert bool(
        (simulate(Counting(MaskedPath(5), 2, 3), torch.full((2, 3), 4), kind([0.0, 0.5, 1.0]), rng(0)) != 4).all()
    )


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "heun"}, "sampler='heun' .*adaptive, .*tau_leaping"),
        ({"sampler": "magic"}, "sampler='magic' .*adaptive, .*tau_leaping"),
        ({"times": [0.5]}, r"times .* \(1,\)"),
        ({"times": [[0.0, 1.0]]}, "times"),
        ({"times": [0.0, 1.5]}, "times must increase"),
        ({"times": [-0.1, 1.0]}, "times must increase"),
        ({"times": [1.0, 0.0]}, "times must increase"),
        ({"times": [0.0, 0.5, 0.5, 1.0]}, "times must increase"),
        ({"times": [0.0, float("nan")]}, r"times\[1\]=nan"),
        ({"save_at": [3]}, "save_at=3"),
        ({"save_at": [-4]}, "save_at=-4"),
        ({"fixed": torch.ones(2, 2, dtype=torch.bool)}, r"fixed .*\(2, 2\).*\(2, 3\)"),
        ({"x_0": torch.full((2, 3), 9)}, "9.*vocab_size=5"),
        ({"x_0": torch.zeros(2, 3)}, "x_0.*long.*float32"),
        ({"x_0": {"a": torch.full((2, 3), 4)}}, "x_0.*tensor.*dict of a"),
    ],
)
def test_simulate__arguments_out_of_range_are_named(options: dict, message: str) -> None:
    arguments = {"x_0": torch.full((2, 3), 4), "times": [0.0, 0.5, 1.0], "rng": rng()} | options
    with pytest.raises((ValueError, TypeError), match=message):
        simulate(Counting(MaskedPath(5), 2, 3), **arguments)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("predictor", r"ClassifierGuidance\(.*\)\.guided\(process\)"),
        ("max_expected_changes", r"Adaptive: sampler=Adaptive\(max_expected_changes="),
        ("tolerance", r"Adaptive: sampler=Adaptive\(tolerance=.*Uniformization.*DormandPrince"),
        ("order", r"TauLeaping: sampler=TauLeaping\(order="),
        ("order_temperature", r"TauLeaping: sampler=TauLeaping\(order="),
        ("entropy_bound", r"EntropyBounded: sampler=EntropyBounded\(entropy_bound="),
    ],
)
def test_simulate__options_of_samplers_name_the_sampler(option: str, message: str) -> None:
    with pytest.raises(TypeError, match=rf"{option}.*{message}"):
        simulate(chain("masked"), torch.full((2, 3), 3), GRID, rng(0), **{option: 0.1})


@pytest.mark.parametrize(("method", "sampler"), [("euler", "euler"), ("step_doubling", "adaptive")])
def test_simulate__method_names_the_sampler_of_the_same_value(method: str, sampler: str) -> None:
    with pytest.raises(TypeError, match=f"method='{method}'.*sampler='{sampler}'"):
        simulate(chain("masked"), torch.full((2, 3), 3), GRID, rng(0), method=method)


class RevealLeft(Sampler):
    """A sampler of one's own, which is not registered by a name: reveals positions from the left."""

    states = frozenset({"discrete"})

    def __init__(self, tolerance: float = 0.0) -> None:
        self.tolerance, self.seen = tolerance, []

    def step(self, chain: Chain, x: State, t: Times, t_next: Times) -> State:
        self.seen.append((float(t[""][0]), float(t_next[""][0])))
        events = torch.zeros_like(x[""], dtype=torch.bool)
        events[:, len(self.seen) - 1] = True
        return {"": chain.land(x[""], chain.posterior(x, t).belief, events & chain.free[""])}


def test_sampler__of_ones_own_is_simulated_and_corrected() -> None:
    x_0, sampler = torch.full((4, 3), 3), RevealLeft(0.25)
    result = simulate(chain("masked"), x_0, [0.0, 0.5, 1.0], rng(0), sampler, return_info=True)
    assert sampler.seen == [(0.0, 0.5), (0.5, 1.0)]
    assert bool((result.x[:, :2] != 3).all())
    assert bool((result.x[:, 2] == 3).all())
    assert result.jumps.tolist() == [2] * 4
    assert result.error_bound is None
    corrector = DetailedBalance(strength=50.0, sweeps=9)
    x = simulate(chain("masked"), x_0, [0.0, 0.5], rng(0), RevealLeft(), corrector=corrector)
    assert bool((x[:, 1:] != 3).any())
    with pytest.raises(ValueError, match="continuous"):
        RevealLeft().check(GaussianPath())


@pytest.mark.parametrize("returned", [lambda x: x, lambda x: {"word": x}, lambda x: None])
def test_simulate__a_sampler_that_returns_no_dict_of_the_fields_is_named(returned: Any) -> None:
    class Returning(Sampler):
        def step(self, chain: Chain, x: State, t: Times, t_next: Times) -> State:
            return returned(x[""])

    with pytest.raises(TypeError, match=r"Returning\.step must return a dict.*\[''\]"):
        simulate(chain("masked"), torch.full((4, 3), 3), [0.0, 1.0], sampler=Returning())


# ---- samplers as objects


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler__travels_as_json_and_by_name(name: str) -> None:
    sampler = SAMPLERS[name]()
    assert json.loads(json.dumps(sampler.to_dict()))["type"] == name
    assert Sampler.of(json.loads(json.dumps(sampler.to_dict()))) == sampler
    assert Sampler.of(name) == sampler
    assert Sampler.of(sampler) is sampler


def test_sampler__options_travel_as_json() -> None:
    for sampler in (Adaptive(3.0, 0.1), TauLeaping("margin", 2.0), Trapezoidal(0.3)):
        assert Sampler.of(sampler.to_dict()) == sampler
        assert Sampler.of(sampler.to_dict()) != type(sampler)()


def test_sampler__ancestral_is_tau_leaping() -> None:
    assert Sampler.of("ancestral") == TauLeaping()


@pytest.mark.parametrize("value", ["magic", {"type": "magic"}, {}])
def test_sampler__unknown_names_are_refused_with_those_that_exist(value: Any) -> None:
    with pytest.raises(ValueError, match=r"adaptive, dopri5, .*tau_leaping"):
        Sampler.of(value)
    with pytest.raises(ValueError, match="takes no argument eta"):
        Sampler.of({"type": "adaptive", "eta": 1})
    with pytest.raises(TypeError, match="sampler=3"):
        Sampler.of(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "use"), [("step_doubling", "adaptive"), ("stratified_hazard", "tau_leaping")])
def test_sampler__removed_names_name_their_replacement(name: str, use: str) -> None:
    for value in (name, {"type": name}):
        with pytest.raises(ValueError, match=f"sampler='{name}'.*use {use}"):
            Sampler.of(value)


@pytest.mark.parametrize(
    ("path", "fit"),
    [
        (MaskedPath(3), DISCRETE),
        (UniformPath(3), EVERYWHERE),
        (GaussianPath(), ("tau_leaping", "euler", "heun", "adaptive", "dopri5")),
        (ProductPath(a=MaskedPath(3), b=GaussianPath()), ("tau_leaping", "euler", "heun", "adaptive")),
    ],
    ids=["masked", "uniform", "gaussian", "product"],
)
def test_sampler__check_refuses_other_paths_and_names_those_that_fit(path: Any, fit: tuple[str, ...]) -> None:
    assert set(samplers_for(path)) & set(SAMPLERS) == set(fit)  # other tests define samplers, too
    for name, kind in SAMPLERS.items():
        if name in fit:
            kind().check(path)
        else:
            with pytest.raises(ValueError, match=rf"sampler='{name}'") as error:
                kind().check(path)
            assert [other for other in fit if other not in str(error.value)] == []


def test_simulate__json_and_names_are_short_for_samplers() -> None:
    model, x_0 = chain("uniform mixture", 3), torch.zeros(20, 3, dtype=torch.long)
    forms: list[Any] = ["trapezoidal", {"type": "trapezoidal", "theta": 0.5}, Trapezoidal()]
    first, *others = (simulate(model, x_0, GRID, rng(1), form) for form in forms)
    assert all(torch.equal(x, first) for x in others)


def test_simulate_state__takes_and_returns_dicts() -> None:
    model, x_0 = chain("masked", 3), torch.full((5, 3), 3)
    free = {"": torch.ones_like(x_0, dtype=torch.bool)}
    seen: list[State] = []
    run = simulate_state(
        model, {"": x_0}, GRID, rng(1), TauLeaping(), free, on_step=lambda x, t: bool(seen.append(x)), save_at=[2]
    )  # fmt: skip
    assert torch.equal(run.x[""], simulate(model, x_0, GRID, rng(1)))
    assert torch.equal(run.states[0][""], seen[1][""])


class Pathless:
    """A model that makes generators without having a path."""

    def __init__(self, path: Any, made_by_hand: bool = False) -> None:
        self.made_by, self.made_by_hand = path, made_by_hand

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
        jump = self.made_by.marginal(torch.zeros(*x.shape, self.made_by.vocab_size), x, t, t_next)
        return replace(jump, posterior=None) if self.made_by_hand else jump


@pytest.mark.parametrize("method", ["trapezoidal", "first_hitting", "uniformization", "adaptive"])
def test_samplers__that_need_a_path_say_so(method: str) -> None:
    x_0 = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(TypeError, match=r"Pathless has no attribute \.path"):
        simulate(Pathless(UniformPath(4, rates="mixture")), x_0, GRID, rng(0), method)


@pytest.mark.parametrize("method", ["trapezoidal", "adaptive"])
def test_samplers__that_need_a_posterior_say_so(method: str) -> None:
    model = Pathless(MaskedPath(4), made_by_hand=True)
    model.path = model.made_by
    with pytest.raises(TypeError, match="made by a path"):
        simulate(model, torch.full((2, 3), 3), GRID, rng(0), method)


@pytest.mark.parametrize("theta", [0.0, 1.0, -0.5])
def test_trapezoidal__theta_is_a_part(theta: float) -> None:
    with pytest.raises(ValueError, match=f"theta={theta}"):
        Trapezoidal(theta)


def test_simulate__a_process_that_ignores_the_interval_is_named() -> None:
    class Pointwise(Counting):
        def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, **conditioning: Any) -> Jump:
            return super().generator(x, t)

    with pytest.raises(ValueError, match=r"probability=None.*t_next"):
        simulate(Pointwise(MaskedPath(5), 2, 3), torch.full((2, 3), 4), GRID, rng(0))


def test_simulate__a_generator_that_is_no_jump_is_named() -> None:
    class Flow:
        probability = intensity = torch.ones(2, 3)

    class Flowing(Counting):
        def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, **conditioning: Any) -> Any:
            return Flow()

    with pytest.raises(TypeError, match="is a Flow"):
        simulate(Flowing(MaskedPath(5), 2, 3), torch.full((2, 3), 4), GRID, rng(0))


def test_simulate__a_process_without_a_path_is_simulated() -> None:
    """Nothing of a path is needed but the generator: two states, rate 3 from 0 to 1, probability 1 − e^−3 in unit time."""

    class TwoStates:
        def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Jump:
            rate = torch.where(x == 0, 3.0, 0.0).double()
            probability = None if t_next is None else 1 - torch.exp(-rate * (t_next - t)[:, None])
            logits = torch.tensor([-torch.inf, 0.0]).expand(*x.shape, 2)
            return Jump(rate, Categorical(TensorReadout(logits), x.shape, 2, x.device), probability)

    x = simulate(TwoStates(), torch.zeros(100, 200, dtype=torch.long), GRID, rng(1))
    expected, noise = 0.9502, (0.9502 * 0.0498 / 20_000) ** 0.5
    assert abs(float(x.double().mean()) - expected) < 4.5 * noise


def test_simulate__a_state_that_is_no_batch_is_named() -> None:
    with pytest.raises(ValueError, match=r"x_0.*\(3,\)"):
        simulate(chain("masked"), torch.tensor([3, 3, 3]), [0.0, 1.0])
