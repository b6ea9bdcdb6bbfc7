"""Checks of what `GMModel.forward` and `GMModel.generator` are called with. Nothing below them checks it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Never

import torch
from torch import Tensor

from gm_discrete.arguments import number, readable
from gm_discrete.generation.request import Model
from gm_discrete.nn.readout import LogitsProcessor, OnRead
from gm_discrete.paths.base import check_times, different_sizes
from gm_discrete.process import State, pack
from gm_discrete.renamed import refuse_unknown


def check_arguments(
    model: Model,
    x: Tensor | State,
    name: str = "x",
    t: Tensor | None = None,
    t_next: Tensor | None = None,
    attention_mask: Tensor | State | None = None,
    class_labels: Tensor | None = None,
    guidance_scale: float | None = None,
    generators: Mapping[str, object] | None = None,
    network_time: Tensor | None = None,
    clean: Tensor | None = None,
    logits_processor: LogitsProcessor | None = None,
    on_read: OnRead | None = None,
    **unknown: Never,
) -> None:
    """Checks the arguments of `GMModel.generator`.

    Args:
        name: of the state, for messages. The others are those of `GMModel.generator`.

    Raises:
        TypeError: there is no such argument.
        ValueError: an argument is not what the model is made for; the message names it.
    """
    if unknown:
        refuse_unknown(unknown, "generator", {"told": "network_time"})
    path, state = model.path, pack(x)
    given = {"t": t, "t_next": t_next, "network_time": network_time}
    check_tensors(model, {label: time for label, time in given.items() if time is not None})
    times = None if t is None else path.times(t)
    masks = None if attention_mask is None else pack(attention_mask)
    checked_batch(model, state, times, masks, None, class_labels, name)
    for field, end in ({} if t_next is None else path.times(t_next)).items():
        check_times(end if times is None else times[field], state[field], end)
    for field, time in ({} if network_time is None else path.times(network_time)).items():
        check_times(time, state[field])
    if guidance_scale is not None:
        number("guidance_scale", guidance_scale, least=0, cure="; 1 is no guidance")
    if clean is not None:
        if not model.config.block_size:
            raise ValueError("clean needs a model with a block_size: others condition on all of x, and on nothing else")
        checked_batch(model, pack(clean), times, None, None, None, "clean")
    if generators is not None and not isinstance(generators, Mapping):
        raise TypeError(f"generators={generators!r} must be weights by name")


def checked_batch(
    model: Model,
    x: State,
    times: Mapping[str, Tensor] | None,
    masks: State | None,
    labels: State | None,
    class_labels: Tensor | None,
    argument: str,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Checks a batch. Returns (z, scored) of the labels, if there are any.

    Args:
        times: by field; `None` for a state whose time is not known yet.
        argument: what messages call the state.

    Raises:
        ValueError: a tensor is not what the model is made for.
    """
    path, network = model.path, model.network
    if x.keys() != path.fields.keys():
        expected = "a tensor" if "" in path.fields else f"a dict with the fields {', '.join(path.fields)}"
        found = "a tensor" if "" in x else ", ".join(map(str, x)) or "nothing"
        raise ValueError(f"{argument} must be {expected}; got {found}")
    tensors: dict[str, object] = {}
    for name, value in ((argument, x), ("attention_mask", masks), ("labels", labels)):
        if value is not None and (unknown := value.keys() - x.keys()):
            names = ", ".join(sorted(map(str, unknown))) or "a tensor"
            raise ValueError(f"{name} must be by field, of {', '.join(x)}; got {names}")
        if value is not None and "" in x and "" not in value:
            raise ValueError(f"{name} must be a tensor, got {dict(value)}")
        for key, tensor in (value or {}).items():
            tensors[f"{name}[{key!r}]" if key else name] = tensor
    if class_labels is not None:
        tensors["class_labels"] = class_labels
    check_tensors(model, tensors)
    first, *others = x.values()
    if any(state.shape[0] != first.shape[0] for state in others):
        raise different_sizes(x, argument)
    z, scored = {}, {}
    for name, field in network.fields.items():
        state, where = x[name], f"[{name!r}]" if name else ""
        time = torch.zeros(first.shape[0], device=first.device) if times is None else times[name]
        if labels is None:
            field.path.check(state, time, argument + where)
        elif name not in labels or labels[name].shape != state.shape:
            found = f"shape {tuple(labels[name].shape)}" if name in labels else "nothing"
            raise ValueError(f"labels{where} has {found}; give the shape of the state, {tuple(state.shape)}")
        else:
            scored[name] = field.path.loss_mask(labels[name])
            z[name] = torch.where(scored[name], labels[name], field.path.fill_unscored(state))
            if field.path.strings is not None:
                check_writable(labels[name], field.excluded)
            field.path.check_pair(z[name], state, time, (f"labels{where}", argument + where))
        expected = field.state_shape(state.shape[1])
        if state.shape[1:] != expected:
            expected = ", ".join(str(size) for size in ("B", *expected))
            raise ValueError(f"{argument}{where} has shape {tuple(state.shape)}; the model takes [{expected}]")
        mask = None if masks is None else masks.get(name)
        if mask is not None and field.image_shape:
            raise ValueError(f"attention_mask{where} is given for an image, which has no padding; leave it out")
        if mask is not None and mask.shape != state.shape[:2]:
            raise ValueError(
                f"attention_mask{where} has shape {tuple(mask.shape)}; give [B, L] = {tuple(state.shape[:2])}"
            )
    for group in network.groups:
        if len(group) > 1 and len(lengths := {x[name].shape[1] for name in group}) > 1:
            raise ValueError(f"the aligned fields {', '.join(group)} have {sorted(lengths)} positions; give one number")
    if class_labels is not None:
        model.config.check_classes(class_labels, first.shape[0])
    return z, scored


def check_tensors(model: Model, tensors: Mapping[str, object]) -> None:
    """
    Args:
        tensors: by the name of the argument.

    Raises:
        ValueError: one is no tensor, or on another device than the model.
    """
    # accelerate keeps offloaded weights on "meta" until they are used, and spreads others over devices.
    spread = torch.compiler.is_compiling() or hasattr(model, "hf_device_map")
    own = "meta" if spread else model.device.type
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.dim():
            raise ValueError(f"{name} must be a tensor with a row for each example, got {tensor!r}")
        if own not in ("meta", tensor.device.type):
            raise ValueError(
                f"{name} is on {tensor.device}, the model on {model.device}: move one of them by .to(device)"
            )


def check_embeds(model: Model, embeds: Tensor, input_ids: Tensor | None, labels: Tensor | State | None) -> None:
    """
    Raises:
        ValueError: the model has no embedding of tokens for `inputs_embeds` to replace, or their shape does not fit.
    """
    field = model.config.state_fields.get("")
    if field is None or not field.is_token:
        raise ValueError(f"inputs_embeds replaces the embedding of tokens [B, L], and {model.path!r} has other states")
    if field.path.strings is not None:
        raise ValueError("inputs_embeds has no blanks, which end strings: give input_ids")
    if labels is not None:
        raise ValueError("inputs_embeds has no noisy symbols, which the loss needs: give input_ids with labels")
    size, shape = model.config.hidden_size, ("B", "L") if input_ids is None else tuple(input_ids.shape)
    if embeds.dim() != 3 or embeds.shape[2] != size or shape not in (("B", "L"), embeds.shape[:2]):
        expected = ", ".join(map(str, (*shape, size)))
        raise ValueError(f"inputs_embeds has shape {tuple(embeds.shape)}; the model takes [{expected}]")


def check_segments(token_type_ids: Tensor) -> None:
    """
    Raises:
        ValueError: there are several segments (on a device whose values can be read without waiting for it).
    """
    if readable(token_type_ids) and bool((token_type_ids != 0).any()):
        raise ValueError("token_type_ids has several segments, which the model does not tell apart; give one text")


def check_writable(labels: Tensor, excluded: Sequence[int]) -> None:
    """
    Raises:
        ValueError: data strings hold a symbol that no edit writes, such as the marker of gaps in prompts.
    """
    for symbol in excluded if readable(labels) else ():
        if bool((labels == symbol).any()):
            raise ValueError(
                f"labels hold the id {symbol}, which marks gaps in prompts and never is data: leave it out"
            )
