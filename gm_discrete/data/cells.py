"""What the cells of a text file are: truth values, whole numbers, numbers, dates and times, or text.

A type is that of *all* cells of a column, in all files of a table:

- `True` and `false` are truth values; `12` and `-3` whole numbers; `0.5`, `1e-3` and `1,234.5` numbers, or `0,5` and
  `1.234,5` where the decimal separator is a comma;
- `2024-01-31` or `2024/01/31`, with or without a time of day, `31.01.2024`, `31/01/2024`, `31-01-2024` or `01/31/2024`,
  `31-Jan-2024`, and `08:15` are dates and times;
- everything else is text. So are codes: numbers with leading zeros (`00037`) and whole numbers of more than 15 digits.

An empty cell is missing. `NA`, `N/A`, `NaN`, `null`, `None`, `#N/A` and `?` are missing where all other cells are numbers,
dates or truth values; among text they are text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute

pc: Any = pyarrow.compute  # its functions are made when it is imported, where a type checker does not see them

MISSING = r"^(|NA|N/A|n/a|#N/A|NaN|nan|null|NULL|None|\?)$"
TIME = r"([01]?[0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,6})?)?"
DAY, MONTH = r"(0?[1-9]|[12][0-9]|3[01])", r"(0?[1-9]|1[0-2])"


MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
ONE_GROUP = {group: rf"^[+-]?(0|[1-9][0-9]{{0,14}}|[1-9][0-9]{{0,2}}[{group}][0-9]{{3}})$" for group in ",."}
"""Whole numbers, and numbers such as 43.250 by their sign, which may separate thousands as well as decimals."""


def _number(point: str, group: str) -> str:
    whole = rf"(0|[1-9][0-9]{{0,14}}|[1-9][0-9]{{0,2}}({group}[0-9]{{3}})+)"
    return rf"^[+-]?({whole}({point}[0-9]*)?|{point}[0-9]+)([eE][+-]?[0-9]+)?$|^[+-]?(?i:inf|infinity)$"


PATTERNS = {
    "truth": r"^(?i:true|false)$",
    "whole": r"^[+-]?(0|[1-9][0-9]{0,14})$",
    "point": _number(r"\.", ","),
    "comma": _number(",", r"\."),
    "time": rf"^{TIME}$",
    "iso": rf"^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}([T ]{TIME}(Z|[+-][0-9]{{2}}:?[0-9]{{2}})?)?$",
    "year_first": rf"^[0-9]{{4}}/{MONTH}/{DAY}( {TIME})?$",
    "day_first": rf"^{DAY}([./]{MONTH}[./]|-{MONTH}-)[0-9]{{4}}( {TIME})?$",
    "month_first": rf"^{MONTH}(/{DAY}/|-{DAY}-)[0-9]{{4}}( {TIME})?$",
    "month_name": rf"^{DAY}[- ](?i:{'|'.join(MONTHS)})[- ][0-9]{{4}}( {TIME})?$",
}
"""The types that a cell may have, in order of preference."""


DATES = ("time", "iso", "year_first", "day_first", "month_first", "month_name")


@dataclass(frozen=True)
class CellType:
    """The type of a column: a name in `PATTERNS`, "text", "empty", or the `strptime` format of its dates."""

    name: str
    timed: bool = False

    @property
    def arrow(self) -> pa.DataType:
        known = {"text": pa.string(), "empty": pa.null(), "truth": pa.bool_(), "whole": pa.int64()}
        known |= {"point": pa.float64(), "comma": pa.float64(), "time": pa.time64("us")}
        return known.get(self.name, pa.timestamp("us") if self.timed else pa.date32())

    def convert(self, cells: pa.Array) -> pa.Array:
        """The values of cells.

        Raises:
            ValueError: a cell is a date that no calendar has.
        """
        if self.name == "empty":
            return pa.nulls(len(cells))
        if self.name == "text":
            return _without(cells, "^$")
        cells = _without(pc.utf8_trim_whitespace(cells), MISSING)
        if self.name == "truth":
            return pc.equal(pc.utf8_lower(cells), "true")
        if self.name in ("whole", "point", "comma"):
            if self.name != "whole":
                cells = pc.replace_substring(cells, "," if self.name == "point" else ".", "")
                cells = pc.replace_substring(cells, ",", ".")
            return pc.cast(pc.utf8_ltrim(cells, "+"), self.arrow)
        try:
            return pc.cast(self._moments(cells), self.arrow)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{error}; correct the cell, or list the column in text_columns") from error

    def _moments(self, cells: pa.Array) -> pa.Array:
        if self.name.startswith("%"):
            return pc.strptime(cells, format=self.name, unit="us")
        if self.name != "iso":  # to the form of ISO 8601, with two digits each
            for number, month in enumerate(MONTHS if self.name == "month_name" else (), 1):
                cells = pc.replace_substring_regex(cells, rf"(?i)[- ]{month}[- ]", f"-{number}-")
            cells = pc.replace_substring_regex(cells, r"^(\d{4})/(\d+)/(\d+)", r"\3-\2-\1")
            cells = pc.replace_substring_regex(cells, r"\b(\d)([:./-])", r"0\1\2")
            order = r"\3-\1-\2" if self.name == "month_first" else r"\3-\2-\1"
            cells = pc.replace_substring_regex(cells, r"^(\d\d)[./-](\d\d)[./-](\d{4})", order)
        if self.name == "time":
            cells = pc.binary_join_element_wise("1970-01-01", cells, " ")
        zoned = pc.any(pc.match_substring_regex(cells, r":.*(Z|[+-][0-9:]+)$")).as_py()
        return pc.cast(pc.cast(cells, pa.timestamp("us", "UTC")) if zoned else cells, pa.timestamp("us"))


@dataclass
class Cells:
    """What all cells of a column so far can be, and the signs that decide between types."""

    possible: set[str]
    empty: bool = True
    signs: str = ""
    one_group: set[str] = field(default_factory=lambda: set(ONE_GROUP))
    """The signs that may separate thousands as well as decimals in all cells so far."""
    shown: dict[str, str] = field(default_factory=dict)
    """A cell with each of these signs, and under "" any cell, for errors."""

    def add(self, cells: pa.Array) -> None:
        """Considers further cells."""
        values = pc.unique(pc.utf8_trim_whitespace(cells))
        values = values.filter(pc.invert(pc.match_substring_regex(values, MISSING))).drop_null()
        if not len(values):
            return
        self.empty = False
        for sign in ("", *ONE_GROUP):
            if sign not in self.shown and len(having := values.filter(pc.match_substring(values, sign))):
                self.shown[sign] = having[0].as_py()
        for name in list(self.possible):
            if not pc.all(pc.match_substring_regex(values, PATTERNS[name])).as_py():
                self.possible.discard(name)
        for sign in list(self.one_group):
            if not pc.all(pc.match_substring_regex(values, ONE_GROUP[sign])).as_py():
                self.one_group.discard(sign)
        if self.possible:
            self.signs += "".join(sign for sign in ",:" if pc.any(pc.match_substring(values, sign)).as_py())


def cell_types(
    columns: Mapping[str, Cells], decimal: str | None, separator: str, dates: Mapping[str, str | None]
) -> dict[str, CellType]:
    """The type of each column.

    Args:
        decimal: "." or ","; by default what one of the columns requires, or else a comma if cells hold one that does not
            separate them.
        dates: columns of dates, with their format or `None`.

    Raises:
        ValueError: day and month cannot be told apart, nor thousands and decimals, or a column of `dates` holds none.
    """
    if decimal is None:
        only = [cells.possible & {"point", "comma"} for cells in columns.values()]
        comma = any("," in cells.signs and "comma" in cells.possible for cells in columns.values())
        decimal = "," if {"comma"} in only or ({"point"} not in only and comma and separator != ",") else "."
        open_signs = ["." if decimal == "," else ","]
        if separator == ";" and decimal == "." and {"point"} not in only:
            open_signs.append(".")  # a semicolon separates cells where decimals have a comma
        for name, cells in columns.items():
            if cells.empty or cells.possible & {"whole", "point", "comma"} != {"point", "comma"}:
                continue
            if sign := next((sign for sign in open_signs if sign in cells.one_group), None):
                raise ValueError(
                    f"column {name!r} holds numbers such as {cells.shown[sign]}, whose {sign!r} may separate thousands "
                    f"or decimals; give decimal={'.' if sign == ',' else ','!r} if it separates thousands, or "
                    f"decimal={sign!r}"
                )
    return {name: _cell_type(name, cells, decimal, dates) for name, cells in columns.items()}


def _cell_type(name: str, cells: Cells, decimal: str, dates: Mapping[str, str | None]) -> CellType:
    timed = ":" in cells.signs
    if chosen := dates.get(name):
        return CellType(chosen, any(part in chosen for part in ("%H", "%I", "%T", "%R")))
    possible = [kind for kind in PATTERNS if kind in cells.possible and not cells.empty]
    if possible[:2] == ["day_first", "month_first"]:
        raise ValueError(
            f"column {name!r} holds dates whose day and month cannot be told apart, such as {cells.shown['']}; give "
            f'date_columns={{"{name}": "%d/%m/%Y"}} or "%m/%d/%Y", or list it in text_columns'
        )
    if name in dates and (not possible or possible[0] not in DATES):
        raise ValueError(
            f"column {name!r} of date_columns does not hold dates alone; give their format, such as %d.%m.%y"
        )
    if possible[:2] == ["point", "comma"]:
        possible = ["comma" if decimal == "," else "point"]
    return CellType("empty" if cells.empty else possible[0] if possible else "text", timed)


def _without(cells: pa.Array, pattern: str) -> pa.Array:
    """The cells, missing where they match."""
    return pc.if_else(pc.match_substring_regex(cells, pattern), pa.scalar(None, pa.string()), cells)
