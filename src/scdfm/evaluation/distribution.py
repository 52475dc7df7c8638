"""How well whole populations agree: distances between the cells of a prediction and the real cells.

Populations of cells are dense blocks [A, n] of log1p values, genes first, so that a gene's values lie together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scdfm.evaluation.pseudobulk import Floats

SCALES = (0.5, 1.0, 2.0, 4.0)
"""Squared kernel widths of the MMD, as multiples of the median squared distance between real cells; each is
twice the one before, which `_kernel` makes use of."""


@dataclass(frozen=True)
class Axes:
    """Principal axes of real cells: `centre` [A] and `components` [D, A], float32."""

    centre: Floats
    components: Floats

    def project(self, cells: Floats) -> Floats:
        """Coordinates [n, D] of `cells` [A, n]."""
        return ((self.components @ cells).T - self.components @ self.centre).astype(np.float64)


def principal_axes(cells: Floats, n: int, seed: int) -> Axes:
    """The `n` leading principal axes of `cells` [m, A], which it overwrites, by scikit-learn's randomised solver."""
    from sklearn.decomposition import PCA

    n = max(1, min(n, min(cells.shape) - 1))
    solver = PCA(
        n_components=n, svd_solver="randomized", iterated_power=4, copy=False, random_state=seed % 2**32
    )
    fitted = solver.fit(cells)
    return Axes(centre=fitted.mean_.astype(np.float32), components=fitted.components_.astype(np.float32))


@dataclass(frozen=True)
class Sample:
    """One population: values `ordered` per gene [A, n], `coordinates` [n, D] on principal axes, and per gene
    [A] its `variance` (divided by n) and share of cells at `zero`."""

    ordered: Floats
    coordinates: Floats
    variance: Floats
    zero: Floats


@dataclass(frozen=True)
class Truth:
    """The real population, with what does not depend on a prediction: mean distance and kernel between its own
    cells, and the median squared distance."""

    sample: Sample
    distance: float
    kernel: float
    median: float

    @classmethod
    def of(cls, sample: Sample) -> Truth:
        """Prepare `sample`, at least 2 cells."""
        squared = squared_distances(sample.coordinates, sample.coordinates)
        pairs = squared[~np.eye(len(squared), dtype=bool)]
        middle = (len(pairs) - 1) // 2
        median = max(float(np.partition(pairs, middle)[middle]), 1e-12)
        return cls(sample, _off_diagonal(np.sqrt(squared)), _off_diagonal(_kernel(squared, median)), median)


def squared_distances(x: Floats, y: Floats) -> Floats:
    """‖xᵢ − yⱼ‖² [n, m] by one matrix product."""
    squared = (x * x).sum(1)[:, None] + (y * y).sum(1)[None] - 2 * (x @ y.T)
    return np.asarray(np.maximum(squared, 0))


def _off_diagonal(values: Floats) -> float:
    """Mean over pairs of different cells."""
    n = len(values)
    return float((values.sum() - np.trace(values)) / (n * (n - 1)))


def _kernel(squared: Floats, median: float) -> Floats:
    """Mean over SCALES of exp(−D² / 2σ²): halving σ² squares the kernel, so one exponential is enough."""
    kernel = np.exp(squared * (-0.5 / (SCALES[-1] * median)))
    total = kernel.copy()
    for _ in SCALES[1:]:
        kernel = kernel * kernel
        total += kernel
    return np.asarray(total / len(SCALES))


def energy_and_mmd(coordinates: Floats, truth: Truth) -> tuple[float, float]:
    """Energy distance 2E‖x−y‖ − E‖x−x'‖ − E‖y−y'‖ and MMD² of cells at `coordinates` [n, D] to the real ones.

    Both are unbiased (pairs of different cells only): 0 on average for two samples of one population, and
    slightly negative by chance. NaN below two cells. MMD²: mean over four Gaussian kernels exp(−D²/2σ²),
    σ² = ½, 1, 2, 4 times the (lower) median squared distance between the real cells.
    """
    if len(coordinates) < 2:
        return float("nan"), float("nan")
    own = squared_distances(coordinates, coordinates)
    cross = squared_distances(coordinates, truth.sample.coordinates)
    energy = 2 * np.sqrt(cross).mean() - _off_diagonal(np.sqrt(own)) - truth.distance
    mmd = _off_diagonal(_kernel(own, truth.median)) + truth.kernel - 2 * _kernel(cross, truth.median).mean()
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


def mean_error(predicted: Floats, real: Floats) -> float:
    """Mean over genes of |predicted − real| (variances, shares of zeros)."""
    return float(np.abs(predicted - real).mean())
