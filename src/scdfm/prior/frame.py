"""The spread of real cells around their condition's mean: deviations, common factors, and strength of response."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import eigh

from scdfm.flow import Frame, uncensored
from scdfm.prior.censored import latent_mean, latent_scale
from scdfm.prior.kernel import Floats

SMALLEST = 0.02
"""Least deviation of a gene, in root mean squares: silent genes keep a spread that a network can read."""
LEAST_UNIQUE = 0.05
"""Least share of a gene's variance that no factor carries."""
MOST_FACTORS = 50


def fit_frame(
    cells: Floats, conditions: npt.NDArray[np.int64], means: Floats, controls: Floats, rng: torch.Generator
) -> Frame:
    """The frame of `cells` [n, G] (log1p), row i of condition `conditions[i]`.

    means, controls [C, G]: means of the conditions and of their controls. Factors are the principal axes of the
    standardised latent residuals that rise above noise (eigenvalues over (1 + √(G/n))², Marchenko & Pastur 1967),
    shrunk by the inverse of the spiked model's bias (Baik & Silverstein 2006). The spread of responses is that of
    projections on the condition's own shift beyond what the factors explain, weighted by the shift's length.
    """
    variances = ((cells - means[conditions]) ** 2).mean(0)
    size = float(np.sqrt(variances.mean())) or 1.0
    deviation = np.maximum(np.sqrt(variances) / size, SMALLEST)
    scale = np.maximum(latent_scale(means, variances), SMALLEST * size)
    centre = latent_mean(means, scale)
    uniform = torch.rand(cells.shape, generator=rng, dtype=torch.float64)
    expression, latent_centre, latent_deviation = (
        torch.from_numpy(np.ascontiguousarray(x)) for x in (cells, centre[conditions], scale)
    )
    latent = uncensored(expression, latent_centre, latent_deviation, uniform).numpy()
    standard = (latent - centre[conditions]) / scale
    loadings = _factors(standard / np.maximum(standard.std(0), SMALLEST))
    unique = np.sqrt(np.maximum(1 - (loadings**2).sum(1), LEAST_UNIQUE))
    shifts = (centre - latent_mean(controls, scale)) / scale
    weighted = deviation[:, None] * loadings, deviation * unique
    spread = _spread(deviation * standard, conditions, deviation * shifts, *weighted)
    return Frame(size, _tensor(deviation), _tensor(scale), _tensor(loadings), _tensor(unique), spread)


def _tensor(values: Floats) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _factors(standard: Floats) -> Floats:
    """Loadings [G, k] of residuals of variance 1 [n, G]."""
    n, n_genes = standard.shape
    gamma = n_genes / n
    small = standard @ standard.T / n if n < n_genes else standard.T @ standard / n
    most = min(MOST_FACTORS, len(small))
    values, vectors = eigh(small, subset_by_index=(len(small) - most, len(small) - 1))
    kept = values > (1 + np.sqrt(gamma)) ** 2
    values, vectors = values[kept], vectors[:, kept]
    axes = standard.T @ vectors / np.sqrt(n * values) if n < n_genes else vectors
    middle = values + 1 - gamma
    spike = (middle + np.sqrt(np.maximum(middle**2 - 4 * values, 0))) / 2
    loadings = axes * np.sqrt(np.maximum(spike - 1, 0))
    # A gene's factors never carry more than its variance.
    carried = (loadings**2).sum(1, keepdims=True)
    return np.asarray(loadings * np.sqrt(np.minimum(1, (1 - LEAST_UNIQUE) / np.maximum(carried, 1e-12))))


def _spread(
    residuals: Floats, conditions: npt.NDArray[np.int64], shifts: Floats, loadings: Floats, unique: Floats
) -> float:
    """τ² = Σ (variance along a shift − the factors') ‖shift‖² / Σ ‖shift‖⁴ over conditions, never below 0."""
    beyond, length = 0.0, 0.0
    for place, shift in enumerate(shifts):
        squared = float(shift @ shift)
        rows = residuals[conditions == place]
        if len(rows) < 2 or not squared:
            continue
        along = shift / np.sqrt(squared)
        explained = ((along @ loadings) ** 2).sum() + ((along * unique) ** 2).sum()
        beyond += float(((rows @ along) ** 2).mean() - explained) * squared
        length += squared**2
    return float(np.sqrt(max(beyond / length, 0.0))) if length else 0.0
