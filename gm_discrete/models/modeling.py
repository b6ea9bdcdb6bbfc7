"""`GMModel`: a transformer that outputs the generator of a Markov process on sequences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from gm_discrete.generators import Generator, Jump, Product
from gm_discrete.models.backbone import Backbone, LocalConvolution, ZeroLinear
from gm_discrete.models.config import GMConfig
from gm_discrete.models.generation import GMGenerationMixin
from gm_discrete.models.generation_config import GMGenerationConfig
from gm_discrete.models.readout import LazyReadout
from gm_discrete.objective import before_the_end, field_losses, field_weight, matching_loss
from gm_discrete.paths import EuclideanPath, FinitePath, MaskedPath, ProductPath
from gm_discrete.paths.euclidean import Weights


@dataclass
class GMModelOutput(ModelOutput):
    """Output of `GMModel`.

    Attributes:
        loss: conditional generator matching loss, where labels were given.
        logits: of the posterior of the data symbols, [B, L, K], or of the bins of numbers, [*x's shape, bins]; `None` with
            labels, as the loss reads them in chunks and only where it needs them, and where no head states a posterior.
        velocity: of a Euclidean path whose flow has a head: what that states, in the state's shape; `None` with labels.
        last_hidden_state: [B, positions, D]; `None` with labels.
        field_losses: of a product with labels: the loss of each field, before its weight. logits and velocity are then by
            field as well.
    """

    loss: Tensor | None = None
    logits: Any = None
    velocity: Any = None
    last_hidden_state: Tensor | None = None
    field_losses: dict[str, Tensor] | None = None


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
        self.backbone = Backbone(config)
        if config.tie_word_embeddings and not isinstance(self.backbone.embed_tokens, nn.Embedding):
            raise ValueError("tie_word_embeddings needs symbols with a position of their own")
        head = nn.Linear if config.tie_word_embeddings else ZeroLinear
        self.heads = nn.ModuleDict(
            {
                f"{field}:{name}" if field else name: head(config.hidden_size, part.slots * size, bias=False)
                for field, part in self.state_fields.items()
                for name, size in part.path.heads.items()
            }
        )
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
        self, x: Any, t: Tensor | None, attention_mask: Any = None, class_labels: Tensor | None = None
    ) -> Tensor:
        """States [B, L, D] behind the last attention, of the states x [B, …] at the times t [B]; of a product by field."""
        if isinstance(self.path, ProductPath) and t is not None:
            times = self.path.times(t)
            x = {
                name: path.normalized(x[name], times[name]) if isinstance(path, EuclideanPath) else x[name]
                for name, path in self.path.factors.items()
            }
        elif isinstance(self.path, EuclideanPath) and t is not None:
            x = self.path.normalized(x, t)
        return self.backbone(x, t, attention_mask, class_labels)

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
        states = self.encode(x, time, attention_mask, class_labels)
        readout = LazyReadout(self, x, time, states=states, class_labels=class_labels)
        if labels is not None:
            scored = self.path.scored(labels)
            data = torch.where(scored, labels, self.path.as_data(x))
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

    def _forward_fields(
        self,
        path: ProductPath,
        x: Mapping[str, Tensor],
        time: Tensor | None,
        attention_mask: Mapping[str, Tensor] | None,
        labels: Mapping[str, Tensor] | None,
        num_items: Mapping[str, Any] | None,
        divergence: Any,
        class_labels: Tensor | None,
    ) -> GMModelOutput:
        """`forward` of a product."""
        if time is None:
            raise ValueError("time is missing: pass time=t, of shape [B] or, of independent times, [B, M], in [0, 1]")
        self._check_state(path, x, time, attention_mask, labels, class_labels)
        times = {name: before_the_end(path.factors[name], t) for name, t in path.times(time).items()}
        mask = None if attention_mask is None else dict(attention_mask)
        states = self.encode(x, time, mask, class_labels)
        readouts = LazyReadout.of_fields(self, x, time, times, states=states, class_labels=class_labels)
        if labels is None:
            said: dict[str, dict[str, Tensor]] = {"logits": {}, "velocity": {}}
            for name, readout in readouts.items():
                for head in path.factors[name].heads:
                    if head in ("tokens", "belief"):
                        said["logits"][name] = readout(head).unflatten(0, x[name].shape)
                    elif head == "flow":
                        said["velocity"][name] = readout(head)
            hidden = next(iter(readouts.values())).reading.everything(states)
            return GMModelOutput(None, said["logits"], said["velocity"], hidden)
        scored = path.scored(labels)
        data = {name: torch.where(scored[name], labels[name], path.factors[name].as_data(x[name])) for name in x}
        generators: dict[str, Any] = {
            name: path.factors[name].marginal(readouts[name], x[name], times[name]) for name in x
        }
        weights, kinds = self.config.loss_weights, divergence or self.config.divergence
        losses = field_losses(path, Product(generators), data, x, time, scored, num_items, kinds, weights)  # pyright: ignore
        loss = torch.stack([field_weight(weights, name) * value for name, value in losses.items()]).sum()
        return GMModelOutput(loss=loss, field_losses={name: value.detach() for name, value in losses.items()})

    def _check_state(
        self,
        path: ProductPath,
        x: Mapping[str, Tensor],
        t: Tensor,
        attention_mask: Mapping[str, Tensor] | None,
        labels: Mapping[str, Tensor] | None,
        class_labels: Tensor | None,
    ) -> None:
        """
        Raises:
            ValueError: a tensor is not what the model is made for.
        """
        path.check(x, t, path.state_name)
        for name, field in self.state_fields.items():
            expected = field.state_shape(x[name].shape[1])
            if tuple(x[name].shape[1:]) != expected:
                raise ValueError(
                    f"fields[{name!r}] has shape {tuple(x[name].shape)}; the model takes [B, {str(expected)[1:-1]}]"
                )
            if labels is not None and (name not in labels or labels[name].shape != x[name].shape):
                raise ValueError(f"labels[{name!r}] must have the field's shape {tuple(x[name].shape)}")
            mask = (attention_mask or {}).get(name)
            if mask is not None and (mask.shape != x[name].shape[:2] or field.image_shape):
                raise ValueError(
                    f"attention_mask[{name!r}] has shape {tuple(mask.shape)}; it is [B, L] of a field that is no image"
                )
        for group in self.config.groups:
            lengths = {self.backbone.layouts[name].positions(x[name]) for name in group}
            if len(lengths) > 1:
                raise ValueError(f"the aligned fields {', '.join(group)} have {sorted(lengths)} positions")
        if class_labels is not None:
            self.config.check_classes(class_labels, len(t))

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
        generators: Weights | None = None,
        told: Tensor | None = None,
    ) -> Generator:
        """The marginal generator at x, or that of the step [t, t_next]. Of symbols it runs nothing until looked at.

        Args:
            class_labels: long [B], −1 for no class; guidance_scale: γ of classifier-free guidance (see `LazyReadout`).
            generators: other weights of a superposition (see `EuclideanPath.reweighted`); of a product by field.
            told: of a product with independent times: those that the network is told, [B, M], where a field is known (1) or
                unknown (0) that is at another time of its generator.
        """
        path = self.path
        if isinstance(path, ProductPath):
            return self._product(
                path, x, t, t_next, attention_mask, logits_processor, class_labels, guidance_scale, generators, told
            )
        if generators is not None:
            if not isinstance(path, EuclideanPath):
                raise ValueError("generators are weights of a Euclidean path's superposition; symbols only jump")
            path = path.reweighted(generators)
        readout = LazyReadout(self, x, t, attention_mask, logits_processor, None, class_labels, guidance_scale)
        return path.marginal(readout, x, t, t_next)

    def _product(
        self,
        path: ProductPath,
        x: Mapping[str, Tensor],
        t: Tensor,
        t_next: Tensor | None,
        attention_mask: Mapping[str, Tensor] | None,
        logits_processor: Any,
        class_labels: Tensor | None,
        guidance_scale: float | None,
        generators: Mapping[str, Any] | None,
        told: Tensor | None,
    ) -> Product:
        """`generator` of a product."""
        if unknown := (generators or {}).keys() - path.factors.keys():
            raise ValueError(f"generators names {', '.join(sorted(unknown))}; the fields are {', '.join(path.factors)}")
        times, mask = path.times(t), None if attention_mask is None else dict(attention_mask)
        readouts = LazyReadout.of_fields(
            self, x, t if told is None else told, times, logits_processor, guidance_scale,
            attention_mask=mask, class_labels=class_labels,
        )  # fmt: skip
        then = None if t_next is None else path.times(t_next)
        factors = {}
        for name, factor in path.factors.items():
            if name in (generators or {}):
                if not isinstance(factor, EuclideanPath):
                    raise ValueError(f"generators are given for {name!r}, a field of symbols, which only jump")
                factor = factor.reweighted(generators[name])  # pyright: ignore[reportOptionalSubscript]
            factors[name] = factor.marginal(readouts[name], x[name], times[name], None if then is None else then[name])
        return Product(factors)

    def rates(self, x: Tensor, t: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Dense rate matrices R [B, L, K] of the point t, in 1/time; on the diagonal (y = x) minus the row's sum."""
        generator = self.generator(x, t, attention_mask=attention_mask)
        if not isinstance(generator, Jump):
            raise TypeError(f"only jumps between symbols have a rate matrix; {self.path!r} is a path of numbers")
        return generator.rates(x)


AutoConfig.register("gm_discrete", GMConfig)
AutoModel.register(GMConfig, GMModel)
