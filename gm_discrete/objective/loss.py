"""Conditional generator matching: E_{t, z, x ~ p_t(·|z)} D(F(x|z), F_θ(x)), whose minimiser is the marginal generator.

The path of a batch: `conditional_loss` checks it and noises it (`corrupt`); the model predicts a generator for each field;
`field_losses` compares these with the targets, known in closed form, by Bregman divergences; `total_loss` is their weighted
sum. A network does the last three in its own `forward`, which wrappers for distributed training and mixed precision hook.
"""

from __future__ import annotations

import inspect
from collections import ChainMap
from collections.abc import Mapping
from typing import Any, Never, TypeVar, cast

import torch
from torch import Tensor, nn

from gm_discrete.arguments import readable
from gm_discrete.generators import Factor, Generator, Jump, Superposition
from gm_discrete.generators.rows import true_entries
from gm_discrete.generators.spaces import whole
from gm_discrete.objective import bregman
from gm_discrete.objective.times import TimeSampler, draw_times
from gm_discrete.paths.base import Path
from gm_discrete.paths.edits import EditPath
from gm_discrete.paths.schedules import At
from gm_discrete.process import (
    Process,
    State,
    check_call,
    check_state,
    factors,
    pack,
    pack_state,
    unpack,
)
from gm_discrete.renamed import refuse_unknown

T = TypeVar("T")

GREATEST_TIME = 1 - 2**-30
"""Where an observed field (t = 1) is evaluated: its hazard 2³⁰ is finite in every float type but float16."""


def conditional_loss(
    process: Process | nn.Module,
    z: Tensor | State,
    attention_mask: Tensor | State | None = None,
    rng: torch.Generator | None = None,
    *,
    scored: Tensor | State | None = None,
    time_sampler: TimeSampler | None = None,
    divergence: bregman.Choice | None = None,
    x_0: Tensor | None = None,
    class_labels: Tensor | None = None,
    **unknown: Never,
) -> Tensor:
    """Conditional generator matching loss of a batch, per scored entry (for discrete states in nats).

    Draws times t and noisy states x ~ p_t(·|z). A `GMModel` computes the loss in its own `forward`; any other process is
    evaluated by `.generator(x, t)`.

    Args:
        process: a module whose `forward` takes `labels`, called as `model(input_ids=x, time=t, labels=z)` (`input_values` or
            `fields` for other paths); or anything else with `.path` and `.generator(x, t)`: a network of your own, an exact
            posterior.
        z: clean data: long [B, L], or floating-point [B, …] for a continuous path; for a product a dict by field, as are
            then attention_mask and scored.
        attention_mask: [B, L], 0 where padded: these positions are neither noised, nor attended to, nor scored. Positions
            with different positive numbers are of different documents, which do not attend to each other.
        rng: source of the noise.
        scored: bool of z's shape, the entries to noise and to score; of rotations also [B, L]. By default all that are not
            padded.
        time_sampler: distribution of the times; `LogitNormalTimeSampler()` by default.
        divergence: in place of that of the model's config, or of its path (see `bregman.divergence`); by field and part
            where there are several.
        x_0: sources [B, L] of a coupled path.
        class_labels: long [B], for a model with classes; a share `config.class_dropout` of them is dropped.

    Returns:
        Scalar, float32.

    Raises:
        ValueError, TypeError: an argument does not fit the path; the message names it.

    >>> from gm_discrete import ExactModel, MaskedPath
    >>> z = torch.tensor([[0, 1], [1, 0]])
    >>> posterior = ExactModel(MaskedPath(3), z)  # of data that is one of these two sequences
    >>> conditional_loss(posterior, z, rng=torch.Generator().manual_seed(0)) >= 0
    tensor(True)
    """
    if unknown:
        refuse_unknown(unknown, "conditional_loss", {"times": "time_sampler"})
    model: Any = unwrapped(process)
    path: Path = model.path
    z = unpack(pack_state(path, z, "z"))
    state, chosen = pack(z), pack(scored_positions(path, z, attention_mask, scored))
    conditioning: dict[str, Any] = {} if attention_mask is None else {"attention_mask": attention_mask}
    by_forward = isinstance(process, nn.Module) and _takes_labels(model)
    if not by_forward:
        _check_process(model, process)
    if hasattr(model, "check") or not by_forward:
        check_call(model, z, "z", conditioning | ({} if class_labels is None else {"class_labels": class_labels}))
    else:  # a module of your own needs no generator, but a `forward`
        check_state(path, z, "z")
    if not isinstance(x_0, Tensor | None):
        raise ValueError(f"x_0 must be a tensor of sources [B, L], got {x_0!r}")
    sources = None if x_0 is None else pack(x_0)
    if path.strings is not None:  # blanks tell what is padding
        conditioning = {}
        state, chosen, sources = align_strings(path, state, chosen, attention_mask, rng, sources)
    x, t = corrupt(path, state, chosen, rng, time_sampler, x_0=sources)
    if class_labels is not None:
        dropout = getattr(getattr(model, "config", None), "class_dropout", 0.0)
        conditioning["class_labels"] = drop_classes(class_labels, dropout, rng)
    if by_forward:
        labels = {}
        for name, field in path.fields.items():
            labels[name] = field.mask_labels(state[name], chosen[name])
        choice = {} if divergence is None else {"divergence": divergence}
        return cast(nn.Module, process)(
            **{path.state_name: unpack(x)}, time=t, labels=unpack(labels), **conditioning, **choice
        ).loss
    predicted = factors(model.generator(unpack(x), t, **conditioning))
    return total_loss(field_losses(path, predicted, state, x, t, chosen, divergence=divergence))


def _takes_labels(model: nn.Module) -> bool:
    """Whether a module computes the loss in its own `forward`, as `GMModel` does."""
    parameters = inspect.signature(model.forward).parameters
    return "labels" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _check_process(model: object, given: object) -> None:
    """Checks that a process without a loss of its own can be evaluated.

    Raises:
        TypeError: it has no generator, or is in a wrapper that acts on calls of `forward` only.
    """
    name = type(model).__name__
    if not callable(getattr(model, "generator", None)):
        raise TypeError(
            f"{name} has neither a method generator(x, t) nor a forward that takes labels; define one of them"
        )
    if given is not model:
        raise TypeError(
            f"{name} is wrapped in {type(given).__name__}, and its forward takes no labels: the wrapper would not run at "
            "generator(x, t). Pass the module itself, or compute the loss in its forward, as GMModel does"
        )


def align_strings(
    path: Path,
    z: State,
    scored: State,
    attention_mask: Any = None,
    rng: torch.Generator | None = None,
    x_0: State | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[State, State, State | None]:
    """(z, scored, x_0) of strings, in the columns of an alignment of data and source (see `EditPath.aligned`)."""
    found = cast(EditPath, path)
    data = found.strings.without_padding(z[""], attention_mask)
    source = None if x_0 is None else x_0[""]
    data, chosen, source = found.aligned(data, scored[""], rng, source, rank, world_size)
    return {"": data}, {"": chosen}, None if source is None else {"": source}


def corrupt(
    path: Path,
    z: State,
    scored: State,
    rng: torch.Generator | None = None,
    time_sampler: TimeSampler | None = None,
    rank: int = 0,
    world_size: int = 1,
    x_0: State | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """(x, t): noisy states x ~ p_t(·|z), by field, and their times; entries that are not scored stay as they are.

    The noise is that of the global batch, of which this process takes the rows of its `rank`: processes that share a batch
    and have generators in equal states draw together what one process would draw for all of it. Data is not checked here:
    `GMModel.forward` checks what it gets.

    Args:
        z, scored: data and bool of its shape, by field.
        x_0: sources of a coupled path.
    """
    first = next(iter(z.values()))
    batch, device = len(first), first.device
    rows = slice(rank * batch, (rank + 1) * batch)
    t = draw_times(path, batch * world_size, rng, device, time_sampler)
    x, times = {}, path.times(t)
    for name, field in path.fields.items():
        source = None if x_0 is None else x_0[name]
        if source is not None or field.coupled:
            field.check_source(source, z[name], times[name][rows])
        everyone = (world_size, *[1] * (z[name].dim() - 1))
        source = None if source is None else source.repeat(everyone)
        noisy = field.sample(z[name].repeat(everyone), times[name], rng, source, check=False)
        x[name] = torch.where(scored[name], noisy[rows], z[name])
    return x, t[rows]


def field_losses(
    path: Path,
    generators: Mapping[str, Factor],
    z: State,
    x: State,
    t: Tensor,
    scored: State,
    num_items: Mapping[str, Tensor | float] | None = None,
    divergence: bregman.Choice | None = None,
    weights: Mapping[str, Any] | None = None,
    now: Mapping[str, At] | None = None,
) -> dict[str, Tensor]:
    """Loss of each field: mean over its scored entries of Σ_parts w D(F(x|z), F_θ(x)), float32.

    The marginal generator minimises any weighted sum of them, as the divergences of different fields share no output.

    Args:
        generators: the prediction F_θ(x) of each field.
        z, x: data and states [B, …] by field; t: times [B], or [B, M] of independent times.
        scored: bool of their shape, by field.
        num_items: what the sum of each field is divided by; the number of its scored entries by default.
        divergence: of a `Superposition` by part, of a product by field; by default that of the field's path.
        weights: weights w of the parts; of a product by field weights of its parts, or one for `total_loss` to apply.
        now: as for `field_divergences`.
    """
    compared = _compared(path, generators, z, x, t, scored, divergence, now)
    parts = [part for parts in compared.values() for part in parts.values()]
    entries = iter(true_entries([part.entries for part in parts if part.entries is not None]))
    losses = {}
    for name, parts in compared.items():
        inner = (weights or {}).get(name) if name else weights
        inner = inner if isinstance(inner, Mapping) else {}
        totals = [
            inner.get(kind, 1.0) * part.total(None if part.entries is None else next(entries))
            for kind, part in parts.items()
        ]
        count = path.fields[name].number(z[name], scored[name]).clamp(min=1) if num_items is None else num_items[name]
        losses[name] = (torch.stack(totals).sum() / count).float()
    return losses


def total_loss(losses: Mapping[str, Tensor], weights: Mapping[str, Any] | None = None) -> Tensor:
    """Σ_m w_m loss_m over the fields. A field without a number in `weights` has w_m = 1."""
    weighted = []
    for name, loss in losses.items():
        weight = (weights or {}).get(name, 1.0)
        weighted.append(loss if isinstance(weight, Mapping) else weight * loss)
    return torch.stack(weighted).sum()


def field_divergences(
    path: Path,
    generators: Mapping[str, Factor],
    z: State,
    x: State,
    t: Tensor,
    scored: State,
    divergence: bregman.Choice | None = None,
    now: Mapping[str, At] | None = None,
) -> dict[str, dict[str, Tensor]]:
    """D(F(x|z), F_θ(x)) by field and part, each of x's shape and 0 where it is not scored, or its field is observed (t = 1).

    Generators are taken in `path.units`, for discrete states per unit of κ. The parts of a superposition are compared
    unscaled: their weights in the process are not those in the loss.

    Args:
        now: times with values of the schedules, by field, that `generators` were made with (`path.at`), for a batch that
            is checked already; by default the data is checked here, and the generators are in 1/time.

    Raises:
        TypeError: the model's generator lacks a field or a part that the path trains.
    """
    compared = _compared(path, generators, z, x, t, scored, divergence, now)
    return {name: {kind: part.values() for kind, part in parts.items()} for name, parts in compared.items()}


def _compared(
    path: Path,
    generators: Mapping[str, Factor],
    z: State,
    x: State,
    t: Tensor,
    scored: State,
    divergence: bregman.Choice | None,
    now: Mapping[str, At] | None,
) -> dict[str, dict[str, bregman.Comparison]]:
    """What `field_divergences` evaluates, before any row of a network is read."""
    if missing := path.fields.keys() - generators.keys():
        raise TypeError(
            f"the model's generator has the fields {', '.join(generators)}, and lacks {', '.join(missing)} of the path: "
            "return a Product with a generator for each field"
        )
    found: dict[str, dict[str, bregman.Comparison]] = {}
    check, times = now is None, path.times(t)
    if now is None:
        now = {name: path.fields[name].at(time) for name, time in generator_times(path, t).items()}
    for name, field in path.fields.items():
        state, here = x[name], now[name]
        kinds = divergence.get(name) if name and isinstance(divergence, Mapping) else divergence
        kinds = field.default_divergence if kinds is None else kinds
        kinds = kinds if isinstance(kinds, Mapping) else {"jump": kinds}
        if not kinds:
            raise ValueError(f"divergence={divergence!r} names no part of the loss; leave it out for the default")
        target = field.conditional(z[name], state, here, check=check)
        aims, guesses = _parts(target), _parts(generators[name])
        if missing := kinds.keys() - guesses.keys():
            raise TypeError(
                f"the model's generator has the parts {', '.join(guesses)}, and lacks {', '.join(missing)}, which the path "
                "trains: return a Superposition with all of them, or leave them out of divergence"
            )
        units, found[name] = field.units(here), {}
        state, open_ = field.compared(state, scored[name] & (times[name] < 1).view(-1, *[1] * (state.dim() - 1)))
        for part, kind in kinds.items():
            aim, guess = aims[part], guesses[part]
            if field.is_discrete:  # rates that are infinite at t = 0 do not depend on z there: D tends to 0
                open_ = open_ & aim.intensity.isfinite()
            if part in units:  # else they are in it
                dims = aim.intensity.dim() if isinstance(aim, Jump) else state.dim()
                unit = units[part].view(-1, *[1] * (dims - 1))
                unit = unit if field.is_discrete else unit.to(state.dtype)
                aim, guess = aim.per(unit), guess.per(unit)
            found[name][part] = bregman.compare(aim, guess, state, open_, kind)
    return found


def _parts(generator: Generator) -> Mapping[str, Any]:
    """What a loss may compare: the parts of a superposition, and the belief of which they are means, if there is one."""
    if not isinstance(generator, Superposition):
        return {"jump": generator}
    parts: Any = generator.parts  # not copied, as they may be made on access
    return parts if generator.belief is None else ChainMap({"belief": generator.belief}, parts)


def generator_times(path: Path, t: Tensor) -> dict[str, Tensor]:
    """The time at which the generator of each field is evaluated. Fields with a time of their own may be observed (t = 1):
    these are evaluated slightly earlier, where hazards are finite. They have no loss, and 0 · ∞ must not be its gradient."""
    times = path.times(t)
    if not t.is_floating_point():
        raise ValueError(f"time must be floating-point, got {t.dtype}")
    if t.dim() == 1:
        return times
    most = {name: min(field.latest, GREATEST_TIME) for name, field in path.fields.items()}
    return {name: torch.where(time > 1, time, time.clamp(max=most[name])) for name, time in times.items()}


def drop_classes(
    class_labels: Tensor, dropout: float, rng: torch.Generator | None, rank: int = 0, world_size: int = 1
) -> Tensor:
    """The labels [B], each replaced by −1 (no class) with probability `dropout`, by noise of the global batch."""
    batch = len(class_labels)
    device = rng.device if rng is not None else class_labels.device
    u = torch.rand(batch * world_size, generator=rng, device=device)[rank * batch : (rank + 1) * batch]
    return torch.where(u.to(class_labels.device) < dropout, -1, class_labels)


def scored_positions(
    path: Path,
    z: Tensor | State,
    attention_mask: Tensor | State | None = None,
    scored: Tensor | State | None = None,
) -> Any:
    """bool of z's shape: the `scored` entries that are not padded. A tensor for a tensor z, else by field.

    Raises:
        ValueError: a mask does not have z's shape, or (checked on the CPU only, as elsewhere it would stall the device)
            no entry is left, or a scored entry holds a symbol that data never holds, such as the mask.
    """
    for name, value in {"z": z, "attention_mask": attention_mask, "scored": scored}.items():
        if "" in path.fields and isinstance(value, Mapping) and "" not in value:
            raise ValueError(
                f"{name} must be a tensor for {path!r}, got a dict of {', '.join(map(str, value)) or 'nothing'}"
            )
    state: State = pack(z)
    masks: dict[str, State] = {
        "attention_mask": {} if attention_mask is None else pack(attention_mask),
        "scored": {} if scored is None else pack(scored),
    }
    for name, value in {**masks, "z": state}.items():
        if unknown := value.keys() ^ path.fields.keys() if name == "z" else value.keys() - path.fields.keys():
            raise ValueError(
                f"{name} must be a dict by field: {', '.join(sorted(map(str, unknown)))} does not fit {path!r}"
            )
    found: dict[str, Tensor] = {}
    for field, values in state.items():
        own = path.fields[field]
        if not isinstance(values, Tensor):
            raise ValueError(f"z must be a tensor, got {type(values).__name__} {values!r}")
        if values.dim() < 2 or values.is_floating_point() == own.is_discrete:
            kind = "a long tensor [B, L]" if own.is_discrete else "a floating-point tensor [B, L, C] or [B, C, H, W]"
            raise ValueError(f"z must be {kind}, got {values.dtype} of shape {tuple(values.shape)}")
        chosen = torch.ones_like(values, dtype=torch.bool)
        for name, given in masks.items():
            if (mask := given.get(field)) is None:
                continue
            if not isinstance(mask, Tensor):
                raise ValueError(f"{name} must be a tensor, got {type(mask).__name__} {mask!r}")
            if mask.device != values.device:
                raise ValueError(f"{name} is on {mask.device}, z on {values.device}: move one of them by .to(device)")
            if name == "attention_mask" and values.dim() == 3:  # of vectors [B, L, C]
                mask = mask[..., None].expand(*mask.shape, values.shape[2])
            mask = whole(mask.bool(), values.shape, own.space)
            if mask.shape != values.shape:
                raise ValueError(
                    f"{name} has shape {tuple(given[field].shape)}; expected that of z, {tuple(values.shape)}"
                )
            chosen = chosen & mask.bool()
        if readable(values):
            for symbol in own.excluded:
                if bool((chosen & (values == symbol)).any()):
                    raise ValueError(f"z holds the id {symbol}, which never is data of {own!r}: mark it as not scored")
        found[field] = chosen
    if all(readable(chosen) and not bool(chosen.any()) for chosen in found.values()):
        raise ValueError("nothing is left to score: attention_mask and scored leave no entry")
    return found if isinstance(z, Mapping) else found[""]


def conditioning_of(model: Process, z: Tensor, given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the generator of a model when data z is scored: those given that are not `None`, and for a
    block-causal model the data whose blocks precede each block."""
    clean = z if getattr(getattr(model, "config", None), "block_size", None) else None
    return {name: value for name, value in {**given, "clean": clean}.items() if value is not None}


def unwrapped(model: Process | nn.Module) -> Any:
    """The process itself: the model, or the module in a wrapper (DDP, torch.compile).

    Raises:
        TypeError: it has no path.
    """
    for holder in (model, getattr(model, "module", None), getattr(model, "_orig_mod", None)):
        if isinstance(getattr(holder, "path", None), Path):
            return holder
    raise TypeError(f"{type(model).__name__} has no probability path: give an object with .path and .generator(x, t)")
