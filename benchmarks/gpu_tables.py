"""The tables of gpu.py, and its targets, from the rows that it measured."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from measure import markdown

Row = dict[str, Any]
Results = dict[str, list[Row]]
NAMES = {"ours": "ours", "floor": "floor", "peer": "flow_matching"}
MISSING = "–"


def tables(results: Mapping[str, list[Row]]) -> list[str]:
    """A table for each part that has rows, and that of the targets."""
    made = {
        "training": training_table,
        "sampling": sampling_table,
        "distributions": distributions_table,
        "recipe": recipe_table,
    }
    return [*(markdown(made[name](rows)) for name, rows in results.items() if rows), markdown(targets(results))]


def training_table(rows: list[Row]) -> list[dict[str, str]]:
    return [
        {
            "training": row["path"],
            "layers": "compiled" if row["compiled"] else "eager",
            "loss": NAMES[row["side"]],
            "step": _text("{:.1f} ms", 1000 * row["step_s"]),
            "tokens/s": _text("{:,.0f}", row["tokens_per_s"]),
            "of the peak": _text("{:.1f}%", None if row["peak_share"] is None else 100 * row["peak_share"]),
            "memory": _text("{:.1f} GiB", row["memory_gib"]),
            "launches": _text("{:,}", row["launches"]),
            "copies": _text("{:,}", row["copies"]),
            "products": _text("{:,}", row["products"]),
            "waits": _text("{}", row["waits"]),
            "first step": _text("{:.1f} s", row["first_step_s"]),
        }
        for row in rows
    ]


def sampling_table(rows: list[Row]) -> list[dict[str, str]]:
    return [
        {
            "sequences": str(row["sequences"]),
            "steps": str(row["steps"]),
            "layers": "compiled" if row["compiled"] else "eager",
            "ours": _text("{:.2f} s", row["ours_s"]),
            "flow_matching": _text("~{:.2f} s" if row["peer_extrapolated"] else "{:.2f} s", row["peer_s"]),
            "needed calls": _text("{:.1f}", row["calls_per_sample"]),
            "their graphs": _text("{:.2f} s", row["graphs_s"]),
            "ours / graphs": _text("{:.2f}", _ratio(row["ours_s"], row["graphs_s"])),
            "waits a step": _text("{:.1f}", row["waits_per_step"]),
        }
        for row in rows
    ]


def distributions_table(rows: list[Row]) -> list[dict[str, str]]:
    return [
        {
            "path": row["path"],
            "sampler": row["sampler"].replace("_", " "),
            "samples": _text("{:,}", row["samples"]),
            "total variation": _text("{:.5f}", row["total_variation"]),
            "by chance": _text("{:.5f}", row["by_chance"]),
            "time": _text("{:.2f} s", row["time_s"]),
        }
        for row in rows
    ]


def recipe_table(rows: list[Row]) -> list[dict[str, str]]:
    recipe, bare = rows[0], rows[1] if len(rows) > 1 else {}
    return [
        {
            "text": recipe["text"],
            "steps": _text("{:,}", recipe["steps"]),
            "time": _text("{:.1f} s", recipe["time_s"]),
            "tokens/s": _text("{:,.0f}", recipe["tokens_per_s"]),
            "bare step": _text("{:,.0f}", bare.get("bare_tokens_per_s")),
            "bits per character": f"{recipe['bits_per_character']:.3f} ± {recipe['bits_per_character_stderr']:.3f}",
        }
    ]


def targets(results: Mapping[str, list[Row]]) -> list[dict[str, str]]:
    """Each target beside what was measured; – where it was not."""

    def find(part: str, **wanted: Any) -> Row:
        fitting = (
            row for row in results.get(part, []) if all(row.get(name) == value for name, value in wanted.items())
        )
        return next(fitting, {})

    def step(side: str, compiled: bool, path: str = "masked") -> Row:
        return find("training", path=path, side=side, compiled=compiled)

    def over(side: str, other: str, compiled: bool) -> float | None:
        return _ratio(step(side, compiled).get("step_s"), step(other, compiled).get("step_s"))

    ours, eager = step("ours", True), step("ours", False)
    eight, eight_eager = (find("sampling", sequences=8, steps=64, compiled=compiled) for compiled in (True, False))
    one = find("sampling", sequences=1, steps=64, compiled=True)
    by_peer = _ratio(eight_eager.get("peer_s"), eight.get("ours_s"))
    over_graphs = _ratio(one.get("ours_s"), one.get("graphs_s"))
    recipe, bare = find("recipe"), next((row for row in results.get("recipe", []) if "share_of_bare" in row), {})
    ratios = [row["total_variation"] / row["by_chance"] for row in results.get("distributions", [])]
    lines: list[tuple[str, str, str, float, float | None]] = [
        ("training step, compiled", "{:.1f} ms", "≤", 85, _scaled(ours.get("step_s"), 1000)),
        ("its tokens a second", "{:,.0f}", "≥", 385_000, ours.get("tokens_per_s")),
        ("its share of the peak", "{:.1f}%", "≥", 30, _scaled(ours.get("peak_share"), 100)),
        ("its memory", "{:.1f} GiB", "≤", 22, ours.get("memory_gib")),
        ("its waits", "{:.0f}", "≤", 1, ours.get("waits")),
        ("waits of an eager step", "{:.0f}", "≤", 1, eager.get("waits")),
        ("flow_matching / ours, both eager", "{:.2f}", "≥", 1.5, over("peer", "ours", False)),
        ("flow_matching / ours, both compiled", "{:.2f}", "≥", 2, over("peer", "ours", True)),
        ("ours / floor, both eager", "{:.2f}", "≤", 1.05, over("ours", "floor", False)),
        ("ours / floor, both compiled", "{:.2f}", "≤", 1.05, over("ours", "floor", True)),
        ("flow_matching, eager / ours, compiled, 8 sequences, 64 steps", "{:.1f}", "≥", 5, by_peer),
        ("one sequence: compiled / graphs of the needed calls", "{:.2f}", "≤", 1.25, over_graphs),
        ("waits of a sampling step", "{:.1f}", "≤", 1, eight.get("waits_per_step")),
        ("total variation of samples / by chance, the greatest", "{:.2f}", "≤", 1.5, max(ratios, default=None)),
        ("tokens a second of the recipe", "{:,.0f}", "≥", 700_000, recipe.get("tokens_per_s")),
        ("recipe / bare step", "{:.2f}", "≥", 0.92, bare.get("share_of_bare")),
    ]  # fmt: skip
    return [
        {
            "target": name,
            "wanted": f"{sign} {form.format(bound)}",
            "measured": _text(form, value),
            "met": MISSING if value is None else "yes" if _MEETS[sign](value, bound) else "no",
        }
        for name, form, sign, bound, value in lines
    ]


_MEETS: dict[str, Callable[[float, float], bool]] = {"≤": operator.le, "≥": operator.ge}


def _text(form: str, value: float | None) -> str:
    return MISSING if value is None else form.format(value)


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value
