"""Models that fill holes in prompts: masked ones symbol by symbol, edit models with strings of any length."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from measure import seconds
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from gm_discrete import Draft, EditPath, GMModel
from gm_discrete.data import check_tokenizer
from gm_discrete.samplers import Sampler

Way = dict[str, Any]
"""How to sample: arguments of `generate`. For an edit model also `start_time`, at which holes are empty and all fixed
symbols there; by default t = 0, at which it was trained on strings that are all but empty."""
COUNTS = ("network_calls", "jumps")
"""What `generate` counts for each sample."""


@dataclass(frozen=True)
class Source:
    """A model with its tokenizer.

    Attributes:
        length: symbols of the canvas, or the most symbols of a string.
    """

    model: GMModel
    tokenizer: Any
    length: int

    @classmethod
    def of(cls, name: str, length: int | None, device: str) -> Source:
        """The model of a folder or hub id; its length by default is that of training.

        Raises:
            ValueError: its tokenizer is not the model's.
        """
        model = GMModel.from_pretrained(name).to(device).eval()
        tokenizer = AutoTokenizer.from_pretrained(name)
        check_tokenizer(tokenizer, vocab_size=model.config.vocab_size, mask_token_id=model.config.mask_token_id)
        return cls(model, tokenizer, length or model.config.max_position_embeddings)

    @property
    def blank(self) -> int | None:
        """The blank of an edit model, which fills holes of any length; `None` for a model of canvases."""
        return self.model.path.blank_token_id if isinstance(self.model.path, EditPath) else None

    @property
    def hole(self) -> int:
        """What marks a symbol to fill, or any number of them for an edit model."""
        return self.tokenizer.mask_token_id

    @property
    def free(self) -> list[int]:
        """The prompt in which nothing is fixed."""
        return [self.hole] * (self.length if self.blank is None else 1)

    def batch(self, prompts: Sequence[Sequence[int]], start_time: float | None = None) -> dict[str, Any]:
        """Prompts as arguments of `generate`. Those of an edit model are padded; canvases all have one length."""
        if self.blank is None:
            return {"input_ids": torch.tensor(prompts), "max_new_tokens": 0}
        rows = [torch.tensor(prompt) for prompt in prompts]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.blank)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        options = {"input_ids": ids, "attention_mask": mask, "max_length": self.length}
        if start_time is None:
            return options
        pieces = pad_sequence([row[row != self.hole] for row in rows], batch_first=True, padding_value=self.blank)
        return options | {"start_from": Draft(pieces, start_time)}


def arguments_of(way: Way) -> dict[str, Any]:
    """The arguments of `generate`, with the sampler as an object."""
    options = {name: value for name, value in way.items() if name != "start_time"}
    return options | ({"sampler": Sampler.of(options["sampler"])} if "sampler" in options else {})


def generate(
    source: Source, prompts: Sequence[Sequence[int]], way: Way, args: argparse.Namespace
) -> tuple[list[list[int]], dict[str, float]]:
    """What is generated for each prompt, a canvas or a string without blanks; and calls and seconds per prompt, and changes
    of a symbol per call.

    Args:
        args: `batch_size`, `device`, `bf16`, and `seed`, of which every batch has its own.
    """
    found: list[Any] = []

    def fill() -> None:
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.bf16):
            for start in tqdm(range(0, len(prompts), args.batch_size), desc=f"{way}", leave=False):
                batch = source.batch(prompts[start : start + args.batch_size], way.get("start_time"))
                seed = args.seed + start
                options = batch | arguments_of(way)
                found.append(source.model.generate(**options, seed=seed, return_dict_in_generate=True))

    time = seconds(fill, args.device) / len(prompts)
    rows = [row for part in found for row in part["sequences"].tolist()]
    rows = [[symbol for symbol in row if symbol != source.blank] for row in rows]
    calls, changes = (float(torch.cat([part[name].cpu() for part in found]).double().sum()) for name in COUNTS)
    return rows, {"calls": calls / len(prompts), "changes per call": changes / max(calls, 1), "seconds": time}
