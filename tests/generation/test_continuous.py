"""`generate` of vectors and images: shapes, seeds, classes, samplers, weights of generators, observers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from gm_discrete import Adaptive, Bins, DormandPrince, GaussianPath, GMModel, simulate, time_grid
from tests.helpers.continuous import (
    BOTH,
    CASES,
    CLASSES,
    IMAGES,
    NUMBERS,
    SYMBOLIC,
    SYMBOLS,
    Rows,
    classy,
    network,
    rng,
)

every_case = pytest.mark.parametrize("name", CASES)
every_number = pytest.mark.parametrize("name", NUMBERS)


def shape_of(name: str, rows: int) -> tuple[int, ...]:
    """Shape of the samples: images of tokens come as images."""
    _, options, shape = CASES[name]
    return (rows, *options.get("image_shape", shape))


class Keeper:
    """A streamer that keeps every state."""

    def __init__(self) -> None:
        self.drafts: list[Tensor] = []
        self.end_state: Tensor | None = None
        self.ended = False

    def put_draft(self, value: Tensor) -> None:
        self.drafts.append(value.clone())

    def put(self, value: Tensor) -> None:
        assert self.end_state is None
        self.end_state = value.clone()

    def end(self) -> None:
        self.ended = True


@every_case
def test_generate__samples_have_the_shape_of_the_data(name: str) -> None:
    model = network(name)
    images = model.generate(batch_size=3, num_steps=5, seed=1)
    assert images.shape == shape_of(name, 3)
    assert model.generate(num_steps=2).shape == shape_of(name, 1)
    if name in SYMBOLIC:
        assert images.dtype == torch.long
        assert 0 <= int(images.min()) <= int(images.max()) < SYMBOLS  # no mask is left
    else:
        assert images.dtype == torch.float32
        assert bool(images.isfinite().all())


@every_case
def test_generate__a_seed_decides(name: str) -> None:
    model = network(name)
    first, again, other = (model.generate(batch_size=3, num_steps=6, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(5)
    free = model.generate(batch_size=3, num_steps=6)
    torch.manual_seed(5)
    assert torch.equal(model.generate(batch_size=3, num_steps=6), free)


@every_case
def test_generate__is_simulate_from_the_prior(name: str) -> None:
    """With the noise of one generator: first the prior, then the steps on the path's own grid."""
    model = network(name)
    noise = rng(7)
    start = model.path.prior((3, *CASES[name][2]), noise)
    expected = simulate(model.eval(), start, time_grid(model.path, 6), noise)
    assert torch.equal(model.generate(batch_size=3, num_steps=6, seed=7), expected.view(shape_of(name, 3)))


def test_generate__vectors_of_any_length() -> None:
    model = network("jump")
    assert model.generate(batch_size=2, length=9, num_steps=3, seed=0).shape == (2, 9, 2)
    assert model.generate(batch_size=2, num_steps=3, seed=0).shape == (2, model.config.max_position_embeddings, 2)
    model.generation_config.length = 4
    assert model.generate(num_steps=3, seed=0).shape == (1, 4, 2)


@pytest.mark.parametrize("name", ["flow", "jump on images", "mixture", "masked", "uniform"])
def test_generate__by_class(name: str) -> None:
    """One sample a label; another class is another sample, no class is −1, and a list will do."""
    model = classy(name)
    chosen = model.generate(class_labels=CLASSES, num_steps=6, seed=1)
    assert chosen.shape == shape_of(name, 5)
    assert torch.equal(model.generate(class_labels=CLASSES.tolist(), batch_size=5, num_steps=6, seed=1), chosen)
    assert not torch.equal(model.generate(class_labels=(CLASSES + 1) % 3, num_steps=6, seed=1), chosen)
    none = model.generate(class_labels=[-1] * 5, num_steps=6, seed=1)
    assert torch.equal(model.generate(batch_size=5, num_steps=6, seed=1), none)
    assert not torch.equal(none, chosen)


@pytest.mark.parametrize("name", ["flow", "jump on images", "masked", "uniform"])
def test_generate__guidance_scale_1_is_none(name: str) -> None:
    model = classy(name)
    plain = model.generate(class_labels=CLASSES, num_steps=6, seed=1)
    assert torch.equal(model.generate(class_labels=CLASSES, guidance_scale=1.0, num_steps=6, seed=1), plain)
    guided = model.generate(class_labels=CLASSES, guidance_scale=4.0, num_steps=6, seed=1)
    assert not torch.equal(guided, plain)
    model.generation_config.guidance_scale = 4.0
    assert torch.equal(model.generate(class_labels=CLASSES, num_steps=6, seed=1), guided)


@every_number
@pytest.mark.parametrize("sampler", ["euler", "heun", "adaptive", "tau_leaping"])
def test_generate__continuous_samplers_count_their_calls(name: str, sampler: str) -> None:
    model = network(name)
    rows = Rows(model)
    output = model.generate(
        batch_size=3, num_steps=6, sampler=Adaptive(tolerance=0.05) if sampler == "adaptive" else sampler, seed=1,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert output.sequences.shape == shape_of(name, 3)
    assert bool(output.sequences.isfinite().all())
    calls = output.network_calls
    if sampler == "adaptive":
        assert max(rows.sizes) <= 3
        assert sum(rows.sizes) >= int(calls.sum())
        assert bool((calls > 3).all())
    else:
        assert calls.tolist() == [6 if sampler != "heun" else 2 * 5 + 1] * 3  # the last step of heun is euler's
        assert rows.sizes == [3] * int(calls[0])
    jumps = "jump" in model.path.generators
    assert bool((output.jumps > 0).all()) == jumps


def test_generate__euler_and_tau_leaping_of_continuous_states_are_the_same() -> None:
    model = network("jump on images")
    first, second = (
        model.generate(batch_size=2, num_steps=5, sampler=name, seed=1) for name in ("euler", "tau_leaping")
    )
    assert torch.equal(first, second)


def smooth(name: str) -> GMModel:
    """Random weights make the velocity rough: here it depends on no fine scale, of numbers or of times."""
    model = network(name, num_frequencies=0)
    torch.nn.init.zeros_(model.backbone.time.inner.weight)
    return model


@pytest.mark.slow
def test_generate__samplers_of_a_flow_agree_and_heun_is_more_exact() -> None:
    """All from the same noise, as nothing else is drawn. dopri5 at 1e-6 stands for the solution."""
    model = smooth("flow on images").double()
    x_0 = torch.randn(2, 3, 4, 6, generator=rng(1)).double()
    exact = model.generate(x_0=x_0, sampler=DormandPrince(tolerance=1e-6))
    errors = {}
    for sampler in ("euler", "heun"):
        for steps in (40, 80):
            found = model.generate(x_0=x_0, sampler=sampler, grid=[*torch.linspace(0, 0.995, steps).tolist(), 1.0])
            errors[sampler, steps] = float((found - exact).abs().mean())
    assert errors["euler", 80] < 0.7 * errors["euler", 40]  # first order halves it
    assert errors["heun", 80] < 0.4 * errors["heun", 40]  # second order quarters it
    assert errors["heun", 80] < 0.2 * errors["euler", 80]


@pytest.mark.slow
def test_generate__dopri5_is_for_flows_alone() -> None:
    with pytest.raises(TypeError, match="dopri5"):
        smooth("jump").generate(sampler="dopri5", seed=0)
    sample = smooth("jump").generate(sampler="dopri5", generators={"flow": 1.0}, seed=0)
    assert bool(sample.isfinite().all())


def test_generate__other_weights_of_the_generators() -> None:
    """As if the path had them: what was learned can be put together anew, a diffusion as well."""
    model, options = network("jump"), {"num_channels": 2, "prediction": "velocity", "bins": Bins(-4, 4, 8)}
    same = model.generate(batch_size=4, generators=BOTH, num_steps=8, seed=1)
    assert torch.equal(model.generate(batch_size=4, num_steps=8, seed=1), same)
    for weights in ({"flow": 1.0}, {"jump": 1.0}, {"flow": [1.0, 0.0], "jump": [0.0, 1.0]}, {"diffusion": 1.0}):
        output = model.generate(batch_size=4, generators=weights, num_steps=8, seed=1, return_dict_in_generate=True)
        other = GaussianPath(weights | {"jump": weights.get("jump", 0.0)}, **options)
        stand_in = network("jump")
        stand_in.path = other
        expected = stand_in.generate(
            batch_size=4, num_steps=8, seed=1, grid="geometric" if set(weights) == {"jump"} else "linear"
        )
        if "jump" in weights:
            assert torch.equal(output.sequences, expected)
            assert bool((output.jumps > 0).all())
        else:  # no jumps are drawn, and so no noise for them
            assert int(output.jumps.sum()) == 0
        assert not torch.equal(output.sequences, same)
    flow = network("jump")
    flow.path = GaussianPath({"flow": 1.0}, **options)
    expected = flow.generate(batch_size=4, num_steps=8, seed=1)
    torch.testing.assert_close(model.generate(batch_size=4, generators={"flow": 1.0}, num_steps=8, seed=1), expected)


@every_number
def test_generate__starts_from_x_0(name: str) -> None:
    model = network(name)
    x_0 = model.path.prior((3, *CASES[name][2]), rng(5))
    kept = x_0.clone()
    keeper = Keeper()
    end = model.generate(x_0=x_0, num_steps=4, seed=1, streamer=keeper)
    assert end.shape == x_0.shape
    assert torch.equal(x_0, kept)
    expected = simulate(model, x_0, time_grid(model.path, 4), rng(1))
    assert torch.equal(end, expected)
    if set(model.path.generators) == {"flow"}:
        assert torch.equal(model.generate(x_0=x_0, num_steps=4, seed=2), end)
    longer = torch.cat([x_0, x_0], 1)
    if name not in IMAGES:
        assert model.generate(x_0=longer, num_steps=2, seed=1).shape == longer.shape


def test_generate__x_0_with_classes() -> None:
    model = classy("flow")
    x_0 = torch.randn(5, 5, 2, generator=rng(1))
    by_class = model.generate(x_0=x_0, class_labels=CLASSES, num_steps=4)
    alone = torch.cat(
        [model.generate(x_0=x_0[i : i + 1], class_labels=CLASSES[i : i + 1], num_steps=4) for i in range(5)]
    )
    torch.testing.assert_close(by_class, alone, rtol=1e-4, atol=1e-4)


@every_case
def test_generate__streamer_gets_every_state(name: str) -> None:
    model, keeper = network(name), Keeper()
    sample = model.generate(batch_size=2, num_steps=6, seed=1, streamer=keeper)
    assert keeper.ended
    assert keeper.end_state is not None
    assert torch.equal(keeper.end_state.view(sample.shape), sample)
    grid = time_grid(model.path, 6)
    start = model.path.prior((2, *CASES[name][2]), noise := rng(1))
    states = simulate(model, start, grid, noise, save_at=range(1, 6), return_info=True).states
    expected = [states[0], *(b for a, b in pairwise(states) if not torch.equal(a, b))]
    assert len(keeper.drafts) == len(expected)
    assert all(torch.equal(draft, state) for draft, state in zip(keeper.drafts, expected, strict=True))


def test_generate__criterion_ends_a_flow_with_one_last_step() -> None:
    model, keeper = network("flow on images"), Keeper()
    calls = []

    def stop(states: Tensor, scores: Any) -> Tensor:
        calls.append(states.shape)
        return torch.full((len(states),), len(calls) == 3)

    output = model.generate(
        batch_size=2, num_steps=20, seed=1, stopping_criteria=StoppingCriteriaList([stop]), streamer=keeper,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert calls == [(2, 3, 4, 6)] * 3
    assert output.network_calls.tolist() == [4, 4]
    assert len(keeper.drafts) == 3


def test_generate__continuous_runs_in_evaluation_mode() -> None:
    model = network("flow", hidden_dropout=0.5)
    expected = model.generate(batch_size=2, num_steps=3, seed=1)
    model.train()
    assert torch.equal(model.generate(batch_size=2, num_steps=3, seed=1), expected)
    assert model.training


@pytest.mark.parametrize("labels", [[0, 3], [-2, 0]])
def test_generate__classes_out_of_range_are_named(labels: list[int]) -> None:
    for name in ("flow", "masked"):
        with pytest.raises(ValueError, match="class_labels"):
            classy(name).generate(class_labels=labels, num_steps=2)


def test_generate__classes_of_another_batch_are_named() -> None:
    with pytest.raises(ValueError, match=r"class_labels.*\(2,\).*3"):
        classy("flow").generate(class_labels=[0, 1], batch_size=3)


@every_number
@pytest.mark.parametrize("method", ["tau_leaping", "heun", "adaptive"])
def test_generate__says_that_the_output_of_the_network_is_not_finite(name: str, method: str) -> None:
    model = network(name)
    for head in model.heads.values():
        weights = head.weight.detach().clone()  # pyright: ignore[reportCallIssue]
        with torch.no_grad():
            head.weight.fill_(torch.nan)  # pyright: ignore[reportCallIssue]
            with pytest.raises(FloatingPointError, match=r"output of the model|landing distribution"):
                model.generate(num_steps=3, sampler=method)
            head.weight.copy_(weights)  # pyright: ignore[reportCallIssue]
