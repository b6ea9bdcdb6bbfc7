"""The likelihood bound over a data set, and its summary as a metric."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import evaluate
import torch
from accelerate import Accelerator
from datasets import Features, Value
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from gm_discrete.data.collator import IGNORED
from gm_discrete.likelihood import Likelihood, likelihood_bound
from gm_discrete.objective import unwrapped
from gm_discrete.process import Process

BYTES = {symbol: byte for byte, symbol in bytes_to_unicode().items()}
"""The bytes that the characters in the vocabulary of a byte-level tokenizer stand for."""


class BoundPerplexity(evaluate.Metric):
    """Bits and perplexity from upper bounds on −log p of sequences.

    `add_batch(nats=[…], num_tokens=[…])`, one entry per sequence, optionally `num_characters=[…]` in every batch.
    `compute()` returns `bits_per_token`, its `stderr` over sequences, `perplexity`, and, with characters,
    `bits_per_character` = Σ nats / (ln 2 · Σ characters).
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Bits per token, perplexity and bits per character from bounds on -log p.",
            citation="",
            inputs_description="nats, num_tokens, optionally num_characters: one entry per sequence.",
            features=Features(
                {"nats": Value("float64"), "num_tokens": Value("int64"), "num_characters": Value("int64")}
            ),
        )

    def add_batch(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *,
        nats: Sequence[float] | Tensor,
        num_tokens: Sequence[int] | Tensor,
        num_characters: Sequence[int] | None = None,
    ) -> None:
        """Adds sequences."""
        characters = [None] * len(nats) if num_characters is None else num_characters
        super().add_batch(nats=nats, num_tokens=num_tokens, num_characters=characters)

    def _compute(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, nats: Sequence[float], num_tokens: Sequence[int], num_characters: Sequence[int | None]
    ) -> dict[str, float]:
        bound = Likelihood(torch.tensor(nats, dtype=torch.float64), torch.tensor(num_tokens))
        summary = {
            "bits_per_token": bound.bits_per_token,
            "stderr": bound.stderr,
            "perplexity": bound.perplexity,
        }
        characters = [count for count in num_characters if count is not None]
        if characters:
            if len(characters) < len(nats):
                raise ValueError(
                    f"num_characters is given for {len(characters)} of {len(nats)} sequences; give it for all or none"
                )
            summary["bits_per_character"] = sum(nats) / (math.log(2) * sum(characters))
        return summary


def evaluate_bound(
    model: Process,
    dataloader: Iterable[Mapping[str, Tensor]],
    *,
    num_samples: int = 8,
    rng: torch.Generator | None = None,
    estimator: str = "auto",
    accelerator: Accelerator | None = None,
) -> Likelihood:
    """The likelihood bound of every sequence of `dataloader`, in order.

    Args:
        model: a `GMModel` or any other `Process`.
        dataloader: batches of `TokenCollator` or `ImageCollator`. Positions whose label is not −100 are scored; sequences
            without any have a bound of 0. Class labels are passed to models with classes.
        num_samples, rng, estimator: see `likelihood_bound`; seed `rng` differently on every process.
        accelerator: the one that prepared `dataloader`, if any; every process then returns the bounds of all.

    Raises:
        ValueError: `dataloader` is empty, or nothing of it is scored.
    """
    bounds = []
    device = getattr(model, "device", None)
    for batch in tqdm(dataloader, desc="Bound", disable=accelerator and not accelerator.is_main_process):
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        classes = batch.get("class_labels") if getattr(getattr(model, "config", None), "num_classes", 0) else None
        scored = batch["labels"] != IGNORED
        if bool(scored.any()):
            bound = likelihood_bound(
                model,
                batch["input_ids"],
                batch.get("attention_mask"),
                num_samples,
                rng,
                scored=scored,
                estimator=estimator,
                x_0=batch.get("source_ids"),
                class_labels=classes,
            )
        else:
            nothing = scored.new_zeros((len(scored), num_samples), dtype=torch.float64)
            bound = Likelihood(nothing.sum(1), scored.sum(1), unwrapped(model).path.rates, nothing)
        if accelerator:
            parts = (bound.nats, bound.num_tokens, bound.draws)
            nats, num_tokens, draws = accelerator.gather_for_metrics(parts)
            bound = replace(bound, nats=nats, num_tokens=num_tokens, draws=draws)
        bounds.append(bound)
    if not bounds:
        raise ValueError("dataloader is empty; give at least one batch")
    bound = Likelihood.cat(bounds)
    if not int(bound.num_tokens.sum()):
        raise ValueError("dataloader has nothing to score: no label of its batches differs from −100")
    return bound


def count_characters(tokenizer: PreTrainedTokenizerBase, labels: Tensor) -> list[int]:
    """The number of characters that begin in the scored tokens of each sequence; special tokens have none.

    A character of which several tokens hold the bytes belongs to the first of them. So the numbers of the blocks of a text
    add up to its length, also where a border cuts a character.

    Args:
        labels: [B, L], −100 where not scored.
    """
    return _counted(lambda token: _characters(tokenizer, token), labels)


def count_bytes(tokenizer: PreTrainedTokenizerBase, labels: Tensor) -> list[int]:
    """The number of bytes of UTF-8 in the scored tokens of each sequence; special tokens have none.

    Args:
        labels: [B, L], −100 where not scored.
    """
    return _counted(lambda token: _bytes(tokenizer, token), labels)


def _counted(size: Callable[[int], int], labels: Tensor) -> list[int]:
    """The sum of the sizes of the scored tokens of each sequence."""
    scored = labels != IGNORED
    tokens, places = labels.masked_fill(~scored, 0).unique(return_inverse=True)
    counts = torch.tensor([size(int(token)) for token in tokens], device=labels.device)
    return (counts[places] * scored).sum(1).tolist()


def _characters(tokenizer: PreTrainedTokenizerBase, token: int) -> int:
    """The number of characters that begin in a token."""
    found = _bytes_of(tokenizer, token)
    return (
        len(found) if isinstance(found, str) else sum(not 0x80 <= byte < 0xC0 for byte in found)
    )  # others continue one


def _bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> int:
    found = _bytes_of(tokenizer, token)
    return len(found.encode("utf-8", "replace") if isinstance(found, str) else found)


def _bytes_of(tokenizer: PreTrainedTokenizerBase, token: int) -> str | bytes:
    """What a token adds to a text: its bytes if the tokenizer is one of bytes, else its characters."""
    if token in tokenizer.all_special_ids:
        return ""
    piece, decoder = str(tokenizer.convert_ids_to_tokens(token)), _decoder(tokenizer)
    if "ByteLevel" in decoder and set(piece) <= BYTES.keys():
        return bytes(BYTES[symbol] for symbol in piece)
    if "ByteFallback" in decoder and (byte := re.fullmatch(r"<0x([0-9A-F]{2})>", piece)):
        return bytes([int(byte[1], 16)])
    # As the second token of a text: a decoder may change the first one.
    return str(tokenizer.decode([token, token]))[len(str(tokenizer.decode([token]))) :]


def _decoder(tokenizer: PreTrainedTokenizerBase) -> str:
    """The names of the steps in which tokens become text; none for tokenizers that are written in Python."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return "" if decoder is None else str(decoder.__getstate__())
