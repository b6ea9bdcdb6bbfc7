"""Quality of molecules of SMILES models against network calls, and how well the models fill side chains.

    python benchmarks/molecules.py --model runs/moses --ways '[{"num_steps": 16}, {"sampler": "first_hitting"},
        {"num_steps": 56, "sampler": {"type": "tau_leaping", "order": "confidence"}}]'
    python benchmarks/molecules.py --model runs/moses runs/moses_edits --ways '{
        "runs/moses": [{"num_steps": 64}], "runs/moses_edits": [{"num_steps": 64}, {"sampler": "uniformization"}]}'

1. The scores of MOSES (`benchmarks.scores.molecules`) for each of `--ways`, arguments of `generate`. The first row is
   molecules of the test split, the score of a perfect model. Molecules of a masked model end at the first [EOS] of a canvas
   as long as in training; those of an edit model are strings of at most as many symbols. Novelty is against the whole
   training set; `distinct` is the share of different molecules among all valid ones. The Fréchet ChemNet distance, which
   the package fcd_torch has, is not measured. Of the lengths, valid or not: their mean, and the total variation between
   their distribution and that of the test split (`length distance`), with what as many molecules of the test split
   themselves have on average (`by chance`).
2. `--infill` molecules whose scaffolds are in no training molecule: all symbols but those of the scaffold are removed and
   filled `--fills` times each. A masked model fills as many symbols as were removed at each place, and the end of the
   canvas; with `--wrong-lengths` also 1 or 2 more or less at each place but the end. An edit model fills holes of unknown
   length at the same places and at the end; ways with a `start_time` (see filling.py) have no other row than this. How many
   fills are valid; how many of these contain the scaffold, are distinct, and equal the original; the share of unconditional
   molecules that contain the scaffold; and how many symbols were removed and added: the scaffold alone is a valid molecule,
   so that an edit model that adds nothing is right too often.

Calls are those counted by `generate`, per molecule: a step without an event needs none. `changes per call` are the symbols
that were unmasked, inserted, deleted or substituted. Filters and similarities to the test splits take minutes: `--filters`,
`--references test,test_scaffolds`.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from filling import Source, Way, arguments_of, generate
from measure import chance, environment, markdown, output_file, report
from perplexity import fingerprint
from torch import Tensor

from gm_discrete.data.tokenizers import SMILES_SYMBOL

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.scores import molecules
from recipes.datasets import load_text, scaffold_mask

WAYS = '[{"num_steps": 8}, {"num_steps": 16}, {"num_steps": 32}, {"num_steps": 56}, {"sampler": "first_hitting"}]'
QUICK = {"num_samples": 20, "infill": 3, "fills": 2, "batch_size": 8, "reference_limit": 50}
SPLITS = ("test", "test_scaffolds")


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    sources = {name: Source.of(name, args.length, args.device) for name in args.model}
    for name, source in sources.items():
        for way in args.ways[name]:
            source.model.generation_config.updated(arguments_of(way))  # reports a wrong argument before the first row
    training = {text for split in ("train", "validation") for text in smiles(split)}
    references = {name: molecules.MoleculeStatistics.of(smiles(name, args.reference_limit)) for name in args.references}
    patterns = molecules.alerts() if args.filters else None
    lengths = frequencies(smiles("test"))

    def scored(texts: list[str]) -> dict[str, Any]:
        scores = molecules.evaluate_molecules(texts, training, references, patterns)
        valid = [text for text in molecules.canonical(texts) if text is not None]
        scores["distinct"] = molecules.uniqueness(valid, len(valid)) if valid else None
        return {**scores, **length_scores(texts, lengths), "molecules": len(texts)}

    rows: list[dict[str, Any]] = [{"": "test molecules", **scored(smiles("test", args.num_samples))}]
    infilled = []
    for name, source in sources.items():
        asked = scaffold_prompts(source, args)
        texts: list[str] = []
        for way in args.ways[name]:
            row = title(way) if len(sources) == 1 else f"{Path(name).name}: {title(way)}"
            if "start_time" not in way:  # which is of no use where nothing is fixed
                made, cost = generate(source, [source.free] * args.num_samples, way, args)
                texts = texts_of(made, source)
                rows.append({"": row, **scored(texts), **cost})
            for kind, prompts in asked.items():
                infilled.append({"": row, "lengths": kind, **infill(source, prompts, texts, way, args)})
    record = {
        "benchmark": "molecules",
        "environment": environment(args.device, __file__, argv),
        "settings": vars(args),
        "models": {
            name: {"config": source.model.config.to_dict(), "weights_sha256": fingerprint(source.model)}
            for name, source in sources.items()
        },
        "samples": rows,
        "infilling": infilled,
    }
    report(record, [table(found) for found in (rows, infilled) if found], args.output)


def title(way: Way) -> str:
    """The row of a way: its sampler and the other arguments."""
    sampler = way.get("sampler", "tau_leaping")
    options = {} if isinstance(sampler, str) else {name: value for name, value in sampler.items() if name != "type"}
    others = options | {name: value for name, value in way.items() if name != "sampler"}
    first = sampler if isinstance(sampler, str) else str(sampler["type"])
    return ", ".join([first, *(f"{name} {value}" for name, value in others.items())])


def smiles(split: str, limit: int | None = None) -> list[str]:
    """Canonical SMILES of a split of MOSES, at most `limit`, evenly spaced."""
    rows: Any = load_text("moses", split)
    count = min(limit or len(rows), len(rows))
    return rows.select([i * len(rows) // count for i in range(count)])["text"][:]


def texts_of(rows: Sequence[Sequence[int]], source: Source) -> list[str]:
    """The text of a canvas before its first [EOS], if it has one; all of a string."""
    end = source.tokenizer.eos_token_id
    parts = [row if source.blank is not None or end not in row else row[: row.index(end)] for row in rows]
    return source.tokenizer.batch_decode(parts)


def count(smiles: str) -> int:
    """The number of symbols."""
    return len(re.findall(SMILES_SYMBOL, smiles))


def frequencies(texts: Iterable[str]) -> Tensor:
    """The distribution of the number of symbols, float64 [longest + 1]."""
    counts = torch.bincount(torch.tensor([count(text) for text in texts])).double()
    return counts / counts.sum()


def length_scores(texts: Sequence[str], expected: Tensor) -> dict[str, float]:
    """The mean length, the distance of the lengths from their expected distribution, and that of as many draws of it."""
    own = frequencies(texts)
    size = max(len(own), len(expected))
    own, expected = (torch.nn.functional.pad(part, (0, size - len(part))) for part in (own, expected))
    mean = float((own * torch.arange(size)).sum())
    distance = float((own - expected).abs().sum() / 2)
    return {"mean length": mean, "length distance": distance, "by chance": chance(expected, len(texts))}


def scaffold_prompts(source: Source, args: argparse.Namespace) -> dict[str, list[tuple[str, list[int]]]]:
    """`--infill` molecules with unseen scaffolds and side chains, each with its prompt; by what the model has of lengths."""
    found: dict[str, list[tuple[str, list[int]]]] = {}
    if not args.infill:
        return found
    rng = random.Random(args.seed)
    for text in smiles("test_scaffolds", 4 * args.infill):  # because some have neither side chains nor rings
        if "[H]" in text:  # rdkit counts such atoms differently
            continue
        kept = scaffold_mask(text)
        # Room for two more symbols at each place, and for an end.
        if not any(kept) or all(kept) or len(kept) + 2 * kept.count(False) >= source.length:
            continue
        ids = source.tokenizer(text, add_special_tokens=False)["input_ids"]
        for kind in ("unknown",) if source.blank is not None else ("true", "wrong")[: 1 + args.wrong_lengths]:
            found.setdefault(kind, []).append((text, prompt_of(source, ids, kept, kind, rng)))
        if len(next(iter(found.values()))) == args.infill:
            break
    return found


def prompt_of(source: Source, ids: Sequence[int], kept: Sequence[bool], kind: str, rng: random.Random) -> list[int]:
    """The kept symbols, with holes in place of each run of others and at the end.

    Args:
        kind: how many holes a run has: "true", as many as it has symbols; "wrong", 1 or 2 more or less, but at least one;
            "unknown", one hole for any number of symbols.
    """
    prompt: list[int] = []
    for is_kept, run in groupby(range(len(kept)), key=kept.__getitem__):
        places = list(run)
        size = len(places)
        if kind == "wrong" and places[-1] + 1 < len(kept):
            size = rng.choice([other for step in (1, 2) for other in (size - step, size + step) if other > 0])
        holes = [source.hole] * (1 if kind == "unknown" else size)
        prompt += [ids[place] for place in places] if is_kept else holes
    if kind == "unknown":
        return prompt + [source.hole] * (prompt[-1] != source.hole)
    return prompt + [source.hole] * (source.length - len(prompt))


def infill(
    source: Source, asked: list[tuple[str, list[int]]], unconditional: list[str], way: Way, args: argparse.Namespace
) -> dict[str, Any]:
    """Scores of the fills; shares are means over scaffolds with a valid fill."""
    from rdkit import Chem
    from rdkit.Chem.Scaffolds import MurckoScaffold

    made, cost = generate(source, [prompt for _, prompt in asked for _ in range(args.fills)], way, args)
    texts = texts_of(made, source)
    filled = molecules.canonical(texts)
    free = [mol for text in unconditional if (mol := molecules.molecule(text)) is not None]
    contained, distinct, same, by_chance = [], [], [], []
    for number, (text, _) in enumerate(asked):
        core = MurckoScaffold.GetScaffoldForMol(molecules.molecule(text))
        valid = [found for found in filled[number * args.fills : (number + 1) * args.fills] if found is not None]
        by_chance.append(sum(mol.HasSubstructMatch(core) for mol in free) / max(1, len(free)))
        if valid:
            contained.append(sum(molecules.molecule(found).HasSubstructMatch(core) for found in valid) / len(valid))
            distinct.append(len(set(valid)) / len(valid))
            same.append(valid.count(Chem.CanonSmiles(text)) / len(valid))
    sizes = [sum(symbol != source.hole for symbol in prompt) for _, prompt in asked]
    kept = [size / count(text) for size, (text, _) in zip(sizes, asked, strict=True)]
    added = [count(text) - sizes[number // args.fills] for number, text in enumerate(texts)]
    removed = [count(text) - size for size, (text, _) in zip(sizes, asked, strict=True)]
    shares = {"valid": [found is not None for found in filled], "with the scaffold": contained, "distinct": distinct}
    shares |= {"the original": same, "unconditional with the scaffold": by_chance, "symbols kept": kept}
    shares |= {"symbols removed": removed, "symbols added": added, "nothing added": [more == 0 for more in added]}
    means = {name: sum(values) / len(values) if values else None for name, values in shares.items()}
    return {**means, "scaffolds": len(asked), "fills": len(filled), **cost}


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: shares with four digits, calls with one, times with two significant ones; – for unknown values."""
    formats = {"calls": ".1f", "changes per call": ".2f", "seconds": ".2g", "mean length": ".2f"}
    formats |= dict.fromkeys(("symbols removed", "symbols added"), ".2f")
    formats |= dict.fromkeys(("molecules", "scaffolds", "fills", "lengths", ""), "")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return markdown(
        [
            {name: "–" if row.get(name) is None else format(row[name], formats.get(name, ".4f")) for name in columns}
            for row in rows
        ]
    )


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, nargs="+", help="folders or hub ids of GMModels with their tokenizers"
    )
    parser.add_argument("--num-samples", type=int, default=30_000, help="molecules per row")
    parser.add_argument("--length", type=int, help="symbols of the canvas, the most of a string; as in training")
    parser.add_argument(
        "--ways", default=WAYS, help="JSON: for each row arguments of generate; by model, or a list for all"
    )
    parser.add_argument("--references", default="", help=f"splits to compare with: {', '.join(SPLITS)}")
    parser.add_argument("--reference-limit", type=int, help="maximum number of molecules per split; all in MOSES")
    parser.add_argument("--filters", action="store_true", help="compute the share that passes the filters of MOSES")
    parser.add_argument("--infill", type=int, default=200, help="scaffolds whose side chains are filled")
    parser.add_argument("--fills", type=int, default=10, help="fills per scaffold")
    parser.add_argument("--wrong-lengths", action="store_true", help="also fill with wrong lengths, by masked models")
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--bf16", action="store_true", help="run the network in bfloat16, as it was trained")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch, on the CPU")
    parser.add_argument("--quick", action="store_true", help=f"tiny sizes: {QUICK}")
    parser.add_argument("--output", type=output_file, help="JSON file with every setting and figure")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args(argv)
    ways, args.references = json.loads(args.ways), [name for name in args.references.split(",") if name]
    args.ways = ways if isinstance(ways, dict) else dict.fromkeys(args.model, ways)
    if missing := set(args.model) ^ args.ways.keys():
        parser.error(
            f"--ways names {', '.join(args.ways)}, and --model {', '.join(args.model)}: {missing} is in one alone"
        )
    if unknown := set(args.references) - set(SPLITS):
        parser.error(f"--references {','.join(args.references)}: {unknown.pop()!r} is none of {', '.join(SPLITS)}")
    for name in ("num_samples", "fills", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)} must be at least 1")
    return args


if __name__ == "__main__":
    main()
