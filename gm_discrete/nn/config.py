"""Configuration of a `GMModel`: its probability path and its transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from gm_discrete.configurable import Configurable
from gm_discrete.data.scalers import Codec
from gm_discrete.nn.checks import check_codec, check_weights, chosen_divergence, image_positions
from gm_discrete.paths import EuclideanPath, FinitePath, MaskedPath, Path, ProductPath

# What transformers itself passes to a config's constructor beside the fields of the class.
_FROM_TRANSFORMERS = {
    "model_type", "name_or_path", "attn_implementation", "experts_implementation", "output_attentions", "torch_dtype",
    "num_labels", "per_layer_config", "tie_last_hidden_states", "_name_or_path", "_commit_hash",
    "_attn_implementation", "_attn_implementation_internal", "_experts_implementation_internal", "output_hidden_states",
    "use_cache",  # the Trainer sets it on every config
}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """One field of a state, or the whole of one that has a single field.

    Attributes:
        path: its own.
        length: positions at which the model is trained, and `generate`'s default.
        image_shape, patch_size: of images.
        codec: what turns natural values into a state, and back: a scaler or categories; `None` where they are the same.
    """

    path: FinitePath | EuclideanPath
    length: int
    image_shape: tuple[int, ...] | None = None
    patch_size: int = 1
    codec: Codec | None = None

    @property
    def vocab_size(self) -> int:
        """K of symbols, 0 of numbers."""
        return self.path.vocab_size if isinstance(self.path, FinitePath) else 0

    @property
    def num_channels(self) -> int:
        """Entries per position of states that are no images: 1 for symbols."""
        return self.path.num_channels if isinstance(self.path, EuclideanPath) else 1

    @property
    def slots(self) -> int:
        """Entries that share a position."""
        return math.prod((self.image_shape[0], self.patch_size**2)) if self.image_shape else self.num_channels

    def state_shape(self, length: int) -> tuple[int, ...]:
        """Shape of one state of the given number of positions."""
        if self.image_shape is None:
            return (length,) if self.vocab_size else (length, self.num_channels)
        return (math.prod(self.image_shape),) if self.vocab_size else self.image_shape


class GMConfig(PreTrainedConfig):
    """Configuration of a generator-matching sequence model.

    Args:
        path: the probability path, a `Path` or the plain dict of its `to_dict()`. It sets `vocab_size`.
        backbone: `"gm"`, or `"dit"`: the network of published MDLM, SEDD and Duo models (see `models/dit.py`), which reads
            one field of symbols.
        hidden_size: D, width of the transformer.
        hidden_act: `"swiglu"` or `"relu2"` (squared ReLU); of a DiT `"gelu_pytorch_tanh"`.
        intermediate_size: width of the MLP; by default 8/3 of `hidden_size` (swiglu; a multiple of 32) or 4 times it.
        conv_kernel_size: an odd number of neighbouring positions that are mixed before attention and MLP; 0 for none.
        num_hidden_layers: number of blocks.
        num_attention_heads: number of heads, each of `hidden_size / num_attention_heads` channels (an even number).
        max_position_embeddings: the length that the model is trained at. Rotary positions know no bound; `generate` takes
            it as its default length.
        rope_theta: base of the rotary frequencies.
        rms_norm_eps: ε of the normalisations.
        attention_dropout, hidden_dropout: dropout probabilities of the attention weights and of the blocks' outputs.
        initializer_range: standard deviation of the embeddings at initialisation; matrices have 1/√fan_in, and those
            that write into the residual stream start at zero.
        tie_word_embeddings: whether the head shares the embedding's weights.
        time_conditioning: adaptive normalisation (adaLN) by t. By default off for masking, whose posterior does not
            depend on t, and on for the rest.
        condition_size: of a DiT: C, width of what its blocks see of the time.
        noise_range: of a DiT: least and greatest total noise σ̄ = −log κ(t) that it is told. κ runs through all of [0, 1],
            and a published network was trained on a part of it: that of the log-linear schedule ends at −log 0.001.
        divergence: the loss, `"generalized_kl"` (the likelihood bound) or `"cross_entropy"`; by default the former for
            mixture paths, and the latter for other paths, whose bound costs O(K²) per position. Of Euclidean paths a name
            in `bregman.DIVERGENCES` for each part that is learned, such as `{"flow": "squared"}`; of products all by field.
        loss_weights: of Euclidean paths: weight of each part in the loss, 1 by default. They are not the weights with which
            the generators are superposed. Of products: by field a weight, or weights of its parts.
        image_shape: [C, H, W] of images; states are then numbers [B, C, H, W], or symbols [B, C·H·W] in that order.
        patch_size: pixels on a side of the patch that makes one position of the transformer.
        fields: of a `ProductPath`, by field, any of `length` (positions at which the model is trained; 1 by default),
            `image_shape`, `patch_size`, and `codec` (see `gm_discrete.scalers`), with which `generate` takes and gives
            natural values.
        aligned: of a `ProductPath`: lists of fields that share their positions, as a note has a pitch and a duration; all
            others have positions of their own, one field after another.
        block_size: S; a position then sees its own block of S and those before it (block diffusion, see `models.blocks`),
            and a block is denoised given the clean ones before it. Of masked paths whose network does not see the time;
            `None` for attention in both directions.
        num_frequencies: F; a number enters as itself and as sines and cosines of F octaves, from half a period per unit on.
        num_classes: classes that the model can be conditioned on; 0 for none.
        class_dropout: probability of training without the class, for classifier-free guidance.
        mask_token_id: symbol that marks what is to be filled and never is data; the path's own for masking.
        pad_token_id, bos_token_id, eos_token_id: as in the tokenizer.
    """

    model_type = "gm_discrete"

    path: dict[str, Any] | Path | None = None
    vocab_size: int = 0  # that of the path
    backbone: str = "gm"
    hidden_size: int = 512
    hidden_act: str = ""  # chosen by backbone
    intermediate_size: int = 0  # 0: chosen by hidden_size
    conv_kernel_size: int = 0
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    max_position_embeddings: int = 1024
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    time_conditioning: bool | None = None
    condition_size: int = 128
    noise_range: tuple[float, float] | list[float] = (0.0, -math.log(1e-3))
    divergence: str | dict[str, Any] | None = None
    loss_weights: dict[str, Any] | None = None
    image_shape: list[int] | None = None
    patch_size: int = 1
    fields: dict[str, dict[str, Any]] | None = None
    aligned: list[list[str]] | None = None
    block_size: int | None = None
    num_frequencies: int = 6
    num_classes: int = 0
    class_dropout: float = 0.1
    mask_token_id: int | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        unknown = kwargs.keys() - _FROM_TRANSFORMERS
        if unknown:
            raise ValueError(f"GMConfig takes no argument {', '.join(sorted(unknown))}")
        path = MaskedPath(self.vocab_size or 2) if self.path is None else self.build_path()
        self.path = path.to_dict()
        self.__dict__["_path"] = path  # with the tables that its dict only has the shapes of
        size = path.vocab_size if isinstance(path, FinitePath) else 0
        if self.vocab_size not in (0, size):
            raise ValueError(f"vocab_size={self.vocab_size} differs from the path's vocab_size={size}")
        self.vocab_size = size
        masked = isinstance(path, MaskedPath)
        if masked and self.mask_token_id not in (None, path.mask_token_id):
            raise ValueError(f"mask_token_id={self.mask_token_id} differs from the path's {path.mask_token_id}")
        self.mask_token_id = path.mask_token_id if masked else self.mask_token_id
        for name in ("mask_token_id", "pad_token_id", "bos_token_id", "eos_token_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < max(size, 1):
                raise ValueError(f"{name}={token} must be an id below vocab_size={self.vocab_size}")
        self.divergence = chosen_divergence(path, self.divergence)
        check_weights(path, self.loss_weights)
        if isinstance(path, ProductPath):
            self._check_fields(path)
        elif self.fields is not None or self.aligned is not None:
            raise ValueError("fields and aligned are of a ProductPath; this path has a single field")
        self._check_images(path)
        if self.hidden_size % self.num_attention_heads or (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be an even multiple of num_attention_heads={self.num_attention_heads}"
            )
        self._check_backbone(path)
        if self.conv_kernel_size and self.conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size={self.conv_kernel_size} must be odd, or 0 for none")
        if not self.intermediate_size:
            gated = self.hidden_act == "swiglu"
            self.intermediate_size = -(-self.hidden_size * 8 // 96) * 32 if gated else 4 * self.hidden_size
        if self.time_conditioning is None:
            self.time_conditioning = not masked
        if self.block_size is not None:
            if self.block_size < 1:
                raise ValueError(f"block_size={self.block_size} must be at least 1, or None")
            plain = self.backbone == "gm" and not self.image_shape and not self.conv_kernel_size
            if not masked or self.time_conditioning or not plain:
                raise ValueError(
                    "block_size is of a MaskedPath of sequences with backbone='gm', time_conditioning=False and "
                    "conv_kernel_size=0: a block tells the later ones of its symbols and those before it alone"
                )
        super().__post_init__(**kwargs)

    def _check_backbone(self, path: Path) -> None:
        if self.backbone not in ("gm", "dit"):
            raise ValueError(f"backbone={self.backbone!r} must be 'gm' or 'dit'")
        known = ("swiglu", "relu2") if self.backbone == "gm" else ("gelu_pytorch_tanh",)
        self.hidden_act = self.hidden_act or known[0]
        if self.hidden_act not in known:
            raise ValueError(f"hidden_act={self.hidden_act!r} must be {' or '.join(map(repr, known))}")
        least, most = self.noise_range = [float(noise) for noise in self.noise_range]
        if not 0 <= least < most < math.inf or self.condition_size < 1:
            raise ValueError(
                f"noise_range={self.noise_range} must be 0 ≤ least < greatest, and condition_size={self.condition_size} ≥ 1"
            )
        if self.backbone == "gm":
            return
        if not isinstance(path, FinitePath):
            raise ValueError(f"backbone='dit' reads one field of symbols; the path is {path!r}: use backbone='gm'")
        for name in ("image_shape", "num_classes", "conv_kernel_size", "tie_word_embeddings"):
            if getattr(self, name):
                raise ValueError(f"backbone='dit' has no {name}; got {getattr(self, name)}: use backbone='gm'")

    def _check_images(self, path: Path) -> None:
        if self.num_classes < 0 or not 0 <= self.class_dropout < 1:
            raise ValueError(
                f"num_classes={self.num_classes} and class_dropout={self.class_dropout} must lie in [0, ∞), [0, 1)"
            )
        if self.image_shape is None:
            if self.patch_size != 1:
                raise ValueError(f"patch_size={self.patch_size} goes with image_shape=[C, H, W]")
            return
        if isinstance(path, ProductPath):
            raise ValueError("image_shape of a product is that of a field: fields={name: {'image_shape': …}}")
        self.image_shape = [int(size) for size in self.image_shape]
        self.max_position_embeddings = image_positions(path, self.image_shape, self.patch_size)

    def _check_fields(self, path: ProductPath) -> None:
        given = {name: dict(options) for name, options in (self.fields or {}).items()}
        if unknown := given.keys() - path.factors.keys():
            raise ValueError(f"fields names {', '.join(sorted(unknown))}; the path has {', '.join(path.factors)}")
        for name, factor in path.factors.items():
            options = given.setdefault(name, {})
            if unknown := options.keys() - {"length", "image_shape", "patch_size", "codec"}:
                raise ValueError(f"fields[{name!r}] takes no {', '.join(sorted(unknown))}")
            if isinstance(options.get("codec"), Configurable):
                options["codec"] = options["codec"].to_dict()
            if options.get("codec") is not None:
                check_codec(Codec.from_dict(options["codec"]), factor, name)
            if options.get("image_shape") is not None:
                options["image_shape"] = [int(size) for size in options["image_shape"]]
                options["length"] = image_positions(factor, options["image_shape"], options.get("patch_size", 1))
            if int(options.setdefault("length", 1)) < 1:
                raise ValueError(f"fields[{name!r}] has length={options['length']}; it must be at least 1")
        self.fields = given
        groups = [list(group) for group in self.aligned or []]
        named = [name for group in groups for name in group]
        if set(named) - path.factors.keys() or len(set(named)) < len(named):
            raise ValueError(f"aligned={groups} must be lists of fields, each in one at most")
        for group in groups:
            if len({given[name]["length"] for name in group}) > 1 or any(
                "image_shape" in given[name] for name in group
            ):
                raise ValueError(f"aligned fields {', '.join(group)} share positions: give all of them one length")
        self.aligned = groups
        self.max_position_embeddings = sum(given[group[0]]["length"] for group in self.groups)

    @property
    def codecs(self) -> dict[str, Codec]:
        """The scalers and categories of a product's fields, where they have one."""
        return {name: field.codec for name, field in self.state_fields.items() if field.codec is not None}

    @property
    def groups(self) -> list[list[str]]:
        """The fields of a product by the positions that they share, in the order of their first ones."""
        names = list(self.build_path().factors)  # pyright: ignore[reportAttributeAccessIssue]
        of = {name: group for group in self.aligned or [] for name in group}
        return [of.get(name, [name]) for name in names if of.get(name, [name])[0] == name]

    @property
    def state_fields(self) -> dict[str, Field]:
        """The fields of a product by name; else the whole state, named ""."""
        path = self.build_path()
        if not isinstance(path, ProductPath):
            shape = None if self.image_shape is None else tuple(self.image_shape)
            return {"": Field(path, self.max_position_embeddings, shape, self.patch_size)}
        found = {}
        for name, factor in path.factors.items():
            options = (self.fields or {})[name]
            shape, codec = options.get("image_shape"), options.get("codec")
            found[name] = Field(
                factor,  # pyright: ignore[reportArgumentType]
                options["length"],
                None if shape is None else tuple(shape),
                options.get("patch_size", 1),
                None if codec is None else Codec.from_dict(codec),
            )
        return found

    @property
    def independent_times(self) -> bool:
        """Whether every field of the state has a time of its own."""
        return bool(getattr(self.build_path(), "independent_times", False))

    def state_shape(self, length: int) -> tuple[int, ...]:
        """Shape of one state of the given number of positions, where it has a single field."""
        return self.state_fields[""].state_shape(length)

    def check_classes(self, labels: Tensor, batch: int) -> None:
        """
        Raises:
            ValueError: the labels are not of shape [batch], or (looked at on the CPU only) not of this model's classes.
        """
        if not self.num_classes:
            raise ValueError("class_labels are given, but the model has no classes: GMConfig(num_classes=…)")
        if labels.shape != (batch,):
            raise ValueError(f"class_labels has shape {tuple(labels.shape)}; expected [B] = [{batch}]")
        if labels.device.type == "cpu" and not -1 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(f"class_labels must lie between −1 (none) and num_classes − 1 = {self.num_classes - 1}")

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if name != "_path"}

    def build_path(self) -> FinitePath | EuclideanPath | ProductPath:
        """The path that `config.path` describes."""
        if "_path" in self.__dict__ and self.__dict__["_path"].to_dict() == self.path:
            return self.__dict__["_path"]
        if not isinstance(self.path, Path | dict):
            raise TypeError(f"path={self.path!r} must be a path, such as MaskedPath(vocab_size), or its dict")
        path = self.path if isinstance(self.path, Path) else Path.from_dict(self.path)
        factors = path.factors.values() if isinstance(path, ProductPath) else (path,)
        if not all(isinstance(factor, FinitePath | EuclideanPath) for factor in factors):
            raise TypeError(f"path={path!r} is a path neither of tokens nor of numbers")
        return path  # pyright: ignore[reportReturnType]
