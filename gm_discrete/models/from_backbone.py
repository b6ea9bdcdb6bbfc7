"""A `GMModel` from a pretrained language model of transformers."""

from __future__ import annotations

import os
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from gm_discrete.data.tokenizers import ensure_mask_token
from gm_discrete.models.pretrained import GMPreTrainedModel
from gm_discrete.nn.config import GMConfig
from gm_discrete.nn.masks import PLAIN
from gm_discrete.nn.tables import PathTables
from gm_discrete.nn.transformers_backbone import embeddings_of, language_model_class, parts
from gm_discrete.paths import MaskedPath, Path, UniformPath
from gm_discrete.renamed import refuse_unknown

M = TypeVar("M", bound=GMPreTrainedModel)

PLACE = ("gguf_file", "revision", "subfolder", "token", "cache_dir", "local_files_only", "force_download", "proxies")
LOADING = (*PLACE, "dtype", "attn_implementation", "device_map", "quantization_config", "max_memory", "offload_folder")
"""Arguments of `from_pretrained`; the first are those of `AutoConfig`, too."""

MARKS = {
    "hf_quantizer",
    "quantization_method",
    "is_quantized",
    "is_loaded_in_4bit",
    "is_loaded_in_8bit",
    "hf_device_map",
}
"""Attributes of a loaded model that say how its weights are kept."""

LENGTH = 1024
"""Default length of training and of `generate`, where the language model has as many positions."""

TOLERANCE = 1e-2
"""The largest difference between its logits and ours, relative to their size: rounding in half precision is below it."""


def from_backbone(
    cls: type[M],
    backbone: str | os.PathLike[str] | PreTrainedModel,
    path: Path | str,
    shift: bool | None,
    tokenizer: PreTrainedTokenizerBase | None,
    options: dict[str, Any],
) -> M:
    """See `GMModel.from_backbone`."""
    known = GMConfig.__dataclass_fields__
    if unknown := {name: value for name, value in options.items() if name not in known and name not in LOADING}:
        refuse_unknown(unknown, "from_backbone", {}, {*known, *LOADING})
    loading = {name: options.pop(name) for name in LOADING if name in options}
    if isinstance(backbone, PreTrainedModel):
        if loading:
            raise ValueError(
                f"{', '.join(loading)}: arguments of loading, and backbone is a model already; leave them out"
            )
        language_model_class(backbone.config)  # or an error
        model = deepcopy(backbone)
    else:
        model = loaded(backbone, loading)
    model.eval()
    disable_token_dropout(model)
    tokens, expected = example(model)
    path = chosen_path(model, path, tokenizer)
    resize(model, path.vocab_size)  # pyright: ignore[reportAttributeAccessIssue]
    options = {"max_position_embeddings": positions_of(model), **special_tokens(model, tokenizer, path), **options}
    config = GMConfig(path=path, backbone=model.config, shift=shift, dtype=model.dtype, **options)
    config._attn_implementation = model.config._attn_implementation
    result = assembled(cls, config, model)
    check_logits(result, tokens, expected)
    return result


def assembled(cls: type[M], config: GMConfig, model: PreTrainedModel) -> M:
    """The model of a config with the modules of a language model, which is taken apart; what it lacks is initialised."""
    with torch.device("meta"):
        result = cls(config)
    network, transform, head = parts(model)
    backbone: Any = result.backbone
    backbone.take(network, transform)
    result.heads["tokens"], result.path_tables = head, PathTables(result.path)
    for part in (backbone.time, backbone.condition, backbone.classes):
        if isinstance(part, nn.Module):
            part.to_empty(device=head.weight.device).apply(result._init_weights).to(model.dtype)
    for name in MARKS & vars(model).keys():
        setattr(result, name, vars(model)[name])
    return result.eval()


def loaded(name: str | os.PathLike[str], loading: dict[str, Any]) -> PreTrainedModel:
    """The pretrained language model of a folder or a name on the hub.

    Raises:
        ValueError: it is no language model of text.
        OSError: there is none.
    """
    place = {key: value for key, value in loading.items() if key in PLACE}
    config = AutoConfig.from_pretrained(name, **place)
    return language_model_class(config).from_pretrained(name, **loading)


def rows_of(model: PreTrainedModel) -> int:
    """The number of symbols in the embedding."""
    weight: Any = model.get_input_embeddings().weight
    return weight.shape[0]


def chosen_path(model: PreTrainedModel, path: Path | str, tokenizer: PreTrainedTokenizerBase | None) -> Path:
    """The path, with a symbol for every row of the embedding and every token of the tokenizer.

    Raises:
        ValueError: there is no such path, or it has too few symbols, or the tokenizer is that of another model.
    """
    rows = rows_of(model)
    masked = path == "masked" or (isinstance(path, Path) and path.is_masked)
    if tokenizer is not None and tokenizer.vocab_size > rows:  # without tokens that were added to it
        raise ValueError(
            f"tokenizer has {tokenizer.vocab_size} tokens, and the embedding of backbone {rows} symbols; give the tokenizer "
            "of that model"
        )
    if tokenizer is not None and masked:
        ensure_mask_token(tokenizer)
    size = max(rows, 0 if tokenizer is None else len(tokenizer))
    if path == "uniform":
        return UniformPath(size, special_token_ids=() if tokenizer is None else tokenizer.all_special_ids)
    if path == "masked":
        mask: Any = getattr(model.config, "mask_token_id", None) if tokenizer is None else tokenizer.mask_token_id
        return MaskedPath(size + (mask is None), mask_token_id=size if mask is None else mask)
    if not isinstance(path, Path):
        raise ValueError(f"path={path!r} must be 'masked', 'uniform' or a path")
    symbols = getattr(path, "vocab_size", 0)
    if symbols < size:
        raise ValueError(
            f"path={path!r} has vocab_size={symbols}; give at least {size}, as language model and tokenizer"
        )
    if tokenizer is not None and path.is_masked and path.mask_token_id != tokenizer.mask_token_id:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(f"path={path!r} has another mask than the tokenizer, mask_token_id={tokenizer.mask_token_id}")
    return path


@torch.no_grad()
def resize(model: PreTrainedModel, vocab_size: int) -> None:
    """Adds rows to embedding and head, which are the mean of the others."""
    rows = rows_of(model)
    if vocab_size == rows:
        return
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        for weight in (layer.weight, getattr(layer, "bias", None)):  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
            if isinstance(weight, Tensor):
                weight[rows:] = weight[:rows].float().mean(0).to(weight.dtype)


@torch.no_grad()
def disable_token_dropout(model: PreTrainedModel) -> None:
    """Turns off that ESM divides embeddings by the share of tokens that are no mask, which is 0 at t = 0.

    At the share of masks that it was trained with the division does nothing, and masks are embedded as zeros, as here.
    """
    network: Any = model.base_model
    embeddings: Any = embeddings_of(network)
    if getattr(embeddings, "token_dropout", False):
        embeddings.token_dropout = False
        embeddings.word_embeddings.weight[embeddings.mask_token_id] = 0


def positions_of(model: PreTrainedModel) -> int:
    """The default length: that of the language model, or at most `LENGTH`."""
    return min(LENGTH, getattr(model.config, "max_position_embeddings", None) or LENGTH)


def special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, path: Path) -> dict[str, int]:
    """Padding, begin and end of text, of the tokenizer or else of the language model's config."""
    found = {}
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        token = getattr(model.config if tokenizer is None else tokenizer, name, None)
        token = token[0] if isinstance(token, list) and token else token
        if isinstance(token, int) and 0 <= token < path.vocab_size:  # pyright: ignore[reportAttributeAccessIssue]
            found[name] = token
    return found


@torch.no_grad()
def example(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """(token ids [1, 4], the language model's own logits of them [1, 4, K]); few, as its attention may be local."""
    rows = rows_of(model)
    tokens = (torch.arange(5, 9) % rows)[None].to(model.device)
    return tokens, model(input_ids=tokens).logits


@torch.no_grad()
def check_logits(model: GMPreTrainedModel, tokens: Tensor, expected: Tensor) -> None:
    """
    Raises:
        ValueError: with its own kind of attention the model does not compute the logits of its language model.
    """
    backbone: Any = model.backbone
    if (model.config._attn_implementation or "sdpa") not in PLAIN:
        return
    size, model.config.block_size = model.config.block_size, None
    backbone.ahead = 0.0 if backbone.is_decoder else 1.0
    try:
        hidden = backbone({"": tokens}, torch.zeros(1, device=tokens.device))
        found = model.heads["tokens"](backbone.finish(hidden, None))
        found = found if backbone.logit_map is None else backbone.logit_map(found)
    finally:
        backbone.ahead, model.config.block_size = 1.0, size
    if model.config.shift:
        found, expected = found[:, 1:], expected[:, :-1]
    difference = (found[..., : expected.shape[-1]] - expected).abs().max()
    if not bool(difference <= TOLERANCE * expected.abs().max().clamp(min=1)):
        raise ValueError(
            f"backbone of type {backbone.network.config.model_type!r} computes its logits in a way that is not known here: "
            f"they differ by {float(difference):.3g}"
        )
