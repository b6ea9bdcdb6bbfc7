"""Quality of molecules of a SMILES model against network calls, and how well the model fills side chains.

    python benchmarks/molecules.py --model runs/moses --ways '[{"num_steps": 16}, {"sampler": "first_hitting"},
        {"num_steps": 56, "sampler": {"type": "tau_leaping", "order": "confidence"}}]'

1. The scores of MOSES (`benchmarks.scores.molecules`) for each of `--ways`, arguments of `generate`. The first row is
   molecules of the test split, the score of a perfect model. Molecules end at the first [EOS] of a canvas as long as in
   training. Novelty is against the whole training set. The Fréchet ChemNet distance, which the package fcd_torch has,
   is not measured.
2. `--infill` molecules whose scaffolds are in no training molecule: all symbols but those of the scaffold are masked,
   with the end of the canvas, and filled `--fills` times each. How many fills are valid; how many of these contain the
   scaffold, are distinct, and equal the original; and the share of unconditional molecules that contain the scaffold.

Calls are those counted by `generate`, per molecule: a step without an event needs none. Filters and similarities to the
test splits take minutes: `--filters`, `--references test,test_scaffolds`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measure import environment, markdown, output_file, report, seconds
from perplexity import fingerprint
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from gm_discrete import GMModel
from gm_discrete.data import check_tokenizer
from gm_discrete.data.tokenizers import SMILES_SYMBOL
from gm_discrete.samplers import Sampler

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.scores import molecules
from recipes.datasets import load_text, scaffold_mask

WAYS = '[{"num_steps": 8}, {"num_steps": 16}, {"num_steps": 32}, {"num_steps": 56}, {"sampler": "first_hitting"}]'
QUICK = {"num_samples": 20, "infill": 3, "fills": 2, "batch_size": 8, "reference_limit": 50}
SPLITS = ("test", "test_scaffolds")

Way = dict[str, Any]
"""How to sample: arguments of `generate`."""


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    model = GMModel.from_pretrained(args.model).to(args.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    check_tokenizer(tokenizer, vocab_size=model.config.vocab_size, mask_token_id=model.config.mask_token_id)
    for way in args.ways:
        model.generation_config.updated(arguments_of(way))  # reports a wrong argument before the first row
    training = {text for split in ("train", "validation") for text in smiles(split)}
    references = {name: molecules.MoleculeStatistics.of(smiles(name, args.reference_limit)) for name in args.references}
    patterns = molecules.alerts() if args.filters else None
    asked = scaffold_prompts(model, tokenizer, args)

    def scored(texts: list[str]) -> dict[str, Any]:
        return {**molecules.evaluate_molecules(texts, training, references, patterns), "molecules": len(texts)}

    rows: list[dict[str, Any]] = [{"": "test molecules", **scored(smiles("test", args.num_samples))}]
    infilled = []
    for way in args.ways:
        name = title(way)
        empty = torch.full(
            (args.num_samples, args.length or model.config.max_position_embeddings), tokenizer.mask_token_id
        )
        texts, cost = generate(model, tokenizer, empty, way, args)
        rows.append({"": name, **scored(texts), **cost})
        if asked:
            infilled.append({"": name, **infill(model, tokenizer, asked, texts, way, args)})
    record = {
        "benchmark": "molecules",
        "environment": environment(args.device, __file__, argv),
        "settings": vars(args),
        "model": {"config": model.config.to_dict(), "weights_sha256": fingerprint(model)},
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


def arguments_of(way: Way) -> dict[str, Any]:
    """The arguments of `generate`, with the sampler as an object."""
    return {name: Sampler.of(value) if name == "sampler" else value for name, value in way.items()}


def smiles(split: str, limit: int | None = None) -> list[str]:
    """Canonical SMILES of a split of MOSES, at most `limit`, evenly spaced."""
    rows: Any = load_text("moses", split)
    count = min(limit or len(rows), len(rows))
    return rows.select([i * len(rows) // count for i in range(count)])["text"][:]


def generate(
    model: GMModel, tokenizer: Any, canvas: Tensor, way: Way, args: argparse.Namespace
) -> tuple[list[str], dict[str, float]]:
    """The generated text for each row of a canvas [N, L], and calls and seconds per row. Every batch has its own seed."""
    found: list[Any] = []

    def fill() -> None:
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.bf16):
            for part in tqdm(canvas.split(args.batch_size), desc=f"{way}", leave=False):
                seed = args.seed + args.batch_size * len(found)
                found.append(
                    model.generate(part, max_new_tokens=0, seed=seed, return_dict_in_generate=True, **arguments_of(way))
                )

    time = seconds(fill, args.device) / len(canvas)
    calls, tokens = (torch.cat([part[name].cpu() for part in found]) for name in ("network_calls", "sequences"))
    return texts_of(tokens, tokenizer), {"calls": float(calls.double().mean()), "seconds per molecule": time}


def texts_of(tokens: Tensor, tokenizer: Any) -> list[str]:
    """The text before the first [EOS], or of the whole row if there is none."""
    ends = tokens.eq(tokenizer.eos_token_id).int()
    lengths = torch.where(ends.any(1), ends.argmax(1), tokens.shape[1])
    rows = [row[:length].tolist() for row, length in zip(tokens, lengths.tolist(), strict=True)]
    return tokenizer.batch_decode(rows)


def scaffold_prompts(model: GMModel, tokenizer: Any, args: argparse.Namespace) -> list[tuple[str, Tensor]]:
    """`--infill` molecules with unseen scaffolds and side chains, each with its canvas [L] of scaffold and masks."""
    length = args.length or model.config.max_position_embeddings
    found: list[tuple[str, Tensor]] = []
    if not args.infill:
        return found
    for text in smiles("test_scaffolds", 4 * args.infill):  # because some have neither side chains nor rings
        if "[H]" in text:  # rdkit counts such atoms differently
            continue
        kept = torch.tensor(scaffold_mask(text))
        if len(found) < args.infill and kept.any() and not kept.all() and len(kept) < length:
            ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
            canvas = torch.full((length,), tokenizer.mask_token_id)
            found.append((text, canvas.index_put((kept.nonzero()[:, 0],), ids[kept])))
    return found


def infill(
    model: GMModel,
    tokenizer: Any,
    asked: list[tuple[str, Tensor]],
    unconditional: list[str],
    way: Way,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Scores of the fills; shares are means over scaffolds with a valid fill."""
    from rdkit import Chem
    from rdkit.Chem.Scaffolds import MurckoScaffold

    canvas = torch.stack([state for _, state in asked]).repeat_interleave(args.fills, 0)
    texts, cost = generate(model, tokenizer, canvas, way, args)
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
    kept = [
        int(state.ne(tokenizer.mask_token_id).sum()) / len(re.findall(SMILES_SYMBOL, text)) for text, state in asked
    ]
    shares = {"valid": [found is not None for found in filled], "with the scaffold": contained, "distinct": distinct}
    shares |= {"the original": same, "unconditional with the scaffold": by_chance, "symbols kept": kept}
    means = {name: sum(values) / len(values) if values else None for name, values in shares.items()}
    return {**means, "scaffolds": len(asked), "fills": len(filled), **cost}


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: shares with four digits, calls with one, times with two significant ones; – for unknown values."""
    formats = {"calls": ".1f", "seconds per molecule": ".2g", "molecules": "", "scaffolds": "", "fills": "", "": ""}
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
    parser.add_argument("--model", required=True, help="folder or hub id of a GMModel with its tokenizer")
    parser.add_argument("--num-samples", type=int, default=30_000, help="molecules per row")
    parser.add_argument("--length", type=int, help="symbols of the canvas; as in training by default")
    parser.add_argument("--ways", default=WAYS, help="JSON list: arguments of generate for each row")
    parser.add_argument("--references", default="", help=f"splits to compare with: {', '.join(SPLITS)}")
    parser.add_argument("--reference-limit", type=int, help="maximum number of molecules per split; all in MOSES")
    parser.add_argument("--filters", action="store_true", help="compute the share that passes the filters of MOSES")
    parser.add_argument("--infill", type=int, default=200, help="scaffolds whose side chains are filled")
    parser.add_argument("--fills", type=int, default=10, help="fills per scaffold")
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
    args.ways, args.references = json.loads(args.ways), [name for name in args.references.split(",") if name]
    if unknown := set(args.references) - set(SPLITS):
        parser.error(f"--references {','.join(args.references)}: {unknown.pop()!r} is none of {', '.join(SPLITS)}")
    for name in ("num_samples", "fills", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)} must be at least 1")
    return args


if __name__ == "__main__":
    main()
