"""Small networks for the tests of models."""

from typing import Any

import torch
from torch import Tensor

from gm_discrete import GMConfig, GMModel, MaskedPath, MetricPath, MixturePath, UniformPath
from gm_discrete.nn.readout import LazyReadout, readouts

K, LENGTH = 11, 12
MASK, PAD = 10, 0
PATHS = {
    "masked": MaskedPath(K),
    "mask is 3": MaskedPath(K, mask_token_id=3),
    "reversal": UniformPath(K, special_token_ids=(MASK,)),
    "mixture": UniformPath(K, rates="mixture"),
    "prior": MixturePath(K, [0.05] * 5 + [0.125] * 6),
    "metric": MetricPath(K, distance=(torch.arange(K)[:, None] - torch.arange(K)).abs().double()),
}
ONLY_MASKED, NOT_MASKED = ("first_hitting", "entropy_bounded"), ("step_doubling",)


def suits(name: str, method: str) -> bool:
    """Whether a sampler simulates the path of that name."""
    rates = PATHS[name].rates
    if method == "ancestral":
        return rates in ("masked", "reversal")
    return method not in (NOT_MASKED if rates == "masked" else ONLY_MASKED)


def readout(model: GMModel, x: Tensor, t: Tensor, mask: Tensor | None = None, **options: Any) -> LazyReadout:
    """The readout of a model's only field."""
    masks = None if mask is None else {"": mask}
    return readouts(model.network, {"": x}, t, {"": t}, attention_mask=masks, **options)[""]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(name: str = "masked", seed: int = 1, **kwargs: Any) -> GMModel:
    """A network whose every parameter matters: at initialisation the blocks are the identity and t is not seen."""
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": LENGTH}
    if name == "reversal":
        settings["mask_token_id"] = MASK
    model = GMModel(GMConfig(path=PATHS[name], **settings | kwargs))
    noise = rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.25 * torch.randn(parameter.shape, generator=noise) + (parameter.dim() == 1))
    return model.eval()


BLOCK = 4


def causal(**options: Any) -> GMModel:
    """A network of block-causal attention, blocks of four positions."""
    return network("masked", block_size=BLOCK, **options)


def data(name: str = "masked", rows: int = 5, length: int = LENGTH) -> Tensor:
    z = torch.randint(K - 1, (rows, length), generator=rng(3))
    return z + (z >= 3) if name == "mask is 3" else z


def noisy(model: GMModel, z: Tensor, t: float | None = None) -> tuple[Tensor, Tensor]:
    """(x, t): times spread over (0, 1), or all alike."""
    time = (torch.arange(len(z)) + 0.5).double() / len(z) if t is None else torch.full((len(z),), t).double()
    return model.path.sample(z, time, rng(4)), time
