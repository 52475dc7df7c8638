"""Metrics that weigh genes, against the plain formulas and at their ends."""

from __future__ import annotations

import numpy as np
import pytest

from scdfm.evaluation.metrics import effect_weights, mse_weighted, pearson_weighted, r2_weighted


def test_formulas():
    rng = np.random.default_rng(0)
    p, r, z = rng.normal(size=(3, 2, 30))
    w = effect_weights(z)
    size = np.abs(z[0])
    by_hand = ((size - size.min()) / (size.max() - size.min())) ** 2
    np.testing.assert_allclose(w[0], by_hand / by_hand.sum())
    assert mse_weighted(p, r, w)[0] == pytest.approx(np.average((p[0] - r[0]) ** 2, weights=w[0]))
    covariance = np.cov(p[0], r[0], aweights=w[0], ddof=0)
    correlation = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    assert pearson_weighted(p, r, w)[0] == pytest.approx(correlation)
    assert r2_weighted(p, r, w)[0] == pytest.approx(1 - mse_weighted(p, r, w)[0] / covariance[1, 1])


def test_genes_without_an_effect_hardly_count():
    r = np.zeros((1, 100))
    r[0, :3] = 2
    z = np.where(r != 0, 8.0, np.random.default_rng(1).uniform(0, 1, r.shape))
    noisy, wrong = r.copy(), r.copy()
    noisy[0, 3:] += 0.5
    wrong[0, :3] = 1.5
    w = effect_weights(z)
    assert mse_weighted(noisy, r, w) < mse_weighted(wrong, r, w)
    equal = effect_weights(np.ones_like(z))
    np.testing.assert_allclose(equal, 0.01)
    assert mse_weighted(noisy, r, equal) > mse_weighted(wrong, r, equal)  # the control


def test_what_has_no_definition():
    w = np.full((1, 4), 0.25)
    flat, other = np.ones((1, 4)), np.arange(4.0)[None]
    assert np.isnan(pearson_weighted(flat, other, w))
    assert np.isnan(r2_weighted(other, flat, w))
    assert np.isnan(mse_weighted(np.full((1, 4), np.nan), other, w))
    assert np.isnan(pearson_weighted(np.full((1, 4), np.nan), other, w))
