"""What a server listens to, and its limits."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, fields

from gm_discrete.arguments import optional, positive, size, whole


@dataclass(frozen=True)
class Settings:
    """Limits and address of a server.

    Attributes:
        host: address to listen at; others than loopback ones are reached from outside.
        port: 0 takes a free one.
        api_key: clients send it as `Authorization: Bearer KEY`; `None` for no check.
        max_length: positions of a sequence at most, prompt and new tokens together; by default what the model is made for.
        max_batch: sequences of one call of `generate`, and of one request.
        max_queue: sequences that wait at most; requests beyond get 503.
        max_choices: the greatest `n`.
        max_steps: the greatest `num_steps`.
        max_body: bytes of a request at most.
        timeout: seconds after which a request ends with 504, the time in the queue included.

    >>> Settings(max_batch=8).max_batch
    8
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_length: int | None = None
    max_batch: int = 32
    max_queue: int = 256
    max_choices: int = 16
    max_steps: int = 1024
    max_body: int = 1_048_576
    timeout: float = 600.0

    def __post_init__(self) -> None:
        whole("port", self.port, 0, 65535)
        positive("timeout", self.timeout)
        optional("max_length", self.max_length, size)
        for name in ("max_batch", "max_queue", "max_choices", "max_steps", "max_body"):
            whole(name, getattr(self, name), 1, math.inf)
        if not isinstance(self.host, str) or not self.host:
            raise ValueError(f"host={self.host!r} must be an address, such as '127.0.0.1'")
        if self.api_key is not None and (not isinstance(self.api_key, str) or not self.api_key.strip()):
            raise ValueError("api_key is empty: give one, or None for a server without")

    def __repr__(self) -> str:
        """All but the key, which belongs in no log."""
        shown = {f.name: getattr(self, f.name) for f in fields(self)}
        shown["api_key"] = None if self.api_key is None else "…"
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a name or address is that of this machine alone.

    >>> is_loopback("localhost"), is_loopback("127.0.0.2"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
