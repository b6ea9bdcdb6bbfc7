"""One sequence of a trajectory, as a GIF or an HTML page: tokens that appear, change and are masked again, strings that grow
and shrink."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from gm_discrete.generation.outputs import Trajectory
from gm_discrete.pictures.files import needed, write
from gm_discrete.pictures.frames import BREAK, Decoder, Frame, frames_of
from gm_discrete.pictures.page import page

DURATION, LAST_DURATION = 80, 3000
"""Milliseconds of a frame, and of the last one."""
GROUND, LABEL = "#101418", "#8794a1"
STYLES = {
    "text": ("#dfe6ee", GROUND),
    "given": ("#8794a1", GROUND),
    "mask": ("#5b6875", GROUND),
    "new": ("#ffd166", "#3d3315"),
    "changed": ("#62cdf5", "#123444"),
    "again": ("#ff7b7b", "#451d22"),
    "inserted": ("#8ce99a", "#163d1f"),
    "deleted": ("#ff7b7b", "#451d22"),
    "substituted": ("#62cdf5", "#123444"),
    "absent": ("#5b6875", GROUND),
}
"""Text and background colour of a token, by what the last step did to it."""
LABELS = {"given": "given", "new": "new", "changed": "changed", "again": "masked again"}
LABELS |= {kind: kind for kind in ("inserted", "deleted", "substituted")}


def animate(
    trajectory: Trajectory,
    tokenizer: Decoder,
    path: str | os.PathLike[str],
    index: int = 0,
    columns: int = 64,
    max_frames: int | None = None,
) -> Path:
    """Writes an animation of one sequence: a frame per state, masks as dots, the changes of the last step in colours.

    Tokens keep their places if all tokens at a position have texts of one length; else the text is laid out anew in each
    frame, and so are strings. A symbol that a step deletes is struck through for one frame.

    Args:
        trajectory: a trajectory of discrete states, from `generate(..., output_trajectory=True)`.
        tokenizer: a tokenizer, or anything else with `decode([id])` and a `mask_token_id`, which may be `None`.
        path: file to write; `.gif`, or `.html` for a page with a slider that needs no other file.
        index: index of the sequence in the batch.
        columns: characters in a line.
        max_frames: the greatest number of states shown, evenly spread; a frame then shows all changes since the last one.

    Returns:
        The file.

    Raises:
        ValueError: the states are not discrete, or an argument is out of range.
        ImportError: Pillow or matplotlib (whose font is used) is not installed; a page needs neither.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".gif", ".html"):
        raise ValueError(f"path={str(path)!r} must end in .gif or .html")
    if trajectory.states.dim() != 3 or trajectory.states.is_floating_point():
        raise ValueError(
            f"trajectory has states {tuple(trajectory.states.shape)} of {trajectory.states.dtype}; animate needs discrete "
            "states [N + 1, B, L]"
        )
    size = trajectory.states.shape[1]
    for name, value, valid, rule in (
        ("index", index, -size <= index < size, f"one of the {size} sequences"),
        ("columns", columns, columns >= 1, "at least 1"),
        ("max_frames", max_frames, max_frames is None or max_frames >= 2, "at least 2, or None"),
    ):
        if not valid:
            raise ValueError(f"{name}={value} must be {rule}")
    frames = frames_of(trajectory, tokenizer, index, max_frames)
    if suffix == ".gif":
        return write(path, lambda draft: _save_gif(frames, columns, draft))
    text = page(frames, columns, STYLES, {kind: LABELS[kind] for kind in _occurring(frames)}, DURATION)
    return write(path, lambda draft: draft.write_text(text, encoding="utf-8"))  # pyright: ignore[reportArgumentType]


def _occurring(frames: list[Frame]) -> list[str]:
    kinds = {kind for frame in frames for kind in frame.kinds}
    return [kind for kind in LABELS if kind in kinds]


def _save_gif(frames: list[Frame], columns: int, draft: Path) -> None:
    image, drawing, fonts = needed("PIL.Image"), needed("PIL.ImageDraw"), needed("PIL.ImageFont")
    # Characters are drawn one by one. Shaping would gain nothing, and fails on some strings of an untrained model.
    file = needed("matplotlib.font_manager").findfont("DejaVu Sans Mono")
    font, small = (fonts.truetype(file, size, layout_engine=fonts.Layout.BASIC) for size in (16, 12))
    width, height, margin = round(font.getlength("M")), 22, 14
    places = [_places(frame.texts, columns) for frame in frames]
    lines = 1 + max(line for frame in places for symbol in frame for _, line, _ in symbol)
    columns = max(1 + max(column for frame in places for symbol in frame for column, _, _ in symbol), 32)
    kinds = _occurring(frames)
    legend = sum(28 + round(small.getlength(LABELS[kind])) for kind in kinds) + round(small.getlength("t = 0.000"))
    right, bottom = 2 * margin + max(columns * width, legend), 2 * margin + lines * height
    palette = _palette(image)
    pictures = []
    for frame, symbols in zip(frames, places, strict=True):
        picture = image.new("RGB", (right, bottom + 30), GROUND)
        draw = drawing.Draw(picture)
        for kind, symbol in zip(frame.kinds, symbols, strict=True):
            ink, ground = STYLES[kind]
            for column, line, character in symbol:
                left, top = margin + column * width, margin + line * height
                if ground != GROUND:
                    draw.rectangle((left, top, left + width - 1, top + height - 2), ground)
                faint = STYLES["mask"][0] if character == BREAK and kind == "text" else ink
                draw.text((left, top + 1), character, font=font, fill=faint)
                if kind == "deleted":
                    draw.line((left, top + 11, left + width - 1, top + 11), ink)
        done = frame.time / frames[-1].time if frames[-1].time else 1.0
        draw.rectangle((margin, bottom, right - margin, bottom + 2), STYLES["changed"][1])
        draw.rectangle((margin, bottom, margin + done * (right - 2 * margin), bottom + 2), STYLES["changed"][0])
        draw.text((margin, bottom + 9), f"t = {frame.time:.3f}", font=small, fill=LABEL)
        left = right - margin
        for kind in reversed(kinds):
            left -= round(small.getlength(LABELS[kind]))
            draw.text((left, bottom + 9), LABELS[kind], font=small, fill=LABEL)
            draw.rectangle((left - 14, bottom + 12, left - 6, bottom + 20), STYLES[kind][0])
            left -= 28
        pictures.append(picture.quantize(palette=palette, dither=image.Dither.NONE))
    durations = [DURATION] * (len(pictures) - 1) + [LAST_DURATION]
    pictures[0].save(draft, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)


def _places(texts: list[str], columns: int) -> list[list[tuple[int, int, str]]]:
    """(column, line, character) of the characters of each text."""
    column = line = 0
    places = []
    for text in texts:
        if column and column + len(text.split("\n")[0]) > columns:
            column, line = 0, line + 1
        spots = []
        for character in text:
            if character == "\n":
                column, line = 0, line + 1
                continue
            if column == columns:
                column, line = 0, line + 1
            spots.append((column, line, character))
            column += 1
        places.append(spots)
    return places


def _palette(image: ModuleType) -> Any:
    """An image with the palette of all frames: eight shades from each background to its text colour, for smooth letters."""
    pairs = [tuple(bytes.fromhex(colour[1:]) for colour in pair) for pair in {(LABEL, GROUND), *STYLES.values()}]
    shades = [
        round(a + (b - a) * part / 7)
        for ink, ground in pairs
        for part in range(8)
        for a, b in zip(ground, ink, strict=True)
    ]
    palette = image.new("P", (1, 1))
    palette.putpalette(shades)
    return palette
