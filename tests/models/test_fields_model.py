"""`GMModel` on states of several fields: what its heads see and say, and what it is trained with."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path as File
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from gm_discrete import (
    Bins,
    ExactProductModel,
    GaussianPath,
    GMModel,
    MaskedPath,
    ProductPath,
    UniformPath,
    conditional_loss,
    simulate,
)
from gm_discrete.objective import corrupt, field_losses, generator_times
from tests.helpers.product_models import CASES, CODECS, at, data, network, noisy, rng, said

every_case = pytest.mark.parametrize("name", CASES)
ROUNDING: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}
"""float32 sums that run in another order."""
MOVED = 1e-3
"""Far more than rounding."""
ALL = ["over", "under", "size"]
POSITIONS = dict(zip(CASES, (4, 4, 5 + 1, 4 + 3 + 6, 3 + 6, 4 + 1), strict=True))


@every_case
def test_forward__has_an_output_for_every_field(name: str) -> None:
    model = network(name)
    x, t = noisy(model, data(model))
    output = model(fields=x, time=t)
    assert output.last_hidden_state.shape == (5, POSITIONS[name], 32)
    assert output.loss is output.field_losses is None
    for field, path in model.path.factors.items():
        heads, shape = path.heads, x[field].shape
        assert (field in output.logits) == bool({"tokens", "belief"} & heads.keys())
        assert (field in output.velocity) == ("flow" in heads)
        if field in output.logits:
            assert output.logits[field].shape == (*shape, heads.get("tokens", heads.get("belief")))
        else:
            assert output.velocity[field].shape == shape
    assert model.config.max_position_embeddings == POSITIONS[name]


def changed(model: GMModel, x: dict[str, Tensor], field: str) -> dict[str, Tensor]:
    """The state with another entry of one field in the first row."""
    other = x[field].clone()
    entry = (0,) * other.dim()
    path = model.path.factors[field]
    other[entry] = other[entry] + 0.5 if other.is_floating_point() else (other[entry] + 1) % (path.vocab_size)
    return {**x, field: other}


@torch.no_grad()
@every_case
def test_forward__every_head_depends_on_every_field(name: str) -> None:
    """One entry of any field changes what is said of all fields of its state, at every position, and of no other state."""
    model = network(name)
    x, t = noisy(model, data(model))
    before = said(model, x, t)
    for field in x:
        after = said(model, changed(model, x, field), t)
        for other in x:
            moved = (after[other] - before[other]).abs().amax(2)
            seen = model.path.factors[other].excluded[:1] if not x[other].is_floating_point() else ()
            there = x[other][0] == seen[0] if seen else torch.ones_like(moved[0]).bool()
            if not model.state_fields[other].image_shape:  # of masks alone there is something to say
                assert float(moved[0][there].min()) > MOVED / 100, (field, other)
            assert float(moved[0].max()) > MOVED, (field, other)
            assert torch.equal(moved[1:], torch.zeros_like(moved[1:]))


def test_forward__gradients_flow_from_every_field_into_every_number() -> None:
    model = network("row")
    x, t = noisy(model, data(model))
    inputs = {name: value.clone().requires_grad_() for name, value in x.items() if value.is_floating_point()}
    for field in x:
        total = said(model, {**x, **inputs}, t)[field].double().square().sum()
        open_ = (
            (x["cut"] == 3).flatten() if field == "cut" else torch.ones(5).bool()
        )  # of masks there is something to say
        for name, gradient in zip(inputs, torch.autograd.grad(total, list(inputs.values())), strict=True):
            assert float(gradient[open_].abs().min()) > 1e-8, (field, name)


# ---- padding


@torch.no_grad()
@pytest.mark.parametrize(("padded", "kernel"), [
    (["over"], 0), (["under"], 0), (ALL, 0), (["under"], 3),
    (["over"], 3), (ALL, 3),
])  # fmt: skip
def test_forward__padding_of_a_field_changes_nothing(padded: list[str], kernel: int) -> None:
    """Neither what stands there, nor how much of it: also not of the fields that follow."""
    model = network("two lines", conv_kernel_size=kernel)
    z = data(model)
    x, t = noisy(model, z)
    real = {name: torch.tensor([1, 3, 2, 3, 1]) if name in padded else None for name in x}
    sizes = {name: count for name, count in real.items() if count is not None}
    masks = {name: (torch.arange(x[name].shape[1]) < count[:, None]).long() for name, count in sizes.items()}
    whole = said(model, x, t, attention_mask=masks)
    if "over" in padded:  # what is padded is another symbol
        other = {**x, "over": torch.where(masks["over"] == 1, x["over"], (x["over"] + 1) % 6)}
        for name, value in said(model, other, t, attention_mask=masks).items():
            keep = masks[name].bool() if name in masks else torch.ones(value.shape[:2]).bool()
            torch.testing.assert_close(value[keep], whole[name][keep], **ROUNDING)
    for row in range(5):
        size = {name: x[name].shape[1] if count is None else int(count[row]) for name, count in real.items()}
        alone = said(model, {name: x[name][row : row + 1, : size[name]] for name in x}, t[row : row + 1])
        for name in x:
            torch.testing.assert_close(whole[name][row, : size[name]], alone[name][0], **ROUNDING)


@torch.no_grad()
def test_forward__padding_of_aligned_fields_changes_nothing() -> None:
    """Padded in all of them, positions are neither seen nor counted; padded in one alone, it is for its label to tell."""
    model = network("notes")
    x, t = noisy(model, data(model))
    mask = (torch.arange(5) < torch.tensor([2, 5, 3, 1, 4])[:, None]).long()
    whole = said(model, x, t, attention_mask={"pitch": mask, "gap": mask})
    for row, size in enumerate((2, 5, 3, 1, 4)):
        cut = {name: x[name][row : row + 1, :size] if name != "key" else x[name][row : row + 1] for name in x}
        alone = said(model, cut, t[row : row + 1])
        for name in x:
            torch.testing.assert_close(whole[name][row, : alone[name].shape[1]], alone[name][0], **ROUNDING)
    one = said(model, x, t, attention_mask={"pitch": mask})  # what is not given for "gap" is that of "pitch"
    assert all(torch.equal(one[name], whole[name]) for name in x)
    with pytest.raises(ValueError, match=r"pitch, gap.*\[4, 5\]"):
        model(fields={**x, "pitch": x["pitch"][:, :4]}, time=t)


# ---- the loss


def by_hand(model: GMModel, z: Any, x: Any, t: Tensor, scored: Any) -> dict[str, Tensor]:
    """Of each field, in the units of its own path, summed; not where its time is 1."""
    generator: Any = model.generator(x, t)
    found = {}
    for name, time in model.path.times(t).items():
        path, open_ = model.path.factors[name], scored[name] & (time < 1).view(-1, *[1] * (z[name].dim() - 1))
        kinds, weights = model.config.divergence[name], (model.config.loss_weights or {}).get(name, 1.0)
        one, state = {"": generator.factors[name]}, ({"": z[name]}, {"": x[name]})
        found[name] = field_losses(path, one, *state, time, {"": open_}, {"": 1}, kinds, weights)[""]
    return found


@every_case
def test_forward__the_loss_is_the_weighted_sum_over_the_fields(name: str) -> None:
    """Per scored entry of each, or by the numbers that the trainer counted."""
    factors = CASES[name][0].factors
    parts = {"price": {"jump": 3.0, "flow": 0.5}} if "price" in factors else {}
    weights = {field: 0.5 + i for i, field in enumerate(factors) if i != 1} | parts
    model = network(name, loss_weights=weights)
    z = data(model)
    x, t = noisy(model, z)
    scored = {field: torch.rand(value.shape, generator=rng(6)) < 0.7 for field, value in z.items()}
    labels = model.path.mask_labels(z, scored)
    output = model(fields=x, time=t, labels=labels)
    sums = by_hand(model, z, x, t, scored)
    for field, value in sums.items():
        torch.testing.assert_close(output.field_losses[field], value / scored[field].sum(), **ROUNDING)
        assert float(value.detach()) > 0
    plain = [1.0 if isinstance(weights.get(field, 1.0), dict) else weights.get(field, 1.0) for field in sums]
    expected = sum(w * loss for w, loss in zip(plain, output.field_losses.values(), strict=True))
    torch.testing.assert_close(output.loss.detach(), expected, **ROUNDING)
    counts = {field: torch.tensor(7 + i) for i, field in enumerate(x)}
    counted = model(fields=x, time=t, labels=labels, num_items_in_batch=counts)
    for field, value in sums.items():
        torch.testing.assert_close(counted.field_losses[field], value / counts[field], **ROUNDING)
    assert model(fields=x, time=t, labels=labels, return_dict=False)[0] == output.loss


@every_case
def test_conditional_loss__of_fields_is_that_of_a_stand_in(name: str) -> None:
    """Of a network in its forward and of a stand-in alike."""
    model = network(name)
    z = data(model)

    class Standin:
        path = model.path

        def generator(self, x: Any, t: Tensor) -> Any:
            network_times = t if self.path.independent_times else None
            return model.generator(x, self.path.joined(generator_times(self.path, t)), network_time=network_times)

    loss = conditional_loss(model, z, rng=rng(8))
    torch.testing.assert_close(conditional_loss(Standin(), z, rng=rng(8)), loss, **ROUNDING)
    scored = {field: torch.ones_like(value, dtype=torch.bool) for field, value in z.items()}
    x, t = corrupt(model.path, z, scored, rng(8))
    torch.testing.assert_close(model(fields=x, time=t, labels=z).loss, loss, **ROUNDING)


def test_forward__an_observed_field_has_no_loss_and_no_gradient() -> None:
    """Whatever its labels; the others depend on it."""
    model = network("independent row")
    z = data(model)
    x, t = noisy(model, z)
    t[:3, 1] = 1.0
    x["price"][:3] = z["price"][:3]
    output = model(fields=x, time=t, labels=z)
    labels = {**z, "price": z["price"].clone()}
    labels["price"][:3] = 0.123
    assert torch.equal(model(fields=x, time=t, labels=labels).loss, output.loss)
    labels["price"][3] = 0.123
    assert not torch.equal(model(fields=x, time=t, labels=labels).loss, output.loss)
    t[:, 1] = 1.0
    output = model(fields=x, time=t, labels=z)
    assert float(output.field_losses["price"]) == 0
    gradients = torch.autograd.grad(output.loss, list(model.heads["price:belief"].parameters()), allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)


KINDS = {
    "belief": GaussianPath({"flow": 0.4, "diffusion": 0.2, "jump": 0.4}, bins=Bins(-3, 3, 8)),
    "velocity": GaussianPath(),
    "data": GaussianPath(prediction="data"),
    "noise": GaussianPath(prediction="noise"),
    "velocity and jump": GaussianPath({"flow": 0.5, "jump": 0.5}, prediction="velocity", bins=Bins(-4, 4, 8)),
    "data and jump": GaussianPath({"flow": 0.5, "jump": 0.5}, prediction="data", bins=Bins(-4, 4, 8)),
    "symbol": UniformPath(4),
    "symbol of mixture rates": UniformPath(4, rates="mixture"),
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_forward__gradients_are_finite_where_fields_are_observed_or_noise(kind: str, precision: str) -> None:
    """Times 0 (of symbols right behind it, where the rate of reversal has a value) and 1 of either field, and right before
    1; in bfloat16, of a precision of 2⁻⁸, the loss is that of float32 within 5 %."""
    path = ProductPath(cut=MaskedPath(4), number=KINDS[kind], independent_times=True)
    model = network("row", path=path, fields={"number": {"length": 2}})
    z = data(model, 6)
    late = min(path.latest, 1 - 1e-9)
    t = torch.tensor([[0, 1], [1, 1e-6], [1, 1], [0.4, 1], [1, 0.6], [1 - 1e-9, late]], dtype=torch.float64)
    x = model.path.sample(z, t, rng(4))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        output = model(fields=x, time=t, labels=z)
        said_ = model(fields=x, time=t)
    assert output.loss.dtype == torch.float32
    exact = model(fields=x, time=t, labels=z).loss
    torch.testing.assert_close(output.loss, exact, rtol=0.05, atol=0)
    for values in (*said_.logits.values(), *said_.velocity.values()):
        assert not values.isnan().any()
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or "heads" in name, name
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name


# ---- times of their own


@torch.no_grad()
@pytest.mark.parametrize("name", ["independent row", "picture"])
def test_network_time__reaches_every_head(name: str) -> None:
    model = network(name)
    x, t = noisy(model, data(model))
    generators: list[Any] = [model.generator(x, t, network_time=network_times) for network_times in (None, t)]
    assert all(torch.equal(a, b) for a, b in zip(*(map(values, generators)), strict=True))
    for column in range(t.shape[1]):
        network_times = t.clone()
        network_times[0, column] = (network_times[0, column] + 0.3) % 1
        for before, after in zip(
            values(generators[0]), values(model.generator(x, t, network_time=network_times)), strict=True
        ):
            moved = (after - before).abs().flatten(1).amax(1)
            assert float(moved[0]) > MOVED / 10
            assert not moved[1:].any()
    alike = at(model, t=0.3)
    assert torch.equal(*(said(model, x, time)[next(iter(x))] for time in (alike, alike[:, 0])))


def values(generator: Any) -> list[Tensor]:
    """What a product's factors are made of."""
    found = []
    for factor in generator.factors.values():
        if hasattr(factor, "parts"):
            found.append(factor.parts["flow"].velocity)
        else:
            belief = factor.posterior.belief
            found.append(belief.log_probs(torch.arange(belief.shape.numel())).exp().view(*belief.shape, -1))
    return found


# ---- what is saved


@every_case
def test_save_pretrained__of_fields_is_bit_exact(name: str, tmp_path: File) -> None:
    """Weights, fields and codecs; and it samples the same."""
    model = network(name)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert isinstance(again, GMModel)
    assert again.path == model.path
    assert list(again.path.factors) == list(model.path.factors)
    assert again.state_fields == model.state_fields
    assert AutoConfig.from_pretrained(tmp_path).to_dict().keys() == model.config.to_dict().keys()
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    # A copy, because weights that lie elsewhere in memory, as in the file, are summed in another order.
    first, second = (one.generate(batch_size=2, num_steps=4, seed=1) for one in (model, deepcopy(again)))
    assert list(first) == list(second)
    assert all(torch.equal(first[field], second[field]) for field in first)
    if "row" in name:
        assert {field: again.state_fields[field].codec for field in CODECS} == CODECS


def test_fields__of_different_batch_sizes_are_named() -> None:
    model = network("two lines")
    x = {**data(model, 2), "under": data(model, 3)["under"]}
    ids, path = torch.zeros(2, 1, dtype=torch.long), ProductPath(a=UniformPath(3), b=UniformPath(3))
    own = ExactProductModel(path, {"a": ids, "b": ids})
    calls = [
        lambda: conditional_loss(model, x),
        lambda: simulate(model, x, [0.0, 1.0]),
        lambda: model(fields=x, time=torch.zeros(2)),
        lambda: simulate(own, {"a": ids, "b": ids[:1]}, [0.0, 1.0]),
        lambda: ExactProductModel(path, {"a": ids, "b": ids[:1]}),
    ]
    for attempt in calls:
        with pytest.raises(ValueError, match=r"different batch sizes, (over 2, size 2, under 3|a 2, b 1)"):
            attempt()


@pytest.mark.parametrize("name", ["notes", "picture"])
def test_gradient_checkpointing__of_fields_leaves_the_gradient(name: str) -> None:
    model, gradients = network(name).train(), []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        conditional_loss(model, data(model), rng=rng()).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad(set_to_none=True)
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
