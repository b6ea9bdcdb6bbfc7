"""Quality of generated protein backbones against steps: flow, jump, their superposition, and jumps that are plugged in.

    python benchmarks/proteins.py --folder runs/proteins --output benchmarks/results/proteins.json

Two networks are trained for each seed. "so3" predicts a belief about the clean rotations, from which one network gives the
modes "flow", "jump" and "flow+jump". "geodesic" is trained as a flow on geodesics, as in FrameFlow; it gives "geodesic", its
own flow, and the same network with jumps given the rotation that it predicts: "plugged", half flow and half jump, and
"plugged-jump", jumps alone.

Every mode draws `--num-samples` backbones for each number of `--steps`, scored by `benchmarks/scores/proteins.py`. The first
row is the middles of held-out chains, the score of a perfect model, with standard errors over chains. Other figures are
mean ± standard error over seeds, which is that of training and sampling together; with one seed, over samples.

Each combination leaves its figures in `--folder`, where a further run finds them, so that a run may be interrupted, or
spread over processes with `--modes` and `--seeds`. The tables are made of the combinations of the last command.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, final

import torch
from measure import environment, markdown, output_file, output_folder, report, save, seconds

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.protein_networks import NETWORKS, Atoms, Breaks, Training, chains, sample, train
from benchmarks.scores.protein_structure import RamachandranRegions
from benchmarks.scores.proteins import designability, spaced, summary
from gm_discrete import GMModel
from gm_discrete.data import frames_of, write_pdb
from recipes.protein_pictures import protein_picture

QUICK = {
    "num_samples": 4, "lengths": "16,20", "steps": "2", "seeds": "0,1", "training_steps": 2,
    "compared": 3, "reference_limit": 3,
}  # fmt: skip
TABLES = {
    "geometry": {
        "valid": "valid", "bonds": "bonds", "angles": "angles", "ca_ca/0.1": "CA–CA", "clash_free": "clash-free",
        "torsion_distance": "φψ distance", "favoured": "favoured", "outliers": "outliers",
        "left_handed": "left-handed",
    },
    "structure": {
        "helix": "helix", "strand": "strand", "radius_ratio": "radius", "diversity": "clusters / samples",
        "tm/pairs": "TM of pairs", "tm/nearest": "TM to training", "novel": "novel", "designable": "designable",
        "seconds": "s per sample",
    },
}  # fmt: skip
"""Columns of the two tables: the names of the scores, and of the columns."""


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    bench = Benchmark(args)
    found = {(mode, steps): list(bench.figures(mode, steps)) for mode in args.modes for steps in args.steps}
    held_out = bench.held_out()
    rows = [{"": "held-out chains", "steps": None, **held_out}]
    rows += [{"": mode, "steps": steps, **over_seeds(figures)} for (mode, steps), figures in found.items()]
    record = {
        "benchmark": "proteins",
        "environment": environment(args.device, __file__, argv),
        "settings": vars(args),
        "rows": rows,
        "seeds": {f"{mode}, {steps} steps": figures for (mode, steps), figures in found.items()},
    }
    report(record, [table(rows, columns) for columns in TABLES.values()], args.output)
    if args.plot:
        steps, seed = args.steps[-1], args.seeds[0]
        data = bench.chains("validation")
        protein_picture(
            bench.samples(args.modes[-1], steps, seed),
            args.plot,
            [atoms for atoms, _ in data],
            reference_breaks=[breaks for _, breaks in data],
        )


@final
@dataclass
class Benchmark:
    """Data, networks and figures of one command; networks are trained when they are first needed."""

    args: argparse.Namespace
    models: dict[tuple[str, int], GMModel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        data = self.chains("train")
        self.reference = [atoms for atoms, _ in data]
        self.regions = RamachandranRegions.of(self.reference, [breaks for _, breaks in data])

    def chains(self, split: str) -> list[tuple[Atoms, Breaks]]:
        return chains(self.args.data, split, max(self.args.lengths))

    def figures(self, mode: str, steps: int) -> Iterator[dict[str, float | None]]:
        """The scores of each seed, from the folder if they are there.

        Raises:
            ValueError: those in the folder were made with other settings.
        """
        for seed in self.args.seeds:
            file = self.args.folder / f"{mode}-{steps}-{seed}.json"
            settings = fixed_settings(self.args)
            if file.exists():
                record = json.loads(file.read_text(encoding="utf-8"))
                if record["settings"] != settings:
                    raise ValueError(
                        f"{file} has the settings {record['settings']}; use another --folder or {settings}"
                    )
                yield record["scores"]
                continue
            scores = self.measured(mode, steps, seed)
            save({"settings": settings, "scores": scores}, file)
            print(file, flush=True)
            yield dict(scores)

    def measured(self, mode: str, steps: int, seed: int) -> dict[str, float]:
        """The scores of a new set of samples, and `seconds` for each sample."""
        self.model(mode, seed)  # so that training is not in the time
        made: list[Atoms] = []
        time = seconds(lambda: made.extend(self.samples(mode, steps, seed)), self.args.device)
        scrmsd = None
        if self.args.designability_command:
            folder = self.args.folder / f"{mode}-{steps}-{seed}"
            frames = [frames_of(torch.from_numpy(atoms)) for atoms in made]
            files = [write_pdb(folder / f"{i}.pdb", *parts) for i, parts in enumerate(frames)]
            scrmsd = designability(files, self.args.designability_command)
        return self.scored(made, scrmsd=scrmsd) | {"seconds": time / len(made)}

    def held_out(self) -> dict[str, float]:
        """The scores of at most as many held-out chains as there are samples, cut to the same lengths."""
        data, lengths = (
            spaced(self.chains("validation"), self.args.num_samples),
            self.args.lengths,
        )
        parts = [middle(atoms, breaks, lengths[i % len(lengths)]) for i, (atoms, breaks) in enumerate(data)]
        return self.scored([atoms for atoms, _ in parts], breaks=[breaks for _, breaks in parts])

    def scored(self, samples: Sequence[Atoms], **options: Any) -> dict[str, float]:
        limits = {"limit": self.args.compared, "reference_limit": self.args.reference_limit}
        return summary(samples, self.reference, regions=self.regions, **limits, **options)

    def samples(self, mode: str, steps: int, seed: int) -> list[Atoms]:
        count, lengths = self.args.num_samples, self.args.lengths
        return sample(self.model(mode, seed), mode, [lengths[i % len(lengths)] for i in range(count)], steps, seed)

    def model(self, mode: str, seed: int) -> GMModel:
        key = NETWORKS[mode], seed
        if key not in self.models:
            self.models[key] = train(Training(key[0], self.args), seed)
        return self.models[key]


def middle(atoms: Atoms, breaks: Breaks, length: int) -> tuple[Atoms, Breaks]:
    """The `length` residues in the middle of a chain, or all of a shorter one."""
    start = max(0, (len(atoms) - length) // 2)
    return atoms[start : start + length], breaks[start : start + length]


def fixed_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings on which the figures of one mode, number of steps and seed depend."""
    names = ("data", "num_samples", "lengths", "training_steps", "compared", "reference_limit", "designability_command")
    return {name: getattr(args, name) for name in names}


def over_seeds(figures: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean of each score over seeds with its standard error, `… se`; of one seed, its own over samples."""
    if len(figures) == 1:
        return dict(figures[0])
    scores: dict[str, float | None] = {}
    for name in (name for name in figures[0] if not name.endswith(" se")):
        values = [value for row in figures if (value := row[name]) is not None and value == value]
        scores[name] = mean(values) if values else None
        scores[f"{name} se"] = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return scores


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A Markdown table of some scores, each with its standard error; – for what was not measured."""
    shown = {score: name for score, name in columns.items() if any(row.get(score) is not None for row in rows)}
    return markdown(
        [
            {"": row[""], "steps": "–" if row["steps"] is None else str(row["steps"])}
            | {name: cell(row.get(score), row.get(f"{score} se")) for score, name in shown.items()}
            for row in rows
        ]
    )


def cell(value: float | None, error: float | None) -> str:
    if value is None or value != value:
        return "–"
    return f"{value:.3f}" if error is None or error != error else f"{value:.3f} ± {error:.3f}"


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="theseus", help="theseus, or a folder of PDB and mmCIF files")
    parser.add_argument("--modes", default=",".join(NETWORKS), help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--steps", default="25,100,250", help="numbers of steps")
    parser.add_argument("--seeds", default="0,1,2", help="of training and sampling")
    parser.add_argument("--num-samples", type=int, default=16, help="backbones per mode, number of steps and seed")
    parser.add_argument("--lengths", default="48,56,64", help="residues of the samples, which take turns")
    parser.add_argument("--training-steps", type=int, default=4000, help="of the optimizer")
    parser.add_argument("--compared", type=int, default=16, help="maximum number of samples in TM-scores")
    parser.add_argument("--reference-limit", type=int, default=50, help="training chains that each is compared with")
    parser.add_argument("--designability-command", help="prints the scRMSD in Å of the PDB file {pdb}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch, on the CPU")
    parser.add_argument("--quick", action="store_true", help=f"tiny sizes: {QUICK}")
    parser.add_argument("--folder", type=output_folder, default=Path("runs/proteins"), help="networks and figures")
    parser.add_argument("--plot", type=output_file, help="PNG of samples of the first seed, last mode and last steps")
    parser.add_argument("--output", type=output_file, help="JSON file with every setting and figure")
    if parser.parse_args(argv).quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args(argv)
    args.modes = args.modes.split(",")
    if unknown := set(args.modes) - NETWORKS.keys():
        parser.error(f"--modes: {unknown.pop()!r} is none of {', '.join(NETWORKS)}")
    for name, least in {"steps": 1, "seeds": 0, "lengths": 5}.items():
        text = getattr(args, name)
        if not all(part.isdecimal() and int(part) >= least for part in text.split(",")):
            parser.error(f"--{name} {text}: give integers of at least {least} with commas between them")
        setattr(args, name, [int(part) for part in text.split(",")])
    for name, least in {"num_samples": 2, "compared": 2, "reference_limit": 1, "training_steps": 1}.items():
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)} must be at least {least}")
    return args


if __name__ == "__main__":
    main()
