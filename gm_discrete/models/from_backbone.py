"""A `GMModel` from a pretrained language model of transformers."""

from __future__ import annotations

import os
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from gm_discrete.data.tokenizers import MASK, ensure_mask_token
from gm_discrete.models.pretrained import GMPreTrainedModel
from gm_discrete.nn.config import GMConfig
from gm_discrete.nn.language_models import embeddings_of, language_model_class, parts, positions
from gm_discrete.nn.masks import PLAIN
from gm_discrete.nn.tables import PathTables
from gm_discrete.paths import EditPath, MaskedPath, Path, UniformPath
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

TOLERANCE, HALF_TOLERANCE = 1e-3, 1e-2
"""Greatest relative differences between logits that should be equal. Rounding is below the first, also that of products in
TF32, and in half precision below the second."""


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
        check_language_model(backbone)
        model = deepcopy(backbone)
    else:
        model = loaded(backbone, loading)
    check_memory(model)
    model.eval()
    disable_token_dropout(model)
    tokens, expected = example(model)
    path = chosen_path(model, path, tokenizer)
    mask = untrained_mask(model, tokenizer, path)
    resize(model, path.vocab_size)  # pyright: ignore[reportAttributeAccessIssue]
    options = {
        "max_position_embeddings": positions_of(model, path),
        **special_tokens(model, tokenizer, path),
        **options,
    }
    config = GMConfig(path=path, backbone=model.config, shift=shift, dtype=model.dtype, **options)
    config._attn_implementation = model.config._attn_implementation
    result = assembled(cls, config, model)
    check_logits(result, tokens, expected)
    if mask is not None:
        weight: Any = result.get_input_embeddings().weight
        weight.data[mask] = weight.data.float().mean(0).to(weight.dtype)
    return result


def assembled(cls: type[M], config: GMConfig, model: PreTrainedModel) -> M:
    """The model of a config with the modules of a language model, which is taken apart; what it lacks is initialised."""
    with torch.device("meta"):
        result = cls(config)
    network, transform, head = parts(model)
    backbone: Any = result.backbone
    backbone.take(network, transform)
    result.heads["tokens"], result.path_tables = head, PathTables(result.path)
    new = (module for name, module in result.heads.items() if name != "tokens")
    for part in (backbone.time, backbone.condition, backbone.classes, *new):
        if isinstance(part, nn.Module):
            part.to_empty(device=head.weight.device).apply(result._init_weights).to(model.dtype)
    for name in MARKS & vars(model).keys():
        setattr(result, name, vars(model)[name])
    return result.eval()


def loaded(name: str | os.PathLike[str], loading: dict[str, Any]) -> PreTrainedModel:
    """The pretrained language model of a folder or a name on the hub.

    Raises:
        TypeError: it is no name.
        ValueError: it is no language model of text.
        OSError: there is none.
    """
    if not isinstance(name, str | os.PathLike):
        raise TypeError(
            f"backbone={name!r:.60} must be a name, a folder or a language model of transformers; of a config alone "
            "GMModel(GMConfig(path=…, backbone=config)) makes random weights"
        )
    place = {key: value for key, value in loading.items() if key in PLACE}
    config = config_of(name, **place)
    return language_model_class(config).from_pretrained(name, **loading)


def config_of(name: str | os.PathLike[str], **place: Any) -> PreTrainedConfig:
    """The config of the model in a folder or of a name on the hub.

    Raises:
        OSError: there is no such folder or name.
        ValueError: there is no model that transformers knows.
    """
    try:
        return AutoConfig.from_pretrained(name, **place)
    except OSError as error:
        raise OSError(
            f"backbone={str(name)!r} is no folder of a model, and cannot be loaded from the hub either; give a folder or a "
            f"name on the hub ({str(error).splitlines()[0]})"
        ) from error
    except ValueError as error:
        if os.path.isfile(os.path.join(name, "adapter_config.json")):
            raise ValueError(
                f"backbone={str(name)!r} holds an adapter without its model; give a model: save the one that "
                "load_adapter(…).merge_and_unload() returns"
            ) from error
        raise ValueError(
            f"backbone={str(name)!r} holds no model that transformers knows ({str(error).splitlines()[0]}); give another"
        ) from error


def check_language_model(model: PreTrainedModel) -> None:
    """
    Raises:
        ValueError: it has no head of tokens, is no language model of text, or has adapters inside.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "backbone has an adapter from add_adapter, which would not be loaded again; merge it with PEFT"
        )
    expected = language_model_class(model.config)
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        raise ValueError(
            f"backbone is a {type(model).__name__}, which has no head of tokens; give a {expected.__name__}"
        )


def check_memory(model: PreTrainedModel) -> None:
    """
    Raises:
        ValueError: embedding or head, which are changed here, are offloaded.
    """
    for name, part in (("embedding", model.get_input_embeddings()), ("head", model.get_output_embeddings())):
        weight: Any = getattr(part, "weight", None)
        if weight is not None and weight.is_meta:
            raise ValueError(
                f"device_map offloads the {name}, which is changed here: keep it in memory, or save the model without "
                "device_map, and load it with GMModel.from_pretrained"
            )


def rows_of(model: PreTrainedModel) -> int:
    """The number of symbols in the embedding."""
    weight: Any = model.get_input_embeddings().weight
    return weight.shape[0]


def chosen_path(model: PreTrainedModel, path: Path | str, tokenizer: PreTrainedTokenizerBase | None) -> Path:
    """The path, with a symbol for every row of the embedding and every token of the tokenizer.

    Raises:
        TypeError: the tokenizer is none.
        ValueError: there is no such path, or it has too few symbols, or the tokenizer is that of another model.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase | None):
        raise TypeError(f"tokenizer={tokenizer!r} must be a tokenizer of transformers, such as load_tokenizer(name)")
    rows = rows_of(model)
    masked = path == "masked" or (isinstance(path, Path) and path.is_masked)
    if tokenizer is not None and tokenizer.vocab_size > rows:  # without tokens that were added to it
        raise ValueError(
            f"tokenizer has {tokenizer.vocab_size} tokens, and the embedding of backbone {rows} symbols; give the "
            "tokenizer of that model"
        )
    if tokenizer is not None and masked:
        ensure_mask_token(tokenizer)
    size = max(rows, 0 if tokenizer is None else len(tokenizer))
    if path == "uniform":
        return UniformPath(size, special_token_ids=() if tokenizer is None else tokenizer.all_special_ids)
    if path == "masked":
        mask: Any = getattr(model.config, "mask_token_id", None) if tokenizer is None else tokenizer.mask_token_id
        return MaskedPath(size + (mask is None), mask_token_id=size if mask is None else mask)
    if path == "edits":
        blank: Any = getattr(model.config if tokenizer is None else tokenizer, "pad_token_id", None)
        new = blank is None or not 0 <= blank < size
        return EditPath(size + new, blank_token_id=size if new else blank)
    if not isinstance(path, Path):
        raise ValueError(f"path={path!r} must be 'masked', 'uniform', 'edits' or a path")
    symbols = getattr(path, "vocab_size", 0)
    if symbols < size:
        raise ValueError(
            f"path={path!r} has vocab_size={symbols}; give at least {size}, as language model and tokenizer"
        )
    if tokenizer is not None and path.is_masked and path.mask_token_id != tokenizer.mask_token_id:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(f"path={path!r} has another mask than the tokenizer, mask_token_id={tokenizer.mask_token_id}")
    return path


def untrained_mask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, path: Path) -> int | None:
    """The mask that `ensure_mask_token` added to the tokenizer of a decoder, if the embedding has a spare row for it."""
    if tokenizer is None or not path.is_masked or type(model.config) in MODEL_FOR_MASKED_LM_MAPPING:
        return None
    mask: Any = tokenizer.mask_token_id
    is_ours = tokenizer.mask_token == MASK and mask >= tokenizer.vocab_size
    return mask if is_ours and mask < rows_of(model) else None


@torch.no_grad()
def resize(model: PreTrainedModel, vocab_size: int) -> None:
    """Adds rows to embedding and head, which are the mean of the others.

    Raises:
        ValueError: transformers cannot resize them.
    """
    rows = rows_of(model)
    if vocab_size == rows:
        return
    try:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    except TypeError as error:
        kind = f"backbone of type {model.config.model_type!r}"
        raise ValueError(f"{kind} cannot get more than {rows} symbols ({error}); give another one") from error
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    for weight in (embedding.weight, head.weight, head.bias):
        if weight is not None:
            weight[rows:] = weight[:rows].float().mean(0).to(weight.dtype)
    for part in model.modules():  # biases beside the head, which transformers may not resize
        own = getattr(part, "bias", None)
        if head in part.children() and isinstance(own, nn.Parameter) and own.shape[0] == rows:
            mean = own.float().mean().to(own.dtype).expand(vocab_size - rows)
            part.bias = nn.Parameter(torch.cat([own, mean]))


@torch.no_grad()
def disable_token_dropout(model: PreTrainedModel) -> None:
    """Turns off that ESM divides embeddings by the share of tokens that are no mask, which is 0 at t = 0.

    At the share of masks that it was trained with the division does nothing, and masks are embedded as zeros, as here.
    """
    network: Any = model.base_model
    embeddings: Any = embeddings_of(network)
    if getattr(embeddings, "token_dropout", False):
        embeddings.token_dropout = False
        if embeddings.mask_token_id is not None:
            embeddings.word_embeddings.weight[embeddings.mask_token_id] = 0


def positions_of(model: PreTrainedModel, path: Path) -> int:
    """The default length: that of the language model, or at most `LENGTH`. The start of a string takes a position, too."""
    network: Any = model.base_model
    most = positions(network)[1] or getattr(model.config, "max_position_embeddings", None) or LENGTH
    most = most if path.strings is None else most - 1
    return min(LENGTH, most) if most > 0 else LENGTH


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
        ValueError: with its own kind of attention the model does not compute the logits of its language model, or it cannot
            attend in both directions, or padding changes its output.
    """
    backbone: Any = model.backbone
    if (model.config._attn_implementation or "sdpa") not in PLAIN:
        return
    size, model.config.block_size = model.config.block_size, None
    time, kind = torch.zeros(1, device=tokens.device), f"backbone of type {backbone.network.config.model_type!r}"
    try:
        other = tokens.clone()
        other[0, -1] = tokens[0, 0]
        both = [backbone({"": part}, time)[0, 0] for part in (tokens, other)]
        padded = [
            (
                backbone({"": tokens}, time, {"": tokens.new_tensor([mask])})[:, part],
                backbone({"": tokens[:, part]}, time),
            )
            for mask, part in (([1, 1, 1, 0], slice(3)), ([0, 1, 1, 1], slice(1, 4)))
        ]
        backbone.ahead = 0.0
        found = model.heads["tokens"](backbone.finish(backbone({"": tokens}, time), None))
        found = found if backbone.logit_map is None else backbone.logit_map(found)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{kind} computes its logits in a way that is not known here: {error}") from error
    finally:
        backbone.ahead, model.config.block_size = 1.0, size
    if model.config.shift:
        found, expected = found[:, 1:], expected[:, :-1]
    found = found[..., : expected.shape[-1]]
    if not close(found, expected):
        difference = float((found - expected).abs().max())
        raise ValueError(f"{kind} computes its logits in a way that is not known here: they differ by {difference:.3g}")
    if not all(close(*pair) for pair in padded):
        raise ValueError(f"{kind} attends to padding, whatever its mask; give another one")
    if torch.equal(*both):
        raise ValueError(f"{kind} does not attend to later positions, whatever its mask; give another one")


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether numbers of one precision are equal but for rounding."""
    tolerance = TOLERANCE if found.dtype == torch.float32 else HALF_TOLERANCE
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1))
