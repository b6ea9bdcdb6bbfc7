"""Tables from local files: rows, splits, held-out rows, errors."""

import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, IterableDataset

from gm_discrete.data import TableCollator, fit_codecs, load_table, load_text


def listed(rows: Dataset | IterableDataset) -> list[dict[str, Any]]:
    return [dict(row) for row in rows]  # type: ignore[call-overload]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_load_table__files_and_folders(tmp_path: Path, suffix: str) -> None:
    rows = Dataset.from_dict({"height": [number / 2 for number in range(40)], "kind": ["a", "b"] * 20})
    file = tmp_path / "data" / f"train.{suffix}"
    file.parent.mkdir()
    (rows.to_csv if suffix == "csv" else rows.to_parquet)(file)
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache"}
    for source in (file, file.parent):
        train = listed(load_table(source, validation_size=0.25, **options))
        validation = listed(load_table(source, "validation", validation_size=0.25, **options))
        assert (len(train), len(validation)) == (30, 10)
        assert sorted(row["height"] for row in train + validation) == rows["height"][:]
        assert [row["height"] for row in train] != sorted(row["height"] for row in train)
    assert len(listed(load_table(file, validation_size=0, **options))) == 40
    stream = load_table(file, "validation", validation_size=7, streaming=True, **options)
    assert listed(stream) == listed(rows)[:7]
    with pytest.raises(ValueError, match=r"split='test'.*source=.*train"):
        load_table(file, "test", **options)
    with pytest.raises(ValueError, match=r"validation_size=40 .*40 rows"):
        load_table(file, validation_size=40, **options)
    with pytest.raises(ValueError, match=r"validation_size=0\.5 .*number of rows"):
        load_table(file, validation_size=0.5, streaming=True, **options)


def test_load_table__errors_name_the_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    (tmp_path / "table.xls").touch()
    with pytest.raises(ValueError, match=r"source=.*table\.xls.*\.csv"):
        load_table(tmp_path / "table.xls")
    with pytest.raises(ValueError, match=r"source='someone/nothing'"):
        load_table("someone/nothing", cache_dir=tmp_path)


def columns(file: Path, text: str, encoding: str = "utf-8", **options: Any) -> dict[str, list[Any]]:
    """What `load_table` reads from a file of this text, and that a stream has the same rows."""
    file.write_bytes(text.encode(encoding))
    rows = load_table(file, validation_size=0, **options)
    stream = load_table(file, validation_size=0, streaming=True, **options)
    assert isinstance(rows, Dataset)
    assert listed(rows) == listed(stream)
    return rows[:]


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("article;price", "art;0,50", {"article": "art", "price": 0.5}),
        ("a\tb", "1\t2.5", {"a": 1, "b": 2.5}),
        ("a|b", '"x|y"|true', {"a": "x|y", "b": True}),
        ("price", "0,50", {"price": 0.5}),
        ("a,b", '1,"1,234.50"', {"a": 1, "b": 1234.5}),
        ("a;b", "1.234,50;7", {"a": 1234.5, "b": 7}),
        ("text", "Ay, there is the rub; or not", {"text": "Ay, there is the rub; or not"}),
    ],
)
def test_load_table__finds_separator_and_decimal_sign(
    tmp_path: Path, header: str, row: str, expected: dict[str, Any]
) -> None:
    found = columns(tmp_path / "t.csv", "\n".join([header, row, row]) + "\n")
    assert found == {name: [value, value] for name, value in expected.items()}


def test_load_table__decimal_decides_where_thousands_and_decimals_look_alike(tmp_path: Path) -> None:
    text = "price;weight\n42,99;43.250\n7,5;1.500\n"
    assert columns(tmp_path / "t.csv", text, decimal=".") == {"price": [42.99, 7.5], "weight": [43.25, 1.5]}
    assert columns(tmp_path / "t.csv", text, decimal=",")["weight"] == [43250, 1500]
    assert columns(tmp_path / "t.csv", text + "1,0;1.000.000\n")["weight"] == [43250, 1500, 10**6]
    assert columns(tmp_path / "t.csv", "a,b\n1,43.250\n")["b"] == [43.25]
    assert columns(tmp_path / "t.csv", "a;b\n0.5;1.200\n")["b"] == [1.2]  # the column a has the decimal point
    for decimal, value in ((",", 1200), (".", 1.2)):
        assert columns(tmp_path / "t.csv", "a;b\nx;1.200\ny;9.382\n", decimal=decimal)["b"][0] == value


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_load_table__the_line_in_which_excel_names_the_separator(tmp_path: Path, encoding: str) -> None:
    for options in ({}, {"separator": "|"}):
        assert columns(tmp_path / "t.csv", "sep=|\r\na|b;c\r\n1|2\r\n", encoding, **options) == {"a": [1], "b;c": [2]}


def test_load_table__files_with_their_columns_in_another_order(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,a\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("y,x\nb,2\n", encoding="utf-8")
    for streaming in (False, True):
        rows = load_table(tmp_path, validation_size=0, streaming=streaming)
        assert listed(rows) == [{"x": 1, "y": "a"}, {"x": 2, "y": "b"}]
    (tmp_path / "b.csv").write_text("y,z\nb,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"b\.csv has the columns y, z.*same columns"):
        load_table(tmp_path)


def test_load_table__types_are_those_of_the_whole_file(tmp_path: Path) -> None:
    header = "zip,country,whole,number,card,word,flag,empty"
    lines = [f"{i:05d},{('NA', 'DE')[i % 2]},{i},{i},{10**16 + i},{i},True,\n" for i in range(300)]
    lines[-1] = "00300,DE,NA,0.5,1,unknown,FALSE,\n"
    found = columns(tmp_path / "t.csv", header + "\n" + "".join(lines))
    assert found["zip"][:2] == ["00000", "00001"]
    assert found["country"][:2] == ["NA", "DE"]
    assert (found["whole"][1], found["whole"][-1], type(found["whole"][1])) == (1, None, int)
    assert (found["number"][1], found["number"][-1]) == (1.0, 0.5)
    assert found["card"][0] == "10000000000000000"
    assert (found["word"][1], found["word"][-1]) == ("1", "unknown")
    assert found["flag"][-2:] == [True, False]
    assert set(found["empty"]) == {None}


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("1960-01-31", datetime.date(1960, 1, 31)),
        ("9999-12-31", datetime.date(9999, 12, 31)),
        ("2024-01-31 08:15", datetime.datetime(2024, 1, 31, 8, 15)),
        ("2024-01-31T08:15:01+02:00", datetime.datetime(2024, 1, 31, 6, 15, 1)),
        ("31.1.2024", datetime.date(2024, 1, 31)),
        ("31/01/2024 9:05", datetime.datetime(2024, 1, 31, 9, 5)),
        ("01/31/2024", datetime.date(2024, 1, 31)),
        ("08:15:30", datetime.time(8, 15, 30)),
        ("2024/1/31", datetime.date(2024, 1, 31)),
        ("2024/01/31 9:05", datetime.datetime(2024, 1, 31, 9, 5)),
        ("31-1-2024", datetime.date(2024, 1, 31)),
        ("01-31-2024", datetime.date(2024, 1, 31)),
        ("5-Jan-2024", datetime.date(2024, 1, 5)),
        ("31 DEC 2024 08:15", datetime.datetime(2024, 12, 31, 8, 15)),
    ],
)
def test_load_table__dates_and_times(tmp_path: Path, cell: str, value: object) -> None:
    assert columns(tmp_path / "t.csv", f"n,when\n1,{cell}\n2,\n") == {"n": [1, 2], "when": [value, None]}
    text = columns(tmp_path / "t.csv", f"n,when\n1,{cell}\n2,\n", text_columns=["when"])
    assert text["when"] == [cell, None]
    assert columns(tmp_path / "t.jsonl", f'{{"when": "{cell}"}}\n{{"when": null}}\n')["when"] == [value, None]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_load_table__encodings(tmp_path: Path, encoding: str) -> None:
    text = "name;höhe\n" + "Zoë;1,5\n" * 5
    assert columns(tmp_path / "t.csv", text, encoding) == {"name": ["Zoë"] * 5, "höhe": [1.5] * 5}
    assert columns(tmp_path / "t.jsonl", '{"name": "Zoë"}\n', encoding) == {"name": ["Zoë"]}


@pytest.mark.parametrize("suffix", [".CSV", ".Parquet", ".jsonl"])
def test_load_table__any_name_of_a_file(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / "data [1]" / f"rows [2]*{suffix}"
    file.parent.mkdir()
    table = pd.DataFrame({"": range(4), "petal.length": [0.5] * 4})
    if suffix == ".Parquet":
        table.to_parquet(file)
    elif suffix == ".CSV":
        table.to_csv(file, index=False)
    else:
        table.to_json(file, orient="records", lines=True)
    for source in (file, file.parent):
        rows = load_table(source, validation_size=0, cache_dir=tmp_path / "cache")
        assert [row["petal.length"] for row in listed(rows)] == [0.5] * 4


def test_load_table__json_with_nulls_and_other_columns(tmp_path: Path) -> None:
    found = columns(tmp_path / "t.jsonl", '{"a": null, "b": "x"}\n\n{"a": 1, "c": [1, 2]}\n{"a": 2.5}\n')
    assert found == {"a": [None, 1.0, 2.5], "b": ["x", None, None], "c": [None, [1, 2], None]}
    assert columns(tmp_path / "t.json", '[\n{"a": 1},\n{"a": 2}]') == {"a": [1, 2]}


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("t.csv", "a,b\n1,2\n3\n", r"t\.csv, row 3: 1 cells"),
        ("t.csv", 'a,b\n1,2\n3,"4\n5,6\n', r"t\.csv: .*quotation mark"),
        ("t.csv", "a,a\n1,2\n", r"t\.csv .*'a'"),
        ("t.csv", "", r"t\.csv "),
        ("t.csv", "a,b\n", r"t\.csv: .*no rows"),
        ("t.csv", "a,d\n1,2024-02-30\n", r"t\.csv, column 'd': .*2024-02-30.*text_columns"),
        ("t.csv", "a,d\n1,03/02/2021\n", r"t\.csv: column 'd' .*03/02/2021.*date_columns"),
        ("t.csv", "a,d\n1,01-02-2024\n", r"t\.csv: column 'd' .*date_columns"),
        ("t.csv", "price;weight\n42,99;43.250\n7,5;15\n", r"t\.csv: column 'weight' .* such as 43\.250.*decimal="),
        (
            "t.csv",
            "price;n\n7;1\n1.200;2\n",
            r"'price' .* such as 1\.200, .*decimal=',' if .*thousands, or decimal='\.'",
        ),
        ("t.csv", 'a,b\n1,"1,234"\n', r"t\.csv: column 'b' .* such as 1,234, .*decimal='\.' if .*thousands"),
        ("t.csv", "a\0,b\n1,2\n", r"t\.csv .*text file"),
        ("t.jsonl", '{"a": 1}\n{"a":\n', r"t\.jsonl, line 2"),
        ("t.jsonl", '{"a": 1}\n[2]\n', r"t\.jsonl, line 2"),
        ("t.jsonl", '{"a": 1}\n{"a": "x"}\n', r"t\.jsonl, column 'a': .*line 1|t\.jsonl, column 'a': .*line 2"),
        ("t.jsonl", '{"a": 1}\n{"a": 1, "b": {"c": 1, "c": 2}}\n', r"t\.jsonl, line 2.*'c'"),
        ("t.json", '[\n{"a": 1},\n{"a": 1, "b": 0, "a": 2}]', r"t\.json, line 3.*'a'"),
        ("t.json", '{\n"a": 1, "a": 2}', r"t\.json, line 1.*'a'"),
        ("t.json", '{\n"a": {"0": 1}}', r"t\.json .*records"),
    ],
)
def test_load_table__errors_name_file_and_place(tmp_path: Path, name: str, text: str, match: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=match):
        load_table(tmp_path / name, validation_size=0)


def test_load_table__errors_name_the_option(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("a,d\n1,01/02/2024\n", encoding="utf-8")
    for options, match in (
        ({"decimal": "x"}, "decimal='x'"),
        ({"text_columns": ["e"]}, "'e'"),
        ({"date_columns": ["a"]}, "'a'"),
        ({"date_columns": {"d": "%Y"}}, "column 'd'"),
        ({"encoding": "utf-16"}, "encoding"),
    ):
        with pytest.raises(ValueError, match=match):
            load_table(file, validation_size=0, **options)
    found = load_table(file, validation_size=0, date_columns={"d": "%d/%m/%Y"})
    assert listed(found) == [{"a": 1, "d": datetime.date(2024, 2, 1)}]
    Dataset(pa.table({"a": [1]})).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"separator=';'.*t\.parquet"):
        load_table(tmp_path / "t.parquet", separator=";")
    with pytest.raises(ValueError, match=r"nowhere\.csv.*exist"):
        load_table(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("good", ["before", "after", "beside"])
@pytest.mark.parametrize("read", [load_table, load_text])
def test_loading__a_bad_byte_among_characters_of_utf_8(tmp_path: Path, good: str, read: Any) -> None:
    name = tmp_path / ("t.csv" if read is load_table else "t.txt")
    zoe, bad = "Zoë\n".encode(), b"caf\xe9\n"
    lines = {"before": (zoe, bad), "after": (bad, zoe), "beside": ("ë".encode() + bad, b"x\n")}[good]
    name.write_bytes(b"text\n" + b"".join(lines) * 20)
    options: dict[str, Any] = {"validation_size": 0, "cache_dir": tmp_path / "cache"}
    line = 3 if good == "before" else 2
    with pytest.raises(ValueError, match=rf"{name.name}, line {line}: .*0xE9.*encoding="):
        read(name, **options)
    assert "café" in str(listed(read(name, encoding="cp1252", **options)))


def test_load_table__pandas_tables() -> None:
    day = datetime.datetime(2024, 1, 31)
    table = pd.DataFrame({"kind": pd.Categorical(["a", "b"] * 5), 7: range(10), "day": [day] * 10}, index=range(5, 15))
    rows = load_table(table, validation_size=0)
    assert listed(rows)[1] == {"kind": "b", "7": 1, "day": day}
    assert listed(load_table(table, validation_size=0, streaming=True)) == listed(rows)
    assert [len(listed(load_table(table, split, validation_size=2))) for split in ("train", "validation")] == [8, 2]
    codecs = fit_codecs(table)
    batches = [TableCollator(codecs, dequantize=False)(some) for some in (table, listed(rows))]  # type: ignore[arg-type]
    assert all(batches[0]["fields"][name].equal(field) for name, field in batches[1]["fields"].items())
    with pytest.raises(ValueError, match="separator=';'"):
        load_table(table, separator=";")
    with pytest.raises(ValueError, match="rows"):
        load_table(table[:0])
    with pytest.raises(ValueError, match="different types"):
        load_table(pd.DataFrame({"a": [1, "x"]}))
    with pytest.raises(TypeError, match="source is a list"):
        load_table([{"a": 1}])  # type: ignore[arg-type]
