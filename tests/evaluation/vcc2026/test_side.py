"""Profiles, their sampling error and the rank tests, against the plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import false_discovery_control, mannwhitneyu

from scdfm.evaluation import read_counts
from scdfm.evaluation.vcc2026.side import jackknife, profiles, side_of


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
