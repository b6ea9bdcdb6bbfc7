"""The readout of strings: which position an entry is read at, in which precision, with which guidance; and its loss."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import LogitsProcessor, LogitsProcessorList

from gm_discrete import UniformTimeSampler, conditional_loss
from gm_discrete.nn import head, readout
from gm_discrete.nn.edit_readout import EditReadout
from gm_discrete.nn.head import padded_linear
from tests.helpers.chunks import set_chunks
from tests.helpers.networks import readout as readout_of
from tests.helpers.networks import rng
from tests.helpers.string_models import LONGEST, PATHS, K, entries, excluded, network, spread, strings, times

every_path = pytest.mark.parametrize("name", PATHS)


def all_outputs(model: Any, x: Tensor, t: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """(edits [B, L + 1, n], logits [B, E, K]) of strings without blanks between their symbols."""
    with torch.no_grad():
        found = readout_of(model, x, t, **options)
        return found("edits"), found("tokens").unflatten(0, (len(x), -1))


def symbols_of(x: Tensor, blank: int) -> list[list[int]]:
    return [[symbol for symbol in row if symbol != blank] for row in x.tolist()]


# ---- Entries and positions


@every_path
def test_edit_readout__reads_every_entry_at_its_position(name: str) -> None:
    """Against each string alone, one entry after another: the symbol at position p from h, the gap after it from h + U h.

    Sums of float32 in other orders, of outputs of size 5.
    """
    model, x, t = network(name), strings(name), times()
    edits, logits = all_outputs(model, x, t)
    assert edits.shape == (5, LONGEST + 1, model.path.heads["edits"])
    assert logits.shape == (5, 2 * (LONGEST + 1), K)
    blank = PATHS[name].blank_token_id
    with torch.no_grad():
        for row, symbols in enumerate(symbols_of(x, blank)):
            expected = entries(model, symbols, float(t[row]))
            count = len(expected)
            assert count == 2 * (len(symbols) + 1)
            dense = excluded(torch.stack([part for _, part in expected]), symbols, blank)
            torch.testing.assert_close(logits[row, :count], dense, rtol=1e-4, atol=1e-4)
            raw = torch.stack([part for part, _ in expected[::2]])
            torch.testing.assert_close(edits[row, : count // 2], raw, rtol=1e-4, atol=1e-4)


def test_edit_readout__rows_are_those_of_all_in_any_order() -> None:
    model, x, t = network(), strings(), times()
    said = readout_of(model, x, t)
    assert isinstance(said, EditReadout)
    with torch.no_grad():
        dense = said("tokens")
        for where in ([3], [69, 0, 7, 7], []):
            rows = torch.tensor(where, dtype=torch.long)
            torch.testing.assert_close(said("tokens", rows), dense[rows], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"head='flow'.*'tokens', 'edits'"):
        said("flow")


@every_path
@pytest.mark.parametrize("backbone", [{}, {"conv_kernel_size": 3}, {"backbone": "dit", "condition_size": 16}])
def test_edit_readout__blanks_and_other_rows_never_matter(name: str, backbone: dict[str, Any]) -> None:
    """Strings in 13 places, with blanks anywhere between their symbols, beside others: rates and symbols are the same."""
    model, x, t = network(name, **backbone), strings(name), times()
    blank, wide = PATHS[name].blank_token_id, 13
    moved = spread(x, blank, wide)
    with torch.no_grad():
        jumps = [model.generator(x, t), model.generator(moved, t)]
        alone = model.generator(x[3:4], t[3:4])
        rates = [jump.rates(state) for jump, state in zip([*jumps, alone], [x, moved, x[3:4]], strict=True)]
    torch.testing.assert_close(rates[1][:, : rates[0].shape[1]], rates[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rates[2], rates[0][3:4], rtol=1e-4, atol=1e-5)
    assert float(rates[0][3].abs().max()) > 0.1
    for row, symbols in enumerate(symbols_of(x, blank)):  # nothing happens beyond the end
        assert not bool(rates[1][row, 2 * (len(symbols) + 1) :].any())


def test_edit_readout__the_start_is_read_before_the_first_symbol() -> None:
    """Gap 0 depends on what comes after it, and the start itself has neither rate nor symbol to lose."""
    model, t = network(), torch.tensor([0.5]).double()
    x = torch.tensor([[1, 4]])
    with torch.no_grad():
        jump = model.generator(x, t)
        other = model.generator(torch.tensor([[1, 3]]), t)
    assert float(jump.intensity[0, 0]) == 0
    assert bool((jump.intensity[0, 1:] > 0).all())
    assert float(jump.intensity[0, 1]) != float(other.intensity[0, 1])
    empty = model.generator(torch.full((1, 3), 7), t)
    assert (empty.intensity > 0).tolist() == [[False, True]]  # only gap 0 is there


def test_edit_readout__position_numbers_are_those_of_the_string() -> None:
    """Rotary positions of the first symbol are 1, of the start 0: swapping two symbols is no permutation of outputs."""
    model, t = network(), torch.tensor([0.5]).double()
    one, two = (all_outputs(model, torch.tensor([row]), t)[0][0] for row in ([1, 4], [4, 1]))
    assert float((one[[0, 2, 1]] - two).abs().max()) > 1e-2


# ---- Precision


def test_edit_readout__outputs_are_float32_whatever_the_weights() -> None:
    x, t = strings(), times()
    expected = all_outputs(network(), x, t)
    half = network().to(torch.bfloat16)
    found = all_outputs(half, x, t)
    with torch.autocast("cpu", torch.bfloat16):
        cast = all_outputs(network(), x, t)
    for outputs in (found, cast):
        for part, reference in zip(outputs, expected, strict=True):
            assert part.dtype == torch.float32
            open_ = reference.isfinite()
            assert torch.equal(part.isfinite(), open_)
            # Two blocks in bfloat16, with 8 bits: 5 % of the size of the outputs.
            size = float(reference[open_].abs().max())
            assert float((part - reference)[open_].abs().max()) < 0.05 * size
            assert not torch.equal(part, reference)
    jump = half.generator(x, t)
    assert jump.intensity.dtype == torch.float64  # rates close to κ = 1 need it


# ---- Guidance and processors


def test_edit_readout__guidance_is_on_log_rates_odds_and_symbols() -> None:
    """γ = 2.5: every output u + γ (c − u), and so λ_ins = λ_u (λ_c/λ_u)^γ."""
    model, x, t = network(num_classes=3), strings(), times()
    labels, scale = torch.tensor([0, 1, 2, 0, 1]), 2.5
    with_class = all_outputs(model, x, t, class_labels=labels)
    without = all_outputs(model, x, t)
    found = all_outputs(model, x, t, class_labels=labels, guidance_scale=scale)
    for c, u, guided in zip(with_class, without, found, strict=True):
        expected = torch.where(u.isfinite(), u + scale * (c - u), -torch.inf)
        assert float((c - u).nan_to_num(0).abs().max()) > 0.1
        torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        jumps = [
            model.generator(x, t, **options)
            for options in (
                {"class_labels": labels}, {}, {"class_labels": labels, "guidance_scale": scale},
            )
        ]  # fmt: skip
    c, u, guided = (jump.intensity for jump in jumps)
    gaps = torch.arange(c.shape[1]) % 2 == 1
    here = (u > 0) & gaps
    torch.testing.assert_close(guided[here], (u * (c / u) ** scale)[here], rtol=1e-4, atol=1e-6)
    symbols = (u > 0) & ~gaps
    left = (1 - t)[:, None].expand_as(u)[symbols]
    odds = [
        jump.intensity[symbols] / (1 - left * jump.intensity[symbols]) for jump in jumps
    ]  # linear κ: hazard · left = 1
    parts = []
    for jump, total in zip(jumps, odds, strict=True):
        share = jump.kernel.log_delete.view_as(u)[symbols].double()
        parts.append((total * share.exp(), total * (1 - share.exp())))  # of a deletion, of a substitution
    for k in range(2):
        expected = parts[1][k] * (parts[0][k] / parts[1][k]) ** scale
        torch.testing.assert_close(parts[2][k], expected, rtol=1e-3, atol=1e-5)


def test_edit_readout__logits_processors_get_strings_and_entries() -> None:
    model, x, t = network(), strings(), times()
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    class Favourite(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor, time: Any = None, position: Any = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            seen.append((input_ids, time, position))
            return scores.index_fill(1, torch.tensor([0, 1, 2, 3, 4, 6]), -torch.inf)

    jump = model.generator(spread(x, 7, 9), t, logits_processor=LogitsProcessorList([Favourite()]))
    where = torch.tensor(
        [1, 17, 44]
    )  # gap 0 of row 0, gap 1 of row 1, the first symbol of row 3 … in rows of 14 entries
    with torch.no_grad():
        rows = jump.kernel.belief.log_probs(where)
    (ids, time, position) = seen[0]
    assert torch.equal(ids, x[[0, 1, 3]])
    assert torch.equal(time, t[[0, 1, 3]])
    assert torch.equal(position, where)
    assert rows.argmax(1).tolist() == [5, 5, 5]
    seen.clear()
    model.generator(x, t, logits_processor=lambda ids, scores: seen.append((ids, scores, scores)) or scores).rates(x)
    assert torch.equal(seen[0][0].unique_consecutive(dim=0), x)  # a plain function as well


def test_edit_readout__on_read_observes_the_symbols() -> None:
    model, x, t = network(), strings(), times()
    seen: list[tuple[Tensor, Tensor]] = []
    jump = model.generator(x, t, on_read=lambda rows, sequence: seen.append((rows, sequence)))
    jump.kernel.belief.log_probs(torch.tensor([1, 17]))
    assert seen[0][0].shape == (2, K)
    assert seen[0][1].tolist() == [0, 1]


# ---- Processes that share weights


def test_edit_readout__whole_batches_call_the_head_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever must be read, and however short the strings of a process are: 5 · 14 rows of 8 in chunks of 10."""
    set_chunks(10 * K, monkeypatch)
    monkeypatch.setattr(readout, "is_linear", lambda _: False)
    model, z = network("empty"), strings("empty")
    model.whole_batches = True
    sizes: dict[str, list[int]] = {"tokens": [], "gap": [], "edits": []}
    for name, calls in sizes.items():
        model.heads[name].register_forward_pre_hook(lambda _, args, calls=calls: calls.append(len(args[0])))
    for width, kept in ((LONGEST, False), (3, False), (3, True)):
        data = z[:, :width]
        x = data if kept else torch.full_like(data, 7)
        for calls in sizes.values():
            calls.clear()
        model(input_ids=x, time=torch.full((5,), 0.5).double(), labels=data)
        assert [len(calls) for calls in sizes.values()] == [7, 7, 1]


# ---- The loss


def losses(model: Any, z: Tensor, **options: Any) -> list[Tensor]:
    model.zero_grad()
    loss = conditional_loss(model, z, rng=rng(7), time_sampler=UniformTimeSampler(), **options)
    loss.backward()
    return [loss.detach(), *(weight.grad.clone() for weight in model.parameters())]


@every_path
@pytest.mark.parametrize("tied", [False, True])
def test_conditional_loss__of_strings_fused_is_dense(monkeypatch: pytest.MonkeyPatch, name: str, tied: bool) -> None:
    """Chunks of three rows, padded to a multiple of 4, against logits that autograd keeps whole; also of the gap."""
    model, z = network(name, tie_word_embeddings=tied), strings(name)
    with monkeypatch.context() as whole:
        whole.setattr(readout, "is_linear", lambda _: False)
        expected = losses(model, z)
    calls: list[int] = []
    monkeypatch.setattr(head, "padded_linear", lambda *given: padded_linear(*given[:3], multiple=4))
    set_chunks(3 * K, monkeypatch)
    monkeypatch.setattr(readout, "chunk_rows", lambda *_: calls.append(1) or 3)
    found = losses(model, z)
    assert calls == [1]
    least = 1e-7 * float(torch.stack([reference.norm() for reference in expected]).norm())
    for value, reference in zip(found, expected, strict=True):
        assert float((value - reference).norm()) <= 1e-5 * float(reference.norm()) + least
    assert float(model.heads["gap"].weight.grad.norm()) > 1e-3
    assert all(bool(weight.grad.any()) for weight in model.parameters())


def test_conditional_loss__of_strings_with_gradient_checkpointing_and_accumulation_is_the_same() -> None:
    model, z = network().train(), strings()
    expected = losses(model, z)
    model.gradient_checkpointing_enable()
    for value, reference in zip(losses(model, z), expected, strict=True):
        torch.testing.assert_close(value, reference)
    conditional_loss(model, z, rng=rng(7), time_sampler=UniformTimeSampler()).backward()
    for weight, reference in zip(model.parameters(), expected[1:], strict=True):
        torch.testing.assert_close(weight.grad, 2 * reference)


def test_conditional_loss__of_strings_in_bfloat16_is_close() -> None:
    """Within 5 % of float32 for two blocks with 8 bits, and float32 itself."""
    model, z = network("empty"), strings("empty")
    expected = losses(model, z)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(model, z)
    assert found[0].dtype == torch.float32
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=0.05)
    assert float(found[0]) != float(expected[0])
    assert all(value.dtype == torch.float32 for value in found)
    gradient, reference = (torch.cat([part.flatten() for part in parts[1:]]) for parts in (found, expected))
    assert float((gradient - reference).norm()) < 0.1 * float(reference.norm())


# ---- Compiled layers


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_compiled")
def test_compile_layers__of_strings_computes_the_same_in_other_widths_and_batches() -> None:
    """L + 1 positions: each kind of layer is compiled once, and the widths once more, for all of them."""
    plain = network()
    model = copy.deepcopy(plain)
    model.compile_layers(backend="eager", fullgraph=True)
    counts = []
    for width, rows in ((6, 5), (9, 5), (4, 3), (11, 2)):
        z, found = strings(rows=rows, width=width), []
        for part in (plain, model):
            found.append(losses(part, z))
        for value, reference in zip(*found, strict=True):
            torch.testing.assert_close(value, reference, rtol=1e-4, atol=1e-6)
        counts.append(counters["stats"]["unique_graphs"])
    assert counts == [3, 6, 6, 6]  # blocks, the last one, and its feed-forward network; then each for any width
    assert not counters["graph_break"]
