"""`generate(given=…)`: observed values are returned as they were, noised as in training, and condition the rest."""

from __future__ import annotations

import datetime
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import (
    GaussianPath,
    GMConfig,
    GMModel,
    MaskedPath,
    ProductPath,
    UniformPath,
)
from gm_discrete.data import fit_codecs, table_path
from gm_discrete.nn.readout import Network
from tests.helpers.distributions import LEAST_P, chi_square
from tests.helpers.euclid import kolmogorov, normal_cdf
from tests.helpers.product_models import CODECS, Rows, network, rng, row_path

PRODUCTS = ("tau_leaping", "euler", "heun", "adaptive")
NAN = math.nan
GIVEN: dict[str, Any] = {
    "cut": ["fair", None, "good"],
    "price": [326.0, NAN, 18_823.0],
    "depth": torch.tensor([61.5, 59.8, NAN], dtype=torch.float64),
    "table": [NAN, 55.123456789012345, 53.0],
}
"""None is a category of "cut", and marks an unobserved value elsewhere."""


def generate(name: str = "row", **arguments: Any) -> Any:
    return network(name).generate(num_steps=4, seed=1, **arguments)


@pytest.mark.parametrize("name", ["row", "independent row"])
@pytest.mark.parametrize("sampler", PRODUCTS)
def test_given__values_are_returned_to_the_bit(name: str, sampler: str) -> None:
    """In natural values, which a scaler in float32 would round; the rest is drawn and follows the codec."""
    sample = generate(name, given=GIVEN, sampler=sampler)
    assert sample["cut"].tolist() == [[1], [2], [0]]
    for field in ("price", "depth", "table"):
        expected = torch.as_tensor(GIVEN[field], dtype=torch.float64).view(3, 1, 1)
        known = ~expected.isnan()
        assert sample[field].dtype == torch.float64
        assert torch.equal(sample[field][known], expected[known])
        assert bool(sample[field].isfinite().all())
    free = generate(name, given={**GIVEN, "price": [326.0, NAN, NAN]}, sampler=sampler)["price"]
    assert float(free[2, 0, 0]) != 18_823.0
    price, depth = sample["price"][1], sample["depth"][2]
    assert torch.equal(price, price.round())
    assert torch.equal(depth, depth.round(decimals=1))


def test_given__every_form_of_values_and_masks() -> None:
    """Tensors of the state's shape, ids, pairs with a mask, lists within lists, the mask's id, −1."""
    cells = generate(given=GIVEN)
    same: list[dict[str, Any]] = [
        {"cut": torch.tensor([1, 2, 0])},
        {"cut": torch.tensor([[1], [2], [0]])},
        {"cut": [["fair"], [None], ["good"]]},
        {"price": torch.tensor([326.0, NAN, 18_823.0]).view(3, 1, 1)},
        {"price": ([326.0, 1.0, 18_823.0], [True, False, True])},
        {"price": ([326.0, NAN, 18_823.0], torch.ones(3, 1, 1))},
        {"depth": (torch.tensor([61.5, 59.8, -5e9], dtype=torch.float64), [True, True, False])},
    ]
    for change in same:
        found = generate(given={**GIVEN, **change})
        assert all(torch.equal(found[field], cells[field]) for field in cells), change
    unknown: list[Any] = [
        torch.tensor([1, -1, 0]),
        torch.tensor([1, 3, 0]),
        (["fair", "good", "good"], [True, False, True]),
    ]
    first, *others = [generate(given={**GIVEN, "cut": value}) for value in unknown]
    assert first["cut"].flatten().tolist()[::2] == [1, 0]
    assert 0 <= int(first["cut"][1]) < 3  # no mask is left
    assert all(torch.equal(first[field], other[field]) for other in others for field in first)
    plain = generate("two lines", given={"over": [[1, None, 4, None]], "under": [[-1, 0, 3, 2, 1, -1]]})
    assert plain["over"][0, [0, 2]].tolist() == [1, 4]
    assert plain["under"][0, 1:5].tolist() == [0, 3, 2, 1]
    assert generate(given={"cut": "good"})["cut"].tolist() == [[0]]


@pytest.mark.parametrize(
    ("name", "given", "error"),
    [
        ("row", {"cut": ["ideal"]}, r"given\['cut'\]: .*'ideal'.*'good', 'fair'"),
        ("row", {"cut": [1]}, r"given\['cut'\]: .*\b1\b"),
        ("row", {"cut": torch.tensor([5])}, r"given\['cut'\] .*0 to 2"),
        ("row", {"cut": torch.tensor([-2])}, r"given\['cut'\] .*0 to 2"),
        ("row", {"cut": torch.tensor([0.5])}, r"given\['cut'\].*torch.float32"),
        ("row", {"cut": torch.zeros(2, 1, 1).long()}, r"given\['cut'\] has shape \[2, 1, 1\].* \['B', 1\]"),
        ("row", {"price": torch.zeros(2, 1, 3)}, r"given\['price'\] has shape \[2, 1, 3\].* \['B', 1, 1\]"),
        ("row", {"price": ([1.0, 2.0], [True])}, r"given\['price'\] .*\[2, 1, 1\].*\[1, 1, 1\]"),
        ("row", {"price": [math.inf]}, "holds inf"),
        ("row", {"price": [1.0], "depth": [60.0, 61.0]}, r"given\['price'\] has 1, given\['depth'\] has 2"),
        ("row", {"color": [1]}, r"given has 'color', which is no field\. All fields are cut, price, depth, table"),
        ("row", {"cut": [1], "prise": [1]}, r"given has 'prise', which is no field; did you mean price\?"),
        ("row", [1.0], "given .*dict"),
        ("two lines", {"over": [[1, 2], [3]]}, r"given\['over'\].*lengths"),
        ("two lines", {"over": [[1, 9]]}, r"given\['over'\] .*0 to 5"),
        ("picture", {"image": torch.zeros(1, 3, 4, 5)}, r"given\['image'\] has shape \[1, 3, 4, 5\].*"),
        ("notes", {"pitch": [[1, 2]], "gap": torch.zeros(1, 3, 2)},
         r"pitch, gap.*given\['pitch'\] has 2, given\['gap'\] has 3"),
    ],
)  # fmt: skip
def test_given__values_that_do_not_fit_are_named(name: str, given: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        generate(name, given=given)


def test_given__a_column_of_dates_is_given_by_its_fields() -> None:
    codecs = fit_codecs({"order date": [datetime.date(2023, 2, 1), datetime.date(2024, 3, 31)], "city": ["a", "b"]})
    config = GMConfig(
        path=table_path(codecs), fields={name: {"codec": codec} for name, codec in codecs.items()},
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
    )  # fmt: skip
    parts = ", ".join(f"'order date_{part}'" for part in ("year", "month", "day"))
    with pytest.raises(ValueError, match=f"given has 'order date', which .*dates has the fields {parts}"):
        GMModel(config).generate(given={"order date": ["2023-02-01"]})


# ---- the input of the network


class Shown:
    """Keeps what enters the network: (x, t)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[dict[str, Tensor], Tensor]] = []
        hidden = Network.hidden

        def keep(network: Network, x: Any, t: Any, *rest: Any) -> Tensor:
            self.calls.append((x, t))
            return hidden(network, x, t, *rest)

        monkeypatch.setattr(Network, "hidden", keep)


def test_given__observed_fields_enter_at_their_time_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are, and only where they are known in all cells; what is not is at the time of the step."""
    model = network("independent row")
    shown = Shown(monkeypatch)
    model.generate(given={"cut": [None, "fair"], "price": [326.0, NAN]}, num_steps=5, seed=1)
    price = CODECS["price"].transform(torch.tensor([326.0]))  # type: ignore[union-attr]
    assert len(shown.calls) == 5
    for i, (x, t) in enumerate(shown.calls):
        assert t.shape == (2, 4)
        assert t[:, 0].tolist() == [1.0, 1.0]  # None is a category
        assert t[0, 1] == 1.0
        assert torch.allclose(t[1, 1:], torch.full((3,), i / 5, dtype=torch.float64))
        assert torch.allclose(t[0, 2:], torch.full((2,), i / 5, dtype=torch.float64))
        assert x["cut"].tolist() == [[2], [1]]
        assert torch.equal(x["price"][0, 0], price)


def test_given__a_field_with_one_unobserved_entry_is_noised(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("picture")
    shown, image = Shown(monkeypatch), torch.zeros(2, 3, 4, 6)
    image[1, 0, 0, 0] = NAN
    model.generate(given={"image": image, "caption": [[1, 2, 3], [None, 2, 3]]}, num_steps=2, seed=1)
    assert [t.tolist() for _, t in shown.calls] == [[[1, 1], [0, 0]], [[1, 1], [0.5, 0.5]]]


def test_given__observed_values_are_not_simulated() -> None:
    """Nothing is asked for where all is given; and it does not count among the jumps."""
    output = generate(given=GIVEN, return_dict_in_generate=True)
    assert output.network_calls.tolist() == [4, 4, 4]
    everything = {"cut": ["good"] * 2, "price": [1.0, 2.0], "depth": [60.0, 61.0], "table": [1.0, 2.0]}
    output = generate(given=everything, return_dict_in_generate=True)
    assert output.network_calls.tolist() == output.jumps.tolist() == [0, 0]
    output = generate(given={"cut": ["good"] * 2, "price": [1.0, 2.0]}, return_dict_in_generate=True)
    assert output.jumps.tolist() == [0, 0]  # only symbols and prices do


def test_given__values_enter_at_the_noise_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks as they are, which is exact; numbers x_t ~ N(αz, σ²), and other symbols kept with probability κ."""
    n, path = 4000, ProductPath(a=MaskedPath(4), b=UniformPath(5), c=GaussianPath())
    model = network("row", path=path, fields={"a": {"length": 2}, "b": {"length": 2}, "c": {"length": 2}})
    shown = Shown(monkeypatch)
    given = {"a": torch.tensor([[1, -1]]).expand(n, 2), "b": torch.tensor([[4, -1]]).expand(n, 2),
             "c": torch.tensor([[0.8, NAN]]).view(1, 2, 1).expand(n, 2, 1)}  # fmt: skip
    sample = model.generate(given=given, grid=[0.0, 0.4, 1.0], seed=1)
    x, t = shown.calls[-1]
    assert float(t[0]) == 0.4
    assert bool((x["a"][:, 0] == 1).all())
    law = torch.full((5,), 0.6 / 5, dtype=torch.float64) + 0.4 * torch.nn.functional.one_hot(torch.tensor(4), 5)
    assert chi_square(torch.bincount(x["b"][:, 0], minlength=5), law) > LEAST_P
    assert kolmogorov(x["c"][:, 0], lambda y: normal_cdf((y - 0.32) / 0.6))[1] > LEAST_P
    assert all(bool((sample[name][:, 0] == given[name][:, 0]).all()) for name in given)


def test_given__a_field_observed_but_for_its_padding_is_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("picture")
    shown = Shown(monkeypatch)
    mask = torch.tensor([[1, 1, 0]])
    model.generate(given={"caption": [[1, 2, None]]}, attention_mask={"caption": mask}, num_steps=2, seed=1)
    assert all(t[0, 0] == 1 for _, t in shown.calls)


# ---- codecs, lengths, and options that do not fit products


def untrained(independent: bool = False) -> GMModel:
    fields = {name: {"codec": codec} for name, codec in CODECS.items()}
    path = row_path(independent)
    return GMModel(GMConfig(path=path, fields=fields, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", PRODUCTS)
def test_generate__samples_keep_digits_and_bounds_of_scalers(sampler: str) -> None:
    sample: Any = untrained().generate(batch_size=200, num_steps=6, sampler=sampler, seed=2)
    price, depth = sample["price"], sample["depth"]
    assert torch.equal(price, price.round())
    assert 1 <= float(price.min()) < 50 < 5000 < float(price.max()) <= 20_000  # 6 ± 1 in logarithms
    assert torch.equal(depth, depth.round(decimals=1))
    assert not torch.equal(depth, depth.round())
    assert set(sample["cut"].flatten().tolist()) == {0, 1, 2}
    assert len(CODECS["cut"].decode(sample["cut"])) == 200  # type: ignore[union-attr]
    assert not torch.equal(sample["table"], sample["table"].round(decimals=3))


def test_generate__lengths_of_fields() -> None:
    shapes = lambda sample: {name: tuple(value.shape) for name, value in sample.items()}  # noqa: E731
    assert shapes(generate("two lines")) == {"over": (1, 4), "size": (1, 3, 1), "under": (1, 6)}
    assert shapes(generate("two lines", length=2, batch_size=2)) == {"over": (2, 2), "size": (2, 2, 1), "under": (2, 2)}
    assert shapes(generate("two lines", length={"over": 5})) == {"over": (1, 5), "size": (1, 3, 1), "under": (1, 6)}
    assert shapes(generate("notes", length={"pitch": 3})) == {"pitch": (1, 3), "gap": (1, 3, 2), "key": (1, 1)}
    assert shapes(generate("notes", given={"gap": torch.zeros(2, 7, 2)}))["pitch"] == (2, 7)
    assert shapes(generate("picture", length=2)) == {"caption": (1, 2), "image": (1, 3, 4, 6)}
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    output = generate("notes", attention_mask={"pitch": mask, "gap": mask}, return_dict_in_generate=True)
    assert output.sequences["gap"].shape == (2, 4, 2)
    assert torch.equal(output.attention_mask["pitch"], mask)
    assert output.network_calls.tolist() == [4, 4]
    for arguments, message in (
        ({"length": {"image": 3}}, "length.* image; .*pitch, gap, key"),
        ({"length": {"pitch": 3, "gap": 4}}, r"pitch, gap.*length\['pitch'\] has 3, length\['gap'\] has 4"),
        ({"attention_mask": mask}, "attention_mask.* dict by field"),
        ({"attention_mask": {"pitch": mask}, "batch_size": 3}, r"attention_mask\['pitch'\] has 2, batch_size has 3"),
        ({"batch_size": 0}, "batch_size=0"),
    ):
        with pytest.raises(ValueError, match=message):
            generate("notes", **arguments)


def test_generate__padding_of_fields_is_not_sampled() -> None:
    """A mask in the padding stays a mask, and asks for nothing."""
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1]])
    output = generate("two lines", attention_mask={"over": mask}, return_dict_in_generate=True)
    assert bool((output.sequences["over"][0, 1:] == 5).all())
    assert bool((output.sequences["over"][1] < 5).all())
    assert output.jumps.shape == (2,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "dopri5"}, "sampler=DormandPrince.*product.*choose one of adaptive, euler, heun, tau_leaping"),
        ({"sampler": "first_hitting"}, "sampler=FirstHitting.*product.*choose one of adaptive, euler, heun, tau_leaping"),
        ({"corrector": {"type": "detailed_balance"}}, "corrector=DetailedBalance.*product"),
        ({"x_0": torch.zeros(1)}, "x_0.*product"),
        ({"streamer": object()}, "streamer.*product"),
        ({"input_ids": torch.zeros(1, 1)}, "input_ids.*product.*given"),
        ({"logits_processor": [1], "stopping_criteria": [1]}, "logits_processor.*product"),
        ({"guidance_scale": 2.0}, "guidance_scale=2.0 needs class_labels"),
        ({"generators": {"cut": {"jump": 1.0}}}, "generators=.'cut'"),
    ],
)  # fmt: skip
def test_generate__options_that_do_not_fit_a_product_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(**arguments)


def test_generate__generators_temperature_and_classes_of_a_product() -> None:
    """Weights by field leave the other fields' generators alone; a temperature near 0 takes the likeliest symbol."""
    model = network("row", num_classes=3)
    plain = model.generate(batch_size=40, num_steps=4, seed=1)
    flowing = model.generate(batch_size=40, num_steps=4, seed=1, generators={"price": {"flow": 1.0}})
    assert not torch.equal(plain["price"], flowing["price"])  # type: ignore[index]
    cold = model.generate(batch_size=40, num_steps=1, seed=1, temperature=1e-6)
    x = model.path.prior({"cut": (40, 1), "price": (40, 1, 1), "depth": (40, 1, 1), "table": (40, 1, 1)}, rng(1))
    likeliest = model(fields=x, time=torch.zeros(40).double()).logits["cut"].argmax(2)
    assert torch.equal(cold["cut"], likeliest)  # type: ignore[index]
    by_class: Any = model.generate(class_labels=[0, 1, 2], num_steps=4, seed=1)
    assert by_class["price"].shape == (3, 1, 1)
    other: Any = model.generate(class_labels=[1, 1, 2], num_steps=4, seed=1)
    assert not torch.equal(by_class["table"][0], other["table"][0])
    count = Rows(model)
    model.generate(class_labels=[0, 1, 2], num_steps=4, seed=1)
    assert count.sizes == [3] * 4


def test_given__entries_of_vectors() -> None:
    """A Euclidean model completes vectors; symbols have prompts with masks for it."""
    config = GMConfig(path=GaussianPath(num_channels=2), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                      max_position_embeddings=3)  # fmt: skip
    model = GMModel(config)
    values = torch.tensor([[[0.1, NAN], [NAN, -0.3], [1.7, 2.5]]])
    sample: Any = model.generate(given=values, num_steps=4, seed=1)
    known = ~values.isnan()
    assert torch.equal(sample[known], values[known])
    assert bool(sample.isfinite().all())
    pair: Any = model.generate(given=(values.nan_to_num(9.0), known), num_steps=4, seed=1)
    assert torch.equal(pair, sample)
    for options, message in (
        ({"batch_size": 2}, "given has 1, batch_size has 2"),
        ({"length": 4}, "given has 3, length has 4"),
        ({"x_0": torch.zeros(1, 3, 2)}, "x_0 cannot be combined with given"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(given=values, **options)
    symbols = GMModel(GMConfig(path=MaskedPath(4), hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match=r"given.*input_ids"):
        symbols.generate(given=[[1]])
