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
from scdfm.evaluation.expression import RankTests, against_control
from scdfm.evaluation.pseudobulk import Population, Rows, row_means, taken
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
    tests: RankTests | None = None
    """Of the conditions [K, A], where they were made."""

    @classmethod
    def of(cls, pair: Pair, tests: RankTests | None = None) -> Populations:
        """The populations of an aligned prediction, with the tests of its conditions."""
        assert pair.predicted is not None
        return cls(pair.real, pair.predicted, pair.conditions, tests)

    def control_mean(self, condition: str) -> pd.Series[float]:
        """Mean per gene of the real control cells that a condition is compared with (log1p)."""
        if condition not in self._control_means:
            self._control_means[condition] = pd.Series(self.real.control_mean(condition), self.real.genes)
        return self._control_means[condition]

    @cached_property
    def _control_means(self) -> dict[str, pd.Series[float]]:
        return {}

    @cached_property
    def real_shifts(self) -> pd.DataFrame:
        """Mean − control mean of every condition (condition × gene, log1p)."""
        return self._shifts(self.real)

    @cached_property
    def predicted_shifts(self) -> pd.DataFrame:
        """Predicted mean − real control mean of every condition (condition × gene, log1p)."""
        return self._shifts(self.predicted)

    def _shifts(self, population: Population) -> pd.DataFrame:
        shifts = [
            row_means(population.X, population.rows[name]) - self.control_mean(name).to_numpy()
            for name in self.conditions
        ]
        return pd.DataFrame(shifts, index=list(self.conditions), columns=self.real.genes)

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
        if self.tests is None:
            z = np.abs(against_control(self.real, conditions, CONTROL).z)
        else:
            z = np.abs(self.tests.z[[self.conditions.index(name) for name in conditions]])
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
        fitted = np.concatenate([_drawn(self.real, self.real.rows[name], each, rng) for name in names])
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
        groups = {
            "control": (real, real.control_rows(condition)),
            "real": (real, real.rows[condition]),
            "predicted": (predicted, predicted.rows[condition]),
        }
        return {
            name: _projected(self.pca, _drawn(population, rows, MOST_SHOWN, rng))
            for name, (population, rows) in groups.items()
        }


def _drawn(population: Population, rows: Rows, most: int, rng: np.random.Generator) -> Array:
    """At most `most` of the cells `rows`, dense [n, G]."""
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
