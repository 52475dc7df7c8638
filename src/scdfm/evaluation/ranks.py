"""Where the own distance of a condition stands among those to all others, for thousands of conditions.

A rank asks only which of two distances is smaller. So all are computed fast, with a bound of their rounding, and those that
are too near to the own one to tell are computed again by scipy: ranks and ties are those of scipy's distances, to the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from scdfm.evaluation.pseudobulk import Floats

Distance = Literal["cityblock", "euclidean", "cosine"]
Counts = NDArray[np.int64]

FEW: Final = 10**8
"""Products of rows, rows and genes up to which scipy is fast enough."""
BLOCK_VALUES: Final = 4_000_000
"""Distances that are in memory at once."""
TILE, GENES = 64, 256
"""Rows and genes that a processor keeps near while sums of absolute differences are taken."""


@dataclass(frozen=True)
class Standing:
    """How many of the *other* answers are `closer` than a row's own, `level` with it or `farther`, each [K].

    Rows whose own distance is not defined are not `ranked`, and count nothing; nor do answers with NaN.
    """

    closer: Counts
    level: Counts
    farther: Counts
    ranked: NDArray[np.bool_]


def standing(queries: Floats, answers: Floats, distance: Distance) -> Standing:
    """Rank the distance of each row of `queries` [K, A] to the same row of `answers` [K, A] among all of `answers`."""
    there = np.asarray(np.isfinite(answers).all(axis=1))
    ranked = np.asarray(np.isfinite(queries).all(axis=1) & there)
    closer, level, farther = np.zeros((3, len(queries)), dtype=np.int64)
    query_groups = _alike(queries, np.flatnonzero(ranked))
    answer_groups = _alike(answers, np.flatnonzero(there))
    if query_groups:
        columns = np.ascontiguousarray(answers[[rows[0] for rows in answer_groups]])
        number = np.array([len(rows) for rows in answer_groups])
        each = len(number) == number.sum()
        count: Callable[[Any], int] = np.count_nonzero if each else lambda these: int(number[these].sum())
        few = len(query_groups) * columns.size <= FEW
        near = _exactly(columns, distance) if few else _NEAR[distance](columns)
        height = max(1, BLOCK_VALUES // len(columns))
        for start in range(0, len(query_groups), height):
            block = query_groups[start : start + height]
            rows = np.ascontiguousarray(queries[[members[0] for members in block]])
            for row, members, far, error in zip(rows, block, *near(rows), strict=True):
                own = np.array([exact(row[None], answers[k : k + 1], distance)[0, 0] for k in members])
                _settle(far, error, own, row, columns, distance)
                for k, mine in zip(members, own, strict=True):
                    closer[k], level[k], farther[k] = (count(far < mine), count(far == mine) - 1, count(far > mine))
    return Standing(closer, level, farther, ranked)


def exact(x: Floats, y: Floats, distance: Distance) -> Floats:
    """scipy's distances [n, m] of rows; by the cosine, one that has no length is at 1 from all."""
    distances = cdist(x, y, distance)
    if distance == "cosine":
        distances[~x.any(axis=1, keepdims=True) | ~y.any(axis=1)] = 1.0
    return np.asarray(distances)


def _settle(far: Floats, error: Floats, own: Floats, row: Floats, columns: Floats, distance: Distance) -> None:
    """Put exact distances of `row` into `far` [m] where `error` [m] leaves open on which side of one of `own` they are."""
    doubtful = np.zeros(len(far), dtype=bool)
    for mine in own:
        doubtful |= np.abs(far - mine) <= error
    if doubtful.any():
        far[doubtful] = exact(row[None], columns[doubtful], distance)[0]


def _alike(values: Floats, rows: NDArray[np.int64]) -> list[list[int]]:
    """The numbers `rows` in groups of equal rows of `values`: a rule that answers alike is measured once."""
    groups: dict[bytes, list[int]] = {}
    for row in rows.tolist():
        groups.setdefault(values[row].tobytes(), []).append(row)
    return list(groups.values())


Near = Callable[[Floats], tuple[Floats, Floats]]
"""From rows [n, A] their distances to given columns, [n, m], and how far off each of them may be, [n, m]."""


def _exactly(columns: Floats, distance: Distance) -> Near:
    def near(rows: Floats) -> tuple[Floats, Floats]:
        distances = exact(rows, columns, distance)
        return distances, np.zeros_like(distances)

    return near


def _euclidean(columns: Floats) -> Near:
    """By one matrix product; a product of n terms is off by n ε |x||y| at most, scipy's own sum by n ε of itself."""
    length = np.einsum("mg,mg->m", columns, columns)
    relative = 4 * (columns.shape[1] + 8) * np.finfo(np.float64).eps

    def near(rows: Floats) -> tuple[Floats, Floats]:
        both = np.einsum("ng,ng->n", rows, rows)[:, None] + length
        distances = np.sqrt(np.maximum(both - 2 * (rows @ columns.T), 0))
        off = relative * both + np.finfo(np.float64).tiny
        return distances, 2 * off / np.maximum(distances, np.sqrt(off))

    return near


def _cosine(columns: Floats) -> Near:
    turned = _unit(columns)
    relative = 8 * (columns.shape[1] + 8) * np.finfo(np.float64).eps

    def near(rows: Floats) -> tuple[Floats, Floats]:
        distances = 1 - _unit(rows) @ turned.T
        return distances, np.full_like(distances, relative)

    return near


def _unit(rows: Floats) -> Floats:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length == 0, 1, length))


def _cityblock(columns: Floats) -> Near:
    """In single precision, GENES at a time: off by ε of every value, and by GENES ε of the sum."""
    eps = float(np.finfo(np.float32).eps)
    small, size = columns.astype(np.float32), np.abs(columns).sum(axis=1)

    def near(rows: Floats) -> tuple[Floats, Floats]:
        distances = _absolute_differences()(rows.astype(np.float32), small)
        return distances, eps * (np.abs(rows).sum(axis=1)[:, None] + size + (GENES + 8) * distances)

    return near


_NEAR: Final[dict[Distance, Callable[[Floats], Near]]] = {
    "cityblock": _cityblock,
    "euclidean": _euclidean,
    "cosine": _cosine,
}


@cache
def _absolute_differences() -> Any:
    """Σ |x − y| of all pairs of rows [n, A] and [m, A] -> [n, m], compiled when first needed: 7 times scipy's speed."""
    from numba import njit

    @njit(fastmath=True, nogil=True)
    def sums(x: Any, y: Any) -> Any:
        distances = np.zeros((len(x), len(y)))
        for gene in range(0, x.shape[1], GENES):
            for first in range(0, len(y), TILE):
                for i in range(len(x)):
                    a = x[i, gene : gene + GENES]
                    for j in range(first, min(first + TILE, len(y))):
                        b = y[j, gene : gene + GENES]
                        total = np.float32(0)
                        for at in range(a.size):
                            total += abs(a[at] - b[at])
                        distances[i, j] += total
        return distances

    return sums
