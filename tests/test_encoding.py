"""Files are read and written as UTF-8, whatever the locale."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("gm_discrete", "recipes", "benchmarks", "tests")


def without_encoding(source: str) -> list[int]:
    """The lines of calls that open a text file without naming its encoding."""
    lines = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        method = isinstance(call.func, ast.Attribute)
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        if (
            name not in ("open", "read_text", "write_text")
            or owner in ("Image", "gzip", "os", "tarfile")
            or "LocalFileSystem" in owner
        ):
            continue
        arguments = [ast.unparse(argument) for argument in call.args]
        named = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        mode = named.get("mode") or (arguments[0 if method else 1 :] or ["'r'"])[0]
        binary = name == "open" and "b" in mode
        positional = len(arguments) > {"read_text": 0, "write_text": 1}.get(name, 3)
        if not binary and not positional and "encoding" not in named:
            lines.append(call.lineno)
    return lines


def test_without_encoding__finds_calls_that_open_text() -> None:
    source = "open(f)\nopen(f, 'rb')\np.open('w', newline='')\np.read_text()\np.read_text('utf-8')\np.write_text(x)\n"
    assert without_encoding(source) == [1, 3, 4, 6]


@pytest.mark.parametrize("folder", FOLDERS)
def test_files__are_opened_as_utf8(folder: str) -> None:
    found = {
        str(file.relative_to(ROOT)): lines
        for file in sorted((ROOT / folder).rglob("*.py"))
        if (lines := without_encoding(file.read_text(encoding="utf-8")))
    }
    assert found == {}
