"""Distribution metrics of every predictor, a few conditions at a time, so that few cells are dense at once.

A model, its prior and the ceiling are scored by their own cells. The baselines predict means only; for these metrics each
is represented by real control cells, shifted by its predicted mean shift and clipped at 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from scdfm.data.conditions import CONTROL
from scdfm.evaluation.alignment import Pair
from scdfm.evaluation.ceiling import CEILING, Halves
from scdfm.evaluation.distribution import (
    Axes,
    Sample,
    Truth,
    energy_and_mmd,
    mean_error,
    principal_axes,
    wasserstein,
)
from scdfm.evaluation.expression import n_threads
from scdfm.evaluation.pseudobulk import Floats, Population, Rows, row_moments, taken
from scdfm.evaluation.registry import DISTRIBUTION
from scdfm.seeds import derive, numpy_rng

CELLS = 500
"""Cells of a condition that take part at most (variances and shares of zeros are over all)."""
CONTROLS = 1000
"""Control cells that stand-ins are drawn from at most."""
AXES = 50
AXES_CELLS = 1000
"""Principal axes of the energy distance and the MMD, and the real cells they are fitted on."""

Scores = dict[str, float]


def score_populations(
    pair: Pair,
    generated: Mapping[str, Population],
    means: Mapping[str, Floats],
    halves: Halves | None,
    metrics: Iterable[str],
    seed: int,
    progress: bool = False,
) -> dict[str, dict[str, Floats]]:
    """Values model -> metric -> [K] of the distribution `metrics`: of `generated` populations (the prediction and its
    prior), of the stand-ins of baselines' `means` [K, A], and of the ceiling's `halves`. NaN below two cells on either
    side. Equal populations have equal scores: which cells take part depends on the seed and the condition alone."""
    asked = set(metrics)
    wanted = [str(name) for name in DISTRIBUTION if name in asked]
    if not wanted:
        return {}
    models = [*generated, *means, *([CEILING] if halves else [])]
    values = {name: {metric: np.full(len(pair.conditions), np.nan) for metric in wanted} for name in models}
    scorer = Scorer.of(pair, generated, means, halves, seed)
    # One BLAS thread each: conditions are the parallel work, and sums do not depend on the number of threads.
    with threadpool_limits(1), ThreadPoolExecutor(n_threads()) as pool:
        scored = pool.map(scorer.scores, range(len(pair.conditions)))
        bar = tqdm(scored, "populations", len(pair.conditions), unit="condition", disable=not progress)
        for k, found in enumerate(bar):
            for name, scores in found.items():
                for metric in wanted:
                    values[name][metric][k] = scores[metric]
    return values


@dataclass(frozen=True)
class Scorer:
    """What every condition's scores share: axes, and unless conditions have control cells of their own, the control
    cells [A, n] that stand in and the mean [A] of all."""

    pair: Pair
    generated: Mapping[str, Population]
    means: Mapping[str, Floats]
    halves: Halves | None
    seed: int
    axes: Axes
    control: tuple[Floats, Floats] | None

    @classmethod
    def of(
        cls, pair: Pair, generated: Mapping[str, Population], means: Mapping[str, Floats], halves: Halves | None, seed: int
    ) -> Scorer:  # fmt: skip
        """Fit the axes on real cells and draw the control cells that stand in."""
        rows = np.concatenate([pair.real.rows[c] for c in (CONTROL, *pair.conditions)])
        rows = _limited(np.sort(rows), AXES_CELLS, seed, "axes")
        with threadpool_limits(1):
            axes = principal_axes(taken(pair.real.X, rows).toarray(), AXES, derive(seed, "axes", "solver"))
        shared = None if pair.real.matched else _controls(pair.real, CONTROL, seed)
        return cls(pair, generated, means, halves, seed, axes, shared)

    def scores(self, k: int) -> dict[str, Scores]:
        """Scores model -> metric of the k-th condition."""
        condition = self.pair.conditions[k]
        found: dict[str, Scores] = {}
        real = self._sample(self.pair.real, self.pair.real.rows[condition], "real", condition)
        if real is not None:
            truth = Truth.of(real)
            means = {name: mean[k] for name, mean in self.means.items() if np.isfinite(mean[k]).all()}
            found |= self._stand_ins(means, truth, condition)
            for name, population in self.generated.items():
                predicted = self._sample(population, population.rows[condition], "predicted", condition)
                if predicted is not None:
                    found[name] = compared(predicted, truth)
        if self.halves is not None:
            half = self._sample(self.pair.real, self.halves.predicting[condition], "predicting", condition)
            other = self._sample(self.pair.real, self.halves.compared[condition], "compared", condition)
            if half is not None and other is not None:
                found[CEILING] = compared(half, Truth.of(other))
        return found

    def _sample(self, population: Population, rows: Rows, *path: str) -> Sample | None:
        if len(rows) < 2:
            return None
        cells = drawn(population, rows, CELLS, self.seed, *path)
        _, variance, zero = row_moments(population.X, rows)
        return Sample(np.sort(cells, axis=1), self.axes.project(cells), variance, zero)

    def _stand_ins(self, means: Mapping[str, Floats], truth: Truth, condition: str) -> dict[str, Scores]:
        """Scores of as many control cells as there are real ones, shifted to each of `means` [A]."""
        if not means:
            return {}
        real = self.pair.real
        cells, control_mean = self.control or _controls(real, condition, self.seed)
        n = truth.sample.ordered.shape[1]
        if cells.shape[1] < 2:
            return {}
        if cells.shape[1] > n:
            order = numpy_rng(self.seed, "population", "stand-in", condition).permutation(cells.shape[1])
            cells = np.take(cells, np.sort(order[:n]), axis=1)
        ordered = np.sort(cells, axis=1)
        found = {}
        for name, mean in means.items():
            shift = (mean - control_mean).astype(np.float32)[:, None]
            shifted = np.maximum(ordered + shift, 0)  # a shift and a clip keep the order
            average = shifted.mean(axis=1)
            variance = np.einsum("an,an->a", shifted, shifted) / shifted.shape[1] - average * average
            zero = 1 - np.count_nonzero(shifted, axis=1) / shifted.shape[1]
            coordinates = self.axes.project(np.maximum(cells + shift, 0))
            found[name] = compared(Sample(shifted, coordinates, variance, zero), truth)
        return found


def _controls(population: Population, condition: str, seed: int) -> tuple[Floats, Floats]:
    """Control cells [A, n] of `condition` that stand in, at most CONTROLS, and the mean [A] of all of them."""
    rows, shares = population.control_rows(condition), population.shares.get(condition)
    if shares is not None:  # cells of each batch as the condition has them
        rng = numpy_rng(seed, "population", "matched", condition)
        rows = np.sort(rng.choice(rows, min(len(rows), CONTROLS), p=shares))
    return drawn(population, rows, CONTROLS, seed, "controls"), population.control_mean(condition)


def compared(sample: Sample, truth: Truth) -> Scores:
    """The distribution metrics of `sample` against the real population."""
    real = truth.sample
    values = (
        *energy_and_mmd(sample.coordinates, truth),
        wasserstein(sample.ordered, real.ordered),
        mean_error(sample.variance, real.variance),
        mean_error(sample.zero, real.zero),
    )
    return dict(zip(DISTRIBUTION, values, strict=True))


def drawn(population: Population, rows: Rows, limit: int, seed: int, *path: str) -> Floats:
    """Dense float32 [A, n] of `rows`, at most `limit` of them."""
    return np.ascontiguousarray(taken(population.X, _limited(rows, limit, seed, *path)).toarray().T)


def _limited(rows: Rows, limit: int, seed: int, *path: str) -> Rows:
    """At most `limit` of `rows`, drawn without replacement."""
    if len(rows) <= limit:
        return rows
    return np.sort(numpy_rng(seed, "population", *path).choice(rows, limit, replace=False))
