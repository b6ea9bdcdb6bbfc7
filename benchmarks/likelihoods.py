"""Bounds on −log p of short stretches of held-out text, given their left context, per network row.

    python benchmarks/likelihoods.py --model runs/shakespeare --data shakespeare --output likelihoods.json

1. The exact −log p of `--scored` tokens given those before them, by `any_order_likelihood`. Against it `any_order_bound`
   with M orders, and `likelihood_bound` with as many draws as the former takes network rows. Gap: how far the mean lies
   above the exact value, in nats per stretch. Error: the root mean square deviation of a single estimate from it.
2. Ranking: the standard deviation of the difference between two candidates, estimated with common random numbers
   (`paired=True`) or without, by `likelihood_bound` and by one order, which cost the same. The other candidate is the
   stretch with one token changed, or another text.

The model must be masked and have no time conditioning.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from measure import environment, markdown, output_file, report
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from gm_discrete import GMModel, any_order_bound, any_order_likelihood, likelihood_bound
from gm_discrete.data import check_tokenizer, pack

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from recipes.datasets import load_text


class Counted:
    """Counts the sequences that the backbone of a model evaluates."""

    def __init__(self, model: GMModel) -> None:
        self.rows = 0
        model.backbone.register_forward_hook(lambda *call: self.count(call[-1]))

    def count(self, states: Tensor) -> None:
        self.rows += len(states)

    def since(self) -> int:
        rows, self.rows = self.rows, 0
        return rows


def stretches(args: argparse.Namespace, tokenizer: object) -> Tensor:
    """Blocks [B, L] of held-out text, evenly spread."""
    rows = load_text(args.data, "validation")
    blocks = pack(rows, tokenizer, args.length)  # pyright: ignore[reportArgumentType]
    count = min(args.stretches, len(blocks))  # pyright: ignore[reportArgumentType]
    chosen = [i * len(blocks) // count for i in range(count)]  # pyright: ignore[reportArgumentType]
    return torch.tensor([blocks[i]["input_ids"] for i in chosen])  # pyright: ignore[reportIndexIssue]


def compare(model: GMModel, z: Tensor, scored: Tensor, args: argparse.Namespace) -> tuple[dict, list[dict]]:
    """The exact value with its network rows per stretch, and both bounds for each number of orders, with as many rows."""
    counted, rng = Counted(model), torch.Generator().manual_seed(args.seed)
    common: dict[str, Any] = {"scored": scored, "rng": rng, "batch_size": args.batch_size}
    exact = any_order_likelihood(model, z, scored=scored, batch_size=args.batch_size)
    summary = {"exact": float(exact.nats.mean()), "rows": counted.since() / len(z)}

    def figures(estimates: list[Tensor]) -> dict[str, float]:
        above = torch.stack(estimates, 1) - exact.nats[:, None]
        noise = float(above.var(1).mean().sqrt())
        return {
            "gap": float(above.mean()),
            "gap_stderr": noise / math.sqrt(above.numel()),
            "error": float(above.square().mean().sqrt()),
        }

    found = []
    for num_orders in tqdm(args.orders, desc="Orders"):
        repeats = max(4, round(args.repeats / math.sqrt(num_orders)))
        orders = [any_order_bound(model, z, num_orders=num_orders, **common).nats for _ in range(repeats)]
        rows = counted.since() / repeats / len(z)
        plain = [likelihood_bound(model, z, num_samples=round(rows), **common).nats for _ in range(repeats)]
        counted.since()
        found.append({"orders": num_orders, "rows": rows, "plain": figures(plain), "any_order": figures(orders)})
    return summary, found


def ranking(model: GMModel, z: Tensor, scored: Tensor, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Standard deviations of the difference between two candidates, for as many network rows as scored tokens each."""
    changed = z.clone()
    middle = z.shape[1] - args.scored // 2 - 1
    changed[:, middle] = z[:, middle].roll(1)
    candidates = {"one token changed": changed, "another text": torch.where(scored, z.roll(1, 0), z)}
    bounds = {
        "likelihood_bound": partial(likelihood_bound, num_samples=args.scored),
        "any_order_bound, M = 1": partial(any_order_bound, num_orders=1),
    }
    spread: dict[str, dict[str, float]] = {}
    for (other, second), (name, bound) in product(candidates.items(), bounds.items()):
        row = spread.setdefault(f"{name}: {other}", {})
        for paired in (True, False):
            rng = torch.Generator().manual_seed(args.seed)
            both, where = torch.stack([z, second], 1), scored[:1].expand(2, -1)
            options: dict[str, Any] = {"rng": rng, "scored": where, "paired": paired, "batch_size": args.batch_size}
            repeats = [[bound(model, pair, **options).nats.diff() for pair in both] for _ in range(args.repeats)]
            spread_of = torch.stack([torch.cat(differences) for differences in repeats]).var(0).mean().sqrt()
            row["paired" if paired else "unpaired"] = float(spread_of)
    return spread


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder or hub id of a GMModel with its tokenizer")
    parser.add_argument("--data", default="shakespeare", help="shakespeare, gcide, a file or folder, or a hub id")
    parser.add_argument("--stretches", type=int, default=8)
    parser.add_argument("--length", type=int, default=48, help="tokens of a stretch with its left context")
    parser.add_argument("--scored", type=int, default=10, help="tokens at its end that are scored")
    parser.add_argument("--orders", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument(
        "--repeats", type=int, default=64, help="estimates of each kind; over √M, at least 4, for M orders"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, on the CPU")
    parser.add_argument("--output", type=output_file, help="JSON file with every setting and figure")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if not 0 < args.scored < args.length:
        raise ValueError(f"scored={args.scored} must be at least 1 and leave context in length={args.length}")

    model = GMModel.from_pretrained(args.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    check_tokenizer(tokenizer, vocab_size=model.config.vocab_size, mask_token_id=model.config.mask_token_id)
    z = stretches(args, tokenizer)
    scored = (torch.arange(args.length) >= args.length - args.scored).expand(z.shape)
    summary, found = compare(model, z, scored, args)
    spread = ranking(model, z, scored, args)

    table = [
        {
            "M": str(row["orders"]),
            "rows": f"{row['rows']:.0f}",
            "gap, likelihood_bound": f"{row['plain']['gap']:.3f} ± {row['plain']['gap_stderr']:.3f}",
            "gap, any_order_bound": f"{row['any_order']['gap']:.3f} ± {row['any_order']['gap_stderr']:.3f}",
            "error, likelihood_bound": f"{row['plain']['error']:.3f}",
            "error, any_order_bound": f"{row['any_order']['error']:.3f}",
        }
        for row in found
    ]
    ranks = [
        {"difference": name, **{key: f"{value:.3f}" for key, value in row.items()}} for name, row in spread.items()
    ]
    exact = f"exact: {summary['exact']:.3f} nats per stretch, {summary['rows']:.0f} rows"
    record = {
        "benchmark": "likelihoods",
        "environment": environment("cpu", __file__, argv),
        "settings": vars(args),
        "summary": summary,
        "bounds": found,
        "ranking": spread,
    }
    report(record, [exact, markdown(table), markdown(ranks)], args.output)


if __name__ == "__main__":
    main()
