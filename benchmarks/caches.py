"""Threshold decoding and approximate caches of a masked model: network calls, positions, time and equal tokens.

    python benchmarks/caches.py --model runs/model --text held_out.txt --threads 1 --output caches.json

Every row goes on with the same prompts, pieces of the text, at temperature 0 and in blocks. Its columns:

    calls        of the network per sample
    positions    that the network evaluates per sample, of all calls together
    s            wall-clock time per sample, the median of rounds in which the rows take turns
    same         share of new tokens that are those of the first row: one token a call, by confidence, without a cache
    same order   share that are those of the row with the same way of decoding and without a cache

Tokens of the first row are no truth: `same` says how far an approximation goes, not how good its text is. Without `--text`
prompts come from the held-out data of the `run.json` that the recipes leave with a model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import environment, interleaved, markdown, output_file, report
from perplexity import fingerprint, held_out
from torch import Tensor
from transformers import AutoTokenizer

from gm_discrete import Blocks, GMModel, Sampler, TauLeaping

CACHES = (None, "prefix", "dual")


def ways(block: int, thresholds: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Arguments of `generate` by name of the way of decoding, the first of them the reference."""
    confidence: Sampler = TauLeaping("confidence")
    found: dict[str, dict[str, Any]] = {
        "one token a call": {"sampler": confidence, "num_steps": block},
        "two tokens a call": {"sampler": confidence, "num_steps": max(block // 2, 1)},
        "random order": {"sampler": TauLeaping(), "num_steps": block},
    }
    for threshold in thresholds:
        found[f"threshold {threshold:g}"] = {"sampler": TauLeaping("confidence", threshold=threshold)}
    return found


def prompts_of(model: GMModel, args: argparse.Namespace) -> Tensor:
    """Token ids [N, prompt length], from pieces of the text that follow each other."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    if args.text is None:
        run = json.loads((Path(args.model) / "run.json").read_text(encoding="utf-8"))
        limit = args.num_samples
        blocks = held_out(argparse.Namespace(**run, split="validation", limit=limit), tokenizer, args.prompt_length)
    else:
        ids = tokenizer(args.text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
        blocks = torch.tensor(ids)[: len(ids) // args.prompt_length * args.prompt_length].view(-1, args.prompt_length)
    if len(blocks) < args.num_samples:
        raise ValueError(f"the text has {len(blocks)} pieces of {args.prompt_length} tokens; give num_samples ≤ that")
    return blocks[: args.num_samples].to(model.device)


def measured(model: GMModel, prompts: Tensor, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows: every way of decoding with every cache."""
    evaluated = [0]

    def count(_: object, inputs: tuple[Mapping[str, Tensor], ...]) -> None:
        evaluated[0] += inputs[0][""].numel()

    rows, calls = [], {}
    for way, options in ways(args.block, args.thresholds).items():
        for cache in CACHES:
            blocks = Blocks(args.block, cache)
            more = {"blocks": blocks, "max_new_tokens": args.new_tokens, "temperature": 0, "seed": args.seed, **options}
            calls[way, cache] = lambda more=more: model.generate(prompts, return_dict_in_generate=True, **more)
    hook, samples = model.backbone.register_forward_pre_hook(count), {}
    for (way, cache), call in calls.items():
        evaluated[0] = 0
        output = call()
        new = samples[way, cache] = output.sequences[:, prompts.shape[1] :]
        rows.append(
            {
                "way": way,
                "cache": cache,
                "calls": float(output.network_calls.float().mean()),
                "positions": evaluated[0] / len(prompts),
                "same": float((new == next(iter(samples.values()))).float().mean()),
                "same_order": float((new == samples[way, None]).float().mean()),
            }
        )
    hook.remove()
    named = {f"{way}, {cache}": call for (way, cache), call in calls.items()}
    times = interleaved(named, args.rounds, args.device)
    for row, seconds in zip(rows, times.values(), strict=True):
        row["s"] = median(seconds) / len(prompts)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    return markdown(
        [
            {
                "decoding": row["way"],
                "cache": row["cache"] or "none",
                "calls": f"{row['calls']:.1f}",
                "positions": f"{row['positions']:,.0f}",
                "s": f"{row['s']:.3f}",
                "same": f"{100 * row['same']:.1f}%",
                "same order": f"{100 * row['same_order']:.1f}%",
            }
            for row in rows
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of a masked model and its tokenizer")
    parser.add_argument("--text", type=Path, help="text of the prompts; by default the held-out data of run.json")
    parser.add_argument("--prompt-length", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.95, 0.9, 0.7])
    parser.add_argument("--num-samples", type=int, default=4, help="prompts, which are one batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, on the CPU")
    parser.add_argument("--output", type=output_file, help="JSON file with every setting and figure")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    model = GMModel.from_pretrained(args.model).to(args.device).eval()
    model.generation_config.eos_token_id = None  # every row fills equally many positions
    rows = measured(model, prompts_of(model, args), args)
    record = {
        "benchmark": "caches",
        "environment": environment(args.device, __file__, argv),
        "settings": vars(args),
        "weights_sha256": fingerprint(model),
        "rows": rows,
    }
    report(record, [table(rows)], args.output)


if __name__ == "__main__":
    main()
