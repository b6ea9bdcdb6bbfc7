"""Training, sampling and the text recipe on one GPU, against flow_matching and against what the hardware allows.

    python benchmarks/gpu.py --output benchmarks/results/gpu.json

It is planned for six minutes on an H100 or H200 and needs no network. Each part has a time of its own (`PARTS`); what was
measured is written after every row, and a part that fails leaves the others as they are. The parts:

    training       milliseconds of a step with AdamW under bfloat16 autocast, of ours, of flow_matching's dense loss with the
                   same network, and of the floor: the backbone, and a dense cross-entropy at the positions that can jump.
                   First eager, then with the layers compiled one by one, which all three share. Every step draws new noise.
                   `of the peak`: the operations of such a transformer (`device.training_flops`) in this time, over those
                   of the data sheet. `launches`, `copies`, `products` and `waits` are of one step; `waits` counts how often
                   the host waits for the device.
    sampling       seconds of `generate` from a masked model with bfloat16 weights, eager and with `compile=True`, and of
                   flow_matching's solver with the same eager network (~: extrapolated from `--peer-steps` steps). `their
                   graphs` is the floor: a CUDA graph of the same backbone, eager or compiled, replayed once for each call
                   that was needed, at the batch size of the call.
    distributions  total variation of samples of the exact posterior in place of a network, over that of as many samples of
                   the distribution itself. Samplers on a grid are compared with the exact distribution of their steps.
    recipe         tokens a second through `GMTrainer`, and bits per character, of `recipes/text.py` with
                   configs/gcide_text8.yaml for `--recipe-seconds`, one batch a step and a short warm-up; against the bare
                   step at the same sizes.

It needs torch, transformers, accelerate, datasets, evaluate and flow_matching. For a machine without network:

    pip download -d wheels torch transformers accelerate datasets evaluate flow_matching     # where there is one
    python -c "from recipes.datasets import download_gcide; print(download_gcide())"         # the text, 30 MB
    pip install --no-index --find-links wheels torch transformers accelerate datasets evaluate flow_matching
    HF_HUB_OFFLINE=1 python benchmarks/gpu.py --text gcide_text8.txt --output gpu.json
    python -m pytest -m gpu tests/gpu                                    # the tests; with pytest and hypothesis

Without `--text` and without a downloaded gcide the recipe trains on this repository's own files: its speed is the same, and
its bits per character are not comparable. `--quick` shows that all of it works, on a CPU too.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from device import peak_flops
from gpu_parts import Clock, distributions_part, recipe_part, release, sampling_part, training_part
from gpu_tables import Results, Row, tables
from measure import environment, network_arguments, parse, report, save, with_tables

SIZES = {
    "vocab_size": 50_258, "length": 1024, "batch_size": 32, "layers": 12, "hidden_size": 768, "heads": 12,
    "intermediate_size": 2304, "bf16": True,
}  # fmt: skip
"""Of the network: those of GPT-2 small, with the 50,257 symbols of its tokenizer and the mask."""
QUICK: dict[str, Any] = {
    "intermediate_size": 64, "sequences": [2, 1], "sampling_steps": [4, 8], "peer_steps": 4, "samples": 2000,
    "grid_steps": 8, "expected_changes": 0.25, "steps_per_round": 1, "recipe_seconds": 1.0, "backend": "eager",
}  # fmt: skip

PARTS: dict[str, tuple[Callable[[argparse.Namespace, Clock], Iterator[Row]], float]] = {
    "training": (training_part, 110),
    "sampling": (sampling_part, 80),
    "distributions": (distributions_part, 20),
    "recipe": (recipe_part, 120),
}
"""The parts, and the seconds after which they begin no further row."""


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    network_arguments(parser)
    add = parser.add_argument
    add("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    add("--peak", type=float, help="operations a second of the device in bfloat16; by default by its name")
    add("--steps-per-round", type=int, default=5, help="training steps between two readings of the clock")
    add("--backend", default="inductor", help="of torch.compile")
    add("--sequences", type=int, nargs="+", default=[8, 1, 64], help="sampled at a time")
    add("--sampling-steps", type=int, nargs="+", default=[64, 1024])
    add("--peer-steps", type=int, default=8, help="most steps for which flow_matching's solver is run")
    add("--samples", type=int, default=100_000, help="for the distributions")
    add("--grid-steps", type=int, default=64, help="of the samplers on a grid, for the distributions")
    add("--expected-changes", type=float, default=0.05, help="of the adaptive sampler in a step, for the distributions")
    add("--recipe-seconds", type=float, default=60.0, help="of training, after the first steps")
    add("--text", type=Path, help="a text for the recipe, such as gcide_text8.txt")
    parser.set_defaults(**SIZES)
    args = parse(parser, argv, **QUICK)
    args.peak = args.peak or peak_flops(args.device)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    if args.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
    results: Results = {}
    record: dict[str, Any] = {
        "benchmark": "gpu",
        "environment": environment(args.device, __file__, argv),
        "settings": vars(args),
        "results": results,
        "seconds": {},
        "errors": {},
    }
    for name in args.parts:
        part, allowed = PARTS[name]
        rows, start = results.setdefault(name, []), time.monotonic()
        try:
            for row in part(args, Clock(allowed)):
                rows.append(row)
                print(f"{name}: {brief(row)}", file=sys.stderr, flush=True)
                if args.output:
                    save(with_tables(record, tables(results)), args.output)
        except Exception:
            record["errors"][name] = traceback.format_exc()
            print(record["errors"][name], file=sys.stderr, flush=True)
        record["seconds"][name] = time.monotonic() - start
        release()
    report(record, tables(results), args.output)
    if record["errors"]:
        sys.exit(f"these parts failed: {', '.join(record['errors'])}")


def brief(row: Row) -> str:
    """The words and numbers of a row, without its lists."""
    plain = {name: value for name, value in row.items() if isinstance(value, str | int | float)}
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in plain.items()
    )


if __name__ == "__main__":
    main()
