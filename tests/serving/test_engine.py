"""Batches: samples have the model distribution, whatever they share a call with, and jobs are taken in their order."""

from __future__ import annotations

import threading
from itertools import permutations, product
from typing import Any

import pytest
import torch
from torch import Tensor

from gm_discrete.serving import Settings
from gm_discrete.serving.engine import Engine
from gm_discrete.serving.errors import ApiError
from gm_discrete.serving.metrics import Metrics
from gm_discrete.serving.planning import Job, Planner
from gm_discrete.serving.protocol import Ask
from gm_discrete.serving.vocabulary import Vocabulary
from tests.helpers.distributions import LEAST_P, chi_square
from tests.helpers.servers import model_and_tokenizer, wait_for


class Bench:
    """An engine, what makes its jobs, and the events of each job."""

    def __init__(self, kind: str = "masked", alphabet: str = "ab", **settings: Any) -> None:
        self.model, self.tokenizer = model_and_tokenizer(kind, alphabet)
        self.settings, self.metrics = Settings(**settings), Metrics()
        self.planner = Planner(self.model, Vocabulary(self.model, self.tokenizer), self.settings)
        self.engine = Engine(self.model, self.settings.max_batch, self.settings.max_queue, self.metrics)
        self.order: list[Job] = []

    def jobs(self, prompt: Any, max_tokens: int, num_steps: int = 4, **ask: Any) -> list[Job]:
        options = {"num_steps": num_steps, **ask.pop("options", {})}
        found = self.planner.plan(Ask(None, [prompt], max_tokens=max_tokens, options=options, **ask))
        for job in found:
            job.listener = lambda event, job=job: self._take(job, event)
        return found

    def _take(self, job: Job, event: tuple[Any, ...]) -> None:
        if event[0] != "draft":
            job.samples = event[1]  # pyright: ignore[reportAttributeAccessIssue]
            self.order.append(job)

    def run(self, jobs: list[Job]) -> list[list[int]]:
        """The samples of jobs that wait together."""
        self.engine.submit(jobs)
        if not self.engine._thread.is_alive():
            self.engine.start()
        wait_for(lambda: set(self.order) >= set(jobs))
        return [sample for job in jobs for sample in job.samples]  # pyright: ignore[reportAttributeAccessIssue]


def exact(model: Any, ids: list[int], new: int) -> Tensor:
    """Probabilities [K, …, K] of what follows a prompt when masks are filled one by one in a random order."""
    mask, k, start = model.config.mask_token_id, model.config.vocab_size, len(ids)
    found = torch.zeros([k] * new, dtype=torch.float64)
    data = [token for token in range(k) if token != mask]
    states = {state: torch.tensor([[*ids, *state]]) for state in product(range(k), repeat=new)}
    with torch.no_grad():
        logits = (
            model(input_ids=torch.cat([*states.values()]), time=torch.full((len(states),), 0.5))
            .logits.double()
            .softmax(-1)
        )
    posterior = dict(zip(states, logits[:, start:], strict=True))
    orders = [*permutations(range(new))]
    for tokens in product(data, repeat=new):
        for order in orders:
            state, p = [mask] * new, torch.tensor(1.0, dtype=torch.float64)
            for place in order:
                p = p * posterior[tuple(state)][place, tokens[place]]
                state[place] = tokens[place]
            found[tokens] += p / len(orders)
    return found


def test_engine__samples_of_a_batch_have_the_model_distribution() -> None:
    """Three prompts in two calls, exact samples: two of different lengths share one. Fails for 1 in 10⁴ seeds."""
    bench = Bench(max_batch=2000)
    torch.manual_seed(0)
    asks = {"a": 3, "abba": 2}
    jobs = {
        prompt: bench.jobs(prompt, new, n=1000, options={"sampler": "first_hitting"}) for prompt, new in asks.items()
    }
    # Lengths 4 and 6 differ in the size of their calls: of 1 + 3 = 4 and 4 + 2 = 6 positions only the first is a power of 2.
    assert len({job.key for each in jobs.values() for job in each}) == 2
    same = bench.jobs("abb", 3, n=1000, options={"sampler": "first_hitting"})
    assert same[0].key == jobs["abba"][0].key
    everything = [*jobs["a"], *jobs["abba"], *same]
    samples = bench.run(everything)
    assert bench.metrics.batches.number == 2
    for prompt, new, rows in (("a", 3, samples[:1000]), ("abba", 2, samples[1000:2000]), ("abb", 3, samples[2000:])):
        ids = bench.tokenizer(prompt)["input_ids"]
        law = exact(bench.model, ids, new)
        tokens = torch.tensor(rows)
        assert tokens[:, : len(ids)].tolist() == [ids] * 1000
        counts = torch.zeros_like(law)
        for row in tokens[:, len(ids) :].tolist():
            counts[tuple(row)] += 1
        assert chi_square(counts.flatten(), law.flatten()) > LEAST_P / 3
    bench.engine.close()


@pytest.mark.parametrize("kind", ["masked", "blocks", "uniform", "edits"])
def test_engine__a_seeded_sample_is_that_of_generate_whatever_else_waits(kind: str) -> None:
    bench = Bench(kind, "abcdefgh ")
    seeded = bench.jobs("abc", 8, seed=3, n=2)
    others = [bench.jobs("ab", 9), bench.jobs("abcde", 7, n=3), bench.jobs("abc", 8, seed=3)]
    samples = bench.run([*others[0], *seeded, *others[1], *others[2]])
    ids = torch.tensor([bench.tokenizer("abc")["input_ids"]] * 2)
    options: Any = {"max_new_tokens": 8, "num_steps": 4, "seed": 3}
    if kind == "blocks":
        options["eos_token_id"] = bench.tokenizer.eos_token_id
    direct = bench.model.generate(ids, return_dict_in_generate=True, **options)
    rows = [row[keep.bool()].tolist() for row, keep in zip(direct.sequences, direct.attention_mask, strict=True)]
    assert samples[1:3] == rows
    bench.engine.close()


def test_engine__takes_what_fits_and_keeps_the_order() -> None:
    bench = Bench(max_batch=4)
    wide, narrow, other, late = (
        bench.jobs("ab", 4, n=3), bench.jobs("ba", 4), bench.jobs("ab", 4, num_steps=5), bench.jobs("ab", 4, n=2),
    )  # fmt: skip
    bench.run([*wide, *other, *late, *narrow])
    # "narrow" goes with "wide", though "late", which came first, finds no room there
    assert bench.order == [*wide, *narrow, *other, *late]
    assert bench.metrics.batches.number == 3
    bench.engine.close()


def test_engine__a_full_queue_refuses_whole_requests() -> None:
    bench = Bench(max_queue=4)
    bench.engine.submit(bench.jobs("ab", 4, n=6))  # an empty queue takes any
    with pytest.raises(ApiError, match="waiting") as caught:
        bench.engine.submit(bench.jobs("ab", 4))
    assert caught.value.status == 503
    bench.engine.close()


def test_engine__a_full_queue_says_how_long_its_calls_take() -> None:
    bench = Bench(max_batch=2, max_queue=6)
    for _ in range(4):
        bench.metrics.call(2, 2.5)
    bench.engine.submit(bench.jobs("ab", 4, n=5))
    for seconds in ("8", "60"):  # three calls of 2.5 s, and no more than a minute
        with pytest.raises(ApiError) as caught:
            bench.engine.submit(bench.jobs("ab", 4, n=2))
        assert caught.value.headers["Retry-After"] == seconds
        bench.metrics.call(2, 1000)
    bench.engine.close()


def test_engine__jobs_of_one_seeded_request_have_noise_of_their_own() -> None:
    bench = Bench("masked", "abcdefgh ")
    asks = [Ask(None, ["a", "abcdefgh" * 2], max_tokens=8, seed=seed) for seed in (3, 3, 4)]
    jobs = [bench.planner.plan(ask) for ask in asks]
    seeds = [[job.config.seed for job in each] for each in jobs]
    assert seeds[0] == seeds[1]
    assert (seeds[0][0], len({*seeds[0], *seeds[2]})) == (3, 4)
    largest = bench.planner.plan(Ask(None, ["a", "abcdefgh" * 2], max_tokens=8, seed=2**63 - 1))
    assert len({job.config.seed for job in largest}) == 2
    bench.engine.close()


@pytest.mark.parametrize("kind", ["masked", "blocks", "uniform", "edits"])
def test_planner__a_default_number_of_tokens_is_what_there_is_room_for(kind: str) -> None:
    bench = Bench(kind, "abcdefgh ")
    bench.model.generation_config.max_new_tokens = 100
    planner = Planner(bench.model, bench.planner.vocabulary, bench.settings)
    (job,) = planner.plan(Ask(None, ["abc"]))
    assert (job.rows[0].new, job.rows[0].length) == (29, 32)
    with pytest.raises(ApiError, match="no room") as caught:
        planner.plan(Ask(None, ["abcd" * 8]))
    assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")
    with pytest.raises(ApiError, match="max_tokens=100"):
        planner.plan(Ask(None, ["abc"], max_tokens=100))
    if kind == "masked":
        gaps = Ask(None, ["abcd" * 7 + "[MASK]" * 4], echo=True)
        assert planner.plan(gaps)[0].rows[0].length == 32
        with pytest.raises(ApiError, match="no room"):
            planner.plan(Ask(None, ["abcd" * 7 + "[MASK]" * 5], echo=True))
    bench.engine.close()


@pytest.mark.parametrize("name", ["prompt", "ids", "suffix", "messages"])
def test_planner__what_is_far_too_long_is_not_tokenised(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("masked", "abcdefgh ")
    vocabulary = bench.planner.vocabulary
    for method in ("encode", "encode_chat"):
        monkeypatch.setattr(vocabulary, method, lambda *_: pytest.fail("this takes time"))
    text = "a" * 10_000
    asks = {
        "prompt": Ask(None, ["a", text]),
        "ids": Ask(None, [[0] * 10_000]),
        "suffix": Ask(None, ["a"], suffix=text),
        "messages": Ask(None, [], [{"role": "user", "content": "aa" * 2000}] * 3),
    }
    with pytest.raises(ApiError, match="takes 32 tokens") as caught:
        bench.planner.plan(asks[name])
    assert (caught.value.param, caught.value.code) == (name.replace("ids", "prompt"), "context_length_exceeded")
    bench.engine.close()


def test_engine__close_fails_what_waits() -> None:
    bench = Bench()
    jobs = bench.jobs("ab", 4)
    bench.engine.submit(jobs)
    bench.engine.close()
    assert isinstance(jobs[0].samples, ApiError)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ApiError):
        bench.engine.submit(bench.jobs("ab", 4))


@pytest.mark.parametrize("sampler", ["tau_leaping", "adaptive"])
def test_engine__a_call_ends_when_all_of_its_jobs_are_given_up(sampler: str) -> None:
    """Also with a sampler that chooses its own times, which has no steps for anybody to look at."""
    bench = Bench("masked", "abcdefgh ")
    steps, begun = [0], threading.Event()
    generator = bench.model.generator

    def count(*arguments: Any, **options: Any) -> Any:
        steps[0] += 1
        begun.set()
        return generator(*arguments, **options)

    bench.model.generator = count
    options = {"sampler": {"type": "adaptive", "max_expected_changes": 1e-4}} if sampler == "adaptive" else {}
    jobs = [*bench.jobs("a", 30, 10**5, options=options), *bench.jobs("b", 30, 10**5, options=options)]
    bench.engine.submit(jobs)
    bench.engine.start()
    assert begun.wait(30)
    bench.engine.cancel(jobs[:1])
    before = steps[0]
    wait_for(lambda: steps[0] > before)  # the other one goes on
    bench.engine.cancel(jobs[1:])
    wait_for(lambda: bench.engine._running == 0)
    assert bench.order == []
    assert bench.run(bench.jobs("a", 4))  # and the thread, too
    bench.engine.close()


def test_engine__blocks_of_prompts_of_different_lengths_run_apart() -> None:
    """With attention in both directions blocks start at the first gap of any row of a call."""
    bench = Bench("masked", "abcdefgh ")
    blocks = {"blocks": {"length": 4}}
    keys = [bench.jobs(prompt, 8, options=blocks)[0].key for prompt in ("ab", "cd", "abc")]
    assert keys[0] == keys[1] != keys[2]
    assert len(bench.run([*bench.jobs("ab", 8, options=blocks), *bench.jobs("abc", 8, options=blocks)])) == 2
    bench.engine.close()


def test_engine__a_seed_of_the_saved_options_does_not_fix_all_samples() -> None:
    bench = Bench("masked", "abcdefgh ")
    bench.model.generation_config.seed = 1
    planner = Planner(bench.model, bench.planner.vocabulary, bench.settings)
    assert planner.defaults.seed is None
    bench.engine.close()
