"""What pretrained.py trains and scores on: blocks of text, and held-out passages with their size in bytes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gm_discrete.data import TokenCollator, pack
from gm_discrete.evaluation import evaluate_bound
from gm_discrete.likelihood import Likelihood

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from recipes.datasets import load_text

Tokenizer = Any
"""A `PreTrainedTokenizerBase`, whose annotations allow ids to be strings and lists."""


@dataclass(frozen=True)
class Text:
    """What the runs of a network share: training blocks [N, L], and held-out passages with their bytes and source."""

    tokenizer: Tokenizer
    blocks: Tensor
    passages: list[Tensor]
    sizes: list[int]
    sources: list[str]


def held_out(source: str, count: int, size: int) -> list[str]:
    """Passages of whole words, of at most `size` bytes each, evenly spread over the validation split of a source."""
    found = [""]
    for text in load_text(source, "validation")["text"]:  # pyright: ignore[reportIndexIssue, reportArgumentType, reportCallIssue]
        for word in str(text).split(" "):
            longer = f"{found[-1]} {word}" if found[-1] else word
            if len(longer.encode()) <= size:
                found[-1] = longer
            else:
                found.append(word)
    found = [passage for passage in found if size // 2 <= len(passage.encode()) <= size]
    if len(found) < count:
        raise ValueError(
            f"data={source!r} has {len(found)} passages of passage_bytes={size}; {count} were to be held out"
        )
    return [found[i * len(found) // count] for i in range(count)]


def prepare(tokenizer: Tokenizer, texts: Mapping[str, list[str]], args: argparse.Namespace) -> Text:
    blocks = torch.cat([_blocks(source, tokenizer, args.length) for source in args.data])
    passages = [(source, text) for source, found in texts.items() for text in found]
    tokens = [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for _, text in passages]
    if (longest := max(map(len, tokens))) > args.length:
        raise ValueError(f"passage_bytes={args.passage_bytes} gives {longest} tokens; length={args.length} is fewer")
    if tokenizer.unk_token_id is not None and any(bool(t.eq(tokenizer.unk_token_id).any()) for t in tokens):
        print("some held-out tokens are unknown to the tokenizer: the bound does not hold for this text")
    sizes = [len(text.encode()) for _, text in passages]
    return Text(tokenizer, blocks, tokens, sizes, [source for source, _ in passages])


def _blocks(source: str, tokenizer: Tokenizer, length: int) -> Tensor:
    return torch.tensor(pack(load_text(source, "train"), tokenizer, length)["input_ids"][:])  # pyright: ignore[reportIndexIssue, reportArgumentType, reportCallIssue]


def frequencies(text: Text) -> Tensor:
    """−log p of each passage, in nats, under the frequencies of tokens in the training blocks, which uses no context."""
    counts = torch.bincount(text.blocks.flatten(), minlength=len(text.tokenizer)).double() + 0.01  # none is impossible
    nats = -(counts / counts.sum()).log()
    return torch.stack([nats[passage].sum() for passage in text.passages])


def bound(model: nn.Module, text: Text, num_samples: int, args: argparse.Namespace) -> Tensor:
    """The bound of each passage, in nats; the noise is the same at every call."""
    collate = TokenCollator(pad_token_id=text.tokenizer.pad_token_id or 0)
    rows = [{"input_ids": passage} for passage in text.passages]
    batches = [collate(rows[start : start + args.eval_batch]) for start in range(0, len(rows), args.eval_batch)]
    rng = torch.Generator(args.device).manual_seed(args.seed + 1)
    return evaluate_bound(model, batches, num_samples=num_samples, rng=rng).nats.cpu()  # pyright: ignore[reportArgumentType]


def bits(nats: Tensor, sizes: Sequence[int]) -> dict[str, float]:
    """Bits per byte of all passages together, and the standard error over them."""
    found = Likelihood(nats, torch.tensor(sizes))
    return {"bits_per_byte": found.bits_per_token, "stderr": found.stderr}


def by_source(nats: Tensor, text: Text) -> dict[str, dict[str, float]]:
    """Bits per byte of all passages, and of those of each source."""
    chosen = {"all": list(range(len(nats)))}
    for source in dict.fromkeys(text.sources):
        chosen[source] = [i for i, other in enumerate(text.sources) if other == source]
    return {name: bits(nats[rows], [text.sizes[i] for i in rows]) for name, rows in chosen.items()}
