"""`gm-discrete score`: the likelihood bound of text, and of each row of a table."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gm_discrete.command.models import add_model, load_config, load_model, load_tokenizer
from gm_discrete.command.texts import positive
from gm_discrete.json_text import json_text

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from gm_discrete.likelihood import Likelihood
    from gm_discrete.models import GMConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Print an upper bound on −log2 p of text, in bits per token, character and byte, with its standard error over "
        "sequences. Smaller is more likely. For a model of a table, print a bound on −log p of each row, in nats."
    )
    add_model(parser)
    parser.add_argument(
        "data",
        metavar="DATA",
        help="txt, csv, json, jsonl or parquet file, a folder of them, or the id of a data set on the hub",
    )
    parser.add_argument("--text-column", default="text", help="column that holds the text")
    parser.add_argument("--split", default="train", help="of DATA that has splits")
    parser.add_argument(
        "--ranking", action="store_true",
        help="score each line (or row) as a text of its own, and print one value per line, in nats; the same noise for all. "
        "Empty lines are left out",
    )  # fmt: skip
    parser.add_argument(
        "--lines", action="store_true",
        help="each line (or row) is a text of its own; else texts are joined and cut into blocks, as in training",
    )  # fmt: skip
    parser.add_argument("--length", type=positive, help="tokens of a sequence; by default as in training")
    parser.add_argument(
        "--add-eos", action=argparse.BooleanOptionalAction, default=True, help="end texts with the end-of-text token"
    )
    parser.add_argument("--limit", type=positive, help="score at most so many sequences, evenly spaced")
    parser.add_argument("--num-draws", type=positive, default=8, help="draws of the bound per sequence")
    parser.add_argument("--batch-size", type=positive, default=16, help="sequences in one call of the network")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    config = load_config(options.model)
    path = config.build_path()
    if config.codecs and all(field.length == 1 for field in config.state_fields.values()):
        values = scored_rows(options)
        print(json_text(values) if options.json else "\n".join(f"{value:.4f}" for value in values))
        return
    if "" not in path.fields or not path.is_discrete:
        raise ValueError(
            f"{options.model} has a {type(path).__name__}, and no tokens to score; the page how-to/likelihood of the "
            "documentation has the code for numbers, images and music"
        )
    tokenizer = load_tokenizer(options.model)
    rows = sequences(options, config, tokenizer)
    unknown, total = unknown_tokens(tokenizer, rows)
    if unknown:
        print(
            f"warning: {unknown} of {total} tokens are unknown to the tokenizer ({tokenizer.unk_token}); "
            "bits per character and byte are no bound on this text",
            file=sys.stderr,
        )
    if options.ranking:
        values = ranked(options, config, rows)
        print(json_text(values) if options.json else "\n".join(f"{value:.4f}" for value in values))
        return
    bound = bound_of(options, config, rows)
    found = {**summary(bound, tokenizer, rows), "unknown_tokens": unknown}
    if options.json:
        print(json_text(found, indent=1))
        return
    for unit in ("token", "character", "byte"):
        value, error = found[f"bits_per_{unit}"], found[f"bits_per_{unit}_stderr"]
        shown = "–" if math.isnan(value) else f"{value:.4f} –" if math.isnan(error) else f"{value:.4f} ± {error:.4f}"
        print(f"{f'bits per {unit}':20}{shown}")  # of one sequence there is no error, of unknown characters no number
    print(f"{'perplexity':20}{found['perplexity']:.4f}")
    kind = f"{bound.kind} dynamics, {options.num_draws} draws each"
    print(f"{'upper bound':20}{found['sequences']} sequences, {found['tokens']} tokens ({kind})")


def scored_rows(options: argparse.Namespace) -> list[float]:
    """The bound on −log p of every row of a table, in nats and in the units of the state.

    Raises:
        ValueError: an option is for texts, or the table lacks a column of the model.
    """
    import torch
    from datasets import disable_progress_bars

    from gm_discrete.data import encode_rows, load_table
    from gm_discrete.data.fields import fields_of_columns
    from gm_discrete.likelihood import field_likelihood

    if options.lines or options.length is not None:
        raise ValueError(
            f"{'--lines' if options.lines else '--length'} is for texts, and {options.model} is of a table"
        )
    disable_progress_bars()
    model = load_model(options.model, options.device)
    rows: Any = load_table(options.data, options.split, validation_size=0)
    codecs: Any = model.config.codecs
    rows = rows.select_columns([name for name in fields_of_columns(codecs) if name in rows.column_names])
    if options.limit is not None:
        rows = rows.select(range(0, len(rows), -(-len(rows) // options.limit)))
    rng, noise = torch.Generator().manual_seed(options.seed), torch.Generator(model.device).manual_seed(options.seed)
    found: list[float] = []
    for start in range(0, len(rows), options.batch_size):
        some = rows.select(range(start, min(start + options.batch_size, len(rows))))
        state = {name: field.to(model.device) for name, field in encode_rows(some, codecs, rng).items()}
        found += field_likelihood(model, state, num_samples=options.num_draws, rng=noise).nats.tolist()
    return found


def sequences(options: argparse.Namespace, config: GMConfig, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The token ids of the texts, in sequences."""
    from datasets import disable_progress_bars

    from gm_discrete.data import load_text, pack, truncate

    disable_progress_bars()
    single = options.lines or options.ranking or config.build_path().strings is not None
    texts: Any = load_text(
        options.data,
        options.split,
        text_column=options.text_column,
        sample_by="line" if single else "document",
        validation_size=0,
    )
    length = options.length or config.max_position_embeddings
    rows: Any = (truncate if single else pack)(texts, tokenizer, length, add_eos=options.add_eos)
    if options.limit is not None:
        rows = rows.select(range(0, len(rows), -(-len(rows) // options.limit)))
    return rows


def unknown_tokens(tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> tuple[int, int]:
    """How many tokens stand for what the tokenizer does not have, and the number of all."""
    from gm_discrete.data.tokenizers import unknown_token

    unknown, all_ = unknown_token(tokenizer), [row["input_ids"] for row in rows]  # pyright: ignore[reportArgumentType, reportCallIssue]
    return sum(ids.count(unknown) for ids in all_), sum(map(len, all_))


def bound_of(options: argparse.Namespace, config: GMConfig, rows: Dataset) -> Likelihood:
    """The bound of every sequence, on the CPU."""
    import torch
    from torch.utils.data import DataLoader

    from gm_discrete.data import TokenCollator
    from gm_discrete.evaluation import evaluate_bound

    model = load_model(options.model, options.device)
    rng = torch.Generator(model.device).manual_seed(options.seed)
    collate: Any = TokenCollator(padding(config))
    batches: Any = DataLoader(rows, options.batch_size, collate_fn=collate)  # pyright: ignore[reportArgumentType]
    bound = evaluate_bound(model, batches, num_samples=options.num_draws, rng=rng)
    return replace(bound, nats=bound.nats.cpu(), num_tokens=bound.num_tokens.cpu())


def ranked(options: argparse.Namespace, config: GMConfig, rows: Dataset) -> list[float]:
    """The bound of every text in nats, with the same noise for all of them where the path allows it.

    The noise of a text depends on the length that it is padded to, which is the same in all batches.
    """
    import torch

    from gm_discrete.data import TokenCollator
    from gm_discrete.likelihood import likelihood_bound

    model = load_model(options.model, options.device)
    rng = torch.Generator(model.device).manual_seed(options.seed)
    path: Any = model.path
    paired = path.strings is None or path.inserts_only
    collate = TokenCollator(padding(config), pad_to_multiple_of=max(len(row["input_ids"]) for row in rows))  # pyright: ignore[reportArgumentType, reportCallIssue]
    found: list[float] = []
    for start in range(0, len(rows), options.batch_size):
        some = rows.select(range(start, min(start + options.batch_size, len(rows))))
        batch = {name: tensor.to(model.device) for name, tensor in collate(list(some)).items()}  # pyright: ignore[reportArgumentType]
        if paired:
            rng.manual_seed(options.seed)
        bound = likelihood_bound(
            model, batch["input_ids"], batch.get("attention_mask"), options.num_draws, rng,
            scored=batch["labels"] >= 0, paired=paired, batch_size=options.batch_size,
        )  # fmt: skip
        found += bound.nats.tolist()
    return found


def padding(config: GMConfig) -> int:
    """The token that shorter sequences are padded with; the blank of strings."""
    path = config.build_path()
    return (config.pad_token_id or 0) if path.strings is None else path.strings.blank


def summary(bound: Likelihood, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> dict[str, Any]:
    """Bits per token, character and byte with their standard errors over sequences, and perplexity."""
    import torch

    from gm_discrete.evaluation import count_bytes, count_characters

    found: dict[str, Any] = {"bits_per_token": bound.bits_per_token, "bits_per_token_stderr": bound.stderr}
    for unit, count in (("character", count_characters), ("byte", count_bytes)):
        counts = [count(tokenizer, torch.tensor([row["input_ids"]]))[0] for row in rows]  # pyright: ignore[reportArgumentType, reportCallIssue]
        per_unit = replace(bound, num_tokens=torch.tensor(counts))
        found |= {f"bits_per_{unit}": per_unit.bits_per_token, f"bits_per_{unit}_stderr": per_unit.stderr}
    found |= {"perplexity": bound.perplexity, "sequences": len(bound.nats), "tokens": int(bound.num_tokens.sum())}
    return {**found, "kind": bound.kind}
