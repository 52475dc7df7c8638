"""The spread of real cells around their condition's mean: deviations, common factors, and strength of response."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.linalg import eigh

from scdfm.prior.censored import latent_mean, latent_scale
from scdfm.prior.kernel import Floats
from scdfm.prior.start import Frame, uncensored

SMALLEST = 0.02
"""Least deviation of a gene, in root mean squares: silent genes keep a spread that a network can read."""
LEAST_UNIQUE = 0.05
"""Least share of a gene's variance that no factor carries."""
MOST_FACTORS = 50
SWEEPS = 8
"""Turns between factors and what stands behind zeros."""
KNOTS = 24
"""Places of the mean where the trend of the variance is measured, at most; each takes PAIRS means or more."""
PAIRS = 50
LEAST_OF_PEAK = 0.25
"""Share of a gene's highest mean below which its spread no longer falls: what is expected silent may yet be on."""
MOST_EXCESS = 20.0
"""Largest factor between a gene's variance and the trend, either way."""


def fit_frame(
    cells: Floats, conditions: npt.NDArray[np.int64], means: Floats, controls: Floats, rng: torch.Generator
) -> Frame:
    """The frame of `cells` [n, G] (log1p), row i of condition `conditions[i]`.

    means, controls [C, G]: means of the conditions and of their controls. Variances follow the mean: one trend for all
    genes and a factor for each, so that a gene that a condition switches on has the spread of genes that are on.
    Factors are the principal axes of the standardised latent residuals that rise above noise (eigenvalues over
    (1 + √(G/n))², Marchenko & Pastur 1967), shrunk by the inverse of the spiked model's bias (Baik & Silverstein 2006).
    What stands behind zeros is drawn given the factors, turn by turn (`_latent_residuals`).
    The spread of responses is that of projections on the condition's own shift beyond what the factors explain,
    weighted by the shift's length.
    """
    variances = ((cells - means[conditions]) ** 2).mean(0)
    size = float(np.sqrt(variances.mean())) or 1.0
    deviation = np.maximum(np.sqrt(variances) / size, SMALLEST)
    trend, excess = _variance_law(cells, conditions, means)
    peak = np.maximum(means, controls).max(0)
    centre, scale = latent(means, size, trend, excess, peak)
    standard = _latent_residuals(cells, centre[conditions], scale[conditions], rng)
    loadings = _factors(standard / np.maximum(standard.std(0), SMALLEST))
    unique = np.sqrt(np.maximum(1 - (loadings**2).sum(1), LEAST_UNIQUE))
    shifts = (centre - latent_mean(controls, scale)) / scale
    weighted = deviation[:, None] * loadings, deviation * unique
    spread = _spread(deviation * standard, conditions, deviation * shifts, *weighted)
    return Frame(
        size, _tensor(deviation), _tensor(excess), _tensor(peak), _tensor(trend), _tensor(loadings), _tensor(unique),
        spread=spread, highest=float(cells.max(initial=0.0)),
    )  # fmt: skip


def latent(means: Floats, size: float, trend: Floats, excess: Floats, peak: Floats) -> tuple[Floats, Floats]:
    """Latent means μ and deviations σ [C, G] of genes with these `means` and the variance that the trend gives them.

    Where a gene is expected to be silent, σ is that of a quarter of its `peak`: a cell that expresses it all the same
    lies within some σ, not within hundreds.
    """
    told = np.maximum(means, LEAST_OF_PEAK * peak)
    scale = np.maximum(latent_scale(told, excess * expected_variance(told, trend)), SMALLEST * size)
    return latent_mean(means, scale), scale


def expected_variance(means: Floats, trend: Floats) -> Floats:
    """Variance [..., G] that `trend` [2, k] gives genes of these `means`: constant beyond its last mean."""
    logs, ratios = trend
    bounded = np.minimum(means, np.exp(logs[-1]))
    return np.asarray(bounded * np.interp(np.log(np.maximum(bounded, 1e-12)), logs, ratios))


def _variance_law(cells: Floats, conditions: npt.NDArray[np.int64], means: Floats) -> tuple[Floats, Floats]:
    """Trend [2, k] of variance over mean, pooled over conditions and genes, and each gene's factor [G]."""
    counts = np.bincount(conditions, minlength=len(means))[:, None]
    squared = np.zeros_like(means)
    np.add.at(squared, conditions, (cells - means[conditions]) ** 2)
    weighted, seen = counts * means, means > 0
    if not (weighted.any() and squared[seen].any()):
        return np.array([[0.0], [1.0]]), np.ones(means.shape[1])
    order = np.argsort(means[seen], kind="stable")
    parts = np.array_split(order, int(np.clip(len(order) // PAIRS, 1, KNOTS)))
    sums = np.array([[x[seen][part].sum() for part in parts] for x in (weighted, squared)])
    logs = np.array([np.log(means[seen][part]).mean() for part in parts])
    trend = np.stack([logs, sums[1] / np.maximum(sums[0], 1e-12)])
    expected = (counts * expected_variance(means, trend)).sum(0)
    ratio = np.divide(squared.sum(0), expected, where=expected > 0, out=np.ones(means.shape[1]))
    return trend, np.clip(ratio, 1 / MOST_EXCESS, MOST_EXCESS)


def _tensor(values: Floats) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _latent_residuals(cells: Floats, centre: Floats, scale: Floats, rng: torch.Generator) -> Floats:
    """(z − μ)/σ [n, G] of cells, with draws of what stands behind zeros that know the factors of the cell.

    Drawn gene by gene they would be independent, and the factors of genes that are rarely seen too weak. So factors and
    draws take turns: stochastic EM (Celeux & Diebolt 1985) of a factor analysis of censored genes.
    """
    x, middle, width = (torch.from_numpy(np.ascontiguousarray(values)) for values in (cells, centre, scale))

    def drawn(mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
        uniform = torch.rand(x.shape, generator=rng, dtype=torch.float64)
        return (uncensored(x, middle + width * mean, width * deviation, uniform) - middle) / width

    n, n_genes = x.shape
    standard = drawn(
        torch.zeros((1, n_genes), dtype=torch.float64), torch.ones((1, n_genes), dtype=torch.float64)
    )
    size = standard.std(0, correction=0).clamp(min=SMALLEST)
    loadings = torch.from_numpy(_factors((standard / size).numpy()))
    for _ in range(SWEEPS if loadings.shape[1] else 0):
        unique = (1 - loadings.square().sum(1)).clamp(min=LEAST_UNIQUE).sqrt()
        weights = loadings / unique.square().unsqueeze(1)
        spread = torch.linalg.inv(torch.eye(loadings.shape[1], dtype=torch.float64) + loadings.T @ weights)
        noise = torch.randn((n, loadings.shape[1]), generator=rng, dtype=torch.float64)
        factors = (standard / size) @ weights @ spread + noise @ torch.linalg.cholesky(spread).T
        standard = drawn(factors @ loadings.T * size, unique * size)
        size = standard.std(0, correction=0).clamp(min=SMALLEST)
        loadings = torch.linalg.solve(factors.T @ factors, factors.T @ (standard / size)).T
    return standard.numpy()


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
