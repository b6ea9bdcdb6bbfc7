"""Classes: seen, left out in training as often as declared, and extrapolated towards."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    GaussianPath,
    conditional_loss,
)
from gm_discrete.objective import corrupt, drop_classes
from tests.helpers.continuous import (
    CASES,
    CLASSES,
    NUMBERS,
    SYMBOLIC,
    Rows,
    call,
    classy,
    data,
    noisy,
    parts_by_hand,
    rng,
    what_is_said,
)
from tests.helpers.networks import network as network_of_symbols
from tests.helpers.networks import readout

every_case = pytest.mark.parametrize("name", CASES)
every_number = pytest.mark.parametrize("name", NUMBERS)
ROUNDING: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
"""float32 sums that run in another order."""
MOVED = 1e-3
"""Far more than rounding."""
CHANCE = 4.5
"""Standard errors that a mean is off by with probability 7e-6."""


NONE = torch.full((5,), -1)
with_classes = pytest.mark.parametrize("name", ["flow", "jump on images", "mixture", "masked", "uniform", "one pixel"])


@with_classes
def test_forward__depends_on_the_class_and_minus_one_is_none(name: str) -> None:
    model, (x, t) = classy(name), noisy(classy(name), data(name), 0.5)
    free, none, chosen = (what_is_said(model, x, t, class_labels=labels) for labels in (None, NONE, CLASSES))
    assert torch.equal(free, none)
    finite = chosen.isfinite() & free.isfinite()
    assert bool(((chosen - free).masked_fill(~finite, 0).abs().amax(1) > MOVED).all())
    mixed = what_is_said(model, x, t, class_labels=torch.where(torch.arange(5) < 2, CLASSES, -1))
    torch.testing.assert_close(mixed[:2], chosen[:2], **ROUNDING)
    torch.testing.assert_close(mixed[2:], free[2:], **ROUNDING)
    output = call(model, x, t, class_labels=CLASSES)
    whole = (output.logits if name in SYMBOLIC else output.velocity).reshape(5, -1)
    first = chosen[:, : whole.shape[1]] if name != "mixture" else chosen[:, 16:32]  # by name: diffusion, flow, …
    torch.testing.assert_close(whole, first, **ROUNDING)  # one of them without gradients


@with_classes
def test_forward__the_loss_is_that_of_the_class(name: str) -> None:
    model, z = classy(name, class_dropout=0.0), data(name)
    x, t = noisy(model, z)
    loss = call(model, x, t, labels=z, class_labels=CLASSES).loss
    assert torch.equal(call(model, x, t, labels=z, class_labels=CLASSES, divergence=model.config.divergence).loss, loss)
    assert abs(float((loss - call(model, x, t, labels=z).loss).detach())) > MOVED
    if name != "uniform":
        parts = parts_by_hand(model, name, z, x, t, class_labels=CLASSES)
        assert float(loss.detach()) == pytest.approx(float(sum(p.mean() for p in parts.values())), rel=1e-4)
    corrupted, time = corrupt(model.path, {"": z}, {"": torch.ones_like(z, dtype=torch.bool)}, rng(5))
    expected = call(model, corrupted[""], time, labels=z, class_labels=CLASSES).loss
    assert torch.equal(conditional_loss(model, z, rng=rng(5), class_labels=CLASSES), expected)


def test_drop_classes__drops_the_declared_share() -> None:
    """Of 40,000 labels the part dropped has a standard error of 0.0023."""
    labels = torch.arange(40_000) % 7
    dropped = drop_classes(labels, 0.3, rng(1))
    left = dropped >= 0
    assert abs(float((~left).float().mean()) - 0.3) < CHANCE * math.sqrt(0.3 * 0.7 / 40_000)
    assert torch.equal(dropped[left], labels[left])
    assert set(dropped[~left].tolist()) == {-1}
    assert torch.equal(drop_classes(labels, 0.0, rng(1)), labels)
    halves = [drop_classes(labels[:20_000], 0.3, rng(1), rank, 2) for rank in range(2)]
    assert not torch.equal(*halves)  # noise of the global batch, each process its rows
    assert torch.equal(halves[0], dropped[:20_000])


def test_conditional_loss__drops_classes_as_often_as_the_config_says() -> None:
    """3,000 labels in all, with a standard error of 0.009."""
    model = classy("flow", class_dropout=0.4)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["class_labels"]), with_kwargs=True)
    z, noise = data("flow", rows=500), rng(2)
    with torch.no_grad():
        for _ in range(6):
            conditional_loss(model, z, rng=noise, class_labels=torch.ones(500).long())
    labels = torch.cat(seen)
    assert set(labels.tolist()) == {-1, 1}
    assert abs(float((labels < 0).float().mean()) - 0.4) < CHANCE * math.sqrt(0.4 * 0.6 / 3000)


@with_classes
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_scale__extrapolates_the_outputs_of_heads(name: str, scale: float) -> None:
    """u + γ(c − u) of velocities and of logits, which makes π ∝ π_c^γ π_u^{1−γ} and log λ a line too."""
    model, (x, t) = classy(name), noisy(classy(name), data(name), 0.5)
    rows = Rows(model)
    with torch.no_grad():
        free, chosen, guided = (
            model.generator(x, t, class_labels=labels, guidance_scale=gamma)
            for labels, gamma in ((None, None), (CLASSES, None), (CLASSES, scale))
        )
        if name in SYMBOLIC:
            log_pi = [readout(model, x, t, class_labels=c, guidance_scale=g)("tokens").log_softmax(-1)
                      for c, g in ((None, None), (CLASSES, None), (CLASSES, scale))]  # fmt: skip
            line = (log_pi[0] + scale * (log_pi[1] - log_pi[0]).nan_to_num()).log_softmax(-1)
            torch.testing.assert_close(log_pi[2].exp(), line.exp(), rtol=1e-4, atol=1e-5)
            changed = guided.rates(x)
            assert torch.isclose(changed, chosen.rates(x), rtol=1e-4, atol=1e-6).all() == (scale == 1)
        else:
            u, c, g = (each.parts for each in (free, chosen, guided))
            if "flow" in u:
                expected = u["flow"].velocity + scale * (c["flow"].velocity - u["flow"].velocity)
                torch.testing.assert_close(g["flow"].velocity, expected, rtol=1e-4, atol=1e-4)
            if "jump" in u and isinstance(model.path, GaussianPath):
                log_rate = [each["jump"].intensity.log() for each in (u, c, g)]
                torch.testing.assert_close(log_rate[2], torch.lerp(*log_rate[:2], scale), rtol=1e-4, atol=1e-4)
            if "jump" in u:
                where = torch.arange(x.numel())
                log_pi = [each["jump"].kernel.log_probs(where) for each in (u, c, g)]
                line = torch.lerp(*log_pi[:2], scale).log_softmax(-1)
                torch.testing.assert_close(log_pi[2], line, rtol=1e-4, atol=1e-4)
    rows.sizes.clear()
    heads = readout(model, x, t, class_labels=CLASSES, guidance_scale=scale)
    for head in model.path.heads:
        heads(head)
    assert rows.sizes == ([5] if scale == 1 else [5, 5])


def test_guidance_scale__without_a_class_is_refused() -> None:
    model, (x, t) = classy(), noisy(classy(), data())
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0 needs class_labels"):
        model.generator(x, t, guidance_scale=2.0)


def test_forward__a_masked_model_with_classes_needs_no_time() -> None:
    model, x = classy("masked"), data("masked")
    t = torch.full((5,), 0.3)
    for labels in (None, CLASSES):
        assert torch.equal(
            model(input_ids=x, class_labels=labels).logits, call(model, x, t, class_labels=labels).logits
        )


def test_rates__depend_on_the_class_and_the_guidance_scale() -> None:
    model = network_of_symbols("mixture", num_classes=3)
    x, t, labels = torch.tensor([[0, 1, 2]]), torch.tensor([0.5]), torch.tensor([1])
    free, towards = model.rates(x, t), model.rates(x, t, class_labels=labels)
    assert float((free - towards).abs().max()) > MOVED
    expected = model.generator(x, t, class_labels=labels, guidance_scale=2.0).rates(x)
    assert torch.equal(model.rates(x, t, class_labels=labels, guidance_scale=2.0), expected)
