"""Censored Gaussian genes: expression max(0, z) of z ~ N(μ, σ²), from its mean and variance back to μ and σ.

With a = μ/σ: E[x]/σ = a·Φ(a) + φ(a) and E[x²]/σ² = (a² + 1)·Φ(a) + a·φ(a) (Tobin 1958).
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from scdfm.prior.kernel import Floats

LOWEST, HIGHEST = -6.0, 12.0
"""Range of a; below it a gene is never seen, above it never 0, and the mean is μ."""
_A = np.linspace(LOWEST, HIGHEST, 6001)
_MEAN = _A * norm.cdf(_A) + norm.pdf(_A)
_VARIANCE = (_A**2 + 1) * norm.cdf(_A) + _A * norm.pdf(_A) - _MEAN**2


def latent_mean(mean: Floats, scale: Floats) -> Floats:
    """μ [..., G] at which max(0, z) has the `mean` (log1p, at least 0), for σ = `scale` [G]."""
    ratio = mean / scale
    return np.asarray(np.where(ratio < HIGHEST, np.interp(ratio, _MEAN, _A), ratio) * scale)


def variance(mean: Floats, scale: Floats) -> Floats:
    """Variance [..., G] of max(0, z) with this `mean`, for σ = `scale` [G]."""
    ratio = latent_mean(mean, scale) / scale
    return np.asarray(np.interp(ratio, _A, _VARIANCE) * scale**2)


def latent_scale(means: Floats, found: Floats, rounds: int = 40) -> Floats:
    """σ [G] at which the variance, averaged over conditions of `means` [C, G], is the one `found` [G]; by bisection."""
    low, high = np.full(len(found), 1e-4), np.full(len(found), 20.0)
    for _ in range(rounds):
        middle = (low + high) / 2
        large = variance(means, middle).mean(0) > found
        low, high = np.where(large, low, middle), np.where(large, middle, high)
    return np.asarray((low + high) / 2)
