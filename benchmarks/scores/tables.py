"""Scores of synthetic tables against real ones, and of imputed cells against hidden ones, for pandas tables.

Numeric columns are numbers, and so are dates, in days; all others, bool included, are categories. Names of columns become
strings. A missing cell is a category of its own; a missing number lies below all others where distributions are compared,
and elsewhere is the median of its column, with a further column that tells which cells are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch

from gm_discrete.data.columns import column_names
from recipes.datasets.packages import require

CHUNK = 2**24
"""Distances held in memory at once: 128 MB."""

Levels = Mapping[str, Sequence[str]]
"""All categories of each categorical column."""


def column_kinds(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Names of the numeric columns, and of the categorical ones."""
    numbers = [
        str(name)
        for name, dtype in zip(table.columns, table.dtypes, strict=True)
        if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_bool_dtype(dtype)
    ]
    return numbers, [str(name) for name in table.columns if str(name) not in numbers]


def column_shapes(real: pd.DataFrame, synthetic: pd.DataFrame) -> dict[str, float]:
    """Similarity of each column's distribution, 1 if equal: 1 − sup |F − G| of numbers, 1 − ½ Σ |p − q| of categories.

    F, G are the empirical distribution functions and p, q the frequencies: KSComplement and TVComplement of SDMetrics
    (docs.sdv.dev/sdmetrics), whose mean over columns is "Column Shapes" of its quality report.

    Raises:
        ValueError: the tables differ in columns or their kinds, one or one has fewer than 2 rows.
    """
    real, synthetic = _named(real), _named(synthetic)
    numbers, categories = _same_columns(real, synthetic)
    levels = _levels(real, synthetic)
    return {name: 1 - _kolmogorov(_column(real, name), _column(synthetic, name)) for name in numbers} | {
        name: 1 - _total_variation(*(_codes(table, name, levels) for table in (real, synthetic))) for name in categories
    }


def pair_trends(real: pd.DataFrame, synthetic: pd.DataFrame, *, bins: int = 10) -> dict[tuple[str, str], float]:
    """Similarity of each pair of columns, 1 if equal: 1 − ½ |ρ − ρ'| of two numbers, 1 − ½ Σ |p − q| of other pairs.

    ρ are Pearson's correlations, 0 where a column is constant, and p, q the frequencies of pairs; paired with a
    category, a number is replaced by its bin among `bins` quantiles of the real column. CorrelationSimilarity and
    ContingencySimilarity of SDMetrics, whose mean over pairs is "Column Pair Trends"; but its quality report bins
    each table between its own extremes, so that one outlier shifts all bins of one table (`quality_report`).

    Raises:
        ValueError: as for `column_shapes`.
    """
    real, synthetic = _named(real), _named(synthetic)
    numbers, _ = _same_columns(real, synthetic)
    levels = _levels(real, synthetic)
    values = {name: (_column(real, name), _column(synthetic, name)) for name in numbers}
    cells = {name: tuple(_codes(table, name, levels) for table in (real, synthetic)) for name in levels}
    for name, both in values.items():
        observed = both[0][~np.isnan(both[0])]
        edges = np.unique(np.quantile(observed, np.arange(1, bins) / bins)) if len(observed) else observed
        cells[name] = tuple(np.where(np.isnan(each), bins, np.searchsorted(edges, each, side="right")) for each in both)
    found = {}
    for first, second in combinations(real.columns, 2):
        if first in values and second in values:
            pairs = zip(values[first], values[second], strict=True)
            there, here = (_correlation(*pair) for pair in pairs)
            found[first, second] = 1 - abs(there - here) / 2
        else:
            base = 1 + max(int(each.max()) for each in cells[second])
            pairs = zip(cells[first], cells[second], strict=True)
            found[first, second] = 1 - _total_variation(*(left * base + right for left, right in pairs))
    return found


def quality_report(real: pd.DataFrame, synthetic: pd.DataFrame) -> dict[str, float]:
    """`column_shapes` and `pair_trends` as computed by the quality report of SDMetrics, which papers quote.

    Raises:
        ImportError: sdmetrics is not installed.
        ValueError: as for `column_shapes`.
    """
    require("sdmetrics", extra="scores")
    from sdmetrics.reports import QualityReport  # pyright: ignore[reportMissingImports]

    real, synthetic = _named(real), _named(synthetic)
    numbers, _ = _same_columns(real, synthetic)
    kinds = {name: {"sdtype": "numerical" if name in numbers else "categorical"} for name in map(str, real.columns)}
    report = QualityReport()
    data = ({"rows": table[list(real.columns)]} for table in (real, synthetic))
    real_rows, synthetic_rows = data
    report.generate(real_rows, synthetic_rows, {"tables": {"rows": {"columns": kinds}}}, verbose=False)
    scores = {str(row["Property"]): float(row["Score"]) for row in report.get_properties().to_dict("records")}
    return {"column_shapes": scores["Column Shapes"], "pair_trends": scores["Column Pair Trends"]}


def detection_auc(
    real: pd.DataFrame, synthetic: pd.DataFrame, classifier: str = "boosting", *, folds: int = 5, seed: int = 0
) -> float:
    """Cross-validated area under the ROC curve of a classifier that separates both tables: ½ is perfect, 1 is worst.

    A classifier two-sample test (Lopez-Paz & Oquab 2017, arXiv 1610.06545): P(s(synthetic) > s(real)) + ½ P(equal) for
    its score s on held-out rows, averaged over `folds`. Both tables are reduced to the n rows of the smaller one; for equal
    distributions the standard error is about 1/√(6n).

    Args:
        classifier: "boosting", 100 trees of scikit-learn's `HistGradientBoostingClassifier`, sensitive to joint
            distributions; or
            "logistic", a regression on standardised numbers and one-hot categories, as in SDMetrics' LogisticDetection:
            for numbers it is sensitive to little more than means.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: as for `column_shapes`, `classifier` is unknown, or a table has fewer rows than `folds`.
    """
    require("sklearn", "scikit-learn", extra="scores")
    from sklearn.metrics import roc_auc_score  # pyright: ignore[reportMissingImports]
    from sklearn.model_selection import StratifiedKFold  # pyright: ignore[reportMissingImports]

    real, synthetic = _filled(_named(real), _named(synthetic))
    _same_columns(real, synthetic)
    if classifier not in ("boosting", "logistic"):
        raise ValueError(f"classifier={classifier!r} is unknown; give 'boosting' or 'logistic'")
    size = min(len(real), len(synthetic))
    if not 2 <= folds <= size:
        raise ValueError(f"folds={folds} must be at least 2 and at most the {size} rows of the smaller table")
    levels = _levels(real, synthetic)
    rng = np.random.default_rng(seed)
    rows = [table.iloc[np.sort(rng.permutation(len(table))[:size])] for table in (real, synthetic)]
    x = np.concatenate([_encoded(table, levels) for table in rows])
    y = np.repeat([0, 1], size)
    areas = []
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y):
        model = _boosting(levels, x.shape[1], y, seed) if classifier == "boosting" else _logistic(levels, x.shape[1])
        areas.append(roc_auc_score(y[test], model.fit(x[train], y[train]).predict_proba(x[test])[:, 1]))
    return float(np.mean(areas))


def efficacy(train: pd.DataFrame, test: pd.DataFrame, target: str, *, seed: int = 0) -> dict[str, float]:
    """Scores on `test` a model that predicts the column `target`, trained on `train` by 100 steps of boosting.

    With a synthetic `train` and a real `test` this is machine-learning efficacy (Esteban et al. 2017, arXiv 1706.02633;
    Xu et al. 2019, arXiv 1907.00503); compare it with the same for a real `train`.

    Returns:
        `r2` and `rmse` for a numeric target, R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)²; `accuracy` and `macro_f1` for categories,
        the mean over the categories of `test` of 2·TP / (2·TP + FP + FN).

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: as for `column_shapes`, or there is no such column.
    """
    require("sklearn", "scikit-learn", extra="scores")
    from sklearn.metrics import accuracy_score, f1_score, r2_score  # pyright: ignore[reportMissingImports]

    target = str(target)
    train, test = _named(train), _named(test)
    numbers, _ = _same_columns(train, test)
    if target not in train.columns:
        raise ValueError(f"target={target!r} is no column; there are {', '.join(train.columns)}")
    if gone := sum(int(table[target].isna().sum()) for table in (train, test)):
        raise ValueError(f"target={target!r} is missing in {gone} rows; drop them first")
    inputs, test_inputs = _filled(*(table.drop(columns=target) for table in (train, test)))
    levels = _levels(inputs, test_inputs)
    x, x_test = _encoded(inputs, levels), _encoded(test_inputs, levels)
    if target in numbers:
        y, y_test = _column(train, target), _column(test, target)
        predicted = _boosting(levels, x.shape[1], None, seed).fit(x, y).predict(x_test)
        return {"r2": float(r2_score(y_test, predicted)), "rmse": float(np.sqrt(np.mean((predicted - y_test) ** 2)))}
    y, y_test = (table[target].astype(str).to_numpy(dtype=object) for table in (train, test))
    if len(set(y)) == 1:
        predicted = np.full(len(y_test), y[0], dtype=object)
    else:
        predicted = _boosting(levels, x.shape[1], y, seed).fit(x, y).predict(x_test)
    f1 = f1_score(y_test, predicted, labels=sorted(set(y_test)), average="macro", zero_division=0)  # pyright: ignore
    return {"accuracy": float(accuracy_score(y_test, predicted)), "macro_f1": float(f1)}


def closest_records(
    train: pd.DataFrame, holdout: pd.DataFrame, synthetic: pd.DataFrame, *, seed: int = 0
) -> dict[str, float]:
    """Distance to the closest record (DCR): are synthetic rows copies of training rows?

    Distances are Gower's (1971), the mean over columns of |a − b| / range for numbers and 1[a ≠ b] for categories. The
    range is between the 1 % and 99 % quantiles of `train`, which are robust to outliers.

    Returns:
        `median` and `quantile_5` of the distances of synthetic rows to their closest training row, and `copies`, the share
        at distance 0; the same for `holdout` as `holdout_…`; and `closer_to_train`, the share of synthetic rows that are
        closer to `train` than to `holdout`, both reduced to the size of the smaller. Equal distances count ½; independent
        rows have ½ (Platzer & Reutterer 2021, arXiv 2104.00635).

    Raises:
        ValueError: as for `column_shapes`.
    """
    train, holdout, synthetic = _filled(*map(_named, (train, holdout, synthetic)))
    _same_columns(train, holdout)
    _same_columns(train, synthetic)
    levels, unit = _levels(train, holdout, synthetic), _ranges(train)
    seen, fresh, made = (_points(table, levels, unit) for table in (train, holdout, synthetic))
    size = min(len(seen), len(fresh))
    rng = np.random.default_rng(seed)
    part, other = (points[np.sort(rng.permutation(len(points))[:size])] for points in (seen, fresh))
    to_train, to_holdout = _nearest(made, part), _nearest(made, other)
    found = {}
    for prefix, distance in (("", _nearest(made, seen)), ("holdout_", _nearest(fresh, seen))):
        found[f"{prefix}median"] = float(np.median(distance))
        found[f"{prefix}quantile_5"] = float(np.quantile(distance, 0.05))
        found[f"{prefix}copies"] = float(np.mean(distance == 0))
    closer = (to_train < to_holdout) + 0.5 * (to_train == to_holdout)
    return {**found, "closer_to_train": float(closer.mean())}


def hide_cells(table: pd.DataFrame, share: float = 0.4, *, seed: int = 0) -> pd.DataFrame:
    """Chooses cells to hide: a table of bools, round(share · columns) columns of every row, drawn uniformly.

    `table.mask(hidden)` is the input of an imputer.

    Raises:
        ValueError: `share` leaves no column of a row, or hides none.
    """
    count = round(share * table.shape[1])
    if not 0 < count < table.shape[1]:
        raise ValueError(
            f"share={share} of {table.shape[1]} columns is {count}; some must be hidden, and some observed"
        )
    order = np.random.default_rng(seed).random(table.shape).argsort(axis=1).argsort(axis=1)
    return pd.DataFrame(order < count, index=table.index, columns=table.columns)


def imputation_scores(
    truth: pd.DataFrame, hidden: pd.DataFrame, filled: pd.DataFrame | Sequence[pd.DataFrame], train: pd.DataFrame
) -> dict[str, Any]:
    """Scores of filled cells, by one table or by several draws; numbers in units of `train`'s standard deviations.

    Returns:
        - `rmse` of the draws' mean, over all hidden numbers;
        - `accuracy` of the draws' most frequent category, over all hidden categories;
        - `crps`, mean over hidden numbers of E|X − y| − ½ E|X − X'|, and `energy`, mean over rows of E‖X − y‖ − ½ E‖X − X'‖
          in the row's hidden numbers together (Gneiting & Raftery 2007, eq. 21 and 22), where X, X' are two different
          draws, an unbiased estimate. For a single table they are the mean distance from the truth;
        - `columns`: the rmse or accuracy of every column.
        A score of no cells is NaN.

    Raises:
        ValueError: the tables differ in shape or columns, or a filled table, the truth or `train` lacks a cell.
    """
    draws = [_named(table) for table in ([filled] if isinstance(filled, pd.DataFrame) else filled)]
    truth, hidden, train = map(_named, (truth, hidden, train))
    for table in (truth, train, *draws):
        _check_complete(table)
    numbers, categories = _same_columns(truth, train)
    for table in draws:
        if list(table.columns) != list(truth.columns) or len(table) != len(truth):
            raise ValueError(f"filled has the shape {table.shape} or other columns than the truth, {truth.shape}")
        _same_columns(truth, table)
    if not draws or hidden.shape != truth.shape:
        raise ValueError(f"hidden has the shape {hidden.shape} and the truth {truth.shape}; {len(draws)} filled tables")
    unit = {name: float(_column(train, name).std()) or 1.0 for name in numbers}
    error = np.stack([[(_column(draw, n) - _column(truth, n)) / unit[n] for n in numbers] for draw in draws])  # [M,C,N]
    masks = {name: hidden[name].to_numpy(dtype=bool) for name in truth.columns}
    where = np.stack([masks[name] for name in numbers]) if numbers else np.zeros((0, len(truth)), bool)
    squared = error.mean(0) ** 2 if numbers else np.zeros((0, len(truth)))
    columns = {name: _root(squared[i][where[i]]) for i, name in enumerate(numbers)}
    hits = {name: _votes(truth, draws, name)[masks[name]] for name in categories}
    columns |= {name: _mean(hit) for name, hit in hits.items()}
    scores = {"rmse": _root(squared[where]), "accuracy": _mean(np.concatenate([np.zeros(0), *hits.values()]))}
    if not where.any():
        return {**scores, "crps": float("nan"), "energy": float("nan"), "columns": columns}
    crps = _energy(error[:, where][..., None])
    rows = _energy(np.where(where, error, 0).transpose(0, 2, 1)[:, where.any(0)])
    return {**scores, "crps": _mean(crps), "energy": _mean(rows), "columns": columns}


def _same_columns(real: pd.DataFrame, synthetic: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Checks both tables and returns their kinds of columns."""
    kinds, others = column_kinds(real), column_kinds(synthetic)
    if [set(kind) for kind in kinds] != [set(kind) for kind in others]:
        raise ValueError(
            f"the tables have different columns: numbers {kinds[0]} and {others[0]}, categories {kinds[1]} and {others[1]}"
        )
    for table in (real, synthetic):
        if len(table) < 2:
            raise ValueError(f"a table has {len(table)} rows; at least 2 are needed")
    return kinds


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """The table with strings for names, and dates as numbers of days.

    Raises:
        ValueError: two columns then have one name.
    """
    table = table.set_axis(column_names(table.columns), axis=1)
    dates = [name for name in table.columns if pd.api.types.is_datetime64_any_dtype(table[name].dtype)]
    days = {name: table[name].dt.tz_localize(None) - pd.Timestamp("1970-01-01") for name in dates}
    return table.assign(**{name: passed / pd.Timedelta("1D") for name, passed in days.items()})


def _filled(*tables: pd.DataFrame) -> list[pd.DataFrame]:
    """The tables with medians of the first one for missing numbers, and a category that tells which were missing."""
    found = list(tables)
    for name in column_kinds(tables[0])[0]:
        if all(name in table.columns for table in tables) and any(table[name].isna().any() for table in tables):
            observed = tables[0][name].dropna()
            middle = float(np.median(observed)) if len(observed) else 0.0
            for place, table in enumerate(found):
                gone = {f"{name} is missing": table[name].isna(), name: table[name].fillna(middle)}
                found[place] = table.assign(**gone)
    return found


def _check_complete(table: pd.DataFrame) -> None:
    missing = {name: int(cells.isna().sum()) for name, cells in table.items()}
    if any(missing.values()):
        counts = {name: count for name, count in missing.items() if count}
        raise ValueError(f"cells are missing: {counts}; fill or drop them first")


def _column(table: pd.DataFrame, name: str) -> np.ndarray:
    return table[name].to_numpy(dtype=np.float64)


def _levels(*tables: pd.DataFrame) -> Levels:
    return {name: _values(name, *tables) for name in column_kinds(tables[0])[1]}


def _values(name: str, *tables: pd.DataFrame) -> list[str]:
    return sorted(set().union(*(table[name].astype(str) for table in tables)))


def _codes(table: pd.DataFrame, name: str, levels: Levels) -> np.ndarray:
    position = {level: code for code, level in enumerate(levels[name])}
    return np.array([position[value] for value in table[name].astype(str)])


def _encoded(table: pd.DataFrame, levels: Levels) -> np.ndarray:
    """Numbers, then codes of categories, [rows, columns]."""
    numbers = sorted(column_kinds(table)[0])
    columns = [_column(table, name) for name in numbers] + [_codes(table, name, levels) for name in levels]
    return np.stack(columns, axis=1).astype(np.float64)


def _boosting(levels: Levels, columns: int, classes: np.ndarray | None, seed: int) -> Any:
    """Boosted trees whose last columns are categorical; a column of more than 255 categories is split like a number."""
    from sklearn.ensemble import (  # pyright: ignore[reportMissingImports]
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
    )

    few = [len(values) <= 255 for values in levels.values()]
    categories = [False] * (columns - len(levels)) + few
    kind: Any = HistGradientBoostingRegressor if classes is None else HistGradientBoostingClassifier
    return kind(categorical_features=categories, early_stopping=False, random_state=seed)


def _logistic(levels: Levels, columns: int) -> Any:
    from sklearn.compose import make_column_transformer  # pyright: ignore[reportMissingImports]
    from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingImports]
    from sklearn.pipeline import make_pipeline  # pyright: ignore[reportMissingImports]
    from sklearn.preprocessing import OneHotEncoder, StandardScaler  # pyright: ignore[reportMissingImports]

    numbers = columns - len(levels)
    codes: Any = [list(range(len(values))) for values in levels.values()]
    split = make_column_transformer(
        (StandardScaler(), list(range(numbers))), (OneHotEncoder(categories=codes), list(range(numbers, columns)))
    )
    return make_pipeline(split, LogisticRegression(max_iter=1000))


def _kolmogorov(first: np.ndarray, second: np.ndarray) -> float:
    first, second = (np.nan_to_num(sample, nan=-np.inf, posinf=np.inf, neginf=-np.inf) for sample in (first, second))
    at = np.concatenate([first, second])
    below = [np.searchsorted(np.sort(sample), at, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(below[0] - below[1]).max())


def _total_variation(first: np.ndarray, second: np.ndarray) -> float:
    size = 1 + max(int(first.max()), int(second.max()))
    frequencies = [np.bincount(codes, minlength=size) / len(codes) for codes in (first, second)]
    return float(np.abs(frequencies[0] - frequencies[1]).sum() / 2)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    both = ~(np.isnan(first) | np.isnan(second))
    first, second = first[both], second[both]
    if not len(first) or np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _ranges(table: pd.DataFrame) -> dict[str, float]:
    """The range between the 1 % and 99 % quantiles, or between the extremes if those are equal; 1 for a constant column."""
    found = {}
    for name in column_kinds(table)[0]:
        column = _column(table, name)
        found[name] = float(np.ptp(np.quantile(column, [0.01, 0.99])) or np.ptp(column)) or 1.0
    return found


def _points(table: pd.DataFrame, levels: Levels, unit: Mapping[str, float]) -> np.ndarray:
    """Points whose distance in the 1-norm is Gower's: a category of another level differs in two entries, by ½ each."""
    parts = [_column(table, name)[:, None] / unit[name] for name in sorted(unit)]
    parts += [np.eye(len(levels[name]))[_codes(table, name, levels)] / 2 for name in levels]
    return np.concatenate(parts, axis=1) / (len(unit) + len(levels))


def _nearest(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    others = torch.from_numpy(reference)
    chunks = torch.from_numpy(points).split(max(1, CHUNK // len(reference)))
    return torch.cat([torch.cdist(chunk, others, p=1).amin(1) for chunk in chunks]).numpy()


def _votes(truth: pd.DataFrame, draws: Sequence[pd.DataFrame], name: str) -> np.ndarray:
    """Whether the most frequent category of the draws is true; ties go to the first in alphabetical order."""
    levels = {name: _values(name, truth, *draws)}
    counts = np.zeros((len(truth), len(levels[name])))
    for draw in draws:
        counts[np.arange(len(truth)), _codes(draw, name, levels)] += 1
    return counts.argmax(1) == _codes(truth, name, levels)


def _energy(error: np.ndarray) -> np.ndarray:
    """E‖X‖ − ½ E‖X − X'‖ for errors [draws, cases, columns], over pairs of different draws."""
    score = np.linalg.norm(error, axis=-1).mean(0)
    count = len(error)
    for first, second in combinations(range(count), 2):
        score -= np.linalg.norm(error[first] - error[second], axis=-1) / (count * (count - 1))
    return score


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _root(values: np.ndarray) -> float:
    return float(np.sqrt(_mean(values)))
