"""How well whole populations agree: distances between cells, and their values for every predictor.

Populations of cells are dense blocks [A, n] of log1p values, genes first, so that a gene's values lie together. A few
conditions are scored at a time, so that few cells are dense at once.

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
from scdfm.evaluation.expression import n_threads
from scdfm.evaluation.metrics import DISTRIBUTION
from scdfm.evaluation.pseudobulk import Floats, Population, Rows, row_moments, taken
from scdfm.seeds import derive, numpy_rng

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
    solver = PCA(n_components=n, svd_solver="randomized", iterated_power=4, copy=False, random_state=seed % 2**32)
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
    requested_metrics = set(metrics)
    distribution_metrics = [str(name) for name in DISTRIBUTION if name in requested_metrics]
    if not distribution_metrics:
        return {}
    models = [*generated, *means, *([CEILING] if halves else [])]
    values = {
        name: {metric: np.full(len(pair.conditions), np.nan) for metric in distribution_metrics} for name in models
    }
    scorer = Scorer.of(pair, generated, means, halves, seed)
    # One BLAS thread each: conditions are the parallel work, and sums do not depend on the number of threads.
    with threadpool_limits(1), ThreadPoolExecutor(n_threads()) as pool:
        scored = pool.map(scorer.scores, range(len(pair.conditions)))
        bar = tqdm(scored, "populations", len(pair.conditions), unit="condition", disable=not progress)
        for k, model_scores in enumerate(bar):
            for name, scores in model_scores.items():
                for metric in distribution_metrics:
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
        model_scores: dict[str, Scores] = {}
        real = self._sample(self.pair.real, self.pair.real.rows[condition], "real", condition)
        if real is not None:
            truth = Truth.of(real)
            means = {name: mean[k] for name, mean in self.means.items() if np.isfinite(mean[k]).all()}
            model_scores |= self._stand_ins(means, truth, condition)
            for name, population in self.generated.items():
                predicted = self._sample(population, population.rows[condition], "predicted", condition)
                if predicted is not None:
                    model_scores[name] = compared(predicted, truth)
        if self.halves is not None:
            half = self._sample(self.pair.real, self.halves.predicting[condition], "predicting", condition)
            other = self._sample(self.pair.real, self.halves.compared[condition], "compared", condition)
            if half is not None and other is not None:
                model_scores[CEILING] = compared(half, Truth.of(other))
        return model_scores

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
        model_scores = {}
        for name, mean in means.items():
            shift = (mean - control_mean).astype(np.float32)[:, None]
            shifted = np.maximum(ordered + shift, 0)  # a shift and a clip keep the order
            average = shifted.mean(axis=1)
            variance = np.einsum("an,an->a", shifted, shifted) / shifted.shape[1] - average * average
            zero = 1 - np.count_nonzero(shifted, axis=1) / shifted.shape[1]
            coordinates = self.axes.project(np.maximum(cells + shift, 0))
            model_scores[name] = compared(Sample(shifted, coordinates, variance, zero), truth)
        return model_scores


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
