from __future__ import annotations

import pytest
import torch

from gm_discrete import GMConfig, GMModel, SO3Path, conditional_loss, quaternions
from tests.helpers.rotations import ALL

pytestmark = pytest.mark.gpu


def test_rotations__train_and_generate_on_the_device(device: str) -> None:
    torch.manual_seed(0)
    path = SO3Path(ALL, num_components=3)
    model = GMModel(
        GMConfig(path=path, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=2)
    ).to(device)
    noise = torch.Generator(device).manual_seed(0)
    z = path.prior((8, 2, 4), noise, device)
    loss = conditional_loss(model, z, rng=noise)
    loss.backward()
    assert bool(loss.isfinite())
    given = torch.full_like(z, torch.nan)
    given[:, 0] = z[:, 0]
    x = model.generate(given=given, num_steps=4, seed=0)
    assert x.device.type == device
    assert torch.equal(x[:, 0], z[:, 0])
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(8, 2, device=device), rtol=0, atol=1e-5)
    assert bool((quaternions.half_angle(x[:, 1], z[:, 1]) > 0).any())
