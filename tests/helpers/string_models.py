"""Small networks of strings, whose every parameter matters."""

from __future__ import annotations

from typing import Any

import torch

from gm_discrete import EditPath, GMConfig, GMModel

K, BLANK, LENGTH = 7, 6, 10
PATHS = {
    "empty": EditPath(K),
    "uniform": EditPath(K, prior="uniform", lengths=[1.0, 2.0, 3.0, 2.0, 1.0, 1.0]),
    "blank is 0": EditPath(K, blank_token_id=0),
}


def network(name: str = "uniform", seed: int = 1, **kwargs: Any) -> GMModel:
    """A network with random parameters: at initialisation the blocks are the identity, and t is not seen."""
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": LENGTH}
    model = GMModel(GMConfig(path=PATHS[name], **settings | kwargs))
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.25 * torch.randn(parameter.shape, generator=noise) + (parameter.dim() == 1))
    return model.eval()
