import datetime
import logging
import math
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import DataLoader

from gm_discrete import GMConfig, GMModel
from gm_discrete.data import (
    SequenceCollator,
    TableCollator,
    decode_rows,
    decode_sequences,
    describe_columns,
    encode_rows,
    encoded_dataset,
    fit_codecs,
    natural_values,
    table_path,
)
from gm_discrete.data.scalers import Categories, Codec, DatePart, QuantileScaler, StandardScaler


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def people(count: int = 2000) -> dict[str, list[Any]]:
    """Heights with a missing fifth, cities with a missing tenth, whole ages, incomes, and whether one smokes."""
    random = np.random.RandomState(0)
    heights = random.normal(1.7, 0.1, count).round(2).tolist()
    cities = random.choice(["Bonn", "Aachen", "Celle"], count).tolist()
    return {
        "height": [None if index % 5 == 0 else height for index, height in enumerate(heights)],
        "city": [None if index % 10 == 3 else city for index, city in enumerate(cities)],
        "age": random.randint(18, 90, count).tolist(),
        "income": (random.lognormal(10, 1, count).round(-2)).tolist(),
        "smokes": (random.rand(count) < 0.3).tolist(),
    }


def rows_of(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def test_fit_codecs__chooses_by_the_type_of_the_column() -> None:
    codecs = fit_codecs(people(), scalers={"age": "standard"})
    assert list(codecs) == ["height", "height_missing", "city", "age", "income", "smokes"]
    kinds = [QuantileScaler, Categories, Categories, StandardScaler, QuantileScaler, Categories]
    assert [type(codec) for codec in codecs.values()] == kinds
    height, city, smokes, age = (codecs[name] for name in ("height", "city", "smokes", "age"))
    assert isinstance(height, QuantileScaler)
    assert isinstance(age, StandardScaler)
    assert (height.digits, age.digits, age.low, age.high) == (2, 0, 18, 89)
    assert isinstance(city, Categories)
    assert isinstance(smokes, Categories)
    assert (city.names, smokes.names) == (["Aachen", "Bonn", "Celle", None], [False, True])
    assert isinstance(fit_codecs(people(), categories=["age"])["age"], Categories)
    unbounded = fit_codecs(people(), bounded=False)["age"]
    assert isinstance(unbounded, QuantileScaler)
    assert unbounded.low is None


@pytest.mark.parametrize("scalers", ["quantile", "standard"])
def test_encode_rows__round_trip(scalers: str) -> None:
    columns = people()
    codecs = fit_codecs(columns, scalers=scalers)
    for rows in (columns, rows_of(columns), Dataset.from_dict(columns)):
        for generator in (None, rng()):
            state = encode_rows(rows, codecs, generator)
            assert list(state) == list(codecs)
            for name, field in state.items():
                category = isinstance(codecs[name], Categories)
                assert field.shape == ((2000, 1) if category else (2000, 1, 1))
                assert field.dtype == (torch.long if category else torch.float32)
                assert field.isfinite().all()
            decoded = decode_rows(natural_values(state, codecs), codecs)
            assert decoded == columns
            assert {type(age) for age in decoded["age"]} == {int}


def test_encode_rows__missing_numbers_carry_no_information() -> None:
    """Where heights are missing, their substitutes have the distribution of the others: a two-sample Kolmogorov distance."""
    codecs = fit_codecs(people())
    state = encode_rows(people(), codecs, rng())
    missing = state["height_missing"].flatten() == 1
    assert missing.nonzero().flatten().tolist() == list(range(0, 2000, 5))
    there, gone = state["height"].flatten()[~missing], state["height"].flatten()[missing]
    grid = torch.linspace(-3, 3, 601)[:, None]
    distance = ((there < grid).double().mean(1) - (gone < grid).double().mean(1)).abs().max()
    assert distance < 2.23 * math.sqrt(1 / 1600 + 1 / 400)  # exceeded with probability 2 exp(−2 · 2.23²) = 1e-4
    assert torch.equal(encode_rows(people(), codecs, rng())["height"], state["height"])
    assert not torch.equal(encode_rows(people(), codecs, rng(1))["height"], state["height"])
    decoded = decode_rows(natural_values(state, codecs), codecs)["height"]
    assert [index for index, height in enumerate(decoded) if height is None] == list(range(0, 2000, 5))


def test_fit_codecs__a_column_of_the_table_is_no_companion() -> None:
    columns = {"a": [1.0, 2.0, 3.0], "a_missing": [True, False, True], "b_missing": ["missing", "present", "missing"]}
    codecs = fit_codecs(columns)
    assert decode_rows(natural_values(encode_rows(columns, codecs), codecs), codecs) == columns
    with pytest.raises(ValueError, match=r"'a'.*'a_missing'"):
        fit_codecs({"a": [1.0, None], "a_missing": [True, False]})


def test_encoded_dataset__has_the_states_of_its_rows() -> None:
    columns = people(500)
    codecs = fit_codecs(columns)
    rows: Any = encoded_dataset(Dataset.from_dict(columns), codecs, seed=5)
    collator = pickle.loads(pickle.dumps(TableCollator(codecs)))  # as for workers that are spawned
    batches = list(DataLoader(rows, batch_size=200, collate_fn=collator))
    assert [len(batch["fields"]["age"]) for batch in batches] == [200, 200, 100]
    expected = encode_rows(columns, codecs, rng(5))
    for name, field in expected.items():
        joined = torch.cat([batch["fields"][name] for batch in batches])
        assert joined.dtype == field.dtype
        assert torch.equal(joined, field)
        assert all(batch["labels"][name] is batch["fields"][name] for batch in batches)
    other = fit_codecs({name: columns[name] for name in ("age", "city")})
    with pytest.raises(ValueError, match=r"rows .*codecs"):
        TableCollator(other)([rows[0]])


def test_encoded_dataset__draws_of_a_stream_depend_on_the_row_alone() -> None:
    columns = people(300)
    codecs = fit_codecs(columns)
    stream = Dataset.from_dict(columns).to_iterable_dataset()
    assert isinstance(stream, IterableDataset)
    encoded: Any = encoded_dataset(stream, codecs, seed=1)
    collator = TableCollator(codecs)
    fields = collator(list(encoded))["fields"]
    assert decode_rows(natural_values(fields, codecs), codecs) == columns
    again = collator(list(encoded.skip(200)))["fields"]
    shuffled = collator(list(encoded.shuffle(seed=0, buffer_size=100)))["fields"]
    for name in codecs:
        assert torch.equal(again[name], fields[name][200:])
        assert torch.equal(shuffled[name].flatten().sort().values, fields[name].flatten().sort().values)


def test_table_collator__dequantises_natural_rows_anew() -> None:
    columns = people(100)
    codecs = fit_codecs(columns)
    rows = rows_of(columns)
    collator = TableCollator(codecs)
    torch.manual_seed(0)
    first, second = collator(rows)["fields"], collator(rows)["fields"]
    assert not torch.equal(first["age"], second["age"])
    assert (
        decode_rows(natural_values(first, codecs), codecs)
        == decode_rows(natural_values(second, codecs), codecs)
        == columns
    )
    still = TableCollator(codecs, dequantize=False)
    assert torch.equal(still(rows)["fields"]["age"], still(rows)["fields"]["age"])


def melodies() -> list[dict[str, list[Any]]]:
    return [
        {"name": ["c", "d", "e"], "length": [0.5, 0.25, 1.0]},
        {"name": ["e"], "length": [2.0]},
    ]


@pytest.mark.parametrize(("length", "padded"), [(None, 3), (5, 5)])
def test_sequence_collator__pads_on_the_right(length: int | None, padded: int) -> None:
    codecs = fit_codecs(melodies())
    batch = SequenceCollator(codecs, length)(melodies())
    fields, labels, masks = batch["fields"], batch["labels"], batch["attention_mask"]
    assert fields["length"].shape == labels["length"].shape == (2, padded, 1)
    assert fields["name"].shape == labels["name"].shape == masks["name"].shape == masks["length"].shape == (2, padded)
    assert (fields["length"].dtype, fields["name"].dtype) == (torch.float32, torch.long)
    mask: Tensor = masks["name"].bool()
    assert mask.sum(1).tolist() == [3, 1]
    assert mask[1].tolist() == [True] + [False] * (padded - 1)
    assert (labels["name"][~mask] == -100).all()
    assert labels["length"][~mask].isnan().all()
    assert torch.equal(labels["name"][mask], fields["name"][mask])
    assert torch.equal(labels["length"][mask], fields["length"][mask])
    assert fields["length"].isfinite().all()
    assert decode_sequences(natural_values(fields, codecs), codecs, masks) == melodies()
    assert "attention_mask" not in SequenceCollator(codecs)(melodies()[:1])
    whole = decode_sequences(natural_values(fields, codecs), codecs)
    assert [len(row["name"]) for row in whole] == [padded, padded]


def test_sequence_collator__bad_sequences_are_named() -> None:
    codecs = fit_codecs(melodies())
    with pytest.raises(ValueError, match=r"\{'name': 1, 'length': 2\}"):
        SequenceCollator(codecs)([{"name": ["c"], "length": [1.0, 2.0]}])
    with pytest.raises(ValueError, match=r"3 .*length=2"):
        SequenceCollator(codecs, 2)(melodies())
    with pytest.raises(ValueError, match="length=0"):
        SequenceCollator(codecs, 0)
    with pytest.raises(ValueError, match="SequenceCollator"):
        encode_rows(melodies(), codecs)
    state = SequenceCollator(codecs)(melodies())["fields"]
    with pytest.raises(ValueError, match=r"'name'.*\(2, 3\)"):
        decode_rows(natural_values(state, codecs), codecs)
    with pytest.raises(ValueError, match=r"values .*'length'.*name"):
        decode_sequences({"name": state["name"]}, codecs)
    with pytest.raises(ValueError, match=r"'length'.*\(2, 3\)"):
        decode_sequences({"name": state["name"], "length": state["length"].squeeze(2)}, codecs)


def test_encode_rows__bad_tables_are_named() -> None:
    codecs = fit_codecs({"a": [1.0, 2.0], "b": ["x", "y"]})
    for rows, match in (
        ([], "rows "),
        ([{"a": 1.0}], r"'b'.*a, b"),
        ([{"a": 1.0, "b": "x", "c": 2}], "'c'"),
        ([{"a": 1.0, "b": "z"}], r"'b': values .*'z'.*drop the rows, or fit .* train, again"),
        ([{"a": None, "b": "x"}], r"'a': 1 of 1 .*missing"),
        ([{"a": "1", "b": "x"}], "'a': '1'"),
        ([{"a": math.inf, "b": "x"}], r"'a': values .*inf"),
        ([{"a": 1.0, "b": "x"}, {"a": 1.0}], r"rows .*: a, b; and a"),
        ({"a": [1.0], "b": ["x", "y"]}, r"\{'a': 1, 'b': 2\}"),
    ):
        with pytest.raises(ValueError, match=match):
            encode_rows(rows, codecs)
    with pytest.raises(ValueError, match=r"'d'.*complex"):
        fit_codecs({"d": [1j]})
    with pytest.raises(ValueError, match=r"'d'.*empty"):
        fit_codecs({"d": [None]})
    with pytest.raises(ValueError, match=r"rows .*'c'.*a"):
        fit_codecs({"a": [1.0]}, categories=["c"])
    with pytest.raises(ValueError, match=r"scalers='cubic'.*'a'.*standard, quantile"):
        fit_codecs({"a": [1.0, 2.0]}, scalers="cubic")
    with pytest.raises(ValueError, match=r"scalers\['b'\]"):
        fit_codecs({"b": ["x"]}, scalers={"b": "standard"})
    with pytest.raises(ValueError, match=r"values .*'b'.*a"):
        decode_rows({"a": torch.zeros(1, 1, 1)}, codecs)
    with pytest.raises(ValueError, match=r"'b': ids .*2"):
        decode_rows({"a": torch.zeros(1, 1, 1), "b": torch.tensor([[2]])}, codecs)


def test_encoded_dataset__leaves_out_rows_with_unknown_values(caplog: pytest.LogCaptureFixture) -> None:
    codecs = fit_codecs({"town": ["Aarhus", "Brno"], "price": [1.0, 2.0]})
    rows = {"town": ["Brno", "Cork", "Aarhus", None], "price": [1.0, 2.0, None, 1.0]}
    logging.getLogger("transformers").propagate = True
    logging.getLogger("gm_discrete").propagate = True
    encoded: Any = encoded_dataset(Dataset.from_dict(rows), codecs)
    fields = TableCollator(codecs)(list(encoded))["fields"]
    assert decode_rows(natural_values(fields, codecs), codecs) == {"town": ["Brno"], "price": [1]}
    assert "3 of 4 rows" in caplog.text
    assert "'Cork'" in caplog.text
    stream: Any = encoded_dataset(Dataset.from_dict(rows).to_iterable_dataset(), codecs)
    assert len(list(stream)) == 1
    with pytest.raises(ValueError, match="every row"):
        encoded_dataset(Dataset.from_dict({"town": ["Cork"], "price": [1.0]}), codecs)


def test_fit_codecs__names_columns_that_look_like_identifiers(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("gm_discrete").propagate = True
    table = pd.DataFrame({"id": range(7, 47), "code": [f"{i:04d}" for i in range(40)], "size": [3, 5] * 20})
    fit_codecs(table)
    assert "'id'" in caplog.text
    assert "'code'" in caplog.text
    assert "'size'" not in caplog.text
    described = describe_columns(table)
    assert "identifier" in described["id"]
    assert described["size"] == "whole number from 3 to 5"


def test_describe_columns__says_what_columns_hold() -> None:
    table = {
        "a": [0.25, None, 1.5],
        "b": ["1", "2", "2"],
        "c": [True, False, None],
        "d": [datetime.date(2024, 1, 31), None, datetime.date(2024, 2, 1)],
    }
    assert describe_columns(table) == {
        "a": "number from 0.25 to 1.5, 2 decimals, 1 missing",
        "b": "text, 2 categories: '1', '2'",
        "c": "text, 2 categories: False, True, 1 missing",
        "d": "date from 2024-01-31 to 2024-02-01, 1 missing",
    }
    mixed = {"a": [*map(str, range(30)), "unknown"] * 2}
    assert "numbers but for 'unknown'" in describe_columns(mixed)["a"]


def test_describe_columns__names_the_column_of_numbers_that_are_not_finite() -> None:
    for describe in (describe_columns, fit_codecs):
        with pytest.raises(ValueError, match=r"column 'a': values holds inf \(1 of 41\); leave out"):
            describe({"b": ["x"] * 41, "a": [*map(float, range(40)), math.inf]})


def test_encode_rows__warns_of_numbers_beyond_the_bounds(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("transformers").propagate = True
    logging.getLogger("gm_discrete").propagate = True
    when = datetime.date(2023, 2, 1)
    rows = {"price": [326, 18823], "depth": [0.5, None], "day": [when, datetime.date(2024, 3, 31)], "cut": ["a", "b"]}
    codecs = fit_codecs(rows)
    state = encode_rows(rows, codecs)
    encode_rows({"depth": [7.0]}, fit_codecs({"depth": [0.5, 1.0]}, scalers="standard", bounded=False))
    assert not caplog.records
    later = datetime.date(2030, 3, 1)
    far = {"price": [400, 187870, 2 * 10**5], "depth": [0.5, None, 0.5], "day": [when, when, later], "cut": ["a"] * 3}
    found = encode_rows(far, codecs)
    assert len(caplog.records) == 1
    assert (
        "'price' (2: 187870, not within 326 and 18823), 'day_year' (1: 2030, not within 2023 and 2024)" in caplog.text
    )
    assert "depth" not in caplog.text
    encode_rows({"x": [1e-9, 2.5]}, fit_codecs({"x": [0.123456789, 1 / 3, 2 / 3]}, bounded=False))
    assert "'x' (2: 1e-09, not within 0.123456789 and 0.666666666666667)" in caplog.text
    assert float(found["price"][1]) >= float(state["price"][1])
    assert torch.equal(found["price"][1], found["price"][2])


def moments(kind: str) -> list[Any]:
    days = [datetime.date(2019 + i % 3, 1 + i % 12, 1 + i % 28) for i in range(50)]
    if kind == "dates":
        return [None if i == 7 else day for i, day in enumerate(days)]
    times = [datetime.time(i % 24, 7 * i % 60, 0 if kind == "minutes" else i % 60) for i in range(50)]
    if kind == "times":
        return list(times)
    return [datetime.datetime.combine(day, time) for day, time in zip(days, times, strict=True)]


@pytest.mark.parametrize("scalers", ["quantile", "standard"])
@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("dates", ["year", "month", "day", "missing"]),
        ("minutes", ["year", "month", "day", "minute"]),
        ("seconds", ["year", "month", "day", "second"]),
        ("times", ["second"]),
    ],
)
def test_fit_codecs__dates_are_numbers_and_come_back(kind: str, parts: list[str], scalers: str) -> None:
    column = moments(kind)
    table = pd.DataFrame({"n": range(50), "when": column})
    for rows in ({"n": list(range(50)), "when": column}, table, Dataset.from_pandas(table)):
        codecs = fit_codecs(rows, scalers=scalers)
        assert list(codecs) == ["n", *(f"when_{part}" for part in parts)]
        for generator in (None, rng()):
            state = encode_rows(rows, codecs, generator)
            assert decode_rows(natural_values(state, codecs), codecs)["when"] == column
    again = {name: Codec.from_dict(codec.to_dict()) for name, codec in codecs.items()}
    assert again == codecs
    encoded: Any = encoded_dataset(table, codecs)
    assert len(encoded) == 50


def test_decode_rows__dates_that_no_calendar_has_are_the_last_of_their_month() -> None:
    codecs = fit_codecs({"when": [datetime.date(2023, 2, 1), datetime.date(2024, 3, 31)]})
    values = {"when_year": [2023.0, 2024.0], "when_month": [2.0, 2.0], "when_day": [31.0, 31.0]}
    state = {name: torch.tensor(numbers, dtype=torch.float64).view(2, 1, 1) for name, numbers in values.items()}
    assert decode_rows(state, codecs) == {"when": [datetime.date(2023, 2, 28), datetime.date(2024, 2, 29)]}
    with pytest.raises(ValueError, match="part='week'"):
        DatePart("week", QuantileScaler([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"'when'.*time of day"):
        encode_rows({"when": [datetime.datetime(2024, 1, 1, 8)]}, codecs)
    with pytest.raises(ValueError, match="'when_year'"):
        fit_codecs({"when": [datetime.date(2023, 2, 1)], "when_year": [2023]})


def test_tables__pandas_and_any_names_of_columns() -> None:
    names = ["petal.length", "type", "", "input_ids", "encoded", "a:b", "factors", "values", "labels", "100%25.x", 7]
    table = pd.DataFrame(
        {name: pd.Series(["x", "y", "y"] if i % 2 else [0.5, 1.5, 2.0]) for i, name in enumerate(names)}
    )
    table["kind"] = pd.Categorical(["p", None, "q"])
    codecs = fit_codecs(table)
    expected = ["unnamed" if name == "" else str(name) for name in names]
    assert list(codecs) == [*expected, "kind"]
    config = GMConfig(
        path=table_path(codecs, bins=8), fields={name: {"codec": codec} for name, codec in codecs.items()},
        aligned=[list(codecs)], hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
    )  # fmt: skip
    model = GMModel(GMConfig.from_dict(config.to_dict()))
    rows: Any = encoded_dataset(table, codecs)
    batch = TableCollator(codecs)(list(rows))
    assert model(fields=batch["fields"], labels=batch["labels"], time=torch.full((3,), 0.5)).loss.isfinite()
    sample = decode_rows(model.generate(batch_size=2, num_steps=2, seed=0), model.config.codecs)
    assert list(sample) == list(codecs)
    assert sum("%" in name for name in model.state_dict()) == 5
    with pytest.raises(ValueError, match="'7'"):
        fit_codecs(pd.DataFrame([[1, 2]], columns=[7, "7"]))
    with pytest.raises(ValueError, match="column 'mixed'"):
        fit_codecs(pd.DataFrame({"mixed": [1, "x"]}))
