"""`GMModel`: a transformer that outputs the generator of a Markov process on sequences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init

from gm_discrete.generation.config import GMGenerationConfig
from gm_discrete.generation.fields import FieldsMixin
from gm_discrete.generation.numbers import NumbersMixin
from gm_discrete.generation.outputs import GMModelOutput
from gm_discrete.generation.run import GMGenerationMixin
from gm_discrete.generation.symbols import SymbolsMixin
from gm_discrete.generators import Generator, Jump
from gm_discrete.nn.backbone import Backbone, LocalConvolution, ZeroLinear
from gm_discrete.nn.blocks import BlockCache
from gm_discrete.nn.config import GMConfig
from gm_discrete.nn.dit import DiT
from gm_discrete.nn.marginal import marginal
from gm_discrete.nn.readout import HiddenStates, LazyReadout
from gm_discrete.objective import matching_loss
from gm_discrete.paths import EuclideanPath, FinitePath, MaskedPath, ProductPath
from gm_discrete.paths.euclidean import Weights


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
        elif isinstance(module, nn.RMSNorm | nn.LayerNorm):
            init.ones_(module.weight)
        elif isinstance(module, LocalConvolution):  # near the identity
            init.normal_(module.weight, std=0.5)
            if not getattr(module.weight, "_is_hf_initialized", False):
                module.weight[len(module.weight) // 2] += 1
        if isinstance(module, nn.Linear) and module.bias is not None:
            init.zeros_(module.bias)


class GMModel(SymbolsMixin, NumbersMixin, FieldsMixin, GMGenerationMixin, GMPreTrainedModel):
    """Transformer for the generator of a Markov process on token sequences [B, L], vectors [B, L, C] or images [B, C, H, W].

    Of tokens the head states a belief about each data symbol; `path.add_evidence`, what the noisy symbol itself says, is
    added to its logits, so that the sum is the posterior π and stays one as κ → 1. `path.marginal` turns π into rates. Of
    numbers there is a head for each thing that the path's generators are made of (`path.heads`).
    """

    generation_config_class = GMGenerationConfig
    accepts_loss_kwargs = True  # the Trainer passes num_items_in_batch
    _tied_weights_keys = {"heads.tokens.weight": "backbone.embed_tokens.weight"}

    def __init__(self, config: GMConfig) -> None:
        super().__init__(config)
        self.path: Any = config.build_path()
        self.state_fields = config.state_fields
        self.groups = config.groups if isinstance(self.path, ProductPath) else []
        self.backbone = DiT(config) if config.backbone == "dit" else Backbone(config)
        if config.tie_word_embeddings and not isinstance(self.backbone.embed_tokens, nn.Embedding):
            raise ValueError("tie_word_embeddings needs symbols with a position of their own")
        head = nn.Linear if config.tie_word_embeddings else ZeroLinear
        self.heads = nn.ModuleDict(
            {
                f"{field}:{name}" if field else name: head(
                    config.hidden_size, part.slots * size, bias=config.backbone == "dit"
                )
                for field, part in self.state_fields.items()
                for name, size in part.path.heads.items()
            }
        )
        if config.backbone == "dit":
            self._no_split_modules = ["DiTBlock"]  # FSDP refuses names of blocks that a model does not have
        self.whole_batches = False  # sharded over processes, which must make equal calls, a readout runs every sequence
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        self.backbone.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.heads["tokens"]

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.heads["tokens"] = new_embeddings

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        raise ValueError("the vocabulary is part of the path: make a new GMConfig with a path of the new vocab_size")

    def encode(
        self,
        x: Any,
        t: Tensor | None,
        attention_mask: Any = None,
        class_labels: Tensor | None = None,
        clean: Tensor | None = None,
        cache: BlockCache | None = None,
    ) -> Tensor:
        """States [B, L, D] behind the last attention, of the states x [B, …] at the times t [B]; of a product by field.

        `clean` and `cache` are of block-causal attention (see `Backbone`).
        """
        if isinstance(self.path, ProductPath) and t is not None:
            times = self.path.times(t)
            x = {
                name: path.normalized(x[name], times[name]) if isinstance(path, EuclideanPath) else x[name]
                for name, path in self.path.factors.items()
            }
        elif isinstance(self.path, EuclideanPath) and t is not None:
            x = self.path.normalized(x, t)
        blocks = {} if self.config.block_size is None else {"clean": clean, "cache": cache}
        return self.backbone(x, t, attention_mask, class_labels, **blocks)

    def finish(
        self, states: Tensor, t: Tensor | None, sequence: Tensor | None = None, class_labels: Tensor | None = None
    ) -> Tensor:
        """Final hidden states [n, D] of the states [n, D] of positions in the sequences [n]; or [B, L, D] of all."""
        return self.backbone.finish(states, t, sequence, class_labels)

    def add_evidence(self, logits: Tensor, x: Tensor, t: Tensor, path: FinitePath | None = None) -> Tensor:
        """Posterior logits [n, K] from those of the head, the symbols x [n] that stand there and their times t [n]."""
        path = self.path if path is None else path
        assert isinstance(path, FinitePath)
        mask = None if isinstance(self.path, ProductPath) else self.config.mask_token_id  # no data symbol is the mask
        excluded = {*path.excluded, *(() if mask is None else (mask,))}
        return path.add_evidence(logits, x, t, tuple(excluded))

    def forward(
        self,
        input_ids: Tensor | None = None,
        time: Tensor | None = None,
        attention_mask: Any = None,
        labels: Any = None,
        num_items_in_batch: Any = None,
        divergence: Any = None,
        return_dict: bool | None = None,
        *,
        input_values: Tensor | None = None,
        fields: Mapping[str, Tensor] | None = None,
        class_labels: Tensor | None = None,
    ) -> GMModelOutput | tuple:
        """What the heads say, or the loss where labels are given.

        Args:
            input_ids: noisy symbols x [B, L]; of images [B, C·H·W].
            time: t [B] in [0, 1]; may be left out by a masked model that does not see it, unless labels are given.
            attention_mask: [B, L], 0 where padded.
            labels: clean data of the state's shape; -100, of numbers NaN, where not scored.
            num_items_in_batch: what the summed loss is divided by; the number of scored entries by default.
            divergence: in place of `config.divergence`.
            input_values: in place of `input_ids` on a Euclidean path: x [B, L, C] or [B, C, H, W].
            fields: in place of `input_ids` on a product path: x by field. attention_mask, labels, num_items_in_batch and
                divergence are then by field, too, and `time` may be [B, M].
            class_labels: long [B], −1 for no class.

        Returns:
            `.loss` (see `objective.matching_loss`) with labels, else `.logits` [B, L, K] or `.velocity`.
        """
        given = {"input_ids": input_ids, "input_values": input_values, "fields": fields}
        x: Any = given.pop(self.path.state_name)
        if x is None or any(other is not None for other in given.values()):
            raise ValueError(f"give the state as {self.path.state_name}, which is what {self.path!r} needs")
        if isinstance(self.path, ProductPath):
            output = self._forward_fields(
                self.path, x, time, attention_mask, labels, num_items_in_batch, divergence, class_labels
            )
            return output if return_dict is not False else output.to_tuple()
        if time is None:
            if labels is not None or self.config.time_conditioning or not isinstance(self.path, MaskedPath):
                raise ValueError("time is missing: pass time=t, of shape [B], in [0, 1]")
            time = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        self._check(x, time, attention_mask, labels, class_labels)
        data, scored = x, None
        if labels is not None:
            scored = self.path.loss_mask(labels)
            data = torch.where(scored, labels, self.path.fill_unscored(x))
        clean = data if self.config.block_size and scored is not None else None
        states = self.encode(x, time, attention_mask, class_labels, clean)
        readout = LazyReadout(self, x, time, states=states, class_labels=class_labels)
        if scored is not None:
            loss = matching_loss(
                self.path, self.path.marginal(readout, x, time), data, x, time, scored,
                num_items_in_batch, divergence or self.config.divergence, self.config.loss_weights,
            )  # fmt: skip
            output = GMModelOutput(loss=loss)
        else:
            hidden = self.finish(states, time, class_labels=class_labels)
            said: dict[str, Tensor] = {}
            for head in self.path.heads:
                if head in ("tokens", "belief"):
                    said["logits"] = readout(head).unflatten(0, x.shape)
                elif head == "flow":
                    said["velocity"] = readout(head)
            output = GMModelOutput(None, said.get("logits"), said.get("velocity"), hidden)
        return output if return_dict is not False else output.to_tuple()

    def _check(
        self,
        x: Tensor,
        t: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        class_labels: Tensor | None,
    ) -> None:
        """
        Raises:
            ValueError: a tensor is not what the model is made for.
        """
        self.path.check(x, t, self.path.state_name)
        config = self.config
        expected = self.state_fields[""].state_shape(x.shape[1] if x.dim() > 1 else 0)
        if tuple(x.shape[1:]) != expected and (config.image_shape or not config.vocab_size):
            raise ValueError(
                f"{self.path.state_name} has shape {tuple(x.shape)}; the model takes [B, {str(expected)[1:-1]}]"
            )
        for name, tensor, shape in (
            ("attention_mask", attention_mask, x.shape[:2]),
            ("labels", labels, x.shape),
        ):
            if tensor is not None and tensor.shape != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; {self.path.state_name} has {tuple(x.shape)}")
        if attention_mask is not None and config.image_shape:
            raise ValueError("attention_mask is of sequences: images have no padding")
        if class_labels is not None:
            config.check_classes(class_labels, len(x))

    def generator(
        self,
        x: Any,
        t: Tensor,
        t_next: Tensor | None = None,
        attention_mask: Any = None,
        logits_processor: Any = None,
        class_labels: Tensor | None = None,
        guidance_scale: float | None = None,
        guidance: str | None = None,
        generators: Weights | None = None,
        network_time: Tensor | None = None,
        clean: Tensor | None = None,
    ) -> Generator:
        """The marginal generator at x, or that of the step [t, t_next]. Of symbols it runs nothing until looked at.

        Args:
            class_labels: long [B], −1 for no class; guidance_scale: γ of classifier-free guidance, 1 for none.
            guidance: `"normalized"` (the hazard is kept) or `"raw"` (rates are multiplied; see `samplers.guidance`).
            generators: other weights of a superposition (see `EuclideanPath.reweighted`); of a product by field.
            told: of a product with independent times: those that the network is told, [B, M], where a field is known (1) or
                unknown (0) that is at another time of its generator.
            clean: of block-causal attention: the data [B, L] whose blocks a block of x sees before it; x's own by default.
        """
        path = self.path
        if isinstance(path, ProductPath):
            return self._product(
                path,
                x,
                t,
                t_next,
                attention_mask,
                logits_processor,
                class_labels,
                guidance_scale,
                generators,
                network_time,
            )
        if generators is not None:
            if not isinstance(path, EuclideanPath):
                raise ValueError("generators are weights of a Euclidean path's superposition; symbols only jump")
            path = path.reweighted(generators)
        if clean is not None and not self.config.block_size:
            raise ValueError("clean is of models with a block_size: others see all of x, and nothing else")
        reading = HiddenStates(self, x, t, attention_mask, None, class_labels, clean)
        without = HiddenStates(self, x, t, attention_mask, None, None, clean)
        return marginal(path, self, x, t, t_next, reading, without, logits_processor, guidance_scale)

    def rates(self, x: Tensor, t: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Dense rate matrices R [B, L, K] of the point t, in 1/time; on the diagonal (y = x) minus the row's sum."""
        generator = self.generator(x, t, attention_mask=attention_mask)
        if not isinstance(generator, Jump):
            raise TypeError(
                f"only jumps between symbols have a rate matrix; {self.path!r} has none, but its fields may"
            )
        return generator.rates(x)


AutoConfig.register("gm_discrete", GMConfig)
AutoModel.register(GMConfig, GMModel)
