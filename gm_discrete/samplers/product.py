"""Steps of states with several fields: the network is asked once, and all fields move from the OLD state.

A field that moved by the new state of another would follow another process: the generator of a product is the *sum* of its
factors, all at (x, t). Within its factor every field takes the step that it would take alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gm_discrete.generators import Factor, Jump, Product, over
from gm_discrete.samplers.adaptive import check_changes, pace_of_tokens, unsettled_tokens
from gm_discrete.samplers.chain import Chain, Step
from gm_discrete.samplers.euclidean import advance, corrected, pace, predicted
from gm_discrete.samplers.steps import ancestral, euler, tau_leaping

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Known:
    """A factor at (x, t), as a model for the step of its field."""

    path: Any
    factor: Factor

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Factor:
        return self.factor if t_next is None else over(self.factor, t_next)


@dataclass
class ProductChain:
    """A `Chain` of states with several fields.

    Attributes:
        model: anything with `.path` (a product) and `.generator(x, t)`, whose generators are made by paths.
        free: by field, entries that may move.
        rng, conditioning, calls, jumps: as of a `Chain`. A sequence counts as asked for once in every evaluation.
        fields: the chain of each field, with its memory.
    """

    model: Any
    free: State
    rng: torch.Generator | None
    conditioning: dict[str, Any]
    calls: Tensor = field(init=False)
    fields: dict[str, Chain] = field(init=False)
    error: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.fields = {name: Chain(None, free, self.rng, {}) for name, free in self.free.items()}
        self.calls = torch.zeros_like(next(iter(self.fields.values())).calls)

    @property
    def jumps(self) -> Tensor:
        """[B], of all fields."""
        return torch.stack([chain.jumps for chain in self.fields.values()]).sum(0)

    def product(self, x: State, t: Mapping[str, Tensor]) -> dict[str, Chain]:
        """The chains of the fields, whose models are the factors of the product at (x, t).

        Raises:
            TypeError: the model's generator is no product.
            ValueError: it is one of other fields.
        """
        path: Any = getattr(self.model, "path", None)
        if not hasattr(path, "factors"):
            raise TypeError(f"a state of several fields needs a model of a ProductPath, not of {path!r}")
        if x.keys() != path.factors.keys():
            raise ValueError(f"x_0 has the fields {', '.join(x)}; those of the model are {', '.join(path.factors)}")
        generator = self.model.generator(x, path.joined(t), **self.conditioning)
        if not isinstance(generator, Product) or generator.factors.keys() != self.fields.keys():
            raise TypeError(
                f"the model's generator is a {type(generator).__name__}, not a Product of the state's fields"
            )
        for name, chain in self.fields.items():
            chain.model = Known(path.factors[name], generator.factors[name])
        return self.fields

    def counted(self, before: Mapping[str, Tensor], evaluations: int = 1) -> None:
        """Adds the evaluations of a step: of sequences that no field asked about there were none."""
        asked = torch.stack([chain.calls > before[name] for name, chain in self.fields.items()]).any(0)
        self.calls += evaluations * asked

    def so_far(self) -> dict[str, Tensor]:
        """Evaluations that each field has asked for."""
        return {name: chain.calls.clone() for name, chain in self.fields.items()}


ProductStep = Callable[[ProductChain, State, Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]
"""(chain, x, t, t_next), all by field → x at t_next."""


def together(step: Step) -> ProductStep:
    """Every field by the same step of one evaluation; one whose time stands still does not move."""

    def stepped(
        chain: ProductChain, x: State, t: Mapping[str, Tensor], t_next: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        before = chain.so_far()
        fields = chain.product(x, t)
        moved = {
            name: step(fields[name], state, t[name], t_next[name])
            if moves(fields[name], t[name], t_next[name])
            else state
            for name, state in x.items()
        }
        chain.counted(before)
        return moved

    return stepped


def heun(chain: ProductChain, x: State, t: Mapping[str, Tensor], t_next: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Numbers by `samplers.euclidean.heun`, symbols by tau-leaping; two evaluations.

    The second is at the predicted numbers and the symbols that have leapt, so that numbers see where symbols go. The last
    step, to t = 1, is that of `tau_leaping`.
    """
    if any(bool(((t_next[name] >= 1) & (t_next[name] > t[name])).any()) for name in x):
        return together(tau_leaping)(chain, x, t, t_next)
    before, fields = chain.so_far(), chain.product(x, t)
    tried, firsts, noises = {}, {}, {}
    for name, state in x.items():
        if not moves(fields[name], t[name], t_next[name]):
            tried[name] = state
        elif not state.is_floating_point():
            tried[name] = tau_leaping(fields[name], state, t[name], t_next[name])
        else:
            firsts[name] = fields[name].generator(state, t[name], t_next[name])
            tried[name], noises[name] = predicted(fields[name], state, firsts[name], t[name], t_next[name])
            tried[name] = torch.where(fields[name].free, tried[name], state)
            fields[name].calls += 1
    if firsts:
        chain.counted(before, 2)
        fields = chain.product(dict(tried), t_next)  # a readout keeps what it was asked about
    else:
        chain.counted(before)
    for name, first in firsts.items():
        second = fields[name].generator(tried[name], t_next[name])
        tried[name] = corrected(fields[name], x[name], first, second, noises[name], t[name], t_next[name])
    return tried


def adaptive(
    chain: ProductChain,
    x: State,
    t: Mapping[str, Tensor],
    t_next: Mapping[str, Tensor],
    *,
    max_expected_changes: float | None = None,
    tolerance: float | None = None,
) -> dict[str, Tensor]:
    """Every field proposes how far to go, and all go as far as the most careful of them; one evaluation a step.

    Numbers propose as in `samplers.euclidean.controlled`. Symbols as in `samplers.adaptive`, those of all fields counted
    together, at the pace of the batch's means.
    """
    for name, given, numbers in (("tolerance", tolerance, True), ("max_expected_changes", max_expected_changes, False)):
        if given is not None and not any(state.is_floating_point() == numbers for state in x.values()):
            raise ValueError(f"{name} is of {'numbers' if numbers else 'symbols'}, of which there are none")
    max_expected_changes = 1.0 if max_expected_changes is None else max_expected_changes
    tolerance = 0.002 if tolerance is None else tolerance
    check_changes(max_expected_changes)
    now, end = (next(iter(times.values())) for times in (t, t_next))
    if not all(torch.equal(t[name], now) and torch.equal(t_next[name], end) for name in x):
        raise ValueError("adaptive steps are of fields that go at one time: give one grid")
    state = dict(x)
    while bool((now < end).any()):
        before = chain.so_far()
        fields = chain.product(dict(state), dict.fromkeys(state, now))
        factors = {name: fields[name].generator(state[name], now) for name in state if bool(fields[name].free.any())}
        n, unsettled, until = torch.zeros_like(now), torch.zeros_like(now), end
        for name, factor in factors.items():
            if isinstance(factor, Jump) and factor.posterior is not None:
                some, of_them = unsettled_tokens(fields[name], state[name], factor.posterior, now, end)
                n, unsettled = n + some, unsettled + of_them
            else:
                fields[name].calls += 1
        for name, factor in factors.items():
            if state[name].is_floating_point():
                reach = pace(fields[name], state[name], factor, now, end, tolerance)
            else:
                reach = pace_of_tokens(fields[name], n, unsettled, now, end, max_expected_changes)
            until = torch.minimum(until, reach)
        until = until.amin().expand_as(now)
        for name, factor in factors.items():
            if state[name].is_floating_point():
                state[name] = advance(fields[name], state[name], factor, now, until)
            else:
                state[name] = tau_leaping(fields[name], state[name], now, until)
        chain.counted(before)
        now = until
    return state


def moves(chain: Chain, t: Tensor, t_next: Tensor) -> bool:
    """Whether the field has anything to do in the step."""
    if "movable" not in chain.memory:  # what is free never changes, and a look at it makes a device wait
        chain.memory["movable"] = chain.free.any().cpu()
    return bool(chain.memory["movable"]) and bool((t_next > t).any())


PRODUCT_STEPS: dict[str, ProductStep] = {
    "tau_leaping": together(tau_leaping),
    "euler": together(euler),
    "ancestral": together(ancestral),
    "heun": heun,
    "adaptive": adaptive,
}
"""By name, of states with several fields."""


def with_options(method: str | ProductStep, options: Mapping[str, Any]) -> ProductStep:
    """The step of that name, with its options (see `make_step`).

    Raises:
        ValueError: products have no such method, or it has no such option.
    """
    if not callable(method) and method not in PRODUCT_STEPS:
        raise ValueError(f"method={method!r} is not for several fields; choose one of {', '.join(PRODUCT_STEPS)}")
    step = method if callable(method) else PRODUCT_STEPS[method]
    if options and step is not adaptive:
        raise ValueError(f"{', '.join(options)}: of adaptive, not of {method!r}")
    return partial(step, **options) if options else step
