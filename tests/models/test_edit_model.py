"""`GMModel` on strings: the loss by entries, what is not scored, padding, files, classes, backbones, and what is refused."""

from __future__ import annotations

from pathlib import Path as File
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from gm_discrete import EditPath, GMConfig, GMModel, MaskedPath, ProductPath, UniformTimeSampler, conditional_loss
from tests.helpers.networks import rng
from tests.helpers.small_run import record_inputs
from tests.helpers.string_models import LENGTHS, LONGEST, PATHS, K, network, strings, times

every_path = pytest.mark.parametrize("name", PATHS)


class Dense:
    """The same process without a `forward`: its loss is that of `generator`."""

    def __init__(self, model: Any) -> None:
        self.path, self.model = model.path, model

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None, **options: Any) -> Any:
        return self.model.generator(x, t, t_next, **options)


def loss(model: Any, z: Tensor, **options: Any) -> float:
    with torch.no_grad():
        return float(conditional_loss(model, z, rng=rng(5), time_sampler=UniformTimeSampler(), **options))


def pair(name: str, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(z, x, t): data in the columns of an aligned pair, noisy states in the same columns, and times."""
    path = PATHS[name]
    x_0, z = path.align(z, rng(1))
    t = times(len(z))
    return z, path.sample(z, t, rng(2), x_0), t


def divergences(model: Any, z: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Σ_y [a(y) log(a(y)/R(y)) − a(y) + R(y)] at every entry, [B, E], of dense rates."""
    aim, guess = model.path.conditional(z, x, t).rates(x), model.rates(x, t)
    here = torch.nn.functional.one_hot(model.path.strings.gapped(model.path.packed(x)), K).bool()
    aim, guess = aim.masked_fill(here, 0), guess.masked_fill(here, 0)
    surprise = torch.where(aim > 0, aim * (aim / guess.clamp(min=1e-300)).log(), 0.0)
    return (surprise - aim + guess).sum(-1)


# ---- The loss


@every_path
def test_forward__loss_of_strings_is_the_divergence_of_dense_rates(name: str) -> None:
    """Per symbol of the data, with the linear schedule's κ' = 1; float32 logits."""
    model = network(name)
    z, x, t = pair(name, strings(name))
    with torch.no_grad():
        found = model(input_ids=x, time=t, labels=z).loss
        expected = divergences(model, z, x, t)
    assert bool((expected >= -1e-5).all())
    count = int((z != PATHS[name].blank_token_id).sum())
    assert float(found) == pytest.approx(float(expected.sum()) / count, rel=1e-5)
    with torch.no_grad():
        other = model(input_ids=x, time=t, labels=z, num_items_in_batch=7).loss
    assert float(other) == pytest.approx(float(expected.sum()) / 7, rel=1e-5)


@every_path
def test_conditional_loss__of_a_network_of_strings_is_that_of_its_generator(name: str) -> None:
    model, z = network(name), strings(name)
    assert loss(model, z) == pytest.approx(loss(Dense(model), z), rel=1e-5)


@every_path
def test_conditional_loss__of_strings_learns_nothing_from_blanks(name: str) -> None:
    """The same strings with more blanks behind: other noise is drawn, so that the loss is compared at given states."""
    model = network(name)
    z, x, t = pair(name, strings(name))
    wide = [torch.nn.functional.pad(part, (0, 4), value=PATHS[name].blank_token_id) for part in (z, x)]
    with torch.no_grad():
        one, other = model(input_ids=x, time=t, labels=z).loss, model(input_ids=wide[1], time=t, labels=wide[0]).loss
    torch.testing.assert_close(other, one, rtol=1e-5, atol=0)


def test_conditional_loss__columns_of_data_and_state_belong_together() -> None:
    """Blanks between symbols are columns: where they stand in both does not matter, moved in one alone it does."""
    model = network("empty")
    z, x, t = pair("empty", strings("empty"))
    columns = torch.tensor([0, 2, 3, 5, 6, 8])
    wide = [torch.full((5, 10), 7).index_copy(1, columns, part) for part in (z, x)]
    with torch.no_grad():
        expected = model(input_ids=x, time=t, labels=z).loss
        torch.testing.assert_close(model(input_ids=wide[1], time=t, labels=wide[0]).loss, expected, rtol=1e-5, atol=0)


# ---- Symbols that are not scored


def open_gaps(x: list[int], scored: list[bool], blank: int) -> list[bool]:
    """Of every gap of the string x, in columns: whether a column between its symbols, or one of them, is scored."""
    found, since = [], False
    for symbol, one in zip(x, scored, strict=True):
        since = since or one
        if symbol != blank:
            found.append(since)
            since = one
    return [*found, since]


def test_conditional_loss__unscored_symbols_stay_and_have_no_loss() -> None:
    """Of insertions alone. A gap counts if a symbol beside it, or one that is missing there, is scored."""
    model, z = network("empty"), strings("empty", rows=6)
    z[5] = torch.tensor([1, 2, 3, 4, 5, 6])
    scored = torch.rand(z.shape, generator=rng(6)) < 0.4
    scored[5] = torch.tensor([False, False, False, False, True, False])
    calls = record_inputs(model)
    found = loss(model, z, scored=scored)
    (call,) = calls
    x, t = call["input_ids"], call["time"]
    assert torch.equal(x[~scored], z[~scored])
    assert bool((x[scored] != z[scored]).any())
    assert torch.equal(call["labels"][1:], torch.where(scored, z, -100)[1:])  # row 0 is empty
    with torch.no_grad():
        each = divergences(model, z, x, t)
    total = 0.0
    for row in range(6):
        gaps = open_gaps(x[row].tolist(), scored[row].tolist(), 7)
        total += sum(float(each[row, 2 * p + 1]) for p, one in enumerate(gaps) if one)
    count = int((scored & (z != 7)).sum())
    assert found == pytest.approx(total / count, rel=1e-5)
    assert total != pytest.approx(float(each.sum()), rel=0.05)


def test_conditional_loss__unscored_symbols_need_the_empty_prior() -> None:
    z = strings()
    with pytest.raises(ValueError, match=r"scored .*prior='uniform'.*prior='empty'"):
        loss(network(), z, scored=torch.arange(LONGEST) % 2 == 0 * z)
    with pytest.raises(ValueError, match="nothing is left to score"):
        loss(network("empty"), strings("empty"), scored=torch.zeros(5, LONGEST, dtype=torch.bool))


# ---- Padding


@every_path
def test_attention_mask__zeros_are_blanks(name: str) -> None:
    """Whatever symbols stand there, in the loss, in the outputs and in the rates."""
    model, z, t = network(name), strings(name), times()
    blank = PATHS[name].blank_token_id
    z[0, 0] = 5
    mask = (z != blank).long()
    other = torch.where(z == blank, (blank + 1) % K, z)
    assert loss(model, other, attention_mask=mask) == pytest.approx(loss(model, z), rel=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model.rates(other, t, mask), model.rates(z, t), rtol=1e-5, atol=1e-6)
        outputs = [model(input_ids=z, time=t), model(input_ids=other, time=t, attention_mask=mask)]
        assert outputs[0].logits.shape == (5, 2 * (LONGEST + 1), K)
        assert outputs[0].last_hidden_state.shape == (5, LONGEST + 1, 32)
        torch.testing.assert_close(outputs[1].logits, outputs[0].logits, rtol=1e-5, atol=1e-5)


@every_path
def test_attention_mask__an_empty_string_is_data(name: str) -> None:
    """Nothing is to be inserted there, which is learnt from it."""
    model, z, t = network(name), strings(name)[:1], times(1)
    blank, empty = PATHS[name].blank_token_id, torch.zeros_like(z)
    assert bool((z == blank).all())
    both = torch.stack([z[0], strings(name)[3]]), torch.tensor([[0] * LONGEST, [1] * LONGEST])
    assert loss(model, both[0], attention_mask=both[1]) == pytest.approx(loss(model, both[0]), rel=1e-5)
    assert float(model.generator(z, t, attention_mask=empty).intensity.detach()[0, 1]) > 0
    source = torch.full_like(both[0], blank)
    data, scored, x_0 = model.path.aligned(both[0], both[1].bool(), rng(0), source)
    x = model.path.sample(data, times(2), rng(1), x_0)
    assert bool(model.path.compared(x, scored)[1][0, 1])


def test_attention_mask__documents_are_refused() -> None:
    mask = torch.ones(5, LONGEST, dtype=torch.long)
    mask[:, 3:] = 2
    for call in (
        lambda: loss(network(), strings(), attention_mask=mask),
        lambda: network().generator(strings(), times(), attention_mask=mask),
        lambda: network()(input_ids=strings(), time=times(), attention_mask=mask),
    ):
        with pytest.raises(ValueError, match="attention_mask numbers documents up to 2"):
            call()


# ---- Rates


@every_path
def test_rates__of_strings_insert_delete_and_substitute(name: str) -> None:
    model, x, t = network(name), strings(name), times()
    with torch.no_grad():
        rates, jump = model.rates(x, t), model.generator(x, t)
    blank, entry = PATHS[name].blank_token_id, model.path.strings.gapped(x)
    torch.testing.assert_close(rates.sum(-1), torch.zeros(5, 2 * (LONGEST + 1)).double(), rtol=0, atol=1e-6)
    off = rates.scatter(2, entry[..., None], 0.0)
    assert bool((off >= 0).all())
    torch.testing.assert_close(off.sum(-1), jump.intensity, rtol=1e-5, atol=1e-6)
    gaps, symbols = off[:, 1::2], off[:, 2::2]
    here = torch.arange(LONGEST + 1) <= (x != blank).sum(1)[:, None]
    assert bool((gaps.sum(-1) > 0)[here].all())
    assert not bool(gaps[..., blank].any())  # an insertion writes a symbol
    deletes, substitutes = symbols[..., blank], symbols.sum(-1) - symbols[..., blank]
    if name == "empty":
        assert not bool(symbols.any())
    else:
        assert bool((deletes > 0)[x != blank].all())
        assert bool((substitutes > 0)[x != blank].all())
    assert not bool(off[:, 0].any())
    with torch.no_grad():
        assert bool(model.rates(x, torch.ones(5).double()).isfinite().all())  # n/(1 − κ) stays finite as κ → 1


# ---- Files, classes, backbones


@pytest.mark.parametrize("name", ["empty", "blank is 2"])
def test_files__a_model_of_strings_is_saved_and_loaded(tmp_path: File, name: str) -> None:
    model, x, t = network(name), strings(name), times()
    model.save_pretrained(tmp_path)
    for kind in (GMModel, AutoModel):
        again = kind.from_pretrained(tmp_path)
        assert again.path == model.path
        assert again.state_dict().keys() == model.state_dict().keys()
        assert {"heads.edits.weight", "heads.gap.weight", "heads.tokens.weight"} <= again.state_dict().keys()
        with torch.no_grad():
            torch.testing.assert_close(again.rates(x, t), model.rates(x, t), rtol=0, atol=0)
    assert again.path.prior_name == PATHS[name].prior_name
    if name != "empty":
        assert again.path.lengths == pytest.approx([part / sum(LENGTHS) for part in LENGTHS])
        assert again.path.alignment == "random"


def test_new_model__of_strings_predicts_the_same_everywhere() -> None:
    """Its heads start at zero: insertions are uniform over the symbols, half of the other edits delete."""
    config = GMConfig(path=PATHS["uniform"], hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    model, x, t = GMModel(config).eval(), strings(), times()
    with torch.no_grad():
        jump = model.generator(x, t)
        logits = model(input_ids=x, time=t).logits
    assert set(logits[logits.isfinite()].tolist()) == {0.0}
    assert int((~logits.isfinite()).sum()) == 5 * 2 * (LONGEST + 1) + int((x != 7).sum())
    left, symbols = (1 - t)[:, None], x != 7
    # Raw outputs of 0 are odds of 1 − κ for a deletion, and as many for a substitution.
    torch.testing.assert_close(jump.intensity[:, 2::2][symbols], (2 / (1 + 2 * left)).expand_as(x)[symbols])
    torch.testing.assert_close(
        jump.kernel.log_delete.view(5, -1)[:, 2::2].exp(), torch.full((5, LONGEST), 0.5).double()
    )


def test_classes__condition_the_edits() -> None:
    model, x, t = network(num_classes=2, class_dropout=0.5), strings(), times()
    labels = torch.tensor([0, 1, 0, 1, -1])
    with torch.no_grad():
        rates = [model.rates(x, t, class_labels=given) for given in (None, labels, 1 - labels.clamp(min=0))]
    assert torch.equal(rates[0][4], rates[1][4])
    assert all(float((rates[1][row] - rates[2][row]).abs().max()) > 1e-2 for row in range(4))
    assert loss(model, x, class_labels=labels) != loss(model, x)
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0 needs class_labels"):
        model.rates(x, t, guidance_scale=2.0)


def test_tie_word_embeddings__the_symbols_of_strings_share_one_matrix(tmp_path: File) -> None:
    model = network(tie_word_embeddings=True)
    assert model.heads["tokens"].weight is model.backbone.embed_tokens.weight
    model.save_pretrained(tmp_path)
    again = GMModel.from_pretrained(tmp_path)
    assert again.heads["tokens"].weight is again.backbone.embed_tokens.weight
    assert loss(again, strings()) == loss(model, strings())


def test_dit__works_on_strings(tmp_path: File) -> None:
    """It is conditioned on −log κ, clamped: finite at t = 0, where κ = 0."""
    model = network(backbone="dit", condition_size=16)
    z, x, t = pair("uniform", strings())
    t[0] = 0.0
    x[0] = 7
    with torch.no_grad():
        found, expected = model(input_ids=x, time=t, labels=z).loss, divergences(model, z, x, t)
    assert float(found) == pytest.approx(float(expected.sum()) / int((z != 7).sum()), rel=1e-5)
    model.save_pretrained(tmp_path)
    assert loss(GMModel.from_pretrained(tmp_path), strings()) == loss(model, strings())


# ---- What is refused


def test_errors__of_strings_name_the_argument_and_the_value() -> None:
    model, x, t = network(), strings(), times()
    wrong = x.clone()
    wrong[2, 0] = K
    for call in (
        lambda: model(input_ids=wrong, time=t, labels=x),
        lambda: model(input_ids=x, time=t, labels=wrong),
        lambda: model.generator(wrong, t),
        lambda: loss(model, wrong),
    ):
        with pytest.raises(ValueError, match=rf"ids from \d to {K}; vocab_size={K}"):
            call()
    with pytest.raises(ValueError, match="nothing is left to score"):
        loss(model, x[:, :0])
    with pytest.raises(ValueError, match="nothing is left to score"):
        loss(model, x, attention_mask=torch.zeros_like(x))
    with pytest.raises(ValueError, match="labels has shape"):
        model(input_ids=x, time=t, labels=x[:, :3])
    with pytest.raises(ValueError, match="inputs_embeds has no blanks"):
        model(inputs_embeds=torch.zeros(5, LONGEST, 32), input_ids=x, time=t)
    with torch.no_grad():
        model.heads["edits"].weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="infinite"):
        model.rates(x, t)


def test_config__of_strings_refuses_what_does_not_fit() -> None:
    path = PATHS["empty"]
    for options, message in (
        ({"image_shape": [1, 2, 3]}, r"image_shape=\[1, 2, 3\] .*strings"),
        ({"block_size": 2}, "block_size=2 requires a MaskedPath"),
        ({"divergence": "cross_entropy"}, "divergence='cross_entropy'"),
        ({"vocab_size": K + 1}, f"vocab_size={K + 1}"),
        ({"aligned": [["a"]]}, "aligned"),
        ({"shift": True}, "shift=True"),
    ):
        with pytest.raises(ValueError, match=message):
            GMConfig(path=path, **options)  # type: ignore[arg-type]


def test_product__strings_are_no_field() -> None:
    with pytest.raises(ValueError, match=r"field 'text' has EditPath\(.*alone"):
        ProductPath(text=EditPath(4), kind=MaskedPath(3))


def test_forward__refuses_data_with_the_marker_of_gaps() -> None:
    """No edit writes it, so that its loss would be infinite."""
    model = network(mask_token_id=3)
    with pytest.raises(ValueError, match="labels hold the id 3"):
        conditional_loss(model, torch.tensor([[0, 3, 2]]))
