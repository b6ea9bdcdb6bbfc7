"""Strings on networks of transformers: a decoder's next token is what the gap after a position starts with."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path as File
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from gm_discrete import EditPath, GMConfig, GMModel, UniformTimeSampler, conditional_loss
from gm_discrete.data import character_tokenizer
from gm_discrete.nn import readout as readout_module
from tests.helpers.backbones import (
    ARCHITECTURES,
    DECODERS,
    ENCODERS,
    FEW,
    PAD,
    V,
    config_of,
    original,
    randomised,
)
from tests.helpers.networks import readout, rng

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
every_decoder = pytest.mark.parametrize("name", DECODERS)
few = pytest.mark.parametrize("name", FEW)
BLANK = PAD
LENGTHS = [0.2, 0.3, 0.5]


def path(prior: str = "uniform", size: int = V) -> EditPath:
    return EditPath(size, prior=prior, lengths=LENGTHS if prior == "uniform" else None, blank_token_id=BLANK)


def network(name: str, prior: str = "uniform", **options: Any) -> Any:
    own = original(name, mask_token_id=None)
    return GMModel.from_backbone(own, path(prior), **options).eval()


def strings(rows: int = 3, width: int = 8, seed: int = 3) -> Tensor:
    """Strings of all, of one symbol fewer, … followed by blanks."""
    z = torch.randint(V - 1, (rows, width), generator=rng(seed))
    z = z + (z >= BLANK)
    return torch.where(torch.arange(width) < width - 2 * torch.arange(rows)[:, None], z, BLANK)


def times(rows: int = 3) -> Tensor:
    return torch.linspace(0.2, 0.8, rows).double()


def expected_rows(logits: Tensor, x: Tensor) -> Tensor:
    """Those of all entries [B, E, K], of logits [B, L + 1, K] of positions: −∞ for the blank, and for a symbol itself."""
    rows = logits.repeat_interleave(2, 1)
    rows[..., BLANK] = -torch.inf
    symbols = torch.full(rows.shape[:2], BLANK)
    symbols[:, 2::2] = x
    return rows.scatter(2, symbols[..., None], -torch.inf)


# ---- At initialisation


@torch.no_grad()
@every_decoder
def test_from_backbone__gaps_of_a_decoder_start_with_its_next_tokens(name: str) -> None:
    """Gap p, and the symbol at position p, have the logits that the decoder has at position p, for the token after it.

    Position 0 is the blank. With the causal attention of the decoder they are its own, bit for bit.
    """
    own, model, x = original(name, mask_token_id=None), network(name), strings(1)
    assert model.config.shift is False
    model.backbone.ahead = 0.0
    logits = own(input_ids=nn.functional.pad(x, (1, 0), value=BLANK)).logits
    found = readout(model, x, times(1))
    assert torch.equal(found("tokens").unflatten(0, (1, -1)), expected_rows(logits, x))
    assert torch.equal(found("edits"), torch.zeros(1, 9, 3))


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODERS)
def test_from_backbone__entries_of_an_encoder_start_with_its_predictions(name: str) -> None:
    own, model, x = original(name, mask_token_id=None), network(name), strings(1)
    assert model.config.shift is False
    if name == "esm":  # as for other paths
        own.esm.embeddings.token_dropout = False
    given: dict[str, Any] = {}
    if name == "roberta":  # which counts no padding, and the start of a string is a position
        given["position_ids"] = torch.arange(9)[None] + PAD + 1
    logits = own(input_ids=nn.functional.pad(x, (1, 0), value=BLANK), attention_mask=torch.ones(1, 9), **given).logits
    found = readout(model, x, times(1))("tokens").unflatten(0, (1, -1))
    expected = expected_rows(logits, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@few
def test_from_backbone__strings_are_read_in_both_directions_and_blanks_never(name: str) -> None:
    model, x, t = network(name), strings(), times()
    randomised(model.heads["gap"])
    dense = model.rates(x, t)
    other = x.clone()
    other[0, -1] = (x[0, -1] + 1) % V + ((x[0, -1] + 1) % V == BLANK).long()
    assert float((model.rates(other, t)[0, 1] - dense[0, 1]).abs().max()) > 1e-4
    wide = model.rates(nn.functional.pad(x, (0, 5), value=BLANK), t)
    torch.testing.assert_close(wide[:, : dense.shape[1]], dense, rtol=1e-3, atol=1e-4)
    alone = model.rates(x[2:, :4], t[2:])
    torch.testing.assert_close(alone, dense[2:, : alone.shape[1]], rtol=1e-3, atol=1e-4)


# ---- Symbols, shift, lengths


@few
def test_from_backbone__shift_does_not_fit_strings(name: str) -> None:
    own = original(name, mask_token_id=None)
    with pytest.raises(ValueError, match=r"shift=True .*EditPath"):
        GMModel.from_backbone(own, path(), shift=True)
    with pytest.raises(ValueError, match=r"shift=True .*EditPath"):
        GMConfig(path=path(), backbone=config_of(name), shift=True)
    assert GMModel.from_backbone(own, path(), shift=False).config.shift is False
    assert GMModel.from_backbone(own).config.shift == (name == "llama")  # of other paths


@few
def test_from_backbone__edits_have_the_padding_token_as_their_blank(name: str) -> None:
    """That of the tokenizer, or of the config, or else a new symbol, whose rows are the mean of the others."""
    own, tokenizer = original(name, mask_token_id=None), character_tokenizer(alphabet="abc")
    assert GMModel.from_backbone(own, "edits").path == EditPath(V, blank_token_id=PAD)
    model = GMModel.from_backbone(own, "edits", tokenizer=tokenizer)
    assert model.path == EditPath(V, blank_token_id=tokenizer.pad_token_id)  # type: ignore[arg-type]
    assert model.config.pad_token_id == tokenizer.pad_token_id
    own.config.pad_token_id = None
    model = GMModel.from_backbone(own, "edits")
    assert model.path == EditPath(V + 1)
    weight: Any = model.get_input_embeddings().weight
    torch.testing.assert_close(weight[V], weight[:V].mean(0), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=rf"vocab_size={V - 1}; give at least {V}"):
        GMModel.from_backbone(own, EditPath(V - 1))


def test_from_backbone__the_start_of_a_string_takes_one_of_the_positions() -> None:
    """BERT has 32 of them, and a string of 31 symbols needs all."""
    model = network("bert")
    assert model.config.max_position_embeddings == 31
    full = strings(1, width=31)
    assert bool(model.rates(full, times(1)).isfinite().all())
    with pytest.raises(ValueError, match="33 positions, and bert has 32"):
        model.rates(strings(1, width=32), times(1))
    assert network("llama").config.max_position_embeddings == 63


# ---- The loss, files, random weights


def losses(model: Any, z: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss = conditional_loss(model, z, rng=rng(7), time_sampler=UniformTimeSampler())
    loss.backward()
    return [loss.detach(), *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)]


@few
@pytest.mark.parametrize("prior", ["empty", "uniform"])
def test_from_backbone__loss_of_strings_reaches_every_layer_and_is_fused(
    name: str, prior: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, z = network(name, prior), strings()
    randomised(model.heads["gap"])
    randomised(model.heads["edits"])
    found = losses(model, z)
    trained = {key for key, weight in model.named_parameters() if weight.grad is not None and bool(weight.grad.any())}
    assert {"heads.edits.weight", "heads.edits.bias", "heads.gap.weight"} <= trained
    assert model.heads["tokens"].weight.grad.any()
    assert model.get_input_embeddings().weight.grad[BLANK].any()  # of the start
    monkeypatch.setattr(readout_module, "is_linear", lambda _: False)
    for value, reference in zip(found, losses(model, z), strict=True):
        assert float((value - reference).norm()) <= 1e-4 * float(reference.norm()) + 1e-5


@few
def test_from_backbone__a_model_of_strings_is_saved_and_loaded(name: str, tmp_path: File) -> None:
    model, x, t = network(name), strings(), times()
    for part in ("gap", "edits"):
        randomised(model.heads[part])
    model.save_pretrained(tmp_path)
    for kind in (GMModel, AutoModel):
        again: Any = kind.from_pretrained(tmp_path)
        assert again.path == model.path
        assert again.config.shift is False
        with torch.no_grad():
            torch.testing.assert_close(again.rates(x, t), model.rates(x, t), rtol=0, atol=0)


@few
def test_gm_model__of_strings_with_a_config_as_backbone_starts_at_zero(name: str) -> None:
    config = GMConfig(path=path("empty"), backbone=deepcopy(config_of(name)))
    model: Any = GMModel(config).eval()
    assert config.shift is False
    assert not any(bool(weight.any()) for part in ("edits", "gap") for weight in model.heads[part].parameters())
    found = losses(model, strings())
    assert bool(found[0].isfinite())
    again = GMConfig.from_dict(config.to_dict())
    assert again.shift is False
    assert again.build_path() == config.build_path()


def test_from_backbone__new_heads_have_the_precision_of_the_language_model() -> None:
    own = original("llama", mask_token_id=None).to(torch.bfloat16)
    model: Any = GMModel.from_backbone(own, path())
    assert {weight.dtype for weight in model.heads.parameters()} == {torch.bfloat16}
    rates = model.rates(strings(), times())
    assert rates.dtype == torch.float64
    assert bool(rates.isfinite().all())
