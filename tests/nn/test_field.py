"""Entries ↔ (position, slot): nothing is lost, and each position holds exactly its own entries."""

from itertools import product
from typing import Any

import pytest
import torch

from gm_discrete import GaussianPath, GMConfig, MaskedPath
from gm_discrete.nn.field import Field

NUMBERS, SYMBOLS = "numbers", "symbols"
SHAPES: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "tokens": (SYMBOLS, (7,), {}),
    "scalars": (NUMBERS, (7, 1), {}),
    "vectors": (NUMBERS, (7, 3), {}),
    "grey": (NUMBERS, (1, 4, 4), {"image_shape": [1, 4, 4], "patch_size": 2}),
    "colour": (NUMBERS, (3, 6, 4), {"image_shape": [3, 6, 4], "patch_size": 2}),
    "wide": (NUMBERS, (3, 3, 9), {"image_shape": [3, 3, 9], "patch_size": 3}),
    "whole": (NUMBERS, (2, 4, 4), {"image_shape": [2, 4, 4], "patch_size": 4}),
    "pixels": (NUMBERS, (2, 3, 5), {"image_shape": [2, 3, 5], "patch_size": 1}),
    "symbols of an image": (SYMBOLS, (72,), {"image_shape": [3, 6, 4], "patch_size": 2}),
}
every_shape = pytest.mark.parametrize("name", SHAPES)


def layout(name: str) -> Field:
    kind, shape, options = SHAPES[name]
    channels = (options.get("image_shape") or [shape[-1]])[0 if options else -1]
    path = MaskedPath(80) if kind == SYMBOLS else GaussianPath(num_channels=channels)
    return GMConfig(path=path, hidden_size=8, num_attention_heads=2, **options).state_fields[""]


def states(name: str, rows: int = 2) -> torch.Tensor:
    """All entries different."""
    shape = SHAPES[name][1]
    return torch.arange(rows * torch.Size(shape).numel()).view(rows, *shape)


@every_shape
def test_field__join_undoes_split(name: str) -> None:
    made, x = layout(name), states(name)
    split = made.split(x)
    assert split.shape == (2, x[0].numel() // made.slots, made.slots)
    assert split.flatten(1).sort(1).values.equal(x.flatten(1))  # each entry once, in its own row
    assert torch.equal(made.join(split, x.shape), x)
    assert torch.equal(made.split(made.join(x.view(split.shape), x.shape)), x.view(split.shape))


@every_shape
def test_field__place_is_where_split_puts_an_entry(name: str) -> None:
    made, x = layout(name), states(name, 1)
    split = made.split(x)[0]
    shuffled = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(0))
    position, slot = made.place(shuffled)
    assert torch.equal(split[position, slot], x.flatten()[shuffled])


@pytest.mark.parametrize("name", [name for name, (_, _, options) in SHAPES.items() if options])
def test_field__each_patch_holds_its_pixels(name: str) -> None:
    """Channel c of the pixel (h, w) stands in patch (h // p, w // p), row by row, with all that share the patch."""
    made, options = layout(name), SHAPES[name][2]
    (channels, height, width), size = options["image_shape"], options["patch_size"]
    patches = made.split(states(name, 1))[0].tolist()
    assert len(patches) == height * width // size**2
    for number, patch in enumerate(patches):
        top, left = (size * place for place in divmod(number, width // size))
        pixels = product(range(channels), range(top, top + size), range(left, left + size))
        assert patch == [c * height * width + h * width + w for c, h, w in pixels]


def test_field__without_patches_nothing_moves() -> None:
    """One symbol a position, or one vector a position."""
    tokens, vectors = layout("tokens"), layout("vectors")
    assert torch.equal(tokens.split(states("tokens")), states("tokens")[..., None])
    assert torch.equal(vectors.split(states("vectors")), states("vectors"))
    assert (tokens.slots, vectors.slots) == (1, 3)
