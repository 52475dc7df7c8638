"""What the real cells say of themselves: how well one half of a condition's cells predicts the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control, ttest_ind_from_stats

from scdfm.evaluation.pseudobulk import Floats, Moments, Population, Rows, moments
from scdfm.seeds import numpy_rng

CEILING, DUPLICATE = "ceiling", "duplicate"


@dataclass(frozen=True)
class Halves:
    """For each condition, the rows of the predicting half and of the cells it is compared with."""

    predicting: dict[str, Rows]
    compared: dict[str, Rows]

    def moments(self, population: Population, conditions: Sequence[str]) -> tuple[Moments, Moments]:
        """Moments [K, A] of the predicting and of the compared cells; NaN where there are none."""
        sides = []
        for rows in (self.predicting, self.compared):
            stats = moments(replace(population, rows=rows), conditions)
            empty = np.array([not len(rows[c]) for c in conditions])
            for values in (stats.mean, stats.variance, stats.zero):
                values[empty] = np.nan
            sides.append(stats)
        return sides[0], sides[1]


def disjoint_halves(population: Population, conditions: Sequence[str], seed: int) -> Halves:
    """Two random halves without a common cell; the draw of a condition depends on the seed and its name alone."""
    predicting, compared = {}, {}
    for condition in conditions:
        rows = population.rows[condition]
        order = numpy_rng(seed, "halves", condition).permutation(rows)
        predicting[condition] = np.sort(order[: len(rows) // 2])
        compared[condition] = np.sort(order[len(rows) // 2 :]) if len(rows) > 1 else order[:0]
    return Halves(predicting, compared)


def half_against_all(population: Population, conditions: Sequence[str], seed: int) -> Halves:
    """One random half against *all* cells (itself among them): the ceiling of the norman-like table.

    It draws from `numpy.random.default_rng(seed)` in the order of `conditions`.
    """
    rng = np.random.default_rng(seed)
    predicting = {}
    for condition in conditions:
        rows = population.rows[condition]
        predicting[condition] = np.sort(rows[rng.permutation(len(rows))[: len(rows) // 2]])
    return Halves(predicting, {condition: population.rows[condition] for condition in conditions})


def interpolated_duplicate(
    half: Moments, n: Floats, control: Moments, n_control: Floats, training_mean: Floats
) -> Floats:
    """The interpolated duplicate (bioRxiv 2025.10.20.683304), [K, A]: (1 − q) · half + q · training mean.

    q is the FDR of the half's cells against control: where a gene shows nothing, the half's mean is noise and
    the training mean the better guess. It is a positive control: a metric on which it does not beat the baselines
    cannot tell a good model from a bad one. The test is Welch's, from the moments [K, A] of the halves (of `n`
    cells [K]) and of control, [1, A] or [K, A] (of `n_control` cells [K, 1]); without spread in both, q is 0 where
    the means differ and 1 where not.
    """
    count = np.asarray(n, dtype=np.int64)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        of_control: Any = n_control  # scipy's types ask for whole numbers, its formula does not
        test = ttest_ind_from_stats(
            half.mean,
            np.sqrt(half.variance * count / (count - 1)),
            count,
            control.mean,
            np.sqrt(control.variance * n_control / (n_control - 1)),
            of_control,
            equal_var=False,
        )
    p_value = np.where(np.isnan(test.pvalue), half.mean == control.mean, test.pvalue)
    q = false_discovery_control(p_value, axis=1)
    return np.asarray((1 - q) * half.mean + q * training_mean)
