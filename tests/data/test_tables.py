import io
import subprocess
import tarfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader

from gm_discrete.data import (
    TableCollator,
    departure,
    download_flights,
    encoded_dataset,
    fit_codecs,
    load_table,
    packaged,
)
from gm_discrete.data.scalers import Categories, QuantileScaler
from gm_discrete.data.tables import SPLITS

needs_plotnine = pytest.mark.skipif(find_spec("plotnine") is None, reason="plotnine is not installed")


def listed(rows: Dataset | IterableDataset) -> list[dict[str, Any]]:
    return [dict(row) for row in rows]  # type: ignore[call-overload]


@needs_plotnine
def test_diamonds_are_split_once_and_for_all() -> None:
    parts: dict[str, Any] = {split: load_table("diamonds", split) for split in SPLITS}
    assert [len(rows) for rows in parts.values()] == [43_152, 5_394, 5_394]
    everything = [cells for rows in parts.values() for cells in zip(rows["carat"][:], rows["price"][:], strict=True)]
    lines = (packaged.package_folder("plotnine") / "data/diamonds.csv").read_text("utf-8").splitlines()[1:]
    table = [line.split(",") for line in lines]
    assert sorted(everything) == sorted((float(cells[0]), int(cells[6])) for cells in table)
    assert parts["train"]["price"][:3] == [4733, 6424, 5510]
    stream = load_table("diamonds", "test", streaming=True)
    assert isinstance(stream, IterableDataset)
    assert listed(stream) == listed(parts["test"])


@needs_plotnine
def test_columns_of_diamonds_become_seven_numbers_and_three_categories() -> None:
    codecs = fit_codecs(load_table("diamonds"))
    sizes = {name: len(codec) for name, codec in codecs.items() if isinstance(codec, Categories)}
    assert sizes == {"cut": 5, "color": 7, "clarity": 8}
    numbers = {name: codec.digits for name, codec in codecs.items() if isinstance(codec, QuantileScaler)}
    assert numbers == {"carat": 2, "depth": 1, "table": 1, "price": 0, "x": 2, "y": 2, "z": 2}
    rows: Any = encoded_dataset(load_table("diamonds", "validation"), codecs)
    loader = DataLoader(rows, batch_size=1024, collate_fn=TableCollator(codecs))
    assert sum(len(batch["fields"]["cut"]) for batch in loader) == 5_394


def write_flights(file: Path, count: int = 1000) -> dict[str, Sequence[Any]]:
    """A parquet of several groups as the package has it, a flight every seven hours."""
    start = np.datetime64("2001-01-01T00:01:00", "us")
    columns: dict[str, Any] = {
        "date": start + np.arange(count) * np.timedelta64(7, "h"),
        "delay": np.arange(count) - 100,
        "distance": np.arange(count) % 50 + 20,
        "origin": [("LAX", "JFK", "ATL")[index % 3] for index in range(count)],
        "destination": [("ORD", "SFO")[index % 2] for index in range(count)],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    table = table.set_column(3, "origin", table["origin"].cast(pa.large_string()))
    pq.write_table(table, file, row_group_size=300)
    return columns


def test_flights_are_split_by_their_place(tmp_path: Path) -> None:
    columns = write_flights(tmp_path / "gm_discrete/flights.parquet")
    parts = {split: listed(load_table("flights", split, streaming=True, cache_dir=tmp_path)) for split in SPLITS}
    assert [len(rows) for rows in parts.values()] == [800, 100, 100]
    assert [row["delay"] for row in parts["test"]] == list(columns["delay"])[9::10]
    assert sorted(row["delay"] for rows in parts.values() for row in rows) == list(columns["delay"])
    for split, rows in parts.items():
        stored = load_table("flights", split, cache_dir=tmp_path)
        assert isinstance(stored, Dataset)
        assert listed(stored) == rows
    first = parts["train"][0]
    assert first == {
        "delay": -100,
        "distance": 20,
        "origin": "LAX",
        "destination": "ORD",
        "month": "Jan",
        "weekday": "Mon",
        "minute": 1,
    }


def test_a_stream_of_flights_is_encoded_as_it_is_read(tmp_path: Path) -> None:
    write_flights(tmp_path / "gm_discrete/flights.parquet")
    stream = load_table("flights", streaming=True, cache_dir=tmp_path)
    assert isinstance(stream, IterableDataset)
    codecs = fit_codecs(stream, first=None)
    month = codecs["month"]
    assert isinstance(month, Categories)
    assert month.names == sorted(["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct"])
    encoded: Any = encoded_dataset(stream, codecs, seed=3)
    batches = list(DataLoader(encoded, batch_size=100, collate_fn=TableCollator(codecs)))
    assert [tuple(batch["fields"]["delay"].shape) for batch in batches] == [(100, 1, 1)] * 8
    assert listed(encoded)[500:] == listed(encoded.skip(500))
    assert listed(encoded) != listed(encoded_dataset(stream, codecs, seed=4))
    seen = fit_codecs(stream, first=10)["month"]
    assert isinstance(seen, Categories)
    assert seen.names == ["Jan"]


def test_departure_knows_the_calendar() -> None:
    dates = np.array(["1969-12-31T23:59", "2000-02-29T12:30", "2024-06-01T00:00"], "datetime64[s]")
    columns = departure(dates)
    assert columns["month"].tolist() == ["Dec", "Feb", "Jun"]
    assert columns["weekday"].tolist() == ["Wed", "Tue", "Sat"]
    assert columns["minute"].tolist() == [1439, 750, 0]


def test_flights_come_from_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_flights(tmp_path / "source.parquet")
    calls = []

    def run(command: tuple[str, ...], cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        content = (tmp_path / "source.parquet").read_bytes()
        with tarfile.open(Path(cwd) / "vega-datasets-3.2.1.tgz", "w:gz") as archive:
            info = tarfile.TarInfo("package/data/flights-3m.parquet")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packaged.shutil, "which", lambda name: name)
    monkeypatch.setattr(packaged.subprocess, "run", run)
    with pytest.raises(FileNotFoundError, match=r"run gm_discrete\.data\.download_flights\(\) once"):
        load_table("flights", cache_dir=tmp_path)
    file = download_flights(tmp_path)
    assert download_flights(tmp_path) == file
    assert calls == [("npm", "pack", "vega-datasets@3.2.1", "--silent")]
    assert list(file.parent.iterdir()) == [file]
    assert len(listed(load_table("flights", cache_dir=tmp_path))) == 800


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_files_and_folders_are_read(tmp_path: Path, suffix: str) -> None:
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
    with pytest.raises(ValueError, match=r"split='test' is not in source=.*; it has train"):
        load_table(file, "test", **options)
    with pytest.raises(ValueError, match="validation_size=40 must be positive and leave some of the 40 rows"):
        load_table(file, validation_size=40, **options)
    with pytest.raises(ValueError, match=r"validation_size=0\.5 of a stream must be a number of rows"):
        load_table(file, validation_size=0.5, streaming=True, **options)


def test_bad_sources_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    (tmp_path / "table.xls").touch()
    with pytest.raises(ValueError, match=r"has an unknown suffix; give one of \.csv"):
        load_table(tmp_path / "table.xls")
    with pytest.raises(ValueError, match=r"source='someone/nothing' cannot be read .*diamonds, flights, a file"):
        load_table("someone/nothing", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="split='half' is not in source='diamonds'; it has train, validation, test"):
        load_table("diamonds", "half")
    with pytest.raises(ValueError, match="has a validation split; leave validation_size out"):
        load_table("diamonds", validation_size=3)
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps plotnine"):
        load_table("diamonds")
