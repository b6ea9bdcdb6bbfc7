"""One field of a state: its path, its size, and which of its entries share a position of the transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from gm_discrete.arguments import image, size, weights
from gm_discrete.data.scalers import Categories, Codec
from gm_discrete.objective import bregman
from gm_discrete.paths import ContinuousPath, FinitePath, Path

OPTIONS = ("length", "image_shape", "patch_size", "codec")


@dataclass(frozen=True)
class Field:
    """A field of a state, or the whole state of a model with a single field (named "").

    The transformer works on positions. A token has a position of its own (one slot); the C numbers of a vector share one;
    an image [C, H, W] has a position for each patch, row by row, whose C · patch_size² entries share it.

    Attributes:
        path: the field's path.
        length: positions that the model is trained with, and the default of `generate`; images have one for each patch.
        image_shape: [C, H, W]; `None` for sequences.
        patch_size: side of a patch in pixels.
        codec: maps natural values to states and back (a scaler, or categories); `None` if they are the same.
        name: the field's name.
        excluded: symbols that never are data, such as the mask; by default those of the path.

    Raises:
        ValueError: the attributes do not fit each other; the message names them.
    """

    path: Path
    length: int = 1
    image_shape: tuple[int, ...] | None = None
    patch_size: int = 1
    codec: Codec | None = None
    name: str = ""
    excluded: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        path, shape, where = self.path, self.image_shape, f"fields[{self.name!r}]" if self.name else "the config"
        inside = f"{where}: " if self.name else ""
        object.__setattr__(self, "length", size(f"{inside}length", self.length))
        object.__setattr__(self, "patch_size", size(f"{inside}patch_size", self.patch_size))
        if shape is not None:
            object.__setattr__(self, "image_shape", shape := tuple(image(f"{inside}image_shape", shape)))
        if path.is_discrete:
            excluded = dict.fromkeys((*cast(FinitePath, path).excluded, *self.excluded))
            object.__setattr__(self, "excluded", tuple(excluded))
        if shape is None:
            if self.patch_size != 1:
                raise ValueError(f"patch_size={self.patch_size} needs image_shape=[C, H, W]")
        elif shape[1] % self.patch_size or shape[2] % self.patch_size:
            raise ValueError(f"patch_size={self.patch_size} must divide height and width of image_shape={list(shape)}")
        elif path.strings is not None:
            raise ValueError(f"image_shape={list(shape)} does not fit {path!r}, whose states are strings; leave it out")
        elif path.space.entry_dims:
            raise ValueError(
                f"image_shape={list(shape)} does not fit {path!r}, whose states are [B, L, 4]; leave it out"
            )
        elif not path.is_discrete and self.num_channels != shape[0]:
            raise ValueError(
                f"image_shape={list(shape)} has {shape[0]} channels, the path num_channels={self.num_channels}; "
                "give both the same number"
            )
        else:
            object.__setattr__(self, "length", math.prod(shape[1:]) // self.patch_size**2)
        if isinstance(self.codec, Categories):
            if not path.is_discrete or len(self.codec) != self.vocab_size - len(cast(FinitePath, path).excluded):
                raise ValueError(
                    f"{where} has codec={self.codec!r} of {len(self.codec)} categories; {path!r} must hold as many symbols"
                )
        elif self.codec is not None and path.is_discrete:
            raise ValueError(
                f"{where} has a scaler as codec, but {path!r} is discrete; give Categories, or a Gaussian path"
            )

    @classmethod
    def from_options(cls, name: str, path: Path, options: Mapping[str, Any]) -> Field:
        """The field that the JSON of a config describes.

        Raises:
            ValueError: an option is unknown, or does not fit.
        """
        if unknown := options.keys() - set(OPTIONS):
            raise ValueError(
                f"fields[{name!r}] takes no {', '.join(sorted(unknown))}; its options are {', '.join(OPTIONS)}"
            )
        shape, codec = options.get("image_shape"), options.get("codec")
        return cls(
            path,
            options.get("length", 1),
            shape,
            options.get("patch_size", 1),
            None if codec is None else Codec.of(codec),
            name,
        )

    @property
    def vocab_size(self) -> int:
        """K of a discrete field, 0 of a continuous one."""
        return cast(FinitePath, self.path).vocab_size if self.path.is_discrete else 0

    @cached_property
    def is_token(self) -> bool:
        """Whether an entry is a symbol with a position of its own, so that its embedding is a lookup."""
        return self.vocab_size > 0 and self.slots == 1

    @cached_property
    def num_channels(self) -> int:
        """C of vectors [L, C] and images [C, H, W]; 4 of rotations, 1 of a discrete field."""
        return 1 if self.path.is_discrete else cast(ContinuousPath, self.path).num_channels

    @cached_property
    def num_inputs(self) -> int:
        """Numbers of a position that the network reads: those of its entries, or the 9 of a rotation matrix."""
        return self.slots if self.path.is_discrete or self.image_shape else cast(ContinuousPath, self.path).num_inputs

    @cached_property
    def entry_size(self) -> int:
        """Numbers of the state in one entry: 4 of a rotation, else 1."""
        return self.num_channels if self.path.space.entry_dims else 1

    @cached_property
    def heads(self) -> Mapping[str, int]:
        """What a network predicts for each entry, by name: how many numbers."""
        return self.path.heads

    @cached_property
    def slots(self) -> int:
        """Entries that share a position."""
        if self.image_shape:
            return math.prod((self.image_shape[0], self.patch_size**2))
        return self.num_channels // self.entry_size

    def num_positions(self, x: Tensor) -> int:
        """Positions of the transformer for a state x [B, …]; one more for the start of a string."""
        count = x[0].numel() // (self.slots * self.entry_size)
        return count if self.path.strings is None else count + 1

    def state_shape(self, length: int) -> tuple[int, ...]:
        """Shape of one state of `length` positions; an image has its own."""
        if self.image_shape is None:
            return (length,) if self.path.is_discrete else (length, self.num_channels)
        return (math.prod(self.image_shape),) if self.path.is_discrete else self.image_shape

    # The loss

    def chosen_divergence(self, choice: Any) -> str | dict[str, Any]:
        """The divergence of each part that the field's path is trained with: the chosen one, or the path's default.

        Raises:
            ValueError: the choice does not fit the path.
        """
        default = self.path.default_divergence
        if isinstance(default, str):
            if self.path.strings is not None and choice not in (None, default):
                raise ValueError(f"divergence={choice!r} must be {default!r} for {self.path!r}; leave it out")
            if (choice or default) not in ("generalized_kl", "cross_entropy"):
                raise ValueError(f"divergence={choice!r} must be 'generalized_kl' or 'cross_entropy' for {self.path!r}")
            return choice or default
        if not isinstance(choice, Mapping | None):
            raise ValueError(f"divergence={choice!r} must be a dict by part, such as {dict(default)}")
        if unknown := (choice or {}).keys() - default.keys():
            raise ValueError(
                f"divergence names {', '.join(sorted(unknown))}; the parts of this path are {', '.join(default)}"
            )
        kinds = {**default, **(choice or {})}
        for part, kind in kinds.items():
            bregman.named(kind, part)
        return kinds

    def check_loss_weights(self, given: Mapping[str, Any]) -> None:
        """
        Raises:
            ValueError: a weight is negative, or that of no part of the loss.
        """
        default = self.path.default_divergence
        parts = default.keys() if isinstance(default, Mapping) else ()
        weights("loss_weights", given, parts)

    # Entries and positions

    def split(self, x: Tensor) -> Tensor:
        """A state, or its normalised form [B, …], as the network reads it: [B, positions, num_inputs]."""
        if self.image_shape is None:
            return x.reshape(x.shape[0], -1, self.num_inputs)
        return x.flatten(1)[:, _patches(self.image_shape, self.patch_size, x.device)[0]].view(
            x.shape[0], -1, self.slots
        )

    def join(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """[B, positions, slots] → [B, …] of the given shape, the inverse of `split`."""
        if self.image_shape is None:
            return values.reshape(shape)
        return values.flatten(1)[:, _patches(self.image_shape, self.patch_size, values.device)[1]].view(*shape)

    def place(self, entry: Tensor) -> tuple[Tensor, Tensor]:
        """(position, slot) of entries of a flattened state."""
        if self.image_shape is not None:
            entry = _patches(self.image_shape, self.patch_size, entry.device)[1][entry]
        return entry // self.slots, entry % self.slots


def _patches(image_shape: tuple[int, ...], patch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The entries of an image in the order of the patches, and the place of each entry in that order."""
    made = (
        _made_patches.__wrapped__ if torch.compiler.is_exporting() else _made_patches
    )  # tensors of an export: no values
    return made(image_shape, patch_size, device)


@lru_cache(maxsize=64)
def _made_patches(image_shape: tuple[int, ...], patch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    channels, height, width = image_shape
    grid = torch.arange(channels * height * width, device=device)
    grid = grid.view(channels, height // patch_size, patch_size, width // patch_size, patch_size)
    order = grid.permute(1, 3, 0, 2, 4).flatten()
    return order, order.argsort()
