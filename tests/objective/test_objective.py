"""E_{t, z, x} D(F(x|z), F_θ(x)): how times and noise are drawn, what is scored, and what the mean estimates."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    CosineSchedule,
    ExactModel,
    GMConfig,
    GMModel,
    Jump,
    LinearSchedule,
    LogitNormalTimeSampler,
    MaskedPath,
    PowerSchedule,
    UniformPath,
    UniformTimeSampler,
    conditional_loss,
)
from gm_discrete.objective import corrupt, draw_times, field_losses, scored_positions, unwrapped
from tests.helpers.distributions import SIGMAS, chain, exact_bound

CPU = torch.device("cpu")
PATHS = {"masked": MaskedPath(7), "reversal": UniformPath(7), "mixture": UniformPath(7, rates="mixture")}
every_path = pytest.mark.parametrize("name", PATHS)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(name: str, **kwargs: Any) -> GMModel:
    """A small model whose every parameter matters: at initialisation the blocks are the identity."""
    config = GMConfig(path=PATHS[name], hidden_size=16, num_hidden_layers=2, num_attention_heads=2, **kwargs)
    model, noise = GMModel(config), rng(1)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=noise)
    return model.eval()


class StandIn:
    """The same predictions, by `.path` and `.generator` alone."""

    def __init__(self, model: GMModel) -> None:
        self.path, self._model = model.path, model

    def generator(
        self, x: Tensor, t: Tensor, t_next: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Jump:
        return self._model.generator(x, t, t_next, attention_mask)


def batch(rows: int = 6, length: int = 8) -> Tensor:
    return torch.randint(6, (rows, length), generator=rng(2))


def noised(path: Any, z: Tensor, scored: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    x, t = corrupt(path, {"": z}, {"": scored}, *options)
    return x[""], t


# ---- times


@pytest.mark.parametrize(
    "law", [UniformTimeSampler(), LogitNormalTimeSampler(), LogitNormalTimeSampler(mean=1.0, std=0.5)]
)
@pytest.mark.parametrize("schedule", [LinearSchedule(), PowerSchedule(2), CosineSchedule()], ids=repr)
def test_draw_times__every_stratum_holds_one_time(law: Any, schedule: Any) -> None:
    """u = F(κ(t)) falls once into each [j/B, (j + 1)/B), at the same place of each; F is the law's own distribution."""
    size = 64
    t = draw_times(MaskedPath(3, schedule=schedule), size, rng(), CPU, law)
    assert t.dtype == torch.float64
    kappa = schedule.kappa(t)
    u = kappa if isinstance(law, UniformTimeSampler) else torch.special.ndtr((kappa.logit() - law.mean) / law.std)
    assert sorted((u * size).long().tolist()) == list(range(size))
    assert float((u * size).frac().std()) < 1e-6
    assert (u * size).long().tolist() != list(range(size))  # in random order: rows are not tied to times


def test_draw_times__lie_inside_of_0_and_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """At κ = 0 reversal rates are infinite, at κ = 1 all hazards."""
    for offset in (0.0, 1 - 2**-53):
        monkeypatch.setattr(torch, "rand", lambda *_, offset=offset, **__: torch.tensor(offset, dtype=torch.float64))
        t = draw_times(MaskedPath(3), 4, rng(), CPU)
        assert 0 < float(t.min()) < float(t.max()) < 1


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan])
def test_time_samplers__bad_arguments_are_named(std: float) -> None:
    with pytest.raises(ValueError, match=f"std={std} must be"):
        LogitNormalTimeSampler(std=std)


# ---- noise of the global batch


@every_path
@pytest.mark.parametrize("world_size", [2, 3])
def test_corrupt__processes_draw_together_what_one_would_draw(name: str, world_size: int) -> None:
    path, z = PATHS[name], batch(6)
    scored = torch.ones_like(z, dtype=torch.bool)
    x, t = noised(path, z, scored, rng(5), LogitNormalTimeSampler())
    size = 6 // world_size
    parts = []
    for rank in range(world_size):
        rows = slice(rank * size, (rank + 1) * size)
        parts.append(noised(path, z[rows], scored[rows], rng(5), LogitNormalTimeSampler(), rank, world_size))
    assert torch.equal(torch.cat([part[0] for part in parts]), x)
    assert torch.equal(torch.cat([part[1] for part in parts]), t)
    assert len(set(t.tolist())) == 6


@every_path
def test_corrupt__noises_scored_entries_only(name: str) -> None:
    z = batch(50)
    scored = torch.rand(z.shape, generator=rng(3)) < 0.5
    before = z.clone()
    x, _ = noised(PATHS[name], z, scored, rng())
    assert torch.equal(x[~scored], z[~scored])
    assert float((x != z)[scored].float().mean()) > 0.3
    assert torch.equal(z, before)


# ---- what is scored


def test_scored_positions__are_those_scored_that_are_not_padded() -> None:
    path, z = PATHS["masked"], batch(2, 3)
    mask, asked = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[True, False, True], [False, True, True]])
    assert scored_positions(path, z, None).all()
    assert torch.equal(scored_positions(path, z, mask), mask.bool())
    assert torch.equal(scored_positions(path, z, mask, asked), mask.bool() & asked)
    for masks, name in (((mask[:, :2],), "attention_mask"), ((None, asked[:1]), "scored")):
        with pytest.raises(ValueError, match=rf"{name} .*\(2, 3\)"):
            scored_positions(path, z, *masks)


@every_path
@pytest.mark.parametrize("convolution", [0, 3])
@pytest.mark.parametrize("divergence", ["generalized_kl", "cross_entropy"])
def test_conditional_loss__padding_never_enters(name: str, convolution: int, divergence: str) -> None:
    """Other ids behind the attention mask leave loss and gradients as they were, bit for bit."""
    model, mask = network(name, conv_kernel_size=convolution), torch.ones(6, 8, dtype=torch.long)
    mask[0, 5:] = mask[1, :3] = mask[4, 1:] = 0
    results = []
    for fill in (0, 5):
        z = torch.where(mask.bool(), batch(), fill)
        model.zero_grad()
        loss = conditional_loss(model, z, mask, rng(4), divergence=divergence)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@every_path
def test_forward__labels_of_minus_100_are_not_scored_but_attended_to(name: str) -> None:
    """The loss of some positions is that of all with the others left out of the sum; what stands there still matters."""
    model, z = network(name), batch()
    scored = torch.rand(z.shape, generator=rng(6)) < 0.5
    x, t = noised(model.path, z, scored, rng(7))
    labels = z.masked_fill(~scored, -100)
    loss = model(input_ids=x, time=t, labels=labels).loss.detach()
    predicted = model.generator(x, t)
    expected = field_losses(model.path, {"": predicted}, {"": z}, {"": x}, t, {"": scored})[""]
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=0)
    changed = torch.where(scored, x, (x + 1) % 6)
    assert float(model(input_ids=changed, time=t, labels=labels).loss.detach()) != pytest.approx(float(loss), rel=1e-4)


def test_forward__without_a_scored_position_the_loss_is_zero() -> None:
    model, z = network("masked"), batch()
    loss = model(input_ids=z, time=torch.full((6,), 0.5), labels=torch.full_like(z, -100)).loss
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is None or float(p.grad.abs().max()) == 0 for p in model.parameters())


# ---- scale


@every_path
def test_num_items_in_batch__divides_the_sum(name: str) -> None:
    """So that accumulated micro-batches of unequal padding add up to the mean over all their scored positions."""
    model, z = network(name), batch()
    labels = z.clone()
    labels[0, 2:] = labels[3, 6:] = -100
    scored = labels != -100
    x, t = noised(model.path, z, scored, rng(8))
    whole = model(input_ids=x, time=t, labels=labels).loss
    parts = [
        model(input_ids=x[rows], time=t[rows], labels=labels[rows], num_items_in_batch=scored.sum()).loss
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=0)
    half = model(input_ids=x, time=t, labels=labels, num_items_in_batch=2 * int(scored.sum())).loss
    torch.testing.assert_close(2 * half, whole, rtol=1e-6, atol=0)


@every_path
@pytest.mark.parametrize("divergence", ["generalized_kl", "cross_entropy"])
@pytest.mark.parametrize("padded", [False, True])
def test_conditional_loss__of_a_stand_in_is_that_of_the_module(name: str, divergence: str, padded: bool) -> None:
    model, z, mask = network(name), batch(), None
    if padded:
        mask = torch.ones_like(z)
        mask[1, 4:] = 0
    losses = [conditional_loss(m, z, mask, rng(9), divergence=divergence) for m in (model, StandIn(model))]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    assert losses[0].dtype == torch.float32
    assert losses[0].dim() == 0


class OwnNetwork(torch.nn.Module):
    """A module that is a `Process`, and whose `forward` knows of no labels."""

    def __init__(self, model: GMModel) -> None:
        super().__init__()
        self.path, self.model = model.path, model

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Any:
        return self.path.marginal(self(x, t), x, t, t_next)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(input_ids=x, time=t).logits


@every_path
def test_conditional_loss__of_a_module_of_ones_own_is_by_its_generator(name: str) -> None:
    model, z = network(name), batch()
    own = OwnNetwork(model)
    losses, gradients = [], []
    for process in (model, own):
        model.zero_grad()
        losses.append(conditional_loss(process, z, rng=rng(9)))
        losses[-1].backward()
        gradients.append(model.heads.tokens.weight.grad.clone())  # pyright: ignore
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_conditional_loss__names_what_a_module_of_ones_own_lacks() -> None:
    own = OwnNetwork(network("masked"))
    with pytest.raises(TypeError, match="generator of OwnNetwork takes no attention_mask; leave it out"):
        conditional_loss(own, batch(), torch.ones(6, 8))
    with pytest.raises(TypeError, match=r"OwnNetwork is wrapped in DataParallel, .*takes no labels"):
        conditional_loss(torch.nn.DataParallel(own), batch())
    bare = torch.nn.Linear(1, 1)
    bare.path = PATHS["masked"]  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    with pytest.raises(
        TypeError, match=r"Linear has neither a method generator\(x, t\) nor a forward that takes labels"
    ):
        conditional_loss(bare, batch())


def test_conditional_loss__the_config_chooses_the_divergence() -> None:
    z = batch()
    model = network("reversal", divergence="cross_entropy")
    with torch.no_grad():
        chosen, asked, other = (
            float(conditional_loss(model, z, rng=rng(1), divergence=kind))
            for kind in (None, "cross_entropy", "generalized_kl")
        )
    assert chosen == asked != other


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "schedule"),
    [("masked", None), ("uniform reversal", CosineSchedule()), ("prior mixture", PowerSchedule(2))],
)
def test_conditional_loss__its_mean_times_the_length_is_the_bound(name: str, schedule: Any) -> None:
    """Times uniform in κ make the loss an unbiased estimate of the bound per position: 200 batches, within 4.5 stderr."""
    model = chain(name, 2, schedule)
    exact = float(exact_bound(model, 100) @ model.weights)
    noise, losses = rng(10), []
    for _ in range(200):
        z = model.data[torch.multinomial(model.weights, 100, replacement=True, generator=noise)]
        losses.append(float(conditional_loss(model, z, rng=noise, time_sampler=UniformTimeSampler())) * model.length)
    mean, stderr = torch.tensor(losses).mean(), torch.tensor(losses).std() / math.sqrt(200)
    assert abs(float(mean) - exact) < SIGMAS * float(stderr)
    assert float(stderr) < 0.05 * exact


# ---- errors


@pytest.mark.parametrize("masks", [{"attention_mask": torch.zeros(6, 8)}, {"scored": torch.zeros(6, 8).bool()}])
def test_conditional_loss__nothing_to_score_is_named(masks: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(masks))):
        conditional_loss(network("masked"), batch(), **masks)


def test_conditional_loss__scored_masks_in_clean_data_are_named() -> None:
    """Elsewhere, under the padding or in a condition, they are nobody's target."""
    model, z = network("masked"), batch()
    z[2, 3] = 6
    with pytest.raises(ValueError, match=r"z holds the id 6.*MaskedPath"):
        conditional_loss(model, z)
    assert bool(conditional_loss(model, z, scored=z != 6, rng=rng()).isfinite())
    assert bool(conditional_loss(network("reversal"), z, rng=rng()).isfinite())  # its symbol 6 is like any other


def test_conditional_loss__a_model_without_a_path_is_named() -> None:
    with pytest.raises(TypeError, match="Linear has no probability path"):
        conditional_loss(torch.nn.Linear(1, 1), batch())


def test_unwrapped__finds_the_path_of_a_wrapped_model() -> None:
    model = network("masked")
    assert unwrapped(model) is model
    assert unwrapped(torch.nn.DataParallel(model)) is model
    stand_in = StandIn(model)
    assert unwrapped(stand_in) is stand_in


def test_conditional_loss__data_that_does_not_fit_is_named() -> None:
    model = network("masked")
    with pytest.raises(ValueError, match=r"ids from \d to 7; vocab_size=7"):
        conditional_loss(model, torch.full((2, 3), 7))
    with pytest.raises(ValueError, match=r"z .*torch\.float32"):
        conditional_loss(model, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="kind='l2'"):
        conditional_loss(model, batch(), divergence="l2")


class Beyond:
    """A time sampler whose quantile leaves [0, 1]."""

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def quantile(self, u: Tensor) -> Tensor:
        return u + self.shift


@pytest.mark.parametrize("shift", [1.0, -1.0, math.nan])
def test_conditional_loss__time_samplers_must_stay_in_range(shift: float) -> None:
    path = MaskedPath(4)
    model = ExactModel(path, torch.tensor([[0, 1], [2, 0]]))
    with pytest.raises(ValueError, match=r"time_sampler=.*Beyond.*\[0, 1\]"):
        conditional_loss(model, torch.tensor([[0, 1]]), time_sampler=Beyond(shift))
