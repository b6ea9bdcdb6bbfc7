"""`generate` for strings: holes of any length between pieces that stay, hard limits, drafts, and what is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor

from gm_discrete import (
    Adaptive,
    AllowedTokens,
    Draft,
    EditPath,
    Euler,
    GMConfig,
    GMGenerationConfig,
    GMModel,
    TauLeaping,
    Uniformization,
    time_grid,
)
from gm_discrete.generation.strings import StringStart, occurrence, read_draft, read_prompts
from tests.helpers.distributions import SIGMAS
from tests.helpers.networks import rng
from tests.helpers.string_models import BLANK, LONGEST, PATHS, K, network

COARSE = {
    "tau_leaping": TauLeaping(),
    "euler": Euler(),
    "adaptive": Adaptive(2.0),
    "uniformization": Uniformization(0.3),
}
"""With few network calls."""
MASK = 5  # of models with a mask token
every_path = pytest.mark.parametrize("name", PATHS)
every_sampler = pytest.mark.parametrize("sampler", COARSE)


def run(model: GMModel, prompts: list[list[int]] | None = None, **options: Any) -> Any:
    settings: dict[str, Any] = {"num_steps": 6, "seed": 0, "return_dict_in_generate": True} | options
    return model.generate(None if prompts is None else torch.tensor(prompts), **settings)


def sparse(name: str, **options: Any) -> GMModel:
    """A network that inserts little, so that lengths differ."""
    model = network(name, **options)
    with torch.no_grad():
        model.heads["edits"].bias[0] -= 3.0
    return model


def texts(out: Any) -> list[list[int]]:
    """The strings without padding."""
    rows = zip(out.sequences.tolist(), out.attention_mask.tolist(), strict=True)
    return [[symbol for symbol, real in zip(*row, strict=True) if real] for row in rows]


def fits(text: list[int], parts: list[list[int]], opens: bool, closes: bool) -> bool:
    """Whether a text is these parts in their order with anything between them: before the first one only if it `opens` with
    a hole, after the last one only if it `closes` with one."""
    if not parts:
        return True
    first, *others = parts
    places = range(len(text) - len(first) + 1) if opens else [0]
    for at in places:
        rest = text[at + len(first) :]
        if text[at : at + len(first)] == first and (fits(rest, others, True, closes) if others else closes or not rest):
            return True
    return False


HOLES: list[tuple[str, list[int], list[list[int]], bool, bool]] = [
    ("nothing", [], [], True, True),
    ("no hole", [1, 3], [[1, 3]], False, True),
    ("at the start", [-1, 1, 3], [[1, 3]], True, False),
    ("at the end", [1, 3, -1], [[1, 3]], False, True),
    ("inside", [1, 3, -1, 3, 1], [[1, 3], [3, 1]], False, False),
    ("a run of markers", [1, -1, -1, -1, 3], [[1], [3]], False, False),
    ("everywhere", [-1, 1, -1, 3, -1], [[1], [3]], True, True),
    ("nothing but a hole", [-1], [], True, True),
]
"""(name, prompt with −1 for hole markers, fixed pieces, whether the start is open, whether the end is open)."""


# ---- fixed pieces and closed gaps


@every_path
@every_sampler
def test_holes__are_filled_and_nothing_else_changes(name: str, sampler: str) -> None:
    """On networks with random weights, whose strings would lose their fixed symbols at once; all forms in one batch."""
    blank, rows = PATHS[name].blank_token_id, 8
    ids, mask = torch.full((len(HOLES), 5), 4), torch.zeros(len(HOLES), 5)
    for row, (_, prompt, *_) in enumerate(HOLES):
        ids[row, 5 - len(prompt) :] = torch.tensor([blank if symbol < 0 else symbol for symbol in prompt]).long()
        mask[row, 5 - len(prompt) :] = 1
    grown = set()
    for seed in range(3):
        options = {"sampler": COARSE[sampler], "attention_mask": mask, "num_return_sequences": rows, "seed": seed}
        out = run(network(name, seed=seed), ids.tolist(), max_length=9, **options)
        for row, text in enumerate(texts(out)):
            form, _, parts, opens, closes = HOLES[row // rows]
            assert fits(text, parts, opens, closes), (form, text)
            assert len(text) <= 9
            assert blank not in text
            if len(text) > sum(map(len, parts)):
                grown.add(form)
    assert grown == {form for form, *_ in HOLES}


@every_path
def test_holes__are_marked_by_mask_tokens_where_there_are_some(name: str) -> None:
    """Then a blank is no hole, and edits never write the mask token."""
    model = network(name, mask_token_id=MASK)
    blank = model.path.blank_token_id
    out = run(model, [[1, MASK, 3, blank]] * 20 + [[1, 3, blank, blank]] * 20, max_length=8)
    for row, text in enumerate(texts(out)):
        assert name != "empty" or MASK not in text  # sources of the uniform prior hold all symbols but the blank
        assert fits(text, [[1], [3]] if row < 20 else [[1, 3]], False, row >= 20), text


def test_holes__of_prompts_that_are_padded_on_either_side() -> None:
    model, mask = network("empty"), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    ids = torch.tensor([[3, 3, 1, BLANK, 2], [1, BLANK, 2, BLANK, BLANK]])
    for pad in (3, BLANK):
        ids[mask == 0] = pad
        pieces, gaps = read_prompts(model.path, ids, mask, None)
        assert pieces.tolist() == [[1, 2, BLANK, BLANK, BLANK]] * 2
        assert gaps.nonzero().tolist() == [[0, 1], [1, 1]]
    without = read_prompts(model.path, ids, None, None)[1]  # where blanks at the end are an open end
    assert without.nonzero().tolist() == [[0, 0], [0, 1], [1, 1], [1, 2]]


@pytest.mark.parametrize(("prompt", "expected"), [
    ([1, 2, 3], [3]), ([1, -1, 3], [1]), ([-1, 2, 3], [0]), ([1, 2, -1], [2]), ([-1, -1, -1], [0]), ([1, -1, -1], [1]),
    ([-1, 1, -1], [0, 1]),
])  # fmt: skip
@pytest.mark.parametrize("marker", [None, MASK])
def test_read_prompts__open_gaps(prompt: list[int], expected: list[int], marker: int | None) -> None:
    ids = torch.tensor([prompt])
    ids[ids < 0] = BLANK if marker is None else marker
    pieces, gaps = read_prompts(EditPath(K), ids, None, marker)
    assert pieces[pieces != BLANK].tolist() == [symbol for symbol in prompt if symbol >= 0]
    assert gaps[0].nonzero().flatten().tolist() == expected


@every_path
def test_holes__max_new_tokens_open_the_end_too(name: str) -> None:
    blank = PATHS[name].blank_token_id
    prompts = [[1, blank, 3, 4]] * 30 + [[1, 3, 4, blank]] * 30
    out = run(network(name), prompts, max_new_tokens=3, attention_mask=torch.ones(60, 4))
    longer = [text for text in texts(out) if text[-2:] != [3, 4]]
    assert longer
    for row, text in enumerate(texts(out)):
        assert fits(text, [[1], [3, 4]] if row < 30 else [[1, 3, 4]], False, True), text


# ---- limits


@every_path
@every_sampler
def test_max_length__is_a_hard_limit_of_each_string(name: str, sampler: str) -> None:
    """Which they reach: with large rates all strings want to be longer."""
    model = network(name)
    with torch.no_grad():
        model.heads["edits"].bias[0] += 1.5  # insertions
    lengths = [len(text) for text in texts(run(model, batch_size=50, sampler=COARSE[sampler], max_length=4))]
    assert max(lengths) == 4
    lengths = [len(text) for text in texts(run(model, batch_size=50, sampler=COARSE[sampler]))]
    assert 4 < max(lengths) <= LONGEST  # of the config
    out = run(model, [[1, 3, 4], [1, PATHS[name].blank_token_id, 3]] * 20, sampler=COARSE[sampler], max_new_tokens=2)
    lengths = [len(text) for text in texts(out)]
    coarse = sampler == "adaptive"  # its one step to t = 1 makes one insertion in each gap
    assert 5 - coarse <= max(lengths[::2]) <= 5
    assert max(lengths[1::2]) == 4


def test_max_length__prompts_may_fill_it() -> None:
    assert texts(run(network("empty"), [[1, 2, 3]], max_length=3)) == [[1, 2, 3]]
    assert texts(run(network("uniform"), [[1, BLANK, 3]], max_length=2)) == [[1, 3]]


def test_generation__starts_from_the_prior() -> None:
    """With no time left to edit: a draft of nothing at t = 0 has the prior's lengths, and so has what starts without one."""
    model = network("uniform")
    start = StringStart.of(model.path, 4000, None, None, 6, 0, BLANK, torch.device("cpu"))
    x, fixed, free = start.begin(model.path, 0.0, rng(1))
    share = model.path.strings.lengths(x).bincount(minlength=5) / 4000
    # 4 standard deviations of a share are at most 4 √(1/4/4000) = 0.032
    assert (share - torch.tensor(model.path.lengths)).abs().max() < 0.032
    assert not fixed.any()
    assert free[:, 1].all()
    assert torch.equal(free[:, 2::2], x != BLANK)


def test_noise__fills_up_to_the_length_of_the_prior_in_open_gaps() -> None:
    """2 of 4 symbols are fixed: of the prior's lengths 0, 2, 3, 4 the last two leave noise, evenly in the two holes."""
    path: Any = PATHS["uniform"]
    prompts = read_prompts(path, torch.tensor([[BLANK, 1, 2, BLANK]] * 4000), None, None)
    start = StringStart.of(path, 4000, prompts, None, 6, 0, BLANK, torch.device("cpu"))
    x, fixed, free = start.begin(path, 0.0, rng(2))
    noise = path.strings.lengths(x) - 2
    expected = torch.tensor([path.lengths[0] + path.lengths[1] + path.lengths[2], path.lengths[3], path.lengths[4]])
    assert (noise.bincount(minlength=3) / 4000 - expected).abs().max() < 0.032
    assert (x[fixed].view(-1, 2) == torch.tensor([1, 2])).all()
    place = fixed.long().argmax(1)  # symbols before the piece
    alone = place[noise == 1]
    # of 800 or so; 4 standard deviations of a share are 4 √(1/4/800)
    assert abs(float(alone.double().mean()) - 0.5) < 0.071
    gaps = free[:, 1::2].gather(1, torch.stack([place, place + 1, place + 2], 1))
    assert (gaps == torch.tensor([True, False, True])).all()


# ---- what is written


@every_path
def test_symbols__processors_see_strings_and_shape_what_is_written(name: str) -> None:
    class Only(LogitsProcessor):
        """Allows one symbol."""

        def __call__(self, input_ids: Tensor, scores: Tensor, time: Tensor, position: Tensor) -> Tensor:  # type: ignore[override]
            assert input_ids.shape[0] == scores.shape[0] == len(time) == len(position)
            assert int(position.max()) < 2 * (input_ids.shape[1] + 1) * 20
            return torch.full_like(scores, -torch.inf).scatter(1, torch.full_like(position[:, None], 4), 0.0)

    if name == "empty":
        assert {s for text in texts(run(network(name), batch_size=20, logits_processor=[Only()])) for s in text} == {4}
    else:

        class Never(LogitsProcessor):
            def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
                return scores.index_fill(1, torch.tensor([4]), -torch.inf)

        out = run(network(name), [[1, PATHS[name].blank_token_id, 3]] * 20, logits_processor=[Never()], max_length=9,
                  output_trajectory=True)  # fmt: skip
        found = out.trajectory
        born = found.numbers >= int((found.numbers[0] >= 0).sum(1).max())  # numbers that no first string has
        assert born.any()
        assert not (found.states == 4)[born].any()


def test_symbols__temperature_and_truncation() -> None:
    """The share of the most likely symbols grows; do_sample=False is temperature 0, and top_k=1 the same."""
    model = network("empty")
    entropies = []
    every: list[dict[str, Any]] = [
        {"temperature": 3.0}, {}, {"temperature": 0.3}, {"top_p": 0.2}, {"top_k": 1}, {"do_sample": False}
    ]  # fmt: skip
    for options in every:
        out = run(model, batch_size=40, output_trajectory=True, **options)
        entropies.append(float(out.trajectory.entropy.nanmean()))
    hot, plain, cold, some, one, likely = entropies
    assert hot > plain > cold > likely == one == 0.0
    assert plain > some
    same = [run(model, batch_size=5, do_sample=False, seed=None).sequences for _ in range(2)]
    assert torch.equal(*same)


def test_guidance__acts_on_strings() -> None:
    model = network("uniform", num_classes=2)
    samples = [
        run(model, batch_size=6, class_labels=[1] * 6, guidance_scale=scale).sequences for scale in (None, 1.0, 3.0)
    ]
    assert torch.equal(samples[0], samples[1])
    assert samples[0].shape != samples[2].shape or not torch.equal(samples[0], samples[2])


# ---- batches


@every_path
def test_batch__wider_neighbours_do_not_change_network_outputs(name: str) -> None:
    model, blank = network(name), PATHS[name].blank_token_id
    alone = torch.tensor([[1, 3]])
    beside = torch.tensor([[1, 3, blank, blank, blank], [3, 1, 4, 4, 1]])
    rates = [model.generator(x, torch.full((len(x),), 0.4)).rates(x)[0] for x in (alone, beside)]
    assert torch.allclose(rates[0], rates[1][: len(rates[0])], rtol=1e-4)  # float32
    assert not rates[1][len(rates[0]) :].any()


@pytest.mark.parametrize("sampler", ["tau_leaping", "uniformization"])
def test_batch__a_row_has_the_same_distribution_beside_longer_ones(sampler: str) -> None:
    """Lengths of 1000 samples of one prompt, alone and beside longer prompts of other limits."""
    model, number = sparse("uniform"), 1000
    short, long = [1, BLANK, BLANK, BLANK], [1, 2, BLANK, 3]
    options = {"sampler": COARSE[sampler], "max_new_tokens": 4, "num_steps": 3}
    lengths = []
    for prompts in ([short] * number, [short, long] * number):
        found = run(model, prompts, **options)
        every = found.attention_mask.sum(1)[:: len(prompts) // number]
        lengths.append(every.bincount(minlength=8) / number)
    share = (lengths[0] + lengths[1]) / 2
    assert bool(((lengths[0] - lengths[1]).abs() <= SIGMAS * (2 * share * (1 - share) / number).sqrt()).all())
    assert len(lengths[0].nonzero()) > 2


def test_batch__num_return_sequences_repeats_prompts() -> None:
    out = run(sparse("uniform"), [[1, BLANK, 3], [4, 2, BLANK]], num_return_sequences=3, max_length=6)
    assert [text[0] for text in texts(out)] == [1, 1, 1, 4, 4, 4]
    assert len({*map(tuple, texts(out)[:3])}) > 1


# ---- drafts


@every_path
@every_sampler
def test_draft__keeps_more_of_itself_the_later_it_starts(name: str, sampler: str) -> None:
    model = network(name)
    draft = torch.tensor([[1, 3, 4, 1, 3, 4]] * 40)
    kept = []
    for time in (0.1, 0.97):
        found = run(model, start_from=Draft(draft, time=time), sampler=COARSE[sampler], num_steps=8)
        kept.append(sum(text == [1, 3, 4, 1, 3, 4] for text in texts(found)))
    assert kept[0] < kept[1]
    assert kept[1] > 10


def test_draft__is_dropped_symbol_by_symbol_with_the_empty_prior() -> None:
    path: Any = PATHS["empty"]
    draft = torch.tensor([[1, 2, 3, 4, 5, 6]] * 2000)
    start = StringStart.of(path, 2000, None, draft, 6, 0, BLANK, torch.device("cpu"))
    x = start.begin(path, 0.7, rng(3))[0]
    counts = torch.stack([(x == symbol).sum() for symbol in range(1, 7)]) / 2000
    assert (counts - 0.7).abs().max() < 0.045  # 4 standard deviations of a share are 0.041
    ordered = torch.where(x == BLANK, 9, x)
    assert (ordered.diff(dim=1) >= 0).all()


@every_path
@every_sampler
def test_draft__holds_the_fixed_symbols_of_the_prompt(name: str, sampler: str) -> None:
    """The first fixed 3 is the second one of the draft, as 4 follows it."""
    blank = PATHS[name].blank_token_id
    prompt, draft = [1, blank, 3, 4, blank, 5], [1, 3, 1, 3, 4, 1, 5]
    for time in (0.0, 0.6):
        out = run(
            network(name), [prompt] * 20, attention_mask=torch.ones(20, 6), sampler=COARSE[sampler], max_length=9,
            start_from=Draft(torch.tensor([draft] * 20), time),
        )  # fmt: skip
        for text in texts(out):
            assert fits(text, [[1], [3, 4], [5]], False, False), text
            assert len(text) <= 9


def test_draft__is_never_longer_than_the_limit_with_its_noise() -> None:
    """The sources have 6 symbols, the drafts 4, and 5 are allowed."""
    path = EditPath(K, prior="uniform", lengths=[0, 0, 0, 0, 0, 0, 1.0], alignment="random")
    draft = torch.tensor([[1, 2, 3, 4]] * 200)
    prompts = read_prompts(path, torch.tensor([[1, BLANK, 4, BLANK]] * 200), None, None)
    start = StringStart.of(path, 200, prompts, draft, 5, 0, BLANK, torch.device("cpu"))
    x, fixed, _ = start.begin(path, 0.5, rng(4))
    assert x.shape[1] == 5
    assert (x[fixed].view(-1, 2) == torch.tensor([1, 4])).all()


@pytest.mark.parametrize(("pieces", "gaps", "draft", "expected"), [
    ([1, 2], [0, 0, 1], [1, 2, 3], [0, 1]),
    ([1, 2], [1, 0, 1], [3, 1, 1, 2], [2, 3]),
    ([1, 2], [0, 1, 0], [1, 3, 2, 2], [0, 3]),
    ([1, 2], [1, 1, 1], [2, 1, 2, 2], [1, 2]),
    ([1, 2], [1, 0, 0], [1, 2, 1, 2], [2, 3]),
    ([], [1], [1, 2], []),
    ([1, 2], [0, 0, 1], [3, 1, 2], None),
    ([1, 2], [1, 0, 1], [1, 3, 2], None),
    ([1, 2], [0, 1, 0], [1, 2, 3], None),
    ([1, 2], [1, 1, 1], [2, 1], None),
    ([1], [1, 1], [], None),
])  # fmt: skip
def test_occurrence__of_pieces_in_a_draft(
    pieces: list[int], gaps: list[int], draft: list[int], expected: list[int] | None
) -> None:
    where = list(map(bool, gaps))
    if expected is None:
        with pytest.raises(ValueError, match=r"no subsequence of the draft in row 7.*"):
            occurrence(pieces, where, draft, BLANK, row=7)
    else:
        found = occurrence(pieces, where, draft, BLANK)
        assert [place for place, kept in enumerate(found) if kept] == expected


def test_draft__padding_and_masks_are_no_symbols() -> None:
    path = EditPath(K)
    z = torch.tensor([[1, MASK, 2, 0, 0], [0, 1, 0, BLANK, 0]])
    assert read_draft(path, Draft(z), None, MASK, 0).tolist() == [[1, 2], [0, 1]]
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    assert read_draft(path, Draft(z), mask, None, BLANK).tolist() == [[1, MASK, BLANK], [0, 1, 0]]


# ---- outputs


@every_sampler
def test_output__counts_and_padding(sampler: str) -> None:
    model = network("uniform", pad_token_id=0)
    out = run(model, batch_size=30, sampler=COARSE[sampler], max_length=6)
    lengths = out.attention_mask.sum(1)
    assert out.sequences.shape == out.attention_mask.shape == (30, int(lengths.max()))
    assert (out.sequences[out.attention_mask == 0] == 0).all()
    assert (out.attention_mask.diff(dim=1) <= 0).all()
    if sampler in ("tau_leaping", "euler"):
        assert out.network_calls.tolist() == [6] * 30
    assert (out.jumps > 0).any()
    assert (out.error_bound is not None) == (sampler == "uniformization")
    other = run(model, batch_size=30, sampler=COARSE[sampler], max_length=6, pad_token_id=2)
    assert (other.sequences[other.attention_mask == 0] == 2).all()
    assert texts(other) == texts(out)
    assert torch.equal(
        run(model, batch_size=30, sampler=COARSE[sampler], max_length=6, return_dict_in_generate=False), out.sequences
    )


class Listener:
    def __init__(self) -> None:
        self.finished: list[Tensor] = []
        self.drafts: list[Tensor] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.finished.append(value)

    def put_draft(self, value: Tensor) -> None:
        self.drafts.append(value)

    def end(self) -> None:
        self.ended = True


def test_streamer__gets_strings_of_varying_width() -> None:
    listener = Listener()
    out = run(sparse("uniform"), batch_size=4, streamer=listener, pad_token_id=0)
    assert listener.ended
    assert len(listener.finished) == 1
    assert torch.equal(listener.finished[0], out.sequences)
    assert len({draft.shape[1] for draft in listener.drafts}) > 1
    assert all(BLANK not in draft for draft in listener.drafts)


def test_streamer__prompts_at_the_front_come_first() -> None:
    listener, prompts = Listener(), [[1, 2], [3, 4]]
    out = run(network("empty"), prompts, streamer=listener)
    first, rest = listener.finished
    assert first.tolist() == prompts
    assert torch.equal(torch.cat([first, rest], 1), out.sequences)
    other = Listener()
    out = run(network("empty"), [[1, BLANK, 2]], streamer=other)
    assert torch.equal(other.finished[0], out.sequences)


@every_sampler
def test_stopping_criteria__end_with_one_last_step(sampler: str) -> None:
    """And what was fixed is still fixed in it, wherever it has moved."""
    seen: list[Tensor] = []

    def criterion(ids: Tensor, scores: Any) -> Tensor:
        seen.append(ids)
        return torch.full((len(ids),), len(seen) == 3)

    out = run(
        network("uniform"), [[BLANK, 1, 2, BLANK, 3]] * 20, sampler=COARSE[sampler], stopping_criteria=[criterion],
        max_length=9, output_trajectory=True, num_steps=8,
    )  # fmt: skip
    assert len(seen) == 3
    assert out.trajectory.times.tolist() == [0.0, 0.125, 0.25, 0.375, 1.0]
    for text in texts(out):
        assert fits(text, [[1, 2], [3]], True, False), text


# ---- trajectories


@every_path
@every_sampler
def test_trajectory__recorded_edits_lead_from_each_string_to_the_next(name: str, sampler: str) -> None:
    model, blank = network(name), PATHS[name].blank_token_id
    out = run(
        model,
        [[blank, 1, 3, blank, 4]] * 6,
        sampler=COARSE[sampler],
        max_length=9,
        output_trajectory=True,
        pad_token_id=0,
    )
    found = out.trajectory
    assert found.times.tolist() == time_grid(model.path, 6).tolist()
    assert found.states.shape == found.numbers.shape
    width = out.sequences.shape[1]
    assert torch.equal(found.states[-1, :, :width], out.sequences)
    assert torch.equal(found.numbers[-1, :, :width] >= 0, out.attention_mask.bool())
    counts = torch.zeros(3, dtype=torch.long)
    for row in range(6):
        strings = [
            [(number, symbol) for number, symbol in zip(*pair, strict=True) if number >= 0]
            for pair in zip(found.numbers[:, row].tolist(), found.states[:, row].tolist(), strict=True)
        ]
        for step in range(6):
            old, new = strings[step], strings[step + 1]
            before, after = dict(old), dict(new)
            kept = [number for number, _ in old if number in after]
            assert kept == [number for number, _ in new if number in before]  # symbols never change places
            changed = [number for number in kept if before[number] != after[number]]
            edits = [len(after) - len(kept), len(before) - len(kept), len(changed)]
            assert found.edits[step, row].tolist() == edits
            assert int(found.jumps[step, row]) == sum(edits)
            counts += torch.tensor(edits)
            assert len(before) == len(old)
        fixed = found.numbers[-1, row][found.fixed[row]].tolist()
        for string in strings:
            assert [symbol for number, symbol in string if number in fixed] == [1, 3, 4]
    assert counts[0] > 0
    assert (counts[1:] > 0).any() == (name != "empty")
    assert found.edits.sum() <= out.jumps.sum()  # a symbol that comes and goes within a step is none
    if sampler in ("tau_leaping", "euler"):
        assert torch.equal(found.edits.sum((0, 2)), out.jumps)


def test_trajectory__observing_changes_nothing() -> None:
    for sampler in ("tau_leaping", "euler"):
        plain, seen = (
            run(network("uniform"), batch_size=5, sampler=COARSE[sampler], output_trajectory=recorded)
            for recorded in (False, True)
        )
        assert torch.equal(plain.sequences, seen.sequences)


# ---- configs


def test_config__is_saved_with_the_model(tmp_path: Path) -> None:
    model = network("uniform")
    model.generation_config = GMGenerationConfig(
        num_steps=5, sampler="uniformization", max_length=5, temperature=0.7, seed=3
    )
    model.save_pretrained(tmp_path)
    again = GMModel.from_pretrained(tmp_path)
    assert again.generation_config == model.generation_config
    prompt = torch.tensor([[1, BLANK, 2]])
    assert torch.equal(again.generate(prompt), model.generate(prompt))
    assert again.generate(batch_size=40).shape[1] <= 5
    assert again.generate(prompt, max_new_tokens=4).shape[1] <= 6  # in place of max_length


# ---- errors


@pytest.mark.parametrize(("options", "match"), [
    ({"length": 5}, "length=5 cannot be used with EditPath.*max_length"),
    ({"generation_config": GMGenerationConfig(length=5)}, "length=5 cannot be used with EditPath.*max_length"),
    ({"given": torch.zeros(1, 3)}, "given cannot be used.*input_ids"),
    ({"x_0": torch.zeros(1, 3).long()}, r"x_0 cannot be used.*start_from=Draft"),
    ({"blocks": {"length": 4}}, "blocks.*EditPath"),
    ({"use_cache": True}, "use_cache=True"),
    ({"corrector": "detailed_balance"}, "corrector=DetailedBalance"),
    ({"bad_words_ids": [[1]]}, r"bad_words_ids=\[\[1\]\].*processor"),
    ({"eos_token_id": 1}, "eos_token_id=1 cannot be used with EditPath"),
    ({"compile": True}, "compile=True cannot be used with EditPath.*shape"),
    ({"sampler": "trapezoidal"}, "sampler=Trapezoidal.*choose one of adaptive, euler, tau_leaping, uniformization"),
    ({"logits_processor": [AllowedTokens(torch.ones(4, K).bool())]}, "AllowedTokens is by position"),
    ({"pad_token_id": K}, f"pad_token_id={K}"),
    ({"max_new_tokens": 3}, "max_new_tokens=3 needs input_ids"),
    ({"input_ids": torch.tensor([[1, K]])}, f"input_ids holds ids from 1 to {K}"),
    ({"input_ids": torch.tensor([1])}, r"input_ids must be a long tensor \[B, L\]"),
    ({"input_ids": torch.tensor([[1.0]])}, r"input_ids must be a long tensor"),
    ({"input_ids": torch.ones(2, 3).long(), "max_length": 2}, "the prompt of row 0 has 3 symbols.*max_length=2"),
    ({"input_ids": torch.ones(2, LONGEST + 1).long()}, f"the prompt of row 0 has {LONGEST + 1} symbols.*={LONGEST}"),
    ({"input_ids": torch.ones(2, 3).long(), "batch_size": 3}, "batch_size has 3, input_ids has 2"),
    ({"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 4)}, r"attention_mask.*\(2, 3\).*\(2, 4\)"),
    ({"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.tensor([[1, 2, 2]])}, "numbers documents up to 2"),
    ({"start_from": Draft(torch.tensor([[1, BLANK, BLANK], [1, 2, 3]])), "max_length": 2}, "the draft of row 1 has 3"),
    ({"start_from": Draft(torch.tensor([[1, K]]))}, f"start_from holds ids from 1 to {K}"),
    ({"start_from": Draft(torch.tensor([[1, 2]])), "batch_size": 2}, "batch_size has 2, start_from has 1"),
    ({"start_from": Draft(torch.tensor([[1, 2], [2, 1]])), "input_ids": torch.tensor([[1], [1]])},
     "no subsequence of the draft in row 1"),
])  # fmt: skip
def test_generate__what_does_not_fit_strings_is_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        network("uniform").generate(**options)


def test_generate__wrong_types_are_named() -> None:
    for options, match in (
        ({"input_ids": [[1, 2]]}, "input_ids is a list"),
        ({"start_from": Draft([[1, 2]])}, "start_from is a list"),
    ):
        with pytest.raises(TypeError, match=match):
            network("uniform").generate(**options)  # pyright: ignore[reportArgumentType]


def test_generate__a_model_without_positions_for_the_prompt_warns(caplog: pytest.LogCaptureFixture) -> None:
    assert GMConfig(path=EditPath(K), max_position_embeddings=3).max_position_embeddings == 3
    assert run(network("empty"), [[1] * 4], max_new_tokens=20).sequences.shape[1] > 4
