"""The metrics of the challenge, against cell-eval2 0.20.0 and against what they must do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control, mannwhitneyu

from scdfm.evaluation import evaluate, read_counts, scaled
from scdfm.evaluation.metrics import ERROR, FIDELITY, FOLD_ERROR, JACCARD, PDS, REACH, VCC_METRICS
from scdfm.evaluation.vcc2026.metrics import compared, discrimination, jackknife, profiles, ratio, side_of

# cell-eval2 0.20.0's `baseline --preset vcc2026` on the golden real cells (dispersed, seed 0).
MEAN_RESPONSE = {
    PDS: 0.5384615384615384,
    ERROR: 0.628386064755794,
    FIDELITY: 0.430112815660587,
    REACH: 0.4496775339712473,
    JACCARD: 0.1363810418884779,
    FOLD_ERROR: 1.1260214471336918,
}


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "golden" / "vcc2026"


@pytest.fixture(scope="module")
def table(golden):
    return evaluate(golden / "pred.h5ad", golden / "real.h5ad", "non-targeting", "vcc2026", perturbation_key="target")


def test_every_value_is_cell_eval2s(golden, table):
    results = pd.read_csv(golden / "results.csv", na_values=["NaN"]).set_index(["perturbation", "metric"])
    own = table[(table["model"] == "model") & (table["condition"] != "all")]
    own = own.set_index(["condition", "metric"])["value"]
    theirs = results["value"].reindex(own.index)  # the three conditions without ten genes are left out there
    np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-9)
    assert theirs.notna().sum() == results["value"].notna().sum()
    means = pd.read_csv(golden / "agg_results.csv", index_col="statistic").loc["mean"]
    found = table[table["model"] == "model"].groupby("metric")["value"].mean()
    np.testing.assert_allclose(found[list(VCC_METRICS)], means[list(VCC_METRICS)], rtol=0, atol=1e-9)


def test_the_anchor_and_the_mean_response_are_cell_eval2s(golden, table):
    anchor = pd.read_csv(golden / "anchor.csv", index_col="metric")
    found = pd.DataFrame(table.attrs["replicate"]).T
    columns = ["replicate", "replicate_sd", "replicate_min", "replicate_max"]
    np.testing.assert_allclose(found.loc[anchor.index, columns], anchor[columns], rtol=0, atol=1e-9)
    rows = table[table["model"] == "replicate"].set_index("metric")["value"]
    np.testing.assert_allclose(rows[anchor.index], anchor["replicate"], rtol=0, atol=1e-9)
    zero = table[table["model"] == "mean response"].groupby("metric")["value"].mean()
    np.testing.assert_allclose(zero[list(MEAN_RESPONSE)], list(MEAN_RESPONSE.values()), rtol=0, atol=1e-9)


def test_the_scale_has_its_ends_where_they_belong(table):
    values = scaled(table).set_index(["model", "metric"])["scaled"]
    assert values["mean response"].abs().max() < 1e-12
    raw = table[table["model"] == "model"].groupby("metric")["value"].mean()
    ends = {m: (MEAN_RESPONSE[m], table.attrs["replicate"][m]["replicate"]) for m in MEAN_RESPONSE}
    expected = {m: (raw[m] - b) / (r - b) for m, (b, r) in ends.items()}
    assert expected[ERROR] < 0  # is cut at 0
    expected[ERROR] = 0.0
    for metric, value in expected.items():
        assert values["model", metric] == pytest.approx(value, abs=1e-9)
    assert values["model", "avg_score"] == pytest.approx(np.mean(list(expected.values())), abs=1e-9)


@pytest.fixture(scope="module")
def sides(real, predicted):
    truth, claim = read_counts(real), read_counts(predicted, need_control=False)
    true = side_of(truth, truth.rows, truth.conditions)
    return side_of(claim, claim.rows, claim.conditions, (truth, truth.rows["control"])), true, truth.genes


def test_a_condition_is_not_scored_on_its_own_target(sides):
    predicted, true, genes = sides
    before = compared(predicted, true, genes)
    at = {name: genes.tolist().index(name) for name in true.conditions}
    profile, fdr, fold = predicted.profile.copy(), predicted.tests.fdr.copy(), predicted.tests.fold.copy()
    for k, name in enumerate(predicted.conditions):
        profile[k, at[name]] += 3
        fdr[k, at[name]], fold[k, at[name]] = 1e-9, 5.0
    spiked = replace(predicted, profile=profile, tests=replace(predicted.tests, fdr=fdr, fold=fold))
    for name, values in compared(spiked, true, genes).items():
        np.testing.assert_allclose(values, before[name], rtol=1e-12, err_msg=name)
    # The control: the same of a gene that nobody targets is seen by every metric but the real side's.
    other = [0] * len(predicted.conditions)
    profile[range(len(other)), other] += 3
    fdr[:, 0], fold[:, 0] = 1e-9, 5.0
    spiked = replace(predicted, profile=profile, tests=replace(predicted.tests, fdr=fdr, fold=fold))
    after = compared(spiked, true, genes)
    for name in (FIDELITY, JACCARD, "expr_mse_unbiased_capped"):
        assert not np.allclose(after[name], before[name]), name


def test_the_panels_targets_tell_nobody_apart(sides):
    """Counts on the targets of the *others* would be an easy way to be unlike them."""
    predicted, true, genes = sides
    before = compared(predicted, true, genes)[PDS]
    profile = predicted.profile.copy()
    for k, name in enumerate(predicted.conditions):
        for other in set(true.conditions) - {name}:
            profile[k, genes.tolist().index(other)] += 5
    np.testing.assert_array_equal(compared(replace(predicted, profile=profile), true, genes)[PDS], before)


def test_truth_control_and_nothing(sides):
    predicted, true, genes = sides
    perfect = compared(true, true, genes)
    for name, best in ((PDS, 1), (JACCARD, 1), (FOLD_ERROR, 0), (FIDELITY, 1), (REACH, 1)):
        assert np.nanmin(perfect[name]) == np.nanmax(perfect[name]) == best, name
    assert ratio(perfect) < 0  # twice the noise is taken off where there is none
    control = replace(
        true, profile=np.broadcast_to(true.control_profile, true.profile.shape), correction=0 * true.correction
    )
    same = compared(control, true, genes)
    assert np.all(same[PDS] == 0.5)
    assert ratio(same) > 1
    silent = replace(predicted.tests, fdr=np.ones_like(predicted.tests.fdr), fold=0 * predicted.tests.fold)
    nothing = compared(replace(predicted, tests=silent), true, genes)
    assert np.nanmax(nothing[FIDELITY]) == 0
    assert np.nanmax(nothing[REACH]) == 0
    assert np.allclose(nothing[FOLD_ERROR][np.isfinite(nothing[FOLD_ERROR])], 1)


def test_equal_distances_share_their_rank():
    real = np.array([[1.0, 0], [1, 0], [0, 1]])
    found = discrimination(np.array([[2.0, 0], [0, 0], [0, 3]]), real, np.array([0, 1, 2]))
    np.testing.assert_array_equal(found, [0.75, 0.5, 1.0])


def test_scattered_cells_earn_no_more_than_the_spread_of_their_profiles(sides):
    """One shared profile in scattered cells claims a noise that its profiles do not have."""
    predicted, true, genes = sides
    shared = np.broadcast_to(predicted.profile.mean(axis=0), predicted.profile.shape)
    scattered = replace(predicted, profile=shared, correction=predicted.correction + 10)
    calm = replace(predicted, profile=shared, correction=0 * predicted.correction)
    name = "expr_mse_unbiased_capped"
    np.testing.assert_allclose(compared(scattered, true, genes)[name], compared(calm, true, genes)[name], rtol=1e-12)
    # Profiles as far apart as noise would set them keep the correction, capped by the real one.
    free = compared(replace(predicted, correction=predicted.correction + 10), true, genes)
    bare = compared(replace(predicted, correction=0 * predicted.correction), true, genes)
    assert np.all(free[name] < bare[name])


def test_jackknife_is_the_variance_of_leave_one_out_profiles(real):
    counts = read_counts(real)
    rows = counts.rows["G004"]
    y = counts.X[rows].toarray()
    left = y.sum(axis=0) - y
    v = np.log1p(5e4 * left / left.sum(axis=1, keepdims=True))
    n = len(rows)
    assert jackknife(counts, rows) == pytest.approx((n - 1) * v.var(axis=0).sum(), rel=1e-10)
    assert jackknife(counts, rows[:1]) == 0
    one = y.copy()
    one[1:] = 0  # one cell holds every count: without it the profile is empty
    v = np.zeros((n, y.shape[1])) + profiles(one.sum(axis=0)[None])
    v[0] = 0
    cells = real[rows].copy()
    cells.X = one
    assert jackknife(read_counts(cells, need_control=False), np.arange(n)) == pytest.approx(
        (n - 1) * v.var(axis=0).sum(), rel=1e-10
    )


def test_tests_are_scipys_on_counts_per_million_of_expressed_genes(real):
    silent = real.copy()
    X = silent.X.toarray().astype(float)
    control = (silent.obs["perturbation"] == "control").to_numpy()
    X[control, 40] = 0  # expressed in perturbed cells only
    silent.X = X
    counts = read_counts(silent)
    side = side_of(counts, counts.rows, counts.conditions)
    assert not side.tests.kept[40]
    assert side.tests.kept.sum() > 50
    scaled = np.log1p(X / (X.sum(axis=1, keepdims=True) / 1e6))
    k = counts.conditions.index("G005")
    p = mannwhitneyu(scaled[counts.rows["G005"]], scaled[control], method="asymptotic").pvalue
    kept = side.tests.kept
    np.testing.assert_allclose(side.tests.p_value[k, kept], p[kept], rtol=1e-9)
    np.testing.assert_allclose(side.tests.fdr[k, kept], false_discovery_control(p[kept]), rtol=1e-9)
    assert np.isnan(side.tests.fdr[k, ~kept]).all()
    assert not side.tests.significant[k, ~kept].any()
