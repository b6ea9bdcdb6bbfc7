"""How often the host would wait for a GPU: once a step, and once a candidate event."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gm_discrete import GMModel, MaskedPath, ProductPath, TauLeaping, Uniformization, UniformPath, simulate
from gm_discrete.samplers.base import Chain, positions_of
from tests.helpers.networks import LENGTH, network, rng, untrained
from tests.helpers.waits import waits


def counted(model: GMModel, sampler: Any, steps: int, **options: Any) -> int:
    """Waits of a simulation of five sequences, without those for `on_device`, whose copy from pinned memory is not waited
    for."""
    x = model.path.prior((5, LENGTH), rng(0))
    with waits() as found:
        simulate(model, x, torch.linspace(0, 1, steps + 1), rng(1), sampler, **options)
    return sum("copy at rows.py" not in wait for wait in found)


GRID: dict[str, tuple[Callable[[], GMModel], Any, int]] = {
    "masked": (network, "tau_leaping", 1),
    "uniform": (lambda: network("mixture"), "tau_leaping", 1),
    "reversal": (lambda: network("reversal"), "tau_leaping", 1),
    "masked, guided": (lambda: network(num_classes=2), "tau_leaping", 1),
    "masked, in an order": (network, TauLeaping(order="confidence"), 1),
    "masked, trapezoidal": (network, "trapezoidal", 2),
    "masked, euler": (network, "euler", 2),
}


@pytest.mark.parametrize("name", GRID)
def test_steps__wait_once_for_the_events(name: str) -> None:
    """The difference of 16 and 8 steps, half of which have an event in a part of the sequences only."""
    make, sampler, each = GRID[name]
    guided = {"class_labels": torch.tensor([0, 1, 0, 1, -1]), "guidance_scale": 2.0} if "guided" in name else {}
    few, many = (counted(make(), sampler, steps, **guided) for steps in (8, 16))
    assert few < many <= few + 8 * each


@pytest.mark.parametrize(
    ("name", "sampler", "each"),
    [("masked", "first_hitting", 1), ("masked", "entropy_bounded", 1), ("mixture", Uniformization(0.2), 1),
     ("reversal", Uniformization(0.2), 2), ("masked", "adaptive", 4)],
)  # fmt: skip
def test_rounds__wait_once_for_the_candidates(
    name: str, sampler: Any, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice where some candidates are rejected; adaptive steps also look at the positions that are unsettled."""
    rounds, plain = [], Chain.generators
    monkeypatch.setattr(Chain, "generators", lambda *args: rounds.append(1) or plain(*args))
    found = counted(network(name), sampler, 1)
    assert len(rounds) > 10
    assert found <= each * len(rounds) + 14  # what the call itself waits for


@pytest.mark.parametrize("independent", [False, True])
def test_fields__wait_once_each(independent: bool) -> None:
    """Times of a grid by field are compared on the host, and a time that fields share is not compared at all."""
    shapes = {"over": (3, 4), "under": (3, 6)}
    fields = {name: {"length": shape[1]} for name, shape in shapes.items()}
    path = ProductPath(over=MaskedPath(6), under=UniformPath(5), independent_times=independent)
    model = untrained(path, fields=fields)
    x = path.prior(shapes, rng(0))
    found = []
    for steps in (4, 8):
        grid = torch.linspace(0, 1, steps + 1)
        with waits() as here:
            simulate(model, x, dict.fromkeys(shapes, grid) if independent else grid, rng(1))
        found.append(sum("copy at rows.py" not in wait for wait in here))
    assert found[1] - found[0] <= 4 * 2


def test_positions__are_those_of_the_mask_and_tell_their_sequences() -> None:
    mask = torch.rand(6, 3, 4, generator=rng(2)) < 0.2
    mask[[1, 4]] = False
    where = positions_of(mask)
    assert torch.equal(where, mask.flatten().nonzero().squeeze(1))
    assert vars(where)["sequences"] == mask.flatten(1).any(1).nonzero().flatten().tolist()
    assert positions_of(torch.zeros(2, 3, dtype=torch.bool)).tolist() == []


def test_steps__without_an_event_run_nothing() -> None:
    model = network()
    sizes: list[int] = []
    model.backbone.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0][""])))
    x = model.path.prior((5, LENGTH), rng(0))
    run = simulate(model, x, torch.linspace(0, 1, 200), rng(1), return_info=True)
    assert sum(sizes) == int(run.network_calls.sum()) < 5 * LENGTH + 1
