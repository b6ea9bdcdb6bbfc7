"""Writes benchmarks/README.md and docs/benchmarks/index.md from templates and the records in results/.

    python benchmarks/readme.py

A record is the JSON file that a benchmark writes with `--output benchmarks/results/NAME.json`: the environment (command,
date, hardware, versions), the settings and the tables. In the template a line `{{NAME}}` becomes the environment of that
record, and a line `{{NAME 2}}` its second table. A line `{{NAME *}}` becomes the environment and all tables, or the words
that nothing was measured if there is no such record. README.template.md shows every table of every record.

index.template.md is that of the page of the documentation, which shows a part of them. `{{NAME 2 | COLUMN; COLUMN | ROW;
ROW}}` on a line becomes the second table with these columns and rows alone; `*` stands for all rows. Within a line
`{{NAME 2: ROW; COLUMN}}` becomes one cell. A row is named by its first cells, as `masked 32`.

A table is `{"columns": [{"name": …, "format": …}], "rows": [[cell, …], …]}`. A cell is a string, a number, or a list of
numbers for a `format` such as "{:.2f} ± {:.2f}"; null is a missing value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, TEMPLATE, README = HERE / "results", HERE / "README.template.md", HERE / "README.md"
PAGE_TEMPLATE, PAGE = HERE / "index.template.md", HERE.parent / "docs/benchmarks/index.md"
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?!\w)")
MISSING = "–"
NOTHING = "Nothing was measured yet."

Cell = str | int | float | list[int | float] | None
Table = dict[str, Any]
"""See the head of this file."""


def parse_tables(markdown: str) -> list[Table]:
    """Reads every Markdown table of a text, with the numbers in its cells as numbers."""
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", markdown, re.MULTILINE)
    return [_parse_table([_split(line) for line in block.strip().splitlines()]) for block in blocks]


def markdown_table(table: Table) -> str:
    """The table as Markdown; the inverse of `parse_tables`."""
    columns = table["columns"]
    lines = [[column["name"] for column in columns], ["---"] * len(columns)]
    for row in table["rows"]:
        lines.append([_text(cell, column.get("format")) for cell, column in zip(row, columns, strict=True)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def provenance(record: dict[str, Any]) -> str:
    """One paragraph: the command, the hardware, the versions and the date of a record."""
    where = record["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in where.get("versions", {}).items())
    commit = f" (commit {where['commit']})" if "commit" in where else ""
    threads = f", {where['threads']} thread{'s' if where['threads'] != 1 else ''}" if "threads" in where else ""
    hardware = where["processor"] + threads
    hardware = hardware if where.get("device", "cpu") == "cpu" else f"{where['device']} ({hardware})"
    commands = where["command"] if isinstance(where["command"], list) else [where["command"]]
    facts = [f"recorded {where['date']}{commit}", hardware, versions, *record.get("settings", {}).get("notes", [])]
    shell = "\n".join(commands)
    return f"```text\n{shell}\n```\n\n*{'; '.join(fact for fact in facts if fact)}.*"


def render(template: str, records: dict[str, dict[str, Any]]) -> str:
    """The template with its placeholders filled.

    Raises:
        ValueError: a placeholder names a record or a table that does not exist.
    """

    def record_of(match: re.Match[str]) -> dict[str, Any]:
        if match[1] not in records:
            raise ValueError(f"{match[0]} names the record {match[1]!r}; there are {', '.join(sorted(records))}")
        return records[match[1]]

    def table_of(match: re.Match[str]) -> Table:
        tables = record_of(match)["tables"]
        if not 1 <= int(match[2]) <= len(tables):
            raise ValueError(f"{match[0]} names table {match[2]} of {match[1]!r}, which has {len(tables)}")
        return tables[int(match[2]) - 1]

    def whole(match: re.Match[str]) -> str:
        if match[2] == "*":
            record = records.get(match[1])
            parts = [provenance(record), *map(markdown_table, record["tables"])] if record else [NOTHING]
            return "\n\n".join(parts)
        return provenance(record_of(match)) if match[2] is None else markdown_table(table_of(match))

    def part(match: re.Match[str]) -> str:
        rows = None if match[4] == "*" else match[4].split("; ")
        return markdown_table(selected(table_of(match), match[3].split("; "), rows))

    def cell(match: re.Match[str]) -> str:
        table = selected(table_of(match), [match[4]], [match[3]])
        return _text(table["rows"][0][0], table["columns"][0].get("format"))

    text = re.sub(r"^\{\{(\w+)(?: (\d+|\*))?\}\}$", whole, template, flags=re.MULTILINE)
    text = re.sub(r"^\{\{(\w+) (\d+) \| ([^|\n]+) \| ([^|\n]+)\}\}$", part, text, flags=re.MULTILINE)
    return re.sub(r"\{\{(\w+) (\d+): ([^;{}]+); ([^;{}]+)\}\}", cell, text)


def selected(table: Table, columns: Sequence[str], rows: Sequence[str] | None = None) -> Table:
    """The table with these columns, and these rows or all.

    Args:
        rows: each named by its first cells as they are shown, with spaces between.

    Raises:
        ValueError: a column does not exist, or a name fits no row or several.
    """
    names = [column["name"] for column in table["columns"]]
    if missing := [name for name in columns if name not in names]:
        raise ValueError(f"there is no column {missing[0]!r}; there are {', '.join(map(repr, names))}")
    places = [names.index(name) for name in columns]
    found = table["rows"]
    if rows is not None:
        formats = [column.get("format") for column in table["columns"]]
        shown = [list(map(_text, row, formats)) for row in found]
        beginnings = [{" ".join(row[:size]) for size in range(1, len(row) + 1)} for row in shown]
        fitting = [[place for place, starts in enumerate(beginnings) if name in starts] for name in rows]
        for name, fits in zip(rows, fitting, strict=True):
            if len(fits) != 1:
                raise ValueError(f"{name!r} names {len(fits)} of the rows {', '.join(row[0] for row in shown)}")
        found = [found[fits[0]] for fits in fitting]
    return {
        "columns": [table["columns"][place] for place in places],
        "rows": [[row[place] for place in places] for row in found],
    }


def load_records(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """All records, by the names of their files."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}


def readme() -> str:
    """The text of benchmarks/README.md."""
    return render(TEMPLATE.read_text(encoding="utf-8"), load_records())


def page() -> str:
    """The text of docs/benchmarks/index.md."""
    return render(PAGE_TEMPLATE.read_text(encoding="utf-8"), load_records())


def _split(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def _parse_table(lines: list[list[str]]) -> Table:
    """The header is followed by a line of dashes."""
    names, cells = lines[0], lines[2:]
    columns: list[dict[str, str]] = []
    values: list[list[Cell]] = []
    for place, name in enumerate(names):
        form, column = _numbers([row[place] for row in cells])
        columns.append({"name": name} if form is None else {"name": name, "format": form})
        values.append(column)
    return {"columns": columns, "rows": [list(row) for row in zip(*values, strict=True)]}


def _numbers(column: Sequence[str]) -> tuple[str | None, list[Cell]]:
    """The format and the numbers of a column, if one format fits all its cells exactly; else None and the strings."""
    present = [cell for cell in column if cell != MISSING]
    cells = [None if cell == MISSING else _find_numbers(cell) for cell in column]
    for spec in (_spec, "{}"):  # the same digits in every cell, or those that a number needs
        formats = {NUMBER.sub(spec, re.sub(r"([{}])", r"\1\1", cell)) for cell in present}
        if len(formats) == 1 and NUMBER.search(present[0]):
            form = formats.pop()
            if all(_text(value, form) == cell for value, cell in zip(cells, column, strict=True)):
                return form, cells
    return None, [None if cell == MISSING else cell for cell in column]


def _spec(found: re.Match[str]) -> str:
    number = found[0]
    comma = "," if "," in number else ""
    return f"{{:{comma}.{len(number.split('.')[1])}f}}" if "." in number else f"{{:{comma}d}}"


def _find_numbers(cell: str) -> Cell:
    found = [_number(number) for number in NUMBER.findall(cell)]
    return found[0] if len(found) == 1 else found


def _number(text: str) -> int | float:
    plain = text.replace(",", "")
    return float(plain) if "." in plain else int(plain)


def _text(cell: Cell, form: str | None) -> str:
    if cell is None:
        return MISSING
    if form is None:
        return str(cell)
    return form.format(*cell) if isinstance(cell, list) else form.format(cell)


if __name__ == "__main__":
    for file, text in ((README, readme()), (PAGE, page())):
        file.write_text(text, encoding="utf-8")
        print(file)
