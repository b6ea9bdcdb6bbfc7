"""Pictures of trajectories: every state is a frame, every character has its place, and pages need no other files."""

from __future__ import annotations

import html
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gm_discrete.generation.observers import edits_between
from gm_discrete.models import Trajectory
from gm_discrete.pictures import animate, plot_trajectory
from gm_discrete.pictures import frames as frames_module
from gm_discrete.pictures.animation import DURATION, LAST_DURATION, STYLES, _places
from gm_discrete.pictures.curves import COLOURS, _changes
from gm_discrete.pictures.frames import glyph

MASK = 0


class Symbols:
    """A tokenizer of given texts, the mask being the first; it may leave out the space before the first word."""

    def __init__(self, *texts: str, mask: int | None = MASK, strips: bool = False) -> None:
        self.texts, self.mask_token_id, self.strips = ["[MASK]", *texts], mask, strips

    def decode(self, symbols: list[int]) -> str:
        text = "".join(self.texts[symbol] for symbol in symbols)
        return text.removeprefix(" ") if self.strips else text


LETTERS = Symbols("a", "b", "\n", "<", "&", '"', "'", "</script>", "@STORY@", "\u2028", "ö")


def trajectory(states: Any, fixed: Any = None, entropy: Tensor | None = None) -> Trajectory:
    """Of states [N + 1, B, L] at even times."""
    states = torch.as_tensor(states)
    times = torch.linspace(0, 1, len(states), dtype=torch.float64)
    known = torch.zeros(states.shape[1:], dtype=torch.bool) if fixed is None else torch.tensor(fixed, dtype=torch.bool)
    jumps = (states[1:] != states[:-1]).flatten(2).sum(2)
    return Trajectory(times, states, jumps, torch.ones(jumps.shape).double() if entropy is None else entropy, known)


STORY = trajectory([[[1, 0, 0, 0, 0]], [[1, 2, 2, 0, 0]], [[1, 1, 0, 0, 0]], [[1, 1, 2, 3, 2]]], [[1, 0, 0, 0, 0]])


def frames_of(file: Path) -> tuple[list[np.ndarray], list[int]]:
    with Image.open(file) as picture:
        frames, durations = [], []
        for number in range(getattr(picture, "n_frames", 1)):
            picture.seek(number)
            frames.append(np.asarray(picture.convert("RGB")))
            durations.append(picture.info["duration"])
    return frames, durations


def cell(frame: np.ndarray, column: int, line: int) -> np.ndarray:
    """The pixels [h, w, 3] of a character: 10 × 22 of them, after a margin of 14."""
    return frame[14 + 22 * line : 14 + 22 * line + 21, 14 + 10 * column : 24 + 10 * column]


def near(pixels: np.ndarray, colour: str) -> bool:
    """Whether a colour is there, but for the rounding of the palette."""
    wanted = np.array(list(bytes.fromhex(colour[1:])))
    return bool((np.abs(pixels.astype(int) - wanted).max(-1) <= 2).any())


def story_of(file: Path) -> dict[str, Any]:
    found = re.findall(
        r'<script type="application/json" id="story">(.*?)</script>', file.read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(found) == 1
    return json.loads(found[0])


def replayed(story: dict[str, Any]) -> list[list[int]]:
    states = [[symbol for symbol, _, _ in story["start"]]]
    for change in story["changes"]:
        state = states[-1].copy()
        for position, symbol, _, _ in change:
            state[position] = symbol
        states.append(state)
    return states


# ---- GIF


def test_animate__every_state_is_a_frame_and_the_last_one_stays(tmp_path: Path) -> None:
    file = animate(STORY, LETTERS, tmp_path / "new" / "run.gif")
    frames, durations = frames_of(file)
    assert file == tmp_path / "new" / "run.gif"
    assert durations == [DURATION] * 3 + [LAST_DURATION]
    assert [place.name for place in file.parent.iterdir()] == ["run.gif"]
    assert len(frames) == 4


def test_animate__equal_states_are_frames_too(tmp_path: Path) -> None:
    same = trajectory([[[1, 1]]] * 5)
    assert frames_of(animate(same, LETTERS, tmp_path / "a.gif"))[1] == [DURATION] * 4 + [LAST_DURATION]
    alone = Trajectory(same.times[:1], same.states[:1], same.jumps[:0], None, same.fixed)
    assert len(frames_of(animate(alone, LETTERS, tmp_path / "b.gif"))[0]) == 1


def test_animate__tokens_have_the_colours_of_their_changes(tmp_path: Path) -> None:
    frames, _ = frames_of(animate(STORY, LETTERS, tmp_path / "run.gif"))
    expected = [
        ["given", "mask", "mask", "mask"],
        ["given", "new", "new", "mask"],
        ["given", "changed", "again", "mask"],
        ["given", "text", "new", "new"],
    ]
    for frame, kinds in zip(frames, expected, strict=True):
        for column, kind in enumerate(kinds):
            ink, ground = STYLES[kind]
            pixels = cell(frame, column, 0)
            assert near(pixels[:1, :1], ground), (column, kind)
            away = np.abs(pixels.astype(int) - pixels[0, 0].astype(int)).sum(-1)
            strongest = pixels.reshape(-1, 3)[away.argmax()]
            assert near(strongest, ink), (column, kind, strongest)


def test_animate__steady_texts_keep_their_places(tmp_path: Path) -> None:
    """The last line breaks after its fourth token: the fifth is below from the first frame on."""
    frames, _ = frames_of(animate(STORY, LETTERS, tmp_path / "run.gif"))
    for frame in frames:
        assert not near(cell(frame, 4, 0), STYLES["mask"][0])
        assert near(cell(frame, 0, 1), STYLES["mask"][0]) or near(cell(frame, 0, 1), STYLES["new"][0])


def test_animate__lines_break_at_the_right_edge(tmp_path: Path) -> None:
    assert _places(["a", "b", "↵\n", "c"], 9) == [[(0, 0, "a")], [(1, 0, "b")], [(2, 0, "↵")], [(0, 1, "c")]]
    assert _places(["ab", "cd", "e"], 3) == [[(0, 0, "a"), (1, 0, "b")], [(0, 1, "c"), (1, 1, "d")], [(2, 1, "e")]]
    assert _places(["abc"], 2) == [[(0, 0, "a"), (1, 0, "b"), (0, 1, "c")]]
    assert _places(["↵\n↵\nx", ""], 5) == [[(0, 0, "↵"), (0, 1, "↵"), (0, 2, "x")], []]
    many = trajectory([[[1] * 100], [[2] * 100]])
    heights = [frames_of(animate(many, LETTERS, tmp_path / "a.gif", columns=n))[0][0].shape[0] for n in (100, 50, 10)]
    assert [height - heights[0] for height in heights] == [0, 22, 9 * 22]


def test_animate__max_frames_thins_long_runs(tmp_path: Path) -> None:
    states = torch.arange(101)[:, None, None].clamp(max=100) % 2 + 1
    long = trajectory(states)
    frames, _ = frames_of(animate(long, LETTERS, tmp_path / "a.gif", max_frames=11))
    assert len(frames) == 11
    assert story_of(animate(long, LETTERS, tmp_path / "a.html", max_frames=3))["times"] == [0.0, 0.5, 1.0]
    assert len(story_of(animate(long, LETTERS, tmp_path / "a.html", max_frames=500))["times"]) == 101


def test_glyph__restores_spaces_that_tokenizers_strip() -> None:
    words = Symbols(" the", "a", "\n", strips=True)
    assert words.decode([1]) == "the"
    assert [glyph(words, symbol) for symbol in (1, 2, 3)] == [" the", "a", "\n"]
    assert glyph(Symbols("x"), 1) == "x"


# ---- HTML


def test_page__holds_every_state_exactly(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    states = torch.randint(len(LETTERS.texts), (9, 2, 40), generator=rng)
    for index in (0, 1, -1):
        story = story_of(animate(trajectory(states), LETTERS, tmp_path / "a.html", index=index))
        assert replayed(story) == states[:, index].tolist()
        assert story["times"] == torch.linspace(0, 1, 9).double().tolist()
        assert story["duration"] == DURATION
        shown = {symbol: text for change in [[[0, *row] for row in story["start"]], *story["changes"]]
                 for _, symbol, text, _ in change}  # fmt: skip
        expected = {symbol: text.replace("\n", "↵\n") for symbol, text in enumerate(LETTERS.texts)} | {MASK: "·"}
        assert shown == expected


def test_page__has_the_changes_of_each_step(tmp_path: Path) -> None:
    story = story_of(animate(STORY, LETTERS, tmp_path / "a.html"))
    assert [kind for _, _, kind in story["start"]] == ["given"] + ["mask"] * 4
    kinds = [{position: kind for position, _, _, kind in change} for change in story["changes"]]
    assert kinds == [{1: "new", 2: "new"}, {1: "changed", 2: "again"}, {2: "new", 3: "new", 4: "new"}]
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    for label in ("given", "new", "changed", "masked again"):
        assert f"</i>{label}</span>" in text
    plain = animate(trajectory([[[1, 1]], [[1, 2]]]), LETTERS, tmp_path / "b.html").read_text(encoding="utf-8")
    assert "</i>changed</span>" in plain
    assert "masked again" not in plain


def test_page__escapes_special_characters(tmp_path: Path) -> None:
    every = list(range(1, len(LETTERS.texts)))
    text = animate(trajectory([[every], [every]]), LETTERS, tmp_path / "a.html").read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script>") == 2
    assert text.count("</pre>") == 1
    shown = re.findall(r'<pre id="text">(.*?)</pre>', text, re.DOTALL)[0]
    assert html.unescape(shown) == "".join(LETTERS.texts[1:]).replace("\n", "↵\n")
    assert "<" not in shown
    assert not re.search(r"&(?!(lt|gt|amp|quot|#x27);)", shown)
    assert replayed(story_of(tmp_path / "a.html")) == [every, every]


def test_page__needs_no_other_files(tmp_path: Path) -> None:
    text = animate(STORY, LETTERS, tmp_path / "a.html").read_text(encoding="utf-8")
    assert "//" not in re.sub(r"^\s*// .*$", "", text, flags=re.MULTILINE)  # but for comments: no address of any kind
    assert not re.search(r"\b(src|href|action|import|fetch|url)\s*[=(]", text)
    assert "@" not in re.sub(r"@media", "", text)  # nothing is left to fill in


# ---- strings


def string_trajectory(numbers: list[list[int]], symbols: list[dict[int, int]], fixed: list[bool]) -> Trajectory:
    """Of one string: which symbols it holds in each state, by number, and what each of them is."""
    which = torch.tensor(numbers)[:, None]
    rows = [[own.get(n, MASK) for n in row] for row, own in zip(numbers, symbols, strict=True)]
    states, edits = torch.tensor(rows)[:, None], edits_between(torch.tensor(rows)[:, None], which)
    times = torch.linspace(0, 1, len(rows), dtype=torch.float64)
    return Trajectory(times, states, edits.sum(2), None, torch.tensor([fixed]), which, edits)


GROWN = string_trajectory(
    [[0, 1, -1, -1], [0, 2, 1, 3], [2, 1, 3, -1], [4, 2, 1, -1]],
    [{0: 1, 1: 2}, {0: 1, 2: 1, 1: 2, 3: 5}, {2: 2, 1: 2, 3: 5}, {4: 1, 2: 2, 1: 2}],
    [False, False, True, False],
)
"""ab, then a[a]b[&], then the first a is deleted and the second becomes b, then a is inserted at the start and & deleted."""


def test_animate__strings_have_an_entry_for_every_symbol_that_ever_was() -> None:
    frames = frames_module.frames_of(GROWN, LETTERS, 0, None)
    assert [frame.kinds for frame in frames] == [
        ["absent", "text", "absent", "given", "absent"],
        ["absent", "text", "inserted", "given", "inserted"],
        ["absent", "deleted", "substituted", "given", "text"],
        ["inserted", "absent", "text", "given", "deleted"],
        ["inserted", "absent", "text", "given", "absent"],
    ]
    assert ["".join(frame.texts) for frame in frames] == ["ab", "aab&", "abb&", "abb&", "abb"]
    assert [frame.time for frame in frames] == [*GROWN.times.tolist(), 1.0]


def test_common_order__keeps_the_order_of_every_string() -> None:
    strings = [[0, 1], [2, 0, 3, 1, 4], [2, 3, 5, 4], [6, 3, 7, 5, 8]]
    order = frames_module._common_order(strings)
    assert sorted(order) == list(range(9))
    for string in strings:
        places = [order.index(number) for number in string]
        assert places == sorted(places)


def test_edits_between__counts_each_kind() -> None:
    assert GROWN.edits is not None
    assert GROWN.edits[:, 0].tolist() == [[2, 0, 0], [0, 1, 1], [1, 1, 0]]
    empty = torch.full((3, 2, 0), -1)
    assert edits_between(empty, empty).tolist() == [[[0, 0, 0]] * 2] * 2


def test_animate__edits_have_colours_and_deleted_symbols_are_struck_through(tmp_path: Path) -> None:
    frames, durations = frames_of(animate(GROWN, LETTERS, tmp_path / "a.gif"))
    assert durations == [DURATION] * 4 + [LAST_DURATION]
    shown = [["text", "given"], ["text", "inserted", "given", "inserted"], ["deleted", "substituted", "given", "text"],
             ["inserted", "text", "given", "deleted"], ["inserted", "text", "given"]]  # fmt: skip
    for frame, kinds in zip(frames, shown, strict=True):
        for column, kind in enumerate(kinds):
            assert near(cell(frame, column, 0)[:1, :1], STYLES[kind][1])
            line = cell(frame, column, 0)[11]
            assert bool((np.abs(line.astype(int) - line[:1]).max() <= 2) and near(line, STYLES[kind][0])) == (
                kind == "deleted"
            )


def test_page__of_strings_strikes_deleted_symbols_through_for_one_step(tmp_path: Path) -> None:
    file = animate(GROWN, LETTERS, tmp_path / "a.html")
    story, text = story_of(file), file.read_text(encoding="utf-8")
    first = [tuple(row) for row in story["start"]]
    states = [first]
    for change in story["changes"]:
        state = list(states[-1])
        for position, symbol, letters, kind in change:
            state[position] = (symbol, letters, kind)
        states.append(state)
    assert ["".join(letters for _, letters, _ in state) for state in states] == ["ab", "aab&", "abb&", "abb&", "abb"]
    assert story["changes"][1] == [[1, -1, "a", "deleted"], [2, 2, "b", "substituted"]]
    assert story["changes"][2] == [[0, 1, "a", "inserted"], [1, -1, "", "absent"], [4, -1, "&", "deleted"]]
    assert "#text .deleted { text-decoration: line-through; }" in text
    for label in ("inserted", "deleted", "substituted"):
        assert f"</i>{label}</span>" in text
    assert "</i>absent" not in text


def test_plot_trajectory__draws_edits_and_lengths_of_strings(tmp_path: Path) -> None:
    kinds = _changes(GROWN, None)
    assert {name: values[:, 0].tolist() for name, values in kinds.items()} == {
        "insertions": [2, 0, 1], "deletions": [0, 1, 1], "substitutions": [0, 1, 0],
    }  # fmt: skip
    with Image.open(plot_trajectory(GROWN, tmp_path / "a.png")) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert all(near(pixels, COLOURS[name]) for name in (*kinds, "length"))
    with pytest.raises(ValueError, match="mask_token_id=0: strings"):
        plot_trajectory(GROWN, tmp_path / "b.png", MASK)


# ---- curves


@pytest.mark.slow
def test_plot_trajectory__writes_a_png(tmp_path: Path) -> None:
    sizes = {}
    for name, mask in (("plain", None), ("masked", MASK)):
        file = plot_trajectory(STORY, tmp_path / name / "a.png", mask)
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            sizes[name] = picture.size
            pixels = np.asarray(picture.convert("RGB"))
        assert near(pixels, COLOURS["entropy"])
        assert near(pixels, COLOURS["masked again"]) == (mask is not None)
    assert sizes["masked"][1] > sizes["plain"][1]


def test_plot_trajectory__separates_kinds_of_changes() -> None:
    found = _changes(STORY, (STORY.states == MASK).flatten(2))
    assert {name: values[:, 0].tolist() for name, values in found.items()} == {
        "unmasked": [2, 0, 3],
        "masked again": [0, 1, 0],
        "changed": [0, 1, 0],
    }
    assert _changes(STORY, None)["changed"] is STORY.jumps
    still = trajectory([[[1]], [[1]]])
    assert _changes(still, still.states == MASK)["changed"].tolist() == [[0]]


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_plot_trajectory__draws_runs_with_few_entropies(tmp_path: Path) -> None:
    unread = torch.full((3, 1), torch.nan, dtype=torch.float64)
    part = torch.tensor([[1.0], [torch.nan], [0.5]]).double()
    for number, entropy in enumerate((unread, part)):
        run = Trajectory(STORY.times, STORY.states, STORY.jumps, entropy, STORY.fixed)
        assert plot_trajectory(run, tmp_path / f"{number}.png", MASK).exists()
    everything = trajectory([[[1]], [[1]]], [[1]])  # no free position
    assert plot_trajectory(everything, tmp_path / "fixed.png", MASK).exists()


def test_plot_trajectory__draws_continuous_states(tmp_path: Path) -> None:
    states = torch.randn(5, 2, 3, 4)
    run = Trajectory(torch.linspace(0, 1, 5).double(), states, torch.full((4, 2), 12), None, states[0] > 9)
    assert plot_trajectory(run, tmp_path / "a.png").exists()
    with pytest.raises(ValueError, match=r"mask_token_id=0 .*torch\.float32"):
        plot_trajectory(run, tmp_path / "b.png", MASK)
    with pytest.raises(ValueError, match=r"trajectory .*\(5, 2, 3, 4\) of torch\.float32"):
        animate(run, LETTERS, tmp_path / "a.gif")


# ---- errors


def test_animate__bad_arguments_are_named(tmp_path: Path) -> None:
    for options, match in (
        ({"path": "a.mp4"}, r"path='.*a\.mp4'"),
        ({"index": 1}, "index=1 "),
        ({"index": -2}, "index=-2"),
        ({"columns": 0}, "columns=0 "),
        ({"max_frames": 1}, "max_frames=1 "),
    ):
        settings: dict[str, Any] = {"path": "a.gif"} | options
        with pytest.raises(ValueError, match=match):
            animate(STORY, LETTERS, tmp_path / settings.pop("path"), **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["PIL", "matplotlib"])
def test_pictures__missing_packages_name_the_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{package}: .*gm_discrete\[pictures\]"):
        animate(STORY, LETTERS, tmp_path / "a.gif")
    assert animate(STORY, LETTERS, tmp_path / "a.html").exists()  # which needs neither
    if package == "matplotlib":
        with pytest.raises(ImportError, match=r"gm_discrete\[pictures\]"):
            plot_trajectory(STORY, tmp_path / "a.png")


def test_write__a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = animate(STORY, LETTERS, tmp_path / "a.gif")
    before = file.read_bytes()

    def fails(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OSError, match="full"):
        animate(STORY, LETTERS, file)
    assert file.read_bytes() == before
