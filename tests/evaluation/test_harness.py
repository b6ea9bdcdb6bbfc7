"""`GMHarness`: each kind of request, and three tasks from end to end; `ContinuationScorer`."""

from __future__ import annotations

import itertools
import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any, TypedDict, Unpack

import lm_eval
import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from gm_discrete import GaussianPath, GMConfig, GMModel, MaskedPath, UniformPath, likelihood_bound
from gm_discrete.data import character_tokenizer
from gm_discrete.evaluation.continuations import windows
from gm_discrete.evaluation.harness import GMHarness, argument_names

LENGTH = 12
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": LENGTH}
TOKENIZER = character_tokenizer(alphabet="abcd \n")
EOS, MASK = TOKENIZER.eos_token_id, TOKENIZER.mask_token_id


def network(path: Any = None, seed: int = 0, **config: Any) -> GMModel:
    path = path or MaskedPath(len(TOKENIZER), MASK)
    model = GMModel(GMConfig(path=path.to_dict(), pad_token_id=TOKENIZER.pad_token_id, **TINY, **config))
    rng = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=rng)
    return model.eval()


MODEL = network()


def harness(model: GMModel = MODEL, **options: Any) -> GMHarness:
    return GMHarness(pretrained=model, tokenizer=TOKENIZER, **options)


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, pair, i) for i, pair in enumerate(arguments)]  # pyright: ignore


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def by_orders(context: list[int], tokens: list[int]) -> float:
    """log of the mean over all orders of the product of the network's probabilities, one token at a time."""
    products = []
    for order in itertools.permutations(range(len(tokens))):
        shown, product = [MASK] * len(tokens), 0.0
        for i in order:
            with torch.no_grad():
                logits = MODEL(input_ids=torch.tensor([context + shown])).logits[0, len(context) + i]
            product += float(logits.double().log_softmax(0)[tokens[i]])
            shown[i] = tokens[i]
        products.append(product)
    return float(torch.tensor(products).double().logsumexp(0)) - math.log(len(products))


def greedy(context: list[int], count: int) -> list[int]:
    """Tokens decoded one at a time, the position with the greatest maximum first."""
    x = torch.tensor([context + [MASK] * count])
    for _ in range(count):
        with torch.no_grad():
            chances = MODEL(input_ids=x).logits[0].softmax(1)
        chances[x[0] != MASK] = -1
        position = int(chances.max(1).values.argmax())
        x[0, position] = chances[position].argmax()
    return x[0, len(context) :].tolist()


# ---- log-likelihoods


def test_harness__short_continuations_are_scored_exactly() -> None:
    pairs = [("ab c", " da"), ("", "bd"), ("dd ", "ab"), ("cab", "")]
    found = harness(exact_up_to=3).loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    # Trailing spaces of a context move to the continuation; an empty context is the end of a text before it.
    expected = [by_orders(ids("ab c"), ids(" da")), by_orders([EOS], ids("bd")), by_orders(ids("dd"), ids(" ab")), 0.0]
    assert [value for value, _ in found] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_harness__long_continuations_are_scored_by_the_bound() -> None:
    """Within 5 standard errors of the bound that is computed here, with 4000 draws each; with many orders near the exact
    value, from below."""
    context, tokens = ids("ab c"), ids(" dabc")
    z = torch.tensor([context + tokens])
    scored = torch.arange(z.shape[1])[None] >= len(context)
    bound = likelihood_bound(MODEL, z, scored=scored, num_samples=4000, batch_size=2000, rng=rng(1))
    ((value, _),) = harness(num_samples=4000, batch_size=2000, exact_up_to=4).loglikelihood(
        requests("loglikelihood", ("ab c", " dabc")), disable_tqdm=True
    )
    assert -value == pytest.approx(float(bound.nats), abs=5 * 2**0.5 * float(bound.nats_stderr))
    assert float(bound.nats_stderr) < 0.05
    exact = by_orders(context, tokens)
    ((close, _),) = harness(num_orders=256).loglikelihood(requests("loglikelihood", ("ab c", " dabc")), True)
    assert value < exact - 0.2
    assert close == pytest.approx(exact, abs=0.1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_harness__greedy_is_decoding_one_at_a_time() -> None:
    for context in ("a", "db c", "cc a"):
        best = TOKENIZER.decode(greedy(ids(context), 3))
        other = ("a" if best[0] != "a" else "b") + best[1:]
        last = best[:-1] + ("a" if best[-1] != "a" else "b")
        pairs = [(context, text) for text in (best, other, last)]
        encoded = [(pair, ids(pair[0]), ids(pair[1])) for pair in pairs]
        found = harness(num_samples=1)._loglikelihood_tokens(encoded, disable_tqdm=True)
        assert [is_greedy for _, is_greedy in found] == [True, False, False]
    assert not harness(network(UniformPath(len(TOKENIZER)))).scorer.is_greedy(ids("a"), ids("b"))


def test_harness__results_do_not_depend_on_batches_or_order() -> None:
    pairs = [("ab c", " da"), ("ab c", " db"), ("", "bdbd"), ("dddd", "a")]
    texts = [("abcd abcd abcd abcd",), ("dcba",)]
    prompts = [("ab", {"until": [], "max_gen_toks": 6, "do_sample": True, "temperature": 1.0}), ("c", {"until": ["a"]})]
    found = []
    for batch_size, step in ((1, 1), (7, -1), (64, -1), ("auto", 1)):
        model = harness(batch_size=batch_size, num_samples=16, num_steps=8)
        found.append(
            (
                [value for value, _ in model.loglikelihood(requests("loglikelihood", *pairs[::step]), True)][::step],
                model.loglikelihood_rolling(requests("loglikelihood_rolling", *texts[::step]), True)[::step],
                model.generate_until(requests("generate_until", *prompts[::step]), True)[::step],
            )
        )
    for values, rolling, generated in found[1:]:
        assert values == pytest.approx(found[0][0], rel=1e-5)  # rows of larger batches are rounded differently
        assert rolling == pytest.approx(found[0][1], rel=1e-5)
        assert generated == found[0][2]
    other = harness(seed=1, num_samples=16).loglikelihood(requests("loglikelihood", *pairs), True)
    assert [value for value, _ in other] != pytest.approx(found[0][0], rel=1e-3)


def test_harness__choices_of_a_question_share_their_noise() -> None:
    """The masks of continuations of one length are the same: the same text twice gets the same value."""
    model = harness(num_samples=4)
    values = [value for value, _ in model.loglikelihood(requests("loglikelihood", *[("ab", " cd")] * 2), True)]
    assert values[0] == values[1]
    assert model._rng(ids("ab")).initial_seed() != model._rng(ids("ba")).initial_seed()


# ---- rolling windows


@pytest.mark.parametrize("kept", [1, 3, 11])
@pytest.mark.parametrize("size", [1, 11, 12, 13, 40])
def test_windows__score_each_token_once(kept: int, size: int) -> None:
    """As those of the harness, whose `max_seq_len` does not count the last token, which is only predicted."""
    tokens = list(range(100, 100 + size))
    found = list(windows([7], tokens, LENGTH, kept))
    theirs = map(make_disjoint_window, get_rolling_token_windows(tokens, 7, LENGTH - 1, kept))
    assert found == [tuple(window) for window in theirs]
    assert [token for _, scored in found for token in scored] == tokens
    assert all(len(context) + len(scored) <= LENGTH for context, scored in found)
    for context, scored in found:
        everything = [7, *tokens]
        assert everything[: everything.index(scored[0])][-len(context) :] == context


def test_windows__cut_a_long_context_on_the_left() -> None:
    assert list(windows(list(range(50)), [90, 91], LENGTH)) == [(list(range(40, 50)), [90, 91])]
    assert list(windows([], [1, 2], LENGTH)) == [([], [1, 2])]
    assert list(windows([5], [], LENGTH)) == []


def test_harness__rolling_sums_over_windows() -> None:
    """Exact by windows of two: log p(first two | start), log p(next | …), … against the enumeration of orders."""
    text = "abcda"
    model = harness(exact_up_to=3, max_length=3)
    (found,) = model.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)), True)
    a = ids(text)
    expected = by_orders([EOS], a[:2]) + by_orders(a[1:2], a[2:4]) + by_orders(a[2:4], a[4:5])
    assert found == pytest.approx(expected, rel=1e-5)


# ---- texts


class Spelling(GMModel):
    """A model whose `generate` returns the given tokens and records its arguments."""

    said = ids("dab\ncd")
    received: list[dict[str, Any]]

    def generate(  # type: ignore[override]
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor,
        max_new_tokens: int,
        seed: int,
        num_steps: int = 1,
        blocks: int = 0,
        eos_token_id: int | None = None,
        top_k: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
    ) -> Tensor:
        self.received.append({"max_new_tokens": max_new_tokens, "seed": seed, "num_steps": num_steps})
        self.received[-1] |= {
            "eos_token_id": eos_token_id,
            "blocks": blocks,
            "likeliest": top_k == 1 or do_sample is False,
            "temperature": temperature,
        }
        rows = []
        for row, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True):
            pads = mask.count(0)
            rows.append(row[: len(row) - pads] + self.said[:max_new_tokens] + [TOKENIZER.pad_token_id] * pads)
        return torch.tensor(rows)


def spelling(said: list[int]) -> Spelling:
    model = Spelling(MODEL.config)
    model.said, model.received = said, []
    return model


def test_harness__texts_are_cut_at_until_or_the_end_token() -> None:
    options = [{"until": ["\n"]}, {"until": ["b\nc", "cd"]}, {"until": []}, {"until": "a", "max_gen_toks": 1}]
    model = spelling(ids("dab\ncd"))
    found = harness(model).generate_until(requests("generate_until", *[("ab", kwargs) for kwargs in options]), True)
    assert found == ["dab", "da", "dab\ncd", "d"]
    ended = spelling([*ids("da"), EOS, *ids("bb")])
    assert harness(ended).generate_until(requests("generate_until", ("ab", {"until": ["x"]})), True) == ["da"]


def test_harness__passes_arguments_of_task_and_caller_to_generate() -> None:
    model = spelling(ids("dab\ncd"))
    sampled = {"until": ["\n"], "do_sample": True, "temperature": 0.7, "num_steps": 5, "max_gen_toks": 4}
    both = harness(model, num_steps=3, blocks=2)
    both.generate_until(requests("generate_until", ("ab", {"until": ["\n"]}), ("ab", sampled)), True)
    greedy_call, sampled_call = sorted(model.received, key=lambda received: received["temperature"] or 0)
    assert greedy_call["likeliest"]
    assert greedy_call["eos_token_id"] == EOS  # where sequences are written in blocks
    assert (greedy_call["num_steps"], greedy_call["blocks"], greedy_call["max_new_tokens"]) == (3, 2, LENGTH // 2)
    assert not sampled_call["likeliest"]
    assert (sampled_call["temperature"], sampled_call["num_steps"], sampled_call["max_new_tokens"]) == (0.7, 5, 4)
    with pytest.raises(ValueError, match="num_beams"):
        both.generate_until(requests("generate_until", ("ab", {"num_beams": 2})), True)


def test_harness__prompts_of_several_lengths_share_a_batch() -> None:
    model = harness(spelling(ids("dab\ncd")), generation_batch_size=3)
    prompts = [
        ("abcd a", {"until": ["\n"]}),
        ("a", {"until": ["\n"]}),
        ("", {"until": ["\n"]}),
        ("ab", {"until": ["c"]}),
    ]
    assert model.generate_until(requests("generate_until", *prompts), True) == ["dab", "dab", "dab", "dab\n"]


def test_harness__repeated_prompts_are_different_samples() -> None:
    """Four texts of 6 tokens, nearly uniform over 9 symbols, are equal less than once in 10⁵ times."""
    kwargs = {"until": [], "max_gen_toks": 6, "do_sample": True, "temperature": 1.0}
    texts = harness(num_steps=8).generate_until(requests("generate_until", *[("ab", kwargs)] * 4), True)
    assert len(set(texts)) > 1


@pytest.mark.parametrize("options", [{}, {"do_sample": False}, {"do_sample": True, "temperature": 0}])
def test_harness__equal_requests_without_sampling_get_equal_texts_at_any_batch_size(options: dict[str, Any]) -> None:
    """Eleven tokens in four steps: which of them are filled together is random, and so is the text."""
    kwargs = {"until": [], "max_gen_toks": LENGTH - 1, **options}
    prompts = [(text, kwargs) for text in ("a", "b", "a", "", "c", "a", "b")]
    found = [
        harness(num_steps=4, generation_batch_size=size).generate_until(
            requests("generate_until", *prompts[::step]), True
        )[::step]
        for size, step in ((1, 1), (3, 1), (16, -1))
    ]
    assert found[0] == found[1] == found[2]
    assert found[0][0] == found[0][2] == found[0][5]
    assert found[0][1] == found[0][6]
    other = [
        harness(num_steps=4, seed=seed).generate_until(requests("generate_until", *prompts), True)
        for seed in range(1, 4)
    ]
    assert any(texts != found[0] for texts in other)  # so that equal texts are no matter of course


def test_harness__every_request_reaches_the_cache() -> None:
    model, kept = harness(spelling(ids("da"))), []
    model.cache_hook = type("Hook", (), {"add_partial": lambda self, *found: kept.append(found)})()
    pairs = [("a", {"until": []}), ("a", {"until": []}), ("b", {"until": []})]
    assert model.generate_until(requests("generate_until", *pairs), True) == ["da"] * 3
    assert {(kind, arguments[0]) for kind, arguments, _ in kept} == {("generate_until", "a"), ("generate_until", "b")}


def test_argument_names__include_those_of_unpacked_keywords() -> None:
    class Options(TypedDict, total=False):
        top_k: int

    def generate(x: Tensor, *, seed: int = 0, **kwargs: Unpack[Options]) -> None: ...

    generate.__annotations__["kwargs"] = Unpack[Options]  # a local class cannot be found by its name
    assert argument_names(generate) == {"x", "seed", "top_k"}
    assert {"seed", "num_steps", "top_k"} <= argument_names(GMModel.generate)


# ---- from end to end


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": "ab c", "choices": ["da", "bb"], "label": 0, "text": "abcd dcba abcd abba"},
        {"question": "dd", "choices": ["ac", "cb", "d"], "label": 2, "text": "dabc"},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
    }
    own = {
        "tiny_choice": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{label}}",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        },
        "tiny_rolling": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
        "tiny_generation": {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{choices[0]}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
    }
    for name, settings in own.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **settings}), encoding="utf-8")
    MODEL.save_pretrained(folder / "model")
    TOKENIZER.save_pretrained(folder / "model")
    return folder


@pytest.mark.slow
def test_harness__three_tasks(tasks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    names = ["tiny_choice", "tiny_rolling", "tiny_generation"]
    results = lm_eval.simple_evaluate(
        model="gm_discrete",
        model_args={"pretrained": str(tasks / "model"), "exact_up_to": 4, "num_steps": 8, "device": "cpu"},
        tasks=names,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
    )
    assert results is not None
    samples = {name: sorted(results["samples"][name], key=lambda sample: sample["doc_id"]) for name in names}
    choice = samples["tiny_choice"][0]
    expected = [by_orders(ids("ab c"), ids(f" {text}")) for text in ("da", "bb")]
    assert [float(value) for value, _ in choice["filtered_resps"]] == pytest.approx(expected, rel=1e-5)
    assert choice["acc"] == float(expected[0] > expected[1])
    rolling = harness(num_samples=64).loglikelihood_rolling(
        requests("loglikelihood_rolling", ("abcd dcba abcd abba",), ("dabc",)), True
    )
    short = by_orders([EOS], ids("dabc"))
    bits = -(rolling[0] + short) / (19 + 4) / math.log(2)
    assert results["results"]["tiny_rolling"]["bits_per_byte,none"] == pytest.approx(bits, rel=0.05)
    assert all(len(sample["filtered_resps"][0]) <= 4 for sample in samples["tiny_generation"])
    assert "exact_match,none" in results["results"]["tiny_generation"]


# ---- errors


@pytest.mark.parametrize(
    ("model", "options", "match"),
    [
        (MODEL, {"num_samples": 0}, "num_samples=0"),
        (MODEL, {"rolling_context": LENGTH}, r"rolling_context=12 .*max_length=12"),
        (MODEL, {"top_hat": 3}, "top_hat"),
        (network(UniformPath(len(TOKENIZER))), {"exact_up_to": 3}, r"exact_up_to=3 .*UniformPath"),
        (network(time_conditioning=True), {"exact_up_to": 3}, r"exact_up_to=3 .*num_orders"),
    ],
)
def test_harness__bad_arguments_are_named(model: GMModel, options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        harness(model, **options)


def test_harness__needs_a_model_of_text() -> None:
    model = GMModel(GMConfig(path=GaussianPath().to_dict(), **TINY))
    with pytest.raises(TypeError, match="GaussianPath"):
        harness(model)
    with pytest.raises(ValueError, match="tokenizer "):
        GMHarness(MODEL)
    with pytest.raises(ValueError, match=r"max_gen_toks=12 .*max_length=12"):
        harness().generate_until(requests("generate_until", ("a", {"max_gen_toks": 12})), True)


def test_harness__names_the_extra_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.models", None)
    with pytest.raises(ImportError, match=r'pip install "gm_discrete\[lm_eval\]"'):
        runpy.run_module("gm_discrete.evaluation.harness", run_name="not main")
