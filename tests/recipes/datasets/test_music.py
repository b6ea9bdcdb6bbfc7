"""Bach's chorales, windows of notes, MIDI files and piano rolls."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from gm_discrete.data import SequenceCollator, decode_sequences, fit_codecs, natural_values
from recipes.datasets import load_chorales, music, note_windows, packages, piano_roll, write_midi
from recipes.datasets.music import COLUMNS, PARTS, parse_chorales, read_score

needs_music21 = pytest.mark.skipif(find_spec("music21") is None, reason="music21 is not installed")

PHRASE: dict[str, list[Any]] = {
    "part": ["soprano", "alto", "tenor", "bass", "soprano", "bass", "alto"],
    "pitch": [72, 67, 64, 48, 74, 50, 65],
    "onset": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.5],
    "duration": [1.0, 1.5, 3.0, 1.0, 2.0, 2.0, 1.5],
}


def chorale(number: int) -> dict[str, list[Any]]:
    """A melody of its own in a key of its own: two of every three numbers share one."""
    melody = 2 * (number // 3) + (number % 3 == 2)
    steps = np.random.RandomState(melody).randint(-3, 4, 25)
    soprano = (60 + number % 3 + np.cumsum(steps)).tolist()
    return {"part": ["soprano"] * 25, "pitch": soprano, "onset": [1.0] * 25, "duration": [float(number)] * 25}


def test_load_chorales__settings_of_a_melody_are_in_one_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(music, "parse_chorales", lambda: calls.append(1) or [chorale(number) for number in range(300)])
    parts = {split: load_chorales(split, tmp_path) for split in ("train", "validation", "test")}
    assert calls == [1]
    numbers = {split: [int(row[0]) for row in rows["duration"]] for split, rows in parts.items()}
    assert sorted(number for split in numbers.values() for number in split) == list(range(300))
    melodies = {split: {2 * (number // 3) + (number % 3 == 2) for number in part} for split, part in numbers.items()}
    assert [len(found) for found in melodies.values()] == [160, 20, 20]
    assert not melodies["train"] & melodies["test"]
    assert not melodies["validation"] & melodies["test"]
    assert not melodies["validation"] & melodies["train"]
    assert load_chorales("test", tmp_path)[:] == parts["test"][:]
    with pytest.raises(ValueError, match=r"split='half'.*train, validation, test"):
        load_chorales("half", tmp_path)


def test_note_windows__start_at_their_first_note() -> None:
    rows = Dataset.from_list([PHRASE, {column: cells[:2] for column, cells in PHRASE.items()}])
    windows = note_windows(rows, 3)
    assert [len(row) for row in windows["part"]] == [3, 3, 1, 2]
    assert windows["onset"][:] == [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0], [0.0, 0.0]]
    for column in ("part", "pitch", "duration"):
        assert [cell for cells in windows[column][:3] for cell in cells] == PHRASE[column]
    assert PHRASE["onset"][0] == 1.0
    assert note_windows([PHRASE], 100)["pitch"][:] == [PHRASE["pitch"]]
    with pytest.raises(ValueError, match="length=0 must be at least 1"):
        note_windows(rows, 0)
    with pytest.raises(ValueError, match="rows is empty"):
        note_windows([], 3)


def test_sequence_collator__notes_survive_a_round_trip() -> None:
    rows: list[Any] = list(note_windows([PHRASE] * 3, 4))
    codecs = fit_codecs(rows, categories=["pitch"])
    batch = SequenceCollator(codecs)(rows)
    assert batch["fields"]["onset"].shape == (6, 4, 1)
    assert batch["fields"]["pitch"].shape == (6, 4)
    decoded = decode_sequences(natural_values(batch["fields"], codecs), codecs, batch.get("attention_mask"))
    assert decoded == [{column: row[column] for column in COLUMNS} for row in rows]


def test_piano_roll__shows_every_part(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = piano_roll(PHRASE, tmp_path / "new" / "roll.png")
    assert list(file.parent.iterdir()) == [file]
    with Image.open(file) as image:
        assert image.format == "PNG"
        pixels = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}
    # The first colours of matplotlib's cycle.
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40)} <= pixels


@pytest.mark.parametrize(
    ("column", "cells", "message"),
    [
        ("part", ["violin"] * 7, "part 'violin'.*soprano"),
        ("pitch", [128] * 7, "pitch 128.*0 to 127"),
        ("onset", [-1.0] * 7, r"onset -1\.0"),
        ("duration", [0.0] * 7, r"duration 0\.0"),
        ("duration", [None] * 7, "the duration None"),
        ("duration", [float("nan")] * 7, "the duration nan"),
        ("duration", [1.0], "part, pitch, onset, duration"),
    ],
)
def test_piano_roll__errors_name_the_value(column: str, cells: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        piano_roll(PHRASE | {column: cells}, tmp_path / "roll.png")
    assert not list(tmp_path.iterdir())


def test_music__missing_packages_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install music21==10\.5\.1"):
        load_chorales(cache_dir=tmp_path)
    with pytest.raises(ImportError, match=r"pip install music21==10\.5\.1"):
        write_midi(PHRASE, tmp_path / "phrase.mid")
    with pytest.raises(ImportError, match="pip install matplotlib"):
        piano_roll(PHRASE, tmp_path / "phrase.png")
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


@pytest.mark.slow
@needs_music21
def test_read_score__sorts_notes_by_time() -> None:
    from music21 import chord, note, stream, tie

    score = stream.Score()
    parts = [stream.Part() for _ in PARTS]
    for part, pitch, length, start in ((0, 72, 1.0, 0.0), (0, 74, 2.0, 1.5), (1, 67, 3.0, 0.0), (3, 48, 0.5, 1.5)):
        parts[part].insert(start, note.Note(pitch, quarterLength=length))
    held = [note.Note(60, quarterLength=2.0, offset=0.0), note.Note(60, quarterLength=1.0)]
    held[0].tie, held[1].tie = tie.Tie("start"), tie.Tie("stop")
    parts[2].insert(0.0, held[0])
    parts[2].insert(2.0, held[1])
    parts[3].insert(2.0, chord.Chord([50, 43], quarterLength=1.0))
    grace = note.Note(71, quarterLength=1.0).getGrace()
    parts[0].insert(1.5, grace)
    for part in parts:
        score.insert(0, part)
    notes = read_score(score)
    assert notes["part"] == ["soprano", "alto", "tenor", "soprano", "bass", "bass", "bass"]
    assert notes["pitch"] == [72, 67, 60, 74, 48, 43, 50]
    assert notes["onset"] == [0.0, 0.0, 0.0, 1.5, 0.0, 0.5, 0.0]
    assert notes["duration"] == [1.0, 3.0, 3.0, 2.0, 0.5, 1.0, 1.0]
    with pytest.raises(ValueError, match="score has 0 parts; give one of 4"):
        read_score(stream.Score())


@needs_music21
def test_write_midi__writes_the_notes(tmp_path: Path) -> None:
    from music21 import converter

    file = write_midi(PHRASE, tmp_path / "new" / "phrase.mid")
    assert list(file.parent.iterdir()) == [file]
    parts: Any = converter.parse(file, forceSource=True)
    found = [
        (place, note.pitch.midi, float(note.offset), float(note.quarterLength))
        for place, part in enumerate(parts.parts)
        for note in part.stripTies().flatten().notes
    ]
    starts = np.cumsum(PHRASE["onset"]).tolist()
    places = [PARTS.index(part) for part in PHRASE["part"]]
    assert sorted(found) == sorted(zip(places, PHRASE["pitch"], starts, PHRASE["duration"], strict=True))


@needs_music21
def test_load_chorales__three_chorales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from music21 import corpus

    files = [next(file for file in corpus.getComposer("bach") if file.stem == f"bwv{name}") for name in (253, 254, 269)]
    monkeypatch.setattr(corpus, "getComposer", lambda name: files)
    chorales = parse_chorales()
    assert json.loads(json.dumps(chorales)) == chorales
    for notes in chorales:
        assert set(notes["part"]) == set(PARTS)
        assert notes["part"][:4] == list(PARTS)
        means = [
            np.mean([p for p, of in zip(notes["pitch"], notes["part"], strict=True) if of == part]) for part in PARTS
        ]
        assert means == sorted(means, reverse=True)
        assert min(notes["onset"]) >= 0
        assert set(np.multiply(notes["duration"], 4) % 1) == {0.0}
    assert [len(notes["pitch"]) for notes in chorales] == [164, 204, 225]
