"""What a network row buys: bounds on −log p of short stretches of held-out text given their left context.

    python benchmarks/likelihoods.py --model runs/shakespeare --data shakespeare --output likelihoods.json

1. The exact −log p of `--scored` tokens given those before them, by `any_order_likelihood`. Against it: `likelihood_bound`,
   the bound with M uniform orders −log (1/M) Σ_m Π_i π, and `any_order_bound`, whose orders look one step ahead, each with
   the network rows that it takes. Gap: how far its mean lies above the exact value, in nats per stretch, with the standard
   error over repetitions. Error: the root mean square of a single estimate about the exact value, gap and noise together,
   and that of `likelihood_bound` with as many rows.
2. Ranking: the standard deviation of the difference of two candidates, the stretch itself and one of another place, whose
   bounds are estimated with common random numbers (`paired=True`) or without.

The model must be masked and must not see the time.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from measure import environment, markdown, report
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from gm_discrete import GMModel, any_order_bound, any_order_likelihood, likelihood_bound
from gm_discrete.data import check_tokenizer, load_text, pack


class Counted:
    """The model, and how many sequences its backbone reads."""

    def __init__(self, model: GMModel) -> None:
        self.rows = 0
        model.backbone.register_forward_hook(lambda _, __, states: self.count(states))

    def count(self, states: Tensor) -> None:
        self.rows += len(states)

    def since(self) -> int:
        rows, self.rows = self.rows, 0
        return rows


@torch.no_grad()
def uniform_orders(
    model: GMModel, z: Tensor, scored: Tensor, num_orders: int, num_samples: int, rng: torch.Generator, batch_size: int
) -> Tensor:
    """Draws [B, S] of −log (1/M) Σ_m Π_i π(z_σ(i) | z_σ(<i)) for uniform orders σ; z has equally many scored positions.

    As in `any_order_bound`, orders that have revealed the same positions share a row.
    """
    length, rows = int(scored.sum(1)[0]), num_orders * num_samples
    keys = torch.rand(len(z) * rows, length, generator=rng).argsort(1)
    place = scored.nonzero()[:, 1].view(len(z), length).repeat_interleave(rows, 0)
    sequence = torch.arange(len(z)).repeat_interleave(rows)
    total = torch.zeros(len(sequence), dtype=torch.float64)
    for j in range(length):
        masked = torch.zeros(len(sequence), z.shape[1], dtype=torch.bool).scatter_(1, place, keys >= j)
        x = torch.where(masked, model.config.mask_token_id, z[sequence])
        states, inverse = torch.cat([sequence[:, None], x], 1).unique(dim=0, return_inverse=True)
        said = [model(input_ids=part[:, 1:]).logits.log_softmax(2) for part in states.split(batch_size)]
        now = place.gather(1, (keys == j).long().argmax(1, keepdim=True))
        target = z[sequence].gather(1, now)
        total += torch.cat(said)[inverse, now.squeeze(1)].gather(1, target).squeeze(1).double()
    return math.log(num_orders) - total.view(len(z), num_samples, num_orders).logsumexp(2)


def stretches(args: argparse.Namespace, tokenizer: object) -> Tensor:
    """Blocks [B, L] of held-out text, evenly spread."""
    rows = load_text(args.data, "validation")
    blocks = pack(rows, tokenizer, args.length)  # pyright: ignore[reportArgumentType]
    count = min(args.stretches, len(blocks))  # pyright: ignore[reportArgumentType]
    chosen = [i * len(blocks) // count for i in range(count)]  # pyright: ignore[reportArgumentType]
    return torch.tensor([blocks[i]["input_ids"] for i in chosen])  # pyright: ignore[reportIndexIssue]


def compare(model: GMModel, z: Tensor, scored: Tensor, args: argparse.Namespace) -> tuple[dict, list[dict]]:
    """Of each bound: gap, its error, noise and rows of one estimate."""
    counted, rng = Counted(model), torch.Generator().manual_seed(args.seed)
    size = args.batch_size
    exact = any_order_likelihood(model, z, scored=scored, batch_size=size)
    rows = counted.since() / len(z)

    def figures(draws: Tensor) -> dict[str, float]:
        above = draws - exact.nats[:, None]
        return {
            "gap": float(above.mean()),
            "gap_stderr": float(above.std(1).square().mean().sqrt()) / math.sqrt(above.numel()),
            "noise": float(above.std(1).square().mean().sqrt()),
            "error": float(above.square().mean().sqrt()),
        }

    draws = likelihood_bound(
        model, z, num_samples=args.bound_samples, rng=rng, scored=scored, batch_size=size
    ).draws  # strata in the order of drawing: every draw of 1/S of the range
    assert draws is not None
    # Repetitions of a bound of few draws: without strata across them, as each is an estimate of its own.
    single = [
        likelihood_bound(model, z, num_samples=1, rng=rng, scored=scored).draws for _ in tqdm(range(args.bound_samples))
    ]
    alone = figures(torch.cat([part for part in single if part is not None], 1))
    counted.since()
    found = []
    plain = float((draws.mean(1) - exact.nats).mean())
    for num_orders in tqdm(args.orders, desc="Orders"):
        repeats = max(2, args.order_samples // num_orders)
        # One repetition at a time, as rows are not shared between estimates.
        uniform = [uniform_orders(model, z, scored, num_orders, 1, rng, size) for _ in range(repeats)]
        uniform_rows = counted.since() / repeats / len(z)
        ahead = []
        for _ in range(repeats):
            part = any_order_bound(model, z, num_orders=num_orders, rng=rng, scored=scored, batch_size=size).draws
            ahead += [] if part is None else [part]
        ahead_rows = counted.since() / repeats / len(z)
        found.append(
            {
                "orders": num_orders,
                "uniform": figures(torch.cat(uniform, 1)) | {"rows": uniform_rows},
                "ahead": figures(torch.cat(ahead, 1)) | {"rows": ahead_rows},
                # of independent draws; strata can only lower the noise, and not the gap
                "plain_error": math.hypot(plain, alone["noise"] / math.sqrt(ahead_rows)),
            }
        )
    summary = {"exact": float(exact.nats.mean()), "exact_rows": rows, "plain_gap": plain, "plain_single": alone}
    return summary, found


def ranking(model: GMModel, z: Tensor, scored: Tensor, args: argparse.Namespace) -> dict[str, float]:
    """Standard deviation of the difference of the bounds of two candidates, `--bound-samples` draws of one row each."""
    other = torch.where(scored, z.roll(1, 0), z)
    spread = {}
    for paired in (True, False):
        rng = torch.Generator().manual_seed(args.seed)
        parts = []
        for first, second in zip(z, other, strict=True):
            both = torch.stack([first, second])
            where = scored[:1].expand(2, -1)
            repeats = [
                likelihood_bound(model, both, num_samples=1, rng=rng, scored=where, paired=paired).nats
                for _ in range(args.bound_samples)
            ]
            parts.append(torch.stack([a - b for a, b in repeats]).var())
        spread["paired" if paired else "unpaired"] = float(torch.stack(parts).mean().sqrt())
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
    parser.add_argument("--scored", type=int, default=8, help="tokens at its end that are scored")
    parser.add_argument("--orders", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--order-samples", type=int, default=64, help="orders of all repetitions together, at least 2·M")
    parser.add_argument("--bound-samples", type=int, default=64, help="draws of the plain bound")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, on the CPU")
    parser.add_argument("--output", type=Path, help="JSON file with every setting and figure")
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
            "rows": f"{row['ahead']['rows']:.0f}",
            "gap, plain": f"{summary['plain_gap']:.3f}",
            "gap, uniform orders": f"{row['uniform']['gap']:.3f} ± {row['uniform']['gap_stderr']:.3f}",
            "gap, looking ahead": f"{row['ahead']['gap']:.3f} ± {row['ahead']['gap_stderr']:.3f}",
            "error, plain": f"{row['plain_error']:.3f}",
            "error, uniform orders": f"{row['uniform']['error']:.3f}",
            "error, looking ahead": f"{row['ahead']['error']:.3f}",
        }
        for row in found
    ]
    ranks = [{"": "std of one draw of a difference", **{name: f"{value:.3f}" for name, value in spread.items()}}]
    exact = f"exact: {summary['exact']:.3f} nats per stretch, {summary['exact_rows']:.0f} rows"
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
