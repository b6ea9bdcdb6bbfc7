"""The animation as an HTML page without external fonts, scripts or pictures."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from gm_discrete.json_text import json_text

LIGHT = {
    "text": ("#1f2933", "transparent"),
    "given": ("#7b8794", "transparent"),
    "mask": ("#b8c2cc", "transparent"),
    "new": ("#6b4e00", "#ffe08a"),
    "changed": ("#084c6b", "#b5e6fb"),
    "again": ("#8a1c1c", "#ffc9c9"),
    "inserted": ("#1b5e2a", "#bff0c8"),
    "deleted": ("#8a1c1c", "#ffc9c9"),
    "substituted": ("#084c6b", "#b5e6fb"),
    "absent": ("#b8c2cc", "transparent"),
}
"""Text and background colours of the light theme."""


def page(
    frames: Sequence[Any],
    columns: int,
    styles: Mapping[str, tuple[str, str]],
    labels: Mapping[str, str],
    duration: int,
) -> str:
    """The text of the page. It holds the first state and then only the changes, because states differ in few tokens.

    Its JSON holds `times` [N + 1], `start` (token, text and kind of each position) and `changes` (for every step lists of
    position, token, text and kind).

    Args:
        frames: the states, as `animation.Frame`.
        columns: characters in a line.
        styles: text and background colour of every kind, in the dark theme.
        labels: the legend, for the kinds that occur.
        duration: milliseconds of a frame.
    """
    first, changes = frames[0], []
    for before, after in pairwise(frames):
        then, now = zip(before.symbols, before.texts, strict=True), zip(after.symbols, after.texts, strict=True)
        rows = enumerate(zip(then, now, after.kinds, strict=True))
        changes.append([[position, *new, kind] for position, (old, new, kind) in rows if old != new])
    data = {
        "duration": duration,
        "times": [frame.time for frame in frames],
        "start": [list(row) for row in zip(first.symbols, first.texts, first.kinds, strict=True)],
        "changes": changes,
    }
    # No "<" may occur inside of a script, as "</script>" would end it.
    story = json_text(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    legend = "".join(f'<span><i class="{kind}"></i>{html.escape(label)}</span>' for kind, label in labels.items())
    parts = {
        "COLUMNS": str(columns),
        "LIGHT": _rules(LIGHT),
        "DARK": _rules(styles),
        "LAST": str(len(frames) - 1),
        "LEGEND": legend,
        "END": html.escape("".join(frames[-1].texts)),
        "STORY": story,
    }
    return re.sub("@([A-Z]+)@", lambda found: parts[found[1]], _PAGE)  # in one pass, as a text may contain such words


def _rules(styles: Mapping[str, tuple[str, str]]) -> str:
    return " ".join(f".{kind} {{ color: {ink}; background: {ground}; }}" for kind, (ink, ground) in styles.items())


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Trajectory of a sequence</title>
<style>
:root { color-scheme: light dark; --page: #ffffff; --label: #52606d; --bar: #0b83b5; }
@LIGHT@
@media (prefers-color-scheme: dark) {
  :root { --page: #101418; --label: #8794a1; --bar: #62cdf5; }
  @DARK@
}
body { background: var(--page); color: var(--label); font: 14px system-ui, sans-serif; margin: 2rem auto;
  width: fit-content; max-width: calc(100vw - 2rem); }
#text { font: 16px/1.4 "DejaVu Sans Mono", ui-monospace, Menlo, Consolas, monospace; width: @COLUMNS@ch;
  max-width: 100%; margin: 0 0 1rem; white-space: break-spaces; word-break: break-all; }
#text span { border-radius: 2px; }
#text .deleted { text-decoration: line-through; }
#controls, #legend { display: flex; gap: 1rem; align-items: center; font-variant-numeric: tabular-nums; }
#legend { margin-top: .75rem; }
#legend i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px;
  border: 1px solid currentColor; }
#slider { flex: 1; accent-color: var(--bar); }
#play { min-width: 5rem; }
</style>
</head>
<body>
<pre id="text">@END@</pre>
<div id="controls">
<button id="play" type="button">pause</button>
<input id="slider" type="range" min="0" max="@LAST@" value="0" aria-label="step">
<output id="step" for="slider"></output>
</div>
<div id="legend">@LEGEND@</div>
<script type="application/json" id="story">@STORY@</script>
<script>
"use strict";
const story = JSON.parse(document.getElementById("story").textContent);
const [text, play, slider, step] = ["text", "play", "slider", "step"].map((name) => document.getElementById(name));
const states = [story.start.map(([symbol, text, kind]) => ({ symbol, text, kind }))];
for (const change of story.changes) {
  // What a step did is shown for that step alone: afterwards a symbol is text, or a mask.
  const after = { new: "text", changed: "text", again: "mask", inserted: "text", substituted: "text" };
  const state = states.at(-1).map((entry) => ({ ...entry, kind: after[entry.kind] ?? entry.kind }));
  for (const [position, symbol, text, kind] of change) state[position] = { symbol, text, kind };
  states.push(state);
}
const spans = story.start.map(() => document.createElement("span"));
text.replaceChildren(...spans);
let timer = null;
function show(number) {
  slider.value = number;
  let position = 0;
  states[number].forEach(({ symbol, text, kind }, entry) => {
    const span = spans[entry];
    if (span.textContent !== text) span.textContent = text;
    span.className = kind;
    span.title = kind === "deleted" ? "" : `position ${position}, symbol ${symbol}`;
    if (kind !== "deleted" && kind !== "absent") position += 1;
  });
  const changes = number ? story.changes[number - 1].filter((change) => change[3] !== "absent").length : 0;
  step.textContent = `t = ${story.times[number].toFixed(3)}, step ${number} of ${states.length - 1}, ${changes} changed`;
}
function run(on) {
  clearInterval(timer);
  timer = on ? setInterval(next, story.duration) : null;
  play.textContent = on ? "pause" : "play";
}
function next() {
  const number = Number(slider.value) + 1;
  if (number < states.length) show(number);
  if (number >= states.length - 1) run(false);
}
play.addEventListener("click", () => {
  if (timer === null && Number(slider.value) === states.length - 1) show(0);
  run(timer === null);
});
slider.addEventListener("input", () => { run(false); show(Number(slider.value)); });
show(0);
run(!matchMedia("(prefers-reduced-motion: reduce)").matches);
</script>
</body>
</html>
"""
