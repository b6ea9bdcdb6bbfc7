"""`GMModel` on vectors and images: what it sees, says, and is trained with."""

from __future__ import annotations

import math
from pathlib import Path as File
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from gm_discrete import (
    Bins,
    GaussianPath,
    GMConfig,
    GMModel,
    MaskedPath,
    bregman,
    conditional_loss,
)
from gm_discrete.objective import corrupt
from tests.helpers.chunks import set_chunks
from tests.helpers.continuous import (
    CASES,
    CLASSES,
    COLOUR,
    IMAGES,
    NUMBERS,
    SYMBOLIC,
    SYMBOLS,
    Rows,
    call,
    data,
    heads_of,
    landing_masses,
    network,
    noisy,
    parts_by_hand,
    rng,
    shaped,
    to_entries,
    what_is_said,
)
from tests.helpers.networks import readout

every_case = pytest.mark.parametrize("name", CASES)
every_number = pytest.mark.parametrize("name", NUMBERS)
ROUNDING: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
"""float32 sums that run in another order."""
MOVED = 1e-3
"""Far more than rounding."""


class Dense:
    """The same model, read whole in its own forward and laid out by hand."""

    def __init__(self, model: GMModel, name: str) -> None:
        self.path, self.model, self.name = model.path, model, name

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Any:
        if self.name in SYMBOLIC:
            return self.path.marginal(call(self.model, x, t).logits, x, t, t_next)
        raw = heads_of(self.model, self.name, x, t)

        def readout(head: str, where: Tensor | None = None) -> Tensor:
            values = raw[head]
            if values.shape == x.shape:
                return self.path.output(head, values, x, t)  # pyright: ignore
            if head == "belief":
                return call(self.model, x, t).logits.flatten(0, x.dim() - 1)[where]
            return values.flatten(0, 1)[where]

        return self.path.marginal(kernels_of(readout), x, t, t_next)


def kernels_of(readout: Any) -> Any:
    readout.prepare = lambda where: (where,)
    return readout


# ---- what it sees


@every_case
def test_forward__every_entry_depends_on_every_other(name: str) -> None:
    """The last entry moves what is said of the first, and the first of the last: attention is not causal."""
    model, (x, t) = network(name), noisy(network(name), data(name), 0.5)
    before = {head: value.flatten(1) for head, value in heads_of(model, name, x, t).items()}
    for changed, seen in ((-1, 0), (0, -1)):
        y = x.flatten(1).clone()
        last = y[:, changed]
        y[:, changed] = (last + 1) % SYMBOLS if name in SYMBOLIC else torch.where(last > 0, last - 0.8, last + 0.8)
        after = heads_of(model, name, y.view_as(x), t)
        for head, value in after.items():
            moved = (value.flatten(1) - before[head]).view(len(x), x[0].numel(), -1)
            assert float(moved[:, seen].detach().abs().max()) > MOVED, head


@pytest.mark.parametrize("name", IMAGES)
def test_forward__places_of_an_image_differ(name: str) -> None:
    """A constant image is not said the same of everywhere."""
    model = network(name)
    x = torch.zeros_like(data(name))
    hidden = call(model, x, torch.full((len(x),), 0.5)).last_hidden_state
    assert float(hidden.detach().std(dim=1).max()) > MOVED
    assert hidden.shape[1] == math.prod(model.config.image_shape[1:]) // model.config.patch_size**2


@every_case
def test_forward__states_of_a_batch_are_independent(name: str) -> None:
    model, (x, t) = network(name), noisy(network(name), data(name))
    alone = torch.cat([what_is_said(model, x[i : i + 1], t[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(what_is_said(model, x, t), alone, **ROUNDING)


@pytest.mark.parametrize("name", ["flow", "jump", "mixture of vectors"])
def test_forward__padding_of_vectors_changes_nothing_elsewhere(name: str) -> None:
    model, (x, t) = network(name), noisy(network(name), data(name))
    expected = {head: value.flatten(1) for head, value in heads_of(model, name, x, t).items()}
    for fill in (0.0, 0.9):
        longer = torch.cat([x, torch.full_like(x[:, :3], fill)], 1)
        mask = torch.ones(longer.shape[:2]).long()
        mask[:, -3:] = 0
        for head, value in heads_of(model, name, longer, t, attention_mask=mask).items():
            found = value.view(len(x), longer.shape[1], -1)[:, : x.shape[1]].flatten(1)
            torch.testing.assert_close(found, expected[head], **ROUNDING)


def test_conditional_loss__padded_vectors_are_not_scored() -> None:
    model, z = network("jump"), data("jump")
    mask = torch.ones(5, 5).long()
    mask[1, 2:] = mask[3, 4:] = 0
    losses = [
        conditional_loss(model, torch.where(mask[..., None] == 1, z, fill), mask, rng(1)).detach()
        for fill in (0.0, 0.7)
    ]
    assert torch.equal(*losses)
    assert not torch.equal(losses[0], conditional_loss(model, z, rng=rng(1)).detach())


@every_number
def test_forward__double_and_single_precision_agree(name: str) -> None:
    """float64 states and times in a float32 network. Times that float32 holds exactly; next to t = 1 nothing is compared."""
    model, z = network(name), data(name)
    t = torch.tensor([0.125, 0.25, 0.5, 0.75, 0.875], dtype=torch.float64)
    x = model.path.sample(z, t, rng(4))
    expected = what_is_said(model, x, t)
    for state, time in ((x.double(), t), (x, t.float()), (x.double(), t.float())):
        torch.testing.assert_close(what_is_said(model, state, time).float(), expected, rtol=1e-4, atol=1e-4)
    generator = model.generator(x.double(), t)
    flow = generator.parts.get("flow")
    assert flow is None or flow.velocity.dtype == torch.float64
    loss = call(model, x.double(), t, labels=z.double()).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, call(model, x, t, labels=z).loss, rtol=1e-4, atol=1e-4)


@every_case
def test_forward__depends_on_the_time_unless_masked(name: str) -> None:
    model, (x, _) = network(name), noisy(network(name), data(name), 0.5)
    hidden = [call(model, x, torch.full((5,), t)).last_hidden_state for t in (0.3, 0.6)]
    assert (float((hidden[0] - hidden[1]).detach().abs().max()) > MOVED) == (not isinstance(model.path, MaskedPath))


# ---- what it says


@every_case
def test_forward__output_shapes(name: str) -> None:
    model, z = network(name), data(name)
    x, t = noisy(model, z)
    output = call(model, x, t)
    positions = z[0].numel() // model.state_fields[""].slots
    assert output.last_hidden_state.shape == (5, positions, 32)
    assert output.loss is None
    if name in SYMBOLIC:
        assert output.velocity is None
        assert output.logits.shape == (*x.shape, model.config.vocab_size)
        dense = model.generator(x, t).rates(x)
        assert dense.shape == output.logits.shape
        assert torch.equal(model.rates(x, t), dense)
    else:
        bins = model.path.heads.get("belief")
        assert output.logits is None if bins is None else output.logits.shape == (*x.shape, bins)
        has_flow = "flow" in model.path.heads
        assert (output.velocity is not None) == has_flow
        if has_flow:
            assert output.velocity.shape == x.shape
            hazard = 1 if isinstance(model.path, GaussianPath) else shaped(1 / (1 - t), x).float()
            velocity = model.generator(x, t).parts["flow"].velocity
            torch.testing.assert_close(velocity, hazard * output.velocity, **ROUNDING)
        with pytest.raises(TypeError, match=r"rate matrix.*GaussianPath|rate matrix.*EuclideanMixturePath"):
            model.rates(x, t)
    sizes = {head: model.state_fields[""].slots * size for head, size in model.path.heads.items()}
    assert {head: layer.out_features for head, layer in model.heads.items()} == sizes
    named = call(model, x, t, labels=z)
    assert named.loss.shape == ()
    assert named.logits is None
    assert named.velocity is None
    assert torch.equal(call(model, x, t, labels=z, return_dict=False)[0], named.loss)


@every_case
def test_lazy_readout__rows_are_those_of_the_whole(name: str) -> None:
    model, z = network(name), data(name)
    x, t = noisy(model, z)
    if name in SYMBOLIC:
        whole = {"tokens": call(model, x, t).logits.flatten(0, 1)}
    else:
        whole = {head: raw.flatten(0, 1) for head, raw in heads_of(model, name, x, t).items() if raw.shape != x.shape}
        if "belief" in whole:
            whole = {"belief": call(model, x, t).logits.flatten(0, x.dim() - 1)}
    last = x.numel() - 1
    for where in ([3], [3, last - 1], list(range(x.numel())), [last, 0, 7, 7], torch.randperm(x.numel()).tolist()):
        rows = torch.tensor(where)
        for head, expected in whole.items():
            found = readout(model, x, t)(head, rows)
            torch.testing.assert_close(found, expected[rows], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NUMBERS)
def test_lazy_readout__heads_of_one_number_pass_through_the_path(name: str) -> None:
    model, (x, t) = network(name), noisy(network(name), data(name))
    raw = heads_of(model, name, x, t)
    heads = readout(model, x, t)
    for head, size in model.path.heads.items():
        if size == 1:
            torch.testing.assert_close(heads(head), model.path.output(head, raw[head], x, t), **ROUNDING)  # type: ignore


def test_lazy_readout__tokens_that_share_a_position_keep_their_evidence() -> None:
    """logits = head + log(1 + κ/((1 − κ) p0)) at the entry's own symbol, linear κ = t."""
    model, (x, t) = network("uniform"), noisy(network("uniform"), data("uniform"))
    raw = heads_of(model, "uniform", x, t)["tokens"].double()
    evidence = torch.log1p(t / (1 - t) * SYMBOLS)[:, None, None].expand(*x.shape, 1)
    expected = raw.scatter_add(2, x[..., None], evidence)
    torch.testing.assert_close(call(model, x, t).logits.double(), expected, **ROUNDING)


@every_case
def test_lazy_readout__runs_the_network_once_for_all_heads(name: str) -> None:
    model, (x, t) = network(name), noisy(network(name), data(name))
    rows = Rows(model)
    heads = readout(model, x, t)
    assert rows.sizes == []
    for _ in range(2):
        for head in model.path.heads:
            heads(head)
            heads(head, torch.tensor([0, x.numel() - 1]))
    assert rows.sizes == [5]


@every_number
def test_generator__and_its_landings_are_one_call(name: str) -> None:
    model, (x, t) = network(name), noisy(network(name), data(name))
    rows = Rows(model)
    generator = model.generator(x, t, t + 0.01)
    if "jump" in generator.parts:
        generator.parts["jump"].kernel.sample(rng(), torch.arange(x.numel()))
    generator.over(t + 0.02)
    assert rows.sizes == [5]


@pytest.mark.parametrize("name", ["masked", "uniform"])
def test_lazy_readout__images_of_symbols_run_where_they_are_read(name: str) -> None:
    model, (x, t) = network(name), noisy(network(name), data(name))
    rows, size = Rows(model), x[0].numel()
    heads = readout(model, x, t)
    for where, expected in (([0, 5], [1]), ([size + 3, 1], [1, 1]), ([size + 9, 2], [1, 1]), ([4 * size], [1, 1, 1])):
        heads("tokens", torch.tensor(where))
        assert rows.sizes == expected


# ---- the loss


@pytest.mark.parametrize("name", [name for name in CASES if name != "uniform"])
def test_forward__the_loss_is_the_sum_of_its_parts(name: str) -> None:
    """Against the definitions, in float64 from the same float32 heads. Bins of landings are 0.4 wide and integrated
    in 2,000 points over 28, so that a mass errs by about 1 %, and the sum by less."""
    model, z = network(name), data(name)
    x, t = noisy(model, z)
    with torch.no_grad():
        parts = parts_by_hand(model, name, z, x, t)
        loss = call(model, x, t, labels=z).loss
    assert set(parts) == set(model.config.divergence if name in NUMBERS else ["jump"])
    assert all(float(part.mean()) > 0.01 for part in parts.values())
    expected = float(sum(part.mean() for part in parts.values()))
    assert float(loss) == pytest.approx(expected, rel=2e-3 if "jump" in name or "belief" in name else 1e-4)


@every_case
def test_forward__unscored_entries_are_left_out_of_the_loss(name: str) -> None:
    """The mean over scored entries, or the sum over what `num_items_in_batch` says."""
    model, z = network(name), data(name)
    x, t = noisy(model, z)
    scored = torch.rand(z.shape, generator=rng(7)) < 0.4
    x = torch.where(scored, x, z)
    labels = model.path.mask_labels(z, scored)
    with torch.no_grad():
        loss = call(model, x, t, labels=labels).loss
        total = call(model, x, t, labels=labels, num_items_in_batch=10).loss
    torch.testing.assert_close(total * 10, loss * scored.sum())
    if name != "uniform":
        parts = parts_by_hand(model, name, z, x, t)
        expected = sum(float(part.view(z.shape)[scored].double().mean()) for part in parts.values())
        assert float(loss) == pytest.approx(expected, rel=2e-3 if "jump" in name or "belief" in name else 1e-4)


@every_case
def test_conditional_loss__is_the_loss_of_its_own_noise(name: str) -> None:
    model, z = network(name), data(name)
    loss = conditional_loss(model, z, rng=rng(5))
    x, t = corrupt(model.path, {"": z}, {"": torch.ones_like(z, dtype=torch.bool)}, rng(5))
    assert torch.equal(loss, call(model, x[""], t, labels=z).loss)
    stand_in = conditional_loss(Dense(model, name), z, rng=rng(5))
    torch.testing.assert_close(stand_in, loss, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jump on images", "belief on images", "mixture", "masked", "uniform"])
def test_conditional_loss__in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model, z = network(name), data(name)
    results = []
    for elements in (2**24, 70):
        set_chunks(elements, monkeypatch)
        model.zero_grad()
        loss = conditional_loss(model, z, rng=rng(7))
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-4, atol=5e-5 * float(first.abs().max()))
    assert all(bool(gradient.abs().sum() > 0) for gradient in results[0])


def test_forward__unscored_entries_may_lie_outside_the_bins() -> None:
    """Beyond the bins too: it is no data."""
    model, z = network("belief"), data("belief")
    x, t = noisy(model, z)
    labels = z.clone()
    labels[:, :2] = math.nan
    x[:, 0] = 7.0
    assert bool(call(model, x, t, labels=labels).loss.isfinite())


def test_loss_weights__are_not_those_of_the_process() -> None:
    name = "jump on images"
    model, z = network(name), data(name)
    x, t = noisy(model, z)
    with torch.no_grad():
        parts = {part: float(value.mean()) for part, value in parts_by_hand(model, name, z, x, t).items()}
        weighed = network(name, loss_weights={"flow": 2.0, "jump": 0.25})
        other = network(name, path=CASES[name][0].reweighted({"flow": 0.9, "jump": 0.1}))
        assert float(call(weighed, x, t, labels=z).loss) == pytest.approx(
            2 * parts["flow"] + 0.25 * parts["jump"], rel=1e-4
        )
        assert float(call(other, x, t, labels=z).loss) == pytest.approx(parts["flow"] + parts["jump"], rel=1e-4)
    weights = {part: float(weight[0]) for part, weight in weighed.generator(x, t).weights.items()}
    assert weights == {"flow": 0.25, "diffusion": 0.25, "jump": 0.5}


@pytest.mark.parametrize("kind", ["cosh", "log_cosh", "exponential", "mine"])
def test_divergence__of_flows_is_any_convex_function(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: File
) -> None:
    """D = φ(a) − φ(b) − φ'(b)(a − b) of a = u/unit, here with φ' by hand; "mine" is a φ of the user, φ = a⁴/12 + a²/2."""
    monkeypatch.setitem(bregman.DIVERGENCES, "mine", bregman.Bregman(lambda a: a**4 / 12 + a**2 / 2))
    functions = {
        "cosh": (torch.cosh, torch.sinh),
        "log_cosh": (lambda a: torch.cosh(a).log(), torch.tanh),
        "exponential": (torch.exp, torch.exp),
        "mine": (lambda a: a**4 / 12 + a**2 / 2, lambda a: a**3 / 3 + a),
    }
    name = "jump"
    model, plain, z = network(name, divergence={"flow": kind}), network(name), data(name)
    assert model.config.divergence == {"flow": kind, "jump": "generalized_kl"}
    x, t = noisy(model, z, 0.4)
    with torch.no_grad():
        phi, slope = functions[kind]
        unit = 1 / (0.4**2 + 0.6**2) ** 0.5
        a = ((z - (x - 0.4 * z) / 0.6) / unit).double()
        b = (call(model, x, t).velocity / unit).double()
        expected = (phi(a) - phi(b) - slope(b) * (a - b)).mean() + parts_by_hand(plain, name, z, x, t)["jump"].mean()
        loss = call(model, x, t, labels=z).loss
        assert float(loss) == pytest.approx(float(expected), rel=1e-3)
        assert torch.equal(call(plain, x, t, labels=z, divergence={"flow": kind, "jump": "generalized_kl"}).loss, loss)
    model.save_pretrained(tmp_path)
    assert GMModel.from_pretrained(tmp_path).config.divergence == model.config.divergence


@pytest.mark.parametrize("kind", ["squared", "itakura_saito", "root"])
def test_divergence__of_jumps_is_over_bins(kind: str) -> None:
    """Σ_b D(λ J_b, λ̂ Ĵ_b); 0 log 0 = 0, and φ(0) left out."""
    name = "jump"
    model, z = network(name, divergence={"jump": kind}), data(name)
    x, t = noisy(model, z, 0.4)
    raw = {head: value.double() for head, value in heads_of(model, name, x, t).items()}
    noise = ((x - 0.4 * z) / 0.6).double()
    rate = (noise**2 - 1 - z * noise).clamp(min=0).flatten()[:, None]
    masses = landing_masses(Bins(-4, 4, 8), z.double(), torch.full((5, 1, 1), 0.4)).flatten(0, 1)
    a, b = rate * masses, (raw["rate"].exp().flatten()[:, None] * raw["landing"].softmax(-1).flatten(0, 1))
    by_hand = {
        "squared": (a - b) ** 2 / 2,
        "itakura_saito": a / b - torch.where(a > 0, a / b, 1.0).log() - 1 + torch.where(a > 0, 0.0, b.log()),
        "root": (a.sqrt() - b.sqrt()) ** 2 / b.sqrt(),
    }[kind]
    flow = parts_by_hand(network(name), name, z, x, t)["flow"].mean()
    expected = flow + by_hand.sum(1).mean()  # masses by a midpoint rule, of error 2e-3
    assert float(call(model, x, t, labels=z).loss.detach()) == pytest.approx(float(expected), rel=4e-3)


@every_number
def test_forward__bf16_autocast_trains_continuous_models(name: str) -> None:
    """bf16 carries 8 bits: hidden states err by 2⁻⁸ of their size, and the mean loss by less than 5 %."""
    model, z = network(name), data(name, rows=64)
    exact = conditional_loss(model, z, rng=rng(2)).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = conditional_loss(model, z, rng=rng(2))
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(exact), rel=0.05)
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key


@every_number
def test_init__an_untrained_model_predicts_the_best_constant(name: str) -> None:
    """All heads are 0: the preconditioned velocity of data of the given mean and deviation, even distributions of bins."""
    path, options, _ = CASES[name]
    model = GMModel(GMConfig(path=path, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, **options))
    x, t = noisy(model, data(name))
    assert all(float(layer.weight.abs().max()) == 0 for layer in model.heads.values())
    if "belief" in path.heads:  # x itself is all that speaks: −(x − αc)²/2v
        bins, time = path.bins, shaped(t, x)[..., None]
        center = -1 + (torch.arange(8) + 0.5) / 4
        evidence = -((x[..., None] - time * center) ** 2) / (2 * (time**2 / 16 / 12 + (1 - time) ** 2))
        found = call(model, x, t).logits.double()
        assert bins == Bins(-1, 1, 8)
        torch.testing.assert_close(found.softmax(-1), evidence.softmax(-1), **ROUNDING)
    elif isinstance(path, GaussianPath):  # E[z − ε | x] of z ~ N(m, s²)
        time = t.view(-1, *[1] * (x.dim() - 1))
        m, s = path.data_mean, path.data_std
        gain = (time * s**2 - (1 - time)) / ((time * s) ** 2 + (1 - time) ** 2)
        expected = m + gain * (x - time * m)
        torch.testing.assert_close(call(model, x, t).velocity.double(), expected.double(), **ROUNDING)


# ---- the transformers' way


@pytest.mark.parametrize("classes", [0, 3])
@every_case
def test_save_pretrained__of_continuous_models_is_bit_exact(tmp_path: File, name: str, classes: int) -> None:
    """Parameters, buffers, config, what is said, and a seeded sample, through the Auto classes."""
    model = network(name, num_classes=classes)
    model.generation_config.num_steps = 4
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is GMModel
    for first, second in (
        (dict(model.named_parameters()), dict(again.named_parameters())),
        (dict(model.named_buffers()), dict(again.named_buffers())),
    ):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert torch.equal(value, second[key]), key
    assert again.path == model.path
    x, t = noisy(model, data(name))
    labels = {"class_labels": CLASSES} if classes else {}
    assert torch.equal(what_is_said(again, x, t, **labels), what_is_said(model, x, t, **labels))
    assert torch.equal(again.generate(batch_size=5, seed=3, **labels), model.generate(batch_size=5, seed=3, **labels))
    before, after = model.config.to_dict(), AutoConfig.from_pretrained(tmp_path).to_dict()
    assert {key for key in before | after if before.get(key) != after.get(key)} <= {"_name_or_path"}


def test_config__images_set_the_number_of_positions() -> None:
    config = GMConfig(path=MaskedPath(5), **COLOUR)
    assert config.max_position_embeddings == 6
    assert config.state_shape(99) == (72,)
    assert GMConfig(path=GaussianPath(num_channels=3), **COLOUR).state_shape(99) == (3, 4, 6)
    assert GMConfig(path=GaussianPath(num_channels=3)).state_shape(9) == (9, 3)
    assert to_entries(torch.arange(72.0).view(1, 6, 12), "masked").shape == (1, 72, 1)
