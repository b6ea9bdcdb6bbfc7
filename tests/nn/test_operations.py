"""How many operations a training step launches: the limits are what it launches today, and it shall not be more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gm_discrete import GMModel
from tests.helpers.networks import data, network, noisy

VIEWS = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "expand", "permute", "select", "slice",
    "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip
"""They launch nothing."""


class Operations(TorchDispatchMode):
    """Names of the operations that run within this context, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.names += [] if name in VIEWS else [name]
        return func(*args, **(kwargs or {}))


MODELS: dict[str, dict[str, Any]] = {
    "masked": {},
    "uniform": {"name": "reversal"},
    "dit": {"backbone": "dit", "condition_size": 16},
}


def step(model: GMModel, autocast: bool = False) -> tuple[list[str], list[str]]:
    """Operations of the forward and of the backward pass of a training step."""
    z = data()
    x, t = noisy(model.train(), z)
    with Operations() as forward, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(input_ids=x, time=t, labels=z).loss
    with Operations() as backward:
        loss.backward()
    return forward.names, backward.names


def counts(name: str, autocast: bool = False) -> tuple[int, ...]:
    """Operations of a layer, forward and backward, and of the step of a model of two layers."""
    two, three = (step(network(**MODELS[name], num_hidden_layers=layers), autocast) for layers in (2, 3))
    layer = [len(more) - len(fewer) for more, fewer in zip(three, two, strict=True)]
    return *layer, *map(len, two)


LIMITS = {
    ("masked", False): (39, 82, 214, 214),
    ("masked", True): (55, 102, 254, 261),
    ("uniform", False): (51, 106, 368, 341),
    ("uniform", True): (71, 130, 424, 402),
    ("dit", False): (26, 51, 219, 168),
    ("dit", True): (38, 63, 258, 203),
}
"""By model and autocast. On a CPU an RMS norm counts as 6 operations forward and 15 backward; on a GPU it is one each."""


@pytest.mark.parametrize(("name", "autocast"), LIMITS)
def test_training_step__launches_no_more_operations_than_its_limit(name: str, autocast: bool) -> None:
    for found, limit in zip(counts(name, autocast), LIMITS[name, autocast], strict=True):
        assert found <= limit


def test_layer__copies_nothing_for_the_layout_of_attention() -> None:
    forward, backward = step(network())
    assert "clone" not in [*forward, *backward]
    assert "neg" not in forward[: forward.index("_scaled_dot_product_flash_attention_for_cpu")][-20:]


def test_layer__launches_fewer_operations_without_gradients() -> None:
    model = network("reversal")
    z = data()
    x, t = noisy(model, z)
    with Operations() as trained:
        model(input_ids=x, time=t)
    with Operations() as evaluated, torch.no_grad():
        model(input_ids=x, time=t)
    assert len(evaluated.names) <= len(trained.names) - 4 * 2  # norms and gates: a product and its sum are one
