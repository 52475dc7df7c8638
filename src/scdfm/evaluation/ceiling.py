"""What the real cells say of themselves: how well one half of a condition's cells predicts the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scdfm.evaluation.expression import RankTests
from scdfm.evaluation.pseudobulk import Floats, Population, Rows, row_means
from scdfm.seeds import numpy_rng

CEILING, DUPLICATE = "ceiling", "duplicate"


@dataclass(frozen=True)
class Halves:
    """For each condition, the rows of the predicting half and of the cells it is compared with."""

    predicting: dict[str, Rows]
    compared: dict[str, Rows]

    def means(self, population: Population, conditions: Sequence[str]) -> tuple[Floats, Floats]:
        """Means [K, A] of the predicting and of the compared cells; NaN where there are none."""
        return tuple(  # type: ignore[return-value]
            np.array(
                [
                    row_means(population.X, rows[c]) if len(rows[c]) else _nothing(population)
                    for c in conditions
                ]
            )
            for rows in (self.predicting, self.compared)
        )


def _nothing(population: Population) -> Floats:
    return np.full(population.X.shape[1], np.nan)


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


def interpolated_duplicate(half: Floats, training_mean: Floats, tests: RankTests) -> Floats:
    """The positive control of Miller, Mejia et al. (2025), [K, A]: (1 − q) · half + q · training mean.

    q is the FDR of the half's cells against control: where a gene shows nothing, the half's mean is noise and
    the training mean the better guess. A metric on which this does not beat the baselines cannot tell a
    good model from a bad one.
    """
    return (1 - tests.fdr) * half + tests.fdr * training_mean
