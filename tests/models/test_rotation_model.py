"""`GMModel` on rotations: what it takes, leaves out and keeps, training, and one network for all samplers."""

from __future__ import annotations

from pathlib import Path as File
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    ExactRotationModel,
    GeodesicSO3Path,
    GMConfig,
    GMModel,
    MaskedPath,
    ProductPath,
    SO3Path,
    conditional_loss,
    flow_likelihood,
    quaternions,
    simulate,
)
from tests.helpers.distributions import rng
from tests.helpers.euclid import kolmogorov
from tests.helpers.rotations import ALL, BOTH, REFERENCES, SPREAD, WEIGHTS, equal_rotations, rotations, smooth_cdf

LENGTH = 3


def network(path: Any = None, **options: Any) -> GMModel:
    """A small network, every parameter of which matters."""
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": LENGTH}
    model = GMModel(GMConfig(path=SO3Path(ALL, num_components=3) if path is None else path, **settings | options))
    noise = rng(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=noise))
    return model.eval()


def states(rows: int = 4, seed: int = 1) -> Tensor:
    return rotations(rows, LENGTH, seed=seed, dtype=torch.float32)


def loss(model: GMModel, z: Tensor, **options: Any) -> float:
    return float(conditional_loss(model, z, rng=rng(5), **options).detach())


def test_forward__does_not_tell_q_from_minus_q_nor_from_its_matrix() -> None:
    model, x, z, t = network(), states(), states(seed=2), torch.linspace(0.1, 0.9, 4).double()
    outputs = [model(input_values=state, time=t, labels=z) for state in (x, -x, quaternions.to_matrix(x))]
    for other in outputs[1:]:
        torch.testing.assert_close(other.logits, outputs[0].logits, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(other.loss, outputs[0].loss, rtol=1e-3, atol=1e-4)
    flipped = model(input_values=x, time=t, labels=quaternions.to_matrix(-z))
    torch.testing.assert_close(flipped.loss, outputs[0].loss, rtol=1e-3, atol=1e-4)


def test_entry_points__take_matrices() -> None:
    model, z = network(), states()
    matrices = quaternions.to_matrix(z)
    assert loss(model, matrices) == pytest.approx(loss(model, z), rel=1e-3, abs=1e-4)
    points = torch.linspace(0, 1, 4).double()
    flow = network(SO3Path())
    assert equal_rotations(simulate(flow, z, points, rng(1)), simulate(flow, matrices, points, rng(1)), 1e-2)
    torch.testing.assert_close(
        flow_likelihood(model, matrices, num_steps=2, rng=rng(1)).nats,
        flow_likelihood(model, quaternions.from_matrix(matrices), num_steps=2, rng=rng(1)).nats, rtol=1e-3, atol=1e-3,
    )  # fmt: skip
    a, b = (model.generate(x_0=x, num_steps=3, seed=0, generators={"flow": 1.0}) for x in (z, matrices))
    assert equal_rotations(a, b, 1e-2)
    drafts = [model.generate(start_from=x, num_steps=3, seed=0, generators={"flow": 1.0}) for x in (z, matrices)]
    assert drafts[0].shape == drafts[1].shape == z.shape


@pytest.mark.parametrize("form", ["quaternions", "matrices", "mask"])
def test_generate__given_rotations_stay(form: str) -> None:
    model, z = network(), states()
    known = torch.zeros(4, LENGTH, dtype=torch.bool)
    known[:, 1] = known[0, 2] = True
    values: Any = torch.where(known[..., None], z, torch.nan)
    if form == "matrices":
        values = torch.where(known[..., None, None], quaternions.to_matrix(z), torch.nan)
    if form == "mask":
        values = (z, known)
    x = model.generate(given=values, num_steps=4, seed=0)
    if form == "matrices":
        assert equal_rotations(x[known], z[known], 1e-6)
    else:
        assert torch.equal(x[known], z[known])
    assert float(quaternions.half_angle(x[~known], z[~known]).min()) > 1e-3
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(4, LENGTH), rtol=0, atol=1e-5)


def test_loss__leaves_out_unscored_rotations_and_counts_whole_ones() -> None:
    model, x, z, t = network(), states(), states(seed=2), torch.full((4,), 0.5).double()
    each = []
    for row in range(4):
        for place in range(LENGTH):
            labels = torch.full_like(z, torch.nan)
            labels[row, place] = z[row, place]
            each.append(model(input_values=x, time=t, labels=labels).loss)
    total = model(input_values=x, time=t, labels=z).loss
    torch.testing.assert_close(total, torch.stack(each).mean(), rtol=1e-4, atol=1e-5)
    labels = z.clone()
    labels[:, 2] = torch.nan
    kept = torch.stack(each).view(4, LENGTH)[:, :2].mean()
    torch.testing.assert_close(model(input_values=x, time=t, labels=labels).loss, kept, rtol=1e-4, atol=1e-5)


def test_loss__padding_does_not_matter() -> None:
    model, z = network(), states()
    mask = torch.ones(4, LENGTH, dtype=torch.long)
    mask[:, 2] = 0
    other = z.clone()
    other[:, 2] = states(seed=9)[:, 2]
    assert loss(model, z, attention_mask=mask) == pytest.approx(loss(model, other, attention_mask=mask), rel=1e-5)


def test_save_pretrained__is_bit_exact(tmp_path: File) -> None:
    for index, path in enumerate((SO3Path(BOTH, 3.0), GeodesicSO3Path(), ProductPath(a=SO3Path(), b=MaskedPath(4)))):
        model = network(path)
        model.save_pretrained(tmp_path / str(index))
        again = GMModel.from_pretrained(tmp_path / str(index)).eval()
        assert again.path == path
        shown = [m.generate(batch_size=2, num_steps=2, seed=0) for m in (model, again)]
        first, second = (list(x.values()) if isinstance(x, dict) else [x] for x in shown)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_generate__weights_of_the_generators_are_chosen_when_sampling() -> None:
    model = network()
    found = [
        model.generate(batch_size=3, num_steps=4, seed=0, generators=weights)
        for weights in ({"flow": 1.0}, {"jump": 1.0}, {"diffusion": 1.0}, {"flow": [1, 0], "jump": [0, 1]})
    ]
    assert all(not torch.equal(found[0], other) for other in found[1:])
    with pytest.raises(ValueError, match="walk"):
        model.generate(batch_size=3, num_steps=4, generators={"walk": 1.0})
    for sampler in ("tau_leaping", "euler", "heun", "adaptive"):
        x = model.generate(batch_size=2, num_steps=3, seed=0, sampler=sampler)
        torch.testing.assert_close(x.norm(dim=-1), torch.ones(2, LENGTH), rtol=0, atol=1e-5)


def test_forward__under_bfloat16_is_finite_and_near() -> None:
    model, z = network(), states()
    exactly = loss(model, z)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loss(model, z)
    assert rounded == pytest.approx(exactly, rel=0.1, abs=0.1)


@pytest.mark.parametrize("divergence", [None, {"flow": "squared"}, {"jump": "generalized_kl"}])
def test_loss__has_finite_gradients(divergence: Any) -> None:
    model = network().train()
    options = {} if divergence is None else {"divergence": divergence}
    conditional_loss(model, states(), rng=rng(2), **options).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(g.isfinite().all()) for g in gradients)


@pytest.mark.slow
def test_network__one_training_serves_flow_jump_and_superposition() -> None:
    """Some seconds of training on a smooth mixture; all samples have its distribution up to the network's error."""
    from tests.helpers.rotations import CENTERS

    torch.manual_seed(0)
    path = SO3Path(BOTH, num_components=4)
    model = GMModel(
        GMConfig(path=path, hidden_size=32, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=1)
    )
    data, noise = ExactRotationModel(path, CENTERS, SPREAD, WEIGHTS), rng(1)
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=300)
    for _ in range(300):
        optimizer.zero_grad()
        conditional_loss(model, data.sample(128, noise).float(), rng=noise).backward()
        optimizer.step()
        schedule.step()
    for weights in ({"flow": 1.0}, {"jump": 1.0}, BOTH):
        x = model.generate(batch_size=1000, num_steps=30, seed=0, generators=weights)[:, 0].double()
        for reference in REFERENCES:
            d, _ = kolmogorov(quaternions.half_angle(x, reference), smooth_cdf(path, 1.0, reference))
            assert d < 0.08


def test_simulate__a_rotation_is_fixed_as_a_whole() -> None:
    model = ExactRotationModel(SO3Path(BOTH), torch.eye(4)[:3, None].expand(3, 2, 4))
    x_0 = model.path.prior((5, 2, 4), rng())
    part = torch.zeros(5, 2, 4, dtype=torch.bool)
    part[:, 0, :2] = True  # two numbers of a rotation fix nothing
    times = [0.0, 0.3, 0.6]
    free, partly = (simulate(model, x_0, times, rng(1), fixed=fixed) for fixed in (None, part))
    assert torch.equal(free, partly)
    by_rotation = torch.zeros(5, 2, dtype=torch.bool)
    by_rotation[:, 1] = True
    x = simulate(model, x_0, times, rng(1), fixed=by_rotation)
    assert torch.equal(x[:, 1], x_0[:, 1])
    assert not torch.equal(x[:, 0], x_0[:, 0])


def test_conditional_loss__scored_takes_rotations_or_numbers() -> None:
    model = ExactRotationModel(SO3Path(), torch.eye(4)[:3, None].expand(3, 2, 4))
    z, chosen = model.sample(6, rng()), torch.tensor([True, False]).expand(6, 2)
    every = chosen[..., None].expand(6, 2, 4)
    half = every & torch.tensor([True, True, True, False])
    losses = [conditional_loss(model, z, rng=rng(1), scored=scored) for scored in (chosen, every)]
    assert torch.equal(*losses)
    with pytest.raises(ValueError, match="scored"):
        conditional_loss(model, z, rng=rng(1), scored=half)


def test_trainer__counts_matrices_as_quaternions() -> None:
    from gm_discrete.data.batches import clean_data

    path = SO3Path()
    z = rotations(4, 2, dtype=torch.float32)
    labels = z.clone()
    labels[0, 1] = torch.nan
    batches = [
        {"input_values": x, "labels": y}
        for x, y in ((z, labels), (quaternions.to_matrix(z), quaternions.to_matrix(labels)))
    ]
    (a, scored), (b, of_matrices) = (clean_data(path, batch) for batch in batches)
    assert torch.equal(scored[""], of_matrices[""])
    assert equal_rotations(a[""], b[""], 1e-5)
