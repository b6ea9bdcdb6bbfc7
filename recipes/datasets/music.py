"""Bach's chorales as sequences of notes; sequences of notes as MIDI files and piano rolls."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm import tqdm

from recipes.datasets.packages import atomic_file, cache_file, require

PARTS = ("soprano", "alto", "tenor", "bass")
COLUMNS = ("part", "pitch", "onset", "duration")
MUSIC21 = "music21==10.5.1"
MELODY_LENGTH = 20
"""Intervals of the soprano that identify a melody: about three phrases."""


def load_chorales(split: str = "train", cache_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """368 four-part chorales of Bach from the PyPI package `music21`: one per row, as lists with an entry per note.

    Columns: `part`, soprano to bass; `pitch`, a MIDI number; `onset`, quarter notes since the previous note, 0 if they
    start together; `duration` in quarter notes. Notes are sorted by time, and simultaneous ones from soprano to bass.
    Tied notes are merged, repeats are not played, and grace notes are left out.

    Split 80/10/10 at random and by melody: all settings of a melody are in one split. The first call parses the scores,
    which takes a minute or two, and caches the notes.

    Args:
        split: "train", "validation" or "test".
        cache_dir: folder for the notes; the Hugging Face cache by default.

    Raises:
        ImportError: `music21` is not installed.
        ValueError: there is no such split.
    """
    ends = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}
    if split not in ends:
        raise ValueError(f"split={split!r} is not in the chorales; give one of {', '.join(ends)}")
    file = cache_file("chorales.json", cache_dir)
    if not file.exists():
        with atomic_file(file) as draft:
            draft.write_text(json.dumps(parse_chorales()), "utf-8")
    chorales = json.loads(file.read_text("utf-8"))
    melodies = [_melody(notes) for notes in chorales]
    numbers = {melody: number for number, melody in enumerate(dict.fromkeys(melodies))}
    # RandomState, because NumPy guarantees that its permutations never change.
    order = np.random.RandomState(0).permutation(len(numbers)) / len(numbers)
    low, high = ends[split]
    chosen = [notes for notes, melody in zip(chorales, melodies, strict=True) if low <= order[numbers[melody]] < high]
    return Dataset.from_dict({column: [notes[column] for notes in chosen] for column in COLUMNS})


def parse_chorales() -> list[dict[str, list[Any]]]:
    """Reads the notes of every four-part score of Bach in `music21`, in the order of file names.

    Raises:
        ImportError: `music21` is not installed.
    """
    require("music21", MUSIC21)
    from music21 import converter, corpus

    chorales = []
    for file in tqdm(sorted(corpus.getComposer("bach"), key=str), desc="Chorales"):
        score: Any = converter.parse(file, forceSource=True)  # the default would cache every score as a pickle
        if len(score.parts) == len(PARTS):
            chorales.append(read_score(score))
    return chorales


def read_score(score: Any) -> dict[str, list[Any]]:
    """Converts a `music21` score of four parts to lists `part`, `pitch`, `onset`, `duration` as in `load_chorales`.

    Raises:
        ValueError: it has another number of parts, or no notes.
    """
    if len(score.parts) != len(PARTS):
        raise ValueError(f"score has {len(score.parts)} parts; give one of {len(PARTS)}")
    notes = [
        (float(note.offset), place, pitch.midi, float(note.quarterLength))
        for place, part in enumerate(score.parts)
        for note in part.stripTies().flatten().notes
        for pitch in note.pitches
        if note.quarterLength > 0
    ]
    if not notes:
        raise ValueError("score has no notes")
    starts, parts, pitches, durations = zip(*sorted(notes), strict=True)
    return {
        "part": [PARTS[place] for place in parts],
        "pitch": list(pitches),
        "onset": [start - before for before, start in zip((0.0, *starts), starts, strict=False)],
        "duration": list(durations),
    }


def note_windows(rows: Dataset | Sequence[Mapping[str, Sequence[Any]]], length: int) -> Dataset:
    """Cuts sequences into consecutive windows of `length` notes, the last of a row shorter; the first onset becomes 0.

    Raises:
        ValueError: `length` is not positive, or there are no rows.
    """
    if length < 1:
        raise ValueError(f"length={length} must be at least 1")
    if not len(rows):
        raise ValueError("rows is empty; give at least one")
    windows: dict[str, list[Any]] = {column: [] for column in COLUMNS}
    for row in rows:
        notes: Any = row
        for start in range(0, len(notes["part"]), length):
            for column in COLUMNS:
                windows[column].append(list(notes[column][start : start + length]))
            windows["onset"][-1][0] = 0.0
    return Dataset.from_dict(windows)


def write_midi(notes: Mapping[str, Sequence[Any]], file: str | os.PathLike[str]) -> Path:
    """Writes lists `part`, `pitch`, `onset`, `duration` of notes as a MIDI file with a track per part.

    Raises:
        ImportError: `music21` is not installed.
        ValueError: there are no notes, a list is missing or has another length, or a value is out of range.
    """
    require("music21", MUSIC21)
    from music21 import note, stream

    score = stream.Score()
    tracks = {name: stream.Part(id=name) for name in PARTS}
    for name, pitch, start, duration in _timed(notes):
        tracks[name].insert(start, note.Note(pitch, quarterLength=duration))
    for track in tracks.values():
        score.insert(0, track)
    target = Path(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as draft:
        score.write("midi", fp=draft)
    return target


def piano_roll(notes: Mapping[str, Sequence[Any]], file: str | os.PathLike[str]) -> Path:
    """Draws lists `part`, `pitch`, `onset`, `duration` of notes as a PNG: time to the right, pitch upwards.

    Raises:
        ImportError: `matplotlib` is not installed.
        ValueError: there are no notes, a list is missing or has another length, or a value is out of range.
    """
    require("matplotlib", extra="pictures")
    from matplotlib.figure import Figure

    timed = _timed(notes)
    end = max(start + duration for _, _, start, duration in timed)
    figure = Figure(figsize=(min(16.0, max(6.0, end / 4)), 4), layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate(PARTS):
        voice = [entry for entry in timed if entry[0] == name]
        axes.barh(
            [pitch for _, pitch, _, _ in voice],
            [0.95 * duration for *_, duration in voice],  # a gap between repeated notes
            left=[start for _, _, start, _ in voice],
            height=0.8,
            color=f"C{place}",
            label=name,
        )
    axes.set_xlabel("quarter notes")
    axes.set_ylabel("MIDI pitch")
    axes.legend(loc="upper right", ncols=len(PARTS), fontsize="small")
    target = Path(file)
    with atomic_file(target) as draft:
        figure.savefig(draft, format="png", dpi=120)
    return target


def _timed(notes: Mapping[str, Sequence[Any]]) -> list[tuple[str, int, float, float]]:
    """(part, pitch, absolute onset, duration) of each note, checked."""
    sizes = {column: len(notes[column]) for column in COLUMNS if column in notes}
    if len(sizes) < len(COLUMNS) or len(set(sizes.values())) != 1 or not sizes["part"]:
        raise ValueError(f"notes has the lengths {sizes}; give {', '.join(COLUMNS)} of one length, at least 1")
    for column, valid, accepted in (
        ("part", lambda part: part in PARTS, f"one of {', '.join(PARTS)}"),
        ("pitch", lambda pitch: 0 <= pitch <= 127, "0 to 127"),
        ("onset", lambda onset: 0 <= onset < np.inf, "0 or more"),
        ("duration", lambda duration: 0 < duration < np.inf, "more than 0"),
    ):
        wrong = [value for value in notes[column] if value is None or not valid(value)]
        if wrong:
            raise ValueError(f"notes holds the {column} {wrong[0]!r}; it must be {accepted}")
    starts = accumulate(map(float, notes["onset"]))
    durations = map(float, notes["duration"])
    return list(zip(notes["part"], map(int, notes["pitch"]), starts, durations, strict=True))


def _melody(notes: Mapping[str, Sequence[Any]]) -> tuple[int, ...]:
    """The first intervals of the soprano, which are the same in every key."""
    pitches = [pitch for part, pitch in zip(notes["part"], notes["pitch"], strict=True) if part == PARTS[0]]
    return tuple(after - before for before, after in pairwise(pitches[: MELODY_LENGTH + 1]))
