"""What is to be generated: the observed values, the entries to fill, and what the network is conditioned on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteriaList
from transformers.utils import logging

from gm_discrete.generation.blocks import Blocks
from gm_discrete.generation.canvas import Canvas
from gm_discrete.generation.config import GMGenerationConfig
from gm_discrete.generation.given import Observed, natural_values
from gm_discrete.generation.observers import Observers, Streamer
from gm_discrete.generation.processors import AllowedTokens, logits_processors
from gm_discrete.generation.validation import check_ids, check_options
from gm_discrete.nn.config import GMConfig
from gm_discrete.nn.field import Field
from gm_discrete.nn.network import Network
from gm_discrete.paths import FinitePath
from gm_discrete.process import Process, State, pack, unpack
from gm_discrete.samplers import ClassifierGuidance

logger = logging.get_logger(__name__)


class Model(Process, Protocol):
    """A process with a network, as `GMModel` is one."""

    config: GMConfig
    training: bool

    @property
    def network(self) -> Network: ...

    @property
    def device(self) -> torch.device: ...

    def train(self, mode: bool = True) -> Self: ...


@dataclass
class Request:
    """One call of `generate`. States and masks are dicts by field; the only field of a model without several is "".

    Attributes:
        config: all options.
        shapes: [B, …] of the state.
        rng: source of all noise.
        blocks: how to go block by block; `None` to fill all entries together.
        observed: observed values, of the fields that have some.
        fixed: bool, entries that keep their value (observed ones and padding), of the fields that have some.
        attention_mask: [B, L], 0 where padded, of the fields that have padding.
        new: bool [B, L], positions after the prompts; `None` without prompts.
        x_0: the state to start from; `None` for a draw from the prior.
        class_labels: [B], −1 for none.
        guidance: a classifier that the samples are guided by.
        logits_processor: of the user.
        observers: of the run.
    """

    config: GMGenerationConfig
    shapes: dict[str, tuple[int, ...]]
    rng: torch.Generator
    blocks: Blocks | None = None
    observed: dict[str, Observed] = field(default_factory=dict)
    fixed: dict[str, Tensor] = field(default_factory=dict)
    attention_mask: dict[str, Tensor] = field(default_factory=dict)
    new: Tensor | None = None
    x_0: State | None = None
    class_labels: Tensor | None = None
    guidance: ClassifierGuidance | None = None
    logits_processor: Sequence[LogitsProcessor] = ()
    observers: Observers = field(default_factory=Observers)

    @classmethod
    def of(
        cls,
        model: Model,
        config: GMGenerationConfig,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | Mapping[str, Tensor] | None = None,
        given: Any = None,
        x_0: Tensor | None = None,
        class_labels: Tensor | Sequence[int] | None = None,
        batch_size: int | None = None,
        length: int | Mapping[str, int] | None = None,
        guidance: ClassifierGuidance | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        streamer: Streamer | None = None,
        **asked: object,
    ) -> Request:
        """The request that the arguments of `generate` describe (see there).

        Args:
            asked: options of the config that were given for this call, and that are refused where they have no effect.

        Raises:
            ValueError, TypeError: arguments do not fit each other, the path or the model; the message names them.
        """
        if not isinstance(guidance, ClassifierGuidance | None):
            raise TypeError(
                f"guidance={guidance!r} must be a ClassifierGuidance; guidance_scale guides without classifier"
            )
        fields, blocks = model.config.state_fields, config.blocks_for(model.config.block_size)
        arguments: dict[str, object] = {
            "input_ids": input_ids, "attention_mask": attention_mask, "given": given, "x_0": x_0, "length": length,
            "class_labels": class_labels, "guidance": guidance, "logits_processor": logits_processor or None,
            "stopping_criteria": stopping_criteria, "streamer": streamer,
        }  # fmt: skip
        check_options(model.path, model.config, config, {**arguments, **asked}, blocks)
        if model.network.whole_batches:
            raise ValueError("the weights are sharded over processes: load the saved model, and generate with that")
        if batch_size is not None and (isinstance(batch_size, bool) or batch_size < 1):
            raise ValueError(f"batch_size={batch_size} must be an integer ≥ 1")
        rng = torch.Generator(device=model.device)
        rng.manual_seed(int(torch.randint(2**62, ())) if config.seed is None else config.seed)
        request = cls(config, {}, rng, blocks, guidance=guidance, logits_processor=logits_processor or ())
        request.observers = Observers(streamer, stopping_criteria)
        if input_ids is not None:
            request._observe_prompts(model, input_ids, cast("Tensor | None", attention_mask))
        elif given is not None or attention_mask is not None:
            request._observe(fields, given, attention_mask, model.device)
        if x_0 is not None:
            if not isinstance(x_0, Tensor):
                raise ValueError(f"x_0 must be a tensor [B, …], got {type(x_0).__name__}")
            request.x_0 = {"": x_0.to(model.device)}
        labels = None if class_labels is None else torch.as_tensor(class_labels)
        request._set_shapes(model, batch_size, length, 1 if labels is None else labels.numel())
        if labels is not None:
            model.config.check_classes(labels, next(iter(request.shapes.values()))[0])
            request.class_labels = labels.to(model.device)
        if "" in fields:
            request._check_single(model, fields[""])
        return request

    def _observe_prompts(self, model: Model, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        """Takes prompts as observed values: everything but mask tokens."""
        config, pad = model.config, self.config.pad_token_id
        canvas = Canvas.of_prompts(
            model.path, input_ids.to(model.device) if isinstance(input_ids, Tensor) else input_ids, attention_mask,
            self.config.max_new_tokens, config.mask_token_id, config.pad_token_id if pad is None else pad,
            align_left=self.blocks is not None,
        )  # fmt: skip
        self.observed = {"": Observed(canvas.ids, canvas.ids, canvas.fixed)}
        self.fixed, self.attention_mask, self.new = {"": canvas.fixed}, {"": canvas.real}, canvas.new

    def _observe(self, fields: Mapping[str, Field], given: Any, attention_mask: Any, device: torch.device) -> None:
        """Takes natural values and masks of padding, by field."""
        for name, value in _by_field(given, fields, "given").items():
            self.observed[name] = Observed.of(value, fields[name], name).to(device)
            self.fixed[name] = self.observed[name].mask
        for name, mask in _by_field(attention_mask, fields, "attention_mask").items():
            if mask.dim() != 2 or fields[name].image_shape:
                raise ValueError(f"attention_mask[{name!r}] has shape {tuple(mask.shape)}; it is [B, L] for a sequence")
            self.attention_mask[name] = mask.to(device)

    def _set_shapes(
        self, model: Model, batch_size: int | None, length: int | Mapping[str, int] | None, default: int
    ) -> None:
        """Sets the shape of every field, by what the arguments say of batch and lengths; their padding becomes fixed."""
        fields = model.config.state_fields
        asked = length if isinstance(length, Mapping) else dict.fromkeys(fields, length)
        usual = self.config.length
        usual = usual if isinstance(usual, Mapping) else dict.fromkeys(fields, usual)
        if unknown := {*asked, *usual} - fields.keys():
            raise ValueError(f"length names {', '.join(sorted(unknown))}; the fields are {', '.join(fields)}")
        named: dict[str, dict[str, Tensor]] = {}  # by field, the tensors of that field and what to call them
        label = "given" if self.new is None else "input_ids"
        for text, tensors in (
            (label, {name: cells.state for name, cells in self.observed.items()}),
            ("attention_mask", self.attention_mask if self.new is None else {}),
            ("x_0", self.x_0 or {}),
        ):
            for name, tensor in tensors.items():
                named.setdefault(name, {})[f"{text}[{name!r}]" if name else text] = tensor
        batches = {text: len(tensor) for tensors in named.values() for text, tensor in tensors.items()}
        batch = _agreed("batch sizes", batches | ({} if batch_size is None else {"batch_size": batch_size}), default)
        for group in model.config.groups:  # its fields share their positions
            lengths = {text: tensor.shape[1] for name in group for text, tensor in named.get(name, {}).items()}
            for name in group:
                if asked.get(name) is not None and not fields[name].image_shape:
                    lengths[f"length[{name!r}]" if isinstance(length, Mapping) else "length"] = asked[name]
            own = next((size for name in group if (size := usual.get(name))), fields[group[0]].length)
            size = _agreed(f"lengths of {', '.join(group)}" if group[0] else "lengths", lengths, own)
            self.shapes |= {name: (batch, *fields[name].state_shape(size)) for name in group}
        if self.new is None:  # prompts have taken their padding for fixed already
            for name, mask in self.attention_mask.items():
                shape = self.shapes[name]
                padded = (mask == 0).view(*mask.shape, *[1] * (len(shape) - 2)).expand(shape)
                self.fixed[name] = self.fixed[name] | padded if name in self.fixed else padded

    def _check_single(self, model: Model, field: Field) -> None:
        """
        Raises:
            ValueError: x_0, a token id or allowed tokens do not fit a state of one field.
        """
        shape, path = self.shapes[""], model.path
        x_0 = None if self.x_0 is None else self.x_0[""]
        if isinstance(path, FinitePath):
            path.check_source(x_0, torch.zeros(shape, dtype=torch.long), torch.zeros(shape[0]))
            never = {*check_ids(path, model.config.mask_token_id, self.config)}
            for processor in self.logits_processor:
                if isinstance(processor, AllowedTokens):
                    free = ~self.fixed[""] if self.fixed else torch.ones(shape, dtype=torch.bool)
                    processor.check(free, path.vocab_size, never)
        elif x_0 is not None and x_0.shape != shape:
            raise ValueError(f"x_0 has shape {tuple(x_0.shape)}; the model takes [B, {str(shape[1:])[1:-1]}]")
        if shape[1] > field.length and not field.image_shape:
            logger.warning_once(f"{shape[1]} positions; the model is made for max_position_embeddings={field.length}")

    def start(self, model: Model) -> dict[str, Tensor]:
        """The state at t = 0: x_0 or a draw from the prior, with the observed values in their place."""
        if self.x_0 is None:
            state = dict(pack(model.path.prior(unpack(self.shapes), self.rng, model.device)))  # pyright: ignore
        else:
            state = dict(self.x_0)
        for name, cells in self.observed.items():
            state[name] = torch.where(self.fixed[name], cells.state.to(state[name].dtype), state[name])
        return state

    def conditioning(self, rows: Tensor | None = None, length: int | None = None) -> dict[str, Any]:
        """The arguments of `model.generator` beside state and time, for all sequences or for the rows [n] of the batch.

        Args:
            length: positions of the sequences; all by default.
        """
        every = slice(None) if rows is None else rows
        masks = {name: mask[every, :length] for name, mask in self.attention_mask.items()}
        if "" in masks and bool(masks[""].all()):
            masks = {}
        found: dict[str, Any] = {
            "attention_mask": unpack(masks) if masks else None,
            "class_labels": None if self.class_labels is None else self.class_labels[every],
            "logits_processor": logits_processors(self.config, self.logits_processor, rows),
            "guidance_scale": self.config.guidance_scale,
            "generators": self.config.generators,
            "on_read": None if self.observers.recorder is None else self.observers.recorder.entropy,
        }
        return {name: value for name, value in found.items() if value is not None}

    def natural(self, end: State, fields: Mapping[str, Field]) -> dict[str, Tensor]:
        """Samples in natural units, with the observed values exactly as they were given."""
        found = {name: natural_values(x, fields[name]) for name, x in end.items()}
        for name, cells in self.observed.items():
            if self.new is None:
                found[name] = torch.where(cells.mask, cells.natural.to(found[name].dtype), found[name])
        return found


def _by_field(value: Any, fields: Mapping[str, Field], name: str) -> Mapping[str, Any]:
    """The value of each field: for a single field the value itself.

    Raises:
        ValueError: it is no dict of the model's fields.
    """
    if value is None or "" in fields:
        return {} if value is None else {"": value}
    if not isinstance(value, Mapping) or value.keys() - fields.keys():
        raise ValueError(f"{name} must be a dict by field, of {', '.join(fields)}")
    return value


def _agreed(what: str, sizes: Mapping[str, int], default: int) -> int:
    """The size that all arguments agree on; the default if none gives one.

    Raises:
        ValueError: they differ.
    """
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{what} differ: {', '.join(f'{name} has {size}' for name, size in sizes.items())}; give one")
    return next(iter(sizes.values()), default)
