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
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.utils.generic import is_flash_attention_requested

from gm_discrete.generators.rows import require
from gm_discrete.nn.blocks import BlockCache, block_attention, window_attention
from gm_discrete.nn.config import GMConfig
from gm_discrete.nn.embeddings import TimeEmbedding
from gm_discrete.nn.language_models import (
    attend_both_ways,
    check_arguments,
    embeddings_of,
    is_causal,
    logit_map,
    positions,
)
from gm_discrete.nn.layers import zero_linear
from gm_discrete.nn.masks import PLAIN, bidirectional_mask, local_masks, partly_causal_mask, variable_lengths
from gm_discrete.process import State

OF_CLASS = (
    "_no_split_modules", "_skip_keys_device_placement", "_keep_in_fp32_modules", "_keep_in_fp32_modules_strict",
    "_keys_to_ignore_on_load_unexpected",
)  # fmt: skip
"""Attributes of the class of a network that describe its parts. A model collects them from its modules."""


class TransformersBackbone(nn.Module):
    """The network of a language model of transformers, with the interface of `Backbone`.

    Attributes:
        network: the base network, as `AutoModel` loads it.
        transform: what the language model does to hidden states before its last linear layer, position by position; `None`
            for decoders.
        ahead: share of the later positions that a position of a decoder attends to: 1 for attention in both directions, 0
            for the causal attention that it was pretrained with. Each share between them has pairs of positions of its own.
            It is no part of the model's files.
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
        for name in OF_CLASS:
            setattr(self, name, getattr(network, name))
        arguments = inspect.signature(network.forward).parameters
        check_arguments(network, arguments)
        self.is_decoder = transform is None and is_causal(network)
        if self.is_decoder:
            attend_both_ways(network)
        layers = getattr(network.config, "layer_types", None) or ()
        self.is_local = not self.is_decoder and "sliding_attention" in layers
        self.first_place, self.places = positions(network)
        self.takes_places = "position_ids" in arguments
        network._modules.pop("contact_head", None)  # of ESM, and no part of its language model
        tokens: Any = self.embed_tokens
        tokens.padding_idx = None  # by which the row would have no gradient, also where padding is the end of a text
        embeddings: Any = embeddings_of(network)
        if hasattr(embeddings, "token_dropout"):
            embeddings.token_dropout = False
        # Such a network (ESM) takes given embeddings for the output of this module, and multiplies by the mask in it.
        self.embeds_first = "attention_mask" in inspect.signature(embeddings.forward).parameters

    @property
    def can_anneal(self) -> bool:
        """Whether attention can go from causal to bidirectional by `ahead`."""
        return self.is_decoder and self.config.block_size is None

    @property
    def no_window(self) -> str | None:
        """Why the positions around a block cannot be cached; `None` if they can."""
        kind = self.network.config.model_type
        return None if self.is_decoder else f"{kind} is an encoder, which keeps no keys and values"

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
        place = self._places(tokens, documents, clean is not None, cache)
        given: dict[str, Any] = {"position_ids": place} if self.takes_places else {}
        if embeds is None and self.condition is None and not self.embeds_first:
            given["input_ids"] = tokens
        else:
            plain: Tensor = self.embed_tokens(tokens) if embeds is None else embeds
            embeds = self._conditioned(plain, time, class_labels)
            if self.embeds_first:
                embeds = embeddings_of(self.network)(inputs_embeds=embeds, position_ids=place)
            given["inputs_embeds"] = embeds
        given |= self._attention(tokens, documents, clean is not None, cache)
        past = None if cache is None else dynamic(cache)
        if past is not None:
            given |= {"past_key_values": past, "use_cache": True}
        output = self.network(**given, output_hidden_states=record is not None, return_dict=True)
        hidden = output.last_hidden_state
        if record is not None:
            record.extend(output.hidden_states[:-1])
        if past is not None and cache is not None:
            entries: list[Any] = past.layers
            cache.latest = {index: [entry.keys, entry.values] for index, entry in enumerate(entries)}
            cache.latest_last = hidden[:, -1:] if self.config.shift else None
        if clean is not None:
            hidden, after = hidden.chunk(2, 1)
            return self._shifted(hidden, documents, after) if self.config.shift else hidden
        if documents is not None and cache is not None and cache.after:
            documents = documents[:, : -cache.after]
        return self._shifted(hidden, documents, None, cache) if self.config.shift else hidden

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

    def _places(self, tokens: Tensor, documents: Tensor | None, twice: bool, cache: BlockCache | None) -> Tensor:
        """The place of each position within its document, [1 or B, Q].

        Raises:
            ValueError: (on a GPU an error of the device, with documents) there are more than the network embeds.
        """
        start, repeats = 0 if cache is None else cache.length, 2 if twice else 1
        stop = start + tokens.shape[1] // repeats
        length = stop + (0 if cache is None else cache.after)
        place = torch.arange(length, device=tokens.device)[None]
        if documents is not None:
            begins = torch.where(documents != _before(documents), place, 0)
            place = torch.where(documents == 0, 0, place - begins.cummax(1).values)
        if self.places is not None and length > self.places:
            message = (
                f"input_ids has {length} positions, and {self.network.config.model_type} has {self.places} for a document: "
                "give shorter sequences"
            )
            if documents is None:
                raise ValueError(message)
            require((place < self.places).all(), ValueError, message)
        return place[:, start:stop].repeat(1, repeats) + self.first_place

    def _attention(
        self, tokens: Tensor, documents: Tensor | None, twice: bool, cache: BlockCache | None
    ) -> dict[str, Any]:
        """The arguments of the network that say to what each position attends."""
        like = tokens[..., None].to(self.embed_tokens.weight.dtype)  # pyright: ignore[reportArgumentType, reportCallIssue]
        flash = is_flash_attention_requested(self.network.config)
        if self.is_decoder and self.ahead < 1:
            if cache is not None:
                raise ValueError(f"a cache needs attention in both directions; ahead={self.ahead} is less")
            plain = (self.config._attn_implementation or "sdpa") in PLAIN
            if self.ahead == 0 and not plain and (flash or documents is None):
                return {"is_causal": True, **({} if documents is None else variable_lengths(documents))}
            return {"attention_mask": partly_causal_mask(self.config, like, documents, self.ahead)}
        if self.config.block_size is not None:
            return {"attention_mask": block_attention(self.config, like, twice, documents, cache)[0]}
        if cache is not None:
            return {"attention_mask": window_attention(self.config, like, documents, cache)[0]}
        if documents is None:
            return {"attention_mask": None}
        if self.is_local and not flash:
            return {"attention_mask": local_masks(self.network.config, like, documents)}
        mask = bidirectional_mask(self.config, like, documents)
        return mask if isinstance(mask, dict) else {"attention_mask": mask}

    def _shifted(
        self, hidden: Tensor, documents: Tensor | None, clean: Tensor | None, cache: BlockCache | None = None
    ) -> Tensor:
        """The hidden state of the position before each one; the first of a document has its own.

        Args:
            hidden: [B, L, D], the last L positions of sequences.
            documents: numbers of documents [B, length ≥ L].
            clean: of a model with blocks: the hidden states of the clean sequence, which the first position of a block has.
            cache: of the positions before.
        """
        length, last = hidden.shape[1], None if cache is None else cache.last
        moved = torch.cat([hidden[:, :1] if last is None else last, hidden[:, :-1]], 1)
        if clean is not None:
            place = torch.arange(length, device=hidden.device)
            first = (place > 0) & (place % cast(int, self.config.block_size) == 0)
            moved = torch.where(first[:, None], torch.cat([hidden[:, :1], clean[:, :-1]], 1), moved)
        if documents is not None:
            same = (documents == _before(documents))[:, -length:]
            moved = torch.where(same[..., None], moved, hidden)
        return moved


def dynamic(cache: BlockCache) -> DynamicCache:
    """The cache in the form that networks of transformers take and add to; it shares the keys and values."""
    found: Any = DynamicCache()
    for index in range(len(cache.layers)):
        found.layers.append(Around(*cache.layers[index]))
    return found


class Around(DynamicLayer):
    """A layer of a cache: keys and values of positions before those that are added, and perhaps of some after them."""

    def __init__(self, keys: Tensor, values: Tensor, *after: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.after = keys, values, after

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """All keys and all values, in the order of the positions."""
        found = super().update(key_states, value_states)
        if not self.after:
            return found
        keys, values = (torch.cat(pair, -2) for pair in zip(found, self.after, strict=True))
        return keys, values


def _before(documents: Tensor) -> Tensor:
    """The number of the document of the position before each one; 0 before the first."""
    return torch.nn.functional.pad(documents[:, :-1], (1, 0))


def _size(layers: nn.ModuleList) -> int:
    return sum(parameter.numel() for parameter in layers.parameters())
