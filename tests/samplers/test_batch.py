"""What a sequence gets does not depend on the other sequences of its batch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import Adaptive, DormandPrince, GaussianPath, MaskedPath, ProductPath, ReMDM, TauLeaping, simulate
from gm_discrete.generators.kernels import Kernel
from gm_discrete.paths.exact import ExactGaussianModel, ExactProductModel
from gm_discrete.process import pack
from gm_discrete.samplers import Chain, samplers_for
from tests.helpers.distributions import chain, rng

FEW, MANY, ENTRIES = 3, 12, 40
TABLE = torch.rand(MANY, ENTRIES, generator=rng(3), dtype=torch.float64)
"""All noise: the same for an entry of a row in every draw, whatever the batch."""


@pytest.fixture(autouse=True)
def noise_of_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(batch: int, number: int) -> Tensor:
        return TABLE[:batch, :number].flatten()

    def uniform(self: Chain, *shape: int) -> Tensor:
        batch, number = len(self.calls), torch.Size(shape).numel()
        return rows(batch, number // batch).view(shape)

    monkeypatch.setattr(Chain, "uniform", uniform)
    monkeypatch.setattr(Chain, "normal", lambda self, x: torch.special.ndtri(uniform(self, *x.shape)).to(x.dtype))
    monkeypatch.setattr(
        Kernel, "_uniform", lambda self, rng, where: rows(self.shape[0], self.shape.numel() // self.shape[0])[where]
    )


def gaussian(generators: dict[str, float]) -> ExactGaussianModel:
    means = torch.tensor([[-1.0, -1.0, 0.5], [1.0, 1.0, 0.0], [1.0, -0.2, -1.0]], dtype=torch.float64)
    return ExactGaussianModel(GaussianPath(generators), means, 0.3)


def product() -> ExactProductModel:
    data = {"a": torch.tensor([[0, 1, 2], [2, 2, 0], [1, 0, 1]]), "c": torch.linspace(-1, 1, 6).double().view(3, 2, 1)}
    return ExactProductModel(ProductPath(a=MaskedPath(4), c=GaussianPath({"flow": 0.5, "jump": 0.5})), data, {"c": 0.2})


PROCESSES: dict[str, Any] = {
    "masked": lambda: chain("masked", 3),
    "uniform": lambda: chain("uniform reversal", 3),
    "flow": lambda: gaussian({"flow": 1.0}),
    "flow + jump": lambda: gaussian({"flow": 0.5, "jump": 0.5}),
    "all": lambda: gaussian({"flow": 0.3, "diffusion": 0.4, "jump": 0.3}),
    "product": product,
}
CASES: list[Any] = [
    (name, sampler)
    for name, make in PROCESSES.items()
    for sampler in samplers_for(make().path)
    if name in ("masked", "uniform", "flow", "product") or sampler in ("tau_leaping", "heun", "adaptive")
]
CASES += [("masked", TauLeaping("confidence", 1.0)), ("masked", Adaptive(0.3)), ("flow", DormandPrince(1e-3))]
CASES += [("product", Adaptive(0.3, 0.05)), ("masked", ReMDM(0.3))]


def start(process: Any, shift: float) -> dict[str, Tensor]:
    """A few rows that are always the same, and others that are not."""
    others, state = rng(int(10 * shift)), {}
    for name, path in process.path.fields.items():
        shape = {"a": (MANY, 3), "c": (MANY, 2, 1)}.get(name, (MANY, 3))
        x, y = path.prior(shape, rng(1)), path.prior(shape, others)
        x, y = (x, y) if path.is_discrete else (x.double(), shift * y.double() + shift)
        state[name] = torch.cat([x[:FEW], y[FEW:]])
    return state


@pytest.mark.parametrize(("name", "sampler"), CASES, ids=str)
def test_samplers__rows_do_not_depend_on_the_rest_of_the_batch(name: str, sampler: Any) -> None:
    """Alone, or beside others that have far to go: the same states and the same number of calls."""
    process = PROCESSES[name]()
    options: dict[str, Any] = {"corrector": sampler} if isinstance(sampler, ReMDM) else {"sampler": sampler}
    grid = [0.01, 0.3, 0.5, 1.0] if "adaptive" in str(sampler).lower() else torch.linspace(0.01, 1, 9).double()
    runs = []
    for rows, shift in ((FEW, 1.0), (MANY, 6.0)):
        x_0 = {field: x[:rows] for field, x in start(process, shift).items()}
        given: Any = x_0.get("", x_0)
        runs.append(simulate(process, given, grid, rng(2), return_info=True, save_at=[1, -1], **options))
    alone, together = runs
    assert torch.equal(together.network_calls[:FEW], alone.network_calls)
    for state, expected in zip(together.states, alone.states, strict=True):
        for field, x in pack(expected).items():
            torch.testing.assert_close(pack(state)[field][:FEW], x, rtol=1e-9, atol=1e-9)
