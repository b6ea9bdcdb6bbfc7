from __future__ import annotations

import math
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest

from benchmarks.scores.tables import (
    closest_records,
    column_kinds,
    column_shapes,
    detection_auc,
    efficacy,
    hide_cells,
    imputation_scores,
    pair_trends,
    quality_report,
)

NAN = float("nan")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def mixed(rows: int, seed: int) -> pd.DataFrame:
    """b follows a, kind is its sign, tone is alone."""
    a = rng(seed).normal(size=rows)
    b = a + 0.1 * rng(seed + 1000).normal(size=rows)
    tone = rng(seed + 2000).choice(["dark", "light"], rows, p=[0.3, 0.7])
    return pd.DataFrame({"a": a, "kind": np.where(a > 0, "up", "down"), "b": b, "tone": tone})


def test_column_kinds__numbers_and_categories() -> None:
    table = pd.DataFrame(
        {"i": [1, 2], "b": [True, False], "f": [0.5, 1.0], "s": ["x", "y"], "c": pd.Categorical([1, 2])}
    )
    assert column_kinds(table) == (["i", "f"], ["b", "s", "c"])


def test_column_shapes__of_known_distributions() -> None:
    real = pd.DataFrame({"n": np.arange(10), "same": np.arange(10), "c": ["u"] * 5 + ["v"] * 5, "new": ["u"] * 10})
    synthetic = pd.DataFrame(
        {"new": ["w"] * 10, "c": ["u"] * 8 + ["v"] * 2, "same": np.arange(10.0)[::-1], "n": np.arange(10) + 3.0}
    )
    # F and G of 0 … 9 and 3 … 12 are 0.3 apart; ½(|0.5 − 0.8| + |0.5 − 0.2|) = 0.3
    assert column_shapes(real, synthetic) == pytest.approx({"n": 0.7, "same": 1.0, "c": 0.7, "new": 0.0})


def test_pair_trends__of_known_distributions() -> None:
    n = np.arange(100.0)
    kind = np.where(n < 50, "low", "high")
    real = pd.DataFrame({"n": n, "m": n, "flat": 1.0, "kind": kind, "copy": kind})
    synthetic = real.assign(m=-n, kind=kind[::-1])
    assert pair_trends(real, real) == pytest.approx(dict.fromkeys(pair_trends(real, real), 1.0))
    found = pair_trends(real, synthetic)
    assert found["n", "m"] == pytest.approx(0)  # ρ = 1 and −1
    assert found["n", "flat"] == 1  # a constant has no correlation
    assert found["kind", "copy"] == pytest.approx(0)  # no pair of one table is in the other
    assert found["n", "kind"] == pytest.approx(0)
    assert found["flat", "kind"] == found["flat", "copy"] == found["n", "copy"] == 1
    # A quarter of all rows move to the other kind.
    moved = pair_trends(real, real.assign(kind=np.where(n < 25, "high", kind)))
    assert moved["kind", "copy"] == pytest.approx(0.75)
    assert moved["n", "kind"] == pytest.approx(0.75)


@pytest.mark.slow
def test_column_shapes_and_pair_trends__equal_those_of_sdmetrics() -> None:
    pairs = pytest.importorskip("sdmetrics.column_pairs")
    columns = pytest.importorskip("sdmetrics.single_column")
    real, synthetic = mixed(500, 1), mixed(400, 2).assign(tone="dark", b=rng(3).normal(size=400))
    shapes, trends = column_shapes(real, synthetic), pair_trends(real, synthetic)
    for name in "a", "b":
        assert shapes[name] == pytest.approx(columns.KSComplement.compute(real[name], synthetic[name]))
    for name in "kind", "tone":
        assert shapes[name] == pytest.approx(columns.TVComplement.compute(real[name], synthetic[name]))
    for kind, pair in ((pairs.CorrelationSimilarity, ["a", "b"]), (pairs.ContingencySimilarity, ["kind", "tone"])):
        assert trends[pair[0], pair[1]] == pytest.approx(kind.compute(real[pair], synthetic[pair]))
    report = quality_report(real, synthetic)
    assert report["column_shapes"] == pytest.approx(np.mean(list(shapes.values())))


def test_quality_report__depends_on_outliers() -> None:
    """The report cuts each table between its own extremes: one row of 2,000 puts all others of its table into one bin."""
    pytest.importorskip("sdmetrics")
    real, synthetic = mixed(2000, 1), mixed(2000, 2)
    synthetic.loc[0, "a"] = 1000.0
    trends = pair_trends(real, synthetic)
    assert min(score for pair, score in trends.items() if pair != ("a", "b")) > 0.9
    mixed_pairs = sum(len(set(pair) & {"kind", "tone"}) == 1 for pair in trends)
    assert quality_report(real, synthetic)["pair_trends"] < np.mean(list(trends.values())) - 0.5 / mixed_pairs


@pytest.mark.parametrize("classifier", ["boosting", "logistic"])
def test_detection_auc__is_half_for_equal_distributions(classifier: str) -> None:
    pytest.importorskip("sklearn")
    area = detection_auc(mixed(1500, 1), mixed(1000, 2), classifier)
    assert abs(area - 0.5) < 4 / math.sqrt(6 * 1000)  # four standard errors


@pytest.mark.parametrize("classifier", ["boosting", "logistic"])
def test_detection_auc__detects_a_shift_or_a_new_category(classifier: str) -> None:
    pytest.importorskip("sklearn")
    real, synthetic = mixed(400, 1), mixed(400, 2)
    assert detection_auc(real, synthetic.assign(b=synthetic["b"] + 6), classifier) > 0.99
    assert detection_auc(real, synthetic.assign(tone="grey"), classifier) > 0.99


def test_detection_auc__only_boosting_detects_lost_dependence() -> None:
    pytest.importorskip("sklearn")
    real, synthetic = mixed(1000, 1), mixed(1000, 2)
    synthetic["b"] = rng().permutation(synthetic["b"])
    assert detection_auc(real, synthetic, "boosting") > 0.9
    assert abs(detection_auc(real, synthetic, "logistic") - 0.5) < 4 / math.sqrt(6 * 1000)


def test_detection_auc__seed_and_errors() -> None:
    pytest.importorskip("sklearn")
    real, synthetic = mixed(60, 1), mixed(90, 2)
    areas = [detection_auc(real, synthetic, "logistic", seed=seed) for seed in (0, 0, 1)]
    assert areas[0] == areas[1] != areas[2]
    with pytest.raises(ValueError, match="classifier='forest'"):
        detection_auc(real, synthetic, "forest")
    with pytest.raises(ValueError, match="folds=99"):
        detection_auc(real, synthetic, folds=99)


def test_efficacy__of_real_rows_and_of_noise() -> None:
    pytest.importorskip("sklearn")
    train, test = mixed(800, 1), mixed(400, 2)
    noise = train.assign(b=rng().permutation(train["b"]), kind=rng(1).permutation(train["kind"]))
    real = efficacy(train, test, "b")
    assert real["r2"] > 0.95
    # R² = 1 − rmse² / variance, and b is a up to noise of deviation 0.1
    assert real["r2"] == pytest.approx(1 - real["rmse"] ** 2 / test["b"].var(ddof=0))
    assert 0.1 < real["rmse"] < 0.25
    assert efficacy(noise, test, "b")["r2"] < 0.1
    found = efficacy(train, test, "kind")
    assert found["accuracy"] > 0.98
    assert found["macro_f1"] > 0.98
    assert abs(efficacy(noise, test, "kind")["accuracy"] - 0.5) < 0.15  # four standard errors of a guess are 0.1


def test_efficacy__of_a_single_class_is_its_share() -> None:
    pytest.importorskip("sklearn")
    test = pd.DataFrame({"x": np.arange(4.0), "y": ["u", "u", "u", "v"]})
    found = efficacy(test.assign(y="u"), test, "y")
    assert found == pytest.approx({"accuracy": 0.75, "macro_f1": (6 / 7 + 0) / 2})  # F1 of u: 2·3 / (2·3 + 1)
    with pytest.raises(ValueError, match="target='z' is no column; there are x, y"):
        efficacy(test, test, "z")


def test_closest_records__by_hand() -> None:
    n = np.arange(101.0)  # quantiles of 1 % and 99 % are 1 and 99: the unit is 98
    train = pd.DataFrame({"n": n, "c": "u"})
    holdout = pd.DataFrame({"n": n + 0.49, "c": "u"})
    synthetic = pd.DataFrame({"n": n, "c": "v"})
    found = closest_records(train, holdout, synthetic)
    assert found["median"] == found["quantile_5"] == pytest.approx(1 / 2)  # one of two columns differs
    assert found["holdout_median"] == pytest.approx(0.49 / 98 / 2)
    assert found["copies"] == found["holdout_copies"] == 0
    assert found["closer_to_train"] == 1  # at 0 and 0.49 / 196, beside the category


def test_closest_records__copies_have_distance_0() -> None:
    train, holdout = mixed(300, 1), mixed(300, 2)
    found = closest_records(train, holdout, train.sample(200, random_state=0))
    assert (found["median"], found["quantile_5"], found["copies"], found["closer_to_train"]) == (0, 0, 1, 1)
    assert found["holdout_median"] > 0
    assert closest_records(train, train, train)["closer_to_train"] == 0.5  # equal distances


def test_closest_records__independent_rows_are_as_close_to_both() -> None:
    found = closest_records(mixed(4000, 1), mixed(1000, 2), mixed(2000, 3))
    # Rows share neighbours, which are of one set or the other: as if there were 1,000 independent ones at most.
    assert abs(found["closer_to_train"] - 0.5) < 4 * math.sqrt(0.25 / 1000)
    assert found["median"] == pytest.approx(found["holdout_median"], rel=0.2)


def test_hide_cells__hides_the_same_number_in_every_row() -> None:
    table = pd.DataFrame(np.zeros((5000, 5)), columns=list("abcde"))
    hidden = hide_cells(table, 0.4, seed=1)
    assert (hidden.sum(axis=1) == 2).all()
    deviation = math.sqrt(0.4 * 0.6 / 5000)
    assert (abs(hidden.mean() - 0.4) < 4.5 * deviation).all()
    assert hidden.equals(hide_cells(table, 0.4, seed=1))
    assert not hidden.equals(hide_cells(table, 0.4, seed=2))
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"share={share}"):
            hide_cells(table, share)


TRUTH = pd.DataFrame({"a": [0.0, 2.0], "b": [0.0, 10.0], "c": ["u", "v"]})  # deviations 1 and 5
HIDDEN = pd.DataFrame({"a": [True, False], "b": [True, False], "c": [True, True]})


def test_imputation_scores__of_one_filled_table() -> None:
    filled = TRUTH.assign(a=[3.0, 2.0], b=[20.0, 10.0], c=["u", "u"])  # 3 and 4 deviations from the truth
    found = imputation_scores(TRUTH, HIDDEN, filled, TRUTH)
    assert found.pop("columns") == pytest.approx({"a": 3, "b": 4, "c": 0.5})
    assert found == pytest.approx({"rmse": math.sqrt(12.5), "accuracy": 0.5, "crps": 3.5, "energy": 5})


def test_imputation_scores__observed_cells_do_not_count() -> None:
    filled = TRUTH.assign(a=[0.0, 9.0], b=[0.0, -9.0])
    found = imputation_scores(TRUTH, HIDDEN, filled, TRUTH)
    assert found.pop("columns") == {"a": 0, "b": 0, "c": 1}
    assert found == {"rmse": 0, "accuracy": 1, "crps": 0, "energy": 0}


def test_imputation_scores__of_draws() -> None:
    draws = [TRUTH.assign(a=[1.0, 2.0], c="v"), TRUTH.assign(a=[-1.0, 2.0]), TRUTH.assign(a=[0.0, 2.0])]
    found = imputation_scores(TRUTH, HIDDEN, draws, TRUTH)
    assert found["columns"] == {"a": 0, "b": 0, "c": 1}  # the mean of the draws, the most frequent of the draws
    # E|X − y| = 2/3 and E|X − X'| = (2 + 1 + 1) / 3 of pairs of different draws; of b both are 0.
    assert found["crps"] == pytest.approx((2 / 3 - 1 / 2 * 4 / 3) / 2, abs=1e-12)
    votes = [TRUTH.assign(c=c) for c in (["v", "v"], ["v", "u"], ["u", "u"])]
    assert imputation_scores(TRUTH, HIDDEN, votes, TRUTH)["accuracy"] == 0


def test_imputation_scores__crps_and_energy_are_unbiased() -> None:
    """Of N(0, 1) at y ~ N(0, 1) the CRPS is 1/√π; the energy score of two such numbers is √π/2 = E‖X − X'‖ / 2."""
    rows = 20_000
    train = pd.DataFrame({"a": [-1.0, 1.0], "b": [-1.0, 1.0]})  # deviation 1
    truth, *draws = (pd.DataFrame(rng(seed).normal(size=(rows, 2)), columns=["a", "b"]) for seed in range(4))
    found = imputation_scores(truth, truth.notna(), draws, train)
    # E|X − y| − ½ E|X − X'| = ½ E|X − X'| with X − X' ~ N(0, 2); single rows deviate by less than 0.6 and 0.7
    assert found["crps"] == pytest.approx(1 / math.sqrt(math.pi), abs=4 * 0.6 / math.sqrt(2 * rows))
    assert found["energy"] == pytest.approx(math.sqrt(math.pi) / 2, abs=4 * 0.7 / math.sqrt(rows))


def test_imputation_scores__without_cells_are_nan() -> None:
    only = HIDDEN.assign(a=False, b=False)
    found = imputation_scores(TRUTH, only, TRUTH, TRUTH)
    assert found["accuracy"] == 1
    assert all(math.isnan(found[score]) for score in ("rmse", "crps", "energy"))
    found = imputation_scores(TRUTH[["c"]], HIDDEN[["c"]], TRUTH[["c"]], TRUTH[["c"]])
    assert found["columns"] == {"c": 1}
    assert math.isnan(found["rmse"])
    assert math.isnan(imputation_scores(TRUTH, HIDDEN.assign(c=False), TRUTH, TRUTH)["accuracy"])


def test_table_scores__tables_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"\['a', 'b'\].*\['a'\]"):
        column_shapes(TRUTH, TRUTH[["a", "c"]])
    with pytest.raises(ValueError, match=r"\['a', 'b'\].*\['a', 'b', 'c'\]"):
        pair_trends(TRUTH, TRUTH.assign(c=1))
    with pytest.raises(ValueError, match=r"target='a' is missing in 1 rows"):
        efficacy(TRUTH, TRUTH.assign(a=[NAN, 1.0]), "a")
    with pytest.raises(ValueError, match="1 rows"):
        column_shapes(TRUTH, TRUTH[:1])
    with pytest.raises(ValueError, match=r"\{'a': 1, 'b': 1, 'c': 2\}"):
        imputation_scores(TRUTH, HIDDEN, pd.DataFrame(TRUTH.mask(HIDDEN)), TRUTH)
    with pytest.raises(ValueError, match=r"filled has the shape \(4, 3\)"):
        imputation_scores(TRUTH, HIDDEN, pd.concat([TRUTH, TRUTH]), TRUTH)
    with pytest.raises(ValueError, match="0 filled tables"):
        imputation_scores(TRUTH, HIDDEN, [], TRUTH)


def test_table_scores__a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.datasets.packages.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"pip install scikit-learn, or: pip install 'gm_discrete\[scores\]'"):
        detection_auc(TRUTH, TRUTH)
    with pytest.raises(ImportError, match="pip install sdmetrics"):
        quality_report(TRUTH, TRUTH)


def test_table_scores__missing_cells_are_a_category_of_their_own() -> None:
    rows = {"a": [1.0, 2.0, 3.0, 4.0] * 10, 0: ["x", "y"] * 20, "day": pd.date_range("2024-01-01", periods=40)}
    real = pd.DataFrame(rows)
    holes = real.assign(**{"a": [NAN, 2.0, 3.0, NAN] * 10}).astype({"a": float})
    holes[0] = [None, "y"] * 20
    assert column_shapes(holes, holes) == {"a": 1.0, "day": 1.0, "0": 1.0}
    shapes = column_shapes(real, holes)
    assert shapes["a"] == pytest.approx(0.5)  # half of the numbers are missing, below all others
    assert shapes["0"] == pytest.approx(0.5)
    assert set(pair_trends(holes, holes).values()) == {1.0}
    assert pair_trends(real, holes)["a", "0"] < 1
    assert closest_records(holes, holes, holes)["copies"] == 1.0
    assert closest_records(real, real, holes)["copies"] == 0.25  # the rows without missing cells
    if find_spec("sklearn") is not None:
        assert detection_auc(holes, holes) <= 0.5
        assert efficacy(holes, holes, "day").keys() == {"r2", "rmse"}
