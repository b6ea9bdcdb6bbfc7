"""Filling in a removed word of unknown length: an edit model beside a masked model that is given a length.

    python benchmarks/infilling.py --networks masked --training-steps 2600 --threads 1 &   # each on a core of its own
    python benchmarks/infilling.py --networks edits --training-steps 2600 --threads 1
    python benchmarks/infilling.py --judge smollm2 --output benchmarks/results/infilling.json

Two networks of one size are trained on the lines of Shakespeare (`shakespeare_lines`), one character per symbol: a masked
model of 66 symbols, the end and the padding of a line among them, and an edit model that inserts characters into an empty
string. Of `--limit` held-out lines a word of 3 to 8 letters is removed, and filled once:

- `edits`: by the edit model, any number of characters;
- `masked, true length`: by the masked model, as many characters as were removed;
- `masked, wrong length`: 1 or 2 characters more or less, drawn with a fixed seed.

`exact` fills are the removed word; `a word` are fills that occur as a word in the training lines; `length` is the number of
characters. The judge, a causal language model, reads each line after the one that precedes it in the play: perplexity per
token of the lines, and nats per line more than for the original lines, which is paired. `original` are the lines as they
were, `random word` those with a word drawn from the training lines in the hole. Figures are means ± standard errors over
lines.

Each network is left in `--folder` with the steps and minutes of its training, where a further run finds it: so both can be
trained for the same time, at the same time.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from filling import Source, Way, arguments_of, generate
from measure import environment, markdown, output_file, output_folder, report, save, seconds
from perplexity import fingerprint, load_judge

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.scores.judge import nats_after
from gm_discrete.likelihood import Likelihood
from recipes import text as recipe
from recipes.datasets import load_text

DATA = "shakespeare_lines"
ROOM = 8
"""Characters that a line with a hole is shorter than the model's lines, so that a fill may be longer than the word."""
WORD = re.compile(r"(?<![\w'-])[A-Za-z]{3,8}(?![\w'-])")
SPECIAL = "□"
"""What a fill shows for a special token, such as the end of a line within a word."""
EXAMPLES = 40
"""Lines that the record holds with their fills."""
NETWORKS: dict[str, dict[str, Any]] = {
    "masked": {"path": "masked", "length": 66, "pad_to_length": True, "sample_length": 66},
    "edits": {"path": "edits", "length": 64, "add_eos": False, "sample_length": 64},
}
"""Arguments of recipes/text.py in which the networks differ."""
SETTINGS = {
    "data": DATA, "packed": False, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2,
    "model_options": json.dumps({
        "hidden_act": "relu2", "conv_kernel_size": 3, "rope_theta": 100.0, "initializer_range": 1.0,
        "attn_implementation": "eager",
    }),
    "muon": True, "muon_learning_rate": 0.02, "muon_momentum": 0.9, "learning_rate": 0.01, "adam_beta2": 0.95,
    "lr_scheduler_type": "linear", "warmup_steps": 50, "max_grad_norm": 0.0, "bf16": True,
    "per_device_train_batch_size": 32, "per_device_eval_batch_size": 128, "max_eval_sequences": 512,
    "num_eval_samples": 4, "num_steps": 64, "logging_steps": 50, "save_strategy": "no", "eval_strategy": "no",
    "report_to": "none", "disable_tqdm": True,
}  # fmt: skip
"""Arguments of recipes/text.py: a network for the CPU."""
WAYS = '{"masked": [{"num_steps": 64}], "edits": [{"num_steps": 64}]}'
QUICK = {"limit": 6, "training_steps": 2, "judge": None, "batch_size": 4}
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "per_device_train_batch_size": 2,
    "max_eval_sequences": 4,
    "warmup_steps": 1,
}
"""Further arguments of `--quick`."""


@dataclass(frozen=True)
class Task:
    """A line without one of its words: `left + word + right`, which follows `before` in the play."""

    before: str
    left: str
    word: str
    right: str

    def line(self, fill: str) -> str:
        return self.left + fill + self.right


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    training = {name: trained(name, args) for name in args.networks}
    sources = {name: Source.of(str(args.folder / name), None, args.device) for name in args.networks}
    ways = {name: args.ways[name] for name in args.networks}
    for name, source in sources.items():
        for way in ways[name]:
            source.model.generation_config.updated(arguments_of(way))  # reports a wrong argument before the first row
    words = [word for line in load_text(DATA, "train")["text"] for word in WORD.findall(line)]
    asked = tasks(args.limit, args.seed)
    drawn = random.Random(args.seed)
    fills = {"original": [task.word for task in asked], "random word": [drawn.choice(words) for _ in asked]}
    costs: dict[str, dict[str, float]] = {name: {} for name in fills}
    for name, source in sources.items():
        for way in ways[name]:
            for kind in ("",) if source.blank is not None else (", true length", ", wrong length"):
                row = ", ".join([name + kind, *(f"{key} {value}" for key, value in way.items())])
                fills[row], costs[row] = filled(source, asked, kind.strip(", "), way, args)
    judge = load_judge(args.judge, args) if args.judge else None
    rows = [
        {"": name, **scores(asked, found, set(words)), **costs[name], "fills": found} for name, found in fills.items()
    ]
    if judge is not None:
        judged(rows, asked, judge)
    record = {
        "benchmark": "infilling",
        "environment": environment(args.device, __file__, argv),
        "settings": vars(args),
        "training": training,
        "models": {
            name: {"config": source.model.config.to_dict(), "weights_sha256": fingerprint(source.model)}
            for name, source in sources.items()
        },
        "tasks": [vars(task) for task in asked[:EXAMPLES]],
        "rows": [{**row, "fills": row["fills"][:EXAMPLES]} for row in rows],
    }
    report(record, [table(training_rows(training)), table(rows)], args.output)


def trained(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Trains a network, unless an earlier run has left it in the folder: steps, seconds and held-out bound."""
    folder, record = args.folder / name, args.folder / f"{name}.json"
    if not record.exists():
        options = SETTINGS | (TINY if args.quick else {}) | NETWORKS[name]
        options |= {"seed": args.seed, "use_cpu": args.device == "cpu", "bf16": args.bf16}
        options |= {"max_steps": args.training_steps, "output_dir": folder}
        metrics: dict[str, float] = {}
        time = seconds(lambda: metrics.update(recipe.main(words_of(options))), args.device)
        found = {"steps": args.training_steps, "minutes": time / 60}
        bits = {name: metrics[name] for name in ("bits_per_character", "bits_per_character_stderr")}
        save(found | bits | {"dynamics": metrics["dynamics"]}, record)
    return json.loads(record.read_text(encoding="utf-8"))


def words_of(options: Mapping[str, Any]) -> list[str]:
    """A command line."""
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def tasks(limit: int, seed: int) -> list[Task]:
    """At most `limit` held-out lines, evenly spread, each without a word of it drawn with the seed."""
    lines, rng, found = {*load_text(DATA, "validation")["text"]}, random.Random(seed), []
    for play in load_text("shakespeare", "validation")["text"]:
        before = ""
        for line in filter(None, map(str.strip, play.splitlines())):
            words = list(WORD.finditer(line))
            if line in lines and words and len(line) <= NETWORKS["edits"]["length"] - ROOM:
                lines.remove(line)  # a line that comes twice is asked once
                word = rng.choice(words)
                found.append(Task(before, line[: word.start()], word[0], line[word.end() :]))
            before = line
    count = min(limit, len(found))
    return [found[i * len(found) // count] for i in range(count)]


def filled(
    source: Source, asked: Sequence[Task], kind: str, way: Way, args: argparse.Namespace
) -> tuple[list[str], dict[str, float]]:
    """What a model writes into the hole of each line, and the cost.

    Args:
        kind: "true length" or "wrong length", for a masked model.

    Raises:
        RuntimeError: the model has not kept the rest of a line.
    """
    rng, sizes = random.Random(args.seed), [len(task.word) for task in asked]
    if kind == "wrong length":
        sizes = [rng.choice([n for step in (1, 2) for n in (size - step, size + step) if n > 0]) for size in sizes]
    prompts = [prompt_of(source, task, size) for task, size in zip(asked, sizes, strict=True)]
    rows, cost = generate(source, prompts, way, args)
    found = []
    for task, prompt, size, row in zip(asked, prompts, sizes, rows, strict=True):
        start = len(task.left)
        stop = start + size if source.blank is None else len(row) - len(task.right)
        right = prompt[len(prompt) - len(task.right) :] if source.blank is not None else prompt[stop:]
        if stop < start or row[:start] != prompt[:start] or row[stop:] != right:
            raise RuntimeError(f"the model was given {task}, and returned {source.tokenizer.decode(row)!r}")
        special = source.tokenizer.all_special_ids
        found.append("".join(SPECIAL if i in special else source.tokenizer.decode([i]) for i in row[start:stop]))
    return found, cost


def prompt_of(source: Source, task: Task, size: int) -> list[int]:
    """The line with a hole of unknown length, or, for a masked model, of `size` characters, with its end and padding."""
    tokenizer = source.tokenizer
    left, right = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (task.left, task.right))
    if source.blank is not None:
        return [*left, source.hole, *right]
    line = [*left, *[source.hole] * size, *right, tokenizer.eos_token_id]
    return line + [tokenizer.pad_token_id] * (source.length - len(line))


def scores(asked: Sequence[Task], fills: Sequence[str], words: set[str]) -> dict[str, tuple[float, float]]:
    """Mean and standard error over lines of what the fills are."""
    pairs = list(zip((task.word for task in asked), fills, strict=True))
    shares = {
        "exact": [fill == word for word, fill in pairs],
        "a word": [fill in words for _, fill in pairs],
        "length equal": [len(fill) == len(word) for word, fill in pairs],
        "length": [len(fill) for _, fill in pairs],
        "length − true": [len(fill) - len(word) for word, fill in pairs],
        "distance of lengths": [abs(len(fill) - len(word)) for word, fill in pairs],
    }
    return {name: mean_error([float(value) for value in values]) for name, values in shares.items()}


def judged(rows: Sequence[dict[str, Any]], asked: Sequence[Task], judge: Mapping[str, Any]) -> None:
    """Adds the judge's perplexity to each row, and the nats per line more than those of the first row."""
    first: list[float] = []
    contexts = [task.before + "\n" for task in asked]
    for row in rows:
        lines = [task.line(fill) + "\n" for task, fill in zip(asked, row["fills"], strict=True)]
        nats, tokens = nats_after(judge["judge"], judge["tokenizer"], contexts, lines, judge["batch_size"])
        first = first or nats.tolist()
        likelihood = Likelihood(nats, tokens, "autoregressive")
        error = likelihood.perplexity * likelihood.stderr * math.log(2)
        row["judge perplexity"] = likelihood.perplexity, error
        row["nats over the original"] = mean_error(
            [own - other for own, other in zip(nats.tolist(), first, strict=True)]
        )


def mean_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    return mean(values), stdev(values) / len(values) ** 0.5


def training_rows(training: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "": name, "steps": found["steps"], "minutes": found["minutes"],
            "held-out bound (bits per character)": (found["bits_per_character"], found["bits_per_character_stderr"]),
        }
        for name, found in training.items()
    ]  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of the figures, with standard errors; – for what was not measured."""
    formats = {"minutes": ".1f", "calls": ".1f", "changes per call": ".2f", "seconds": ".2g", "judge perplexity": ".1f"}
    formats |= {"steps": "", "": "", "length": ".2f", "length − true": ".2f", "distance of lengths": ".2f"}
    formats |= {"nats over the original": ".2f"}
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "fills"]

    def cell(row: Mapping[str, Any], name: str) -> str:
        value, form = row.get(name), formats.get(name, ".3f")
        if value is None:
            return "–"
        return " ± ".join(format(part, form) for part in value) if isinstance(value, tuple) else format(value, form)

    return markdown([{name: cell(row, name) for name in columns} for row in rows])


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(NETWORKS), help=f"of {', '.join(NETWORKS)}")
    parser.add_argument(
        "--training-steps", type=int, default=2600, help="of the optimizer, for networks not yet trained"
    )
    parser.add_argument("--ways", default=WAYS, help="JSON: by network, arguments of generate for each row")
    parser.add_argument("--limit", type=int, default=500, help="lines whose word is removed")
    parser.add_argument("--judge", help="smollm2, a folder, or a hub id; without one the lines are not judged")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, default=True, help="run the network in bfloat16"
    )
    parser.add_argument("--seed", type=int, default=0, help="of training, words and fills")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch, on the CPU")
    parser.add_argument("--quick", action="store_true", help=f"tiny sizes: {QUICK}, {TINY}")
    parser.add_argument("--folder", type=output_folder, default=Path("runs/infilling"), help="networks")
    parser.add_argument("--output", type=output_file, help="JSON file with every setting and figure")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args(argv)
    args.networks, args.ways = args.networks.split(","), json.loads(args.ways)
    if unknown := set(args.networks) - NETWORKS.keys():
        parser.error(f"--networks: {unknown.pop()!r} is none of {', '.join(NETWORKS)}")
    if missing := set(args.networks) - args.ways.keys():
        parser.error(f"--ways has nothing of {', '.join(missing)}; give {WAYS}")
    for name, least in (("limit", 2), ("training_steps", 1), ("batch_size", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)} must be at least {least}")
    return args


if __name__ == "__main__":
    main()
