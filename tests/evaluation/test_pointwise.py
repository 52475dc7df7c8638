"""Errors and correlations of means, against closed forms and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scdfm.evaluation.metrics import discrimination, l2, mae, mse, pearson, pearson_delta, spearman, top_genes

rng = np.random.default_rng(0)


def test_errors_by_hand():
    predicted, real = np.array([[1.0, 2.0, 5.0]]), np.array([[1.0, 4.0, 2.0]])
    assert l2(predicted, real)[0] == pytest.approx(np.sqrt(13))
    assert mse(predicted, real)[0] == pytest.approx(13 / 3)
    assert mae(predicted, real)[0] == pytest.approx(5 / 3)


def test_pearson_is_scipys():
    x, y = rng.normal(size=(4, 30)), rng.normal(size=(4, 30))
    expected = [stats.pearsonr(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(pearson(x, y), expected, rtol=1e-12)


def test_pearson_of_a_constant_is_undefined_not_zero():
    real = rng.normal(size=(2, 50)) + 3
    control = rng.normal(size=50) + 3
    assert np.isnan(pearson_delta(np.tile(control, (2, 1)), real, control, control)).all()
    # rounding of a mean computed in another order does not make it defined
    assert np.isnan(pearson_delta(control[None] * (1 + 1e-15), real[:1], control, control)).all()
    # while a shift by tiny but real amounts is
    assert np.isfinite(pearson_delta(control + 1e-4 * (real - control), real, control, control)).all()


def test_pearson_delta_hat_is_pearson_from_another_origin():
    predicted, real, centre = rng.normal(size=(3, 20)), rng.normal(size=(3, 20)), rng.normal(size=20)
    expected = [stats.pearsonr(p - centre, r - centre).statistic for p, r in zip(predicted, real, strict=True)]
    np.testing.assert_allclose(pearson_delta(predicted, real, centre, centre), expected, rtol=1e-12)


def test_spearman_is_scipys_and_needs_three_values():
    x, y = rng.integers(0, 5, 40).astype(float), rng.normal(size=40)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert np.isnan(spearman(x[:2], y[:2]))
    assert np.isnan(spearman(np.ones(9), y[:9]))


def test_top_genes_are_the_largest_with_ties_to_the_earlier():
    assert top_genes(np.array([[1.0, 3.0, 3.0, 0.0]]), 3).tolist() == [[1, 2, 0]]


def test_discrimination_by_hand():
    real = np.array([[1.0, 0.0], [0.0, 1.0], [4.0, 4.0], [-1.0, 0.0]])
    # the prediction of the first condition lies at the fourth: signs tell them apart, magnitudes do not
    predicted = np.array([[-1.0, 0.0], [0.0, 1.0], [4.0, 4.0], [-1.0, 0.0]])
    signed = discrimination(predicted, real, signed=True)
    # distances of the first: 2 to itself, 2 to the second, 9 and 0 to the others; one closer, one level
    np.testing.assert_allclose(signed, [1 - 1.5 / 4, 1, 1, 1])
    unsigned = discrimination(predicted, real, signed=False)
    np.testing.assert_allclose(unsigned, [1 - 0.5 / 4, 1, 1, 1 - 0.5 / 4])


def test_discrimination_at_chance_and_undefined():
    real = rng.normal(size=(60, 40))
    shuffled = real[rng.permutation(60)] + rng.normal(size=(60, 40))
    scores = discrimination(shuffled, real, signed=True)
    assert abs(scores.mean() - 61 / 120) < 4 * np.sqrt(1 / 12 / 60)  # uniform ranks: variance about 1/12
    same = discrimination(np.zeros_like(real), np.ones_like(real), signed=True)
    np.testing.assert_allclose(same, 1 - 59 / 120)
    assert np.isnan(discrimination(real[:1], real[:1], signed=True)).all()  # nothing to tell it from
    missing = real.copy()
    missing[3] = np.nan
    scores = discrimination(missing, real, signed=True)
    assert np.isnan(scores[3])
    assert np.delete(scores, 3).min() == 1


def test_discrimination_without_a_gene():
    real = np.array([[9.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    predicted = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])  # misses gene 0 of the first
    nothing = np.empty(0, dtype=np.int64)
    assert discrimination(predicted, real, signed=True)[0] == 0.5
    assert discrimination(predicted, real, signed=True, without=[np.array([0]), nothing])[0] == 1
