"""How far generated cells are from real ones, and control cells that are brought to a mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scdfm.evaluation.populations import Axes, Sample, Truth, energy_and_mmd, mean_error, principal_axes, wasserstein
from scdfm.seeds import derive, numpy_rng

Cells = npt.NDArray[np.float32]
"""[n, G] log1p expression, cells first."""
ALONE = ("variance", "zeros", "correlation", "auc")
"""What a shift of genes leaves alone, or makes meaningless."""
SHAPES = ("energy", "mmd", "wasserstein", "responders", "response", "auc_axes")
METRICS = ("l2", *SHAPES, *ALONE)
EQUAL = tuple(f"{name}=" for name in SHAPES)
"""SHAPES after the means are made equal."""
AXES = 50
VARIES = 0.1
"""Share of cells in which a gene is on, from which it counts for correlations and responders."""
CLEAR = 3.0
"""Standard errors by which real cells must differ from controls along their shift, for responders to be told."""
FACTOR = 3.0
"""Most by which `equalled` multiplies a gene: a few cells cannot stand for many."""


def compare(
    predicted: Cells, real: Cells, control: Cells, axes: Axes | None = None, seed: int = 0, classify: bool = True
) -> dict[str, float]:
    """How far generated cells are from real ones: METRICS, and EQUAL, some of them after the means are made equal.

    All three are dense log1p arrays, cells × genes, the genes in one order; some hundred cells take about a second, without
    `classify` (the areas under the curve) a tenth of one:

        sys.path.insert(0, "benchmarks"); from population_scores import axes_of, compare
        compare(generated, other_half, control_cells, axes_of(all_real_cells))["wasserstein"]

    Lower is better (`auc`: 0.5 is perfect). `l2` of means. `energy` distance and `mmd`² on 50 principal `axes`, unbiased
    for independent cells: forced or stratified means make them too small, axes of few real cells too large (without
    `axes` they are those of control and real cells). `wasserstein`, `variance` and `zeros`: mean over genes of the
    1-Wasserstein distance and of the errors of variance and of the share of zeros. `correlation`: root mean square error
    over pairs of genes that are on in a tenth of the real cells. `responders`: error of the share of cells that lie
    nearer to the real mean than to that of control, and `response`: 1-Wasserstein distance, both along the real shift over
    the variance of each such gene; control is at 0, the real mean at 1. The shift comes from one half of the real
    cells and is applied to the other, in turn; NaN unless they differ from controls by 3 standard errors. `auc`: how well
    boosted trees tell real from generated, 5-fold cross-validated, by genes (impossible values show), and `auc_axes` by
    the axes. NAME=: after generated cells are shifted, gene by gene, by what their mean misses, without a cut at 0.
    """
    predicted, real, control = (np.ascontiguousarray(x, dtype=np.float32) for x in (predicted, real, control))
    axes = axes_of(np.vstack([control, real])) if axes is None else axes
    judge = _Judge(real, control, seed, classify, axes, Truth.of(_sample(real, axes)))
    missed = real.mean(0) - predicted.mean(0)
    scores = {"l2": float(np.linalg.norm(missed)), **judge.shapes(predicted), **judge.alone(predicted)}
    equal = judge.shapes(predicted + missed, equal=True)
    return scores | {f"{name}=": value for name, value in equal.items()}


def axes_of(cells: Cells) -> Axes:
    """Principal axes of real cells, for `compare`."""
    return principal_axes(cells.copy(), AXES, derive(0, "axes"))


def equalled(cells: Cells, wanted: npt.NDArray[Any]) -> Cells:
    """Cells with the mean `wanted` [G] in every gene by multiplication, so that zeros stay zeros; at most tripled."""
    found = cells.mean(0, dtype=np.float64)
    factor = np.divide(wanted, found, out=np.ones(len(found)), where=found > 0)
    return (cells * np.minimum(factor, FACTOR)).astype(np.float32)


def moved(cells: Cells, wanted: npt.NDArray[Any]) -> Cells:
    """max(0, x + δ), δ for each gene such that the mean is `wanted` [G].

    n·mean(max(0, x + δ)) is the largest of S_k + k·δ over k = 1…n, S_k the sum of the k largest x.
    """
    n = len(cells)
    found, goal = cells.mean(0, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    sums = np.cumsum(-np.sort(-cells.astype(np.float64), axis=0), axis=0)
    shift = ((n * goal - sums) / np.arange(1, n + 1)[:, None]).min(0)
    # To the last digits a mean is what it was asked to be: nothing is to be added then, not even to zeros.
    shift = np.where(np.abs(goal - found) <= 1e-5 * found, 0, shift)
    return np.maximum(cells + shift, 0).astype(np.float32)


@dataclass(frozen=True)
class _Judge:
    """What does not depend on the prediction."""

    real: Cells
    control: Cells
    seed: int
    classify: bool
    axes: Axes
    truth: Truth

    def shapes(self, cells: Cells, equal: bool = False) -> dict[str, float]:
        """SHAPES of a population; `equal`, where its means were made equal."""
        sample, real = _sample(cells, self.axes), self.truth.sample
        values = (
            *energy_and_mmd(sample.coordinates, self.truth),
            wasserstein(sample.ordered, real.ordered),
            *response(cells, self.real, self.control, self.seed, equal),
            self._area(sample.coordinates, real.coordinates),
        )
        return dict(zip(SHAPES, values, strict=True))

    def alone(self, cells: Cells) -> dict[str, float]:
        """ALONE of a population."""
        sample, real = _sample(cells, self.axes), self.truth.sample
        on = _on(self.real)
        gap = correlations(cells[:, on]) - correlations(self.real[:, on])
        pairs = gap[np.triu_indices(len(gap), 1)]
        values = (
            mean_error(sample.variance, real.variance),
            mean_error(sample.zero, real.zero),
            float(np.sqrt(np.mean(pairs**2))) if len(pairs) else float("nan"),
            self._area(cells, self.real),
        )
        return dict(zip(ALONE, values, strict=True))

    def _area(self, predicted: npt.NDArray[Any], real: npt.NDArray[Any]) -> float:
        """Mean area under the ROC curve of boosted trees over 5 folds."""
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.model_selection import StratifiedKFold, cross_val_score

        if not self.classify or min(len(predicted), len(real)) < 10:
            return float("nan")
        trees = HistGradientBoostingClassifier(
            max_iter=40, max_leaf_nodes=8, learning_rate=0.15, early_stopping=False, random_state=self.seed
        )
        folds = StratifiedKFold(5, shuffle=True, random_state=self.seed)
        labels = np.repeat([0, 1], [len(predicted), len(real)])
        found = cross_val_score(trees, np.vstack([predicted, real]), labels, cv=folds, scoring="roc_auc")
        return float(found.mean())


def _on(cells: Cells) -> npt.NDArray[np.bool_]:
    """Genes that are on in a share VARIES of the cells."""
    return np.asarray((cells > 0).mean(0) >= VARIES)


def _sample(cells: Cells, axes: Axes) -> Sample:
    columns = np.ascontiguousarray(cells.T)
    return Sample(np.sort(columns, axis=1), axes.project(columns), columns.var(1), (columns == 0).mean(1))


def correlations(cells: Cells) -> npt.NDArray[np.float64]:
    """Pearson correlations of genes [g, g]; a gene without spread has none, 0."""
    centred = cells.astype(np.float64) - cells.mean(0, dtype=np.float64)
    length = np.linalg.norm(centred, axis=0)
    unit = np.divide(centred, length, out=np.zeros_like(centred), where=length > 1e-6)
    return np.asarray(unit.T @ unit)


def response(predicted: Cells, real: Cells, control: Cells, seed: int, equal: bool = False) -> tuple[float, float]:
    """Error of the share of responders, and 1-Wasserstein distance along the real shift, see `compare`.

    `equal` puts the predicted cells at the mean of the half that the shift does not come from: along it, the mean of all
    real cells lies too far out.
    """
    on = _on(real) | _on(control)
    predicted, real, control = (cells[:, on].astype(np.float64) for cells in (predicted, real, control))
    halves = np.array_split(numpy_rng(seed, "response").permutation(len(real)), 2)
    spread, zero = (control.var(0) + real.var(0)) / 2, control.mean(0)
    shares, distances = [], []
    for told, judged in (halves, halves[::-1]):
        direction = (real[told].mean(0) - zero) / spread
        ours, theirs, none = ((cells - zero) @ direction for cells in (predicted, real[judged], control))
        error = np.sqrt(theirs.var() / len(theirs) + none.var() / len(none))
        if not theirs.mean() > CLEAR * error > 0:
            return float("nan"), float("nan")
        if equal:
            ours = ours + (theirs.mean() - ours.mean())
        ours, theirs = ours / theirs.mean(), theirs / theirs.mean()
        shares.append(np.mean(ours > 0.5) - np.mean(theirs > 0.5))
        distances.append(wasserstein(np.sort(ours)[None], np.sort(theirs)[None]))
    return float(abs(np.mean(shares))), float(np.mean(distances))
