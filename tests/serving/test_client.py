"""The client of OpenAI against a server in a thread."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import openai
import pytest

from tests.helpers.servers import ALPHABET, Served, served, wait_for


@pytest.fixture(scope="module")
def masked() -> Iterator[Served]:
    with served("masked", api_key="secret") as server:
        yield server


@pytest.fixture(scope="module")
def chat() -> Iterator[Served]:
    with served("chat") as server:
        yield server


def client(server: Served, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0, **options)


def complete(server: Served, **options: Any) -> Any:
    fields = {"model": "tiny", "prompt": "abc", "max_tokens": 8, "seed": 0, "extra_body": {"num_steps": 8}, **options}
    return client(server).completions.create(**fields)


def streamed(server: Served, **options: Any) -> tuple[list[Any], str]:
    """(chunks, the text that a client appends) of choice 0."""
    chunks = list(complete(server, stream=True, **options))
    return chunks, "".join(part.text for chunk in chunks for part in chunk.choices if part.index == 0)


def test_client__completes_a_prompt(masked: Served) -> None:
    found = complete(masked)
    choice = found.choices[0]
    assert found.object == "text_completion"
    assert found.model == "tiny"
    assert set(choice.text) <= set(ALPHABET)
    assert 0 < len(choice.text) <= 8
    assert choice.finish_reason in ("stop", "length")
    assert found.usage.prompt_tokens == 3
    assert found.usage.total_tokens == 3 + found.usage.completion_tokens


def test_client__lists_the_model(masked: Served) -> None:
    assert [model.id for model in client(masked).models.list()] == ["tiny"]
    assert client(masked).models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client(masked).models.retrieve("other")


def test_client__gets_n_choices_of_each_prompt(masked: Served) -> None:
    found = complete(masked, prompt=["a", "abcdefgh"], n=3, echo=True)
    assert [choice.index for choice in found.choices] == list(range(6))
    assert [choice.text[:1] for choice in found.choices] == ["a"] * 6
    assert [choice.text.startswith("abcdefgh") for choice in found.choices] == [False] * 3 + [True] * 3
    assert found.usage.prompt_tokens == 9
    assert len({choice.text for choice in found.choices[:3]}) > 1  # each has noise of its own


def test_client__prompts_may_be_token_ids(masked: Served) -> None:
    assert complete(masked, prompt=[0, 1, 2]).choices[0].text == complete(masked, prompt="abc").choices[0].text
    assert len(complete(masked, prompt=[[0], [1, 2]]).choices) == 2


@pytest.mark.parametrize("kind", ["masked", "edits"])
def test_client__fills_between_prompt_and_suffix(kind: str) -> None:
    with served(kind) as server:
        found = complete(server, suffix="ffgg", max_tokens=6)
        assert found.usage.prompt_tokens == 7
        assert found.usage.completion_tokens == 6 if kind == "masked" else found.usage.completion_tokens <= 6
        whole = complete(server, prompt="abc[MASK][MASK]ffgg", max_tokens=0 if kind == "masked" else 4, echo=True)
        text = whole.choices[0].text
        assert (text[:3], text[-4:]) == ("abc", "ffgg")
        empty = complete(server, prompt="", max_tokens=4)  # a sample without prompt
        assert empty.usage.prompt_tokens == 0


def test_client__a_seed_gives_the_same_text_and_no_seed_another(masked: Served) -> None:
    assert complete(masked, max_tokens=20).choices[0].text == complete(masked, max_tokens=20).choices[0].text
    texts = {complete(masked, max_tokens=20, seed=None).choices[0].text for _ in range(3)}
    assert len(texts) > 1


@pytest.mark.parametrize("kind", ["masked", "blocks", "uniform", "edits"])
def test_client__a_stream_has_the_text_of_the_whole_answer(kind: str) -> None:
    with served(kind) as server:
        for stop in (None, ["e", "ab"]):
            whole = complete(server, max_tokens=20, stop=stop, seed=5)
            chunks, text = streamed(server, max_tokens=20, stop=stop, seed=5, stream_options={"include_usage": True})
            assert text == whole.choices[0].text
            assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
            assert chunks[-1].usage == whole.usage


@pytest.mark.parametrize(("kind", "early"), [("masked", True), ("blocks", True), ("uniform", False), ("edits", False)])
def test_client__text_that_cannot_change_comes_early(kind: str, early: bool) -> None:
    """Tokens that are revealed stay; those of other paths may change until the end."""
    with served(kind) as server:
        runs = (streamed(server, max_tokens=24, seed=seed, extra_body={"num_steps": 64}) for seed in range(20))
        chunks, _ = next(run for run in runs if len(run[1]) > 9)  # whose text does not end early
    parts = [chunk.choices[0].text for chunk in chunks]
    assert (len([part for part in parts if part]) > 1) == early


def test_client__stop_is_looked_for_in_what_is_generated(masked: Served) -> None:
    whole = complete(masked, prompt="abc abc", echo=True, max_tokens=12).choices[0].text
    assert whole.startswith("abc abc")
    end = whole.find("c", 7)
    found = complete(masked, prompt="abc abc", echo=True, max_tokens=12, stop="c").choices[0]
    assert found.text == (whole if end < 0 else whole[:end])
    filled = complete(masked, prompt="abc[MASK][MASK]", echo=True, max_tokens=0, stop="bc").choices[0]
    assert filled.text.startswith("abc")


def test_client__drafts_show_masks_and_only_fill_them(masked: Served) -> None:
    body = {"num_steps": 32, "drafts": True}
    chunks, text = streamed(masked, prompt="ab[MASK][MASK][MASK]ba", max_tokens=10, echo=True, extra_body=body)
    drafts = [chunk.choices[0].model_extra["draft"] for chunk in chunks]
    assert drafts[0] == ["a", "b", None, None, None, "b", "a", *[None] * 10]
    for before, after in pairwise(drafts):
        assert all(a == b for a, b in zip(before, after, strict=False) if a is not None)
    assert len({len([1 for piece in draft if piece is None]) for draft in drafts}) > 4
    assert "".join(drafts[-1]) == text


def test_client__drafts_of_strings_grow() -> None:
    with served("edits") as server:
        chunks, text = streamed(server, max_tokens=20, extra_body={"num_steps": 32, "drafts": True}, echo=True)
        drafts = [chunk.choices[0].model_extra["draft"] for chunk in chunks]
        assert drafts[0] == ["a", "b", "c"]
        lengths = [len(draft) for draft in drafts]
        assert lengths == sorted(lengths)
        assert "".join(drafts[-1]) == text


def test_client__chats(chat: Served) -> None:
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "say red"}]}]
    more: Any = {"model": "tiny", "messages": messages, "seed": 1, "extra_body": {"num_steps": 8}}
    whole = client(chat).chat.completions.create(**more, max_completion_tokens=12)
    text = whole.choices[0].message.content
    assert whole.choices[0].message.role == "assistant"
    assert text
    stream = client(chat).chat.completions.create(**more, max_completion_tokens=12, stream=True)
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert len(client(chat).chat.completions.create(**more, n=2).choices) == 2  # as many tokens as there is room for


def test_client__errors_are_those_of_openai(masked: Served) -> None:
    for options in (
        {"max_tokens": 1000},
        {"n": 0},
        {"temperature": -1},
        {"logprobs": 1},
        {"extra_body": {"unknown": 1}},
    ):
        with pytest.raises(openai.BadRequestError):
            complete(masked, **options)
    with pytest.raises(openai.NotFoundError):
        complete(masked, model="other")
    with pytest.raises(openai.BadRequestError, match="chat template"):
        client(masked).chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{masked.url}/v1", api_key="wrong", max_retries=0).models.list()


def test_client__concurrent_requests_share_calls() -> None:
    """The first one runs alone; those that come meanwhile run together, but for those with a seed or other options."""
    with served() as server, ThreadPoolExecutor(10) as pool:
        server.gate.clear()
        first = pool.submit(complete, server, seed=None)
        wait_for(lambda: server.metric("gm_discrete_running_sequences") == 1)
        alike = [
            pool.submit(complete, server, seed=None, prompt="abc"[: 1 + i % 3], max_tokens=8 + i) for i in range(4)
        ]
        other = pool.submit(complete, server, seed=None, extra_body={"num_steps": 4})
        seeded = [pool.submit(complete, server, seed=7) for _ in range(2)]
        wait_for(lambda: server.metric("gm_discrete_queue_sequences") == 7)
        server.gate.set()
        found = [request.result(30) for request in (first, *alike, other, *seeded)]
        assert server.metric("gm_discrete_batch_sequences_count") == 5
        assert server.metric("gm_discrete_batch_sequences_sum") == 8
        assert found[-1].choices[0].text == found[-2].choices[0].text == complete(server, seed=7).choices[0].text


def test_client__a_full_queue_is_503_and_says_when_to_come_again() -> None:
    with served(max_queue=1) as server, ThreadPoolExecutor(2) as pool:
        server.gate.clear()
        running = pool.submit(complete, server)
        wait_for(lambda: server.metric("gm_discrete_running_sequences") == 1)
        waiting = pool.submit(complete, server)
        wait_for(lambda: server.metric("gm_discrete_queue_sequences") == 1)
        with pytest.raises(openai.InternalServerError) as caught:
            complete(server)
        assert caught.value.status_code == 503
        assert int(caught.value.response.headers["retry-after"]) >= 1
        server.gate.set()
        assert running.result(30).choices
        assert waiting.result(30).choices


@pytest.mark.parametrize("stream", [False, True])
def test_client__that_goes_away_frees_its_place(stream: bool) -> None:
    with served() as server, ThreadPoolExecutor(2) as pool:
        server.gate.clear()

        def impatient() -> None:
            fields: Any = {"model": "tiny", "prompt": "a", "stream": stream, "extra_body": {"num_steps": 1000}}
            with pytest.raises(openai.APITimeoutError):
                list(client(server, timeout=1.0).completions.create(**fields))

        for request in [pool.submit(impatient) for _ in range(2)]:  # one runs, one waits
            request.result(30)
        wait_for(lambda: server.metric("gm_discrete_cancelled_total") == 2)
        assert server.metric("gm_discrete_queue_sequences") == 0
        server.gate.set()
        wait_for(lambda: server.metric("gm_discrete_running_sequences") == 0)
        assert complete(server).choices


def test_client__a_request_that_takes_too_long_is_504() -> None:
    with served(timeout=0.3) as server:
        server.gate.clear()
        with pytest.raises(openai.InternalServerError) as caught:
            complete(server)
        assert caught.value.status_code == 504
        server.gate.set()
