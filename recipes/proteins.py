"""Trains and samples a model of proteins: orientations and positions of the residues, and their amino acids.

    accelerate launch recipes/proteins.py --config recipes/configs/theseus_frames.yaml [--any_argument value]

If it is interrupted, the same command resumes it from the last complete checkpoint. It writes to `output_dir`: the model
(load it with `AutoModel`), metrics.json, curve.png; samples/0.pdb and so on, and samples.png, a picture of them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # imports start at the root of the repository: `datasets` in this folder is another package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import TrainingArguments, set_seed

from gm_discrete import (
    FieldTimeSampler,
    GaussianPath,
    GeodesicSO3Path,
    GMConfig,
    GMModel,
    MaskedPath,
    ProductPath,
    SO3Path,
)
from gm_discrete.data import FrameCollator, atoms_of, write_pdb
from gm_discrete.data.proteins import AMINO_ACIDS, Chain
from gm_discrete.training import GMTrainer, published
from recipes.common import (
    check_run,
    model_card,
    parse_arguments,
    parse_sampler,
    plot_curve,
    print_once,
    run_script,
    running,
    time_sampler,
    train,
    trainer_options,
    weight_settings,
    write_json,
)
from recipes.datasets import download_theseus, frame_rows, load_proteins, windows
from recipes.options import check_sampling, json_dict, weights_option
from recipes.protein_geometry import geometry, torsion_shares
from recipes.protein_pictures import protein_picture

DISPLAY = {"num_steps", "sampler", "num_samples", "sample_lengths", "num_eval_samples", "max_eval_windows", "download"}
"""Arguments that the weights do not depend on: they may change when a run is resumed."""

ROTATION_WEIGHTS = {"so3": 0.1, "geodesic": 1.0}
"""Weights of the rotations' loss beside that of positions, 1: so both have gradients of one size. The cross-entropy of a
belief has ten times as large ones as a squared error, and at weight 1 positions are learned worse."""

RESIDUE_WEIGHT = 0.25
"""The bound of amino acids stays at 2 to 3 nats, however good the backbones are."""

STATISTICS_CHAINS = 512
"""Number of crops from which the spread of the positions is estimated."""


@dataclass
class ProteinArguments:
    """Arguments for data, path, model and sampling. All others are those of `TrainingArguments`."""

    data: str = field(default="theseus", metadata={"help": "theseus, or a folder of PDB and mmCIF files"})
    license: str | None = field(default=None, metadata={"help": "of the model, for its card, such as apache-2.0"})
    download: bool = field(default=False, metadata={"help": "download theseus first"})
    held_out: float = field(default=0.05, metadata={"help": "share of a folder's files for validation, and for test"})
    length: int = field(default=64, metadata={"help": "residues of a crop; shorter chains are padded"})
    shortest_crop: int | None = field(
        default=None, metadata={"help": "crops of a batch have one length, at random from this one up; default: length"}
    )
    shortest: int = field(default=40, metadata={"help": "shorter chains are left out"})
    max_eval_windows: int = field(default=128, metadata={"help": "parts of held-out chains that are scored"})

    rotations: str = field(
        default="so3",
        metadata={"help": "path of rotations: so3, with a belief and all generators, or geodesic, a flow"},
    )
    generators: str = field(
        default='{"flow": 1.0}', metadata={"help": "of rotations: flow, diffusion or jump, or JSON of their weights"}
    )
    concentration: float = field(default=2.0, metadata={"help": "root of the concentration of rotations at t = 1/2"})
    num_components: int = field(default=8, metadata={"help": "components of the belief about a clean rotation"})
    prediction: str = field(default="velocity", metadata={"help": "of positions: velocity, data or noise"})
    residues: bool = field(default=True, metadata={"help": "amino acids as a third field"})
    independent_times: bool = field(
        default=False, metadata={"help": "a time per field: sequences for backbones, and backbones for sequences"}
    )
    loss_weights: str = field(
        default="{}",
        metadata={"help": "JSON, weight of a field in the loss; default: rotation 0.1 (geodesic: 1), residue 0.25"},
    )

    hidden_size: int = field(default=256, metadata={"help": "width of the transformer"})
    num_hidden_layers: int = field(default=6, metadata={"help": "layers of the transformer"})
    num_attention_heads: int = field(default=8, metadata={"help": "attention heads per layer"})
    model_options: str = field(default="{}", metadata={"help": "JSON of further arguments of GMConfig"})

    times: str = field(default="uniform", metadata={"help": "distribution of training times: logit_normal or uniform"})
    times_mean: float = field(default=0.0, metadata={"help": "mean of logit κ(t), for logit_normal"})
    times_std: float = field(default=1.0, metadata={"help": "standard deviation of logit κ(t), for logit_normal"})
    muon: bool = field(
        default=False, metadata={"help": "Muon for the weight matrices, AdamW with learning_rate for the rest"}
    )
    muon_learning_rate: float = field(default=0.02, metadata={"help": "learning rate of Muon"})
    muon_momentum: float = field(default=0.95, metadata={"help": "momentum of Muon"})
    ema_decay: float = field(default=0.0, metadata={"help": "decay of the average of the weights; 0: no average"})
    num_eval_samples: int = field(default=1, metadata={"help": "draws of the loss per held-out window"})
    num_steps: int = field(default=100, metadata={"help": "sampling steps"})
    sampler: str = field(default="tau_leaping", metadata={"help": "name or JSON of a sampler of generate"})
    num_samples: int = field(default=16, metadata={"help": "number of sampled proteins"})
    sample_lengths: str = field(
        default="", metadata={"help": "residues of the samples, numbers with commas, which take turns; default: length"}
    )


def main(argv: list[str] | None = None) -> dict[str, float]:
    options, training = parse_arguments((ProteinArguments, TrainingArguments), argv)
    with running(training):
        return run(options, training)


def run(options: ProteinArguments, training: TrainingArguments) -> dict[str, float]:
    """Trains, scores, samples and draws."""
    set_seed(training.seed)
    output = Path(str(training.output_dir))
    with training.main_process_first(desc="data"):
        if options.download and options.data == "theseus" and training.process_index == 0:
            download_theseus()
        if training.local_process_index == 0:
            check_run(output, weight_settings(options, training, DISPLAY))
        chains, held_out = load(options, "train"), load(options, "validation")
    print_once(training, f"training: {described(chains)}; held out: {described(held_out)}")
    collate = CropCollator(options.shortest_crop or options.length, options.length, options.residues)
    rows = frame_rows(chains)
    model = GMModel(build_config(options, spread(collate, rows)))
    check_sampling(model, batch_size=1, length=sample_lengths(options)[0], **sampling(options))
    print_once(training, f"{sum(p.numel() for p in model.parameters()):,} parameters, {model.path!r}")

    times = time_sampler(options.times, options.times_mean, options.times_std)
    parts = windows(held_out, options.length)
    trainer = GMTrainer(
        model,
        training,
        time_sampler=FieldTimeSampler(times) if options.independent_times else times,
        train_dataset=rows,
        eval_dataset=frame_rows(parts[:: max(1, len(parts) // options.max_eval_windows)][: options.max_eval_windows]),
        data_collator=collate,
        **trainer_options(options, training),
    )
    train(trainer)

    metrics = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items() if "eval_" in name}
    trainer.save_model(str(output))
    model_card(trainer, options.data, license=options.license)
    if training.should_save:
        plot_curve(trainer.state.log_history, "", output / "curve.png")
        with published(output) as draft:
            model = GMModel.from_pretrained(output).to(training.device)
            atoms = show_samples(options, model, [chain.atoms for chain in held_out], draft)
        metrics |= {f"samples/{name}": value for name, value in quality(atoms).items()}
        write_json(output / "metrics.json", metrics)
        print_once(training, table({"held out": quality([part.atoms for part in parts]), "samples": quality(atoms)}))
        print_once(training, f"written to {output}/: model, metrics.json, curve.png, samples.png, samples/*.pdb")
    return metrics


@dataclass(frozen=True)
class CropCollator:
    """`FrameCollator` with a length for each batch, uniformly from `shortest` to `longest`.

    So a model is trained on other lengths than the longest, without padding where no chain is shorter.

    Args:
        residues: whether batches hold amino acids.
    """

    shortest: int
    longest: int
    residues: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(f"shortest_crop={self.shortest} must be in 1, …, length={self.longest}")

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Tensor]]:
        batch = FrameCollator(int(torch.randint(self.shortest, self.longest + 1, ())))(examples)
        if not self.residues:
            for part in batch.values():
                del part["residue"]
        return batch


def load(options: ProteinArguments, split: str) -> list[Chain]:
    return load_proteins(options.data, split, shortest=options.shortest, held_out=options.held_out)


def described(chains: list[Chain]) -> str:
    sizes = [len(chain) for chain in chains]
    return f"{len(sizes):,} chains of {min(sizes)} to {max(sizes)} residues, {sum(sizes):,} in all"


def spread(collate: CropCollator, rows: Any) -> float:
    """The standard deviation of the positions in crops, in nm."""
    count = min(len(rows), STATISTICS_CHAINS)
    chosen = [rows[i * len(rows) // count] for i in range(count)]
    crops = [FrameCollator(collate.longest)([row])["fields"]["translation"] for row in chosen]
    return float(torch.cat([crop.flatten() for crop in crops]).square().mean().sqrt())


def build_config(options: ProteinArguments, data_std: float) -> GMConfig:
    """The probability path of every field and the transformer."""
    if options.rotations not in ("so3", "geodesic"):
        raise ValueError(f"rotations={options.rotations!r} must be so3 or geodesic")
    generators = weights_option("generators", options.generators)
    if options.rotations == "geodesic" and set(generators) != {"flow"}:
        raise ValueError(f"generators={options.generators!r}: the geodesic path has a flow alone; use rotations=so3")
    fields: dict[str, Any] = {
        "rotation": GeodesicSO3Path()
        if options.rotations == "geodesic"
        else SO3Path(generators, options.concentration, options.num_components),
        "translation": GaussianPath(num_channels=3, data_std=data_std, prediction=options.prediction),
    }
    if options.residues:
        fields["residue"] = MaskedPath(len(AMINO_ACIDS) + 1)
    weights = {
        "rotation": ROTATION_WEIGHTS[options.rotations],
        "residue": RESIDUE_WEIGHT,
        **json_dict("loss_weights", options.loss_weights),
    }
    return GMConfig(
        path=ProductPath(fields, independent_times=options.independent_times),
        fields={name: {"length": options.length} for name in fields},
        aligned=[list(fields)],
        frames=["rotation", "translation"],
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_hidden_layers,
        num_attention_heads=options.num_attention_heads,
        loss_weights={name: weight for name, weight in weights.items() if name != "residue" or options.residues}
        or None,
        **json_dict("model_options", options.model_options),
    )


def sample_lengths(options: ProteinArguments) -> list[int]:
    """
    Raises:
        ValueError: they are no positive numbers.
    """
    words = options.sample_lengths.split(",") if options.sample_lengths else [str(options.length)]
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"sample_lengths={options.sample_lengths!r} must be positive numbers with commas between them")
    return [int(word) for word in words]


def sampling(options: ProteinArguments) -> dict[str, Any]:
    """The arguments of `generate`."""
    return {"num_steps": options.num_steps, "sampler": parse_sampler(options.sampler), "seed": 0}


def show_samples(
    options: ProteinArguments, model: GMModel, real: Sequence[NDArray[np.float32]], output: Path
) -> list[NDArray[np.float64]]:
    """Writes sampled proteins as PDB files, and a picture; returns their N, CA and C."""
    samples = draw(model, options.num_samples, sample_lengths(options), **sampling(options))
    for number, sample in enumerate(samples):
        write_pdb(
            output / "samples" / f"{number}.pdb", sample["rotation"], sample["translation"], sample.get("residue")
        )
    atoms = [backbone_of(sample) for sample in samples]
    protein_picture(atoms, output / "samples.png", list(real))
    return atoms


def draw(model: GMModel, number: int, lengths: Sequence[int], **options: Any) -> list[dict[str, Tensor]]:
    """`number` samples, whose lengths take turns; those of one length are one batch, without padding.

    Args:
        options: of `generate`.
    """
    wanted = [lengths[i % len(lengths)] for i in range(number)]
    made: dict[int, list[dict[str, Tensor]]] = {}
    for length in sorted(set(wanted)):
        batch = model.generate(batch_size=wanted.count(length), length=length, **options)
        made[length] = [{name: values[i].cpu() for name, values in batch.items()} for i in range(wanted.count(length))]
    return [made[length].pop(0) for length in wanted]


def backbone_of(sample: Mapping[str, Tensor]) -> NDArray[np.float64]:
    """N, CA and C of a sample, [L, 3, 3] in Å."""
    return atoms_of(sample["rotation"].double(), sample["translation"].double())[:, :3].numpy()


def quality(chains: Sequence[NDArray[Any]]) -> dict[str, float]:
    """Shares, means over chains: see `geometry` and `torsion_shares`."""
    names = ("valid", "unbroken", "clash_free", "bonds", "angles", "ca_ca/0.1", "ca_ca/deviation")
    rows = [
        {**{name: scores[name] for name in names}, **torsion_shares(atoms)}
        for atoms in chains
        for scores in [geometry(atoms)]
    ]
    return {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Scores as text, a line each."""
    names = next(iter(rows.values()))
    lines = ["".join(f"{name:>12}" for name in ("", *rows))]
    lines += [f"{name:>16}" + "".join(f"{scores[name]:>12.3f}" for scores in rows.values()) for name in names]
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    run_script(main)
