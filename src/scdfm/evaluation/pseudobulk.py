"""Moments of each condition's cells, in one pass over the sparse matrix.

Values are log1p of normalised counts; sums are kept in float64 whatever the matrix holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from scdfm.data.stored import Matrix

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Population:
    """Cells of named conditions over one list of genes: `X` csr [N, A], in memory or on disk, `rows` condition -> row
    numbers."""

    X: Matrix
    genes: NDArray[np.str_]
    rows: Mapping[str, Rows]

    def n_cells(self, condition: str) -> int:
        """Number of cells of `condition`."""
        return len(self.rows[condition])


@dataclass(frozen=True)
class Moments:
    """Per condition and gene: `mean`, `variance` (divided by n) and share of cells at `zero`, each [K, A]."""

    mean: Floats
    variance: Floats
    zero: Floats


def taken(X: Matrix, rows: Rows) -> sparse.csr_matrix:
    """Rows of `X`; a slice where they are contiguous, which scipy takes without a search."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and np.all(np.diff(rows) == 1):
        return X[int(rows[0]) : int(rows[-1]) + 1]
    return X[rows]


def moments(population: Population, conditions: Sequence[str]) -> Moments:
    """Moments of `conditions` [K, A] from the stored values alone; nothing is densified."""
    parts = [row_moments(population.X, population.rows[condition]) for condition in conditions]
    stacked = [np.array(part).reshape(len(parts), population.X.shape[1]) for part in zip(*parts, strict=True)]
    return Moments(*stacked) if parts else Moments(*np.zeros((3, 0, population.X.shape[1])))


def row_moments(X: Matrix, rows: Rows) -> tuple[Floats, Floats, Floats]:
    """Mean, variance (divided by n) and share of zeros [A] of `rows`."""
    n_genes, n = X.shape[1], max(len(rows), 1)
    total, square, stored = np.zeros((3, n_genes))
    for block in _blocks(X, rows):
        data = block.data.astype(np.float64)
        total += np.bincount(block.indices, weights=data, minlength=n_genes)
        stored += np.bincount(block.indices[data != 0], minlength=n_genes)
        square += np.bincount(block.indices, weights=np.square(data, out=data), minlength=n_genes)
    mean = total / n
    return mean, np.maximum(square / n - mean * mean, 0), 1 - stored / n


def row_means(X: Matrix, rows: Rows) -> Floats:
    """Mean [A] of `rows`."""
    total = np.zeros(X.shape[1])
    for block in _blocks(X, rows):
        total += np.bincount(block.indices, weights=block.data.astype(np.float64), minlength=X.shape[1])
    return total / max(len(rows), 1)


def _blocks(X: Matrix, rows: Rows, height: int = 512) -> Iterator[sparse.csr_matrix]:
    """Rows a few at a time, so that their float64 copies stay small."""
    for start in range(0, len(rows), height):
        yield taken(X, rows[start : start + height])
