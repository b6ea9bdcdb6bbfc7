"""Networks of transformers as backbones: what they compute, to what they attend, and what the head makes of it.

One battery over tiny random networks of ten architectures: with their own attention they are the originals, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel
from transformers import modeling_flash_attention_utils as flash
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gm_discrete import GMModel, UniformPath, UniformTimeSampler, conditional_loss
from gm_discrete.nn import readout as readout_module
from tests.helpers.backbones import (
    ARCHITECTURES,
    DECODERS,
    ENCODERS,
    LENGTH,
    MASK,
    PAD,
    V,
    data,
    network,
    noisy,
    original,
    raw_logits,
    shifted,
)
from tests.helpers.networks import readout, rng

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
every_decoder = pytest.mark.parametrize("name", DECODERS)
implementations = pytest.mark.parametrize("implementation", ["sdpa", "eager"])
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
"""Logits of size 1 from float32 sums that run in another order."""
RIGHT = torch.tensor([[1] * 10, [1] * 6 + [0] * 4, [1] + [0] * 9])
PADDED = torch.tensor([[0] * 4 + [1] * 6, [1] * 7 + [0] * 3, [0] * 2 + [1] * 5 + [0] * 3])
"""On the left, on the right, and on both sides."""
DOCUMENTS = torch.tensor([[1] * 4 + [2] * 6, [7] * 3 + [2] * 5 + [0] * 2, [0] + [3] * 4 + [1] * 5])


# ---- The original


def without_token_dropout(own: Any) -> Any:
    """ESM multiplies embeddings by 0.88 / (share of tokens that are no mask), which is infinite at t = 0; we do not."""
    if own.config.model_type == "esm":
        own.esm.embeddings.token_dropout = False
        own.esm.embeddings.word_embeddings.weight.data[MASK] = 0
    return own


@torch.no_grad()
@every_architecture
@implementations
def test_backbone__logits_are_those_of_the_original(name: str, implementation: str) -> None:
    """Of a decoder with causal attention: position i has those of i − 1 with a shift, else its own."""
    own, x = without_token_dropout(original(name, attn_implementation=implementation)), noisy(data())
    expected = own(input_ids=x).logits
    model = network(name, attn_implementation=implementation)
    assert model.config.shift == (name in DECODERS)
    if name in ENCODERS:
        assert torch.equal(raw_logits(model, x), expected)
        return
    plain = network(name, attn_implementation=implementation, shift=False)
    model.backbone.ahead = plain.backbone.ahead = 0
    assert torch.equal(raw_logits(plain, x), expected)
    assert torch.equal(raw_logits(model, x), shifted(expected))


@torch.no_grad()
def test_backbone__esm_is_the_original_at_the_share_of_masks_of_its_training() -> None:
    """12 %, and finite where all tokens are masks."""
    own, model, x = original("esm"), network("esm"), data(length=25)
    x[:, [2, 11, 17]] = MASK
    found, expected = raw_logits(model, x), own(input_ids=x).logits
    symbols = [symbol for symbol in range(V) if symbol != MASK]  # no belief is about the mask
    torch.testing.assert_close(found[..., symbols], expected[..., symbols], rtol=1e-4, atol=1e-5)
    assert bool(raw_logits(model, torch.full_like(x, MASK)).isfinite().all())
    assert not bool(own(input_ids=torch.full_like(x, MASK)).logits.isfinite().all())


@torch.no_grad()
@every_decoder
def test_backbone__causal_attention_with_padding_is_that_of_the_original(name: str) -> None:
    own, x = original(name), noisy(data())
    model = network(name)
    model.backbone.ahead = 0
    expected = shifted(own(input_ids=x, attention_mask=RIGHT).logits)
    torch.testing.assert_close(raw_logits(model, x, RIGHT)[RIGHT.bool()], expected[RIGHT.bool()], **CLOSE)


@torch.no_grad()
@every_architecture
def test_backbone__logits_of_a_model_are_those_of_a_posterior(name: str) -> None:
    """At a mask those of the original without the mask itself; an observed symbol is certain."""
    model, x = network(name), noisy(data())
    logits, raw = model(input_ids=x).logits, raw_logits(model, x)
    assert (logits[..., MASK] == -torch.inf).all()
    others = [symbol for symbol in range(V) if symbol != MASK]
    torch.testing.assert_close(logits[x == MASK][:, others], raw[x == MASK][:, others])
    assert torch.equal(logits[x != MASK].argmax(-1), x[x != MASK])


# ---- Attention


def reaches(model: Any, source: int, mask: Tensor | None = None) -> Tensor:
    """Whether the symbol at a position changes the hidden states at others, [L]."""
    x = data(rows=1)
    changed = x.clone()
    changed[0, source] = 2 if x[0, source] != 2 else 3
    with torch.no_grad():
        first, second = (raw_logits(model, part, mask) for part in (x, changed))
    return (first != second).any(-1)[0]


@every_architecture
@implementations
def test_backbone__attention_is_bidirectional(name: str, implementation: str) -> None:
    model = network(name, attn_implementation=implementation)
    assert bool(reaches(model, LENGTH - 1)[0])
    assert bool(reaches(model, 0)[-1])
    if name in DECODERS:
        model.backbone.ahead = 0
        assert not bool(reaches(model, LENGTH - 1)[: LENGTH - 1].any())  # the shift reads position L − 2 at L − 1


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_backbone__ahead_is_a_share_of_the_later_positions(name: str) -> None:
    model = network(name, shift=False)
    counts = []
    for ahead in (0.0, 0.3, 0.7, 1.0):
        model.backbone.ahead = ahead
        counts.append(sum(int(reaches(model, source)[:source].sum()) for source in range(LENGTH)))
    assert counts[0] == 0
    assert counts[0] < counts[1] <= counts[2] <= counts[3] == LENGTH * (LENGTH - 1) // 2


@torch.no_grad()
@every_architecture
@implementations
def test_backbone__padding_changes_nothing(name: str, implementation: str) -> None:
    """Whatever it holds; a sequence has the logits that it has alone."""
    real, x = PADDED.bool(), noisy(data())
    model = network(name, attn_implementation=implementation)
    found = raw_logits(model, x.where(real, PAD), PADDED)
    assert bool(found.isfinite().all())
    other = raw_logits(model, x.where(real, MASK), real)
    torch.testing.assert_close(other[real], found[real], **CLOSE)
    for row in range(len(x)):
        alone = raw_logits(model, x[row : row + 1, real[row]])
        torch.testing.assert_close(found[row, real[row]], alone[0], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "ahead"), [*((name, 1.0) for name in ARCHITECTURES), *((name, 0.0) for name in DECODERS)]
)
def test_backbone__documents_do_not_attend_to_each_other(name: str, ahead: float) -> None:
    """Neither does a shift read the end of the document before."""
    x, model = noisy(data()), network(name, attn_implementation="sdpa" if ahead else "eager")
    model.backbone.ahead = ahead
    found = raw_logits(model, x, DOCUMENTS)
    for row in range(len(x)):
        for number in {*DOCUMENTS[row].tolist()} - {0}:
            own = DOCUMENTS[row] == number
            alone = raw_logits(model, x[row : row + 1, own])
            torch.testing.assert_close(found[row, own], alone[0], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["gemma3", "qwen2", "qwen3"])
def test_backbone__decoders_attend_beyond_their_sliding_window(name: str, implementation: str) -> None:
    windows: dict[str, Any] = {"sliding_window": 3}
    if name != "gemma3":
        windows |= {"use_sliding_window": True, "max_window_layers": 0, "layer_types": ["sliding_attention"] * 3}
    model = network(name, attn_implementation=implementation, changes=windows)
    wide = network(name, attn_implementation=implementation, changes={**windows, "sliding_window": 32})
    x = noisy(data())
    assert torch.equal(raw_logits(model, x), raw_logits(wide, x))
    assert bool(reaches(model, LENGTH - 1)[0])


@torch.no_grad()
def test_backbone__encoders_keep_their_sliding_window() -> None:
    """A local layer of ModernBERT attends three positions away, and two of them six."""
    changes = {"num_hidden_layers": 2, "layer_types": ["sliding_attention"] * 2}
    model = network("modernbert", changes=changes)
    assert reaches(model, LENGTH - 1).tolist() == [False] * 3 + [True] * 7
    x = noisy(data())
    assert torch.equal(raw_logits(model, x), original("modernbert", **changes)(input_ids=x).logits)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_backbone__refuses_more_positions_than_its_table_has(name: str) -> None:
    model = network(name)
    most = 32 if name == "bert" else 32 - PAD - 1  # RoBERTa begins after its padding symbol
    model(input_ids=data(rows=1, length=most))
    with pytest.raises(ValueError, match=rf"{most + 1}.*{most}"):
        model(input_ids=data(rows=1, length=most + 1))


@torch.no_grad()
def test_backbone__documents_count_their_own_positions() -> None:
    """Many documents of few positions fit into a table that the whole sequence does not."""
    model, x = network("bert"), noisy(data(rows=1, length=40))
    documents = torch.arange(40)[None] // 10 + 1
    found = raw_logits(model, x, documents)
    torch.testing.assert_close(found[:, 30:], raw_logits(model, x[:, 30:]), **CLOSE)


# ---- Flash and flex attention


class Kernels:
    """What the kernels of flash attention compute, with a record of their arguments."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def whole(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, softmax_scale: float, dropout_p: float = 0.0,
              window_size: tuple[int, int] = (-1, -1)) -> Tensor:  # fmt: skip
        self.calls.append({"causal": causal, "window_size": window_size})
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        mask = None if window_size == (-1, -1) else _window(q.shape[2], window_size[0])
        return F.scaled_dot_product_attention(
            q, k, v, mask, scale=softmax_scale, is_causal=causal, enable_gqa=True
        ).transpose(1, 2)

    def by_parts(self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
                 max_seqlen_k: int, *, causal: bool, softmax_scale: float, dropout_p: float = 0.0,
                 window_size: tuple[int, int] = (-1, -1)) -> Tensor:  # fmt: skip
        assert cu_seqlens_q.dtype == torch.int32
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        assert (int(cu_seqlens_q[0]), int(cu_seqlens_q[-1])) == (0, len(q))
        sizes = cu_seqlens_q.diff().tolist()
        assert max(sizes) <= max_seqlen_q == max_seqlen_k
        found = []
        for part in zip(*(value.split(sizes) for value in (q, k, v)), strict=True):
            one = (value[None] for value in part)
            found.append(self.whole(*one, causal=causal, softmax_scale=softmax_scale, window_size=window_size)[0])
        return torch.cat(found)


def _window(length: int, radius: int) -> Tensor:
    place = torch.arange(length)
    return (place[:, None] - place).abs() <= radius


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """transformers' own code for flash attention, with its kernels computed by SDPA."""
    found = Kernels()
    functions = (
        (found.whole, found.by_parts, None, None, None),
        (flash._lazy_define_process_function(found.by_parts), None),
    )
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda *_, **__: functions)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", flash_attention_forward)
    return found


def with_flash(model: Any) -> Any:
    for config in (model.config, model.backbone.network.config):
        config._attn_implementation_internal = "flash_attention_2"
    return model


@torch.no_grad()
@every_architecture
@pytest.mark.parametrize("mask", [None, DOCUMENTS], ids=["no mask", "documents"])
def test_backbone__flash_attention_is_bidirectional(name: str, mask: Tensor | None, kernels: Kernels) -> None:
    changes = {"sliding_window": 3} if name == "gemma3" else {}
    model, x = network(name, changes=changes), noisy(data())
    expected = raw_logits(model, x, mask)
    found = raw_logits(with_flash(model), x, mask)
    real = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(found[real], expected[real], **CLOSE)
    assert not any(call["causal"] for call in kernels.calls)
    windows = {call["window_size"] for call in kernels.calls}
    assert windows == ({(-1, -1), (3, 3)} if name == "modernbert" else {(-1, -1)})


@torch.no_grad()
@every_decoder
@pytest.mark.parametrize("mask", [None, DOCUMENTS], ids=["no mask", "documents"])
def test_backbone__flash_attention_can_be_causal(name: str, mask: Tensor | None, kernels: Kernels) -> None:
    model, x = network(name), noisy(data())
    model.backbone.ahead = 0
    expected = raw_logits(model, x, mask)
    found = raw_logits(with_flash(model), x, mask)
    real = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(found[real], expected[real], **CLOSE)
    assert all(call["causal"] for call in kernels.calls)
    model.backbone.ahead = 0.5
    with pytest.raises(ValueError, match=r"flash.*ahead|ahead.*flash"):
        raw_logits(model, x, mask)


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """Runs what transformers compiles for flex attention as it is: compiling takes a minute on a CPU."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gemma3", "bert", "modernbert", "esm"])
@pytest.mark.parametrize("mask", [None, DOCUMENTS], ids=["no mask", "documents"])
@pytest.mark.usefixtures("uncompiled")
def test_backbone__flex_attention_is_sdpa(name: str, mask: Tensor | None) -> None:
    x = noisy(data())
    real = slice(None) if mask is None else mask.bool()
    found, expected = (
        raw_logits(network(name, attn_implementation=kind), x, mask)[real] for kind in ("flex_attention", "sdpa")
    )
    torch.testing.assert_close(found, expected, **CLOSE)


# ---- Files


@torch.no_grad()
@every_architecture
def test_backbone__is_saved_and_loaded_as_one_folder(name: str, tmp_path: Any) -> None:
    model, x = network(name), noisy(data())
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} >= {"config.json", "model.safetensors", "README.md"}
    loaded: Any = AutoModel.from_pretrained(tmp_path)
    kind: Any = type(loaded)
    assert kind is GMModel
    assert {**loaded.config.to_dict(), "_name_or_path": ""} == model.config.to_dict()
    assert torch.equal(raw_logits(loaded.eval(), x, PADDED), raw_logits(model, x, PADDED))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    tied = ARCHITECTURES[name].tie_word_embeddings
    assert (loaded.heads.tokens.weight is loaded.backbone.embed_tokens.weight) == tied


# ---- The head


@torch.no_grad()
@every_architecture
def test_backbone__lazy_readout_has_the_dense_logits(name: str) -> None:
    model, x, t = network(name), noisy(data()), torch.full((3,), 0.5).double()
    dense = model(input_ids=x, time=t).logits.flatten(0, 1)
    for where in ([3], [3, 27], list(range(x.numel())), [29, 0, 10, 20, 7, 7]):
        rows = torch.tensor(where)
        torch.testing.assert_close(readout(model, x, t)("tokens", rows), dense[rows], **CLOSE)


@every_architecture
@pytest.mark.parametrize("path", ["masked", UniformPath(V, special_token_ids=(MASK,))], ids=["masked", "uniform"])
def test_backbone__fused_loss_is_dense(name: str, path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients, those of the embedding and of tied heads among them."""
    model, z = network(name, path=path), data()
    found = []
    for plain in (True, False):
        monkeypatch.setattr(readout_module, "is_linear", lambda _, plain=plain: plain)
        model.zero_grad()
        loss = conditional_loss(model, z, rng=rng(7), time_sampler=UniformTimeSampler())
        loss.backward()
        found.append([loss.detach(), {key: w.grad for key, w in model.named_parameters() if w.grad is not None}])
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys()
    for key, gradient in found[1][1].items():
        torch.testing.assert_close(
            found[0][1][key], gradient, rtol=1e-3, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_backbone__soft_capped_logits_stay_below_the_cap() -> None:
    model, x = network("gemma3"), noisy(data())
    raw = raw_logits(model, x)
    assert 2 < float(raw.detach().abs().max()) <= 3
    free = network("gemma3", changes={"final_logit_softcapping": None})
    torch.testing.assert_close(raw, 3 * torch.tanh(raw_logits(free, x) / 3), **CLOSE)


# ---- Time


@torch.no_grad()
@every_architecture
def test_backbone__time_conditioning_starts_without_effect(name: str) -> None:
    path, x, t = UniformPath(V, special_token_ids=(MASK,)), data(), torch.tensor([0.1, 0.5, 0.9]).double()
    model = network(name, path=path)
    plain = network(name, path=path, time_conditioning=False)
    assert model.config.time_conditioning
    assert torch.equal(raw_logits(model, x, t=t), raw_logits(plain, x, t=t))
    zero = list(model.backbone.condition.parameters())
    assert zero
    for weight in zero:
        weight.normal_(std=0.3, generator=rng(2))
    found = raw_logits(model, x, t=t)
    later = raw_logits(model, x, t=torch.tensor([0.1, 0.5, 0.2]).double())
    torch.testing.assert_close(later[:2], found[:2], **CLOSE)
    assert not torch.allclose(later[2], found[2], atol=1e-2)


def test_backbone__masked_models_have_no_time() -> None:
    names = dict(network("llama").named_parameters())
    assert not [name for name in names if name.startswith(("backbone.time", "backbone.condition"))]
