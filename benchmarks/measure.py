"""What the benchmarks share: the network, clocks, peak memory, and a record of where a figure was taken."""

from __future__ import annotations

import argparse
import math
import os
import platform
import resource
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from typing import Any, TypeVar

import torch
from readme import parse_tables

from gm_discrete import GMConfig, GMModel, MaskedPath, UniformPath, __version__
from gm_discrete.json_text import json_text
from gm_discrete.paths import TokenMixturePath

T = TypeVar("T")
PACKAGES = ("torch", "transformers", "flow_matching", "datasets", "evaluate")
QUICK = {"vocab_size": 64, "length": 16, "batch_size": 2, "layers": 2, "hidden_size": 32, "heads": 2, "pairs": 1}
"""Settings of `--quick`: they show that a script works, not how fast anything is."""


def network_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings of the two speed benchmarks, with the defaults of the published figures."""
    parser.add_argument("--paths", nargs="+", choices=("masked", "uniform"), default=["masked", "uniform"])
    parser.add_argument("--vocab-size", type=int, default=32_000, help="K, the mask included")
    parser.add_argument("--length", type=int, default=256, help="L")
    parser.add_argument("--batch-size", type=int, default=8, help="B")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden-size", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--intermediate-size", type=int, default=0, help="of SwiGLU; 0: 8/3 of the hidden size")
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, default=False, help="autocast in training, weights in sampling"
    )
    parser.add_argument("--pairs", type=int, default=3, help="interleaved rounds, of which the median is reported")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, on the CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--quick", action="store_true", help=f"tiny sizes: {QUICK}")
    parser.add_argument("--output", type=output_file, help="JSON file with every setting and figure")


def output_file(text: str) -> Path:
    """An argument that names a file to write, which is tried before the work begins.

    Raises:
        argparse.ArgumentTypeError: it cannot be written. The parser adds the name of the argument, and ends the program.
    """
    file = Path(text)
    if file.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; give a file")
    output_folder(str(file.parent))
    return file


def output_folder(text: str) -> Path:
    """Likewise, a folder to write files to, which is created."""
    folder = Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be written to ({error.strerror}); give another folder"
        ) from error


def parse(parser: argparse.ArgumentParser, argv: Sequence[str], **quick: Any) -> argparse.Namespace:
    """The arguments; `--quick` changes the defaults to `QUICK` and those given here."""
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK, **quick)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    return args


def path_of(name: str, vocab_size: int) -> TokenMixturePath:
    """The path of a row of the tables; mixture rates for the uniform one, as they are what flow_matching simulates."""
    return MaskedPath(vocab_size) if name == "masked" else UniformPath(vocab_size, rates="mixture")


def network(path: TokenMixturePath, args: argparse.Namespace, **options: Any) -> GMModel:
    """A transformer with random weights: the same one for all that is compared. `options` are further ones of its config."""
    torch.manual_seed(args.seed)
    config = GMConfig(
        path=path.to_dict(),
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        intermediate_size=args.intermediate_size,
        max_position_embeddings=args.length,
        **options,
    )
    model = GMModel(config)
    with torch.no_grad():  # what starts at zero would leave the blocks idle and most gradients zero
        for weight in model.parameters():
            if not weight.any():
                weight.normal_(std=config.initializer_range)
    return model.to(args.device)


def seconds(function: Callable[[], object], device: str) -> float:
    """Wall-clock time of one call, to the end of what it started on the device."""
    _synchronize(device)
    start = time.perf_counter()
    function()
    _synchronize(device)
    return time.perf_counter() - start


def interleaved(functions: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Times of every function in every round, the functions taking turns, so that all see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(seconds(function, device))
    return times


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: median(values) for name, values in times.items()}


def peak_memory(function: Callable[[], object], device: str) -> int:
    """Bytes that one call needs at its peak beyond what was there before it. To be called in a fresh process.

    On a GPU what torch allocated; on the CPU the resident set of the process, most of which is torch's tensors, while
    tools such as tracemalloc see only Python's objects.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    before = _peak_resident()
    function()
    return _peak_resident() - before


def in_fresh_process(function: Callable[..., T], *arguments: object) -> T:
    """`function(*arguments)` in a new interpreter, whose memory nobody has touched."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def environment(device: str, script: str, argv: Sequence[str]) -> dict[str, Any]:
    """Command, hardware and versions: what a figure depends on beside the settings."""
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(script).name}", *argv]),
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "python": platform.python_version(),
        "versions": {"gm_discrete": __version__} | {name: version(name) for name in PACKAGES if find_spec(name)},
    }


def report(record: Mapping[str, Any], tables: Sequence[str], output: Path | None) -> None:
    """Prints the environment and the tables; writes the record with its tables as JSON, for benchmarks/results."""
    where, versions = record["environment"], record["environment"]["versions"]
    processor = f"{where['processor']}, {where['cores']} cores, {where['threads']} threads"
    on = processor if where["device"] == "cpu" else f"{where['device']} ({processor})"
    print(f"\n`{where['command']}`\n\n{on}; {', '.join(f'{name} {number}' for name, number in versions.items())}")
    for table in tables:
        print(f"\n{table}")
    if output is not None:
        save(with_tables(record, tables), output)


def with_tables(record: Mapping[str, Any], tables: Sequence[str]) -> dict[str, Any]:
    """The record with the tables of these texts, as readme.py reads them."""
    return {**record, "tables": [table for text in tables for table in parse_tables(text)]}


def save(record: Mapping[str, Any], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(output.name + ".draft")
    draft.write_text(json_text(record, indent=2) + "\n", encoding="utf-8")
    draft.replace(output)


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A table whose columns are the keys of the rows."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def chance(probs: torch.Tensor, samples: int) -> float:
    """The mean total variation between a distribution and the frequencies of that many samples of it (see chains.py)."""
    return float((2 * probs * (1 - probs) / (math.pi * samples)).sqrt().sum() / 2)


def mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _peak_resident() -> int:
    """Bytes. Linux: VmHWM, since ru_maxrss there starts at the parent's; elsewhere ru_maxrss, in bytes on macOS."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor())
