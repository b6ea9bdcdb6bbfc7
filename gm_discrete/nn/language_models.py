"""Language models of transformers, taken apart: base network, transform, head, and what follows the head."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

MAPPINGS = MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
"""From configs to language models. Encoders that can be decoders are in both, and are taken for encoders."""

ATTENTION = {"full_attention", "sliding_attention"}
"""Kinds of layers that can attend to all positions."""

WHOLE = 2**30
"""A window of attention that is larger than any sequence."""


def check_config(config: PreTrainedConfig) -> None:
    """
    Raises:
        ValueError: the config is that of no language model of text that a backbone can be made of.
    """
    name = f"backbone of type {config.model_type!r}"
    if config.model_type == "gm_discrete":
        raise ValueError(f"{name} is a GMModel already: load it with GMModel.from_pretrained")
    if config.is_encoder_decoder:
        raise ValueError(f"{name} has an encoder and a decoder; give a model that is one of them")
    if config.get_text_config() is not config:
        raise ValueError(f"{name} has other inputs than text; give its text_config, or its language model alone")
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and getattr(config, "is_decoder", False):
        raise ValueError(f"{name} is an encoder with is_decoder=True; set it to False")
    if not any(type(config) in mapping for mapping in MAPPINGS):
        raise ValueError(f"{name} is no language model: transformers has no …ForCausalLM or …ForMaskedLM of it")


def language_model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of the language model of a config: `…ForMaskedLM` of an encoder, else `…ForCausalLM`.

    Raises:
        ValueError: there is none.
    """
    check_config(config)
    return next(cast("type[PreTrainedModel]", mapping[type(config)]) for mapping in MAPPINGS if type(config) in mapping)


def parts(model: PreTrainedModel) -> tuple[PreTrainedModel, nn.Module | None, nn.Linear]:
    """(base network, transform before the head or `None`, head) of a language model, which is taken apart.

    Raises:
        ValueError: it does not consist of these.
    """
    network, head = model.base_model, model.get_output_embeddings()
    if network is model or not isinstance(head, nn.Linear):
        raise ValueError(
            f"backbone={type(model).__name__} has no linear layer as head after a base network; give a …ForCausalLM or "
            "…ForMaskedLM that has"
        )
    bias = head.bias
    others = [child for child in model.children() if child not in (network, head)]
    for child in others:
        modules: list[Any] = list(child.modules())
        for part in modules:
            for name, inner in list(part.named_children()):
                if inner is head:
                    setattr(part, name, nn.Identity())
                    own = getattr(part, "bias", None)  # of the logits, kept beside the layer or shared with it
                    if isinstance(own, nn.Parameter):
                        del part.bias
                        part.bias = 0.0
                        bias = own if bias is None else bias
    if bias is not head.bias:
        head.bias = bias
    return cast(PreTrainedModel, network), nn.Sequential(*others) if others else None, head


def is_causal(network: PreTrainedModel) -> bool:
    """Whether attention is causal by itself, as in decoders.

    Raises:
        ValueError: the network has no attention of which this can be said, or layers of other kinds, such as recurrent ones.
    """
    name, modules = f"backbone of type {network.config.model_type!r}", cast("list[Any]", list(network.modules()))
    found = [module.is_causal for module in modules if hasattr(module, "is_causal")]
    if not found:
        raise ValueError(f"{name} has no attention that could go in both directions; give another one")
    others = {*(getattr(network.config, "layer_types", None) or ())} - ATTENTION
    if others or network._is_stateful:
        kinds = ", ".join(sorted(others)) or "recurrent ones"
        raise ValueError(
            f"{name} has layers that cannot attend in both directions to all positions, {kinds}; give another one"
        )
    return any(one is True for one in found)


def check_arguments(network: PreTrainedModel, names: Collection[str]) -> None:
    """
    Args:
        names: the arguments of the network.

    Raises:
        ValueError: it lacks one that a backbone needs.
    """
    for name in ("inputs_embeds", "attention_mask"):
        if name not in names:
            raise ValueError(f"backbone of type {network.config.model_type!r} takes no {name}; give another one")


def attend_both_ways(network: PreTrainedModel) -> None:
    """Lets every position of a decoder attend to all others, at any distance."""
    network.config.is_causal = False
    network.config.use_cache = False
    if getattr(network.config, "sliding_window", None) is not None:
        network.config.sliding_window = WHOLE
    modules: list[Any] = list(network.modules())
    for module in modules:
        if hasattr(module, "is_causal"):
            module.is_causal = False
        if isinstance(getattr(module, "sliding_window", None), int):
            module.sliding_window = WHOLE  # not `None`, by which layers that rotate positions are told from others


def logit_map(config: PreTrainedConfig) -> Callable[[Tensor], Tensor] | None:
    """The function that the architecture applies to the logits after its head, such as a soft cap; `None` without one."""
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        return partial(_capped, cap=cap)
    divisor, factor = getattr(config, "logits_scaling", None), getattr(config, "logit_scale", None)
    if divisor not in (None, 1):
        return partial(torch.div, other=divisor)
    if factor not in (None, 1):
        return partial(torch.mul, other=factor)
    return None


def _capped(logits: Tensor, cap: float) -> Tensor:
    return torch.tanh(logits / cap) * cap


def positions(network: PreTrainedModel) -> tuple[int, int | None]:
    """(number of the first position, how many there are) where positions are embedded; (0, `None`) for rotary ones.

    Tables may begin with the position of padding (RoBERTa).
    """
    table = getattr(embeddings_of(network), "position_embeddings", getattr(network, "wpe", None))
    if not isinstance(table, nn.Embedding):
        return 0, None
    first = 0 if table.padding_idx is None else table.padding_idx + 1
    return first, table.num_embeddings - first


def embeddings_of(network: PreTrainedModel) -> Any:
    """The module that embeds the input: of several embeddings, or of the tokens alone."""
    found = getattr(network, "embeddings", None)
    return found if isinstance(found, nn.Module) else network.get_input_embeddings()
