"""Errors and correlations that weigh a gene by how surely it responds, one value per condition."""

from __future__ import annotations

import numpy as np

from scdfm.evaluation.pointwise import FLAT
from scdfm.evaluation.pseudobulk import Floats


def effect_weights(z: Floats) -> Floats:
    """Weights [K, G] of genes from their test against control `z` [K, G], each row summing to 1.

    |z| is brought to 0 to 1 within a condition and squared (Mejia et al. 2025): genes that do not respond hardly
    count. Equal weights where no gene stands out.
    """
    size = np.abs(z)
    low, high = size.min(axis=1, keepdims=True), size.max(axis=1, keepdims=True)
    spread = np.where(high > low, high - low, 1.0)
    weight = np.where(high > low, ((size - low) / spread) ** 2, 1.0)
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


def mse_weighted(predicted: Floats, real: Floats, weight: Floats) -> Floats:
    """Σ w (p − r)² over genes, [K]."""
    return np.asarray(np.einsum("kg,kg->k", weight, (predicted - real) ** 2))


def pearson_weighted(predicted: Floats, real: Floats, weight: Floats) -> Floats:
    """Weighted Pearson correlation of the rows of shifts `predicted` and `real` [K, G]; NaN where one is constant."""
    x, y = _centred(predicted, weight), _centred(real, weight)
    xx, yy, xy = (np.einsum("kg,kg,kg->k", weight, a, b) for a, b in ((x, x), (y, y), (x, y)))
    flat = ~((xx > FLAT**2) & (yy > FLAT**2))
    return np.where(flat, np.nan, xy / np.sqrt(np.where(flat, 1.0, xx * yy))).clip(-1, 1)


def r2_weighted(predicted: Floats, real: Floats, weight: Floats) -> Floats:
    """1 − Σ w (p − r)² / Σ w (r − r̄)² of shifts [K, G], r̄ the weighted mean; NaN where the real one is constant."""
    y = _centred(real, weight)
    total = np.einsum("kg,kg,kg->k", weight, y, y)
    flat = ~(total > FLAT**2)
    error = mse_weighted(predicted, real, weight)
    return np.where(flat, np.nan, 1 - error / np.where(flat, 1.0, total))


def _centred(values: Floats, weight: Floats) -> Floats:
    return np.asarray(values - np.einsum("kg,kg->k", weight, values)[:, None])
