"""Control cells in two halves, so that truth and prediction need not subtract the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scdfm.data.conditions import CONTROL
from scdfm.evaluation.pseudobulk import Floats, Population, Rows, control_moments
from scdfm.seeds import numpy_rng


def halved_controls(population: Population, seed: int) -> tuple[Population, Population]:
    """`population` twice, each with one random half of every set of control cells; the halves share no cell."""
    halves: dict[bytes, tuple[Rows, Rows]] = {}

    def split(rows: Rows) -> tuple[Rows, Rows]:
        key = rows.tobytes()
        if key not in halves:
            order = numpy_rng(seed, "control halves", len(halves)).permutation(rows)
            halves[key] = np.sort(order[: len(rows) // 2]), np.sort(order[len(rows) // 2 :])
        return halves[key]

    shared = split(population.rows[CONTROL])
    own = {name: split(rows) for name, rows in population.matched.items()}
    first, second = (
        replace(
            population,
            rows={**population.rows, CONTROL: shared[side]},
            matched={name: parts[side] for name, parts in own.items()},
        )
        for side in (0, 1)
    )
    return first, second


def control_means(population: Population, conditions: Sequence[str]) -> Floats:
    """The control mean of each condition [K, A], or one [A] for all; NaN without a cell."""
    means = control_moments(population, conditions).mean
    if not population.matched:
        return means[0] if population.n_cells(CONTROL) else np.full(means.shape[1], np.nan)
    empty = np.array([not len(population.control_rows(c)) for c in conditions])
    return np.where(empty[:, None], np.nan, means)
