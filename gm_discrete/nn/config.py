"""Configuration of a `GMModel`: its probability path and its transformer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import field
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig, __version__
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from gm_discrete.arguments import (
    Kind,
    choice,
    count,
    flag,
    image,
    list_of,
    listed,
    mapping,
    optional,
    positive,
    precision,
    probability,
    readable,
    size,
    weight,
    weights,
    whole,
)
from gm_discrete.configurable import Configurable
from gm_discrete.data.scalers import Codec
from gm_discrete.generators.rows import require
from gm_discrete.nn.field import Field
from gm_discrete.nn.frame_fields import check_frames
from gm_discrete.nn.language_models import check_config
from gm_discrete.paths import FinitePath, MaskedPath, Path
from gm_discrete.renamed import nearest

_ALSO_FROM_TRANSFORMERS = ("use_cache", "tie_last_hidden_states", "quantization_config", "auto_map")
"""Keys that transformers passes to every config, or writes to config.json, without declaring them as attributes."""


def _is_from_transformers(key: str) -> bool:
    """Whether transformers itself gives this key to a config: a private one, or one that its base class declares."""
    declared = hasattr(PreTrainedConfig, key) or hasattr(PreTrainedConfig, f"_{key}")
    return key.startswith("_") or declared or key in _ALSO_FROM_TRANSFORMERS


def _field_name(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r} must be the name of a field")
    return value


def _dict(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}={value!r} must be a dict")


_NOT_OF_THE_NETWORK = (
    "dtype", "torch_dtype", "transformers_version", "architectures", "_name_or_path", "auto_map", "id2label", "label2id",
    "problem_type", "return_dict", "output_hidden_states", "output_attentions", "quantization_config", "is_causal",
)  # fmt: skip
"""Keys in the dict of a language model's config that do not describe its network."""

_OF_THE_NETWORK = (
    "hidden_size", "hidden_act", "intermediate_size", "num_hidden_layers", "num_attention_heads", "tie_word_embeddings",
)  # fmt: skip
"""Arguments that are those of a language model, if that is the backbone."""

_OF_OTHER_BACKBONES = (
    "conv_kernel_size", "rope_theta", "rms_norm_eps", "attention_dropout", "hidden_dropout", "condition_size",
    "noise_range", "image_shape", "patch_size", "num_frequencies",
)  # fmt: skip
"""Arguments without effect on a language model as the backbone."""

_INHERITED: dict[str, Kind] = {
    "dtype": precision,
    "return_dict": flag,
    "output_hidden_states": flag,
    "id2label": _dict,
    "label2id": _dict,
}
"""Kinds of arguments that transformers declares and does not check; each may be `None`."""


def network(name: str, value: object) -> str | dict[str, Any]:
    """The name of a backbone, or the dict of a language model's config, with its `model_type`."""
    if isinstance(value, PreTrainedConfig):
        value = value.to_dict()
    if not isinstance(value, Mapping):
        return choice(name, value, ("gm", "dit"))
    kind = value.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"{name} has model_type={kind!r}, which transformers does not know")
    kept = {key: part for key, part in value.items() if key not in _NOT_OF_THE_NETWORK}
    return json.loads(json.dumps(kept))  # as it will be read from a file, where keys are strings


def argument(default: object, kind: Kind, **limits: object) -> Any:
    """A field of the config, whose values are of the kind within these limits; `None` is one if it is the default."""
    kind = partial(kind, **limits)
    return field(default=default, metadata={"kind": partial(optional, kind=kind) if default is None else kind})


class GMConfig(PreTrainedConfig):
    """Configuration of a generator-matching model: its probability path and its transformer.

    Args:
        path: the probability path, a `Path` or the plain dict of its `to_dict()`. It sets `vocab_size`.
        backbone: `"gm"`; `"dit"`, the network of published MDLM, SEDD and Duo models (see `nn/dit.py`); or the config of a
            language model of transformers, or its dict, whose network it then is (see `nn/transformers_backbone.py`). The
            last two are for paths of one discrete field. With a config, sizes are its own, and its `vocab_size` becomes
            that of the path.
        shift: for a language model of transformers: whether the prediction of a position is read at the one before it, as
            decoders are trained; by default so for decoders. Never for an `EditPath`: what is inserted after a position is
            predicted at that position, as the next token is.
        hidden_size: D, width of the transformer.
        hidden_act: `"swiglu"` or `"relu2"` (squared ReLU); for a DiT `"gelu_pytorch_tanh"`.
        intermediate_size: width of the MLP; by default 8/3 of `hidden_size` (swiglu; a multiple of 32) or 4 times it.
        conv_kernel_size: an odd number of neighbouring positions that are mixed before attention and MLP; 0 for none.
        num_hidden_layers: number of blocks.
        num_attention_heads: number of heads, each of `hidden_size / num_attention_heads` channels (an even number).
        max_position_embeddings: length of the training sequences, and the default length of `generate`. Rotary positions
            set no limit.
        rope_theta: base of the rotary frequencies.
        rms_norm_eps: ε of the normalisations.
        attention_dropout, hidden_dropout: dropout probabilities of the attention weights and of the blocks' outputs.
        initializer_range: standard deviation of the embeddings at initialisation; matrices have 1/√fan_in, and those
            that write into the residual stream start at zero.
        tie_word_embeddings: whether the head shares the embedding's weights.
        time_conditioning: adaptive normalisation (adaLN) by t. By default off for masking, whose posterior does not
            depend on t, and on for all other paths.
        condition_size: for a DiT: C, width of the time's embedding.
        noise_range: for a DiT: least and greatest total noise σ̄ = −log κ(t), to which the network's input is clamped. κ runs
            through all of [0, 1], and a published network was trained on a part of it: that of the log-linear schedule ends
            at −log 0.001.
        divergence: the loss, `"generalized_kl"` (the likelihood bound) or `"cross_entropy"`; by default the former for
            mixture paths, and the latter for other discrete paths, whose bound costs O(K²) per position. For continuous
            paths a name in `bregman.DIVERGENCES` for each part that is trained, such as `{"flow": "squared"}`; for products
            a dict by field.
        loss_weights: weight of each part of a continuous path in the loss, 1 by default. They are not the weights with
            which the generators are superposed. For products by field a weight, or weights of its parts.
        image_shape: [C, H, W] of images; states are then [B, C, H, W], or discrete [B, C·H·W] in that order.
        patch_size: side in pixels of the patch that makes one position of the transformer.
        fields: for a `ProductPath`, by field, any of `length` (positions of the training data; 1 by default),
            `image_shape`, `patch_size`, and `codec` (see `data.scalers`), by which `generate` takes and returns natural
            values.
        aligned: for a `ProductPath`: lists of fields that share their positions, as a note has a pitch and a duration; all
            others have positions of their own, one field after another.
        frames: for a `ProductPath` whose fields are all aligned: the names of a field of rotations and of one of points
            [B, L, 3], such as the orientations and Cα atoms of residues, in nanometres and centred. The network then reads
            them in relation to each other alone, and predicts in the coordinates of each frame, so that it is equivariant
            when all frames are turned and moved (see `nn/frames.py`). This attention is always that of SDPA.
        block_size: S; a position attends to its own block of S positions and those before it (block diffusion, see
            `nn/blocks.py`), and a block is denoised conditioned on the clean ones before it. It requires a masked path and
            no time conditioning; `None` for attention in both directions.
        num_frequencies: F; a real number enters as itself and as sines and cosines of F octaves, from half a period per unit
            on.
        num_classes: classes that the model can be conditioned on; 0 for none.
        class_dropout: probability of training without the class, for classifier-free guidance.
        mask_token_id: symbol that marks positions to be filled and never is data; a masked path has its own.
        pad_token_id, bos_token_id, eos_token_id: as in the tokenizer.

    Raises:
        ValueError, TypeError: arguments are unknown or do not fit each other; the message names them.

    >>> config = GMConfig(path=MaskedPath(vocab_size=28), hidden_size=64, num_attention_heads=4)
    >>> config.vocab_size, config.mask_token_id, config.divergence
    (28, 27, 'generalized_kl')
    >>> GMConfig.from_dict(config.to_dict()).build_path() == config.build_path()
    True
    """

    model_type = "gm_discrete"

    path: dict[str, Any] | Path | None = None
    vocab_size: int = argument(0, count)  # that of the path
    backbone: str | dict[str, Any] | PreTrainedConfig = argument("gm", network)
    shift: bool | None = argument(None, flag)
    hidden_size: int = argument(512, whole, least=1)
    hidden_act: str = ""  # chosen by backbone
    intermediate_size: int = argument(0, whole, least=0)  # 0: chosen by hidden_size
    conv_kernel_size: int = argument(0, whole, least=0)
    num_hidden_layers: int = argument(8, whole, least=1)
    num_attention_heads: int = argument(8, whole, least=1)
    max_position_embeddings: int = argument(1024, size)
    rope_theta: float = argument(10000.0, positive)
    rms_norm_eps: float = argument(1e-6, positive)
    attention_dropout: float = argument(0.0, probability)
    hidden_dropout: float = argument(0.0, probability)
    initializer_range: float = argument(0.02, weight)
    tie_word_embeddings: bool = argument(False, flag)
    time_conditioning: bool | None = argument(None, flag)
    condition_size: int = argument(128, whole, least=1)
    noise_range: tuple[float, float] | list[float] = argument((0.0, -math.log(1e-3)), list_of, of=weight, length=2)
    divergence: str | dict[str, Any] | None = None
    loss_weights: dict[str, Any] | None = argument(None, mapping)
    image_shape: list[int] | None = argument(None, image)
    patch_size: int = argument(1, size)
    fields: dict[str, dict[str, Any]] | None = argument(None, mapping)
    aligned: list[list[str]] | None = argument(None, list_of, of=listed)
    frames: tuple[str, str] | list[str] | None = argument(None, list_of, of=_field_name, length=2)
    block_size: int | None = argument(None, size)
    num_frequencies: int = argument(6, whole, least=0)
    num_classes: int = argument(0, whole, least=0)
    class_dropout: float = argument(0.1, probability)
    mask_token_id: int | None = argument(None, count)
    pad_token_id: int | None = argument(None, count)
    bos_token_id: int | None = argument(None, count)
    eos_token_id: int | None = argument(None, count)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an argument or any other attribute; of arguments the type and range are checked."""
        value = value.item() if isinstance(value, np.generic) else value
        declared = type(self).__dataclass_fields__.get(name)
        if declared is not None and "kind" in declared.metadata:
            value = declared.metadata["kind"](name, value)
        elif name in _INHERITED:
            optional(name, value, _INHERITED[name])
        super().__setattr__(name, value)

    def __post_init__(self, **kwargs: Any) -> None:
        # What `to_dict` wrote holds a version, and may hold more than arguments: all that users have set on the config.
        if self.transformers_version is None:
            for key in kwargs:
                if not _is_from_transformers(key):
                    raise ValueError(f"GMConfig takes no argument {key}{nearest(key, self.__dataclass_fields__)}")
        self._derive()
        super().__post_init__(**kwargs)

    def _derive(self) -> None:
        """Checks the arguments together, and sets what follows from them."""
        if not isinstance(self.path, Path | dict | None):
            raise TypeError(f"path={self.path!r} must be a path, such as MaskedPath(vocab_size), or its dict")
        path = MaskedPath(self.vocab_size or 2) if self.path is None else self.path
        path = path if isinstance(path, Path) else Path.from_dict(path)
        self.path = path.to_dict()
        self._check_tokens(path)
        fields = self._checked_fields(path)
        # Not a dataclass field, and not in `to_dict`: derived from the arguments once, and used wherever a path is needed.
        self.__dict__["_built"] = (self.path, path, fields, self._checked_groups(fields))
        if self.frames is not None:
            check_frames(self.frames, fields, self.groups)
        self.max_position_embeddings = sum(fields[group[0]].length for group in self.groups)
        self._check_loss(fields)
        self._check_network(fields)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The config that `to_dict` or config.json describes; keys that are no arguments are kept as attributes.

        Raises:
            ValueError: it is the config of another library's model.
        """
        if (kind := config_dict.get("model_type", cls.model_type)) != cls.model_type:
            raise ValueError(
                f"a config with model_type={kind!r} is not of a GMModel; make one with GMModel.from_backbone"
            )
        return super().from_dict({"transformers_version": __version__, **config_dict}, **kwargs)

    def _check_tokens(self, path: Path) -> None:
        symbols = cast(FinitePath, path).vocab_size if "" in path.fields and path.is_discrete else 0
        mask = cast(MaskedPath, path).mask_token_id if path.is_masked else None
        if self.vocab_size not in (0, symbols):
            raise ValueError(f"vocab_size={self.vocab_size} differs from the path's vocab_size={symbols}; leave it out")
        if mask is not None and self.mask_token_id not in (None, mask):
            raise ValueError(f"mask_token_id={self.mask_token_id} differs from the path's {mask}; leave it out")
        self.vocab_size, self.mask_token_id = symbols, self.mask_token_id if mask is None else mask
        for name in ("mask_token_id", "pad_token_id", "bos_token_id", "eos_token_id"):
            token = getattr(self, name)
            if token is not None and token >= max(symbols, 1):
                raise ValueError(f"{name}={token} must be an id below vocab_size={self.vocab_size}")

    def _checked_fields(self, path: Path) -> dict[str, Field]:
        """The fields of the path, by name; writes `fields` and `image_shape` back as JSON values."""
        if "" in path.fields:
            if self.fields is not None or self.aligned is not None:
                raise ValueError(
                    "fields and aligned describe a ProductPath, and this path has a single field; leave them out"
                )
            shape = None if self.image_shape is None else tuple(self.image_shape)
            self.image_shape = None if shape is None else list(shape)
            masks = () if self.mask_token_id is None else (self.mask_token_id,)
            length = self.max_position_embeddings
            return {"": Field(path, length, shape, self.patch_size, excluded=masks)}
        if self.image_shape is not None:
            raise ValueError(
                f"image_shape={self.image_shape} of a product belongs to a field: fields={{name: {{'image_shape': …}}}}"
            )
        for name, options in (self.fields or {}).items():
            mapping(f"fields[{name!r}]", options)
        given = {name: dict(options) for name, options in (self.fields or {}).items()}
        if unknown := given.keys() - path.fields.keys():
            raise ValueError(f"fields names {', '.join(sorted(unknown))}; the path has {', '.join(path.fields)}")
        fields = {name: Field.from_options(name, part, given.get(name, {})) for name, part in path.fields.items()}
        self.fields = {name: {**given.get(name, {}), "length": field.length} for name, field in fields.items()}
        for options in self.fields.values():
            if isinstance(options.get("codec"), Configurable):
                options["codec"] = options["codec"].to_dict()
            if options.get("image_shape") is not None:
                options["image_shape"] = list(options["image_shape"])
        return fields

    def _checked_groups(self, fields: Mapping[str, Field]) -> list[list[str]]:
        """The names of fields that share positions, in the order of their first ones; of all others each by itself."""
        aligned = [list(group) for group in self.aligned or []]
        named = [name for group in aligned for name in group]
        if {*map(str, named)} - fields.keys() or len({*map(str, named)}) < len(named):
            raise ValueError(f"aligned={aligned} must be lists of fields, each in one at most")
        for group in aligned:
            if len({fields[name].length for name in group}) > 1 or any(fields[name].image_shape for name in group):
                raise ValueError(
                    f"aligned={aligned}: fields {', '.join(group)} share positions; give all of them one length"
                )
        self.aligned = aligned if self.fields is not None else None
        by_name = {name: group for group in aligned for name in group}
        return [by_name.get(name, [name]) for name in fields if by_name.get(name, [name])[0] == name]

    def _check_loss(self, fields: Mapping[str, Field]) -> None:
        given, choice = self.loss_weights or {}, self.divergence
        if "" in fields:
            self.divergence = fields[""].chosen_divergence(choice)
            fields[""].check_loss_weights(given)
            return
        if not isinstance(choice, Mapping | None) or set(choice or ()) - fields.keys():
            raise ValueError(f"divergence={choice!r} must be a dict by field, of {', '.join(fields)}")
        self.divergence = {name: field.chosen_divergence((choice or {}).get(name)) for name, field in fields.items()}
        plain = {name: part for name, part in given.items() if not isinstance(part, Mapping) or name not in fields}
        weights("loss_weights", plain, fields)
        for name in given.keys() - plain.keys():
            fields[name].check_loss_weights(given[name])

    def _check_network(self, fields: Mapping[str, Field]) -> None:
        masked = "" in fields and fields[""].path.is_masked
        if self.backbone != "gm":
            self._check_tokens_alone(fields)
        if isinstance(self.backbone, dict):
            self._take_sizes(self.backbone)
        else:
            self._check_sizes()
        least, most = self.noise_range = [float(noise) for noise in self.noise_range]
        if least >= most:
            raise ValueError(f"noise_range={self.noise_range} must be 0 ≤ least < greatest")
        if self.time_conditioning is None:
            self.time_conditioning = not masked
        if self.block_size is not None:
            plain = self.backbone != "dit" and not self.image_shape and not self.conv_kernel_size
            if not masked or self.time_conditioning or not plain:
                raise ValueError(
                    f"block_size={self.block_size} requires a MaskedPath, another backbone than 'dit', "
                    "time_conditioning=False, conv_kernel_size=0 and no image_shape"
                )

    def _check_tokens_alone(self, fields: Mapping[str, Field]) -> None:
        name = self.backbone["model_type"] if isinstance(self.backbone, dict) else self.backbone
        if not ("" in fields and fields[""].path.is_discrete):
            raise ValueError(f"backbone={name!r} takes a path of one discrete field: use backbone='gm'")
        if self.backbone == "dit":
            for option in ("image_shape", "num_classes", "conv_kernel_size", "tie_word_embeddings"):
                if getattr(self, option):
                    raise ValueError(f"backbone='dit' has no {option}; got {getattr(self, option)}: use backbone='gm'")

    def _check_sizes(self) -> None:
        known = ("swiglu", "relu2") if self.backbone == "gm" else ("gelu_pytorch_tanh",)
        self.hidden_act = self.hidden_act or known[0]
        if self.hidden_act not in known:
            raise ValueError(f"hidden_act={self.hidden_act!r} must be {' or '.join(map(repr, known))}")
        if self.hidden_size % self.num_attention_heads or (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be an even multiple of num_attention_heads={self.num_attention_heads}"
            )
        if self.conv_kernel_size and self.conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size={self.conv_kernel_size} must be odd, or 0 for none")
        if self.shift:
            raise ValueError(
                f"shift=True belongs to language models of transformers; leave it out with {self.backbone!r}"
            )
        if not self.intermediate_size:
            gated = self.hidden_act == "swiglu"
            self.intermediate_size = -(-self.hidden_size * 8 // 96) * 32 if gated else 4 * self.hidden_size

    def _take_sizes(self, network: dict[str, Any]) -> None:
        """Sizes and options that are those of the language model's config.

        Raises:
            ValueError: others are given, or some that it has not.
        """
        self.backbone = {**network, "vocab_size": self.vocab_size}
        padding = network.get("pad_token_id")
        if isinstance(padding, int) and not -self.vocab_size <= padding < self.vocab_size:
            raise ValueError(
                f"backbone has pad_token_id={padding}, and the path has vocab_size={self.vocab_size}; set it to None there"
            )
        found, name, defaults = self.network_config(), network["model_type"], type(self).__dataclass_fields__
        check_config(found)
        for option in _OF_THE_NETWORK:
            own, value = getattr(self, option), getattr(found, option, None)
            value = bool(value) if option == "tie_word_embeddings" else value
            if own not in (defaults[option].default, value):
                raise ValueError(
                    f"{option}={own!r} differs from {value!r} in the config of the backbone, {name!r}; change it there, "
                    "and leave it out here"
                )
            if isinstance(value, int | str):
                setattr(self, option, value)
        for option in _OF_OTHER_BACKBONES:
            own, default = getattr(self, option), defaults[option].default
            if own != (list(default) if isinstance(default, tuple) else default):
                raise ValueError(
                    f"{option}={own!r} has no effect on a backbone of type {name!r}; leave it out, or change the "
                    "backbone's own config"
                )
        if self.build_path().strings is not None:
            if self.shift:
                raise ValueError(
                    "shift=True does not fit an EditPath, whose gaps come after their positions as the next token does; "
                    "leave it out"
                )
            self.shift = False
        elif self.shift is None:
            self.shift = type(found) not in MODEL_FOR_MASKED_LM_MAPPING

    def network_config(self) -> PreTrainedConfig:
        """The config of the language model whose network the backbone is, made anew.

        Raises:
            ValueError: an argument of it is unknown or out of range.
        """
        assert isinstance(self.backbone, dict)
        kind = CONFIG_MAPPING[self.backbone["model_type"]]
        try:
            return kind.from_dict(self.backbone)
        except (TypeError, ValueError, AttributeError, StrictDataclassError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"backbone={self.backbone} is no config of {self.backbone['model_type']}: {reason}"
            ) from error

    # What follows from the arguments

    def build_path(self) -> Path:
        """The probability path; built from its dict once."""
        return self._built[1]

    @property
    def state_fields(self) -> dict[str, Field]:
        """The fields of a state, by name; a state with a single field has `{"": field}`."""
        return self._built[2]

    @property
    def groups(self) -> list[list[str]]:
        """The names of the fields that share positions, in the order in which the transformer takes them."""
        return self._built[3]

    @property
    def _built(self) -> tuple[Any, Path, dict[str, Field], list[list[str]]]:
        if self.__dict__["_built"][0] is not self.path:  # somebody has set another path
            self._derive()
        return self.__dict__["_built"]

    def to_dict(self) -> dict[str, Any]:
        """All arguments as JSON values."""
        built = self.__dict__.pop("_built", None)
        try:
            return super().to_dict()
        finally:
            if built is not None:
                self.__dict__["_built"] = built

    @property
    def codecs(self) -> dict[str, Codec]:
        """The scalers and categories of the fields that have one."""
        return {name: field.codec for name, field in self.state_fields.items() if field.codec is not None}

    @property
    def independent_times(self) -> bool:
        """Whether every field of the state has a time of its own."""
        return bool(getattr(self.build_path(), "independent_times", False))

    def state_shape(self, length: int) -> tuple[int, ...]:
        """Shape of one state of `length` positions, for a model with a single field."""
        return self.state_fields[""].state_shape(length)

    def check_classes(self, labels: Tensor, batch: int) -> None:
        """
        Raises:
            ValueError: the labels are not integers of shape [batch], or not among the model's classes.
        """
        if not self.num_classes:
            raise ValueError("class_labels are given, but the model has no classes: GMConfig(num_classes=…)")
        if labels.shape != (batch,):
            raise ValueError(f"class_labels has shape {tuple(labels.shape)}; expected [B] = [{batch}]")
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError(f"class_labels must be integers, got {labels.dtype}")
        if torch.compiler.is_compiling():
            return
        inside = ((labels >= -1) & (labels < self.num_classes)).all()
        if not readable(labels):
            require(inside, ValueError, "class_labels out of range")
        elif not bool(inside):
            raise ValueError(
                f"class_labels must lie between −1 (none) and num_classes − 1 = {self.num_classes - 1}, got "
                f"{labels[:8].tolist()}"
            )
