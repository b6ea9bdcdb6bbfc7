"""Attention masks: of which implementation, without reading values, and as arguments of flash attention's kernels."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import modeling_flash_attention_utils as flash
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gm_discrete import GMModel
from gm_discrete.nn.masks import bidirectional_mask, neighbours
from tests.helpers import product_models
from tests.helpers.networks import causal, data, network, noisy

PADDED = torch.tensor([[1] * 12, [1] * 5 + [0] * 7, [0] * 4 + [1] * 8, [1] * 11 + [0], [0] * 12])
DOCUMENTS = torch.tensor(
    [[1] * 5 + [2] * 7, [3] * 3 + [1] * 9, [0] * 2 + [1] * 4 + [7] * 6, [1, 2, 3] + [4] * 9, [2] * 11 + [0]]
)
ROUNDING: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
"""Hidden states of size 10 from float32 sums that run in another order."""


class NoReading(TorchDispatchMode):
    """Fails where values of a tensor are read on the host."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for name in ("_local_scalar_dense", "nonzero", "is_nonzero", "aten.equal", "masked_select", "unique"):
            assert name not in str(func), f"{func} reads values"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """Runs what transformers compiles for flex attention as it is: compiling takes a minute on a CPU."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def hidden_states(model: GMModel, mask: Tensor | None) -> Tensor:
    x, t = noisy(model, data())
    return model.backbone({"": x}, t, None if mask is None else {"": mask})


# Dense masks


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_bidirectional_mask__of_padding_is_that_of_transformers_where_it_matters(implementation: str) -> None:
    model = network(attn_implementation=implementation)
    hidden = torch.zeros(5, 12, 32)
    found, expected = (make(model.config, hidden, PADDED) for make in (bidirectional_mask, create_bidirectional_mask))
    assert isinstance(found, Tensor)
    assert isinstance(expected, Tensor)
    assert found.dtype == expected.dtype
    rows = PADDED.bool()
    assert torch.equal(found.expand(5, 1, 12, 12)[:, 0][rows], expected.expand(5, 1, 12, 12)[:, 0][rows])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_backbone__gradients_of_a_sequence_that_is_all_padding_are_finite(implementation: str) -> None:
    model = network(attn_implementation=implementation, conv_kernel_size=3)
    hidden_states(model, PADDED)[PADDED.bool()].square().sum().backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in model.backbone.parameters() if weight.grad is not None)


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("mask", [None, PADDED, DOCUMENTS], ids=["no mask", "padding", "documents"])
@pytest.mark.parametrize(
    "options", [{}, {"conv_kernel_size": 3}, {"backbone": "dit", "condition_size": 16}, {"block_size": 4}], ids=str
)
@pytest.mark.usefixtures("uncompiled")
@torch.no_grad()
def test_backbone__reads_no_values(options: dict, mask: Tensor | None, implementation: str) -> None:
    if "block_size" in options and implementation == "flex_attention":
        pytest.skip("flex attention has no block-causal mask")
    model = network("masked", attn_implementation=implementation, **options)
    x, t = noisy(model, data())
    with NoReading():
        found = model.backbone({"": x}, t, None if mask is None else {"": mask})
    if implementation != "sdpa":
        model.set_attn_implementation("sdpa")
        real = slice(None) if mask is None else mask.bool()
        torch.testing.assert_close(
            found[real], model.backbone({"": x}, t, None if mask is None else {"": mask})[real], **ROUNDING
        )


@torch.no_grad()
def test_backbone__of_several_fields_reads_no_values() -> None:
    model = product_models.network("two lines", conv_kernel_size=3)
    x, t = product_models.noisy(model, product_models.data(model))
    with NoReading():
        model.network.hidden(x, t, {"over": torch.tensor([[1, 1, 2, 0]] * 5)})


# Flash attention


def by_parts(q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
             max_seqlen_k: int, softmax_scale: float, causal: bool, dropout_p: float = 0.0) -> Tensor:  # fmt: skip
    """What flash attention's kernel computes for sequences of different lengths, [positions, heads, size]."""
    assert cu_seqlens_q.dtype == torch.int32
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert (int(cu_seqlens_q[0]), int(cu_seqlens_q[-1]), causal) == (0, len(q), False)
    sizes = cu_seqlens_q.diff().tolist()
    assert max(sizes) <= max_seqlen_q == max_seqlen_k
    parts = [part.split(sizes) for part in (q, k, v)]
    attend = F.scaled_dot_product_attention
    return torch.cat(
        [
            attend(*(p.transpose(0, 1) for p in part), scale=softmax_scale).transpose(0, 1)
            for part in zip(*parts, strict=True)
        ]
    )


@pytest.fixture
def with_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own code for flash attention, with its kernel computed by SDPA."""
    kernels = (None, by_parts, None, None, None), (flash._lazy_define_process_function(by_parts), None)
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda *_, **__: kernels)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", flash_attention_forward)


@pytest.mark.parametrize("mask", [PADDED, DOCUMENTS], ids=["padding", "documents"])
@pytest.mark.parametrize("backbone", ["gm", "dit"])
@pytest.mark.usefixtures("with_flash_attention")
def test_backbone__flash_attention_gets_the_lengths_of_documents(backbone: str, mask: Tensor) -> None:
    model = network("masked", backbone=backbone, condition_size=16, conv_kernel_size=0)
    gradients, outputs = [], []
    for implementation in ("sdpa", "flash_attention_2"):
        model.config._attn_implementation_internal = implementation
        model.zero_grad()
        outputs.append(hidden_states(model, mask)[mask.bool()])
        outputs[-1].square().sum().backward()
        gradients.append([weight.grad for weight in model.backbone.parameters() if weight.grad is not None])
    torch.testing.assert_close(outputs[1], outputs[0], **ROUNDING)
    torch.testing.assert_close(
        gradients[1], gradients[0], rtol=1e-3, atol=1e-3 * max(float(g.abs().max()) for g in gradients[0])
    )


@pytest.mark.parametrize("mask", [[1, 1, 0, 1], [1, 2, 2, 1]])
def test_bidirectional_mask__flash_attention_takes_no_document_in_parts(mask: list[int]) -> None:
    config = network().config
    config._attn_implementation_internal = "flash_attention_3"
    with pytest.raises(ValueError, match=r"attention_mask.*sdpa"):
        bidirectional_mask(config, torch.zeros(1, 4, 32), torch.tensor([mask]))


# Neighbours


def test_neighbours__are_of_the_same_field_and_document() -> None:
    near = neighbours(3, torch.tensor([[1, 1, 2, 2, 2]]), torch.tensor([0, 1, 2, 0, 1]), torch.float32)
    assert near is not None
    before, itself, after = near[:, 0, :, 0].tolist()
    assert before[1:] == [1, 0, 0, 1]
    assert itself == [1, 1, 1, 1, 1]
    assert after[:-1] == [1, 0, 0, 1]
    assert neighbours(3, None, None, torch.float32) is None


def test_backbone__blocks_of_documents_do_not_attend_to_other_documents() -> None:
    model, z = causal(), data()
    documents, t = torch.tensor([[1] * 6 + [2] * 6] * 5), torch.full((5,), 0.5).double()
    other = torch.cat([(z[:, :6] + 1) % 10, z[:, 6:]], 1)
    first, second = (
        model.backbone(
            {"": model.path.sample(z, t, torch.Generator().manual_seed(0))}, t, {"": documents}, clean={"": clean}
        )
        for clean in (z, other)
    )
    torch.testing.assert_close(first[:, 6:], second[:, 6:])
    assert not torch.allclose(first[:, 4:6], second[:, 4:6], atol=1e-2)
