"""What a sequence gets does not depend on the other sequences of its batch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    Adaptive,
    Blocks,
    DormandPrince,
    GaussianPath,
    MaskedPath,
    ProductPath,
    ReMDM,
    TauLeaping,
    simulate,
)
from gm_discrete.generators.kernels import Kernel
from gm_discrete.paths.exact import ExactGaussianModel, ExactProductModel
from gm_discrete.process import pack
from gm_discrete.samplers import Chain, samplers_for
from tests.helpers import continuous
from tests.helpers.distributions import chain, rng
from tests.helpers.networks import LENGTH, MASK, causal, network

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


BANNED = [[0], [1, 2], [2, 1]]
GENERATED: dict[str, tuple[str, dict[str, Any]]] = {
    "tau_leaping": ("masked", {}),
    "confidence": ("masked", {"sampler": TauLeaping("confidence", 1.0), "top_p": 0.9}),
    "adaptive": ("masked", {"sampler": Adaptive(2.0), "temperature": (2.0, 0.5)}),
    "entropy_bounded": ("masked", {"sampler": "entropy_bounded", "top_k": 3}),
    "first_hitting": ("masked", {"sampler": "first_hitting"}),
    "remasking": ("masked", {"corrector": ReMDM(0.3)}),
    "banned": ("masked", {"bad_words_ids": BANNED}),
    "blocks": ("masked", {"blocks": Blocks(3), "eos_token_id": 2}),
    "cache": ("causal", {"use_cache": True, "eos_token_id": 2}),
    "flow": ("flow", {"sampler": "heun"}),
    "own steps": ("flow", {"sampler": "adaptive"}),
}


@pytest.mark.parametrize("name", GENERATED)
def test_generate__rows_do_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    """Alone, or beside others of other prompts or starts: the same samples and the same number of calls."""
    kind, options = GENERATED[name]
    if kind == "flow":
        model = continuous.network(kind).double()  # this network makes much of rounding
        start = torch.cat([torch.linspace(-1, 1, FEW), torch.linspace(-6, 6, MANY - FEW)]).double()
        state = start.view(-1, 1, 1).expand(MANY, *model.state_fields[""].state_shape(5)).contiguous()
    else:
        model = causal() if kind == "causal" else network(kind)
        state = torch.randint(3, MASK + 1, (MANY, LENGTH - 5), generator=rng(5))
        state[:, 0] = MASK  # blocks of a batch begin at the first place to fill of any of its rows
    runs = []
    for rows in (FEW, MANY):
        given = {"x_0": state[:rows]} if kind == "flow" else {"input_ids": state[:rows], "max_new_tokens": 5}
        runs.append(model.generate(**given, num_steps=6, seed=1, return_dict_in_generate=True, **options))
    alone, together = runs
    assert torch.equal(together.network_calls[:FEW], alone.network_calls)
    length = alone.sequences.shape[1]  # rows that go on beyond the end of these are padded
    torch.testing.assert_close(together.sequences[:FEW, :length], alone.sequences, rtol=1e-4, atol=1e-4)
    assert kind == "flow" or not bool(together.attention_mask[:FEW, length:].any())
