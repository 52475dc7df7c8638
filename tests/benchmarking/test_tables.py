"""Averages over seeds, conditions and folds; intervals that know a condition tested in several folds; pairs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from scdfm import evaluation
from scdfm.benchmarking.pieces import COLUMNS, NO_SEED
from scdfm.benchmarking.tables import aggregate, clustered, differences, parts, summarise

CONDITIONS = [f"A{i}+B{i}" for i in range(12)]


def rows(model, values, fold=0, seed=NO_SEED, metric="l2", beside="", conditions=CONDITIONS):
    return pd.DataFrame({
        "model": model, "fold": fold, "seed": seed, "beside": beside, "condition": conditions[: len(values)],
        "metric": metric, "value": values, "n_cells": 10,
    })[list(COLUMNS)]  # fmt: skip


@pytest.fixture
def values():
    return np.random.default_rng(0).gamma(2, 1, (6, 12))


def test_one_fold_and_seed_is_the_summary_of_evaluate(values):
    values[0, 3] = np.nan
    scores = pd.concat([rows("ridge", values[0]), rows("m", values[1]), rows("m", values[2], metric="ds")])
    ours = summarise(scores).set_index(["model", "metric"])
    theirs = evaluation.summarise(scores).set_index(["model", "metric"])
    pd.testing.assert_frame_equal(ours[list(theirs.columns)].loc[theirs.index], theirs, rtol=1e-10)


def test_one_fold_and_seed_is_the_pairing_of_evaluate(values):
    models = ["no change", "additive", "ridge", "m"]
    scores = pd.concat(
        [rows(name, values[i] * (1 + i), metric=metric) for i, name in enumerate(models) for metric in ("l2", "ds")]
    )
    scores.loc[(scores["model"] == "additive") & scores["condition"].isin(CONDITIONS[:8]), "value"] = np.nan
    ours, theirs = differences(scores), evaluation.differences(scores)
    pd.testing.assert_frame_equal(ours[list(theirs.columns)], theirs, rtol=1e-10)


def test_folds_weigh_the_same_whatever_their_size(values):
    scores = pd.concat([rows("m", values[0], fold=0), rows("m", values[1, :3], fold=1)])
    mean = summarise(scores)["mean"].item()
    assert mean == pytest.approx((values[0].mean() + values[1, :3].mean()) / 2, rel=1e-12)


def test_a_condition_tested_twice_narrows_nothing(values):
    """The same conditions with the same values in each fold say no more than one fold."""
    once = summarise(rows("m", values[0]))
    twice = summarise(pd.concat([rows("m", values[0], fold=fold) for fold in range(4)]))
    columns = ["mean", "low", "high"]
    np.testing.assert_allclose(twice[columns], once[columns], rtol=1e-10)
    assert (twice["n"].item(), twice["n_conditions"].item()) == (48, 12)


def test_spread_averages_to_the_mean_and_has_a_ratio_estimators_variance():
    """Against the textbook: over draws of clusters of unequal size, the standard error is the spread's."""
    rng = np.random.default_rng(1)
    means, errors = [], []
    for _ in range(400):
        drawn = [(f"c{c}", c * 10.0, f) for c in rng.integers(0, 12, 30) for f in range(3) if (c + f) % 3]
        table = pd.DataFrame(drawn, columns=["condition", "value", "fold"])
        table["condition"] = [f"{name}/{i // 2}" for i, name in enumerate(table["condition"])]
        table["value"] += rng.normal(size=len(table))
        mean, spread = clustered(table)
        assert spread.mean() == pytest.approx(mean)
        means.append(mean)
        errors.append(spread.std(ddof=1) / np.sqrt(len(spread)))
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)


def test_seeds_are_averaged_and_their_spread_told(values):
    scores = pd.concat([rows("m", values[seed], seed=seed) for seed in range(3)])
    found = summarise(scores).iloc[0]
    assert found["mean"] == pytest.approx(values[:3].mean(), rel=1e-12)
    assert found["seed_sd"] == pytest.approx(values[:3].mean(axis=1).std(ddof=1), rel=1e-12)
    assert found["n_seeds"] == 3
    assert np.isnan(summarise(rows("ridge", values[0]))["seed_sd"].item())


def test_undefined_everywhere_is_undefined(values):
    found = summarise(rows("m", np.full(4, np.nan))).iloc[0]
    assert np.isnan(found[["mean", "median", "low", "high"]].astype(float)).all()
    assert (found["n"], found["n_undefined"]) == (0, 4)


def test_a_file_that_lacks_conditions_is_paired_with_references_of_its_own(values):
    """In fold 1 the file holds 3 conditions; the references scored on those 3 alone are its pair there."""
    scores = pd.concat([
        rows("ridge", values[0], fold=0), rows("m", values[1], fold=0), rows("ridge", values[2], fold=1),
        rows("m", values[3, :3], fold=1), rows("ridge", values[4, :3], fold=1, beside="m"),
        rows("other", values[5], fold=1),
    ])  # fmt: skip
    found = differences(scores).set_index("model")
    gap = ((values[0] - values[1]).mean() + (values[4, :3] - values[3, :3]).mean()) / 2
    assert found.loc["m", "improvement"] == pytest.approx(gap, rel=1e-12)
    assert found.loc["m", "n"] == 15
    assert found.loc["other", "improvement"] == pytest.approx((values[2] - values[5]).mean(), rel=1e-12)


def test_each_model_is_paired_with_its_own_prior(values):
    """Over seeds and folds, as `evaluation.differences` pairs one fold; a model without one has no such row."""
    single = pd.concat([rows("m", values[0]), rows("prior", values[1], beside="m")])
    scored = [SimpleNamespace(table=single)]
    gaps = aggregate(scored).differences
    assert list(gaps["baseline"]) == ["prior"]
    theirs = evaluation.differences(single, against="prior")
    columns = ["model", "metric", "baseline", "improvement", "low", "high", "n"]
    pd.testing.assert_frame_equal(gaps[columns], theirs[columns], rtol=1e-10)

    several = pd.concat([
        *(rows("m", values[seed], seed=seed) for seed in (0, 1)),
        *(rows("prior", values[2 + seed], seed=seed, beside="m") for seed in (0, 1)),
        rows("n", values[4]), rows("prior", values[5], beside="n"), rows("file", values[5] / 2),
    ])  # fmt: skip
    tables = aggregate([SimpleNamespace(table=several)])
    assert list(tables.summary["model"]) == ["prior (m)", "prior (n)", "m", "n", "file"]
    beside = tables.differences.set_index("model")
    assert beside["baseline"].to_dict() == {"m": "prior (m)", "n": "prior (n)"}
    assert beside.loc["m", "improvement"] == pytest.approx((values[2:4] - values[:2]).mean())
    assert beside.loc["n", "improvement"] == pytest.approx((values[5] - values[4]).mean())


def test_parts_are_named_only_where_there_are_several():
    assert parts(pd.Series(["A+B", "C+D"])) == ["all"]
    assert parts(pd.Series(["A+B", "C", "A+B+C+D"])) == ["all", "single", "double", "4 targets"]
