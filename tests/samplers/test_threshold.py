"""Decoding by a threshold, and the decoding of LLaDA and Dream: what is revealed, by how many calls, and which tokens."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete import Blocks, EntropyBounded, GMGenerationConfig, GMModel, MaskedPath, Sampler, TauLeaping, simulate
from tests.helpers.chains import EnumeratedChain, index_of
from tests.helpers.distributions import LEAST_P, chi_square
from tests.helpers.networks import LENGTH, MASK, K, network, rng

PROBS = torch.tensor([[0.95, 0.04, 0.01], [0.5, 0.3, 0.2], [0.9, 0.07, 0.03], [0.4, 0.35, 0.25]])


class Recorded:
    """Independent tokens with a distribution of their own each; it keeps the states that it is evaluated at."""

    def __init__(self, probs: Tensor) -> None:
        self.path, self.probs = MaskedPath(probs.shape[1] + 1), torch.nn.functional.pad(probs, (0, 1))
        self.states: list[Tensor] = []

    def generator(self, x: Tensor, t: Tensor, t_next: Tensor | None = None) -> Any:
        self.states.append(x)
        return self.path.marginal(self.probs.log().expand(len(x), -1, -1), x, t, t_next)


def run(model: Any, sampler: Sampler, rows: int = 500, **options: Any) -> Any:
    start = torch.full((rows, len(PROBS)), model.path.mask_token_id)
    return simulate(model, start, [0.0, 1.0], rng(), sampler, return_info=True, **options)


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])
def test_threshold__a_step_reveals_what_reaches_it_or_the_first_of_the_order(order: str) -> None:
    model = Recorded(PROBS)
    run(model, TauLeaping(order, threshold=0.9))
    alone = 0
    for before, after in zip(model.states[:-1], model.states[1:], strict=True):
        revealed = (before != after) & (before == 3)
        chance = PROBS.gather(1, after.clamp(max=2).T).T
        sure = revealed & (chance >= 0.9)
        assert ((revealed & ~sure).sum(1) <= 1).all()  # one at most is below: the first of the order
        single = (revealed & ~sure).any(1)
        if order == "confidence":  # that one has the highest probability, so that no other reaches the threshold
            assert (revealed.sum(1)[single] == 1).all()
        alone += int(single.sum())
        assert (revealed.any(1) == (before == 3).any(1)).all()
    assert alone > 100


def test_threshold__which_every_token_reaches_takes_one_call_and_one_that_none_reaches_a_call_for_each_mask() -> None:
    assert run(Recorded(PROBS), TauLeaping("confidence", threshold=0.005)).network_calls.unique().tolist() == [1]
    assert run(Recorded(PROBS), TauLeaping("confidence", threshold=1.0)).network_calls.unique().tolist() == [4]
    certain = Recorded(torch.tensor([[1.0, 0, 0]] * 4))
    assert run(certain, TauLeaping("entropy", threshold=1.0)).network_calls.unique().tolist() == [1]


def test_threshold__sequences_that_are_done_cost_no_calls() -> None:
    fixed = torch.zeros(3, 4, dtype=torch.bool)
    fixed[0], fixed[1, :3] = True, True
    found = run(Recorded(PROBS), TauLeaping("confidence", threshold=1.0), rows=3, fixed=fixed)
    assert found.network_calls.tolist() == [0, 1, 4]


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_threshold__number_of_steps_is_of_no_effect(steps: int) -> None:
    model = network()
    options: Any = {"length": 8, "batch_size": 4, "seed": 1, "return_dict_in_generate": True}
    sampler = TauLeaping("confidence", threshold=0.7)
    found = model.generate(num_steps=steps, sampler=sampler, **options)
    assert torch.equal(found.network_calls, model.generate(num_steps=8, sampler=sampler, **options).network_calls)
    watched = model.generate(
        num_steps=steps, sampler=sampler, output_trajectory=True, **options
    )  # at the times of a grid
    assert (watched.sequences != MASK).all()
    assert (watched.network_calls <= 8).all()


def test_threshold__one_at_a_time_by_the_state_alone_preserves_an_exact_distribution() -> None:
    model = EnumeratedChain(MaskedPath(4), 3, 3)
    start = torch.full((20_000, 3), 3)
    x = simulate(model, start, [0.0, 1.0], rng(), TauLeaping("margin", threshold=1.0))
    assert chi_square(torch.bincount(index_of(x, 3), minlength=27), model.weights) > LEAST_P


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.9}, "threshold=0.9.*order='confidence'"),
        ({"order": "margin", "threshold": 0.0}, "threshold=0.0"),
        ({"order": "margin", "threshold": 1.1}, "threshold=1.1"),
        ({"order": "margin", "threshold": 0.5, "order_temperature": 0.1}, "threshold=0.5 and order_temperature=0.1"),
        ({"order": "margin", "order_temperature": (1.0, 2.0, 3.0)}, "order_temperature="),
        ({"order": "margin", "order_temperature": (1.0, -1.0)}, "order_temperature=-1.0"),
    ],
)
def test_threshold__options_out_of_range_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TauLeaping(**options)


@pytest.mark.parametrize(
    "sampler",
    [TauLeaping("confidence", threshold=0.9), TauLeaping("entropy", (0.4, 0.4)), TauLeaping("entropy", 0.3)],
    ids=str,
)
def test_threshold__travels_in_the_generation_config(sampler: Sampler) -> None:
    config = GMGenerationConfig(sampler=sampler)
    again = GMGenerationConfig.from_dict(config.to_dict())
    assert again.sampler == sampler
    assert repr(again.sampler) == repr(sampler)
    assert again.sampler.chooses_times == (sampler.to_dict()["threshold"] is not None)


def test_threshold__needs_masks() -> None:
    with pytest.raises(ValueError, match="order='confidence'"):
        network("reversal").generate(length=4, sampler=TauLeaping("confidence", threshold=0.9))


# ---- temperature


@pytest.mark.parametrize("sampler", [TauLeaping("confidence", threshold=0.999), EntropyBounded(0.5)], ids=str)
def test_orders__score_the_prediction_before_the_temperature(sampler: Sampler) -> None:
    """At temperature 0 the drawn token has probability 1: nothing would be left to tell positions apart."""
    prompt = torch.randint(K - 1, (4, 4), generator=rng(2))
    options: Any = {"max_new_tokens": 8, "sampler": sampler, "return_dict_in_generate": True, "seed": 0}
    calls = [network().generate(prompt, temperature=heat, **options).network_calls for heat in (0, 1e-6)]
    assert calls[0].float().mean() > 2
    assert torch.equal(*calls)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": (0.0, 0.0)}, {"top_k": 1}, {"top_p": 1e-6}])
def test_orders__draw_after_temperature_top_k_and_top_p(options: dict[str, Any]) -> None:
    model, prompt = network(), torch.tensor([[1, 7, 3]])
    found = model.generate(prompt, max_new_tokens=6, num_steps=6, sampler=TauLeaping("confidence"), seed=0, **options)
    assert found.tolist() == llada(model, prompt, 6, 6, 6).tolist()


def test_orders__banned_words_keep_the_temperature() -> None:
    model = network()
    options: Any = {
        "length": 8,
        "batch_size": 16,
        "num_steps": 2,
        "sampler": TauLeaping("confidence"),
        "temperature": 0,
    }
    plain = model.generate(seed=0, **options)
    words = [row[:2].tolist() for row in plain]
    found = model.generate(seed=0, bad_words_ids=words, **options)
    pairs = {tuple(pair) for row in found.tolist() for pair in itertools.pairwise(row)}
    assert not pairs & {tuple(word) for word in words}
    assert len(found.unique(dim=0)) == 1  # the most likely tokens, in every row


# ---- the decoding of published models, written anew from their description


@torch.no_grad()
def llada(model: GMModel, prompt: Tensor, steps: int, new: int, block: int, score: str = "confidence") -> Tensor:
    """Low-confidence remasking at temperature 0: `steps` over all blocks, in each equally many tokens a step.

    With another score it is Dream's `maskgit_plus`, `entropy` or `topk_margin`.
    """
    x = torch.cat([prompt, torch.full((len(prompt), new), MASK)], 1)
    for start in range(prompt.shape[1], x.shape[1], block):
        for _ in range(steps * block // new):
            probs = model(input_ids=x).logits.softmax(-1)
            best = probs.topk(2, dim=-1)
            rank = {
                "confidence": best.values[..., 0],
                "margin": best.values[..., 0] - best.values[..., 1],
                "entropy": -torch.special.entr(probs).sum(-1),
            }[score]
            rank = rank.where(x == MASK, -1e9)
            rank[:, start + block :] = -1e9
            chosen = rank.topk(new // steps, dim=1).indices
            x = x.scatter(1, chosen, best.indices[..., 0].gather(1, chosen))
    return x


@pytest.mark.parametrize("score", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize(("steps", "block"), [(8, 8), (4, 8), (8, 4), (2, 4)])
def test_orders__reference_settings_give_the_tokens_of_the_references(score: str, steps: int, block: int) -> None:
    model = network(max_position_embeddings=LENGTH + 8)
    prompt = torch.randint(K - 1, (3, 4), generator=rng(2))
    found = model.generate(
        prompt, max_new_tokens=8, num_steps=steps * block // 8, blocks=Blocks(block), sampler=TauLeaping(score),
        temperature=0, seed=0,
    )  # fmt: skip
    assert torch.equal(found, llada(model, prompt, steps, 8, block, score))


def test_order_temperature__of_two_numbers_chooses_as_a_softmax_of_the_scores() -> None:
    """Dream's alg_temp: positions without replacement from softmax(score / alg_temp)."""
    heat, rows = 0.2, 20_000
    model = Recorded(PROBS)
    start = torch.full((rows, 4), 3)
    x = simulate(model, start, [0.5, 0.625], rng(), TauLeaping("margin", (heat, heat)))  # one of four
    revealed = x != 3
    assert (revealed.sum(1) == 1).all()
    best = PROBS.topk(2).values
    expected = ((best[:, 0] - best[:, 1]) / heat).softmax(0)
    assert chi_square(revealed.sum(0), expected) > LEAST_P
