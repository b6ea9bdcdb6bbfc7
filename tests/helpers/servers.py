"""Small models of characters behind a server in a thread, and a client that sends what no library would."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from gm_discrete import EditPath, GMConfig, GMModel, MaskedPath, UniformPath
from gm_discrete.data import character_tokenizer
from gm_discrete.serving import Settings, application
from tests.helpers.chats import chat_tokenizer

ALPHABET, LENGTH = "abcdefgh ", 32
SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def model_and_tokenizer(kind: str = "masked", alphabet: str = ALPHABET) -> tuple[Any, Any]:
    """A network of random weights that all matter, on the path of that name; "chat" is a masked one with a chat template."""
    tokenizer = chat_tokenizer() if kind == "chat" else character_tokenizer(alphabet=alphabet)
    size, options = len(tokenizer), {}
    if kind == "edits":
        path: Any = EditPath(size, blank_token_id=tokenizer.pad_token_id)
        options = {"mask_token_id": tokenizer.mask_token_id}
    else:
        path = UniformPath(size) if kind == "uniform" else MaskedPath(size, tokenizer.mask_token_id)
    if kind == "blocks":
        options = {"block_size": 8}
    model = GMModel(
        GMConfig(path=path, pad_token_id=tokenizer.pad_token_id, max_position_embeddings=LENGTH, **SIZES | options)
    )
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.25 * torch.randn(weight.shape, generator=noise) + (weight.dim() == 1))
        if kind == "edits":
            for weight in model.heads["edits"].parameters():
                weight.mul_(0.1)
    return model.eval(), tokenizer


@dataclass
class Served:
    """A running server.

    Attributes:
        gate: networks are evaluated only while it is set.
    """

    port: int
    model: Any
    tokenizer: Any
    gate: threading.Event
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers in lower case, body) of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {**self.headers, **(headers or {})})
            found = connection.getresponse()
            return found.status, {name.lower(): value for name, value in found.getheaders()}, found.read()
        finally:
            connection.close()

    def post(self, body: object, path: str = "/v1/completions") -> tuple[int, Any]:
        """(status, JSON) of the answer to a body, JSON or bytes as they are."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, _, answer = self.send("POST", path, raw, {"Content-Type": "application/json"})
        return status, json.loads(answer)

    def metric(self, name: str) -> float:
        """The sum of the samples of a metric."""
        lines = self.send("GET", "/metrics")[2].decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def untouched(model: Any, tokenizer: Any) -> None:
    """Leaves model and tokenizer as they are."""


@contextmanager
def served(kind: str = "masked", prepare: Callable[[Any, Any], None] = untouched, **settings: Any) -> Iterator[Served]:
    """A server of a small model, ended with its block."""
    import uvicorn

    from gm_discrete.serving.listener import Listener

    model, tokenizer = model_and_tokenizer(kind)
    prepare(model, tokenizer)
    gate = threading.Event()
    gate.set()
    model.backbone.register_forward_pre_hook(lambda *_: gate.wait(30) and None)
    limits = Settings(**settings)
    app = application(model, tokenizer, limits, "tiny")
    server = Listener(uvicorn.Config(app, "127.0.0.1", 0, log_level="critical"), limits.timeout)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        key = settings.get("api_key")
        yield Served(port, model, tokenizer, gate, {} if key is None else {"Authorization": f"Bearer {key}"})
    finally:
        gate.set()
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
