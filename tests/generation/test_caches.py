"""Approximate caches around a block: where they are exact, how many positions are evaluated, and what refuses them."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from gm_discrete import Blocks, GMConfig, GMModel, MaskedPath, TauLeaping
from gm_discrete.nn.blocks import WindowCache, window_attention
from gm_discrete.nn.readout import HiddenStates, Network
from tests.helpers.networks import LENGTH, MASK, PAD, K, causal, network, rng

KINDS = ("gm", "dit", "llama", "llama, shifted")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_cache = pytest.mark.parametrize("cache", ["prefix", "dual"])


def model_of(kind: str, layers: int = 3) -> GMModel:
    """A network whose every parameter matters."""
    if not kind.startswith("llama"):
        more: dict[str, Any] = {"time_conditioning": False} if kind == "dit" else {}
        return network(num_hidden_layers=layers, backbone=kind, **more)
    llama = LlamaConfig(
        vocab_size=K, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = GMModel(GMConfig(path=MaskedPath(K), backbone=llama, shift="shifted" in kind))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.25 * torch.randn(parameter.shape, generator=rng(1)) + (parameter.dim() == 1))
    return model.eval()


def prompts() -> dict[str, Any]:
    """Two prompts, the second in two documents, and a shorter one with padding."""
    ids = torch.randint(1, K - 1, (3, 6), generator=rng(3))
    mask = torch.tensor([[1] * 6, [1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 0, 0]])
    return {"input_ids": torch.where(mask == 0, PAD, ids), "attention_mask": mask}


def states(model: GMModel, window: WindowCache | None = None) -> HiddenStates:
    given, part = prompts(), torch.full((3, 6), MASK)
    mask = torch.cat([given["attention_mask"], given["attention_mask"].amax(1, keepdim=True).expand(3, 6)], 1)
    x = torch.cat([given["input_ids"], part], 1)
    return HiddenStates(model.network, {"": x}, torch.zeros(3), {"": mask}, window=window)


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Sequences and positions of every evaluation."""
    found: list[tuple[int, int]] = []
    hidden = Network.hidden

    def counted(self: Network, x: Any, *rest: Any, **options: Any) -> Tensor:
        found.append(tuple(x[""].shape))
        return hidden(self, x, *rest, **options)

    monkeypatch.setattr(Network, "hidden", counted)
    return found


@torch.no_grad()
@each_kind
@pytest.mark.parametrize("window", [(4, 7), (4, 12), (0, 5), (6, 9)])
def test_caches__window_of_unchanged_sequences_has_the_states_of_a_full_evaluation(
    kind: str, window: tuple[int, int]
) -> None:
    model, cache = model_of(kind), WindowCache(*window)
    whole = states(model).compute()[:, slice(*window)]
    first = states(model, cache)
    near: Any = {"rtol": 1e-5, "atol": 1e-5 * float(whole.abs().max())}
    for row in (1, 0):
        torch.testing.assert_close(first.compute(torch.tensor([row]), [row])[row], whole[row], **near)
    mixed = states(model, cache)  # the third is evaluated in all positions, the others in the window
    torch.testing.assert_close(mixed.compute(), whole, **near)
    torch.testing.assert_close(states(model, cache).compute(), whole, **near)


@each_cache
@pytest.mark.parametrize("kind", ["gm", "dit", "llama"])
def test_caches__of_one_layer_change_nothing(kind: str, cache: str) -> None:
    """Its keys and values are those of the tokens alone. (A shifted head also reads the state before the block.)"""
    model = model_of(kind, layers=1)
    options: Any = {**prompts(), "max_new_tokens": 9, "num_steps": 4, "seed": 1, "return_dict_in_generate": True}
    plain, cached = (model.generate(blocks=Blocks(4, kind), **options) for kind in (None, cache))
    assert torch.equal(plain.sequences, cached.sequences)
    assert torch.equal(plain.network_calls, cached.network_calls)
    assert torch.equal(plain.jumps, cached.jumps)


@each_cache
@each_kind
def test_caches__with_one_block_for_all_positions_change_nothing(kind: str, cache: str) -> None:
    model = model_of(kind)
    options: Any = {"length": LENGTH, "batch_size": 3, "num_steps": 6, "seed": 1}
    plain, cached = (model.generate(blocks=Blocks(LENGTH, kind), **options) for kind in (None, cache))
    assert torch.equal(plain, cached)


@each_cache
@each_kind
def test_caches__first_step_of_every_block_is_exact(kind: str, cache: str) -> None:
    model = model_of(kind)
    options: Any = {**prompts(), "max_new_tokens": 9, "num_steps": 1, "temperature": 0, "seed": 1}
    plain, cached = (model.generate(blocks=Blocks(3, kind), **options) for kind in (None, cache))
    assert torch.equal(plain, cached)


@pytest.mark.parametrize(("cache", "later"), [(None, (12, 12, 12)), ("prefix", (8, 5, 2)), ("dual", (3, 3, 2))])
def test_caches__evaluate_fewer_positions(cache: str | None, later: tuple[int, ...], evaluated: list) -> None:
    """The first step of a block all of them, later ones the block and what follows it, or the block."""
    model = network(max_position_embeddings=LENGTH)
    sampler = TauLeaping("confidence", threshold=1.0)  # one token at a time
    model.generate(
        torch.ones(2, 4, dtype=torch.long), max_new_tokens=8, blocks=Blocks(3, cache), sampler=sampler, seed=0
    )
    sizes = [size for block, tokens in zip(later, (3, 3, 2), strict=True) for size in (12, *[block] * (tokens - 1))]
    assert evaluated == [(2, size) for size in sizes]


@each_cache
def test_caches__sequences_that_are_evaluated_late_are_evaluated_whole(cache: str, evaluated: list) -> None:
    """In a random order a sequence may have no event in the first steps of its block."""
    model = network()
    found = model.generate(
        batch_size=6, length=LENGTH, num_steps=20, blocks=Blocks(4, cache), seed=0, return_dict_in_generate=True
    )
    whole = sum(rows for rows, size in evaluated if size == LENGTH)
    assert whole >= 3 * 6  # of "prefix" also later ones of the first block
    assert sum(rows for rows, _ in evaluated) == int(found.network_calls.sum())
    assert len({size for _, size in evaluated}) > 1


def test_caches__of_several_layers_are_approximations() -> None:
    """Tokens differ from those without a cache in some, and are drawn from the same network in all."""
    model, prompt = network(num_hidden_layers=4), prompts()
    options: Any = {**prompt, "max_new_tokens": 9, "num_steps": 9, "seed": 0, "num_return_sequences": 20}
    plain, prefix, dual = (model.generate(blocks=Blocks(3, kind), **options) for kind in (None, "prefix", "dual"))
    for cached in (prefix, dual):
        assert not torch.equal(plain, cached)
        assert (cached != MASK).all()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (network(), {"blocks": {"type": "blocks", "length": 4, "cache": "both"}}, "cache='both'.*'prefix', 'dual'"),
        (causal(), {"blocks": Blocks(4, "dual")}, "cache='dual'. needs no block_size.*exact"),
        (network(), {"blocks": Blocks(4), "use_cache": True}, "use_cache=True needs block_size.*cache='prefix'"),
        (network(conv_kernel_size=3), {"blocks": Blocks(4, "prefix")}, "cache='prefix'.*conv_kernel_size=3"),
        (
            network(num_classes=2),
            {"blocks": Blocks(4, "dual"), "class_labels": [1], "guidance_scale": 2.0},
            "guidance_scale",
        ),
    ],
)
def test_caches__that_do_not_fit_are_refused(model: GMModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(length=8, **options)


def test_window_attention__with_padding_needs_a_mask_that_is_a_tensor() -> None:
    config = network().config
    config._attn_implementation_internal = "flash_attention_2"
    hidden, cache = torch.zeros(1, 3, 8), WindowCache(2, 5).kept
    assert window_attention(config, hidden, None, cache)[0] is None
    with pytest.raises(ValueError, match="attn_implementation='flash_attention_2'"):
        window_attention(config, hidden, torch.ones(1, 8), cache)


def test_caches__use_cache_false_turns_them_off(evaluated: list) -> None:
    network().generate(length=LENGTH, num_steps=3, blocks=Blocks(4, "dual"), use_cache=False, seed=0)
    assert {size for _, size in evaluated} == {LENGTH}
