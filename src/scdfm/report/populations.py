"""The cells behind a report: shifts of real and predicted means, and a plane to see the cells on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdfm.data.conditions import CONTROL
from scdfm.evaluation.alignment import Pair
from scdfm.evaluation.expression import against_control
from scdfm.evaluation.pseudobulk import Population, row_means, taken
from scdfm.seeds import numpy_rng

if TYPE_CHECKING:
    from sklearn.decomposition import PCA

MOST_FITTED, MOST_SHOWN = 3000, 400
"""Cells that the plane is fitted on, and cells of one population drawn on it."""

Array = NDArray[Any]
Limits = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Populations:
    """Real cells (control among them) and predicted cells of the scored conditions, on the same genes."""

    real: Population
    predicted: Population
    conditions: tuple[str, ...]

    @classmethod
    def of(cls, pair: Pair) -> Populations:
        """The populations of an aligned prediction."""
        assert pair.predicted is not None
        return cls(pair.real, pair.predicted, pair.conditions)

    @cached_property
    def control_mean(self) -> pd.Series[float]:
        """Mean of the real control cells per gene (log1p)."""
        return pd.Series(row_means(self.real.X, self.real.rows[CONTROL]), self.real.genes)

    @cached_property
    def real_shifts(self) -> pd.DataFrame:
        """Mean − control mean of every condition (condition × gene, log1p)."""
        return self._shifts(self.real)

    @cached_property
    def predicted_shifts(self) -> pd.DataFrame:
        """Predicted mean − real control mean of every condition (condition × gene, log1p)."""
        return self._shifts(self.predicted)

    def _shifts(self, population: Population) -> pd.DataFrame:
        means = [row_means(population.X, population.rows[name]) for name in self.conditions]
        return pd.DataFrame(means, index=list(self.conditions), columns=self.real.genes) - self.control_mean

    def n_cells(self, condition: str) -> tuple[int, int]:
        """Numbers of real and of predicted cells of `condition`."""
        return self.real.n_cells(condition), self.predicted.n_cells(condition)

    def expression(self, population: Population, condition: str, genes: Sequence[str]) -> pd.DataFrame:
        """Cells of `condition` × `genes` (log1p)."""
        columns = pd.Index(self.real.genes).get_indexer(pd.Index(genes))
        block = taken(population.X, population.rows[condition])[:, columns]
        return pd.DataFrame(block.toarray(), columns=list(genes))

    def responders(self, conditions: Sequence[str], n: int) -> dict[str, list[str]]:
        """For each condition the `n` genes whose real cells differ most clearly from control (Mann-Whitney |z|)."""
        z = np.abs(against_control(self.real, conditions, CONTROL).z)
        order = np.argsort(-np.nan_to_num(z), axis=1, kind="stable")[:, :n]
        return {
            name: [str(gene) for gene in self.real.genes[row]]
            for name, row in zip(conditions, order, strict=True)
        }

    def plane(self, seed: int = 0) -> Plane:
        """Principal components of real cells: control and scored conditions, the same number from each."""
        from sklearn.decomposition import PCA

        rng = numpy_rng(seed, "report", "plane")
        names = (CONTROL, *self.conditions)
        each = max(5, MOST_FITTED // len(names))
        fitted = np.concatenate([_drawn(self.real, name, each, rng) for name in names])
        n_components = min(2, *fitted.shape)
        pca = PCA(n_components, svd_solver="randomized", random_state=int(rng.integers(2**31))).fit(fitted)
        return Plane(self, pca, _limits(_projected(pca, fitted)), seed)


@dataclass(frozen=True)
class Plane:
    """Two principal components of the real cells, and the part of the plane that holds almost all of them."""

    populations: Populations
    pca: PCA
    limits: Limits
    seed: int

    @property
    def names(self) -> list[str]:
        """The axes, with the share of the variance each explains."""
        shares = [*self.pca.explained_variance_ratio_, 0.0][:2]
        return [f"PC {index + 1} ({share:.0%} of variance)" for index, share in enumerate(shares)]

    def points(self, condition: str) -> dict[str, Array]:
        """Coordinates [n, 2] of control, real and predicted cells (at most 400 of each)."""
        real, predicted = self.populations.real, self.populations.predicted
        rng = numpy_rng(self.seed, "report", "points", condition)
        wanted = {"control": (real, CONTROL), "real": (real, condition), "predicted": (predicted, condition)}
        return {
            name: _projected(self.pca, _drawn(population, label, MOST_SHOWN, rng))
            for name, (population, label) in wanted.items()
        }


def _drawn(population: Population, condition: str, most: int, rng: np.random.Generator) -> Array:
    """At most `most` cells of `condition`, dense [n, G]."""
    rows = population.rows[condition]
    if len(rows) > most:
        rows = np.sort(rng.choice(rows, most, replace=False))
    return np.asarray(taken(population.X, rows).toarray())


def _projected(pca: PCA, cells: Array) -> Array:
    points = np.asarray(pca.transform(cells))
    return np.column_stack([points, np.zeros(len(points))])[:, :2]


def _limits(points: Array) -> Limits:
    low, high = np.quantile(points, [0.005, 0.995], axis=0)
    pad = 0.12 * (high - low) + 1e-3
    return (float(low[0] - pad[0]), float(high[0] + pad[0])), (
        float(low[1] - pad[1]),
        float(high[1] + pad[1]),
    )
