"""Tables from local files: rows, splits, held-out rows, errors."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset

from gm_discrete.data import load_table


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
