"""Small networks on vectors and images, of numbers and of symbols, and what their heads say, laid out by hand."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gm_discrete import Bins, EuclideanMixturePath, GaussianPath, GMConfig, GMModel, MaskedPath, UniformPath
from tests.helpers.networks import readout

SYMBOLS = 4
COLOUR: dict[str, Any] = {"image_shape": [3, 4, 6], "patch_size": 2}
GREY: dict[str, Any] = {"image_shape": [1, 4, 4], "patch_size": 2}
VECTORS = (5, 2)
BOTH = {"flow": 0.5, "jump": 0.5}
ALL = {"flow": 0.25, "diffusion": 0.25, "jump": 0.5}

CASES: dict[str, tuple[Any, dict[str, Any], tuple[int, ...]]] = {
    "flow": (GaussianPath(num_channels=2, data_mean=0.2, data_std=0.7), {}, VECTORS),
    "jump": (GaussianPath(BOTH, 2, prediction="velocity", bins=Bins(-4, 4, 8)), {}, VECTORS),
    "belief": (GaussianPath(BOTH, num_channels=2, bins=Bins(-1, 1, 8)), {}, VECTORS),
    "flow on images": (GaussianPath(num_channels=3), COLOUR, (3, 4, 6)),
    "jump on images": (
        GaussianPath(ALL, 3, prediction="velocity", data_std=0.5, bins=Bins(-4, 4, 8)),
        COLOUR,
        (3, 4, 6),
    ),
    "belief on images": (GaussianPath(ALL, 3, data_std=0.5, bins=Bins(-1, 1, 8)), COLOUR, (3, 4, 6)),
    "flow of a belief": (GaussianPath(prediction="belief", data_std=0.5, bins=Bins(-1, 1, 8)), GREY, (1, 4, 4)),
    "jump of a belief": (GaussianPath({"jump": 1.0}, bins=Bins(-1, 1, 8)), GREY, (1, 4, 4)),
    "mixture": (
        EuclideanMixturePath({"jump": 0.4, "flow": 0.3, "diffusion": 0.3}, -1, 3, bins=Bins(-1, 3, 6)),
        GREY,
        (1, 4, 4),
    ),
    "mixture of vectors": (EuclideanMixturePath({"jump": 1.0}, num_channels=2, bins=Bins(-1, 1, 6)), {}, VECTORS),
    "masked": (MaskedPath(SYMBOLS + 1), COLOUR, (72,)),
    "uniform": (UniformPath(SYMBOLS), COLOUR, (72,)),
    "one pixel": (MaskedPath(SYMBOLS + 1), {"image_shape": [1, 4, 4]}, (16,)),
}
"""path, options of the config, shape of a state"""
NUMBERS = [name for name, (path, *_) in CASES.items() if not hasattr(path, "vocab_size")]
SYMBOLIC = [name for name in CASES if name not in NUMBERS]
IMAGES = [name for name, (_, options, _) in CASES.items() if options]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(name: str = "jump", seed: int = 1, **kwargs: Any) -> GMModel:
    """A network whose every parameter matters; heads of size 1, so that rates are neither 0 nor huge."""
    path, options, shape = CASES[name]
    settings = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": shape[0],
    }
    model = GMModel(GMConfig(**{"path": path} | settings | options | kwargs))
    noise = rng(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            size = 0.1 if key.startswith("heads") else 0.25
            parameter.copy_(size * torch.randn(parameter.shape, generator=noise) + (parameter.dim() == 1))
    return model.eval()


CLASSES = torch.tensor([0, 1, 2, 1, 0])


def classy(name: str = "jump", **kwargs: Any) -> GMModel:
    return network(name, num_classes=3, **kwargs)


def data(name: str = "jump", rows: int = 5) -> Tensor:
    shape = CASES[name][2]
    if name in SYMBOLIC:
        return torch.randint(SYMBOLS, (rows, *shape), generator=rng(3))
    return (0.6 * torch.randn(rows, *shape, generator=rng(3))).clamp(-1, 1)


def noisy(model: GMModel, z: Tensor, t: float | None = None) -> tuple[Tensor, Tensor]:
    """(x, t): times spread over (0, 1), or all alike."""
    time = (torch.arange(len(z)) + 0.5).double() / len(z) if t is None else torch.full((len(z),), t).double()
    return model.path.sample(z, time, rng(4)), time


def call(model: GMModel, x: Tensor, t: Tensor, **kwargs: Any) -> Any:
    return model(**{model.path.state_name: x}, time=t, **kwargs)


def to_entries(values: Tensor, name: str) -> Tensor:
    """What a head says [B, positions, slots · size] → [B, entries, size]."""
    options = CASES[name][1]
    channels, height, width = options.get("image_shape", (0, 0, 0))
    if not channels:
        return values.reshape(len(values), values.shape[1] * 2, -1)
    p = options.get("patch_size", 1)
    grid = values.view(len(values), height // p, width // p, channels, p, p, -1)
    return grid.permute(0, 3, 1, 4, 2, 5, 6).reshape(len(values), channels * height * width, -1)


def heads_of(model: GMModel, name: str, x: Tensor, t: Tensor, **kwargs: Any) -> dict[str, Tensor]:
    """Raw output of every head, [B, entries, size]; of size 1 in x's shape."""
    hidden = call(model, x, t, **kwargs).last_hidden_state
    found = {head: to_entries(layer(hidden), name) for head, layer in model.heads.items()}
    return {head: value.view(x.shape) if value.shape[-1] == 1 else value for head, value in found.items()}


def kl(a: Tensor, b: Tensor) -> Tensor:
    return torch.xlogy(a, a) - torch.xlogy(a, b) - a + b


def shaped(t: Tensor, x: Tensor) -> Tensor:
    return t.view(-1, *[1] * (x.dim() - 1))


def parts_by_hand(model: GMModel, name: str, z: Tensor, x: Tensor, t: Tensor, **kwargs: Any) -> dict[str, Tensor]:
    """The divergences of each entry by part, from the definitions of paths and heads; CondOT and linear schedules."""
    path: Any = model.path
    raw = {head: value.double() for head, value in heads_of(model, name, x, t, **kwargs).items()}
    time, bins = shaped(t, x), getattr(path, "bins", None)
    z, x = (z.double(), x.double()) if z.is_floating_point() else (z, x)
    if isinstance(path, MaskedPath):
        log_belief = raw["tokens"][..., :SYMBOLS].log_softmax(-1).gather(2, z[..., None]).squeeze(2)
        return {"jump": torch.where(x == SYMBOLS, -log_belief / (1 - time), 0.0)}
    if isinstance(path, GaussianPath):
        s, noise = path.data_std, (x - time * z) / (1 - time)
        unit = s / ((time * s) ** 2 + (1 - time) ** 2).sqrt()
        rate = (noise**2 - 1 - z * noise).clamp(min=0)
        if path.prediction == "belief":
            clean, leaving = believed(bins, raw["belief"], x, time)
            guess, chosen = leaving.sum(2).view(x.shape), index(bins, z).flatten(1)[..., None]
            velocity = (clean.view(x.shape) - x) / (1 - time)
            relative = -(leaving / leaving.sum(2, keepdim=True)).log().gather(2, chosen).squeeze(2)
        else:
            velocity = call(model, x.float(), t, **kwargs).velocity.double()
            if "jump" in path.generators:
                guess, mass = raw["rate"].exp(), landing_masses(bins, z, time)
                relative = (torch.xlogy(mass, mass) - mass * raw["landing"].log_softmax(-1)).sum(2)
        parts = {"flow": ((z - noise - velocity) / unit) ** 2 / 2}
        if "jump" in path.generators:
            parts["jump"] = kl(rate, guess) + rate * relative.view(x.shape)
        return {name: parts[name] for name in path.default_divergence}
    half, away = (path.high - path.low) / 2, (x != z).double()
    parts = {}
    if "flow" in path.generators:
        aim = (x - path.low - 2 * half * (x > z)) * away
        parts["flow"] = (aim / half / (1 - time).sqrt() - raw["flow"]) ** 2 / 2
    if "diffusion" in path.generators:
        aim = ((z - path.low) ** 2 + 4 * half * (x - z).clamp(min=0) - (x - path.low) ** 2) * away
        parts["diffusion"] = kl(aim.clamp(min=0) / half**2, raw["diffusion"].exp() / half**2)
    log_belief = raw["landing"].log_softmax(-1).gather(2, index(bins, z).flatten(1)[..., None]).squeeze(2)
    parts["jump"] = kl(away, raw["rate"].sigmoid()) - away * log_belief.view(x.shape)
    return parts


def index(bins: Bins, z: Tensor) -> Tensor:
    return ((z - bins.low) / (bins.high - bins.low) * bins.number).floor().long().clamp(0, bins.number - 1)


def believed(bins: Bins, raw: Tensor, x: Tensor, time: Tensor, number: int = 4000) -> tuple[Tensor, Tensor]:
    """E z [B, entries], and P(bin) E(λ; bin) [B, entries, bins] in its unit, for z ~ N(c, width²/12) in each bin of
    probability ∝ exp(raw) that is seen as x = tz + (1 − t)ε: by the midpoint rule over the quantiles of z given x."""
    u = torch.special.ndtri((torch.arange(number, dtype=torch.float64) + 0.5) / number)
    width = (bins.high - bins.low) / bins.number
    center, s = bins.low + (torch.arange(bins.number) + 0.5).double() * width, width / math.sqrt(12)
    seen, t = x.flatten(1)[..., None], time.flatten()[:, None, None]
    v = (t * s) ** 2 + (1 - t) ** 2
    law = (raw - (seen - t * center) ** 2 / (2 * v)).softmax(-1)
    mean, spread = center + t * s * s / v * (seen - t * center), s * (1 - t) / v.sqrt()
    z = mean[..., None] + spread[..., None] * u
    w = (seen[..., None] - t[..., None] * z) / (1 - t[..., None])
    return (law * mean).sum(2), law * (w * w - z * w - 1).clamp(min=0).mean(3).clamp(min=1e-6)


def landing_masses(bins: Bins, z: Tensor, time: Tensor, number: int = 2000) -> Tensor:
    """∫ over each bin of [∂_t p]₊ ∝ (1 + zw − w²)₊ φ(w), w = (y − tz)/(1 − t), by the midpoint rule; [B, entries, bins]."""
    u = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    y = bins.low - 10 + (bins.high - bins.low + 20) * u
    flat, t = z.flatten(1)[..., None], time.flatten()[:, None, None]
    w = (y - t * flat) / (1 - t)
    density = (1 + flat * w - w * w).clamp(min=0) * torch.exp(-w * w / 2) / math.sqrt(2 * math.pi)
    masses = torch.zeros(*density.shape[:2], bins.number, dtype=torch.float64)
    masses.index_add_(2, index(bins, y), density)
    return masses / masses.sum(2, keepdim=True)


class Rows:
    """Counts the states that enter the backbone."""

    def __init__(self, model: GMModel) -> None:
        self.sizes: list[int] = []
        model.backbone.register_forward_pre_hook(lambda _, args: self.sizes.append(len(args[0][""])))


def what_is_said(model: GMModel, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
    """All outputs of all heads, [B, numbers]."""
    heads = readout(model, x, t, **kwargs)
    with torch.no_grad():
        return torch.cat([heads(head).reshape(len(x), -1) for head in sorted(model.path.heads)], 1)
