"""Bach's chorales as sequences of notes, and sequences of notes as MIDI files and pictures."""

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

from gm_discrete.data.packaged import cached, drafted, require

PARTS = ("soprano", "alto", "tenor", "bass")
COLUMNS = ("part", "pitch", "onset", "duration")
MUSIC21 = "music21==10.5.1"
MELODY = 20
"""Steps of the soprano by which melodies are told apart: about three phrases."""


def load_chorales(split: str = "train", cache_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """368 four-part chorales of Bach from the package `music21`, a row each, as lists with an entry per note.

    Columns: `part`, soprano to bass; `pitch`, a MIDI number; `onset`, quarter notes since the note before, 0 of notes
    at once; `duration` in quarter notes. Notes are in order of time, those at once from the soprano to the bass. Tied
    notes are one, repeats are not played, and grace notes are left out.

    Split 80/10/10 by a fixed seed and by melody: all settings of a melody are in one split. The first call parses the
    scores, which takes a minute or two, and keeps the notes.

    Args:
        cache_dir: where the notes are kept, instead of the cache of Hugging Face.

    Raises:
        ImportError: `music21` is not installed.
        ValueError: there is no such split.
    """
    ends = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}
    if split not in ends:
        raise ValueError(f"split={split!r} is none of the chorales; give one of {', '.join(ends)}")
    file = cached("chorales.json", cache_dir)
    if not file.exists():
        with drafted(file) as draft:
            draft.write_text(json.dumps(parse_chorales()), "utf-8")
    chorales = json.loads(file.read_text("utf-8"))
    melodies = [_melody(notes) for notes in chorales]
    numbers = {melody: number for number, melody in enumerate(dict.fromkeys(melodies))}
    # RandomState, because NumPy promises that its permutations stay what they are.
    order = np.random.RandomState(0).permutation(len(numbers)) / len(numbers)
    low, high = ends[split]
    chosen = [notes for notes, melody in zip(chorales, melodies, strict=True) if low <= order[numbers[melody]] < high]
    return Dataset.from_dict({column: [notes[column] for notes in chosen] for column in COLUMNS})


def parse_chorales() -> list[dict[str, list[Any]]]:
    """The notes of every score of Bach in `music21` that has four parts, in the order of their files' names.

    Raises:
        ImportError: `music21` is not installed.
    """
    require("music21", MUSIC21)
    from music21 import converter, corpus

    chorales = []
    for file in tqdm(sorted(corpus.getComposer("bach"), key=str), desc="Chorales"):
        score: Any = converter.parse(file, forceSource=True)  # else it would leave a pickle of every score
        if len(score.parts) == len(PARTS):
            chorales.append(read_score(score))
    return chorales


def read_score(score: Any) -> dict[str, list[Any]]:
    """A `music21` score of four parts → lists `part`, `pitch`, `onset`, `duration`, as `load_chorales` has them.

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


def cut(rows: Dataset | Sequence[Mapping[str, Sequence[Any]]], length: int) -> Dataset:
    """Windows of `length` notes, one after another, the last of a row shorter; each starts at its first note.

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
        ValueError: there are no notes, a list is absent or of another length, or a value is impossible.
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
    with drafted(target) as draft:
        score.write("midi", fp=draft)
    return target


def piano_roll(notes: Mapping[str, Sequence[Any]], file: str | os.PathLike[str]) -> Path:
    """Draws lists `part`, `pitch`, `onset`, `duration` of notes, time to the right and pitch upwards, as a PNG.

    Raises:
        ImportError: `matplotlib` is not installed.
        ValueError: there are no notes, a list is absent or of another length, or a value is impossible.
    """
    require("matplotlib", extra="recipes")
    from matplotlib.figure import Figure

    timed = _timed(notes)
    end = max(start + duration for _, _, start, duration in timed)
    figure = Figure(figsize=(min(16.0, max(6.0, end / 4)), 4), layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate(PARTS):
        mine = [entry for entry in timed if entry[0] == name]
        axes.barh(
            [pitch for _, pitch, _, _ in mine],
            [0.95 * duration for *_, duration in mine],  # so that repeated notes stay apart
            left=[start for _, _, start, _ in mine],
            height=0.8,
            color=f"C{place}",
            label=name,
        )
    axes.set_xlabel("quarter notes")
    axes.set_ylabel("MIDI pitch")
    axes.legend(loc="upper right", ncols=len(PARTS), fontsize="small")
    target = Path(file)
    with drafted(target) as draft:
        figure.savefig(draft, format="png", dpi=120)
    return target


def _timed(notes: Mapping[str, Sequence[Any]]) -> list[tuple[str, int, float, float]]:
    """(part, pitch, absolute onset, duration) of each note."""
    sizes = {column: len(notes[column]) for column in COLUMNS if column in notes}
    if len(sizes) < len(COLUMNS) or len(set(sizes.values())) != 1 or not sizes["part"]:
        raise ValueError(f"notes has the lengths {sizes}; give {', '.join(COLUMNS)} of one length, at least 1")
    for column, right, told in (
        ("part", lambda part: part in PARTS, f"one of {', '.join(PARTS)}"),
        ("pitch", lambda pitch: 0 <= pitch <= 127, "0 to 127"),
        ("onset", lambda onset: 0 <= onset < np.inf, "0 or more"),
        ("duration", lambda duration: 0 < duration < np.inf, "more than 0"),
    ):
        wrong = [value for value in notes[column] if value is None or not right(value)]
        if wrong:
            raise ValueError(f"notes holds the {column} {wrong[0]!r}; it must be {told}")
    starts = accumulate(map(float, notes["onset"]))
    durations = map(float, notes["duration"])
    return list(zip(notes["part"], map(int, notes["pitch"]), starts, durations, strict=True))


def _melody(notes: Mapping[str, Sequence[Any]]) -> tuple[int, ...]:
    """The soprano's first steps: the same in every key."""
    pitches = [pitch for part, pitch in zip(notes["part"], notes["pitch"], strict=True) if part == PARTS[0]]
    return tuple(after - before for before, after in pairwise(pitches[: MELODY + 1]))
