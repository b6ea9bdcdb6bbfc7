"""What a client asks for: the JSON of a request, each field checked by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gm_discrete.arguments import flag, listed, mapping, number, numbers, whole
from gm_discrete.serving.errors import refused, refused_by_library
from gm_discrete.serving.settings import Settings

Prompt = str | list[int]
LARGEST_SEED = 2**63 - 1
MOST_STOPS = 4
FEWEST_CHANGES = 0.01
"""Of a step of `Adaptive`: its time grows with one over it."""
ROLES = ("system", "developer", "user", "assistant")
OPTIONS = ("num_steps", "grid", "sampler", "corrector", "blocks", "temperature", "top_p", "top_k")
"""Fields that are options of `GMGenerationConfig` by the same name; the library checks what fits the model."""
IGNORED = ("user", "metadata", "store", "service_tier")
"""Fields of OpenAI about its service, which change no sample."""
NOT_HERE: dict[str, tuple[tuple[Any, ...], str]] = {
    "logprobs": ((False,), "tokens are not generated one after another, so that there is no probability of each given "
                 "those before it; likelihood_bound of the library scores whole texts"),
    "top_logprobs": ((0,), "see logprobs"),
    "logit_bias": (({},), "temperature, top_p and top_k act on the distribution of the tokens"),
    "best_of": ((1,), "ask for n choices, and choose among them"),
    "presence_penalty": ((0,), "tokens are not generated one after another"),
    "frequency_penalty": ((0,), "tokens are not generated one after another"),
    "response_format": (({"type": "text"},), "answers are text"),
    "tools": (([],), "answers are text"),
    "tool_choice": (("none",), "answers are text"),
}  # fmt: skip
"""Fields of OpenAI that this server does not have: the values that change nothing, and the reason."""


@dataclass(frozen=True)
class Ask:
    """A checked request.

    Attributes:
        prompts: texts or token ids; of a chat none. messages: of a chat.
        suffix: text after the gap that is to be filled.
        max_tokens: new tokens of each choice; `None` for the default.
        options: changes of the model's generation config.
        drafts: stream unfinished states, too.
    """

    model: str | None
    prompts: list[Prompt]
    messages: list[dict[str, str]] = field(default_factory=list)
    suffix: str | None = None
    max_tokens: int | None = None
    n: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    echo: bool = False
    stream: bool = False
    include_usage: bool = False
    drafts: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def parse(body: bytes, chat: bool, settings: Settings) -> Ask:
    """The request in the body of a POST.

    Raises:
        ApiError: it is no JSON, or a field is unknown or wrong: 400.
    """
    fields = _object(body)
    for name, (neutral, reason) in NOT_HERE.items():
        if name in fields and not _equals_one(value := fields.pop(name), neutral):
            raise refused(f"{name}={value!r} is not supported: {reason}", name)
    readers = _readers(settings, chat)
    known = {*readers, *OPTIONS, *IGNORED}
    if unknown := [name for name in fields if name not in known]:
        raise refused(f"unknown field {unknown[0]!r}; known ones are {', '.join(sorted(known))}", unknown[0][:64])
    found: dict[str, Any] = {"model": None, "prompts": []}
    for name, (target, read) in readers.items():
        if name in fields:
            try:
                found[target] = read(name, fields[name])
            except (ValueError, TypeError) as error:
                raise refused(str(error), name) from None
    if {"max_tokens", "max_completion_tokens"} <= fields.keys():
        raise refused("max_completion_tokens is another name of max_tokens; give one of them", "max_completion_tokens")
    if chat and "messages" not in found:
        raise refused("messages is missing: give a list of {role, content}", "messages")
    if not chat and "prompt" not in fields:
        raise refused("prompt is missing: give a text, a list of texts, or token ids", "prompt")
    if found.get("include_usage") and not found.get("stream"):
        raise refused("stream_options is for stream=true", "stream_options")
    if found.get("drafts") and not found.get("stream"):
        raise refused("drafts=true is for stream=true", "drafts")
    ask = Ask(**found, options=_options(fields, settings))
    if (rows := max(1, len(ask.prompts)) * ask.n) > settings.max_batch:
        raise refused(
            f"{rows} choices (prompts times n) are more than {settings.max_batch}; send several requests", "n"
        )
    return ask


def _object(body: bytes) -> dict[str, Any]:
    """The fields of a JSON object that are not null."""
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # fails for halves of surrogate pairs
    except UnicodeError:
        raise refused("the body is not valid UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise refused(f"the body is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise refused("the body must be a JSON object")
    return {name: value for name, value in found.items() if value is not None}


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")


def _equals_one(value: object, neutral: tuple[Any, ...]) -> bool:
    """`False` is no 0 here, as JSON has both."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral)


Reader = Callable[[str, Any], Any]


def _readers(settings: Settings, chat: bool) -> dict[str, tuple[str, Reader]]:
    """By the name of a field: the attribute of `Ask`, and what reads it."""
    tokens = partial(whole, least=1 if chat else 0, most=math.inf)
    found: dict[str, tuple[str, Reader]] = {
        "model": ("model", _text),
        "n": ("n", partial(whole, least=1, most=settings.max_choices)),
        "seed": ("seed", partial(whole, least=0, most=LARGEST_SEED)),
        "max_tokens": ("max_tokens", tokens),
        "stop": ("stop", _stop),
        "stream": ("stream", flag),
        "stream_options": ("include_usage", _stream_options),
        "drafts": ("drafts", flag),
    }
    if chat:
        return {**found, "max_completion_tokens": ("max_tokens", tokens), "messages": ("messages", _messages)}
    return {**found, "prompt": ("prompts", _prompts), "suffix": ("suffix", _text), "echo": ("echo", flag)}


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r} must be a text")
    return value


def _prompts(name: str, value: object) -> list[Prompt]:
    if isinstance(value, str):
        return [value]
    parts = listed(name, value)
    if not parts:
        raise ValueError(f"{name}=[] is empty; for a sample without a prompt give an empty text")
    if all(isinstance(part, str) for part in parts):
        return parts
    rows = parts if isinstance(parts[0], list) else [parts]
    found: list[Prompt] = []
    for row in rows:
        if not isinstance(row, list) or not row:
            raise ValueError(
                f"{name}={value!r} must be a text, a list of texts, a list of token ids, or a list of these"
            )
        if not all(type(token) is int and token >= 0 for token in row):  # in one pass, as there may be many
            row = [whole(f"{name}[{i}]", token, 0, math.inf) for i, token in enumerate(row)]
        found.append(row)
    return found


def _messages(name: str, value: object) -> list[dict[str, str]]:
    parts = listed(name, value)
    if not parts:
        raise ValueError(f"{name}=[] must hold a message at least")
    found = []
    for i, part in enumerate(parts):
        label = f"{name}[{i}]"
        message = {key: value for key, value in mapping(label, part).items() if value is not None}
        if any(message.pop(key, None) for key in ("tool_calls", "function_call")):
            raise ValueError(f"{label} calls a tool, and tools are not supported: answers are text")
        if "name" in message:
            raise ValueError(f"{label} has a name, and chat templates take role and content; write it into content")
        if unknown := message.keys() - {"role", "content"}:
            raise ValueError(f"{label} has the unknown field {sorted(unknown)[0]!r}; give role and content")
        if (role := message.get("role")) not in ROLES:
            raise ValueError(f"{label}: role={role!r} must be one of {', '.join(ROLES)}")
        found.append({"role": role, "content": _content(f"{label}.content", message.get("content"))})
    return found


def _content(name: str, value: object) -> str:
    """A text, or the texts of a list of parts, joined."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise TypeError(f"{name}={value!r} must be a text or a list of parts")
    texts = []
    for i, part in enumerate(value):
        found = mapping(f"{name}[{i}]", part)
        if found.get("type") != "text" or not isinstance(found.get("text"), str):
            raise ValueError(f'{name}[{i}]={found!r} must be {{"type": "text", "text": …}}: the model reads text alone')
        texts.append(found["text"])
    return "".join(texts)


def _stop(name: str, value: object) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else listed(name, value)
    if len(found) > MOST_STOPS or not all(isinstance(one, str) and one for one in found):
        raise ValueError(f"{name}={value!r} must be a text or a list of at most {MOST_STOPS} texts, none of them empty")
    return tuple(found)


def _stream_options(name: str, value: object) -> bool:
    found = mapping(name, value)
    if unknown := found.keys() - {"include_usage"}:
        raise ValueError(f"{name} has the unknown field {sorted(unknown)[0]!r}; it has include_usage alone")
    return flag(f"{name}.include_usage", found.get("include_usage", False))


def _options(fields: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The options of the generation config, of which those are checked that take time or memory."""
    found = {name: fields[name] for name in OPTIONS if name in fields}
    try:
        if "num_steps" in found:
            whole("num_steps", found["num_steps"], 1, settings.max_steps)
        if isinstance(grid := found.get("grid"), list):
            if len(grid) > settings.max_steps + 1:
                raise ValueError(f"grid={grid!r} must have at most {settings.max_steps + 1} times")
            numbers("grid", grid)
        for name in ("temperature", "top_p"):
            if not isinstance(found.get(name, []), list):
                number(name, found[name])
        sampler = found.get("sampler")
        if isinstance(sampler, dict) and (changes := sampler.get("max_expected_changes")) is not None:
            number("sampler.max_expected_changes", changes, least=FEWEST_CHANGES)
        if isinstance(blocks := found.get("blocks"), int) and not isinstance(blocks, bool):
            found["blocks"] = {"length": blocks}
    except (ValueError, TypeError) as error:
        raise refused_by_library(error, OPTIONS) from None
    return found
