"""Scores of synthetic tables and of imputed cells, on the diamonds of ggplot2.

    OMP_NUM_THREADS=1 python benchmarks/tables.py --methods train,copula,tvae,ctgan --imputers mean,neighbours,boosting
    python benchmarks/tables.py --table
    python benchmarks/tables.py --figure tables.png --methods copula,tvae,ctgan

53,940 rows of 7 numbers and 3 categories are split into training, validation and test rows, 80/10/10, always in the same
way. Every method is trained on the training rows and generates as many, which are kept in the folder. Before the comparison
the numbers of every method are rounded and clipped as the training rows are. What is in the folder is not computed again.
`train` are the training rows themselves, the score of a perfect method.

Ours are recipes/mixed.py with its config for the diamonds and the changes in `VARIANTS`. The peers: `copula` is SDV's
GaussianCopulaSynthesizer, which encodes categories as numbers and fits a Gaussian copula; `tvae` and `ctgan` are those of
the package ctgan. All have their default settings.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from measure import environment, markdown, output_file, output_folder, report

from gm_discrete import GMModel
from gm_discrete.data import decode_rows
from gm_discrete.data.scalers import Categories, decimals
from gm_discrete.json_text import json_text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.scores import tables as metrics
from recipes.datasets import load_table
from recipes.datasets.packages import require

PACKAGES = {"pandas": "pandas", "sklearn": "scikit-learn", "sdmetrics": "sdmetrics", "sdv": "sdv", "ctgan": "ctgan"}
PACKAGES |= {"copulas": "copulas", "rdt": "rdt"}
PANELS = (("carat", "price"), ("x", "depth"))
"""Pairs of columns that the figure shows."""
NEIGHBOURS = 10

T = TypeVar("T")
Table = pd.DataFrame
Sample = Callable[[int], Table]
Method = Callable[[Table, int, argparse.Namespace], Sample]
"""(training rows, seed, settings) → a function that generates a number of rows; both are timed separately."""
Imputer = Callable[[Table, Table, int], Table | Sequence[Table]]
"""(training rows, rows with hidden cells, seed) → the filled rows, or several draws of them."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--imputers", default="", help=f"of {', '.join(IMPUTERS)}")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--rows", type=int, help="rows of the table; default: all")
    parser.add_argument(
        "--hidden", type=float, default=0.4, help="share of the columns of a row that imputers must fill"
    )
    parser.add_argument("--imputed", type=int, default=2000, help="test rows with hidden cells")
    parser.add_argument("--steps", type=int, help="training steps; default: those of the recipe")
    parser.add_argument("--num_steps", type=int, default=50, help="sampling steps of our methods")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; scikit-learn follows OMP_NUM_THREADS")
    parser.add_argument("--folder", type=output_folder, default="runs/tables")
    parser.add_argument("--again", action="store_true", help="score the tables in the folder again, without training")
    parser.add_argument("--table", action="store_true", help="only print the tables of what is in the folder")
    parser.add_argument("--output", type=output_file, help="with --table: JSON file with the tables")
    parser.add_argument("--figure", type=output_file, help="only draw the methods' tables that are in the folder")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    methods, imputers = names(args.methods), names(args.imputers)
    for option, given, known in (("methods", methods, METHODS), ("imputers", imputers, IMPUTERS)):
        if unknown := set(given) - set(known):
            parser.error(f"--{option} {', '.join(sorted(unknown))}: there is {', '.join(known)}")
    torch.set_num_threads(args.threads)
    if args.table:
        text, record = tables(args.folder), {"benchmark": "tables", "environment": environment("cpu", __file__, argv)}
        report({**record, "settings": vars(args)}, [text], args.output)
        return
    rows = splits(args)
    if args.figure:
        figure(methods, rows, args)
        return
    for seed in map(int, names(args.seeds)):
        for method in methods:
            synthesized(method, seed, rows, args, argv)
        for imputer in imputers:
            imputed(imputer, seed, rows, args, argv)


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def splits(args: argparse.Namespace) -> dict[str, Table]:
    """The splits of `load_table`, or their first rows in the same proportions."""
    parts: dict[str, Any] = {name: load_table("diamonds", name) for name in ("train", "validation", "test")}
    total = sum(map(len, parts.values()))
    return {name: part.to_pandas().head(len(part) * (args.rows or total) // total) for name, part in parts.items()}


def synthesized(name: str, seed: int, rows: Mapping[str, Table], args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Trains a method and scores its table; neither is repeated if it is in the folder."""
    file = args.folder / f"method-{name}-{seed}.json"
    train = rows["train"]
    if file.exists():
        record = json.loads(file.read_text(encoding="utf-8"))
    else:
        torch.manual_seed(seed)
        np.random.seed(seed)
        sample, fit = clocked(lambda: METHODS[name](train, seed, args))
        synthetic, sampling = clocked(lambda: sample(len(train)))
        file.parent.mkdir(parents=True, exist_ok=True)
        synthetic.to_parquet(file.with_suffix(".parquet"), index=False)
        record = described(name, seed, rows, args, argv) | {"fit": fit, "sampling": sampling}
        write(file, record)
    if args.again or "figures" not in record:
        synthetic = conform(pd.read_parquet(file.with_suffix(".parquet")), train)
        record["figures"] = figures(rows, synthetic)
        write(file, record)
        print(file, flush=True)


def imputed(name: str, seed: int, rows: Mapping[str, Table], args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Fills hidden cells of test rows, and keeps the scores."""
    file = args.folder / f"imputer-{name}-{seed}.json"
    if file.exists() and not args.again:
        return
    torch.manual_seed(seed)
    np.random.seed(seed)
    truth = rows["test"].head(args.imputed)
    hidden = metrics.hide_cells(truth, args.hidden)
    filled, used = clocked(lambda: IMPUTERS[name](args)(rows["train"], pd.DataFrame(truth.mask(hidden)), seed))
    filled = [filled] if isinstance(filled, pd.DataFrame) else list(filled)
    scores = metrics.imputation_scores(truth, hidden, filled, rows["train"])
    record = described(name, seed, rows, args, argv) | {"time": used, "draws": len(filled), "figures": scores}
    write(file, record)
    print(file, flush=True)


def described(
    name: str, seed: int, rows: Mapping[str, Table], args: argparse.Namespace, argv: Sequence[str]
) -> dict[str, Any]:
    where = environment("cpu", __file__, argv)
    where["versions"] |= {package: version(package) for module, package in PACKAGES.items() if find_spec(module)}
    sizes = {split: len(table) for split, table in rows.items()}
    return {"settings": vars(args), "name": name, "seed": seed, "rows": sizes, "environment": where}


def write(file: Path, record: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".draft")
    draft.write_text(json_text(record, indent=1), encoding="utf-8")
    draft.replace(file)


def clocked(function: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """The result of a function, with the seconds of the clock and of the processor, child processes included."""

    def spent() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used)

    wall, cpu, load = time.perf_counter(), spent(), os.getloadavg()[0]
    result = function()
    used = {"seconds": time.perf_counter() - wall, "cpu_seconds": spent() - cpu}
    return result, {**used, "load_before": load}


def conform(synthetic: Table, train: Table) -> Table:
    """The table with the columns, kinds, decimals and range of the training rows, as SDV does for all its samples."""
    numbers, _ = metrics.column_kinds(train)
    columns = {}
    for name in train.columns:
        if name not in numbers:
            columns[name] = synthetic[name].astype(str)
            continue
        real = train[name].to_numpy(dtype=np.float64)
        values, digits = synthetic[name].to_numpy(dtype=np.float64).clip(real.min(), real.max()), decimals(real)
        columns[name] = values if digits is None else values.round(digits)
    return pd.DataFrame(columns)


def figures(rows: Mapping[str, Table], synthetic: Table) -> dict[str, Any]:
    """Every score of a synthetic table."""
    train, test = (conform(rows[split], rows["train"]) for split in ("train", "test"))
    shapes = metrics.column_shapes(test, synthetic)
    trends = metrics.pair_trends(test, synthetic)
    priced, priced_test = (table.assign(price=np.log(table["price"])) for table in (synthetic, test))
    return {
        "column_shapes": mean(shapes.values()), "pair_trends": mean(trends.values()),
        "columns": shapes, "pairs": {" × ".join(pair): score for pair, score in trends.items()},
        "quality_report": metrics.quality_report(test, synthetic) if find_spec("sdmetrics") else None,
        "detection": {name: metrics.detection_auc(test, synthetic, name) for name in ("logistic", "boosting")},
        "price": metrics.efficacy(priced, priced_test, "price"),
        "cut": metrics.efficacy(synthetic, test, "cut"),
        "closest_records": metrics.closest_records(train, test, synthetic),
    }  # fmt: skip


def of_train(train: Table, seed: int, args: argparse.Namespace) -> Sample:
    return lambda number: train.sample(number, random_state=seed, replace=number > len(train))


def copula(train: Table, seed: int, args: argparse.Namespace) -> Sample:
    require("sdv")
    from sdv.metadata import Metadata  # pyright: ignore[reportMissingImports]
    from sdv.single_table import GaussianCopulaSynthesizer  # pyright: ignore[reportMissingImports]

    numbers, _ = metrics.column_kinds(train)
    kinds = {name: {"sdtype": "numerical" if name in numbers else "categorical"} for name in train.columns}
    model = GaussianCopulaSynthesizer(Metadata.load_from_dict({"tables": {"rows": {"columns": kinds}}}))
    model.fit({"rows": train})
    return lambda number: model.sample(number)["rows"]


def of_ctgan(name: str) -> Method:
    def fit(train: Table, seed: int, args: argparse.Namespace) -> Sample:
        require("ctgan")
        import ctgan  # pyright: ignore[reportMissingImports]
        from joblib import parallel_config  # pyright: ignore[reportMissingImports]

        model = getattr(ctgan, name)(enable_gpu=False, verbose=True)
        model.set_random_state(seed)
        with parallel_config(backend="sequential"):  # the seconds of workers that never end would not be counted
            model.fit(train, metrics.column_kinds(train)[1])
        return model.sample

    return fit


def ours(variant: str) -> Method:
    """The recipe for the diamonds, in a process of its own; its model is kept in the folder."""

    def fit(train: Table, seed: int, args: argparse.Namespace) -> Sample:
        root, folder = Path(__file__).parents[1], args.folder / f"model-{variant}-{seed}"
        recipe = [
            sys.executable,
            str(root / "recipes/mixed.py"),
            "--config",
            str(root / "recipes/configs/diamonds.yaml"),
        ]
        settings = {"seed": seed, "output_dir": folder, "eval_strategy": "no", "num_samples": 1000, **VARIANTS[variant]}
        settings |= {} if args.steps is None else {"max_steps": args.steps}
        options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        subprocess.run([*recipe, *options], check=True)
        model = GMModel.from_pretrained(folder)

        def sample(number: int) -> Table:
            parts: Any = [
                decoded(model, model.generate(batch_size=size, num_steps=args.num_steps, seed=place))
                for place, size in enumerate(sizes(number))
            ]
            columns: Any = list(train.columns)
            return pd.concat(parts, ignore_index=True)[columns]

        return sample

    return fit


def sizes(number: int, most: int = 5000) -> list[int]:
    """Sizes of batches that sum to `number`."""
    return [most] * (number // most) + [number % most] * (number % most > 0)


def decoded(model: GMModel, values: Mapping[str, torch.Tensor]) -> Table:
    return pd.DataFrame(decode_rows(values, model.config.codecs))


VARIANTS: dict[str, dict[str, Any]] = {
    "flow": {},
    "jump": {"generators": '{"jump": 1.0}'},
    "flow + jump": {"generators": '{"flow": 0.5, "jump": 0.5}'},
    "flow by velocity": {"prediction": "velocity"},
    "independent times": {"independent_times": True},
}
"""Arguments of the recipe that differ from its config."""

METHODS: dict[str, Method] = {
    "train": of_train,
    "copula": copula,
    "tvae": of_ctgan("TVAE"),
    "ctgan": of_ctgan("CTGAN"),
    **{variant: ours(variant) for variant in VARIANTS},
}


def by_mean(train: Table, masked: Table, seed: int) -> Table:
    """The mean of a numeric column, the most frequent category of another."""
    numbers, categories = metrics.column_kinds(train)
    values = {name: train[name].mean() for name in numbers} | {name: train[name].mode()[0] for name in categories}
    return masked.fillna(values)


def by_neighbours(train: Table, masked: Table, seed: int) -> list[Table]:
    """Draws: the cells of each of the nearest training rows, by Gower's distance in the observed cells."""
    numbers, categories = metrics.column_kinds(train)
    real, given = {}, {}
    for name in numbers:
        unit = float(np.ptp(np.quantile(train[name], [0.01, 0.99]))) or 1.0
        real[name], given[name] = ((table[name].to_numpy(dtype=np.float32) / unit) for table in (train, masked))
    for name in categories:
        values = sorted(train[name].unique())
        for table, into in ((train, real), (masked, given)):
            codes = pd.Categorical(table[name], categories=values).codes
            into[name] = np.where(codes < 0, np.nan, codes)
    nearest = []
    for rows in np.array_split(np.arange(len(masked)), max(1, len(masked) * len(train) // 2**24)):
        distance = np.zeros((len(rows), len(train)), dtype=np.float32)
        for name in train.columns:
            apart = np.abs(given[name][rows, None] - real[name])
            distance += np.nan_to_num(apart if name in numbers else np.where(apart > 0, 1, apart))
        nearest.append(np.argpartition(distance, NEIGHBOURS, axis=1)[:, :NEIGHBOURS])
    order = np.concatenate(nearest)
    taken = (train.iloc[order[:, k]].set_axis(masked.index) for k in range(order.shape[1]))
    return [masked.where(masked.notna(), draw) for draw in taken]


def by_boosting(train: Table, masked: Table, seed: int) -> Table:
    """A model per column, trained on rows with the same share of hidden cells as the rows to be filled."""
    require("sklearn", "scikit-learn", extra="tables")
    from sklearn.ensemble import (  # pyright: ignore[reportMissingImports]
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
    )

    numbers, categories = metrics.column_kinds(train)
    seen = pd.DataFrame(train.mask(metrics.hide_cells(train, float(masked.isna().to_numpy().mean()), seed=seed)))
    kinds = {name: pd.CategoricalDtype(sorted(train[name].unique())) for name in categories}
    seen, given, filled = seen.astype(kinds), masked.astype(kinds), masked.copy()
    for name in train.columns:
        kind: Any = HistGradientBoostingRegressor if name in numbers else HistGradientBoostingClassifier
        others = [column for column in train.columns if column != name]
        model = kind(categorical_features="from_dtype", early_stopping=False, random_state=seed)
        model.fit(seen[others], train[name])
        here = masked[name].isna().to_numpy()
        if here.any():
            filled.loc[here, name] = model.predict(given.loc[here, others])
    return filled


def by_ours(folder: Path, num_steps: int) -> Imputer:
    """Draws of the model with independent times, which is in the folder."""

    def impute(train: Table, masked: Table, seed: int) -> list[Table]:
        model = GMModel.from_pretrained(folder / f"model-independent times-{seed}")
        given = {
            name: list(masked[name].astype(object).where(masked[name].notna(), None))
            if isinstance(codec, Categories)
            else masked[name].to_numpy(dtype=np.float64)
            for name, codec in model.config.codecs.items()
        }
        draws = [model.generate(given=given, num_steps=num_steps, seed=draw) for draw in range(NEIGHBOURS)]
        columns: Any = list(masked.columns)
        filled: Any = [decoded(model, draw)[columns].set_axis(masked.index) for draw in draws]
        return filled

    return impute


IMPUTERS: dict[str, Callable[[argparse.Namespace], Imputer]] = {
    "mean": lambda args: by_mean,
    "neighbours": lambda args: by_neighbours,
    "boosting": lambda args: by_boosting,
    "independent times": lambda args: by_ours(args.folder, args.num_steps),
}


def tables(folder: Path) -> str:
    """Markdown tables of all scores in the folder: mean and standard deviation over seeds."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(folder.glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        if "figures" in record:
            found[file.name.split("-")[0]][record["name"]].append(record)
    parts = []
    if found["method"]:
        own = ordered(found["method"], METHODS)
        parts += [place(own), markdown([likeness(*item) for item in own.items()])]
        real = next(iter(own.values()))[0]["figures"]["closest_records"]
        parts.append(
            f"Test rows have a median distance of {real['holdout_median']:.4f} to their closest training row, 5 % of them "
            f"are within {real['holdout_quantile_5']:.4f}, and {real['holdout_copies']:.2%} are copies."
        )
        parts.append(markdown([use(*item) for item in own.items()]))
    if found["imputer"]:
        own = ordered(found["imputer"], IMPUTERS)
        settings = next(iter(own.values()))[0]["settings"]
        parts.append(f"{place(own)} Hidden: {settings['hidden']:.0%} of the cells of {settings['imputed']} test rows.")
        parts.append(markdown([imputation(*item) for item in own.items()]))
    return "\n\n".join(parts)


def ordered(found: Mapping[str, list[dict[str, Any]]], known: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """In the order of `known`; other names last."""
    return {name: found[name] for name in [*known, *sorted(set(found) - set(known))] if name in found}


def place(found: Mapping[str, list[dict[str, Any]]]) -> str:
    first = next(iter(found.values()))[0]
    where, rows = first["environment"], first["rows"]
    sizes = ", ".join(f"{rows[split]:,} {split}" for split in ("train", "validation", "test"))
    return f"Rows: {sizes}. {where['processor']}, {where['threads']} thread(s); seconds of the processor."


def likeness(name: str, records: Sequence[dict[str, Any]]) -> dict[str, str]:
    each = [record["figures"] for record in records]
    reports = [figure["quality_report"] for figure in each if figure["quality_report"]]
    return {
        "method": name, "seeds": str(len(records)),
        "column shapes": spread([figure["column_shapes"] for figure in each]),
        "pair trends": spread([figure["pair_trends"] for figure in each]),
        "pair trends, SDMetrics": spread([report["pair_trends"] for report in reports]),
        "AUC, logistic": spread([figure["detection"]["logistic"] for figure in each]),
        "AUC, boosting": spread([figure["detection"]["boosting"] for figure in each]),
        "training": spread([record["fit"]["cpu_seconds"] for record in records], 0) + " s",
        "sampling": spread([record["sampling"]["cpu_seconds"] for record in records], 1) + " s",
    }  # fmt: skip


def use(name: str, records: Sequence[dict[str, Any]]) -> dict[str, str]:
    def column(part: str, score: str, digits: int = 3) -> str:
        return spread([record["figures"][part][score] for record in records], digits)

    return {
        "method": name,
        "price R²": column("price", "r2"), "RMSE of log price": column("price", "rmse"),
        "cut accuracy": column("cut", "accuracy"), "cut macro-F1": column("cut", "macro_f1"),
        "closest record": column("closest_records", "median", 4), "5 %": column("closest_records", "quantile_5", 4),
        "copies": column("closest_records", "copies"), "closer to train": column("closest_records", "closer_to_train"),
    }  # fmt: skip


def imputation(name: str, records: Sequence[dict[str, Any]]) -> dict[str, str]:
    def column(score: str) -> str:
        return spread([record["figures"][score] for record in records])

    return {
        "imputer": name, "seeds": str(len(records)), "draws": str(records[0]["draws"]),
        "RMSE": column("rmse"), "CRPS": column("crps"), "energy": column("energy"), "accuracy": column("accuracy"),
        "time": spread([record["time"]["cpu_seconds"] for record in records], 1) + " s",
    }  # fmt: skip


def spread(values: Sequence[float], digits: int = 3) -> str:
    if not values:
        return "–"
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def figure(methods: Sequence[str], rows: Mapping[str, Table], args: argparse.Namespace) -> None:
    """Draws every column of the test rows and of the methods' tables (first seed), and below pairs of columns."""
    require("matplotlib")
    from matplotlib import pyplot

    real = conform(rows["test"], rows["train"])
    made = {"real": real}
    for name in methods:
        file = args.folder / f"method-{name}-{names(args.seeds)[0]}.parquet"
        made[name] = conform(pd.read_parquet(file), rows["train"])
    numbers, categories = metrics.column_kinds(real)
    panels = [pair for pair in PANELS if set(pair) <= set(numbers)]
    across = 5
    down = -(-real.shape[1] // across)
    canvas = pyplot.figure(figsize=(15, 2.6 * (down + len(panels))), layout="constrained")
    parts = canvas.subfigures(1 + len(panels), 1, height_ratios=[down] + [1] * len(panels), squeeze=False)[:, 0]
    axes = parts[0].subplots(down, across, squeeze=False).ravel()
    for axis in axes[real.shape[1] :]:
        axis.axis("off")
    for axis, name in zip(axes, [*numbers, *categories], strict=False):
        (bars if name in categories else histogram)(axis, name, made)
        axis.set_title(name)
        axis.set_yticks([])
    axes[0].legend(fontsize="small")
    for part, (first, second) in zip(parts[1:], panels, strict=True):
        limits = [real[name].quantile([0.001, 0.999]) for name in (first, second)]
        row = part.subplots(1, len(made), squeeze=False, sharex=True, sharey=True)[0]
        for (name, table), axis, color in zip(made.items(), row, colors(made), strict=True):
            shown = table.sample(min(len(table), len(real)), random_state=0)
            axis.scatter(shown[first], shown[second], s=2, alpha=0.3, linewidths=0, color=color, rasterized=True)
            axis.set(xlim=limits[0], ylim=limits[1], xlabel=first, title=name)
        row[0].set_ylabel(second)
    args.figure.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(args.figure, dpi=100)
    pyplot.close(canvas)
    print(args.figure)


def colors(made: Mapping[str, Table]) -> list[str]:
    """Grey for real rows, then one colour per method."""
    return ["0.6", *(f"C{i}" for i in range(len(made) - 1))]


def histogram(axis: Any, name: str, made: Mapping[str, Table]) -> None:
    low, high = made["real"][name].quantile([0.005, 0.995])
    edges = np.linspace(low, high if high > low else low + 1, 41)
    for (label, table), color in zip(made.items(), colors(made), strict=True):
        weights = np.full(len(table), 1 / len(table))
        kind = "stepfilled" if label == "real" else "step"
        axis.hist(table[name], edges, weights=weights, histtype=kind, color=color, label=label)


def bars(axis: Any, name: str, made: Mapping[str, Table]) -> None:
    shares = {label: table[name].value_counts(normalize=True) for label, table in made.items()}
    levels = list(shares["real"].index)
    width = 0.8 / len(made)
    for i, ((label, share), color) in enumerate(zip(shares.items(), colors(made), strict=True)):
        heights = [share.get(level, 0.0) for level in levels]
        axis.bar(np.arange(len(levels)) + i * width, heights, width, color=color, label=label)
    axis.set_xticks(np.arange(len(levels)) + 0.4 - width / 2, levels, fontsize="x-small", rotation=30)


if __name__ == "__main__":
    main()
