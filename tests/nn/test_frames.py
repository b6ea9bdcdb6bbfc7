"""Attention between frames: turning and moving all of them changes nothing, and nothing leaks between documents."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from gm_discrete import GaussianPath, GMConfig
from gm_discrete.generators import quaternions
from gm_discrete.nn.frames import FrameAttention, Frames, to_global
from gm_discrete.nn.layers import rotary_embedding

B, L, D = 2, 7, 24
CONFIG = GMConfig(path=GaussianPath(), hidden_size=D, num_attention_heads=3, num_hidden_layers=1)


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The module with random parameters also where they start at zero."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    return module


def example(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden states, quaternions, points)."""
    rng = torch.Generator().manual_seed(1)
    hidden = torch.randn(B, L, D, generator=rng, dtype=dtype)
    return hidden, quaternions.uniform((B, L), rng, dtype=dtype), torch.randn(B, L, 3, generator=rng, dtype=dtype)


def attended(
    hidden: Tensor, q: Tensor, x: Tensor, documents: Tensor | None = None, layer: torch.nn.Module | None = None
) -> Tensor:
    layer = randomised(FrameAttention(CONFIG)).to(hidden.dtype) if layer is None else layer
    return layer(hidden, rotary_embedding(hidden, CONFIG), Frames.of(quaternions.to_matrix(q), x, documents))


def test_attention__does_not_change_when_all_frames_are_turned_and_moved() -> None:
    hidden, q, x = example()
    turn = quaternions.uniform((B, 1), torch.Generator().manual_seed(2), dtype=torch.float64)
    moved = quaternions.rotate(turn, x) + torch.tensor([10.0, -20.0, 5.0], dtype=torch.float64)
    before = attended(hidden, q, x)
    torch.testing.assert_close(attended(hidden, quaternions.multiply(turn, q), moved), before, rtol=0, atol=1e-10)
    assert (attended(hidden, quaternions.multiply(turn, q), x) - before).abs().max() > 1e-3  # it does read the frames


def test_attention__is_that_of_algorithm_22() -> None:
    """Written out with the distances of all pairs of points."""
    _, q, x = example()
    layer = randomised(FrameAttention(CONFIG)).double()
    assert isinstance(layer, FrameAttention)
    frames = Frames.of(quaternions.to_matrix(q), x)
    rng = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(B, L, 3, D // 3, generator=rng, dtype=torch.float64) for _ in range(3))
    points = torch.randn(B, L, 3, 12, 3, generator=rng, dtype=torch.float64)
    weight = torch.rand(3, generator=rng, dtype=torch.float64)
    mixed, local = layer._attend(query, key, value, points, weight, frames)
    ask, offer, carry = (
        quaternions.rotate(q[:, :, None, None], points) + x[:, :, None, None]
    ).split([4, 4, 4], -2)  # fmt: skip
    apart = (ask[:, :, None] - offer[:, None]).square().sum((-1, -2))  # [B, L, L, H]
    scores = torch.einsum("bihd,bjhd->bijh", query, key) * (D // 3) ** -0.5 - weight * (2 / 36) ** 0.5 / 2 * apart
    weights = scores.softmax(2)
    torch.testing.assert_close(mixed, torch.einsum("bijh,bjhd->bihd", weights, value))
    carried = torch.einsum("bijh,bjhpc->bihpc", weights, carry) - x[:, :, None, None]
    torch.testing.assert_close(local, quaternions.rotate(quaternions.conjugate(q)[:, :, None, None], carried))


def test_attention__documents_and_padding_do_not_leak() -> None:
    hidden, q, x = example()
    documents = torch.tensor([[1, 1, 1, 2, 2, 0, 0]]).expand(B, L)
    before = attended(hidden, q, x, documents)
    for changed, other in ((slice(3, 5), slice(0, 3)), (slice(0, 3), slice(3, 5)), (slice(5, 7), slice(0, 5))):
        parts = [part.clone() for part in (hidden, q, x)]
        for part in parts:
            part[:, changed] = part[:, changed].flip(-1) * -2
        parts[1] = quaternions.normalized(parts[1])
        after = attended(*parts, documents)  # pyright: ignore[reportArgumentType, reportCallIssue]
        torch.testing.assert_close(after[:, other], before[:, other], rtol=0, atol=1e-12)
    alone = attended(hidden[:, :3], q[:, :3], x[:, :3])
    torch.testing.assert_close(before[:, :3], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_frames__what_is_padded_may_hold_any_numbers(value: float) -> None:
    hidden, q, x = example()
    documents = torch.tensor([[1, 1, 1, 1, 1, 0, 0]]).expand(B, L)
    before = attended(hidden, q, x, documents)
    q[:, 5:], x[:, 5:] = value, value
    torch.testing.assert_close(attended(hidden, q, x, documents), before, rtol=0, atol=0)


def test_attention__has_finite_gradients_where_frames_coincide() -> None:
    hidden, q, x = example(torch.float32)
    x, q = x[:, :1].expand(B, L, 3).clone().requires_grad_(), q[:, :1].expand(B, L, 4).clone().requires_grad_()
    layer = randomised(FrameAttention(CONFIG))
    with torch.no_grad():  # all points at the origin of their frame: their distances are 0
        for parameter in layer.get_submodule("points").parameters():
            parameter.zero_()
    attended(hidden, q, x, layer=layer).square().sum().backward()
    for part in (x.grad, q.grad, *(parameter.grad for parameter in layer.parameters())):
        assert part is not None
        assert bool(part.isfinite().all())


def test_attention__of_bfloat16_computes_the_geometry_in_float32() -> None:
    """Far from the origin, where bfloat16 would round points to 2 of their units."""
    hidden, q, x = example(torch.float32)
    layer = randomised(FrameAttention(CONFIG))
    exact = attended(hidden, q, x, layer=layer)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = attended(hidden, q, x + 500, layer=layer)
    error = (rounded.float() - exact).abs().max() / exact.abs().max()
    assert rounded.dtype == torch.bfloat16
    assert error < 0.05  # a few roundings of 2⁻⁸
    whole = copy.deepcopy(layer).to(torch.bfloat16)
    assert attended(hidden.to(torch.bfloat16), q, x, layer=whole).dtype == torch.bfloat16


def test_to_global__turns_vectors_and_rotations_by_the_frames() -> None:
    _, q, v = example()
    matrix = quaternions.to_matrix(q)
    torch.testing.assert_close(to_global(q, v), (matrix @ v[..., None])[..., 0])
    local = q.flip(1)
    torch.testing.assert_close(quaternions.to_matrix(to_global(q, local)), matrix @ quaternions.to_matrix(local))
