"""`generate(output_trajectory=True)`: every state of the run, what each step changed, and the entropy of the posteriors."""

import math
import weakref
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from gm_discrete import (
    DetailedBalance,
    DormandPrince,
    GMConfig,
    GMGenerationConfig,
    GMModel,
    MaskedPath,
    ProductPath,
    ReMDM,
    time_grid,
)
from gm_discrete.models import Trajectory
from tests.helpers import continuous
from tests.helpers.networks import LENGTH, MASK, PAD, PATHS, K, every_sampler, network, suits, untrained

CONTINUOUS = ("tau_leaping", "euler", "heun", "adaptive", "dopri5")
STEPS_TAKEN = 6


def run(model: GMModel, **options: Any) -> Any:
    settings = {"batch_size": 3, "num_steps": STEPS_TAKEN, "seed": 1} | options
    if "input_ids" in settings or "x_0" in settings:
        del settings["batch_size"]
    return model.generate(return_dict_in_generate=True, output_trajectory=True, **settings)


def entropy(law: Tensor) -> float:
    return float(torch.special.entr(law.double()).sum())


@pytest.mark.parametrize("name", PATHS)
@every_sampler
def test_trajectory__every_sampler_is_recorded_from_start_to_end(name: str, sampler: str) -> None:
    if not suits(name, sampler):
        pytest.skip("it is not for this path")
    model = network(name)
    if sampler == "uniformization" and name == "metric":
        pytest.skip("too many candidate events for a test")
    out = run(model, sampler=sampler)
    found = out.trajectory
    assert torch.equal(found.times, time_grid(model.path, STEPS_TAKEN))
    assert (found.states.shape, found.states.dtype) == ((STEPS_TAKEN + 1, 3, LENGTH), torch.long)
    assert torch.equal(found.states[-1], out.sequences)
    rng = torch.Generator().manual_seed(1)  # that of generate, whose first draw is the start
    assert torch.equal(found.states[0], model.path.prior((3, LENGTH), rng))
    assert found.jumps.shape == found.entropy.shape == (STEPS_TAKEN, 3)
    for step, (before, after) in enumerate(pairwise(found.states.tolist())):
        changed = [sum(a != b for a, b in zip(*rows, strict=True)) for rows in zip(before, after, strict=True)]
        assert found.jumps[step].tolist() == changed
    lands_once = name in ("masked", "mask is 3") or sampler in (
        "tau_leaping",
        "euler",
    )
    if lands_once:
        assert torch.equal(found.jumps.sum(0), out.jumps)
    else:  # an entry may jump there and back within a step of the grid
        assert bool((found.jumps.sum(0) <= out.jumps).all())
    assert int(found.jumps.sum()) > 0
    assert not bool(found.fixed.any())


@every_sampler
def test_trajectory__recording_changes_no_sample(sampler: str) -> None:
    name = "mixture" if suits("mixture", sampler) else "masked"
    model, options = network(name), {"batch_size": 3, "num_steps": STEPS_TAKEN, "seed": 1, "sampler": sampler}
    grid = time_grid(model.path, STEPS_TAKEN).tolist()
    plain = model.generate(**options | {"grid": grid})  # samplers with times of their own only use a grid that is given
    assert torch.equal(run(model, sampler=sampler).sequences, plain)


@pytest.mark.parametrize("corrector", [DetailedBalance(), ReMDM()], ids=lambda corrector: corrector.type_name)
def test_trajectory__correctors_are_recorded(corrector: Any) -> None:
    found = run(network(), num_steps=30, corrector=corrector).trajectory
    masked = found.states == MASK
    assert bool((~masked[:-1] & masked[1:]).any())
    assert not bool(masked[-1].any())


def test_trajectory__prompts_and_padding_are_fixed() -> None:
    prompt, real = torch.tensor([[1, 2, 4], [5, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    out = run(network(pad_token_id=PAD), input_ids=prompt, attention_mask=real, max_new_tokens=2)
    assert out.trajectory.fixed.tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 1, 1]]
    assert out.trajectory.states[0].tolist() == [[1, 2, 4, MASK, MASK], [5, MASK, MASK, 0, 0]]
    assert out.trajectory.jumps.sum(0).tolist() == [2, 2]


def test_trajectory__criteria_end_it_with_one_last_step() -> None:
    def half(input_ids: Tensor, scores: Any) -> Tensor:
        return (input_ids != MASK).sum(1) >= LENGTH // 2

    out = run(network(), num_steps=40, stopping_criteria=StoppingCriteriaList([half]))
    found, grid = out.trajectory, time_grid(MaskedPath(K), 40)
    steps = len(found.times) - 1
    assert 5 < steps < 39
    assert torch.equal(found.times, torch.cat([grid[:steps], torch.ones(1, dtype=torch.float64)]))
    assert torch.equal(found.states[-1], out.sequences)
    assert bool((found.states[-2] == MASK).any())
    assert torch.equal(found.jumps.sum(0), out.jumps)
    assert len(found.jumps) == len(found.entropy) == steps


# ---- entropy


@pytest.mark.parametrize(
    ("path", "symbols"), [(MaskedPath(K), K - 1), (PATHS["reversal"], K - 1), (PATHS["mixture"], K)], ids=str
)
def test_trajectory__entropy_of_an_untrained_network_is_maximal(path: Any, symbols: int) -> None:
    """At t = 0 the symbols of the state are no evidence, so that the posterior is uniform: log K', up to float32."""
    model = untrained(path, mask_token_id=MASK) if symbols < K else untrained(path)
    first = run(model, batch_size=30, sampler="tau_leaping").trajectory.entropy[0]
    read = ~first.isnan()
    assert bool(read.any())
    torch.testing.assert_close(first[read], torch.full_like(first[read], math.log(symbols)), rtol=1e-6, atol=0)


def sharper(input_ids: Tensor, scores: Tensor) -> Tensor:
    """Logits 0, 1, 2, … of the data tokens, times one more than a fourth of the number of tokens that are not masked."""
    known = (input_ids != MASK).sum(1, keepdim=True)
    ramp = torch.arange(K, device=scores.device).float().masked_fill(torch.arange(K) == MASK, -torch.inf)
    return ramp * (1 + known / 4)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_trajectory__entropy_is_that_of_the_sampled_distributions(temperature: float) -> None:
    """A posterior that is known at every state, from a processor of the user."""
    model = untrained(MaskedPath(K))
    found = run(
        model, batch_size=20, num_steps=12, temperature=temperature, logits_processor=LogitsProcessorList([sharper])
    ).trajectory
    known = (found.states[:-1] != MASK).sum(2)
    ramp = torch.arange(K - 1).double()
    by_number = [entropy((ramp * (1 + n / 4) / temperature).softmax(0)) for n in range(LENGTH + 1)]
    expected = torch.tensor(by_number, dtype=torch.float64)[known]
    expected[found.jumps == 0] = torch.nan  # no event, no reading
    torch.testing.assert_close(found.entropy, expected, rtol=1e-5, atol=1e-7, equal_nan=True)
    assert bool(found.entropy.isnan().any())
    assert bool((found.entropy[-1].nan_to_num(0) < found.entropy[0].nan_to_num(9)).all())


def test_trajectory__entropy_of_top_k_1_is_zero() -> None:
    found = run(network(), top_k=1).trajectory
    assert not bool(found.entropy.nan_to_num(0).any())
    assert not bool(found.entropy.isnan().all())


def test_trajectory__entropies_of_one_step_are_averaged() -> None:
    """Detailed balance also evaluates unmasked tokens, whose entropy on a masked path is 0."""
    model = untrained(MaskedPath(K))
    found = run(model, batch_size=50, num_steps=3, corrector=DetailedBalance(strength=5.0)).trajectory
    inner = found.entropy[1]
    assert bool((inner > 0.2 * math.log(K - 1)).all())
    assert bool((inner < 0.95 * math.log(K - 1)).all())


def test_logits_processors__get_times_and_positions() -> None:
    seen: list[tuple[float, int, int]] = []

    class Asking(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor, time: Tensor, position: Tensor) -> Tensor:  # type: ignore[override]
            assert bool((input_ids.gather(1, position[:, None] % LENGTH) == MASK).all())
            seen.extend(zip(time.tolist(), (position // LENGTH).tolist(), (position % LENGTH).tolist(), strict=True))
            return scores

    found = run(network(), logits_processor=LogitsProcessorList([Asking()])).trajectory
    changes = (found.states[1:] != found.states[:-1]).nonzero().tolist()
    assert sorted(seen) == [(float(found.times[step]), row, place) for step, row, place in changes]


def test_trajectory__guided_posteriors_are_counted_once() -> None:
    """With γ two outputs are evaluated, but one posterior is sampled from."""
    model = untrained(MaskedPath(K), num_classes=2)
    guided = run(model, class_labels=[0, 1, 1], guidance_scale=2.0).trajectory.entropy
    plain = run(model, class_labels=[0, 1, 1]).trajectory.entropy
    torch.testing.assert_close(guided, plain, equal_nan=True)


# ---- images, continuous states, products


def test_trajectory__images_of_tokens_keep_their_shape() -> None:
    out = run(continuous.network("masked"), batch_size=2, num_steps=3)
    found = out.trajectory
    assert found.states.shape == (4, *out.sequences.shape) == (4, 2, 3, 4, 6)
    assert torch.equal(found.states[-1], out.sequences)
    assert found.fixed.shape == out.sequences.shape
    assert found.entropy.shape == (3, 2)


@pytest.mark.parametrize("sampler", CONTINUOUS)
@pytest.mark.parametrize("name", ["flow", "belief on images"])
def test_trajectory__continuous_states_have_no_entropy(name: str, sampler: str) -> None:
    if sampler == "dopri5" and name != "flow":
        pytest.skip("it is for flows")
    model = continuous.network(name)
    start = model.path.prior((2, *continuous.CASES[name][2]), continuous.rng())
    chosen = DormandPrince(0.1) if sampler == "dopri5" else sampler
    out = run(model, x_0=start, num_steps=4, sampler=chosen)
    found = out.trajectory
    assert found.entropy is None
    assert torch.equal(found.states[0], start)
    assert torch.equal(found.states[-1], out.sequences)
    assert torch.equal(found.times, time_grid(model.path, 4))
    assert bool((found.jumps == start[0].numel()).all())  # everything flows


def test_trajectory__products_are_refused() -> None:
    path = ProductPath(word=MaskedPath(4), tone=MaskedPath(5))
    model = GMModel(GMConfig(path=path, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match=r"output_trajectory=True.*product"):
        model.generate(length=3, return_dict_in_generate=True, output_trajectory=True)


# ---- memory and errors


def test_trajectory__without_it_no_state_is_held() -> None:
    held: list[int] = []
    states: list[Any] = []

    def counting(input_ids: Tensor, scores: Any) -> Tensor:
        states.append(weakref.ref(input_ids))
        held.append(sum(ref() is not None for ref in states))
        return torch.tensor([False])

    for options in ({}, {"return_dict_in_generate": True, "output_trajectory": True}):
        held.clear()
        states.clear()
        criteria = StoppingCriteriaList([counting])
        network("mixture").generate(batch_size=9, num_steps=20, seed=0, stopping_criteria=criteria, **options)
        assert len(held) == 19
        assert held[-1] == 19 if options else max(held) <= 2


def test_trajectory__needs_return_dict_in_generate() -> None:
    message = "output_trajectory=True.*return_dict_in_generate=True"
    with pytest.raises(ValueError, match=message):
        network().generate(output_trajectory=True)
    with pytest.raises(ValueError, match=message):
        GMGenerationConfig(output_trajectory=True)
    model = network()
    model.generation_config = GMGenerationConfig(output_trajectory=True, return_dict_in_generate=True)
    assert isinstance(model.generate(num_steps=2).trajectory, Trajectory)
    with pytest.raises(ValueError, match=message):
        model.generate(return_dict_in_generate=False)
