"""Sums over the outputs of the head: their gradients, their memory, and the padding of the weight."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from gm_discrete import GMConfig, GMModel, MaskedPath, UniformPath, UniformTimeSampler, conditional_loss
from gm_discrete.generators.rows import COPIES, CPU_ELEMENTS, ELEMENTS, MOST_ELEMENTS, chunk_rows
from gm_discrete.nn import head, readout
from gm_discrete.nn.head import LinearSum, evaluated, is_plain, padded_linear
from tests.helpers.chunks import set_chunks
from tests.helpers.networks import PATHS, K, network, rng
from tests.helpers.networks import readout as helper_readout

every_path = pytest.mark.parametrize("name", PATHS)


def randn(*shape: int, seed: int = 0, **options: Any) -> Tensor:
    return torch.randn(*shape, generator=rng(seed), **options)


def cross_entropy(y: Tensor, weight: Tensor) -> Any:
    """w_i CE(logits_i, y_i), which writes into its logits as the kernels do."""

    def function(part: slice, logits: Any) -> Tensor:
        rows = logits()
        rows[:, 2] += 1.0
        return weight[part] * F.cross_entropy(rows, y[part], reduction="none")

    return function


def dense(h: Tensor, w: Tensor, b: Tensor | None, y: Tensor, weight: Tensor) -> Tensor:
    rows = F.linear(h, w, b).float() if h.dtype != torch.float64 else F.linear(h, w, b)
    shift = F.one_hot(torch.tensor(2), w.shape[0]).to(rows.dtype)
    return (weight * F.cross_entropy(rows + shift, y, reduction="none")).sum()


def fused(
    h: Tensor, w: Tensor, b: Tensor | None, y: Tensor, weight: Tensor, rows: int = 3, multiple: int | None = None
) -> Tensor:
    return LinearSum.apply(h, w, b, cross_entropy(y, weight), rows, torch.is_grad_enabled(), multiple)


# ---- gradients


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("biased", [False, True])
def test_linear_sum__has_the_gradient_of_its_definition(rows: int, multiple: int, biased: bool) -> None:
    """Against finite differences in float64; K = 6 is no multiple of 4."""
    h, w = randn(7, 3, dtype=torch.float64).requires_grad_(), randn(6, 3, seed=1, dtype=torch.float64).requires_grad_()
    b = randn(6, seed=2, dtype=torch.float64).requires_grad_() if biased else None
    y, weight = torch.arange(7) % 6, randn(7, seed=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *given: fused(*given, y, weight, rows, multiple), (h, w, b))
    torch.testing.assert_close(fused(h, w, b, y, weight, rows, multiple), dense(h, w, b, y, weight))


def test_linear_sum__finds_only_the_gradients_that_are_needed() -> None:
    """Of frozen weights, frozen states, and none without autograd; for no rows they are 0."""
    h, w, b = randn(5, 3), randn(6, 3, seed=1), randn(6, seed=2)
    y, weight = torch.arange(5), torch.ones(5)
    expected = dense(h, w, b, y, weight).double()
    torch.testing.assert_close(fused(h, w, b, y, weight), expected)
    for needed in ((True, False, False), (False, True, False), (False, False, True), (True, False, True)):
        leaves = [value.clone().requires_grad_(on) for value, on in zip((h, w, b), needed, strict=True)]
        for found, reference in zip(
            torch.autograd.grad(fused(*leaves, y, weight), [leaf for leaf in leaves if leaf.requires_grad]),
            torch.autograd.grad(dense(*leaves, y, weight), [leaf for leaf in leaves if leaf.requires_grad]),
            strict=True,
        ):
            torch.testing.assert_close(found, reference)
    with torch.no_grad():
        assert not fused(*leaves, y, weight).requires_grad
    nothing = fused(h[:0].requires_grad_(), w.requires_grad_(), b, y[:0], weight[:0])
    assert float(nothing.detach()) == 0
    assert bool((torch.autograd.grad(nothing, w)[0] == 0).all())


def test_linear_sum__logits_may_be_read_twice() -> None:
    """Each read is a product of its own, as the first rows may be overwritten."""

    def function(part: slice, logits: Any) -> Tensor:
        return logits().mul_(2).sum(1) + logits().exp().sum(1)

    h, w = randn(5, 3).requires_grad_(), randn(6, 3, seed=1).requires_grad_()
    found = torch.autograd.grad(LinearSum.apply(h, w, None, function, 2, True), (h, w))
    rows = h @ w.T
    for value, expected in zip(found, torch.autograd.grad((2 * rows + rows.exp()).sum(), (h, w)), strict=True):
        torch.testing.assert_close(value, expected)


def test_linear_sum__scales_by_what_backward_brings_each_time() -> None:
    h, w = randn(5, 3).requires_grad_(), randn(6, 3, seed=1).requires_grad_()
    loss = fused(h, w, None, torch.arange(5), torch.ones(5))
    first = torch.autograd.grad(loss * 3, w, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, w)[0] * 3, first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("multiple", [1, 128])
def test_linear_sum__in_half_precision_is_dense_autocast_within_its_rounding(dtype: torch.dtype, multiple: int) -> None:
    """Against float64, the error of ∂h, ∂W and ∂b is at most 1.5 times that of autocast with the dense loss."""
    h, w, b = randn(300, 32), randn(500, 32, seed=1) / 4, randn(500, seed=2) / 4
    y, weight = torch.randint(500, (300,), generator=rng()), torch.rand(300, generator=rng(4))
    leaves = [value.requires_grad_() for value in (h, w, b)]
    exact = [value.detach().double().requires_grad_() for value in leaves]
    expected = torch.autograd.grad(dense(*exact, y, weight.double()), exact)
    with torch.autocast("cpu", dtype):
        found = torch.autograd.grad(fused(*leaves, y, weight, 64, multiple), leaves)
        usual = torch.autograd.grad(dense(*leaves, y, weight), leaves)
    for a, b, c in zip(found, usual, expected, strict=True):
        assert a.dtype == torch.float32
        assert float((a - c).norm()) <= 1.5 * float((b - c).norm()) + 1e-6 * float(c.norm())


def test_linear_sum__float16_keeps_the_gradient_of_rare_symbols() -> None:
    """g = 1/K of 50,000 symbols has 7 bits left in float16, and a tenth of it none; here they have those of float32."""
    h, w = torch.ones(4, 2).requires_grad_(), torch.zeros(50_000, 2).requires_grad_()
    with torch.autocast("cpu", torch.float16):
        loss = fused(h, w, None, torch.zeros(4, dtype=torch.long), torch.full((4,), 1e-3))
    gradient = torch.autograd.grad(loss, w)[0][10:]
    torch.testing.assert_close(gradient, torch.full_like(gradient, 4e-3 / 50_000), rtol=1e-3, atol=0)


# ---- the loss of models


def losses(model: nn.Module, z: Tensor, divergence: str, **options: Any) -> list[Tensor]:
    model.zero_grad()
    loss = conditional_loss(model, z, rng=rng(7), time_sampler=UniformTimeSampler(), divergence=divergence, **options)
    loss.backward()
    return [loss.detach(), *(weight.grad.clone() for weight in model.parameters())]


@every_path
@pytest.mark.parametrize("divergence", ["generalized_kl", "cross_entropy"])
@pytest.mark.parametrize("tied", [False, True])
def test_conditional_loss__fused_is_dense(
    monkeypatch: pytest.MonkeyPatch, name: str, divergence: str, tied: bool
) -> None:
    """Chunks of three rows, padded to a multiple of 4, against logits that autograd keeps whole."""
    model = network(name, tie_word_embeddings=tied)
    z = torch.randint(K - 1, (4, 12), generator=rng(3))
    z = torch.where(z == model.path.mask_token_id, 0, z) if name == "mask is 3" else z
    with monkeypatch.context() as whole:
        whole.setattr(readout, "is_linear", lambda _: False)
        expected = losses(model, z, divergence)
    calls: list[int] = []
    monkeypatch.setattr(head, "padded_linear", lambda *given: padded_linear(*given[:3], multiple=4))
    set_chunks(3 * K, monkeypatch)
    monkeypatch.setattr(readout, "chunk_rows", lambda *_: calls.append(1) or 3)
    found = losses(model, z, divergence)
    assert calls == [1]
    least = 1e-7 * float(torch.stack([reference.norm() for reference in expected]).norm())
    for value, reference in zip(found, expected, strict=True):
        assert float((value - reference).norm()) <= 1e-5 * float(reference.norm()) + least


def test_conditional_loss__with_gradient_checkpointing_and_accumulation_is_the_same() -> None:
    model = network().train()
    z = torch.randint(K - 1, (4, 12), generator=rng(3))
    expected = losses(model, z, "generalized_kl")
    model.gradient_checkpointing_enable()
    for value, reference in zip(losses(model, z, "generalized_kl"), expected, strict=True):
        torch.testing.assert_close(value, reference)
    conditional_loss(model, z, rng=rng(7), time_sampler=UniformTimeSampler()).backward()
    for weight, reference in zip(model.parameters(), expected[1:], strict=True):
        torch.testing.assert_close(weight.grad, 2 * reference)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_conditional_loss__inside_a_checkpoint_or_with_saved_tensors_elsewhere_is_the_same(
    monkeypatch: pytest.MonkeyPatch, reentrant: bool | None
) -> None:
    """Hooks of saved tensors act on the graph of a chunk too."""
    model, z = network(), torch.randint(K - 1, (4, 12), generator=rng(3))
    x, t = torch.where(z % 2 == 0, K - 1, z), torch.full((4,), 0.5)
    set_chunks(3 * K, monkeypatch)

    def loss(_: Tensor | None = None) -> Tensor:
        return model(input_ids=x, time=t, labels=z).loss

    expected = torch.autograd.grad(loss(), list(model.parameters()))
    model.zero_grad()
    if reentrant is None:
        with torch.autograd.graph.save_on_cpu():
            loss().backward()
    else:
        checkpoint(loss, torch.ones((), requires_grad=True), use_reentrant=reentrant).backward()
    for weight, reference in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, reference)


def test_lazy_readout__total_reads_some_rows_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function may ask for fewer positions than its chunk, in any order."""
    model, x = network(), torch.full((4, 12), K - 1)
    said, where = helper_readout(model, x, torch.full((4,), 0.5)), torch.arange(0, 48, 2)

    def function(rows: Tensor) -> Tensor:
        some = rows.flip(0)[::2]
        return some * said("tokens", some).log_softmax(1)[:, 0]

    monkeypatch.setattr(readout, "chunk_rows", lambda *_: 5)
    found = said.total("tokens", function, where, K)
    gradient = torch.autograd.grad(found, model.heads.tokens.weight)[0]
    monkeypatch.undo()
    expected = torch.stack([function(rows).sum() for rows in where.split(5)]).sum()
    torch.testing.assert_close(found.float(), expected)
    reference = torch.autograd.grad(expected, model.heads.tokens.weight)[0]
    assert float((gradient - reference).norm()) <= 1e-5 * float(reference.norm())


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation returns."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.size = max([self.size, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))])
        return out


@pytest.mark.parametrize("name", ["masked", "reversal", "mixture"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conditional_loss__never_holds_more_logits_than_a_chunk(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    """Forward and backward: no tensor is larger than 4 rows of 2,000 symbols, of 96 positions, or than W."""
    size = 2000
    path = MaskedPath(size) if name == "masked" else UniformPath(size, rates=name)
    model = GMModel(GMConfig(path=path, hidden_size=4, num_hidden_layers=1, num_attention_heads=1))
    z = torch.randint(size - 1, (8, 12), generator=rng())
    set_chunks(4 * size, monkeypatch)
    with Largest() as largest, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        conditional_loss(model, z, rng=rng()).backward()
    assert largest.size == 4 * size


# ---- layers that are no plain products


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_is_plain__not_with_adapters_hooks_or_other_forwards() -> None:
    layer = nn.Linear(3, 4)
    assert is_plain(layer)
    assert not is_plain(Doubled(3, 4))
    assert not is_plain(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)))
    handle = layer.register_forward_hook(lambda *_: None)
    assert not is_plain(layer)
    handle.remove()
    assert is_plain(layer)
    layer.forward = lambda x: x  # as accelerate's hooks for offloading do
    assert not is_plain(layer)


def test_conditional_loss__other_heads_are_called_as_modules() -> None:
    """A head of another class, twice the layer, has the loss of a plain head with twice the weight."""
    model, z = network(), torch.randint(K - 1, (4, 12), generator=rng(3))
    doubled = network()
    with torch.no_grad():
        model.heads.tokens.weight.mul_(2)
    replaced = Doubled(32, K, bias=False)
    replaced.weight = doubled.heads.tokens.weight
    doubled.heads["tokens"] = replaced
    expected, found = losses(model, z, "generalized_kl"), losses(doubled, z, "generalized_kl")
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(doubled.heads.tokens.weight.grad, 2 * model.heads.tokens.weight.grad)


# ---- padding


def test_padded_linear__adds_rows_of_zeros_in_the_type_of_products() -> None:
    weight, bias = randn(6, 3), randn(6)
    with torch.autocast("cpu", torch.bfloat16):
        w, b = padded_linear(5, weight, bias, multiple=4)
    assert (w.shape, w.dtype, b.shape) == ((8, 3), torch.bfloat16, (8,))
    assert torch.equal(w[:6], weight.bfloat16())
    assert bool((w[6:] == 0).all())
    same, none = padded_linear(10**6, weight, None)
    assert same is weight  # on a CPU nothing is padded
    assert none is None


def test_evaluated__pads_in_inference_alone() -> None:
    layer, hidden = nn.Linear(3, 6), randn(2, 5, 3)
    expected = layer(hidden)
    torch.testing.assert_close(evaluated(layer, hidden, multiple=4), expected)
    with torch.no_grad(), Largest() as largest:
        torch.testing.assert_close(evaluated(layer, hidden, multiple=4), expected)
    assert largest.size == 2 * 5 * 8


# ---- chunks


def test_chunk_rows__follow_the_free_memory_of_a_gpu() -> None:
    gpu, free = torch.device("cuda"), 2**37  # 128 GiB
    assert chunk_rows(50_257, 10**6, gpu, free=free) == 8192
    assert chunk_rows(50_257, 10**6, gpu, free=2**30) == 512  # the floor, 2²⁵ elements
    assert chunk_rows(2 * MOST_ELEMENTS, 5, gpu, free=free) == 1
    for share in (0.95, 1.05):  # small changes of the free memory change nothing
        assert chunk_rows(1000, 10**6, gpu, free=int(share * 2**33)) == chunk_rows(1000, 10**6, gpu, free=2**33)
    more = [chunk_rows(1000, 10**6, gpu, free=2**n) for n in range(28, 40)]
    assert more == sorted(more)
    assert more[0] * 1000 <= ELEMENTS < MOST_ELEMENTS / 2 < more[-1] * 1000


def test_chunk_rows__nothing_is_cut_that_is_kept_and_fits() -> None:
    gpu, count = torch.device("cuda"), 10**5
    fits = 2 * count * 1000 * COPIES
    assert chunk_rows(1000, count, gpu, kept=True, free=fits) == count
    assert chunk_rows(1000, count, gpu, kept=True, free=fits - 2 * COPIES) < count
    assert chunk_rows(1000, 100, torch.device("cpu"), kept=True) == 100
    assert chunk_rows(1000, 10**6, torch.device("cpu"), kept=True) == CPU_ELEMENTS // 1000
    assert chunk_rows(1000, 10**6, torch.device("cpu")) == CPU_ELEMENTS // 1000
    assert chunk_rows(1000, 0, torch.device("cpu"), kept=True) == 1
