"""Cells of conditions and the control cells they are compared with: moments in one pass over the sparse matrix, halves.

Values are log1p of normalised counts; sums are kept in float64 whatever the matrix holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from scdfm.data.cells import Stratum
from scdfm.data.conditions import CONTROL, control_of, targets
from scdfm.data.stored import Matrix
from scdfm.seeds import numpy_rng

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Population:
    """Cells of named conditions over one list of genes: `X` csr [N, A], in memory or on disk, `rows` condition -> row
    numbers.

    `matched`: rows of the control cells that a condition, or the control of its covariates, is compared with; empty
    where that is every control cell. `shares`: how much each of these counts, where not all count alike, and `strata`:
    the condition's cells with the control cells of their own batch, likewise.
    """

    X: Matrix
    genes: NDArray[np.str_]
    rows: Mapping[str, Rows]
    matched: Mapping[str, Rows] = field(default_factory=dict)
    shares: Mapping[str, Floats] = field(default_factory=dict)
    strata: Mapping[str, tuple[Stratum, ...]] = field(default_factory=dict)

    def n_cells(self, condition: str) -> int:
        """Number of cells of `condition`."""
        return len(self.rows[condition])

    def control_rows(self, condition: str) -> Rows:
        """Rows of the control cells that `condition` is compared with."""
        rows = self.matched.get(condition, self.matched.get(control_of(condition)))
        return self.rows[CONTROL] if rows is None else rows

    def control_mean(self, condition: str) -> Floats:
        """Mean [A] of the control cells that `condition` is compared with."""
        return row_means(self.X, self.control_rows(condition), self.shares.get(condition))

    def control_number(self, condition: str) -> float:
        """How many control cells that all count alike would have a mean as sure as `control_mean`."""
        shares = self.shares.get(condition)
        return len(self.control_rows(condition)) if shares is None else float(1 / np.sum(shares**2))

    def control_groups(self, conditions: Sequence[str]) -> dict[bytes, list[int]]:
        """Places of the `conditions` that share their control mean, group by group in order of appearance."""
        groups: dict[bytes, list[int]] = {}
        for k, condition in enumerate(conditions):
            shares = self.shares.get(condition)
            key = self.control_rows(condition).tobytes() + (b"" if shares is None else shares.tobytes())
            groups.setdefault(key, []).append(k)
        return groups


@dataclass(frozen=True)
class Moments:
    """Per condition and gene: `mean`, `variance` (divided by n) and share of cells at `zero`, each [K, A]."""

    mean: Floats
    variance: Floats
    zero: Floats

    def error(self, n: NDArray[np.int64], genes: NDArray[np.int64]) -> Floats:
        """Sampling variance of the means, averaged over `genes`, [K]; NaN below two of the `n` [K] cells."""
        below = np.where(n > 1, n - 1, np.nan)
        return np.asarray(self.variance[:, genes].mean(axis=1) / below)

    def select(self, mask: NDArray[np.bool_]) -> Moments:
        """The moments of some of the conditions."""
        return Moments(self.mean[mask], self.variance[mask], self.zero[mask])


def own_genes(conditions: Sequence[str], genes: NDArray[np.str_]) -> NDArray[np.bool_]:
    """The genes that a condition targets, [K, A]."""
    place = {gene: i for i, gene in enumerate(genes.tolist())}
    own = np.zeros((len(conditions), len(genes)), dtype=bool)
    for k, condition in enumerate(conditions):
        own[k, [place[target] for target in targets(condition) if target in place]] = True
    return own


def taken(X: Matrix, rows: Rows) -> sparse.csr_matrix:
    """Rows of `X`; a slice where they are contiguous, which scipy takes without a search."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and np.all(np.diff(rows) == 1):
        return X[int(rows[0]) : int(rows[-1]) + 1]
    return X[rows]


def moments(population: Population, conditions: Sequence[str]) -> Moments:
    """Moments of `conditions` [K, A] from the stored values alone; nothing is densified."""
    stats = Moments(*(np.empty((len(conditions), population.X.shape[1])) for _ in range(3)))
    for k, condition in enumerate(conditions):
        stats.mean[k], stats.variance[k], stats.zero[k] = row_moments(population.X, population.rows[condition])
    return stats


def control_moments(population: Population, conditions: Sequence[str]) -> Moments:
    """Moments of the control cells: [1, A] where all `conditions` share them, else each condition's own [K, A]."""
    if not population.matched:
        return moments(population, [CONTROL])
    stats = np.empty((3, len(conditions), population.X.shape[1]))
    for places in population.control_groups(conditions).values():
        first = conditions[places[0]]
        own = row_moments(population.X, population.control_rows(first), population.shares.get(first))
        stats[:, places] = np.array(own)[:, None]
    return Moments(*stats)


def row_moments(X: Matrix, rows: Rows, shares: Floats | None = None) -> tuple[Floats, Floats, Floats]:
    """Mean, variance (divided by n) and share of zeros [A] of `rows`, which count by `shares` (None: alike)."""
    n_genes, n = X.shape[1], max(len(rows), 1)
    total, square, stored = np.zeros((3, n_genes))
    for block, weights in _weighted(X, rows, shares):
        data = block.data.astype(np.float64)
        total += np.bincount(block.indices, weights=data * weights, minlength=n_genes)
        stored += np.bincount(block.indices, weights=weights * (data != 0), minlength=n_genes)
        square += np.bincount(block.indices, weights=np.square(data, out=data) * weights, minlength=n_genes)
    mean = total / n
    return mean, np.maximum(square / n - mean * mean, 0), 1 - stored / n


def row_means(X: Matrix, rows: Rows, shares: Floats | None = None) -> Floats:
    """Mean [A] of `rows`, which count by `shares` (None: alike)."""
    total = np.zeros(X.shape[1])
    for block, weights in _weighted(X, rows, shares):
        data = block.data.astype(np.float64)
        total += np.bincount(block.indices, weights=data * weights, minlength=X.shape[1])
    return total / max(len(rows), 1)


def _weighted(X: Matrix, rows: Rows, shares: Floats | None) -> Iterator[tuple[sparse.csr_matrix, Floats | float]]:
    """Blocks of rows, and how much each stored value counts (1 on average over rows)."""
    done = 0
    for block in _blocks(X, rows):
        height = block.shape[0]
        if shares is None:
            yield block, 1.0
        else:
            yield block, np.repeat(shares[done : done + height] * len(rows), np.diff(block.indptr))
        done += height


def _blocks(X: Matrix, rows: Rows, height: int = 512) -> Iterator[sparse.csr_matrix]:
    """Rows a few at a time, so that their float64 copies stay small."""
    for start in range(0, len(rows), height):
        yield taken(X, rows[start : start + height])


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
    controls = [stratum.controls for stratum in strata]
    return np.unique(np.concatenate(controls)) if controls else np.empty(0, dtype=np.int64)


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
