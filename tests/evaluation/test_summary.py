"""What is said of a table of scores, on tables whose answers are known."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scdfm.errors import ConfigError, DataError
from scdfm.evaluation.summary import calibration, differences, harm, interval, position, stratified, summarise


def table(values: dict[str, dict[str, list[float]]], conditions: list[str] | None = None) -> pd.DataFrame:
    """Long table of metric -> model -> values."""
    rows = []
    for metric, models in values.items():
        for model, scores in models.items():
            names = conditions or [f"c{k}" for k in range(len(scores))]
            pairs = enumerate(zip(names, scores, strict=True))
            rows += [(model, name, metric, value, 10 * (i + 1)) for i, (name, value) in pairs]
    return pd.DataFrame(rows, columns=["model", "condition", "metric", "value", "n_cells"])


def test_summary_counts_what_is_undefined():
    summary = summarise(table({"l2": {"model": [1.0, 2.0, 2.0, 3.0, 7.0, np.nan]}})).iloc[0]
    assert summary[["mean", "median", "n", "n_undefined"]].tolist() == [3.0, 2.0, 5, 1]
    assert summary["low"] < 3 < summary["high"]
    nothing = summarise(table({"l2": {"model": [np.nan, np.nan]}})).iloc[0]
    assert nothing["n_undefined"] == 2
    assert nothing[["mean", "median", "low", "high"]].isna().all()


def test_interval_repeats_itself_and_needs_spread():
    values = np.random.default_rng(0).gamma(2, 1, 25)
    assert interval(values) == interval(values)
    assert interval(values, seed=1) != interval(values)
    assert interval(np.full(10, 0.5)) == (0.5, 0.5)
    assert np.isnan(interval(np.full(9, 0.3))).all()  # a zero width would claim certainty
    assert np.isnan(interval(np.array([]))).all()
    assert np.isnan(interval(np.array([1.0, 2.0, 4.0, 5.0]))).all()
    assert np.isfinite(interval(np.array([1.0, 2.0, 4.0, 5.0, 3.0]))).all()


def test_interval_of_values_of_mean_zero_seldom_leaves_zero_out():
    """Of eight values with long tails; the bootstrap-t alone leaves it out in 9 % of draws."""
    draws = np.random.default_rng(4).standard_t(3, (800, 8))
    ends = [interval(values, n_bootstrap=300) for values in draws]
    clear = np.mean([low > 0 or high < 0 for low, high in ends])
    assert clear < 0.05 + 2 * np.sqrt(0.05 * 0.95 / 800)


def test_intervals_lie_where_their_metric_can():
    rng = np.random.default_rng(0)
    near = {"l2": rng.gamma(0.2, 1, 6), "ds": 1 - rng.gamma(0.2, 0.1, 6), "pearson_delta": 1 - rng.gamma(0.2, 0.1, 6)}
    free = {metric: interval(values) for metric, values in near.items()}
    assert free["l2"][0] < 0
    assert min(free["ds"][1], free["pearson_delta"][1]) > 1  # or this tests nothing
    found = summarise(table({metric: {"model": list(values)} for metric, values in near.items()})).set_index("metric")
    assert found.loc["l2", "low"] == 0
    assert found.loc["l2", "high"] == free["l2"][1]
    assert found.loc[["ds", "pearson_delta"], "high"].tolist() == [1, 1]


def test_tables_put_together_count_a_reference_once():
    values = {"no change": [1.0, 2, 3, 4, 5], "ceiling": [0.0, np.nan, 1, 1, 0]}
    one, two = (table({"l2": values | {name: [0.5, 1, 2, 2, 3]}}) for name in ("first", "second"))
    both = summarise(pd.concat([one, two])).set_index("model")
    pd.testing.assert_frame_equal(both.drop(index="second"), summarise(one).set_index("model").loc[both.index[:3]])
    assert set(differences(pd.concat([one, two]))["model"]) == {"first", "second"}
    two.loc[two["model"] == "no change", "value"] += 1
    with pytest.raises(DataError, match="model 'no change' has two values of l2 for condition 'c0'"):
        summarise(pd.concat([one, two]))


def test_differences_against_a_named_model():
    scores = table({"l2": {"a": [1.0, 2, 3, 4, 5, 6], "b": [2.0, 3, 4.5, 5, 6, 7], "ridge": [0.0] * 6}})
    found = differences(scores, against="b").set_index("model")
    assert found["baseline"].tolist() == ["b"]
    assert found.loc["a", "improvement"] == pytest.approx(6.5 / 6)
    assert 0.8 < found.loc["a", "low"] < found.loc["a", "high"]
    with pytest.raises(ConfigError, match="against 'c': expected a model of the table"):
        differences(scores, against="c")


@pytest.mark.parametrize("n", [8, 37])
def test_interval_holds_its_level(n):
    """Of 95% intervals of the mean of skewed values, about 95% hold the true mean."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        low, high = interval(rng.gamma(1, 1, n), n_bootstrap=300)
        held += low <= 1 <= high
    assert 0.95 - 3.5 * np.sqrt(0.95 * 0.05 / 400) - 0.02 * (n < 10) < held / 400 < 0.99


def test_interval_is_the_wider_of_the_bootstrap_t_and_students():
    """Against a plain loop over the same resamples, and scipy's interval."""
    from scdfm.seeds import numpy_rng

    values = np.random.default_rng(1).gamma(1, 1, 12)
    draws = numpy_rng(0, "bootstrap", 12).integers(0, 12, (200, 12))
    error = values.std(ddof=1) / np.sqrt(12)
    t = [(d.mean() - values.mean()) / (d.std(ddof=1) / np.sqrt(12)) for d in values[draws]]
    low, high = values.mean() - error * np.quantile(t, 0.975), values.mean() - error * np.quantile(t, 0.025)
    plain = stats.t.interval(0.95, 11, values.mean(), error)
    assert low > plain[0]  # skewed to the right: each rule gives one end
    assert high > plain[1]
    np.testing.assert_allclose(interval(values, n_bootstrap=200), (plain[0], high), rtol=1e-12)


def test_position_between_the_worst_acceptable_and_the_ceiling():
    found = position(
        table(
            {
                "l2": {"model": [4.0, 6.0], "no change": [11, 13], "training mean": [9, 11], "ceiling": [1, 3]},
                "ds": {
                    "model": [0.9, 0.9],
                    "no change": [0.5, 0.5],
                    "training mean": [0.4, 0.4],
                    "ceiling": [1.0, 1.0],
                },
                "mae": {"model": [1.0, 1.0], "no change": [2, 2], "training mean": [3, 3], "ceiling": [2, 2]},
            }
        )
    ).set_index(["model", "metric"])
    row = found.loc[("model", "l2")]
    assert (row["worst"], row["worst_value"], row["ceiling"], row["n"]) == ("training mean", 10, 2, 2)
    assert row["percent"] == pytest.approx(100 * (10 - 5) / (10 - 2))
    assert found.loc[("model", "ds"), "worst"] == "no change"
    assert found.loc[("model", "ds"), "percent"] == pytest.approx(80)
    assert np.isnan(found.loc[("model", "mae"), "percent"])  # the ceiling is no better than no change


def test_position_uses_conditions_where_all_are_defined():
    nan = np.nan
    models = {"model": [0.5, 0.9], "no change": [nan, nan], "training mean": [0.1, nan], "ceiling": [0.9, 0.9]}
    found = position(table({"pearson_delta": models}))
    row = found[found["model"] == "model"].iloc[0]
    assert (row["worst"], row["n"]) == ("training mean", 1)
    assert row["percent"] == pytest.approx(50)


def test_differences_are_paired_and_to_the_hardest_baseline():
    rng = np.random.default_rng(0)
    difficulty = rng.gamma(2, 2, 20)  # shared by all models: pairing removes it
    scores = {
        "model": difficulty + 1,
        "ridge": difficulty + 1.5 + 0.01 * rng.normal(size=20),
        "additive": np.where(np.arange(20) < 4, difficulty, np.nan),  # best, but where few conditions are
        "no change": difficulty + 9,
        "ceiling": difficulty * 0,
    }
    found = differences(table({"l2": {k: list(v) for k, v in scores.items()}})).iloc[0]
    assert (found["model"], found["baseline"], found["n"]) == ("model", "ridge", 20)
    assert found["improvement"] == pytest.approx(0.5, abs=0.02)
    assert 0.48 < found["low"] < found["improvement"] < found["high"] < 0.52
    higher = differences(table({"ds": {"model": [0.4, 0.5], "no change": [0.5, 0.7]}})).iloc[0]
    assert higher["improvement"] == pytest.approx(-0.15)


def test_the_prior_is_no_baseline_but_can_be_asked_for():
    scores = {
        "l2": {"model": [1.0, 2.0, 3.0], "ridge": [2.0, 3.0, 5.0], "prior": [0.5, 2.0, 3.1]},
        "ds": {"model": [0.5, 0.5, 0.9], "prior": [0.4, 0.5, np.nan]},
    }
    found = differences(table(scores)).set_index("metric")
    assert list(found["baseline"]) == ["ridge"]
    beside = differences(table(scores), against="prior").set_index("metric")
    assert set(beside["baseline"]) == {"prior"}
    assert beside.loc["l2", "improvement"] == pytest.approx((-0.5 + 0 + 0.1) / 3)
    assert beside.loc["ds", ["improvement", "n"]].tolist() == [pytest.approx(0.05), 2]
    with pytest.raises(ConfigError, match=r"against 'priors': expected a model of the table \(model, ridge, prior\)"):
        differences(table(scores), against="priors")


def test_harm_is_the_share_worse_than_no_change():
    found = harm(
        table(
            {
                "l2": {"model": [1.0, 3.0, 2.0, np.nan], "no change": [2.0, 2.0, 2.0, 2.0]},
                "pearson_delta": {"model": [0.5, -0.1, np.nan, 0.2], "no change": [np.nan] * 4},
            }
        )
    ).set_index("metric")
    assert found.loc["l2", ["share", "n"]].tolist() == [1 / 3, 3]
    assert found.loc["pearson_delta", ["share", "n"]].tolist() == [1 / 3, 3]


def test_strata():
    conditions = ["A", "D", "A+B", "A+D", "D+E", "A+B+D"]
    scores = table({"l2": {"model": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}}, conditions)
    sizes = dict(zip(conditions, [6, 5, 4, 3, 2, 1], strict=True))
    scores.attrs = {"training_conditions": ["B", "A+C"], "effect_size": sizes}
    by_targets = stratified(scores, "targets").set_index("stratum")["mean"].to_dict()
    assert by_targets == {
        "single, 1 of 1 seen": 1,
        "single, 0 of 1 seen": 2,
        "double, 2 of 2 seen": 3,
        "double, 1 of 2 seen": 4,
        "double, 0 of 2 seen": 5,
        "triple, 2 of 3 seen": 6,
    }
    scores.attrs["scored_in_training"] = ["D"]  # what a rule does not learn from, a model may have
    assert "single, 1 of 1 seen" in set(stratified(scores[scores["condition"] == "D"], "targets")["stratum"])
    effects = stratified(scores, "effect").set_index("stratum")["mean"].to_dict()
    assert effects == {"1 low effect": 5.5, "2 middle effect": 3.5, "3 high effect": 1.5}
    cells = stratified(scores, "cells").set_index("stratum")["mean"].to_dict()
    assert cells == {"1 low cells": 1.5, "2 middle cells": 3.5, "3 high cells": 5.5}
    with pytest.raises(ConfigError, match="strata by 'age': expected targets, effect or cells"):
        stratified(scores, "age")
    scores.attrs = {}
    with pytest.raises(DataError, match="its attrs lack 'effect_size'"):
        stratified(scores, "effect")


@pytest.mark.parametrize("function", [summarise, position, differences, harm])
def test_other_tables_are_refused(function):
    with pytest.raises(DataError, match="column 'condition' is missing"):
        function(pd.DataFrame({"model": ["a"]}))
    with pytest.raises(DataError, match="no rows"):
        function(table({}))


def test_calibration_mutes_what_cannot_tell():
    """Of a metric that ranks the duplicate above the mean it says how far; of noise it says that it cannot tell."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(30):
        c = f"A{k}"
        means = {"no change": 2.0, "training mean": 1.5, "duplicate": 0.3, "ceiling": 0.2, "model": 1.0}
        for model, mean in means.items():
            rows.append((model, c, "mse", mean + rng.normal(0, 0.1), 9))
            rows.append((model, c, "l2", rng.uniform(1, 2), 9))  # tells nothing
            value = np.nan if model == "no change" else {"training mean": 0.6}.get(model, 0.61)
            rows.append((model, c, "pearson_delta", value + rng.normal(0, 0.003), 9))
            value = np.nan if model in ("no change", "training mean") else 0.7
            rows.append((model, c, "pearson_delta_hat", value + rng.normal(0, 0.01), 9))
            rows.append((model, c, "energy", np.nan if model == "duplicate" else mean, 9))
    table = pd.DataFrame(rows, columns=["model", "condition", "metric", "value", "n_cells"])
    found = calibration(table).set_index("metric")
    assert found.loc["mse", ["negative", "positive", "reason"]].tolist() == ["training mean", "duplicate", ""]
    assert found.loc["mse", "resolved"] == pytest.approx(1.2 / 1.5, abs=0.05)
    assert found.loc["mse", "separation"] == 1
    assert "does not tell duplicate from" in found.loc["l2", "reason"]
    assert re.search("only [23]% of the way from training mean", found.loc["pearson_delta", "reason"])
    assert found.loc["pearson_delta_hat", ["negative", "reason"]].tolist() == ["0", ""]
    assert found.loc["pearson_delta_hat", "resolved"] == pytest.approx(0.7, abs=0.02)
    assert found.loc["energy", ["positive", "reason"]].tolist() == ["ceiling", ""]
    few = calibration(table[table["condition"].isin(["A0", "A1"])])
    assert few["reason"].str.contains("2 conditions are too few").all()
