"""What is to be generated: the observed values, the entries to fill, and what the network is conditioned on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.utils import logging

from gm_discrete.arguments import listed, whole
from gm_discrete.data.scalers import DatePart, Scaler
from gm_discrete.generation.blocks import APPROXIMATE, Blocks
from gm_discrete.generation.canvas import Canvas
from gm_discrete.generation.config import GMGenerationConfig
from gm_discrete.generation.draft import Draft
from gm_discrete.generation.given import Given, Observed
from gm_discrete.generation.observers import Observers, Streamer
from gm_discrete.generation.processors import (
    AllowedTokens,
    BannedSequences,
    MostLikely,
    Sharpening,
    TemperatureSchedule,
)
from gm_discrete.generation.strings import StringStart, read_draft, read_prompts
from gm_discrete.generation.validation import check_options
from gm_discrete.nn.config import GMConfig
from gm_discrete.nn.field import Field
from gm_discrete.nn.readout import Network, Processors
from gm_discrete.paths import EditPath, FinitePath, Path
from gm_discrete.process import Process, State, pack_state, unpack
from gm_discrete.renamed import nearest
from gm_discrete.samplers import ClassifierGuidance

logger = logging.get_logger(__name__)
T = TypeVar("T")


class Model(Process, Protocol):
    """A process with a network, as `GMModel` is one."""

    config: GMConfig

    @property
    def network(self) -> Network: ...

    @property
    def device(self) -> torch.device: ...


@dataclass
class Request:
    """One call of `generate`. States and masks are dicts by field; the only field of a model without several is "".

    Attributes:
        config: all options.
        fields: of the state.
        shapes: [B, …] of the state.
        rng: source of all noise.
        observers: of the run, if there are any.
        blocks: how to go block by block; `None` to fill all entries together.
        observed: observed values, of the fields that have some.
        fixed: bool, entries that keep their value (observed ones and padding), of the fields that have some.
        attention_mask: [B, L], 0 where padded, of the fields that have padding; numbers of documents elsewhere.
        new: bool [B, L], positions after the prompts; `None` without prompts.
        x_0: the state to start from; `None` for a draw from the prior.
        draft: what is noised to `start_time` in place of that draw, of the fields that have a draft.
        strings: what strings start from, in place of observed values and a draft; `None` for other states.
        class_labels: [B], −1 for none.
        guidance: a classifier that the samples are guided by.
        logits_processor: of the user.
        eos: tokens that end a sequence.
    """

    config: GMGenerationConfig
    fields: Mapping[str, Field]
    shapes: dict[str, tuple[int, ...]]
    rng: torch.Generator
    observers: Observers | None = None
    blocks: Blocks | None = None
    observed: dict[str, Observed] = field(default_factory=dict)
    fixed: dict[str, Tensor] = field(default_factory=dict)
    attention_mask: dict[str, Tensor] = field(default_factory=dict)
    new: Tensor | None = None
    x_0: State | None = None
    draft: dict[str, Observed] = field(default_factory=dict)
    start_time: float = 0.0
    strings: StringStart | None = None
    class_labels: Tensor | None = None
    guidance: ClassifierGuidance | None = None
    logits_processor: Sequence[LogitsProcessor] = ()
    eos: Sequence[int] = ()

    @classmethod
    def of(
        cls,
        model: Model,
        config: GMGenerationConfig,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | Mapping[str, Tensor] | None = None,
        given: Given | Mapping[str, Given] = None,
        x_0: Tensor | None = None,
        start_from: Draft | Given | Mapping[str, Given] = None,
        class_labels: Tensor | Sequence[int] | None = None,
        batch_size: int | None = None,
        length: int | Mapping[str, int] | None = None,
        guidance: ClassifierGuidance | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        stopping_criteria: Sequence[StoppingCriteria] | None = None,
        streamer: Streamer | None = None,
        **explicit: object,
    ) -> Request:
        """The request that the arguments of `generate` describe (see there).

        Args:
            explicit: options of the config that were given for this call, and that are refused where they have no effect.

        Raises:
            ValueError, TypeError: arguments do not fit each other, the path or the model; the message names them.
        """
        if not isinstance(guidance, ClassifierGuidance | None):
            raise TypeError(
                f"guidance={guidance!r} must be a ClassifierGuidance; guidance_scale guides without classifier"
            )
        network, blocks = model.network, config.blocks_for(model.config.block_size)
        arguments: dict[str, object] = {
            "input_ids": input_ids, "attention_mask": attention_mask, "given": given, "x_0": x_0, "length": length,
            "start_from": start_from, "class_labels": class_labels, "guidance": guidance,
            "logits_processor": logits_processor or None,
            "stopping_criteria": stopping_criteria, "streamer": streamer, "max_length": config.max_length,
        }  # fmt: skip
        if model.path.strings is not None:  # whose length no option sets
            arguments["length"] = config.length if length is None else length
        check_options(model.path, model.config, config, {**arguments, **explicit}, blocks)
        reason = network.backbone.no_window if blocks is not None and blocks.cache in APPROXIMATE else None
        if reason is not None:
            raise ValueError(f"blocks={blocks!r} cannot be used with this model: {reason}; leave out cache")
        if network.whole_batches:
            raise ValueError("the weights are sharded over processes: load the saved model, and generate with that")
        for name, functions in (("logits_processor", logits_processor), ("stopping_criteria", stopping_criteria)):
            if not isinstance(functions, Sequence | None) or not all(callable(one) for one in functions or ()):
                raise TypeError(f"{name}={functions!r} must be a list of functions")
        if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
            raise ValueError(f"batch_size={batch_size!r} must be an integer ≥ 1")
        rng = torch.Generator(device=model.device)
        seed = 0 if config.seed is None and config.do_sample is False else config.seed
        rng.manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)
        request = cls(config, network.fields, {}, rng, blocks=blocks)
        if streamer is not None or stopping_criteria or config.output_trajectory:
            request.observers = Observers(streamer, stopping_criteria)
        request.guidance, request.logits_processor = guidance, logits_processor or ()
        labels = class_labels
        if labels is not None and not isinstance(labels, Tensor):
            labels = torch.tensor([whole("class_labels", label, -1) for label in listed("class_labels", labels)])
        default = 1 if labels is None else labels.numel()
        start = start_from if isinstance(start_from, Draft | None) else Draft(start_from)
        request.start_time = 0.0 if start is None else float(start.time)
        if model.path.strings is not None:
            request._start_strings(model, input_ids, cast("Tensor | None", attention_mask), start, batch_size, default)
        else:
            request._start(model, input_ids, attention_mask, given, x_0, start)
            length = config.max_length if config.max_length is not None and input_ids is None else length
            request._set_shapes(network.groups, batch_size, length, default)
        if labels is not None:
            model.config.check_classes(labels, next(iter(request.shapes.values()))[0])
            request.class_labels = labels.to(model.device)
        if "" in network.fields:
            request._check_single(model.path, network.fields[""])
        if config.num_return_sequences > 1:
            request._repeat(config.num_return_sequences)
        return request

    def _start(
        self,
        model: Model,
        input_ids: Tensor | None,
        attention_mask: Tensor | Mapping[str, Tensor] | None,
        given: Given | Mapping[str, Given],
        x_0: Tensor | None,
        start: Draft | None,
    ) -> None:
        """Takes prompts, observed values, padding, a given state and a draft."""
        if start is not None:
            cells = start.cells(model.path, model.network.fields, model.config.mask_token_id)
            self.draft = {name: values.to(model.device) for name, values in cells.items()}
        if input_ids is not None:
            self._observe_prompts(model, input_ids, cast("Tensor | None", attention_mask))
        elif given is not None or attention_mask is not None:
            self._observe(given, attention_mask, model.device)
        if x_0 is not None:
            if not isinstance(x_0, Tensor) or x_0.dim() < 2:
                raise ValueError(f"x_0 must be a tensor [B, …] of at least two dimensions, got {x_0!r}")
            self.x_0 = {"": pack_state(model.path, x_0, "x_0")[""].to(model.device)}

    def _start_strings(
        self,
        model: Model,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        start: Draft | None,
        batch_size: int | None,
        default: int,
    ) -> None:
        """Takes prompts and drafts that are strings; `default` is the batch size if no argument gives one."""
        path, config, pad = cast(EditPath, model.path), model.config, self.config.pad_token_id
        pad = next(token for token in (pad, config.pad_token_id, path.blank_token_id) if token is not None)
        whole("pad_token_id", pad, 0, path.vocab_size - 1, ", an id of the model's tokenizer")
        mask, batches = config.mask_token_id, {} if batch_size is None else {"batch_size": batch_size}
        prompts, draft = None, None
        if input_ids is not None:
            prompts = read_prompts(path, input_ids, attention_mask, mask)
            batches["input_ids"] = len(input_ids)
        if start is not None:
            draft = read_draft(path, start, attention_mask if input_ids is None else None, mask, pad).to(model.device)
            batches["start_from"] = len(draft)
        batch = _agreed("batch sizes", batches, default)
        limit = self.fields[""].length if self.config.max_length is None else self.config.max_length
        self.strings = StringStart.of(path, batch, prompts, draft, limit, self.config.max_new_tokens, pad, model.device)
        self.shapes = {"": (batch, int(self.strings.max_length.max()))}

    def _repeat(self, times: int) -> None:
        """Repeats every row of the batch, one copy after another."""
        row = torch.arange(next(iter(self.shapes.values()))[0]).repeat_interleave(times)
        self.shapes = {name: (len(row), *shape[1:]) for name, shape in self.shapes.items()}
        self.observed = {name: cells.rows(row) for name, cells in self.observed.items()}
        self.fixed = {name: mask[row] for name, mask in self.fixed.items()}
        self.attention_mask = {name: mask[row] for name, mask in self.attention_mask.items()}
        self.new = None if self.new is None else self.new[row]
        self.draft = {name: cells.rows(row) for name, cells in self.draft.items()}
        self.x_0 = None if self.x_0 is None else {name: state[row] for name, state in self.x_0.items()}
        self.strings = None if self.strings is None else self.strings.rows(row)
        self.class_labels = None if self.class_labels is None else self.class_labels[row]
        self.logits_processor = [p.rows(row) if isinstance(p, AllowedTokens) else p for p in self.logits_processor]

    def _observe_prompts(self, model: Model, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        """Takes prompts as observed values: everything but mask tokens."""
        config, pad, new = model.config, self.config.pad_token_id, self.config.max_new_tokens
        if self.config.max_length is not None and isinstance(input_ids, Tensor):
            new = self.config.max_length - input_ids.shape[-1]
            if new < 0:
                raise ValueError(
                    f"max_length={self.config.max_length} is less than the {input_ids.shape[-1]} positions of input_ids; it "
                    "counts the prompt, and max_new_tokens does not"
                )
        drafted = self.draft[""].state.shape[1] if self.draft else 0
        if isinstance(input_ids, Tensor) and new == 0 and self.config.max_length is None:
            new = max(0, drafted - input_ids.shape[-1])  # the draft goes on after the prompts
        canvas = Canvas.of_prompts(
            model.path, input_ids.to(model.device) if isinstance(input_ids, Tensor) else input_ids, attention_mask,
            new, config.mask_token_id, config.pad_token_id if pad is None else pad,
            align_left=self.blocks is not None,
        )  # fmt: skip
        if bool(canvas.fixed.all()):
            logger.warning_once("input_ids leave nothing to fill: give max_new_tokens, or mask tokens in the prompt")
        if drafted not in (0, canvas.ids.shape[1]):
            raise ValueError(
                f"start_from has {drafted} positions; the samples have {canvas.ids.shape[1]}, those of input_ids and "
                "max_new_tokens: give a draft of all of them, the prompts included"
            )
        self.observed = {"": Observed(canvas.ids, canvas.ids, canvas.fixed)}
        self.fixed, self.attention_mask, self.new = {"": canvas.fixed}, {"": canvas.real}, canvas.new

    def _observe(
        self,
        given: Given | Mapping[str, Given],
        attention_mask: Tensor | Mapping[str, Tensor] | None,
        device: torch.device,
    ) -> None:
        """Takes natural values and masks of padding, by field."""
        fields = self.fields
        for name, value in _by_field(given, fields, "given").items():
            self.observed[name] = Observed.of(value, fields[name], name).to(device)
            self.fixed[name] = self.observed[name].mask
        for name, mask in _by_field(attention_mask, fields, "attention_mask").items():
            if not isinstance(mask, Tensor):
                raise ValueError(f"attention_mask[{name!r}] must be a tensor [B, L], got {mask!r}")
            if mask.dim() != 2 or fields[name].image_shape:
                raise ValueError(f"attention_mask[{name!r}] has shape {tuple(mask.shape)}; it is [B, L] for a sequence")
            self.attention_mask[name] = mask.to(device)

    def _set_shapes(
        self,
        groups: Sequence[Sequence[str]],
        batch_size: int | None,
        length: int | Mapping[str, int] | None,
        default: int,
    ) -> None:
        """Sets the shape of every field, from the batch and lengths of the arguments; padding of fields becomes fixed."""
        fields, usual = self.fields, self.config.length
        asked = length if isinstance(length, Mapping) else dict.fromkeys(fields, length)
        usual = usual if isinstance(usual, Mapping) else dict.fromkeys(fields, usual)
        if unknown := {*asked, *usual} - fields.keys():
            raise ValueError(f"length names {', '.join(sorted(unknown))}; the fields are {', '.join(fields)}")
        tensors = [(name, "given" if self.new is None else "input_ids", o.state) for name, o in self.observed.items()]
        if self.new is None:
            tensors += [(name, "attention_mask", mask) for name, mask in self.attention_mask.items()]
        tensors += [(name, "x_0", x) for name, x in (self.x_0 or {}).items()]
        tensors += [(name, "start_from", cells.state) for name, cells in self.draft.items()]
        batches: dict[str, int] = {}
        lengths: dict[str, dict[str, int]] = {name: {} for name in fields}
        for name, argument, tensor in tensors:
            label = f"{argument}[{name!r}]" if name else argument
            batches[label], lengths[name][label] = len(tensor), tensor.shape[1]
        if batch_size is not None:
            batches["batch_size"] = batch_size
        batch = _agreed("batch sizes", batches, default)
        for group in groups:  # its fields share their positions
            own, found = fields[group[0]].length, {}
            for name in group:
                own, found = usual.get(name) or own, found | lengths[name]
                size = asked.get(name)
                if size is not None and not fields[name].image_shape:
                    found[f"length[{name!r}]" if isinstance(length, Mapping) else "length"] = size
            size = _agreed(f"lengths of {', '.join(group)}" if group[0] else "lengths", found, own)
            for name in group:
                self.shapes[name] = (batch, *fields[name].state_shape(size))
        if self.new is None:  # prompts have taken their padding for fixed already
            for name, mask in self.attention_mask.items():
                shape = self.shapes[name]
                padded = (mask == 0).view(*mask.shape, *[1] * (len(shape) - 2)).expand(shape)
                self.fixed[name] = self.fixed[name] | padded if name in self.fixed else padded

    def _check_single(self, path: Path, field: Field) -> None:
        """
        Raises:
            ValueError: x_0, a token id or allowed tokens do not fit a state of one field.
        """
        shape, config, eos = self.shapes[""], self.config, self.config.eos_token_id
        x_0 = None if self.x_0 is None else self.x_0[""]
        if isinstance(path, FinitePath):
            path.check_source(x_0, torch.zeros(shape, dtype=torch.long), torch.zeros(shape[0]))
            self.eos = cast("Sequence[int]", eos if isinstance(eos, Sequence) else [] if eos is None else [eos])
            pad, words = config.pad_token_id, config.bad_words_ids or []
            banned = [token for word in words for token in word]
            ids = {"pad_token_id": [] if pad is None else [pad], "eos_token_id": self.eos, "bad_words_ids": banned}
            for name, tokens in ids.items():
                if not all(isinstance(token, int) and 0 <= token < path.vocab_size for token in tokens):
                    raise ValueError(
                        f"{name}={getattr(config, name)!r} must hold ids below vocab_size={path.vocab_size}: is this the "
                        "model's tokenizer?"
                    )
            never = {*field.excluded, *(word[0] for word in words if len(word) == 1)}
            if len(never) >= path.vocab_size:
                raise ValueError(f"bad_words_ids={words} leaves no token of the vocabulary; ban fewer")
            for processor in self.logits_processor:
                if isinstance(processor, AllowedTokens):
                    free = ~self.fixed[""] if self.fixed else torch.ones(shape, dtype=torch.bool)
                    processor.check(free, path.vocab_size, never)
        elif any(isinstance(processor, AllowedTokens) for processor in self.logits_processor):
            raise ValueError(
                "logits_processor: AllowedTokens is by position, and in strings positions move: give a processor that "
                "depends on the tokens alone"
            )
        elif x_0 is not None and x_0.shape != shape:
            raise ValueError(f"x_0 has shape {tuple(x_0.shape)}; the model takes [B, {str(shape[1:])[1:-1]}]")
        if shape[1] > field.length and not field.image_shape:
            logger.warning_once(f"{shape[1]} positions; the model is made for max_position_embeddings={field.length}")

    def conditioning(
        self, rows: Tensor | None = None, length: int | None = None
    ) -> tuple[dict[str, Any], Sharpening | None]:
        """The arguments of `model.generator` beside state and time, for all sequences or for the rows [n] of the batch; and
        temperature, top_k and top_p, if the sampler applies them itself.

        Args:
            length: positions of the sequences; all by default.
        """
        every, config = slice(None) if rows is None else rows, self.config
        processors = Processors(
            processor.rows(rows) if rows is not None and isinstance(processor, AllowedTokens) else processor
            for processor in self.logits_processor
        )
        processors.given_others = most_likely = config.do_sample is False or config.temperature == 0
        if config.bad_words_ids:
            processors.append(BannedSequences(config.bad_words_ids))
        sharpening = Sharpening() if config.sampler.sharpens else processors
        if most_likely:
            sharpening.append(MostLikely())
        elif isinstance(config.temperature, Sequence):
            sharpening.append(TemperatureSchedule(*config.temperature))
        elif config.temperature not in (None, 1.0):
            sharpening.append(TemperatureLogitsWarper(float(config.temperature)))
        if config.top_k is not None:
            sharpening.append(TopKLogitsWarper(config.top_k))
        if config.top_p not in (None, 1.0):
            sharpening.append(TopPLogitsWarper(float(config.top_p)))
        recorder = None if self.observers is None else self.observers.recorder
        masks = {name: mask[every, :length] for name, mask in self.attention_mask.items()}
        if all(bool((mask == 1).all()) for mask in masks.values()):  # one document without padding
            masks = {}  # attention without a mask is faster
        return {
            "attention_mask": unpack(masks) if masks else None,
            "class_labels": None if self.class_labels is None else self.class_labels[every],
            "logits_processor": processors or None,
            "guidance_scale": config.guidance_scale,
            "on_read": None if recorder is None else recorder.entropy,
        }, sharpening if isinstance(sharpening, Sharpening) and sharpening else None

    def natural(self, end: State) -> dict[str, Tensor]:
        """Samples in natural units, with the observed values exactly as they were given."""
        found = dict(end)
        for name in found:
            codec = self.fields[name].codec
            if isinstance(codec, Scaler):
                found[name] = codec.inverse(found[name])
        for name, cells in self.observed.items():
            if self.new is None:  # tokens of prompts have not moved
                found[name] = torch.where(cells.mask, cells.natural.to(found[name].dtype), found[name])
        return found


def _by_field(value: T | Mapping[str, T] | None, fields: Mapping[str, Field], name: str) -> Mapping[str, T]:
    """The value of each field: for a single field the value itself.

    Raises:
        ValueError: it is no dict of the model's fields.
    """
    if value is None or "" in fields:
        return {} if value is None else {"": cast(T, value)}
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a dict by field, of {', '.join(fields)}")
    if unknown := [key for key in value if key not in fields]:
        key, codecs = unknown[0], {field: found.codec for field, found in fields.items()}
        parts = [repr(f) for f, codec in codecs.items() if isinstance(codec, DatePart) and f == f"{key}_{codec.part}"]
        meant = f"; this column of dates has the fields {', '.join(parts)}." if parts else nearest(str(key), fields)
        raise ValueError(f"{name} has {key!r}, which is no field{meant or '.'} All fields are {', '.join(fields)}")
    return value


def _agreed(what: str, sizes: Mapping[str, int], default: int) -> int:
    """The size that all arguments agree on; the default if none gives one.

    Raises:
        ValueError: they differ.
    """
    found = {*sizes.values()} or {default}
    if len(found) > 1:
        raise ValueError(f"{what} differ: {', '.join(f'{name} has {size}' for name, size in sizes.items())}; give one")
    return found.pop()
