"""How well whole populations agree: distances between the cells of a prediction and the real cells.

Populations of cells are dense blocks [A, n] of log1p values, genes first, so that a gene's values lie together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scdfm.evaluation.pseudobulk import Floats

SCALES = (0.5, 1.0, 2.0, 4.0)
"""Squared kernel widths of the MMD, as multiples of the median squared distance between real cells."""


@dataclass(frozen=True)
class Axes:
    """Principal axes of real cells: `centre` [A] and `components` [D, A], float32."""

    centre: Floats
    components: Floats

    def project(self, cells: Floats) -> Floats:
        """Coordinates [n, D] of `cells` [A, n]."""
        return (cells.T @ self.components.T - self.centre @ self.components.T).astype(np.float64)


def principal_axes(cells: Floats, n: int, seed: int) -> Axes:
    """The `n` leading principal axes of `cells` [m, A] by a randomised decomposition (scikit-learn)."""
    from sklearn.decomposition import PCA

    n = max(1, min(n, min(cells.shape) - 1))
    fitted = PCA(n_components=n, svd_solver="randomized", random_state=seed % 2**32).fit(cells)
    return Axes(centre=fitted.mean_.astype(np.float32), components=fitted.components_.astype(np.float32))


def squared_distances(x: Floats, y: Floats) -> Floats:
    """‖xᵢ − yⱼ‖² [n, m] by one matrix product."""
    squared = (x * x).sum(1)[:, None] + (y * y).sum(1)[None] - 2 * (x @ y.T)
    return np.asarray(np.maximum(squared, 0))


def _off_diagonal(values: Floats) -> float:
    """Mean over pairs of different cells."""
    n = len(values)
    return float((values.sum() - np.trace(values)) / (n * (n - 1)))


@dataclass(frozen=True)
class Reference:
    """Real cells of one condition in principal coordinates [n, D], with all that does not depend on a prediction."""

    cells: Floats
    energy: float
    widths: tuple[float, ...]
    kernel: float

    @classmethod
    def of(cls, cells: Floats) -> Reference:
        """Prepare `cells` [n, D], n at least 2."""
        squared = squared_distances(cells, cells)
        pairs = np.sort(squared[~np.eye(len(cells), dtype=bool)])
        median = max(float(pairs[(len(pairs) - 1) // 2]), 1e-12)
        widths = tuple(scale * median for scale in SCALES)
        return cls(cells, _off_diagonal(np.sqrt(squared)), widths, _off_diagonal(_kernel(squared, widths)))


def _kernel(squared: Floats, widths: tuple[float, ...]) -> Floats:
    return np.asarray(np.mean([np.exp(-squared / (2 * width)) for width in widths], axis=0))


def energy_and_mmd(cells: Floats, reference: Reference) -> tuple[float, float]:
    """Energy distance 2E‖x−y‖ − E‖x−x'‖ − E‖y−y'‖ and MMD² of `cells` [n, D] to `reference`.

    Both are unbiased (pairs of different cells only): 0 on average for two samples of one population, and
    slightly negative by chance. NaN below two cells. MMD²: mean over four Gaussian kernels exp(−D²/2σ²),
    σ² = ½, 1, 2, 4 times the (lower) median squared distance between the real cells.
    """
    if len(cells) < 2:
        return float("nan"), float("nan")
    own, cross = squared_distances(cells, cells), squared_distances(cells, reference.cells)
    energy = 2 * np.sqrt(cross).mean() - _off_diagonal(np.sqrt(own)) - reference.energy
    widths = reference.widths
    mmd = _off_diagonal(_kernel(own, widths)) + reference.kernel - 2 * _kernel(cross, widths).mean()
    return float(energy), float(mmd)


def wasserstein(x: Floats, y: Floats) -> float:
    """Mean over genes of the 1-Wasserstein distance between rows *sorted* ascending, [A, n] and [A, m].

    Exact for any n and m: the two empirical quantile functions are constant between the points i/n and j/m.
    """
    n, m = x.shape[1], y.shape[1]
    if n == m:
        return float(np.abs(x - y).mean(dtype=np.float64))
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # in units of 1 / nm, whole numbers
    weight = np.diff(ends, prepend=0)
    starts = ends - weight
    gap = x[:, starts // m]
    gap -= y[:, starts // n]
    np.abs(gap, out=gap)
    return float((gap @ (weight / (n * m)).astype(gap.dtype)).mean(dtype=np.float64))


def spread_errors(cells: Floats, real_variance: Floats, real_zero: Floats) -> tuple[float, float]:
    """Mean over genes of |predicted − real| variance (divided by n), and of the share of cells at exactly 0."""
    variance = cells.var(axis=1, dtype=np.float64)
    zero = (cells == 0).mean(axis=1)
    return float(np.abs(variance - real_variance).mean()), float(np.abs(zero - real_zero).mean())
