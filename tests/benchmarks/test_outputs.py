"""What a benchmark cannot write to is refused before it begins."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks.conftest import BENCHMARKS


@pytest.mark.parametrize("place", ["folder", "file/below.json", "file/new/below.json"])
def test_benchmark__an_output_that_cannot_be_written_is_refused_first(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        script("chains").main(["--quick", "--output", str(tmp_path / place)])
    assert re.search(rf"argument --output: '{tmp_path}/(folder|file)", capsys.readouterr().err)


def test_benchmark__an_output_in_a_new_folder_is_kept_free(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    file = script("measure").output_file(str(tmp_path / "new" / "record.json"))
    assert list(tmp_path.rglob("*")) == [file.parent]


def test_benchmark__every_file_and_folder_to_write_is_checked() -> None:
    found = [
        (file.name, name, kind)
        for file in BENCHMARKS.glob("*.py")
        for name, kind in re.findall(r'"(--(?:output|plot|figures?|folder))", type=(\w+)', file.read_text("utf-8"))
    ]
    assert len(found) > 10
    assert {kind for _, name, kind in found if name in ("--figures", "--folder")} == {"output_folder"}
    assert {kind for _, name, kind in found if name not in ("--figures", "--folder")} == {"output_file"}
