"""What a server answers to requests that are wrong, to paths beside the API, and without the key."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gm_discrete.serving.engine import MOST_FAILURES
from tests.helpers.servers import Served, served, wait_for

GOOD = {"model": "tiny", "prompt": "abc", "max_tokens": 4, "num_steps": 4}
HUGE = 10**40


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served("masked", max_body=20_000, max_choices=4, max_batch=8) as found:
        yield found


@pytest.fixture(scope="module")
def chat() -> Iterator[Served]:
    with served("chat") as found:
        yield found


def refusal(answer: tuple[int, Any]) -> tuple[int, str, str | None]:
    """(status, message, param) of an answer, which has OpenAI's form and nothing internal."""
    status, body = answer
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"]
    assert len(error["message"]) <= 500
    return status, error["message"], error["param"]


WRONG: list[tuple[str, Any]] = [
    ("n", 0), ("n", 5), ("n", 1.5), ("n", True), ("n", "2"), ("n", HUGE),
    ("max_tokens", -1), ("max_tokens", 0), ("max_tokens", 1000), ("max_tokens", HUGE), ("max_tokens", "8"),
    ("max_tokens", 2.5),
    ("temperature", -1), ("temperature", "hot"), ("temperature", HUGE**9), ("temperature", True), ("temperature", [1]),
    ("temperature", [1, "a"]), ("top_p", 0), ("top_p", 1.5), ("top_p", {}), ("top_k", 0), ("top_k", 1.5), ("top_k", "a"),
    ("seed", -1), ("seed", 2**63), ("seed", 0.5), ("seed", "a"),
    ("stop", ""), ("stop", ["a"] * 5), ("stop", [1]), ("stop", 3),
    ("stream", 1), ("stream", "yes"), ("drafts", True), ("stream_options", {"include_usage": True}), ("stream_options", []),
    ("echo", 1), ("suffix", 3), ("suffix", "a[MASK]"),
    ("num_steps", 0), ("num_steps", 1025), ("num_steps", HUGE), ("num_steps", "a"), ("num_steps", True),
    ("sampler", "nothing"), ("sampler", 3), ("sampler", {"type": []}), ("sampler", {"type": "adaptive", "tolerance": -1}),
    ("sampler", {"type": "adaptive", "unknown": 1}),
    ("sampler", {"type": "adaptive", "max_expected_changes": 1e-3}),
    ("sampler", "dopri5"), ("sampler", [["a"]]),
    ("corrector", "nothing"), ("corrector", {"type": "remdm", "eta": 7}), ("corrector", 1),
    ("grid", "nothing"), ("grid", [0, 2]), ("grid", [0.5] * 2000), ("grid", [0, "a", 1]), ("grid", {}),
    ("blocks", 0), ("blocks", {"length": "a"}), ("blocks", "a"), ("blocks", {"length": 4, "cache": "exact"}),
    ("logprobs", 5), ("logprobs", 0), ("logit_bias", {"1": 2}), ("best_of", 2), ("presence_penalty", 0.5), ("tools", [{}]),
    ("prompt", []), ("prompt", 3), ("prompt", {}), ("prompt", [[]]), ("prompt", [1, "a"]), ("prompt", ["a", 1]),
    ("prompt", [-1]), ("prompt", [13]), ("prompt", [HUGE]), ("prompt", [True]), ("prompt", [1.5]), ("prompt", [[0], 1]),
    ("prompt", ["a"] * 9), ("prompt", "a" * 40), ("prompt", "\ud800"), ("unknown_field", 1), ("seeds", 1), ("user ", "a"),
    ("echo", "a"), ("model", 3), ("prompt", [[[0]]]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: repr(value)[:30])
def test_http__wrong_fields_are_400_and_named(server: Served, name: str, value: Any) -> None:
    status, message, param = refusal(server.post({**GOOD, name: value}))
    assert status == 400
    assert message
    if name != "prompt" or "choices" not in message:
        assert param is None or param.split("[")[0] in (name, "n", "max_tokens"), (param, message)


def test_http__gaps_of_a_prompt_need_echo(server: Served) -> None:
    gaps = {**GOOD, "prompt": "a[MASK][MASK]b", "max_tokens": 0}
    assert refusal(server.post(gaps))[::2] == (400, "echo")
    status, body = server.post({**gaps, "echo": True})
    assert status == 200
    assert (body["choices"][0]["text"][0], body["choices"][0]["text"][-1]) == ("a", "b")
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    more = [server.post({**gaps, "max_tokens": 3, "echo": True, "seed": seed})[1] for seed in range(4)]
    found = [(one["choices"][0]["finish_reason"], one["usage"]["completion_tokens"]) for one in more]
    assert all(tokens == 5 if reason == "length" else 2 <= tokens < 5 for reason, tokens in found)


def test_http__characters_that_the_tokenizer_does_not_have_are_400(server: Served, chat: Served) -> None:
    said = "holds characters that are not in the tokenizer's vocabulary"
    for name, value in (("prompt", "cafë é"), ("suffix", "é"), ("prompt", ["abc", "cé"])):
        status, message, param = refusal(server.post({**GOOD, name: value}))
        assert (status, param) == (400, name)
        assert message.startswith(f"{name} {said}: ")
        assert "'é'" in message
    assert "a gap is spelled [MASK]" in refusal(server.post({**GOOD, "prompt": "a___b", "echo": True}))[1]
    body = {"model": "tiny", "messages": [{"role": "user", "content": "say ☃"}]}
    status, message, param = refusal(chat.post(body, "/v1/chat/completions"))
    assert (status, message, param) == (400, f"messages {said}: '☃'", "messages")


def test_http__values_that_change_nothing_are_taken(server: Served) -> None:
    neutral = {
        "best_of": 1, "logprobs": None, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "user": "me",
        "metadata": {"a": "b"}, "store": False, "service_tier": "auto",
        "stop": None, "seed": None, "suffix": None, "n": 1, "stream": False, "sampler": "first_hitting", "top_p": 1,
    }  # fmt: skip
    assert server.post({**GOOD, **neutral})[0] == 200


BODIES = {
    "empty": b"",
    "no JSON": b"{",
    "no object": b"[1]",
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "Infinity": b'{"prompt": "a", "temperature": -Infinity}',
    "overflow": b'{"prompt": "a", "temperature": 1e999}',
    "long number": b'{"prompt": "a", "seed": ' + b"1" * 5000 + b"}",
    "no UTF-8": b'{"prompt": "\xff\xfe"}',
    "half a pair": b'{"prompt": "\\ud800"}',
    "deep": b'{"prompt": ' + b"[" * 9000 + b"]" * 9000 + b"}",
    "no prompt": b'{"model": "tiny"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_http__bodies_that_are_no_request_are_400(server: Served, body: bytes) -> None:
    assert refusal(server.post(body))[0] == 400


TOOL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CHATS: list[Any] = [
    [{"role": "assistant", "content": None, "tool_calls": [TOOL]}], [{"role": "user", "content": "a", "name": "b"}],
    [], "hello", [{}], ["hello"], [{"role": "user"}], [{"role": "king", "content": "a"}], [{"role": "user", "content": 3}],
    [{"role": "user", "content": "a", "extra": 1}], [{"role": "user", "content": [{"type": "image_url"}]}],
    [{"role": "user", "content": "[MASK]"}], [{"role": "user", "content": "a" * 40}], None, {},
]  # fmt: skip


@pytest.mark.parametrize("messages", CHATS, ids=lambda value: repr(value)[:40])
def test_http__wrong_messages_are_400(chat: Served, messages: Any) -> None:
    body = {"messages": messages, "max_tokens": 4, "num_steps": 4}
    assert refusal(chat.post(body, "/v1/chat/completions"))[0] == 400


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "assistant", "content": None}, "a text or a list of parts"),
        ({"role": "user", "content": 3}, "a text or a list of parts"),
        ({"role": "assistant", "content": None, "tool_calls": [TOOL]}, "tools are not supported"),
        ({"role": "user", "content": "a", "name": "b"}, "write it into content"),
    ],
)
def test_http__wrong_messages_are_told_why(chat: Served, message: dict[str, Any], said: str) -> None:
    _, text, param = refusal(chat.post({"messages": [message]}, "/v1/chat/completions"))
    assert said in text
    assert param == "messages"


def test_http__an_answer_can_be_sent_back_with_its_empty_fields(chat: Served) -> None:
    answer = {"role": "assistant", "content": "b", "tool_calls": None, "function_call": None, "refusal": None}
    messages = [{"role": "user", "content": "a"}, answer, {"role": "user", "content": "a"}]
    assert chat.post({"messages": messages, "max_tokens": 2, "num_steps": 2}, "/v1/chat/completions")[0] == 200


def test_http__a_chat_has_one_number_of_tokens(chat: Served) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4, "max_completion_tokens": 4}
    assert refusal(chat.post(body, "/v1/chat/completions"))[::2] == (400, "max_completion_tokens")


def test_http__a_chat_has_no_no_prompt(chat: Served) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "num_steps": 4, "max_tokens": 4}
    assert chat.post(body, "/v1/chat/completions")[0] == 200
    assert refusal(chat.post({**body, "prompt": "a"}, "/v1/chat/completions"))[0] == 400


def test_http__too_long_bodies_are_413(server: Served) -> None:
    assert refusal(server.post({**GOOD, "prompt": "a" * 30_000}))[0] == 413


def test_http__other_statuses(server: Served) -> None:
    assert refusal(server.post({**GOOD, "model": "other"}))[::2] == (404, "model")
    assert refusal(server.post(GOOD, "/v1/edits"))[0] == 404
    for method, path, kind, status in (
        ("GET", "/v1/completions", None, 405), ("GET", "/favicon.ico", None, 404), ("GET", "/docs", None, 404),
        ("GET", "/openapi.json", None, 404), ("POST", "/v1/completions", "text/plain", 415),
        ("POST", "/v1/completions", "application/x-www-form-urlencoded", 415),
    ):  # fmt: skip
        headers = {} if kind is None else {"Content-Type": kind}
        found, _, body = server.send(method, path, json.dumps(GOOD).encode() if kind else None, headers)
        assert refusal((found, json.loads(body)))[0] == status


def test_http__health_and_models_and_metrics(server: Served) -> None:
    assert server.send("GET", "/health")[::2] == (200, b'{"status":"ok"}')
    models = json.loads(server.send("GET", "/v1/models")[2])["data"]
    assert [model["id"] for model in models] == ["tiny"]
    assert models[0]["max_length"] == 32
    server.post(GOOD)
    status, headers, text = server.send("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b'gm_discrete_requests_total{endpoint="/v1/completions",status="200"}' in text
    assert server.metric("gm_discrete_generated_tokens_total") > 0


def test_http__no_site_may_call_from_a_browser(server: Served) -> None:
    """No CORS headers, and without a key no name but those of this machine (a foreign name may point to 127.0.0.1)."""
    headers = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    status, found, _ = server.send("OPTIONS", "/v1/completions", None, headers)
    assert status == 405
    _, more, _ = server.send("GET", "/v1/models", None, {"Origin": "https://example.org"})
    assert not [name for name in (*found, *more) if name.startswith("access-control")]
    for host, expected in (
        ("example.org", 403),
        ("127.0.0.1.example.org:80", 403),
        ("localhost:1", 200),
        ("[::1]:1", 200),
    ):
        assert server.send("GET", "/v1/models", None, {"Host": host})[0] == expected, host


def test_http__the_key_is_needed_but_for_health_and_page(caplog: pytest.LogCaptureFixture) -> None:
    with served(api_key="sesame-open"), caplog.at_level(logging.DEBUG), served(api_key="sesame") as server:
        right, server.headers = server.headers, {}
        for path, open_ in (("/", True), ("/health", True), ("/metrics", False), ("/v1/models", False), ("/x", False)):
            assert server.send("GET", path)[0] == (200 if open_ else 401), path
        for value in (
            "Bearer",
            "Bearer ",
            "Bearer wrong",
            "sesame",
            "Basic sesame",
            "Bearer sesam",
            "Bearer sesame2",
            "é",
        ):
            status, headers, body = server.send("GET", "/v1/models", None, {"Authorization": value})
            assert refusal((status, json.loads(body)))[0] == 401, value
            assert headers["www-authenticate"] == "Bearer"
        assert server.post({**GOOD, "unknown": 1})[0] == 401  # before anything is read
        assert server.send("GET", "/v1/models", None, {**right, "Host": "example.org"})[0] == 200
        assert server.send("GET", "/v1/models", None, {"Authorization": "bearer sesame"})[0] == 200
        assert "sesame" not in caplog.text


def test_http__faults_of_the_server_are_500_and_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(model: Any, tokenizer: Any) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("a secret of the machine")

        model.heads.register_forward_pre_hook(fail)
        for head in model.heads.values():
            head.register_forward_pre_hook(fail)

    with served(prepare=broken) as server:
        for _ in range(2):  # the thread goes on
            status, message, _ = refusal(server.post(GOOD))
            assert status == 500
            assert "secret" not in message
        answer = server.send(
            "POST",
            "/v1/completions",
            json.dumps({**GOOD, "stream": True}).encode(),
            {"Content-Type": "application/json"},
        )
        assert answer[0] == 200  # the stream had begun: the error is its last event
        last = json.loads(answer[2].decode().strip().split("\n\n")[-1].removeprefix("data: "))
        assert refusal((500, last))[0] == 500
    assert "a secret of the machine" in caplog.text


def test_http__health_is_503_while_every_call_fails() -> None:
    broken = threading.Event()

    def prepare(model: Any, tokenizer: Any) -> None:
        def fail(*_: object) -> None:
            if broken.is_set():
                raise RuntimeError("out of order")

        model.backbone.register_forward_pre_hook(fail)

    with served(prepare=prepare) as server:
        assert server.send("GET", "/health")[0] == 200
        broken.set()
        for number in range(MOST_FAILURES):
            assert server.send("GET", "/health")[0] == 200, number
            assert server.post(GOOD)[0] == 500
        status, _, body = server.send("GET", "/health")
        assert refusal((status, json.loads(body)))[0] == 503
        broken.clear()
        assert server.post(GOOD)[0] == 200
        assert server.send("GET", "/health")[0] == 200


def test_http__other_requests_are_answered_while_one_is_tokenised() -> None:
    begun, gate = threading.Event(), threading.Event()

    def prepare(model: Any, tokenizer: Any) -> None:
        class Slow(type(tokenizer)):
            def __call__(self, *texts: Any, **options: Any) -> Any:
                begun.set()
                gate.wait(30)
                return super().__call__(*texts, **options)

        tokenizer.__class__ = Slow

    with served(prepare=prepare) as server, ThreadPoolExecutor(1) as pool:
        try:
            answer = pool.submit(server.post, GOOD)
            assert begun.wait(30)
            assert server.send("GET", "/health")[0] == 200
            assert not answer.done()
        finally:
            gate.set()
        assert answer.result(30)[0] == 200


def test_http__half_a_request_does_not_stop_others(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as half:
        head = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
        half.sendall("\r\n".join([*head, "Content-Length: 99", "", "{"]).encode())
        assert server.post(GOOD)[0] == 200
    wait_for(lambda: b'endpoint="/v1/completions",status="499"' in server.send("GET", "/metrics")[2])
    assert caplog.text == ""
