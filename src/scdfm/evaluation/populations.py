"""Distribution metrics of every predictor, one condition at a time, so that one condition's cells are dense at once.

A model and the ceiling are scored by their own cells. The baselines predict means only; for these metrics each
is represented by real control cells, shifted by its predicted mean shift and clipped at 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from scdfm.data.conditions import CONTROL
from scdfm.evaluation.alignment import Pair
from scdfm.evaluation.ceiling import CEILING, Halves
from scdfm.evaluation.distribution import (
    Axes,
    Reference,
    energy_and_mmd,
    principal_axes,
    spread_errors,
    wasserstein,
)
from scdfm.evaluation.metrics import DISTRIBUTION
from scdfm.evaluation.pseudobulk import Floats, Population, Rows, row_means, taken
from scdfm.seeds import derive, numpy_rng

CELLS = 500
"""Cells of a condition that take part at most."""
CONTROLS = 250
"""Control cells that stand for a baseline's population."""
AXES_CELLS = 2000
AXES = 50
"""Principal axes of the energy distance and the MMD, and the real cells they are fitted on."""

Scores = dict[str, float]


@dataclass(frozen=True)
class Truth:
    """Real cells of one condition: `ordered` [A, n] values sorted per gene, moments [A], principal coordinates."""

    ordered: Floats
    variance: Floats
    zero: Floats
    reference: Reference

    @classmethod
    def of(cls, cells: Floats, axes: Axes) -> Truth:
        """Prepare `cells` [A, n], n at least 2."""
        return cls(
            ordered=np.sort(cells, axis=1),
            variance=cells.var(axis=1, dtype=np.float64),
            zero=(cells == 0).mean(axis=1),
            reference=Reference.of(axes.project(cells)),
        )

    def score(self, cells: Floats, axes: Axes, ordered: Floats | None = None) -> Scores:
        """The distribution metrics of `cells` [A, m] against these."""
        ordered = np.sort(cells, axis=1) if ordered is None else ordered
        energy, mmd = energy_and_mmd(axes.project(cells), self.reference)
        variance, zero = spread_errors(cells, self.variance, self.zero)
        values = (energy, mmd, wasserstein(ordered, self.ordered), variance, zero)
        return dict(zip(DISTRIBUTION, values, strict=True))


@dataclass(frozen=True)
class StandIn:
    """Control cells [A, n] that take the place of a baseline's population, and the same sorted per gene."""

    cells: Floats
    ordered: Floats
    mean: Floats

    @classmethod
    def of(cls, real: Population, seed: int) -> StandIn:
        """Control cells drawn from `real`."""
        rows = real.rows[CONTROL]
        cells = _cells(real, rows, CONTROLS, seed, "controls")
        return cls(cells, np.sort(cells, axis=1), row_means(real.X, rows))

    def score(self, predicted: Floats, truth: Truth, axes: Axes) -> Scores:
        """Scores of the control cells shifted to `predicted` [A]; sorting survives a shift and a clip."""
        shift = (predicted - self.mean).astype(np.float32)[:, None]
        return truth.score(np.maximum(self.cells + shift, 0), axes, np.maximum(self.ordered + shift, 0))


def score_populations(
    pair: Pair,
    model: str,
    means: Mapping[str, Floats],
    halves: Halves | None,
    metrics: Iterable[str],
    seed: int,
) -> dict[str, dict[str, Floats]]:
    """Values model -> metric -> [K] of the distribution `metrics`: of the prediction (called `model`), of the
    stand-ins of baselines' `means` [K, A], and of the ceiling's `halves`. NaN below two cells on either side."""
    asked = set(metrics)
    wanted = [str(name) for name in DISTRIBUTION if name in asked]
    if not wanted:
        return {}
    models = [*([model] if pair.predicted else []), *means, *([CEILING] if halves else [])]
    values = {name: {metric: np.full(len(pair.conditions), np.nan) for metric in wanted} for name in models}
    scorer = Scorer(pair, _axes(pair, seed), StandIn.of(pair.real, seed), seed)
    for k, condition in enumerate(pair.conditions):
        found = scorer.predicted(condition, model, {name: mean[k] for name, mean in means.items()})
        if halves is not None:
            found |= scorer.ceiling(condition, halves)
        for name, scores in found.items():
            for metric in wanted:
                values[name][metric][k] = scores[metric]
    return values


@dataclass(frozen=True)
class Scorer:
    """What every condition's scores share."""

    pair: Pair
    axes: Axes
    stand_in: StandIn
    seed: int

    def predicted(self, condition: str, model: str, means: Mapping[str, Floats]) -> dict[str, Scores]:
        """Scores of the prediction and of the baselines' stand-ins against all real cells."""
        real = self._cells(self.pair.real, self.pair.real.rows[condition], "real", condition)
        if real.shape[1] < 2:
            return {}
        truth = Truth.of(real, self.axes)
        found = {
            name: self.stand_in.score(mean, truth, self.axes)
            for name, mean in means.items()
            if np.isfinite(mean).all()
        }
        if self.pair.predicted is not None:
            rows = self.pair.predicted.rows[condition]
            cells = self._cells(self.pair.predicted, rows, "predicted", condition)
            if cells.shape[1] >= 2:
                found[model] = truth.score(cells, self.axes)
        return found

    def ceiling(self, condition: str, halves: Halves) -> dict[str, Scores]:
        """Scores of one half of the real cells against the other."""
        cells = self._cells(self.pair.real, halves.predicting[condition], "predicting", condition)
        other = self._cells(self.pair.real, halves.compared[condition], "compared", condition)
        if min(cells.shape[1], other.shape[1]) < 2:
            return {}
        return {CEILING: Truth.of(other, self.axes).score(cells, self.axes)}

    def _cells(self, population: Population, rows: Rows, *path: str) -> Floats:
        return _cells(population, rows, CELLS, self.seed, *path)


def _axes(pair: Pair, seed: int) -> Axes:
    rows = np.concatenate([pair.real.rows[c] for c in (CONTROL, *pair.conditions)])
    cells = _cells(pair.real, np.sort(rows), AXES_CELLS, seed, "axes")
    return principal_axes(np.ascontiguousarray(cells.T), AXES, derive(seed, "axes", "solver"))


def _cells(population: Population, rows: Rows, limit: int, seed: int, *path: str) -> Floats:
    """Dense float32 [A, n] of `rows`, at most `limit` of them drawn without replacement."""
    if len(rows) > limit:
        rows = np.sort(numpy_rng(seed, "population", *path).choice(rows, limit, replace=False))
    return np.ascontiguousarray(taken(population.X, rows).toarray().T)
