"""A language model of transformers as the backbone: decoders and encoders of text, with attention in both directions.

A language model is a base network, for encoders a transform of its output, and a linear layer, the head. The first two are
the backbone, the last is the model's head of tokens, as with the other backbones. What its architecture does to the logits
after the head (a soft cap, a scale) is `logit_map`.

The head of a decoder was trained to predict the next token. With `config.shift` the belief about position i is therefore
read at position i − 1, as in DiffuLLaMA (arXiv 2410.17891) and Dream (arXiv 2508.15487): `forward` returns the hidden
states moved by one position, so that nothing after it differs from other backbones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING
from transformers.utils.generic import is_flash_attention_requested

from gm_discrete.generators.rows import require
from gm_discrete.nn.backbone import zero_linear
from gm_discrete.nn.blocks import BlockCache, block_attention
from gm_discrete.nn.config import GMConfig
from gm_discrete.nn.embeddings import TimeEmbedding
from gm_discrete.nn.masks import PLAIN, AttentionMask, additive, bidirectional_mask, same_document
from gm_discrete.process import State

WHOLE = 2**30
"""A window of attention that is larger than any sequence."""


class TransformersBackbone(nn.Module):
    """The network of a language model of transformers, with the interface of `Backbone`.

    Attributes:
        network: the base network, as `AutoModel` loads it.
        transform: what the language model does to hidden states before its last linear layer, position by position; `None`
            for decoders.
        ahead: share of the later positions that a position of a decoder attends to: 1 for attention in both directions, 0
            for the causal attention that it was trained with, and between them each pair of positions from a share of its
            own on. It is no part of the model's files.
    """

    def __init__(self, config: GMConfig, network: PreTrainedModel, transform: nn.Module | None) -> None:
        super().__init__()
        self.config = config
        self.take(network, transform)
        if config.block_size and not self.is_decoder:
            raise ValueError(
                f"block_size={config.block_size} needs a backbone with a cache, and {network.config.model_type} is an "
                "encoder; leave it out, or take a decoder"
            )
        self.time = TimeEmbedding(config.hidden_size) if config.time_conditioning else None
        self.classes = nn.Embedding(config.num_classes + 1, config.hidden_size) if config.num_classes else None
        conditioned = config.time_conditioning or config.num_classes
        self.condition = zero_linear(config.hidden_size, config.hidden_size) if conditioned else None
        self.logit_map = logit_map(network.config)
        self.ahead = 1.0

    def take(self, network: PreTrainedModel, transform: nn.Module | None) -> None:
        """Makes these, as `parts` returns them, those of the backbone."""
        self.network, self.transform = network, transform
        self.is_decoder = transform is None and is_causal(network)
        if self.is_decoder:
            attend_both_ways(network)
        embeddings: Any = embeddings_of(network)
        if hasattr(embeddings, "token_dropout"):
            embeddings.token_dropout = False
        layers = getattr(network.config, "layer_types", None) or ()
        self.is_local = not self.is_decoder and "sliding_attention" in layers
        self.first_place, self.places = positions(network)
        self.parameters_of_call = inspect.signature(network.forward).parameters
        # The embedding of these multiplies by the mask, which can then not be one of pairs of positions.
        self.masks_embeddings = "attention_mask" in inspect.signature(embeddings.forward).parameters

    @property
    def embed_tokens(self) -> nn.Module:
        """The embedding of tokens."""
        return self.network.get_input_embeddings()

    @embed_tokens.setter
    def embed_tokens(self, value: nn.Module) -> None:
        self.network.set_input_embeddings(value)

    @property
    def layers(self) -> nn.ModuleList:
        """The layers of the transformer."""
        return max((m for m in self.network.modules() if isinstance(m, nn.ModuleList)), key=_size)

    def forward(
        self,
        x: State,
        time: Tensor | None,
        attention_mask: State | None = None,
        class_labels: Tensor | None = None,
        clean: State | None = None,
        cache: BlockCache | None = None,
        embeds: Tensor | None = None,
        record: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states [B, L, D] of tokens [B, L], from which `finish` and the head predict each position.

        The arguments are those of `Backbone`; `record` gets the embedding, and the hidden states after every layer but the
        last.
        """
        tokens = x[""] if clean is None else torch.cat([x[""], clean[""]], 1)
        documents = None if attention_mask is None else attention_mask[""]
        given: dict[str, Any] = {"input_ids": tokens}
        if embeds is not None or self.condition is not None:
            plain: Tensor = self.embed_tokens(tokens) if embeds is None else embeds
            given = {"inputs_embeds": self._conditioned(plain, time, class_labels)}
        mask, position = self._attention(tokens, documents, clean is not None, cache)
        given |= mask if isinstance(mask, Mapping) else {"attention_mask": mask}
        if "position_ids" in self.parameters_of_call:
            given["position_ids"] = position
        past = None if cache is None else dynamic(cache)
        if past is not None:
            given |= {"past_key_values": past, "use_cache": True}
        output = self.network(**given, output_hidden_states=record is not None, return_dict=True)
        hidden = output.last_hidden_state
        if record is not None:
            record.extend(output.hidden_states[:-1])
        if past is not None:
            entries: list[Any] = past.layers
            cast(BlockCache, cache).latest = {i: [entry.keys, entry.values] for i, entry in enumerate(entries)}
        if not self.config.shift:
            return hidden if clean is None else hidden.chunk(2, 1)[0]
        if clean is not None:
            hidden, after = hidden.chunk(2, 1)
            return self._shifted(hidden, documents, after)
        before = None if cache is None else cache.last
        if cache is not None:
            cache.latest_last = hidden[:, -1:]
        return self._shifted(hidden, documents, None, before)

    def finish(
        self,
        hidden: Tensor,
        time: Tensor | None,
        class_labels: Tensor | None = None,
        sequence: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B, L, D] of all positions, or [n, D] of some; they do not depend on the other arguments."""
        return hidden if self.transform is None else self.transform(hidden)

    def _conditioned(self, embeds: Tensor, time: Tensor | None, class_labels: Tensor | None) -> Tensor:
        """The embeddings plus a vector of the times [B] and of the classes [B] (−1: none), which starts at zero."""
        if self.condition is None:
            return embeds
        condition = torch.zeros((), device=embeds.device) if self.time is None else self.time(time)  # [B, 1, D]
        if self.classes is not None:
            none = torch.full((embeds.shape[0],), -1, device=embeds.device)
            labels = none if class_labels is None else class_labels
            condition = condition + self.classes(torch.where(labels < 0, self.config.num_classes, labels))[:, None]
        return embeds + self.condition(condition).to(embeds.dtype)

    def _attention(
        self, tokens: Tensor, documents: Tensor | None, twice: bool, cache: BlockCache | None
    ) -> tuple[AttentionMask, Tensor]:
        """(the mask of a call, the place of each position within its document, [1 or B, Q])."""
        like = tokens[..., None].to(self.embed_tokens.weight.dtype)  # pyright: ignore[reportArgumentType, reportCallIssue]
        if self.config.block_size is not None:
            mask, _ = block_attention(self.config, like, twice, documents, cache)
        elif documents is None:
            mask = None if self.ahead == 1 else self._partly_causal(tokens, documents, like.dtype)
        elif self.masks_embeddings:
            require(
                (documents <= 1).all(),
                ValueError,
                f"attention_mask has several documents, and {self.network.config.model_type} takes one of 0 and 1 alone",
            )
            mask = documents != 0
        elif self.ahead < 1:
            mask = self._partly_causal(tokens, documents, like.dtype)
        elif self.is_local and not is_flash_attention_requested(self.network.config):
            mask = self._local_masks(like, documents)
        else:
            mask = bidirectional_mask(self.config, like, documents)
        start, repeats = 0 if cache is None else cache.length, 2 if twice else 1
        length = start + tokens.shape[1] // repeats
        if self.places is not None and length > self.places:
            raise ValueError(f"input_ids has {length} positions; {self.network.config.model_type} has {self.places}")
        place = torch.arange(length, device=tokens.device)[None]
        if documents is not None:
            begins = torch.where(documents != _before(documents), place, 0)
            place = place - begins.cummax(1).values
        return mask, place[:, start:].repeat(1, repeats) + self.first_place

    def _local_masks(self, like: Tensor, documents: Tensor) -> Mapping[str, Any]:
        """The masks of an encoder with layers of local attention, by kind of layer."""

        def same(b: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return documents[b, query] == documents[b, key]

        config = self.network.config
        masks = {
            "full_attention": create_bidirectional_mask(config, like, None, and_mask_function=same),
            "sliding_attention": create_bidirectional_sliding_window_mask(config, like, None, and_mask_function=same),
        }
        return {"attention_mask": masks}

    def _partly_causal(self, tokens: Tensor, documents: Tensor | None, dtype: torch.dtype) -> AttentionMask:
        """The mask with which a position attends to those before it and to the share `ahead` of those after it."""
        name, length = self.config._attn_implementation or "sdpa", tokens.shape[1]
        if name not in PLAIN:
            raise ValueError(
                f"attn_implementation={name!r} has no mask for attention to a share {self.ahead} of later positions: load "
                "the model with 'sdpa' or 'eager' to go from causal to bidirectional attention"
            )
        rng = torch.Generator().manual_seed(length)  # the same at every call: a pair that is visible stays so
        share = torch.rand(length, length, generator=rng).tril_(-1).T.to(tokens.device) if self.ahead else None
        visible = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        if share is not None:
            visible = visible | (share < self.ahead)
        visible = visible[None, None]
        if documents is not None:
            visible = visible & same_document(documents, documents)
        return visible if name == "sdpa" else additive(visible, dtype)

    def _shifted(
        self, hidden: Tensor, documents: Tensor | None, clean: Tensor | None, before: Tensor | None = None
    ) -> Tensor:
        """The hidden state of the position before each one; the first of a document has its own.

        Args:
            hidden: [B, L, D], the last L positions of sequences.
            documents: numbers of documents [B, length ≥ L].
            clean: of a model with blocks: the hidden states of the clean sequence, which the first position of a block has.
            before: [B, 1, D], that of the position before the first.
        """
        length = hidden.shape[1]
        moved = torch.cat([hidden[:, :1] if before is None else before, hidden[:, :-1]], 1)
        if clean is not None:
            first = torch.arange(length, device=hidden.device) % cast(int, self.config.block_size) == 0
            first[0] = False
            moved = torch.where(first[:, None], torch.cat([hidden[:, :1], clean[:, :-1]], 1), moved)
        if documents is not None:
            same = (documents == _before(documents))[:, -length:]
            moved = torch.where(same[..., None], moved, hidden)
        return moved


def language_model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of the language model of a config: `…ForMaskedLM` of an encoder, else `…ForCausalLM`.

    Raises:
        ValueError: the config is that of no language model of text that a backbone can be made of.
    """
    name = f"backbone of type {config.model_type!r}"
    if config.is_encoder_decoder:
        raise ValueError(f"{name} has an encoder and a decoder; give a model that is one of them")
    if config.get_text_config() is not config:
        raise ValueError(f"{name} has other inputs than text; give its text_config, or its language model alone")
    for mapping in (MODEL_FOR_MASKED_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
        if type(config) in mapping:
            return cast("type[PreTrainedModel]", mapping[type(config)])
    raise ValueError(f"{name} is no language model: transformers has no …ForCausalLM or …ForMaskedLM of it")


def parts(model: PreTrainedModel) -> tuple[PreTrainedModel, nn.Module | None, nn.Linear]:
    """(base network, transform before the head or `None`, head) of a language model, which is taken apart.

    Raises:
        ValueError: it does not consist of these.
    """
    network, head = model.base_model, model.get_output_embeddings()
    if network is model or not isinstance(head, nn.Linear):
        raise ValueError(f"backbone={type(model).__name__} has no linear layer as head after a base network")
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


def is_causal(network: nn.Module) -> bool:
    """Whether attention is causal by itself, as in decoders."""
    return any(getattr(module, "is_causal", False) is True for module in network.modules())


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
            module.sliding_window = None


def logit_map(config: PreTrainedConfig) -> Callable[[Tensor], Tensor] | None:
    """What the architecture does to the logits after its head; `None` for nothing."""
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        return lambda logits: torch.tanh(logits / cap) * cap
    divisor, factor = getattr(config, "logits_scaling", None), getattr(config, "logit_scale", None)
    if divisor is not None and divisor != 1:
        return lambda logits: logits / divisor
    if factor is not None and factor != 1:
        return lambda logits: logits * factor
    return None


def positions(network: PreTrainedModel) -> tuple[int, int | None]:
    """(number of the first position, how many there are) where positions are embedded; (0, `None`) for rotary ones.

    Tables may begin with the position of padding (RoBERTa).
    """
    table = getattr(embeddings_of(network), "position_embeddings", None)
    if not isinstance(table, nn.Embedding):
        return 0, None
    first = 0 if table.padding_idx is None else table.padding_idx + 1
    return first, table.num_embeddings - first


def dynamic(cache: BlockCache) -> DynamicCache:
    """The cache in the form that networks of transformers take and append to."""
    layers = [cache.layers[index] for index in range(len(cache.layers))]
    return DynamicCache(layers) if layers else DynamicCache()


def _before(documents: Tensor) -> Tensor:
    """The number of the document of the position before each one; 0 before the first."""
    return torch.nn.functional.pad(documents[:, :-1], (1, 0))


def embeddings_of(network: PreTrainedModel) -> nn.Module:
    """The module that embeds the input: of several embeddings, or of the tokens alone."""
    found = getattr(network, "embeddings", None)
    return found if isinstance(found, nn.Module) else network.get_input_embeddings()


def _size(layers: nn.ModuleList) -> int:
    return sum(parameter.numel() for parameter in layers.parameters())
