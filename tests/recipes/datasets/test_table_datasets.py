"""Packaged tables: diamonds and flights."""

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

from gm_discrete.data import TableCollator, encoded_dataset, fit_codecs
from gm_discrete.data.scalers import Categories, QuantileScaler
from recipes.datasets import departure_columns, download_flights, load_table, packages
from recipes.datasets.tables import SPLITS

needs_plotnine = pytest.mark.skipif(find_spec("plotnine") is None, reason="plotnine is not installed")


def listed(rows: Dataset | IterableDataset) -> list[dict[str, Any]]:
    return [dict(row) for row in rows]  # type: ignore[call-overload]


@pytest.mark.slow
@needs_plotnine
def test_diamonds__always_have_the_same_splits() -> None:
    parts: dict[str, Any] = {split: load_table("diamonds", split) for split in SPLITS}
    assert [len(rows) for rows in parts.values()] == [43_152, 5_394, 5_394]
    everything = [cells for rows in parts.values() for cells in zip(rows["carat"][:], rows["price"][:], strict=True)]
    lines = (packages.package_folder("plotnine") / "data/diamonds.csv").read_text("utf-8").splitlines()[1:]
    table = [line.split(",") for line in lines]
    assert sorted(everything) == sorted((float(cells[0]), int(cells[6])) for cells in table)
    assert parts["train"]["price"][:3] == [4733, 6424, 5510]
    stream = load_table("diamonds", "test", streaming=True)
    assert isinstance(stream, IterableDataset)
    assert listed(stream) == listed(parts["test"])


@needs_plotnine
def test_diamonds__have_seven_numbers_and_three_categories() -> None:
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


def test_flights__are_split_by_their_position(tmp_path: Path) -> None:
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


def test_flights__a_stream_is_encoded_while_it_is_read(tmp_path: Path) -> None:
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


def test_departure_columns__follow_the_calendar() -> None:
    dates = np.array(["1969-12-31T23:59", "2000-02-29T12:30", "2024-06-01T00:00"], "datetime64[s]")
    columns = departure_columns(dates)
    assert columns["month"].tolist() == ["Dec", "Feb", "Jun"]
    assert columns["weekday"].tolist() == ["Wed", "Tue", "Sat"]
    assert columns["minute"].tolist() == [1439, 750, 0]


def test_download_flights__unpacks_the_npm_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_flights(tmp_path / "source.parquet")
    calls = []

    def run(command: tuple[str, ...], cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        content = (tmp_path / "source.parquet").read_bytes()
        with tarfile.open(Path(cwd) / "vega-datasets-3.2.1.tgz", "w:gz", encoding="utf-8") as archive:
            info = tarfile.TarInfo("package/data/flights-3m.parquet")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.shutil, "which", lambda name: name)
    monkeypatch.setattr(packages.subprocess, "run", run)
    with pytest.raises(FileNotFoundError, match=r"run recipes\.datasets\.download_flights\(\) once"):
        load_table("flights", cache_dir=tmp_path)
    file = download_flights(tmp_path)
    assert download_flights(tmp_path) == file
    assert calls == [("npm", "pack", "vega-datasets@3.2.1", "--silent")]
    assert list(file.parent.iterdir()) == [file]
    assert len(listed(load_table("flights", cache_dir=tmp_path))) == 800


def test_load_table__errors_of_packaged_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="source='someone/nothing'") as raised:
        load_table("someone/nothing", cache_dir=tmp_path)
    assert raised.value.__notes__ == ["Packaged tables: diamonds, flights."]
    with pytest.raises(ValueError, match=r"split='half' .*source='diamonds'.* train, validation, test"):
        load_table("diamonds", "half")
    with pytest.raises(ValueError, match=r"source='diamonds' .*validation_size=3"):
        load_table("diamonds", validation_size=3)
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps plotnine"):
        load_table("diamonds")
