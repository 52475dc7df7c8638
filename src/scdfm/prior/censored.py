"""Censored Gaussian genes: expression max(0, z) of z ~ N(μ, σ²), from its mean and variance back to μ and σ.

With a = μ/σ: E[x]/σ = a·Φ(a) + φ(a) and E[x²]/σ² = (a² + 1)·Φ(a) + a·φ(a) (Tobin 1958).
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from scdfm.prior.kernel import Floats

LOWEST, HIGHEST = -4.0, 12.0
"""Range of a; below it a gene is seen in no cell of 30,000, above it never 0, and the mean is μ."""
_A = np.linspace(LOWEST, HIGHEST, 4001)
_MEAN = _A * norm.cdf(_A) + norm.pdf(_A)
_VARIANCE = (_A**2 + 1) * norm.cdf(_A) + _A * norm.pdf(_A) - _MEAN**2
_SQUARED_VARIATION = (_VARIANCE / _MEAN**2)[::-1]
"""Variance over the squared mean falls with a."""


def latent_mean(mean: Floats, scale: Floats) -> Floats:
    """μ [..., G] at which max(0, z) has the `mean` (log1p, at least 0), for σ = `scale` [..., G]."""
    ratio = mean / scale
    return np.asarray(np.where(ratio < HIGHEST, np.interp(ratio, _MEAN, _A), ratio) * scale)


def latent_scale(mean: Floats, variance: Floats) -> Floats:
    """σ [..., G] at which max(0, z) has the `mean` and `variance` (log1p); 0 where either is."""
    seen = (mean > 0) & (variance > 0)
    squared = np.divide(variance, mean**2, where=seen, out=np.ones_like(mean))
    a = np.interp(squared, _SQUARED_VARIATION, _A[::-1])
    never_zero = squared < _SQUARED_VARIATION[0]
    scale = np.where(never_zero, np.sqrt(np.maximum(variance, 0)), mean / np.interp(a, _A, _MEAN))
    return np.where(seen, scale, 0.0)
