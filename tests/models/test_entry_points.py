"""The checks of `forward` hold at every entry point: classes, shapes, types, devices, times, guidance."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    ClassifierGuidance,
    ExactModel,
    GaussianPath,
    GMConfig,
    GMModel,
    MaskedPath,
    UniformPath,
    any_order_bound,
    any_order_likelihood,
    conditional_loss,
    flow_likelihood,
    likelihood_bound,
    simulate,
)

SMALL: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
Z, HALF = torch.tensor([[0, 1, 2], [2, 1, 0]]), torch.full((2,), 0.5)
GRID = [0.0, 0.5, 1.0]


@pytest.fixture(scope="module")
def masked() -> GMModel:
    return GMModel(GMConfig(path=MaskedPath(5), **SMALL)).eval()


@pytest.fixture(scope="module")
def classes() -> GMModel:
    return GMModel(GMConfig(path=MaskedPath(5), num_classes=2, **SMALL)).eval()


@pytest.fixture(scope="module")
def vectors() -> GMModel:
    return GMModel(GMConfig(path=GaussianPath(num_channels=2), max_position_embeddings=3, **SMALL)).eval()


ENTRIES: dict[str, Callable[..., Any]] = {
    "forward": lambda m, z, **given: m(input_ids=z, time=HALF, labels=z, **given),
    "generator": lambda m, z, **given: m.generator(z, HALF, **given),
    "simulate": lambda m, z, **given: simulate(m, z, GRID, **given),
    "generate": lambda m, z, **given: m.generate(z, max_new_tokens=1, num_steps=2, **given),
    "conditional_loss": conditional_loss,
    "likelihood_bound": likelihood_bound,
    "any_order_likelihood": any_order_likelihood,
    "any_order_bound": any_order_bound,
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_entry_points__class_labels_need_a_model_with_classes(masked: GMModel, entry: str) -> None:
    with pytest.raises(ValueError, match=r"class_labels.*num_classes"):
        ENTRIES[entry](masked, Z, class_labels=torch.tensor([0, 1]))


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    "labels", [torch.tensor([0, 2]), torch.tensor([-2, 0]), torch.tensor([0.0, 1.0]), torch.tensor([0])]
)
def test_entry_points__class_labels_are_classes_of_the_model(classes: GMModel, entry: str, labels: Tensor) -> None:
    with pytest.raises((ValueError, TypeError), match=r"class_labels|batch sizes differ.*class_labels|batch"):
        ENTRIES[entry](classes, Z, class_labels=labels)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("state", [Z.float(), Z.int(), Z + 4, Z[0], Z[None]])
def test_entry_points__tokens_are_ids_of_the_path(masked: GMModel, entry: str, state: Tensor) -> None:
    with pytest.raises((ValueError, TypeError), match=r"(z|x|x_0|input_ids|labels)( holds| must be| has|:)"):
        ENTRIES[entry](masked, state)


@pytest.mark.parametrize("entry", [name for name in ENTRIES if name != "generate"])
def test_entry_points__tensors_are_on_the_device_of_the_model(masked: GMModel, entry: str) -> None:
    with pytest.raises(ValueError, match=r"on meta.*cpu|attention_mask is on cpu"):
        ENTRIES[entry](masked, Z.to("meta"))


@pytest.mark.parametrize("shape", [(2, 3, 1), (2, 3, 3), (2, 6), (1, 2, 3, 2)])
def test_entry_points__states_of_another_shape_are_not_broadcast(vectors: GMModel, shape: tuple[int, ...]) -> None:
    z = torch.zeros(shape)
    for run in (
        lambda: vectors(input_values=z, time=torch.full(shape[:1], 0.5)),
        lambda: vectors.generator(z, torch.full(shape[:1], 0.5)),
        lambda: simulate(vectors, z, GRID),
        lambda: flow_likelihood(vectors, z, num_steps=2),
        lambda: conditional_loss(vectors, z),
        lambda: vectors.generate(x_0=z, num_steps=2),
    ):
        with pytest.raises(ValueError, match=r"has shape|shape of"):
            run()


@pytest.mark.parametrize(
    ("t", "t_next", "message"),
    [
        (HALF + 1, None, r"times must lie in \[0, 1\]"),
        (HALF * torch.nan, None, r"times must lie in \[0, 1\]"),
        (HALF[:1], None, r"t must have shape \[B\]"),
        (torch.ones(2, dtype=torch.long), None, "t must be floating-point"),
        (HALF, HALF - 0.1, "t_next=0.4 must not be before t=0.5"),
        (HALF, HALF + 1, r"times must lie in \[0, 1\]"),
    ],
)
def test_generator__times_lie_in_order_within_0_and_1(
    masked: GMModel, t: Tensor, t_next: Tensor | None, message: str
) -> None:
    exact = ExactModel(MaskedPath(5), Z)
    for process in (masked, exact):
        with pytest.raises(ValueError, match=message):
            process.generator(Z, t, t_next)
    if t_next is None:
        with pytest.raises(ValueError, match=message):
            masked.rates(Z, t)


def test_simulate__conditioning_is_checked_before_anything_runs(classes: GMModel) -> None:
    labels = torch.tensor([0, 1])
    with pytest.raises(TypeError, match="guidance"):
        simulate(classes, Z, GRID, guidance="rawr")
    with pytest.raises(ValueError, match=r"guidance_scale=-2.0 must be"):
        simulate(classes, Z, GRID, class_labels=labels, guidance_scale=-2.0)
    with pytest.raises(TypeError, match=r"ExactModel takes no class_labels"):
        simulate(ExactModel(MaskedPath(5), Z), Z, GRID, class_labels=labels)
    guided = ClassifierGuidance(lambda x, t: -x.sum(1).double()).guided(classes)
    with pytest.raises(ValueError, match="class_labels"):
        simulate(guided, Z, GRID, class_labels=labels + 5)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_rates__are_refused_where_they_are_infinite(t: float) -> None:
    model = GMModel(GMConfig(path=UniformPath(4), **SMALL))
    with pytest.raises(ValueError, match=f"rates are not finite.*t = {t:.0f}"):
        model.rates(Z, torch.full((2,), t))
    assert bool(model.rates(Z, HALF).isfinite().all())


def test_forward__loss_of_reversal_rates_at_t_0_is_finite() -> None:
    """There the rates are infinite, and do not depend on the data."""
    model = GMModel(GMConfig(path=UniformPath(4), **SMALL))
    loss = model(input_ids=Z, time=torch.zeros(2), labels=Z).loss
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
