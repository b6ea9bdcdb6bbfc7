"""`GMModel`: a transformer that outputs the generator of a Markov process on sequences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from gm_discrete.generators import Jump
from gm_discrete.models.backbone import Backbone, LocalConvolution, ZeroLinear
from gm_discrete.models.config import GMConfig
from gm_discrete.models.generation import GMGenerationConfig, GMGenerationMixin
from gm_discrete.models.readout import LazyReadout
from gm_discrete.objective import matching_loss
from gm_discrete.paths import MaskedPath


@dataclass
class GMModelOutput(ModelOutput):
    """Output of `GMModel`.

    Attributes:
        loss: conditional generator matching loss, where labels were given.
        logits: of the posterior of the data symbols, [B, L, K]; `None` with labels, as the loss reads them in chunks and
            only where it needs them.
        last_hidden_state: [B, L, D]; `None` with labels.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None


class GMPreTrainedModel(PreTrainedModel):
    """What loading, saving and wrapping need to know."""

    config_class = GMConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, LocalConvolution):  # near the identity
            init.normal_(module.weight, std=0.5)
            if not getattr(module.weight, "_is_hf_initialized", False):
                module.weight[len(module.weight) // 2] += 1
        if isinstance(module, nn.Linear) and module.bias is not None:
            init.zeros_(module.bias)


class GMModel(GMGenerationMixin, GMPreTrainedModel):
    """Transformer for the rates of a continuous-time Markov chain on token sequences.

    The network's head states a belief about each data symbol; `path.add_evidence`, what the noisy symbol itself says, is
    added to its logits, so that the sum is the posterior π and stays one as κ → 1. `path.marginal` turns π into rates.
    """

    generation_config_class = GMGenerationConfig
    accepts_loss_kwargs = True  # the Trainer passes num_items_in_batch
    _tied_weights_keys = {"head.weight": "backbone.embed_tokens.weight"}

    def __init__(self, config: GMConfig) -> None:
        super().__init__(config)
        self.path = config.build_path()
        self.backbone = Backbone(config)
        head = nn.Linear if config.tie_word_embeddings else ZeroLinear
        self.head = head(config.hidden_size, config.vocab_size, bias=False)
        self.whole_batches = False  # sharded over processes, which must make equal calls, a readout runs every sequence
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        self.backbone.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.head = new_embeddings

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        raise ValueError("the vocabulary is part of the path: make a new GMConfig with a path of the new vocab_size")

    def encode(self, x: Tensor, t: Tensor | None, attention_mask: Tensor | None = None) -> Tensor:
        """States [B, L, D] behind the last attention, of the sequences x [B, L] at the times t [B]."""
        return self.backbone(x, t, attention_mask)

    def finish(self, states: Tensor, t: Tensor | None, sequence: Tensor | None = None) -> Tensor:
        """Final hidden states [n, D] of the states [n, D] of positions in the sequences [n]; or [B, L, D] of all."""
        return self.backbone.finish(states, t, sequence)

    def read_tokens(self, hidden: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Posterior logits [n, K] from hidden states [n, D], the symbols x [n] that stand there and their times t [n]."""
        mask = self.config.mask_token_id  # no data symbol is the mask
        excluded = {*self.path.excluded, *(() if mask is None else (mask,))}
        return self.path.add_evidence(self.head(hidden).float(), x, t, tuple(excluded))

    def forward(
        self,
        input_ids: Tensor,
        time: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        divergence: str | None = None,
        return_dict: bool | None = None,
    ) -> GMModelOutput | tuple:
        """Posterior logits, or the loss where labels are given.

        Args:
            input_ids: noisy state x [B, L].
            time: t [B] in [0, 1]; may be left out by a masked model that does not see it, unless labels are given.
            attention_mask: [B, L], 0 where padded.
            labels: clean data [B, L], -100 where not scored.
            num_items_in_batch: what the summed loss is divided by; the number of scored positions by default.
            divergence: in place of `config.divergence`.

        Returns:
            `.loss` (nats per scored position, see `objective.matching_loss`) with labels, else `.logits` [B, L, K].
        """
        if time is None:
            if labels is not None or self.config.time_conditioning or not isinstance(self.path, MaskedPath):
                raise ValueError("time is missing: pass time=t, of shape [B], in [0, 1]")
            time = torch.zeros(len(input_ids), dtype=torch.float64, device=input_ids.device)
        self.path.check(input_ids, time, "input_ids")
        for name, tensor in (("attention_mask", attention_mask), ("labels", labels)):
            if tensor is not None and tensor.shape != input_ids.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; input_ids has {tuple(input_ids.shape)}")
        states = self.encode(input_ids, time, attention_mask)
        loss = logits = hidden = None
        if labels is None:
            hidden = self.finish(states, time)
            times = time[:, None].expand(input_ids.shape).flatten()
            logits = self.read_tokens(hidden.flatten(0, 1), input_ids.flatten(), times).unflatten(0, input_ids.shape)
        else:
            readout = LazyReadout(self, input_ids, time, states=states)
            scored = labels != -100
            data = torch.where(scored, labels, input_ids)
            predicted = self.path.marginal(readout, input_ids, time)
            loss = matching_loss(
                self.path, predicted, data, input_ids, time, scored,
                num_items_in_batch, divergence or str(self.config.divergence),
            )  # fmt: skip
        output = GMModelOutput(loss=loss, logits=logits, last_hidden_state=hidden)
        return output if return_dict is not False else output.to_tuple()

    def generator(
        self,
        x: Tensor,
        t: Tensor,
        t_next: Tensor | None = None,
        attention_mask: Tensor | None = None,
        logits_processor: Any = None,
    ) -> Jump:
        """The marginal generator at x, or that of the step [t, t_next]. Runs nothing until the value is looked at."""
        readout = LazyReadout(self, x, t, attention_mask, logits_processor)
        return self.path.marginal(readout, x, t, t_next)

    def rates(self, x: Tensor, t: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Dense rate matrices R [B, L, K] of the point t, in 1/time; on the diagonal (y = x) minus the row's sum."""
        return self.generator(x, t, attention_mask=attention_mask).rates(x)


AutoConfig.register("gm_discrete", GMConfig)
AutoModel.register(GMConfig, GMModel)
