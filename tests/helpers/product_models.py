"""Small networks on states of several fields: rows of a table, notes, a picture with its caption."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gm_discrete import Bins, GaussianPath, GMConfig, GMModel, MaskedPath, ProductPath, UniformPath
from gm_discrete.data.scalers import Categories, QuantileScaler, StandardScaler

CUTS = ["good", "fair", None]
CODECS = {
    "cut": Categories(CUTS),
    "price": QuantileScaler([1, 50, 150, 400, 1100, 3000, 20_000], digits=0, low=1, high=20_000),
    "depth": StandardScaler(60.0, 2.0, digits=1),
    "table": StandardScaler(55.0, 3.0),
}
"""Names and None, whole numbers within bounds, one decimal, any number."""
BOTH = {"flow": 0.5, "jump": 0.5}


def row_path(independent: bool = False) -> ProductPath:
    """One symbol and three numbers of different predictions."""
    return ProductPath(
        cut=MaskedPath(4), price=GaussianPath(BOTH, bins=Bins(-7, 7, 16)), depth=GaussianPath(data_std=0.7),
        table=GaussianPath(prediction="data"), independent_times=independent,
    )  # fmt: skip


CASES: dict[str, tuple[ProductPath, dict[str, Any]]] = {
    "row": (row_path(), {"fields": {name: {"codec": codec} for name, codec in CODECS.items()}}),
    "independent row": (row_path(True), {"fields": {name: {"codec": codec} for name, codec in CODECS.items()}}),
    "notes": (
        ProductPath(pitch=MaskedPath(6), gap=GaussianPath(num_channels=2), key=UniformPath(3)),
        {"fields": {"pitch": {"length": 5}, "gap": {"length": 5}}, "aligned": [["pitch", "gap"]]},
    ),
    "two lines": (
        ProductPath(over=MaskedPath(6), size=GaussianPath(BOTH, bins=Bins(-3, 3, 8)), under=UniformPath(5)),
        {"fields": {"over": {"length": 4}, "size": {"length": 3}, "under": {"length": 6}}},
    ),
    "picture": (
        ProductPath(caption=MaskedPath(7), image=GaussianPath(num_channels=3), independent_times=True),
        {"fields": {"caption": {"length": 3}, "image": {"image_shape": [3, 4, 6], "patch_size": 2}}},
    ),
    "symbols of a picture": (
        ProductPath(image=MaskedPath(5), weight=GaussianPath(prediction="noise")),
        {"fields": {"image": {"image_shape": [1, 4, 4], "patch_size": 2}}},
    ),
}
"""path, options of the config"""


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(name: str = "row", seed: int = 1, **kwargs: Any) -> GMModel:
    """A network whose every parameter matters: at initialisation the blocks are the identity and t is not seen."""
    path, options = CASES[name]
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = GMModel(GMConfig(**{"path": path} | settings | options | kwargs))
    noise = rng(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            size = 0.1 if key.startswith("heads") else 0.25
            parameter.copy_(size * torch.randn(parameter.shape, generator=noise) + (parameter.dim() == 1))
    return model.eval()


def data(model: GMModel, rows: int = 5, length: int | None = None) -> dict[str, Tensor]:
    z = {}
    for name, field in model.state_fields.items():
        shape = (rows, *field.state_shape(length or field.length))
        if field.vocab_size:
            most = field.vocab_size - len(field.path.excluded)
            z[name] = torch.randint(most, shape, generator=rng(3))
        else:
            z[name] = (0.6 * torch.randn(shape, generator=rng(3))).clamp(-1, 1)
    return z


def at(model: GMModel, rows: int = 5, t: float | None = None) -> Tensor:
    """Times spread over (0, 1), another order for each field; or all alike."""
    time = (torch.arange(rows) + 0.5).double() / rows if t is None else torch.full((rows,), t, dtype=torch.float64)
    if not model.path.independent_times:
        return time
    return torch.stack([time.roll(i) for i in range(len(model.path.factors))], 1)


def noisy(model: GMModel, z: dict[str, Tensor], t: float | None = None) -> tuple[dict[str, Tensor], Tensor]:
    time = at(model, len(next(iter(z.values()))), t)
    return model.path.sample(z, time, rng(4)), time


class Rows:
    """Counts the states that enter the backbone."""

    def __init__(self, model: GMModel) -> None:
        self.sizes: list[int] = []
        model.backbone.register_forward_pre_hook(
            lambda _, args: self.sizes.append(len(next(iter(args[0].values()))))
        )  # fmt: skip


def said(model: GMModel, x: dict[str, Tensor], t: Tensor, **kwargs: Any) -> dict[str, Tensor]:
    """What all heads say of each field, [B, positions, numbers] (of images [B, 1, numbers])."""
    mask, labels = kwargs.pop("attention_mask", None), kwargs.pop("class_labels", None)
    generator = model.generator(x, t, None, mask, class_labels=labels)
    found = {}
    for name, factor in generator.factors.items():  # type: ignore[union-attr]
        field, parts = model.state_fields[name], []
        where = torch.arange(x[name].numel())
        if field.vocab_size:
            parts.append(factor.posterior.belief.log_probs(where).clamp(min=-1e3).exp())  # type: ignore[union-attr]
        else:
            parts.append(factor.parts["flow"].velocity.reshape(len(where), 1))  # type: ignore[union-attr]
            if "jump" in factor.parts:  # type: ignore[union-attr]
                parts.append(factor.parts["jump"].intensity.reshape(len(where), 1))  # type: ignore[union-attr]
        rows, positions = len(x[name]), 1 if field.image_shape else x[name].shape[1]
        found[name] = torch.cat([part.float() for part in parts], 1).view(rows, positions, -1)
    return found
