"""A readout is a promise: nothing runs before it is asked, nothing runs twice, and it says what the dense model says."""

import pytest
import torch
from torch import Tensor

from gm_discrete import Adaptive, GMModel, bregman, conditional_loss, likelihood_bound, simulate
from gm_discrete.samplers import Sampler
from tests.helpers.chunks import set_chunks
from tests.helpers.networks import DISCRETE, LENGTH, PATHS, K, data, network, noisy, readout, rng, suits

every_path = pytest.mark.parametrize("name", PATHS)


class Rows:
    """Counts the sequences that enter the backbone."""

    def __init__(self, model: GMModel) -> None:
        self.sizes: list[int] = []
        model.backbone.register_forward_pre_hook(lambda _, args: self.sizes.append(len(args[0][""])))


class Dense:
    """The same model with all logits of the batch computed at once, as [B, L, K]."""

    def __init__(self, model: GMModel) -> None:
        self.path, self.model = model.path, model

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None):
        return self.path.marginal(self.model(input_ids=x, time=t).logits, x, t, t_next)


@every_path
def test_lazy_readout__has_the_dense_logits(name: str) -> None:
    """In whatever order and number they are asked. Logits of size 30 from float32 sums in other orders: 1e-4."""
    model, z = network(name), data(name)
    x, t = noisy(model, z)
    with torch.no_grad():
        dense = model(input_ids=x, time=t).logits.flatten(0, 1)
        kernel = model.generator(x, t).kernel
        kernel = getattr(kernel, "belief", kernel)
        for where in ([3], [3, 40], list(range(len(dense))), [59, 0, 7, 7]):
            rows = torch.tensor(where)
            torch.testing.assert_close(kernel.logits(rows), dense[rows], rtol=1e-4, atol=1e-4)


@every_path
def test_lazy_readout__runs_nothing_before_it_is_read_and_nothing_twice(name: str) -> None:
    model, z = network(name), data(name)
    x, t = noisy(model, z)
    rows = Rows(model)
    said = readout(model, x, t)
    with torch.no_grad():
        model.generator(x, t, torch.ones_like(t))
    assert rows.sizes == []
    for where, expected in (([0, 5], [1]), ([13, 30, 1], [1, 2]), ([14, 2], [1, 2]), ([59, 20], [1, 2, 1])):
        said("tokens", torch.tensor(where))
        assert rows.sizes == expected
    said("tokens")
    assert sum(rows.sizes) == len(z)  # the one that was left
    said("tokens")
    assert sum(rows.sizes) == len(z)


def test_lazy_readout__of_everything_is_one_call() -> None:
    model, z = network(), data()
    x, t = noisy(model, z)
    rows = Rows(model)
    said = readout(model, x, t)
    assert said("tokens").shape == (5 * LENGTH, K)
    said("tokens", torch.tensor([3]))
    assert rows.sizes == [5]


def test_whole_batches__run_every_sequence() -> None:
    """Processes that hold parts of the weights must make equal calls, whichever sequences each of them asks for."""
    model, z = network(), data()
    x, t = noisy(model, z)
    model.whole_batches = True
    rows = Rows(model)
    said = readout(model, x, t)
    for where in ([], [3], [40]):
        said("tokens", torch.tensor(where, dtype=torch.long))
    assert rows.sizes == [5]


def test_whole_batches__call_the_head_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of positions that each process has to read, none included: 5 · 12 rows of 11 in chunks of 10."""
    set_chunks(10 * K, monkeypatch)
    model, z = network(), data()
    model.whole_batches = True
    sizes: list[int] = []
    model.heads.tokens.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    for masks in (0, 1, 40):
        sizes.clear()
        labels = torch.full_like(z, -100).flatten().index_copy(0, torch.arange(masks), z.flatten()[:masks]).view_as(z)
        x = torch.where(labels == -100, z, model.path.mask_token_id)
        model(input_ids=x, time=torch.full((len(z),), 0.5), labels=labels)
        assert len(sizes) == 6
        assert sum(sizes) == masks


def test_hidden_states__are_computed_once() -> None:
    model, z = network(), data()
    x, t = noisy(model, z)
    said = readout(model, x, t)
    said.hidden.compute()
    rows = Rows(model)
    logits = said("tokens", torch.tensor([4, 50]))
    assert rows.sizes == []
    torch.testing.assert_close(logits, model(input_ids=x, time=t).logits.flatten(0, 1)[[4, 50]])


@every_path
def test_lazy_readout__the_last_feed_forward_network_runs_where_it_is_read(name: str) -> None:
    model, z = network(name), data(name)
    x, t = noisy(model, z)
    sizes: list[int] = []
    model.backbone.layers[-1].register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[:-1].numel()))
    said = readout(model, x, t)
    for where in ([3, 40, 41], [7]):
        said("tokens", torch.tensor(where))
    assert sizes == [3, 1]


def test_lazy_readout__padding_masks_follow_their_sequences() -> None:
    model, z = network(), data()
    x, t = noisy(model, z)
    mask = torch.ones_like(x)
    mask[1, 5:] = mask[3, :4] = 0
    with torch.no_grad():
        dense = model(input_ids=x, time=t, attention_mask=mask).logits
        lazy = readout(model, x, t, mask)("tokens", torch.tensor([3 * LENGTH + 6, LENGTH + 2]))
    torch.testing.assert_close(lazy, torch.stack([dense[3, 6], dense[1, 2]]), rtol=1e-4, atol=1e-4)


def test_lazy_readout__processors_get_noisy_sequences_and_their_logits() -> None:
    model, z = network(), data()
    x, t = noisy(model, z)
    seen = []

    def processor(sequences: Tensor, logits: Tensor) -> Tensor:
        seen.append((sequences.clone(), logits.clone()))
        return logits.index_fill(1, torch.tensor(2), -torch.inf)

    where = torch.tensor([3, 17, 5])
    logits = readout(model, x, t, processor=processor)("tokens", where)
    assert torch.equal(seen[0][0], x[[0, 1, 0]])
    torch.testing.assert_close(seen[0][1], readout(model, x, t)("tokens", where))
    assert bool((logits[:, 2] == -torch.inf).all())


def test_lazy_readout__an_unknown_head_is_named() -> None:
    model, z = network(), data()
    with pytest.raises(ValueError, match="head='velocity' is unknown; this model has 'tokens'"):
        readout(model, z, torch.zeros(5))("velocity")


# ---- lazy = dense


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"), [(name, method) for name in PATHS for method in DISCRETE if suits(name, method)]
)
def test_simulate__lazy_and_dense_models_draw_the_same_samples(name: str, method: str) -> None:
    """One seed. Logits differ by 1e-5, so that a uniform would have to fall that close to a step."""
    model = network(name)
    shape = (2, 4) if method == "uniformization" else (8, LENGTH)  # which has many candidate events
    x_0 = model.path.prior(shape, rng(5))
    grid = torch.linspace(0, 0.8 if method == "uniformization" else 1, 13, dtype=torch.float64)
    sampler = Adaptive(2.0) if method == "adaptive" else method
    rows = Rows(model)
    lazy = simulate(model, x_0, grid, rng(6), sampler, return_info=True)
    evaluated = sum(rows.sizes)
    dense = simulate(Dense(model), x_0, grid, rng(6), sampler)
    assert torch.equal(lazy.x, dense)
    assert evaluated == int(lazy.network_calls.sum())
    if not Sampler.of(method).chooses_times:
        assert evaluated <= 8 * 12 * (2 if method == "trapezoidal" else 1)


@pytest.mark.slow
@every_path
@pytest.mark.parametrize("divergence", ["generalized_kl", "cross_entropy"])
def test_conditional_loss__lazy_chunked_and_dense_ones_agree(
    monkeypatch: pytest.MonkeyPatch, name: str, divergence: str
) -> None:
    model, z = network(name), data(name)
    results = []
    for stand_in, elements in ((model, 2**24), (model, 7 * K), (Dense(model), 2**24)):
        set_chunks(elements, monkeypatch)
        model.zero_grad()
        loss = conditional_loss(stand_in, z, rng=rng(7), divergence=divergence)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for other in results[1:]:
        for expected, value in zip(results[0], other, strict=True):
            scale = float(expected.abs().max())
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("conv_kernel_size", [0, 3])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_divergence__of_a_state_without_masks_is_zero(conv_kernel_size: int, attn_implementation: str) -> None:
    """A short sequence at κ ≈ 1 holds no mask: no row is asked for, and no sequence run."""
    model, z = network(conv_kernel_size=conv_kernel_size, attn_implementation=attn_implementation), data()
    t = torch.full((5,), 0.5)
    for mask in (None, torch.ones_like(z)):
        loss = bregman.divergence(model.path.conditional(z, z, t), model.generator(z, t, attention_mask=mask), z)
        assert float(loss.detach().sum()) == 0
    bound = likelihood_bound(model, z[:, :1], num_samples=16, rng=rng(), estimator="time")
    assert bool(bound.nats.isfinite().all())


def test_divergence__gradients_flow_through_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbone runs once, before the chunks that are recomputed in backward."""
    model, z = network(), data()
    x, t = noisy(model, z)
    rows = Rows(model)
    set_chunks(2 * K, monkeypatch)
    loss = bregman.divergence(model.path.conditional(z, x, t), model.generator(x, t), x).sum()
    loss.backward()
    assert rows.sizes == [5]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_forward__the_loss_evaluates_the_head_only_at_masks() -> None:
    """60 positions, and as many rows of logits as there are masks among those scored."""
    model, z = network(), data()
    x, t = noisy(model, z)
    sizes = []
    model.heads.tokens.register_forward_hook(lambda _, args, output: sizes.append(len(output)))
    labels = z.clone()
    labels[0] = -100
    model(input_ids=x, time=t, labels=labels)
    assert sum(sizes) == int((x[1:] == 10).sum()) < 48
