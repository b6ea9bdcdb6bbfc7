"""What `GMModel` does with states of several fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gm_discrete.generation.config import GMGenerationConfig
from gm_discrete.generation.given import ObservedFields, cells, natural
from gm_discrete.generation.outputs import GMGenerateOutput
from gm_discrete.nn.config import GMConfig
from gm_discrete.nn.field import Field
from gm_discrete.paths import ProductPath
from gm_discrete.samplers import simulate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Base = PreTrainedModel
else:
    Base = object


class FieldsMixin(Base):
    """The methods of a model whose path is a product, which `GMModel` calls in place of its own."""

    path: Any
    config: GMConfig
    state_fields: dict[str, Field]
    groups: list[list[str]]

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
