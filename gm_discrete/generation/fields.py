"""What `GMModel` does with states of several fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from gm_discrete.generation.config import GMGenerationConfig
from gm_discrete.generation.given import ObservedFields, cells, natural
from gm_discrete.generation.outputs import GMGenerateOutput, GMModelOutput
from gm_discrete.generators import Product
from gm_discrete.nn.backbone import Backbone
from gm_discrete.nn.config import Field, GMConfig
from gm_discrete.nn.dit import DiT
from gm_discrete.nn.readout import LazyReadout
from gm_discrete.objective import clamp_time, field_losses, field_weight
from gm_discrete.paths import EuclideanPath, ProductPath
from gm_discrete.samplers import simulate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from gm_discrete.models.modeling import GMModel

    Base = PreTrainedModel
else:
    Base = object


class FieldsMixin(Base):
    """The methods of a model whose path is a product, which `GMModel` calls in place of its own."""

    path: Any
    config: GMConfig
    state_fields: dict[str, Field]
    groups: list[list[str]]
    backbone: Backbone | DiT
    encode: Any

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
        times = {name: clamp_time(path.factors[name], t) for name, t in path.times(time).items()}
        mask = None if attention_mask is None else dict(attention_mask)
        states = self.encode(x, time, mask, class_labels)
        readouts = LazyReadout.of_fields(
            cast("GMModel", self), x, time, times, states=states, class_labels=class_labels
        )
        # Before any chunk of a head: what is recomputed in backward must not be what fills the memory of the others.
        hidden = next(iter(readouts.values())).reading.everything(states)
        if labels is None:
            said: dict[str, dict[str, Tensor]] = {"logits": {}, "velocity": {}}
            for name, readout in readouts.items():
                for head in path.factors[name].heads:
                    if head in ("tokens", "belief"):
                        said["logits"][name] = readout(head).unflatten(0, x[name].shape)
                    elif head == "flow":
                        said["velocity"][name] = readout(head)
            return GMModelOutput(None, said["logits"], said["velocity"], hidden)
        scored = path.loss_mask(labels)
        data = {name: torch.where(scored[name], labels[name], path.factors[name].fill_unscored(x[name])) for name in x}
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
        path.check_known(attention_mask, "attention_mask")
        path.check_known(labels, "labels")
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
        for group in self.groups:
            lengths = {self.backbone.layouts[name].positions(x[name]) for name in group}
            if len(lengths) > 1:
                raise ValueError(f"the aligned fields {', '.join(group)} have {sorted(lengths)} positions")
        if class_labels is not None:
            self.config.check_classes(class_labels, len(t))

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
        network_time: Tensor | None,
    ) -> Product:
        """`generator` of a product."""
        if unknown := (generators or {}).keys() - path.factors.keys():
            raise ValueError(f"generators names {', '.join(sorted(unknown))}; the fields are {', '.join(path.factors)}")
        times, mask = path.times(t), None if attention_mask is None else dict(attention_mask)
        readouts = LazyReadout.of_fields(
            cast("GMModel", self), x, t if network_time is None else network_time, times, logits_processor, guidance_scale,
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

    def _generate_fields(
        self,
        config: GMGenerationConfig,
        given: Mapping[str, Any] | None,
        attention_mask: Mapping[str, Tensor] | None,
        labels: Tensor | None,
        batch_size: int | None,
        length: Any,
        rng: torch.Generator,
    ) -> Any:
        """`generate` of a product."""
        path, fields = self.path, self.state_fields
        assert isinstance(path, ProductPath)
        path.check_known(given, "given")
        path.check_known(attention_mask, "attention_mask")
        known = {name: cells(value, fields[name], name) for name, value in (given or {}).items()}
        known = {name: cell.to(self.device) for name, cell in known.items()}
        masks = {name: mask.to(self.device) for name, mask in (attention_mask or {}).items()}
        for name, mask in masks.items():
            if mask.dim() != 2 or fields[name].image_shape:
                raise ValueError(
                    f"attention_mask[{name!r}] has shape {tuple(mask.shape)}; it is [B, L] of a field that is no image"
                )
        batches = {len(cell.state) for cell in known.values()} | {len(mask) for mask in masks.values()}
        if batch_size is not None:
            batches.add(batch_size)
        if len(batches) > 1 or min(batches, default=1) < 1:
            raise ValueError(
                f"given, attention_mask and batch_size are of {sorted(batches)} states; give one number ≥ 1"
            )
        batch = batches.pop() if batches else 1
        lengths = dict.fromkeys(fields, length) if not isinstance(length, Mapping) else length
        if lengths.keys() - fields.keys():
            raise ValueError(f"length={length} must be a number, or a dict by field, of {', '.join(fields)}")
        shapes: dict[str, tuple[int, ...]] = {}
        for group in self.groups:  # what one field of a group says of its length goes for all
            told: list[Any] = [known[name].state.shape[1] for name in group if name in known]
            told += [masks[name].shape[1] for name in group if name in masks]
            told += [lengths[name] for name in group if lengths.get(name) is not None and not fields[name].image_shape]
            if len(set(told)) > 1:
                raise ValueError(
                    f"{', '.join(group)}: given, attention_mask and length speak of {sorted(set(told))} positions"
                )
            shapes |= {
                name: (batch, *fields[name].state_shape(told[0] if told else fields[name].length)) for name in group
            }
        known = {name: cell.behind(masks[name]) if name in masks else cell for name, cell in known.items()}
        state = path.prior(shapes, rng, self.device)
        fixed = {}
        for name, cell in known.items():
            state[name] = torch.where(cell.known, cell.state.to(state[name].dtype), state[name])
            fixed[name] = cell.known
        for name, mask in masks.items():
            padded = (mask == 0).view(*mask.shape, *[1] * (state[name].dim() - 2)).expand(state[name].shape)
            fixed[name] = fixed[name] | padded if name in fixed else padded
        if labels is not None:
            self.config.check_classes(labels, batch)
            labels = labels.to(self.device)
        conditioning = {
            "attention_mask": masks or None,
            "logits_processor": config.processors(),
            "class_labels": labels,
            "guidance_scale": config.guidance_scale,
            "generators": config.generators,
        }
        model = ObservedFields(self, known, rng) if known else self
        training = self.training
        self.eval()
        try:
            run = simulate(
                model, state, config.times(path, False), rng, config.step(several=True), fixed,
                return_info=True, **conditioning,
            )  # fmt: skip
        finally:
            self.train(training)
        end = {name: natural(x, fields[name]) for name, x in run.x.items()}
        for name, cell in known.items():
            end[name] = torch.where(cell.known, cell.natural.to(end[name].dtype), end[name])
        if not config.return_dict_in_generate:
            return end
        return GMGenerateOutput(end, run.network_calls, run.jumps, run.error_bound, masks or None)
