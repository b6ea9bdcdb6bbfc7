"""Small networks for the tests of models."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import GMConfig, GMModel, MaskedPath, MetricPath, MixturePath, UniformPath
from gm_discrete.nn.readout import LazyReadout
from gm_discrete.nn.readouts import readouts

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
DISCRETE = ("tau_leaping", "euler", "trapezoidal", "first_hitting", "uniformization", "adaptive", "entropy_bounded")
"""Samplers of discrete states."""
every_sampler = pytest.mark.parametrize(
    "sampler", [pytest.param(name, marks=pytest.mark.slow) if name == "uniformization" else name for name in DISCRETE]
)
ONLY_MASKED = ("first_hitting", "entropy_bounded")


def suits(name: str, sampler: str) -> bool:
    """Whether a sampler simulates the path of that name."""
    return PATHS[name].rates == "masked" or sampler not in ONLY_MASKED


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


def untrained(path: Any, **kwargs: Any) -> GMModel:
    """Zeros in the head: the posterior of a mask is uniform over the data symbols."""
    settings = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": LENGTH}
    return GMModel(GMConfig(path=path, **settings | kwargs)).eval()


def constant(belief: list[float]) -> GMModel:
    """A masked model with the same posterior of the data symbols at every position."""
    model = untrained(MaskedPath(len(belief) + 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.register_buffer("belief", torch.tensor([*belief, 0.0]).log(), persistent=False)
    model.heads.tokens.register_forward_hook(lambda _, args, output: output + model.belief)
    return model


def frequencies(model: GMModel, **options: Any) -> Tensor:
    """How often each token occurs in 10,000 sampled positions."""
    sample = model.generate(batch_size=200, length=50, num_steps=4, seed=0, **options)
    return torch.bincount(sample.flatten(), minlength=model.config.vocab_size)


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
