"""What another model makes of samples, against the network calls that they cost: samplers side by side.

    python benchmarks/generation.py --models runs/gcide_small runs/shakespeare --judge smollm2 --threads 1 \\
        --output generation.json --figure benchmarks/figures/generation.png

Every row samples each model with other options of `generate`. Its columns:

    perplexity     of the texts under the judge, a causal language model, ± its standard error over texts
    entropy        of the symbols of a sample, in nats, mean ± standard error; it grows with `--length`
    TV             total variation distance of the distributions of `--ngram` successive symbols in samples and held-out text
    calls          of the network per sample
    CPU s          processor time per sample, which other work on the machine disturbs less than elapsed time

Low perplexity with an entropy below that of the data is repetition or blandness. TV compares distributions, as far as so
few symbols can, and has noise: its value for as many held-out blocks of the data stands in the row of the data. Text and its
split are those in the `run.json` that `recipes/text.py` leaves with a model. `--records` joins what runs with other `--rows`
or `--models` have written. Every row has the same seed, so that it does not depend on which others there are.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import environment, markdown, output_file, report, save
from perplexity import fingerprint, held_out, load_judge, sample, score
from torch import Tensor
from transformers import AutoTokenizer

from gm_discrete import Adaptive, DetailedBalance, EntropyBounded, GMModel, ReMDM, TauLeaping
from gm_discrete.configurable import Configurable
from gm_discrete.data import check_tokenizer

Options = dict[str, Any]
ROWS: dict[str, dict[str, Options]] = {
    "tau-leaping": {f"{n} steps": {"num_steps": n} for n in (8, 16, 32, 64, 128)},
    "first hitting": {"": {"sampler": "first_hitting"}},
    "trapezoidal": {f"{n} steps": {"sampler": "trapezoidal", "num_steps": n} for n in (8, 16, 32)},
    "adaptive": {f"M = {m:g}": {"sampler": Adaptive(max_expected_changes=m)} for m in (8.0, 2.0, 0.5)},
    "order confidence": {f"{n} steps": {"num_steps": n, "sampler": TauLeaping("confidence")} for n in (16, 32, 64)},
    "entropy bounded": {f"ε = {bound:g}": {"sampler": EntropyBounded(bound)} for bound in (8.0, 2.0, 0.5, 0.1, 0.05)},
    "temperature": {
        f"{heat}, 32 steps": {"num_steps": 32, "temperature": value}
        for heat, value in {"0.9": 0.9, "0.8": 0.8, "0.6": 0.6, "0.8 → 0.4": (0.8, 0.4)}.items()
    },
    "noisy confidence": {
        f"{heat:g}, 32 steps": {"num_steps": 32, "sampler": TauLeaping("confidence", heat)} for heat in (3.0, 1.0, 0.3)
    },
    "ReMDM": {"32 steps": {"num_steps": 32, "corrector": ReMDM()}},
    "detailed balance ×1": {"16 steps": {"num_steps": 16, "corrector": DetailedBalance(sweeps=1)}},
    "order margin": {f"{n} steps": {"num_steps": n, "sampler": TauLeaping("margin")} for n in (16, 32, 64)},
    "order entropy": {f"{n} steps": {"num_steps": n, "sampler": TauLeaping("entropy")} for n in (16, 32, 64)},
}
"""By name of the curve and of the point on it: arguments of `generate`."""
FOR_MASKS = (
    "first hitting",
    "entropy bounded",
    "ReMDM",
    "order confidence",
    "noisy confidence",
    "order margin",
    "order entropy",
)
DATA = "data"
SETS = 10
"""Most sets of held-out blocks whose TV from the rest gives the noise."""


def counts(tokens: Tensor, ngram: int, symbols: int) -> dict[int, int]:
    """How often each n-gram occurs in sequences [N, L], none of which it leaves."""
    codes = (tokens.unfold(1, ngram, 1) * symbols ** torch.arange(ngram)).sum(-1)
    values, numbers = codes.unique(return_counts=True)
    return dict(zip(values.tolist(), numbers.tolist(), strict=True))


def total_variation(first: Mapping[int, int], second: Mapping[int, int]) -> float:
    """½ Σ |p − q| of the two distributions that the counts are proportional to."""
    p, q = sum(first.values()), sum(second.values())
    return sum(abs(first.get(code, 0) / p - second.get(code, 0) / q) for code in {**first, **second}) / 2


def noise(blocks: Tensor, size: int, ngram: int, symbols: int) -> list[float]:
    """TV of up to `SETS` disjoint sets of `size` blocks [N, L], each from all other blocks."""
    stride, found = len(blocks) // size, []
    for start in range(min(SETS, stride)):
        chosen = torch.zeros(len(blocks), dtype=torch.bool)
        chosen[start + stride * torch.arange(size)] = True
        found.append(total_variation(counts(blocks[chosen], ngram, symbols), counts(blocks[~chosen], ngram, symbols)))
    return found


def measured(folder: str, judge: dict[str, Any], args: argparse.Namespace, record: dict[str, Any]) -> None:
    """Puts the rows of one model into the record, and saves it after each."""
    model = GMModel.from_pretrained(folder).to(args.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    check_tokenizer(tokenizer, vocab_size=model.config.vocab_size, mask_token_id=model.config.mask_token_id)
    run = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
    length, symbols = args.length or model.config.max_position_embeddings, model.config.vocab_size
    blocks = held_out(argparse.Namespace(**run, split="validation", limit=sys.maxsize), tokenizer, length)
    if len(blocks) < 2 * args.num_samples:
        raise ValueError(f"{folder}: {len(blocks)} held-out blocks; num_samples={args.num_samples} needs twice as many")
    truth, variations = counts(blocks, args.ngram, symbols), noise(blocks, args.num_samples, args.ngram, symbols)
    results: list[dict[str, Any]] = []
    record["models"][Path(folder).name] = {
        "weights_sha256": fingerprint(model),
        "data": run["data"],
        "length": length,
        "noise": {"mean": sum(variations) / len(variations), "of_sets": variations},
        "rows": results,
    }

    def add(curve: str, point: str, tokens: Tensor, **more: Any) -> None:
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        results.append({"curve": curve, "point": point, **score(tokens, tokenizer, judge), **more, "texts": texts})
        print(Path(folder).name, table(results[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
        if args.output is not None:
            save(record, args.output)

    add(DATA, "", blocks[:: len(blocks) // args.num_samples][: args.num_samples], tv=sum(variations) / len(variations))
    for curve, points in ROWS.items():
        for point, options in points.items():
            if not any(re.search(part, f"{curve}, {point}") for part in args.rows):
                continue
            if model.path.rates != "masked" and curve in FOR_MASKS:
                continue
            wall, processor = time.perf_counter(), time.process_time()
            tokens, calls = sample(model, length, args.num_samples, args.batch_size, args.seed, **options)
            spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - processor}
            add(
                curve,
                point,
                tokens,
                tv=total_variation(counts(tokens, args.ngram, symbols), truth),
                calls=float(calls.double().mean()),
                **{name: value / args.num_samples for name, value in spent.items()},
                options={
                    name: value.to_dict() if isinstance(value, Configurable) else value
                    for name, value in options.items()
                },
            )


def merged(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first record, with the models and rows that only the others have.

    Raises:
        ValueError: they were taken with other settings, or of other models of the same name.
    """
    first, order = records[0], [(DATA, ""), *((curve, point) for curve, points in ROWS.items() for point in points)]
    for record in records[1:]:
        for name in ("num_samples", "ngram", "batch_size", "seed"):
            if record["settings"][name] != first["settings"][name]:
                raise ValueError(f"the records have {name}={first['settings'][name]} and {record['settings'][name]}")
        if record["judge"] != first["judge"]:
            raise ValueError("the records have different judges")
        for name, model in record["models"].items():
            known = first["models"].setdefault(name, model)
            if any(known[key] != model[key] for key in ("weights_sha256", "data", "length")):
                raise ValueError(f"the records have different models, data or lengths under the name {name}")
            have = {(row["curve"], row["point"]) for row in known["rows"]}
            known["rows"] += [row for row in model["rows"] if (row["curve"], row["point"]) not in have]
            known["rows"].sort(key=lambda row: order.index((row["curve"], row["point"])))
    return first


def perplexity(row: Mapping[str, Any]) -> tuple[float, float]:
    """With its standard error, to first order in that of the nats per token."""
    return row["judge_perplexity"], row["judge_perplexity"] * row["judge_stderr"]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        value, error = perplexity(row)
        digits = max(0, 1 - math.floor(math.log10(error))) if 0 < error < 10 else 0
        lines.append(
            {
                "": f"{row['curve']}, {row['point']}".removesuffix(", "),
                "perplexity": f"{value:.{digits}f} ± {error:.{digits}f}",
                "entropy": f"{row['entropy']:.3f} ± {row['entropy_stderr']:.3f}",
                "TV": f"{row['tv']:.3f}",
                "calls": f"{row['calls']:.1f}" if "calls" in row else "–",
                "CPU s": f"{row['cpu_s']:.2f}" if "cpu_s" in row else "–",
            }
        )
    return markdown(lines)


def tables(record: Mapping[str, Any]) -> list[str]:
    settings, found = record["settings"], []
    for name, model in record["models"].items():
        size = f"{settings['num_samples']} samples of {model['length']} symbols"
        found += [f"### {name}\n\n{size}; TV of {settings['ngram']}-grams", table(model["rows"])]
    return found


LOOKS: dict[str, tuple[str, str, str]] = {  # colour (of Okabe and Ito), line, marker
    "tau-leaping": ("#0072B2", "-", "o"), "first hitting": ("black", "", "D"), "trapezoidal": ("#009E73", "-", "s"),
    "adaptive": ("#56B4E9", "-", "^"), "temperature": ("#CC79A7", "", "P"), "ReMDM": ("#E69F00", "", "X"),
    "detailed balance ×1": ("#E69F00", "", "d"), "order confidence": ("#D55E00", "-", "o"),
    "noisy confidence": ("#7A2600", "", "p"), "order margin": ("#D55E00", "--", "v"),
    "order entropy": ("#D55E00", ":", "<"), "entropy bounded": ("0.5", "-", "h"),
}  # fmt: skip


def picture(models: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """A row for each model: perplexity against calls, and against how far the entropy is from that of the data."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(12, 4.8 * len(models) + 1), layout="constrained")
    handles: dict[str, Any] = {}
    for (left, right), (name, model) in zip(
        figure.subplots(len(models), 2, squeeze=False), models.items(), strict=True
    ):
        data = next(row for row in model["rows"] if row["curve"] == DATA)
        truth, entropy = perplexity(data)[0], data["entropy"]
        for curve, (color, line, marker) in LOOKS.items():
            points = [row for row in model["rows"] if row["curve"] == curve]
            if not points:
                continue
            values, errors = zip(*map(perplexity, points), strict=True)
            look = {"color": color, "marker": marker, "ms": 8, "elinewidth": 0.7, "markeredgecolor": "white"}
            handles[curve] = left.errorbar([row["calls"] for row in points], values, errors, ls=line, lw=1.3, **look)
            gaps, wide = [row["entropy"] - entropy for row in points], [row["entropy_stderr"] for row in points]
            right.errorbar(gaps, values, errors, wide, ls="", **look)
        for axis in (left, right):
            axis.set(yscale="log", ylabel="perplexity under the judge", title=name)
            axis.axhline(truth, color="black", lw=1, ls="--")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axis.grid(which="major", alpha=0.3)
        left.set_xscale("log", base=2)
        left.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
        left.set_xlabel("network calls per sample")
        left.annotate("held-out text", (0.01, truth), xycoords=left.get_yaxis_transform(), va="bottom")
        right.set_xscale("symlog", linthresh=0.1)  # collapse is far from all others, and they are close to each other
        right.xaxis.set_major_locator(FixedLocator([-2, -1, -0.5, -0.2, -0.1, -0.05, 0, 0.05, 0.1]))
        right.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        right.axvline(0, color="black", lw=1, ls="--")
        right.set_xlabel("entropy of the symbols less that of held-out text, nats")
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=6, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(file.name + ".draft")
    figure.savefig(draft, format="png", dpi=110)
    draft.replace(file)


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--models", nargs="+", help="folders of recipes/text.py: model, tokenizer and run.json")
    source.add_argument("--records", type=Path, nargs="+", help="outputs of earlier runs")
    parser.add_argument("--judge", default="smollm2", help="smollm2, a folder, or a hub id")
    parser.add_argument("--rows", nargs="+", default=[""], help="only those whose name has one of these (expressions)")
    parser.add_argument("--num-samples", type=int, default=256)
    parser.add_argument("--length", type=int, help="symbols of a sample; as in training by default")
    parser.add_argument("--ngram", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, on the CPU")
    parser.add_argument("--output", type=output_file, help="JSON file with every setting, figure and text")
    parser.add_argument("--figure", type=output_file, help="PNG file")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.records:
        record = merged([json.loads(file.read_text(encoding="utf-8")) for file in args.records])
    else:
        judge = load_judge(args.judge, args)
        record = {
            "benchmark": "generation",
            "environment": environment(args.device, __file__, argv),
            "settings": vars(args),
            "judge": {"weights_sha256": fingerprint(judge["judge"])},
            "models": {},
        }
        for folder in args.models:
            measured(folder, judge, args, record)
    report(record, tables(record), args.output)
    if args.figure is not None:
        picture(record["models"], args.figure)


if __name__ == "__main__":
    main()
