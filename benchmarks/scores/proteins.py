"""Scores of a set of generated protein backbones: diversity, novelty and designability, and a summary with the rest.

Structures are compared by TM-align (Zhang and Skolnick 2005, Nucleic Acids Res. 33, 2302, as the package tmtools), on CA
alone. A pair of chains of 64 residues takes about 3 ms, one of 128 about 18 ms (crystal structures, one thread of a CPU), so
that large sets are compared in part: `limit`.
"""

from __future__ import annotations

import math
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm.auto import tqdm

from benchmarks.scores.protein_structure import RamachandranRegions, evaluate_backbone
from recipes.datasets.packages import require
from recipes.protein_geometry import CA, backbone, torsions

SAME_FOLD = 0.5
"""TM-score above which two chains share their fold (Xu and Zhang 2010, Bioinformatics 26, 889)."""
DESIGNABLE = 2.0
"""scRMSD in Å below which a backbone is designable (Trippe et al., arXiv 2206.04119)."""
SHORTEST = 5
"""Residues that TM-align needs to begin an alignment."""

T = TypeVar("T")


def tm_scores(a: ArrayLike, b: ArrayLike) -> tuple[float, float]:
    """The TM-score of the best alignment of two backbones, normalised by the length of the first and of the second.

    Raises:
        ImportError: tmtools is not installed.
        ValueError: a chain has fewer than five residues.
    """
    require("tmtools", extra="scores")
    from tmtools import tm_align

    chains = [np.ascontiguousarray(backbone(atoms)[:, CA]) for atoms in (a, b)]
    if min(map(len, chains)) < SHORTEST:
        raise ValueError(f"a and b have {len(chains[0])} and {len(chains[1])} residues; give {SHORTEST} or more")
    found = tm_align(*chains, *("A" * len(chain) for chain in chains))
    return float(found.tm_norm_chain1), float(found.tm_norm_chain2)


def tm_matrix(samples: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """TM-scores [N, N] of all pairs, each the mean of the two normalisations; 1 on the diagonal."""
    found = np.eye(len(samples))
    for i in tqdm(range(len(samples)), desc="TM-scores", leave=False, disable=len(samples) < 10):
        for j in range(i):
            found[i, j] = found[j, i] = sum(tm_scores(samples[i], samples[j])) / 2
    return found


def clusters(matrix: NDArray[np.float64], threshold: float = SAME_FOLD) -> NDArray[np.int_]:
    """The cluster of each sample [N], by average linkage: two are joined while their mean TM-score is ≥ `threshold`.

    Average linkage is what FrameFlow (arXiv 2310.05297) and MultiFlow (arXiv 2402.04997) ask of MaxCluster (`-C 2 -Tm 0.5`).
    """
    require("scipy", extra="scores")
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if len(matrix) < 2:
        return np.ones(len(matrix), int)
    tree = linkage(squareform(1 - matrix, checks=False), "average")
    return np.asarray(fcluster(tree, 1 - threshold, "distance"))


def diversity(samples: Sequence[ArrayLike], limit: int | None = None) -> dict[str, float]:
    """How different the samples are from each other.

    - `tm/pairs`: mean TM-score of the pairs, with the jackknife's standard error; `tm/diversity`: one minus it.
    - `clusters`: their number at TM 0.5, and `diversity`, that over the number of samples, as in MultiFlow. MultiFlow counts
      designable samples only: give those. The more samples are compared, the smaller the quotient: compare equal numbers.

    Args:
        samples: backbones [L, ≥ 3, 3].
        limit: maximum number that is compared, evenly spaced; the cost is its square.

    Raises:
        ImportError: tmtools or scipy is not installed.
        ValueError: there are fewer than two samples.
    """
    chosen = spaced(samples, limit)
    if len(chosen) < 2:
        raise ValueError(f"samples has {len(samples)} backbones and limit={limit}; compare at least two")
    matrix = tm_matrix(chosen)
    count, number = len(chosen), int(clusters(matrix).max())
    rows = matrix.sum(1) - 1
    pairs = rows.sum() / (count * (count - 1))
    scores = {"tm/pairs": float(pairs), "tm/diversity": float(1 - pairs)}
    if count > 2:  # the mean over the pairs without one sample is not defined for two
        left_out = (rows.sum() - 2 * rows) / ((count - 1) * (count - 2))
        error = math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum()))
        scores |= {"tm/pairs se": error, "tm/diversity se": error}
    return scores | {"clusters": float(number), "diversity": number / count}


def nearest_tm(
    samples: Sequence[ArrayLike], reference: Sequence[ArrayLike], limit: int | None = None
) -> NDArray[np.float64]:
    """The maximum TM-score of each sample to the reference [N], normalised by the length of the sample.

    A sample that is a part of a longer reference chain so has 1. The smaller, the more novel; a `limit` of the reference
    chains, evenly spaced, makes samples look more novel than they are.

    Raises:
        ImportError: tmtools is not installed.
        ValueError: the reference is empty.
    """
    if not len(reference):
        raise ValueError("reference is empty; give at least one backbone")
    known = spaced(reference, limit)
    rows = tqdm(samples, desc="Novelty", leave=False, disable=len(samples) < 10)
    return np.array([max(tm_scores(sample, other)[0] for other in known) for sample in rows])


def designability(files: Iterable[Path], command: str, timeout: float = 600) -> NDArray[np.float64]:
    """scRMSD in Å of each PDB file [N], as an external command prints it.

    Designability takes an inverse-folding and a folding model (ProteinMPNN and ESMFold in MultiFlow), which are not
    included: sequences are designed for the backbone and folded, and the RMSD of the closest fold is the scRMSD. A backbone
    is designable if that is below 2 Å.

    Args:
        files: PDB files; `gm_discrete.data.write_pdb` makes them.
        command: a program and its arguments, with `{pdb}` for the file; it prints one number. No shell is involved.
        timeout: seconds for each file.

    Raises:
        ValueError: `command` has no `{pdb}`, or prints anything but a number that is at least 0.
        RuntimeError: the program is missing, fails or takes too long.
    """
    parts = shlex.split(command)
    if not any("{pdb}" in part for part in parts):
        raise ValueError(f"command={command!r} has no {{pdb}}; write it where the program takes the file")
    return np.array([_printed([part.replace("{pdb}", str(file)) for part in parts], timeout) for file in files])


def summary(
    samples: Sequence[ArrayLike],
    reference: Sequence[ArrayLike] | None = None,
    *,
    breaks: Sequence[ArrayLike | None] | None = None,
    regions: RamachandranRegions | None = None,
    limit: int | None = None,
    reference_limit: int | None = None,
    scrmsd: Sequence[float] | NDArray[np.float64] | None = None,
) -> dict[str, float]:
    """All scores of a set of backbones: means over samples and, as `… se`, their standard errors.

    Beside those of `evaluate_backbone` and `diversity`: `samples`, their number; with regions `torsion_distance`, from φ and
    ψ of all samples to those of the data; with a reference `tm/nearest`, the mean of `nearest_tm`, and `novel`, the share
    below 0.5; with `scrmsd` its mean and the share that is `designable`.

    Args:
        samples: backbones [L, ≥ 3, 3] in Å.
        reference: training set, for novelty.
        breaks: those of the samples; none by default.
        regions: for the Ramachandran scores, which are left out without.
        limit: maximum number of samples whose TM-scores are computed.
        reference_limit: maximum number of reference chains that they are compared with.
        scrmsd: output of `designability`.

    Raises:
        ImportError: biotite, tmtools or scipy is not installed.
        ValueError: there are fewer than two samples, or the lengths of the arguments differ.
    """
    if len(samples) < 2:
        raise ValueError(f"samples has {len(samples)} backbones; give at least two")
    for name, values in {"breaks": breaks, "scrmsd": scrmsd}.items():
        if values is not None and len(values) != len(samples):
            raise ValueError(f"{name} has {len(values)} values for {len(samples)} samples; give one for each")
    marks = [None] * len(samples) if breaks is None else breaks
    rows = [evaluate_backbone(atoms, mark, regions) for atoms, mark in zip(samples, marks, strict=True)]
    scores = {"samples": float(len(samples))} | mean_and_error(rows) | diversity(samples, limit)
    if regions is not None:
        angles = [torsions(atoms, mark) for atoms, mark in zip(samples, marks, strict=True)]
        scores["torsion_distance"] = regions.distance(np.concatenate(angles))
    if reference is not None:
        nearest = nearest_tm(spaced(samples, limit), reference, reference_limit)
        scores |= mean_and_error([{"tm/nearest": float(tm), "novel": float(tm < SAME_FOLD)} for tm in nearest])
    if scrmsd is not None:
        scores |= mean_and_error([{"scrmsd": float(far), "designable": float(far < DESIGNABLE)} for far in scrmsd])
    return scores


def mean_and_error(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each score and, as `… se`, its standard error, over the rows that have it (are not NaN)."""
    scores: dict[str, float] = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows if not math.isnan(row[name])])
        scores[name] = float(values.mean()) if len(values) else math.nan
        scores[f"{name} se"] = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else math.nan
    return scores


def spaced(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` of the items, evenly spaced.

    Raises:
        ValueError: limit < 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} must be at least 1; None takes all")
    count = min(limit or len(items), len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _printed(command: Sequence[str], timeout: float) -> float:
    """The one number that a command prints."""
    shown = shlex.join(command)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError as error:
        raise RuntimeError(f"{command[0]!r} was not found, which `{shown}` runs; give its path") from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"`{shown}` took more than timeout={timeout} s; give it more") from error
    if done.returncode:
        raise RuntimeError(f"`{shown}` failed with exit code {done.returncode}: {done.stderr.strip()}")
    try:
        value = float(done.stdout)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise ValueError(f"`{shown}` printed {done.stdout.strip()!r}; it must print one number, the scRMSD in Å")
    return value
