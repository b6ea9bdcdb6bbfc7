"""Replays of the network: the same samples, from recordings that are used again only for what they were made of.

A CPU has no CUDA graphs. In their place `make_fx` records the operations of a call, which are then repeated on the same
buffers and write the same output: constants, shapes and memory are those of the recording, as in a graph.
"""

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gm_discrete import Adaptive, Blocks, GMModel, TauLeaping
from gm_discrete.nn import replay
from gm_discrete.nn.blocks import BlockCache
from gm_discrete.nn.readout import Network
from gm_discrete.nn.replay import Pool, Replays, flat, nested, padded_size
from tests.helpers.networks import LENGTH, MASK, causal, data, network
from tests.helpers.product_models import network as product_network
from tests.helpers.waits import waits


class Recorder:
    """Records calls as `replay.cuda_graph` does, and counts."""

    def __init__(self) -> None:
        self.sizes: list[int] = []  # sequences of each recording
        self.replayed: list[int] = []  # and of each replay
        self.pools: list[object] = []

    def pool(self) -> object:
        self.pools.append(object())
        return self.pools[-1]

    def __call__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor], pool: object) -> Callable[[], Tensor]:
        assert pool is self.pools[-1]
        size, graph = len(inputs[0]), make_fx(function)(*inputs)
        output = graph(*inputs).clone()
        self.sizes.append(size)

        def again() -> Tensor:
            self.replayed.append(size)
            return output.copy_(graph(*inputs))

        return again


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    monkeypatch.setattr(GMModel, "compile_layers", lambda _: None)  # `make_fx` does not trace compiled layers
    monkeypatch.setitem(replay.RECORDERS, "cpu", (found, found.pool))
    return found


def prompts() -> dict[str, Any]:
    """Of different lengths, padded on both sides, with a mask inside."""
    ids = data(rows=5, length=6)
    mask = torch.ones_like(ids)
    mask[1, :2] = mask[3, 4:] = 0
    ids[2, 3] = MASK
    return {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 4}


LABELS = torch.tensor([0, 2, -1, 1, 1])
FEW: dict[str, Any] = {"batch_size": 5, "length": LENGTH, "num_steps": 16}
"""Half of the steps have an event in a part of the sequences only."""


def shallow(name: str = "masked", **options: Any) -> GMModel:
    """Recording takes as long as it has layers."""
    return network(name, num_hidden_layers=1, **options)


CASES: dict[str, tuple[Callable[[], GMModel], dict[str, Any]]] = {
    "masked": (network, FEW),
    "one sequence": (shallow, {"batch_size": 1, "length": LENGTH, "num_steps": 8}),
    "uniform with time": (lambda: shallow("mixture"), FEW),
    "dit": (lambda: shallow("masked", backbone="dit", time_conditioning=True), FEW),
    "guidance": (
        lambda: shallow("reversal", num_classes=3),
        {"class_labels": LABELS, "guidance_scale": 2.0, "length": LENGTH, "num_steps": 8},
    ),
    "prompts": (shallow, {**prompts(), "num_steps": 8}),
    "prompts, first hitting": (shallow, {**prompts(), "sampler": "first_hitting"}),
    "local convolution": (lambda: shallow(conv_kernel_size=3), {**prompts(), "num_steps": 8}),
    "order": (shallow, FEW | {"sampler": TauLeaping(order="confidence")}),
    "adaptive": (
        lambda: shallow("mixture"),
        {"batch_size": 2, "length": 6, "num_steps": 4, "sampler": Adaptive(max_expected_changes=2.0)},
    ),
    "blocks": (lambda: causal(num_hidden_layers=1), {**prompts(), "max_new_tokens": 6, "num_steps": 3}),
    "cache": (causal, {**prompts(), "max_new_tokens": 6, "num_steps": 3, "use_cache": True}),
    "cache around blocks": (
        network,
        {**prompts(), "max_new_tokens": 6, "num_steps": 8, "blocks": Blocks(3, cache="dual")},
    ),
    "fields": (lambda: product_network("row", num_hidden_layers=1), {"batch_size": 5, "num_steps": 6}),
    "independent fields": (
        lambda: product_network("independent row", num_hidden_layers=1),
        {"batch_size": 5, "num_steps": 6},
    ),
    "heun": (
        lambda: product_network("notes", num_hidden_layers=1),
        {"batch_size": 3, "num_steps": 4, "sampler": "heun"},
    ),
}


def equal(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4) if isinstance(a, dict) else torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "name", [name if name == "masked" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_generate__replayed_samples_are_those_of_plain_calls(name: str, recorder: Recorder) -> None:
    """In the first calls, which record what returns, and in later ones, which only repeat."""
    make, options = CASES[name]
    model = make()
    plain = model.generate(**options, seed=0)
    for _ in range(2):
        equal(model.generate(**options, seed=0, compile=True), plain)
    assert recorder.replayed
    recorded = list(recorder.sizes)
    recorder.replayed.clear()
    equal(model.generate(**options, seed=0, compile=True), plain)
    assert recorder.sizes == recorded
    assert recorder.replayed


def test_generate__sequences_without_an_event_are_not_run_and_others_are_padded(recorder: Recorder) -> None:
    """Of five sequences as many are run as a power of two, or all."""
    model = network()
    sizes: list[int] = []
    model.backbone.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0][""])))
    plain = model.generate(**FEW, seed=0, return_dict_in_generate=True)
    assert {3} < {*sizes}
    found = model.generate(**FEW, seed=0, compile=True, return_dict_in_generate=True)
    assert torch.equal(found.network_calls, plain.network_calls)
    assert {*recorder.replayed} <= {1, 2, 4, 5}
    assert sorted({*recorder.sizes}) == sorted(recorder.sizes)  # each size is recorded once


@pytest.mark.parametrize("name", CASES)
def test_hidden__waits_for_nothing_and_copies_nothing_from_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither can be recorded as a CUDA graph. Each call of the network in `generate` is looked at."""
    make, options = CASES[name]
    model = make()
    found: list[list[str]] = []
    plain = Network.hidden

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        with waits() as here:
            output = plain(*args, **kwargs)
        found.append(here)
        return output

    monkeypatch.setattr(Network, "hidden", watched)
    model.generate(**options, seed=0)
    assert found
    assert not any(found)


@pytest.mark.parametrize(("count", "batch", "size"), [(1, 5, 1), (2, 5, 2), (3, 5, 4), (5, 5, 5), (5, 9, 8), (9, 9, 9)])
def test_padded_size__is_a_power_of_two_or_the_batch(count: int, batch: int, size: int) -> None:
    assert padded_size(count, batch) == size


def test_replays__keep_what_they_return(recorder: Recorder) -> None:
    """A later replay writes into the memory of the one before, and its inputs into that of earlier inputs."""
    replays, model = Replays(recorder, recorder.pool), network()
    replays.keep_for(model.backbone)
    t = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        states = [{"": data(rows=2).roll(shift, 1)} for shift in range(4)]
        expected = [model.network.hidden(x, t) for x in states]
        found = [replays(model.network.hidden, x, t) for x in states]
    assert recorder.replayed == [2, 2, 2]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def hidden(model: GMModel, replays: Replays, rows: int = 2, length: int = LENGTH, **changes: Any) -> Tensor:
    """A call whose result must be that of the plain call."""
    x, t = {"": data(rows=rows, length=length)}, torch.full((rows,), 0.5, dtype=torch.float64)
    arguments = [x, changes.get("t", t), changes.get("mask"), changes.get("labels")]
    with torch.no_grad():
        found = replays(model.network.hidden, *arguments)
        torch.testing.assert_close(found, model.network.hidden(*arguments))
    return found


@pytest.mark.slow
def test_replays__another_shape_type_or_argument_is_another_recording(recorder: Recorder) -> None:
    replays, model = Replays(recorder, recorder.pool), network("mixture", num_classes=3)
    replays.keep_for(model.backbone)
    mask, labels = torch.ones(2, LENGTH, dtype=torch.long), torch.tensor([0, 1])
    kinds: list[dict[str, Any]] = [
        {}, {"rows": 3}, {"length": 7}, {"mask": {"": mask}}, {"mask": {"": mask.bool()}}, {"labels": labels},
        {"labels": labels, "mask": {"": mask}}, {"t": torch.full((2,), 0.5)},
    ]  # fmt: skip
    for number, kind in enumerate(kinds, 1):
        for _ in range(3):
            hidden(model, replays, **kind)
        assert len(recorder.sizes) == number
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            hidden(model, replays)
    assert len(recorder.sizes) == len(kinds) + 1


def test_replays__new_values_of_weights_are_read(recorder: Recorder) -> None:
    """In autocast, too, whose casted copies of weights must not become part of a recording."""
    replays, model = Replays(recorder, recorder.pool), network()
    replays.keep_for(model.backbone)
    for dtype in (None, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            old = [hidden(model, replays) for _ in range(3)][-1]
            with torch.no_grad():
                for parameter in model.backbone.parameters():
                    parameter.mul_(1.1)
            torch.clear_autocast_cache()
            assert not torch.allclose(hidden(model, replays), old, atol=1e-2)
    assert len(recorder.sizes) == 2


CHANGES: dict[str, Callable[[GMModel], object]] = {
    "another type": lambda model: model.double(),
    "other storage": lambda model: setattr(
        model.backbone.norm.norm, "weight", copy.deepcopy(model.backbone.norm.norm.weight)
    ),
    "other attention": lambda model: model.set_attn_implementation("eager"),
    "training": lambda model: model.backbone.train(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_replays__are_dropped_when_the_network_is_another(name: str, recorder: Recorder) -> None:
    model = shallow()
    for _ in range(2):
        model.generate(**FEW, seed=0, compile=True)
    replays = replay._KEPT[model.backbone]
    kept, pools = dict(replays.calls), len(recorder.pools)
    replays.keep_for(model.backbone.eval())
    assert replays.calls == kept
    CHANGES[name](model)
    replays.keep_for(model.backbone)
    assert not replays.calls
    assert len(recorder.pools) == pools + 1  # memory of which all recordings are gone cannot be shared again
    model.eval()
    torch.testing.assert_close(model.generate(**FEW, seed=2, compile=True), model.generate(**FEW, seed=2))


def test_replays__as_many_are_kept_as_fit(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST_GRAPHS", 2)
    replays, model = Replays(recorder, recorder.pool), network()
    replays.keep_for(model.backbone)
    for length in (4, 5, 4, 5, 4, 6, 6, 4, 4):  # 5 was not used for longest
        hidden(model, replays, length=length)
    assert len(recorder.sizes) == 3
    hidden(model, replays, length=5)
    assert len(recorder.sizes) == 4
    assert len(replays.calls) == 2


def test_replays__what_cannot_be_recorded_runs_as_it_is(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    """One warning names the reason: here the network reads a value."""
    model = network()
    plain = model.generate(**FEW, seed=0)
    model.backbone.layers[0].register_forward_hook(lambda _, args, output: output + 0 * output.sum().item())
    for _ in range(2):
        assert torch.equal(model.generate(**FEW, seed=0, compile=True), plain)
    (record,) = (one for one in caplog.records if one.name == replay.logger.name)
    assert "compile=True" in record.getMessage()
    assert "_local_scalar_dense" in record.getMessage()
    assert not recorder.sizes


def test_replays__gradients_need_the_plain_call(recorder: Recorder) -> None:
    model = network()
    x, t = data(rows=2), torch.full((2,), 0.5)
    with replay.compiled(model):
        for _ in range(3):
            model(input_ids=x, time=t).logits.sum().backward()
    assert not recorder.sizes
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_replays__serve_inference_mode_and_then_others(recorder: Recorder) -> None:
    """Buffers that are made in inference mode could not be written to outside of it."""
    model = network()
    plain = model.generate(**FEW, seed=0)
    with torch.inference_mode():
        assert torch.equal(model.generate(**FEW, seed=0, compile=True), plain)
    assert torch.equal(model.generate(**FEW, seed=0, compile=True), plain)
    assert recorder.replayed


def test_replays__serve_several_threads(recorder: Recorder) -> None:
    model = network()
    plain = [model.generate(**FEW, seed=seed) for seed in range(3)]
    found: dict[int, Tensor] = {}
    model.generate(**FEW, seed=9, compile=True)

    def run(seed: int) -> None:
        found[seed] = model.generate(**FEW, seed=seed, compile=True)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(3):
        assert torch.equal(found[seed], plain[seed])


def test_replays__end_with_their_model(recorder: Recorder) -> None:
    """They do not keep it alive, and a copy of it has none."""
    model = network()
    model.generate(**FEW, seed=0, compile=True)
    twin = copy.deepcopy(model)
    assert twin.backbone not in replay._KEPT
    replay._KEPT[model.backbone].calls.clear()  # the recordings of `make_fx` hold the weights, those of CUDA do not
    backbone = weakref.ref(model.backbone)
    del model
    gc.collect()
    assert backbone() is None


def test_flat__has_an_inverse() -> None:
    caches = [
        BlockCache({layer: tuple(torch.rand(2) for _ in range(parts)) for layer in range(3)}, last)
        for parts, last in ((2, None), (4, torch.rand(3)))
    ]
    arguments = [{"a": torch.rand(1), "b": torch.rand(2)}, torch.rand(3), None, None, {"c": torch.rand(1)}, *caches]
    tensors = flat(arguments)
    again = nested(tensors, len(arguments))
    assert [type(value) for value in again] == [type(value) for value in arguments]
    assert list(flat(again)) == list(tensors)
    assert again[-1].last is caches[-1].last
    assert all(a is b for a, b in zip(flat(again).values(), tensors.values(), strict=True))


def test_generate__compile_compiles_the_layers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU this is all that it does."""
    model, calls, compile_layers = network(num_hidden_layers=1), [], GMModel.compile_layers
    plain = model.generate(**FEW, seed=0)

    def traced(model: GMModel) -> None:
        calls.append(model)
        compile_layers(model, backend="eager")

    monkeypatch.setattr(GMModel, "compile_layers", traced)
    for _ in range(2):
        torch.testing.assert_close(model.generate(**FEW, seed=0, compile=True), plain)
    assert calls == [model]
    assert model.backbone not in replay._KEPT


def test_generate__recording_compiles_no_layer_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        made.append(1)
        return graph.forward

    def record(function: Callable[..., Tensor], inputs: Sequence[Tensor], pool: object) -> Callable[[], Tensor]:
        before = len(made)
        function(*inputs)
        assert len(made) == before
        return lambda: function(*inputs)

    monkeypatch.setitem(replay.RECORDERS, "cpu", (record, object))
    torch._dynamo.reset()
    model = network()
    model.compile_layers(backend=backend)
    model.generate(**FEW, seed=0, compile=True)
    torch._dynamo.reset()
    assert made
    assert not replay._KEPT[model.backbone].failed


def test_generate__masks_that_are_made_with_the_host_are_not_recorded(recorder: Recorder) -> None:
    """Flash attention reads values of a mask, and flex attention compiles it: a recording of that would fail."""
    model = network()
    plain = model.generate(**prompts(), num_steps=8, seed=0)
    model.config._attn_implementation_internal = "another"
    ALL_ATTENTION_FUNCTIONS.register("another", ALL_ATTENTION_FUNCTIONS["sdpa"])
    ALL_MASK_ATTENTION_FUNCTIONS.register("another", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    for _ in range(2):
        assert torch.equal(model.generate(**prompts(), num_steps=8, seed=0, compile=True), plain)
    assert not recorder.sizes
    model.generate(**FEW, seed=0, compile=True)
    assert recorder.sizes


def test_cuda_graph__all_of_a_pool_are_recorded_on_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise none could use the memory that another leaves free."""
    monkeypatch.setattr(torch, "cuda", MagicMock())
    first, second = Pool(), Pool()
    for pool in (first, first, second):
        replay.cuda_graph(torch.neg, [torch.ones(2)], pool)
    assert torch.cuda.Stream.call_count == 2  # pyright: ignore[reportAttributeAccessIssue]
    given = [call.kwargs for call in torch.cuda.graph.call_args_list]  # pyright: ignore[reportAttributeAccessIssue]
    assert all(one["stream"] is first.stream and one["pool"] is first.handle for one in given[:2])


def test_generate__compile_is_an_option_of_the_config() -> None:
    model = network()
    model.generation_config.compile = True
    assert model.generation_config.to_dict()["compile"] is True
    with pytest.raises(ValueError, match=r"compile='yes'.*True or False"):
        model.generate(compile="yes")  # pyright: ignore[reportArgumentType]
