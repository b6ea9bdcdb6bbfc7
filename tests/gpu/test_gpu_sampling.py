from __future__ import annotations

from typing import Any

import pytest
import torch

from gm_discrete import ExactModel, MaskedPath, UniformPath, simulate
from gm_discrete.samplers import time_grid
from tests.helpers.distributions import LEAST_P, chain, chi_square, sampler_distributions
from tests.helpers.networks import BLOCK, LENGTH, causal, network
from tests.helpers.on_device import waiting, waits

pytestmark = pytest.mark.gpu
SAMPLES = 20_000


def waited(device: str, num_steps: int, **options: Any) -> int:
    model = network("masked").to(device)
    settings: dict[str, Any] = {"batch_size": 4, "length": LENGTH, "num_steps": num_steps, "seed": 0}
    model.generate(**settings | options)
    with waits(device) as found:
        model.generate(**settings | options)
    return len(waiting(found))


def compile_quickly(model: Any, device: str) -> None:
    """On a CPU without inductor, which takes longer there than all other tests of this folder."""
    if device == "cpu":
        model.compile_layers(backend="eager")


def test_masked_tau_leaping__waits_for_the_device_once_a_step(device: str) -> None:
    assert waited(device, 16) - waited(device, 8) <= 8


@pytest.mark.parametrize("name", ["masked", "reversal"])
def test_generate__compiled_is_eager(device: str, name: str) -> None:
    model = network(name).to(device)
    settings: dict[str, Any] = {"batch_size": 5, "length": LENGTH, "num_steps": 8, "seed": 0}
    expected = model.generate(**settings)
    compile_quickly(model, device)
    for _ in range(2):
        assert torch.equal(model.generate(**settings, compile=True), expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_generate__in_blocks_with_a_cache(device: str, compiled: bool) -> None:
    if compiled and device == "cpu":
        pytest.skip("tests/nn/test_compiled.py")
    model = causal().to(device)
    settings: dict[str, Any] = {"batch_size": 3, "length": 3 * BLOCK, "num_steps": 4, "seed": 0}
    expected = model.generate(**settings, use_cache=False)
    assert torch.equal(model.generate(**settings, use_cache=True, compile=compiled), expected)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("masked", "tau_leaping"),
        ("masked", "first_hitting"),
        ("masked", "uniformization"),
        ("uniform reversal", "tau_leaping"),
        ("uniform reversal", "euler"),
        ("uniform mixture", "uniformization"),
    ],
)
def test_sampler__distribution_on_the_device(device: str, name: str, sampler: str) -> None:
    small = chain(name, length=2)
    exact = ExactModel(small.path, small.data.to(device), small.weights.to(device))
    on_grid, times = sampler in ("tau_leaping", "euler"), torch.tensor([0.0, 1.0], dtype=torch.float64)
    if on_grid:
        times = time_grid(small.path, 6)
        times[0] = 0.02  # at 0 some rates are infinite, where an Euler step is another
    truth = sampler_distributions(small, times.tolist(), sampler)[-1] if on_grid else small.joint_marginal(1.0)
    noise = torch.Generator(device).manual_seed(0)
    x = simulate(exact, small.path.prior((SAMPLES, 2), noise, device), times, noise, sampler)
    assert x.device.type == device
    counts = torch.bincount(exact.index(x).cpu(), minlength=len(truth))
    assert chi_square(counts, truth) > LEAST_P


@pytest.mark.parametrize("path", [MaskedPath(50_258), UniformPath(50_258)])
def test_landings__rare_symbols_keep_their_probability(gpu: str, path: Any) -> None:
    from gm_discrete.generators.rows import inverse_cdf

    probs = 1 / torch.arange(1, path.vocab_size + 1, dtype=torch.float64, device=gpu)
    probs = (probs / probs.sum()).float().expand(256, -1)
    found = []
    for seed in range(20):
        noise = torch.rand(256, generator=torch.Generator(gpu).manual_seed(seed), dtype=torch.float64, device=gpu)
        found.append(inverse_cdf(probs, noise))
    symbols = torch.cat(found).cpu()
    edges = torch.tensor([1, 10, 100, 1000, 10_000])
    cells = torch.bincount(torch.bucketize(symbols, edges, right=True), minlength=6)
    mass = torch.stack([part.sum() for part in probs[0].double().cpu().tensor_split(edges)])
    assert chi_square(cells, mass) > LEAST_P
