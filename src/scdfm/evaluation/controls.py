"""Control cells in two halves, so that truth and prediction need not subtract the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from scdfm.data.cells import Stratum
from scdfm.data.conditions import CONTROL
from scdfm.evaluation.pseudobulk import Floats, Population, Rows, control_moments
from scdfm.seeds import numpy_rng


def halved_controls(population: Population, seed: int) -> tuple[Population, Population]:
    """`population` twice, each with one random half of every set of control cells; a condition's halves share no cell.

    Of a condition in several batches the controls of each batch are halved.
    """
    halves: dict[bytes, tuple[Rows, Rows]] = {}

    def split(rows: Rows) -> tuple[Rows, Rows]:
        key = rows.tobytes()
        if key not in halves:
            order = numpy_rng(seed, "control halves", len(halves)).permutation(rows)
            halves[key] = np.sort(order[: len(rows) // 2]), np.sort(order[len(rows) // 2 :])
        return halves[key]

    shared = split(population.rows[CONTROL])
    own = {name: split(rows) for name, rows in population.matched.items()}
    strata = {name: _halved(parts, split) for name, parts in population.strata.items()}
    first, second = (
        replace(
            population,
            rows={**population.rows, CONTROL: shared[side]},
            matched={name: parts[side] for name, parts in own.items()}
            | {name: _rows_of(parts[side]) for name, parts in strata.items()},
            shares={name: _shares_of(parts[side]) for name, parts in strata.items()},
            strata={name: parts[side] for name, parts in strata.items()},
        )
        for side in (0, 1)
    )
    return first, second


def _halved(
    strata: tuple[Stratum, ...], split: Callable[[Rows], tuple[Rows, Rows]]
) -> tuple[tuple[Stratum, ...], tuple[Stratum, ...]]:
    """The strata of a condition with either half of their controls; a cell of two strata stays in one half."""
    sides: tuple[list[Stratum], list[Stratum]] = ([], [])
    taken: list[Rows] = [np.empty(0, dtype=np.int64)] * 2
    for stratum in sorted(strata, key=lambda one: len(one.controls)):
        parts = split(stratum.controls)
        for side in (0, 1):
            half = np.setdiff1d(parts[side], taken[1 - side])
            taken[side] = np.union1d(taken[side], half)
            if len(half):
                sides[side].append(Stratum(stratum.rows, half))
    return tuple(sides[0]), tuple(sides[1])


def _rows_of(strata: tuple[Stratum, ...]) -> Rows:
    found = [stratum.controls for stratum in strata]
    return np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


def _shares_of(strata: tuple[Stratum, ...]) -> Floats:
    """How much each of the control rows of `strata` counts, 1 together."""
    rows, n_cells = _rows_of(strata), sum(len(stratum.rows) for stratum in strata)
    shares = np.zeros(len(rows))
    for stratum in strata:
        at = np.searchsorted(rows, stratum.controls)
        shares[at] += len(stratum.rows) / n_cells / len(stratum.controls)
    return shares


def control_means(population: Population, conditions: Sequence[str]) -> Floats:
    """The control mean of each condition [K, A], or one [A] for all; NaN without a cell."""
    means = control_moments(population, conditions).mean
    if not population.matched:
        return means[0] if population.n_cells(CONTROL) else np.full(means.shape[1], np.nan)
    empty = np.array([not len(population.control_rows(c)) for c in conditions])
    return np.where(empty[:, None], np.nan, means)
