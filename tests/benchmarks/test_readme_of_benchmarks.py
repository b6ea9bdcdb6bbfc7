"""benchmarks/README.md and docs/benchmarks/index.md are what benchmarks/readme.py makes of templates and records."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import readme

TABLE = """| model | time | calls | KS | share | note |
| --- | --- | --- | --- | --- | --- |
| a | 13.67 s | 1,024 | 0.0060 (3.5) | 39.0% | 1 of 2 |
| b, 2 steps | 0.10 s | 16 | 0.1000 (12.0) | 100.0% | – |
| c | – | – | 0.0445 (0.0) | – | {x} |"""


def test_readme__is_made_from_template_and_records() -> None:
    assert readme.README.read_text(encoding="utf-8") == readme.readme()


def test_page__is_made_from_template_and_records() -> None:
    assert readme.PAGE.read_text(encoding="utf-8") == readme.page()


def test_page__every_figure_is_in_the_readme() -> None:
    """Numbers with a decimal point or of three digits, also those of its own sentences."""
    number = r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?![\w.]*\d)"

    def figures(text: str) -> set[str]:
        text = re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)
        return {found.replace(",", "") for found in re.findall(number, text) if "." in found or len(found) > 2}

    found, known = figures(readme.page()), figures(readme.readme())
    assert len(found) > 100
    assert found - known == set()


def test_render__parts_of_a_table_and_single_cells() -> None:
    where = {"command": "c", "date": "2026-01-01", "processor": "p"}
    records = {"speed": {"environment": where, "tables": readme.parse_tables(TABLE)}}
    found = readme.render("{{speed 1 | model; KS | c; a 13.67 s}}\n\nIt is {{speed 1: b, 2 steps; KS}}.", records)
    assert found == "| model | KS |\n| --- | --- |\n| c | 0.0445 (0.0) |\n| a | 0.0060 (3.5) |\n\nIt is 0.1000 (12.0)."
    assert readme.render("{{speed 1 | note | *}}", records).count("\n") == 4
    with pytest.raises(ValueError, match=r"no column 'price'.*'model'"):
        readme.render("{{speed 1 | price | *}}", records)
    with pytest.raises(ValueError, match=r"'d' names 0 of the rows a, b, 2 steps, c"):
        readme.render("{{speed 1: d; KS}}", records)


def test_readme__every_record_and_table_is_shown() -> None:
    shown = re.findall(r"^\{\{(\w+)(?: (\d+))?\}\}$", readme.TEMPLATE.read_text(encoding="utf-8"), re.MULTILINE)
    records = readme.load_records()
    whole = {
        name for name, number in re.findall(r"^\{\{(\w+) (\*)\}\}$", readme.TEMPLATE.read_text("utf-8"), re.MULTILINE)
    }
    rest = {name: record for name, record in records.items() if name not in whole}
    expected = [(name, "") for name in rest]
    expected += [(name, str(i + 1)) for name, record in rest.items() for i in range(len(record["tables"]))]
    assert sorted(shown) == sorted(expected)


def test_records__have_command_date_and_hardware() -> None:
    for name, record in readme.load_records().items():
        where = record["environment"]
        assert where["command"], name
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", where["date"]), name
        assert where["processor"], name
        for table in record["tables"]:
            assert table["rows"], name
            assert all(len(row) == len(table["columns"]) for row in table["rows"]), name


def test_parse_tables__reads_numbers_and_is_inverted_by_markdown_table() -> None:
    (table,) = readme.parse_tables(f"Text before.\n\n{TABLE}\n\nText after.")
    formats = [column.get("format") for column in table["columns"]]
    assert formats == [None, "{:.2f} s", None, "{:.4f} ({:.1f})", "{:.1f}%", None]
    assert table["rows"][0] == ["a", 13.67, "1,024", [0.006, 3.5], 39.0, "1 of 2"]
    assert table["rows"][2] == ["c", None, None, [0.0445, 0.0], None, "{x}"]
    assert readme.markdown_table(table) == TABLE
    assert readme.parse_tables("no table") == []
    assert len(readme.parse_tables(f"{TABLE}\n\n{TABLE}\n")) == 2


def test_render__unknown_placeholders_are_an_error() -> None:
    record = {"environment": {"command": "c", "date": "2026-01-01", "processor": "p"}, "tables": []}
    with pytest.raises(ValueError, match=r"'speed'.*chains"):
        readme.render("{{speed}}", {"chains": record})
    with pytest.raises(ValueError, match=r"table 1 of 'chains'"):
        readme.render("{{chains 1}}", {"chains": record})
    assert readme.render("a\n{{chains}}\nb", {"chains": record}).startswith("a\n```text\nc\n```")


def test_render__a_whole_record_or_that_there_is_none() -> None:
    where = {"command": "c", "date": "2026-01-01", "processor": "p"}
    record = {"environment": where, "tables": readme.parse_tables(f"{TABLE}\n\n{TABLE}")}
    assert readme.render("a\n{{speed *}}\nb", {}) == f"a\n{readme.NOTHING}\nb"
    found = readme.render("a\n{{speed *}}\nb", {"speed": record})
    assert found.startswith("a\n```text\nc\n```")
    assert found.count(TABLE) == 2


def test_records__of_a_script_have_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(readme.HERE)
    import measure

    record = {"environment": measure.environment("cpu", "speed.py", ["--quick"]), "settings": {}}
    measure.report(record, [f"#### A\n\n{TABLE}"], tmp_path / "speed.json")
    found = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    assert [readme.markdown_table(table) for table in found["tables"]] == [TABLE]
    assert "speed.py --quick" in readme.render("{{speed}}\n\n{{speed 1}}", {"speed": found})
