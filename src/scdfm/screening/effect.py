"""How far a predicted population is from control: energy distance, genes shifted beyond noise, noise of the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import scipy.sparse as sp
from scipy.stats import norm

from scdfm.data.stored import in_memory, subset
from scdfm.evaluation.populations import Axes, principal_axes, squared_distances
from scdfm.evaluation.pseudobulk import Floats
from scdfm.seeds import derive, numpy_rng

if TYPE_CHECKING:
    from scdfm.data import CellTable

NOISE_LEVEL: Final = 0.05
"""Chance that a condition without any effect has one gene or more called shifted (Bonferroni over the genes)."""
CONTROLS: Final = 500
"""Control cells of the energy distance at most."""
AXES: Final = 50
AXES_CELLS: Final = 1000
POINTS: Final = 24
"""Predicted cells kept as points of the plane for each condition."""


@dataclass(frozen=True)
class Reference:
    """Untreated cells over G genes: `mean` and `variance` [G], number `n`; `axes`, and on them the `coordinates` [m, D]
    of some, with the mean distance `spread` between two of them."""

    mean: Floats
    variance: Floats
    n: int
    axes: Axes
    coordinates: Floats
    spread: float

    @classmethod
    def of(cls, cells: sp.csr_matrix, shifts: Floats, seed: int) -> Reference:
        """The reference of control `cells` [N, G]; the axes also see control cells moved by measured `shifts` [C, G].

        Axes of control cells alone would miss the directions that only perturbations open.
        """
        axes = principal_axes(_seen(cells, shifts, seed), AXES, derive(seed, "screen", "axes"))
        empty = np.empty(0)
        return cls(empty, empty, 0, axes, empty, 0.0).of_group(cells, seed)

    def project(self, cells: Floats) -> Floats:
        """Coordinates [M, D] of `cells` [M, G]."""
        return self.axes.project(np.ascontiguousarray(cells.T))

    def energy(self, cells: Floats) -> float:
        """Energy distance of `cells` [M, G] to the control cells."""
        coordinates = self.project(cells)
        return energy_distance(coordinates, self.coordinates, self.spread)

    def shifted(self, mean: Floats, variance: Floats, n: int) -> int:
        """Genes whose mean differs from control's by more than sampling explains, at NOISE_LEVEL for all together.

        z = |mean − control mean| / √(variance/n + control variance/n_control), two-sided.
        """
        error = np.sqrt(variance / n + self.variance / self.n)
        limit = norm.isf(NOISE_LEVEL / (2 * len(self.mean)))
        return int((np.abs(mean - self.mean) > limit * np.maximum(error, 1e-12)).sum())

    def of_group(self, cells: sp.csr_matrix, seed: int) -> Reference:
        """The reference of some of the control `cells` [n, G], on the same axes."""
        mean, variance = _moments(cells)
        rows = _drawn(cells.shape[0], CONTROLS, numpy_rng(seed, "screen", "controls"))
        coordinates = self.axes.project(cells[rows].toarray().T)
        return Reference(mean, variance, cells.shape[0], self.axes, coordinates, mean_distance(coordinates))


@dataclass(frozen=True)
class Untreated:
    """The control cells of a screen over its genes, and for each condition those it is compared with."""

    table: CellTable
    columns: np.ndarray
    whole: Reference
    seed: int
    _groups: dict[bytes, Reference] = field(default_factory=dict, repr=False)

    def of(self, condition: str) -> Reference:
        """The reference of `condition`: the control cells of its covariates, all of them where there are none."""
        rows = self.table.control_rows(condition)
        if len(rows) == self.table.n:
            return self.whole
        key = rows.tobytes()
        if key not in self._groups:
            self._groups[key] = self.whole.of_group(in_memory(subset(self.table.X, rows, self.columns)), self.seed)
        return self._groups[key]

    def means(self, conditions: Sequence[str]) -> Floats:
        """The control mean [k, G] of each of `conditions`."""
        return np.stack([self.of(name).mean for name in conditions])


def _moments(cells: sp.csr_matrix) -> tuple[Floats, Floats]:
    """Mean and variance (divided by n) of every gene."""
    mean = np.asarray(cells.mean(axis=0), dtype=np.float64).ravel()
    square = np.asarray(cells.multiply(cells).mean(axis=0), dtype=np.float64).ravel()
    return mean, np.maximum(square - mean * mean, 0)


def _drawn(n: int, most: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(n) if n <= most else np.sort(rng.choice(n, most, replace=False))


def _seen(cells: sp.csr_matrix, shifts: Floats, seed: int) -> Floats:
    """Dense cells [m, G] that the axes are fitted on: control cells, and as many moved by a measured shift each."""
    rng = numpy_rng(seed, "screen", "axes cells")
    still = cells[_drawn(cells.shape[0], AXES_CELLS, rng)].toarray()
    if not len(shifts):
        return np.asarray(still, dtype=np.float32)
    moved = still[rng.integers(len(still), size=AXES_CELLS)]
    moved = moved + shifts[np.arange(AXES_CELLS) % len(shifts)]
    return np.concatenate([still, np.maximum(moved, 0)]).astype(np.float32)


def mean_distance(coordinates: Floats) -> float:
    """Mean distance between two different ones of the points `coordinates` [n, D]; NaN below two."""
    n = len(coordinates)
    if n < 2:
        return float("nan")
    distances = np.sqrt(squared_distances(coordinates, coordinates))
    return float((distances.sum() - np.trace(distances)) / (n * (n - 1)))


def energy_distance(x: Floats, y: Floats, spread_y: float | None = None) -> float:
    """2E‖x−y‖ − E‖x−x'‖ − E‖y−y'‖ of points [n, D] and [m, D], over pairs of different points (unbiased)."""
    cross = float(np.sqrt(squared_distances(x, y)).mean())
    return 2 * cross - mean_distance(x) - (mean_distance(y) if spread_y is None else spread_y)


@dataclass(frozen=True)
class Effect:
    """What a screen keeps of one predicted population."""

    mean: Floats
    """Mean log1p expression [G], over all runs."""
    energy: float
    """Energy distance to the control cells."""
    genes_shifted: int
    """Genes shifted beyond noise."""
    shift: float
    """‖mean − control mean‖."""
    spread: float
    """Disagreement of the runs, √(Σₖ‖meanₖ − mean‖² / (K−1)); of one run its mean's sampling noise, √(Σ variance/n)."""
    points: Floats
    """The first POINTS cells on two principal axes, [POINTS, 2] (NaN where there are fewer)."""

    @classmethod
    def of(cls, populations: list[Floats], reference: Reference) -> Effect:
        """The effect of one condition's predicted `populations`, one of each run, [M, G] each."""
        cells = np.concatenate(populations)
        means = np.stack([population.mean(axis=0, dtype=np.float64) for population in populations])
        mean = means.mean(axis=0)
        variance = cells.var(axis=0, dtype=np.float64)
        if len(means) > 1:
            spread = float(np.sqrt(np.square(means - mean).sum() / (len(means) - 1)))
        else:
            spread = float(np.sqrt(variance.sum() / len(cells)))
        points = np.full((POINTS, 2), np.nan)
        some = reference.project(populations[0][:POINTS])[:, :2]
        points[: len(some), : some.shape[1]] = some
        return cls(
            mean=mean, energy=reference.energy(cells), genes_shifted=reference.shifted(mean, variance, len(cells)),
            shift=float(np.linalg.norm(mean - reference.mean)), spread=spread, points=points,
        )  # fmt: skip
