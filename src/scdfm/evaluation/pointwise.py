"""Errors and correlations of pseudobulk means, one value per condition.

Everything is log1p of normalised counts; K conditions, G scored genes. A value that has no definition (a
correlation with a constant) is NaN, never 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from scdfm.evaluation.pseudobulk import Floats

FLAT = 1e-9
"""A vector whose largest departure from its mean is below this (times the values' scale) counts as constant."""


def l2(predicted: Floats, real: Floats) -> Floats:
    """Euclidean norm over genes of predicted − real mean, [K]."""
    return np.asarray(np.linalg.norm(predicted - real, axis=1))


def mse(predicted: Floats, real: Floats) -> Floats:
    """Mean over genes of the squared difference of means, [K]."""
    return np.asarray(np.mean((predicted - real) ** 2, axis=1))


def mae(predicted: Floats, real: Floats) -> Floats:
    """Mean over genes of the absolute difference of means, [K]."""
    return np.asarray(np.mean(np.abs(predicted - real), axis=1))


def pearson(x: Floats, y: Floats, scale: float = 1.0) -> Floats:
    """Pearson correlation of the rows of `x` and `y` [K, G] -> [K]; NaN where either row is constant.

    `scale` is the size of the numbers that were subtracted to give `x` and `y`: rounding leaves about
    1e-16 of it, so a row flatter than 1e-9 of it is constant.
    """
    x = x - x.mean(axis=1, keepdims=True)
    y = y - y.mean(axis=1, keepdims=True)
    flat = (np.abs(x).max(axis=1, initial=0) <= FLAT * scale) | (
        np.abs(y).max(axis=1, initial=0) <= FLAT * scale
    )
    norm = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    product = np.einsum("kg,kg->k", x, y)
    return np.where(flat, np.nan, product / np.where(flat, 1.0, norm)).clip(-1, 1)


def pearson_delta(predicted: Floats, real: Floats, predicted_origin: Floats, origin: Floats) -> Floats:
    """Pearson of (predicted − its origin) and (real − origin), [K].

    With the control mean as origin this is Pearson Δ; with the mean O of the training conditions' means it is
    Systema's Pearson Δ̂ (Viñas Torné et al. 2025). Origins are [G] or [K, G].
    """
    scale = max(float(np.abs(real).max(initial=0)), 1e-300)
    return pearson(predicted - predicted_origin, real - origin, scale)


def on_top(values: Floats, top: NDArray[np.int64]) -> Floats:
    """`values` [K, G] at each condition's own genes `top` [K, n] -> [K, n]."""
    return np.take_along_axis(values, top, axis=1)


def top_genes(score: Floats, n: int = 20) -> NDArray[np.int64]:
    """The `n` columns of largest `score` per row [K, G] -> [K, n]; ties go to the earlier gene."""
    return np.argsort(-score, axis=1, kind="stable")[:, :n]


def spearman(x: Floats, y: Floats) -> float:
    """Spearman correlation of two vectors; NaN below three values or where either is constant."""
    if len(x) < 3:
        return float("nan")
    return float(pearson(rankdata(x)[None], rankdata(y)[None])[0])
