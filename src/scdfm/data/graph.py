"""Co-expression: the graph of which genes may attend to which in the gene encoder, and axes that describe targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from scdfm.data.conditions import Vocabulary
from scdfm.data.features import COEXPRESSION, FeatureTable, Part
from scdfm.data.stored import subset
from scdfm.errors import DataError

Bool = npt.NDArray[np.bool_]
Float = npt.NDArray[np.float64]
Parts = Sequence[tuple[npt.NDArray[np.int64], Bool]]
"""Rows of the cells that measured the same genes, and which."""
AXES: Final = 64
"""Axes of co-expression at most."""
_BLOCK_ROWS: Final = 4096
_DENSE: Final = 0.15
"""Share of stored values above which a matrix product of dense cells is the faster one."""
_DENSE_ROWS: Final = 512


def coexpression_graph(
    x: Any, k: int = 30, negative_edges: bool = True, faithful: bool = False, parts: Parts = ()
) -> Bool:
    """True [G, G] where a gene may attend: its k most correlated genes, those it is one of, and itself.

    x: log1p expression [n, G], dense, sparse or on disk, read in one pass; k: neighbours
    by |Pearson r| (all others where G ≤ k). With `negative_edges` off only positive r count. A constant gene
    correlates with none. Equal |r| at the k-th place: the gene that comes first is kept.

    `faithful` rebuilds two quirks of the official code: x goes through log1p once more, and with
    `negative_edges` off the top k are still taken by |r|, after which a negative edge goes only where one of
    its two genes chose the other; a mutual one stays.

    parts: where cells measured different genes, the rows of those that measured the same, and which [G]. r is then the
    average of that within each, by its cells, over those that measured both genes; 0 where none did.
    """
    if x.ndim != 2 or x.shape[0] < 2:
        raise DataError(f"graph: expression has shape {tuple(x.shape)}; expected at least 2 cells × genes")
    if k < 1:
        raise DataError(f"graph.k is {k}; expected at least 1 neighbour")
    r = _within(x, parts, faithful) if parts else _correlation(x, again_log1p=faithful)
    np.fill_diagonal(r, 0.0)
    drop_negative = not negative_edges
    strength = np.maximum(r, 0.0) if drop_negative and not faithful else np.abs(r)
    neighbours = _top_k(strength, k)
    graph = neighbours | neighbours.T
    if drop_negative and faithful:
        graph &= (r > 0) | (neighbours & neighbours.T)
    np.fill_diagonal(graph, True)
    return graph


def vocabulary_graph(graph: Bool, genes: Sequence[str], vocabulary: Vocabulary) -> Bool:
    """True [V, V] where a token may attend: `graph` [G, G] of the panel's `genes`, set among all tokens.

    Special tokens, and targets outside the panel, attend to themselves alone.
    """
    if graph.shape != (len(genes), len(genes)):
        raise DataError(f"graph has shape {graph.shape}, expected one row and column for each of {len(genes)} genes")
    among = np.eye(len(vocabulary), dtype=bool)
    ids = vocabulary.gene_ids(genes)
    among[np.ix_(ids, ids)] = graph
    return among


def coexpression_axes(x: Any, genes: Sequence[str], parts: Parts = ()) -> FeatureTable:
    """Where each of the `genes` stands in the co-expression of cells x [n, G] (log1p), without constant ones.

    The rows are those of the best approximation of Pearson's r by AXES axes, V √Λ: like rows, like correlations with all
    other genes. Target genes that control cells express together may so be told to answer alike. `parts` as in
    `coexpression_graph`.
    """
    r = _within(x, parts, again_log1p=False) if parts else _correlation(x, again_log1p=False)
    varies = np.diag(r) > 0.5
    if not varies.any():
        raise DataError(f"features '{COEXPRESSION}': every one of {len(genes)} genes is constant in control cells")
    powers, axes = np.linalg.eigh(r)
    rows = axes[:, -AXES:] * np.sqrt(np.maximum(powers[-AXES:], 0.0))
    rows *= np.where(rows[np.abs(rows).argmax(axis=0), np.arange(rows.shape[1])] < 0, -1.0, 1.0)
    names = tuple(gene for gene, varied in zip(genes, varies, strict=True) if varied)
    width = rows.shape[1]
    return FeatureTable(names, rows[varies].astype(np.float32), COEXPRESSION, (Part(COEXPRESSION, width, True),))


def _blocks(x: Any, again_log1p: bool) -> Iterator[sp.csr_matrix]:
    """Blocks of cells as CSR float64."""
    x = x.tocsr() if hasattr(x, "tocsr") else x
    for start in range(0, x.shape[0], _BLOCK_ROWS):
        block = sp.csr_matrix(x[start : start + _BLOCK_ROWS], dtype=np.float64, copy=True)
        if again_log1p:
            block.data = np.log1p(block.data)
        yield block


def _correlation(x: Any, again_log1p: bool) -> Float:
    """Pearson r [G, G] over cells, from sums and products accumulated in one pass; 0 for a constant gene."""
    n, n_genes = x.shape
    total, moment = np.zeros(n_genes), np.zeros((n_genes, n_genes))
    lowest, highest = np.full(n_genes, np.inf), np.full(n_genes, -np.inf)
    for block in _blocks(x, again_log1p):
        total += np.asarray(block.sum(axis=0)).ravel()
        lowest = np.minimum(lowest, block.min(axis=0).toarray().ravel())
        highest = np.maximum(highest, block.max(axis=0).toarray().ravel())
        _add_products(moment, block)
    covariance = moment
    covariance -= np.outer(total, total / n)
    variance = np.diag(covariance)
    # What rounding leaves of a constant gene's variance must not be blown up to a correlation.
    constant = (lowest == highest) | (variance <= 1e-13 * (total / n) * total)
    scale = np.where(constant, 0.0, 1.0 / np.sqrt(np.where(constant, 1.0, variance)))
    covariance *= scale[:, None]
    covariance *= scale[None, :]
    return covariance


def _within(x: Any, parts: Parts, again_log1p: bool) -> Float:
    """Pearson r [G, G] within each part, averaged by its cells over the parts that measured both genes."""
    total, weight = np.zeros((2, x.shape[1], x.shape[1]))
    for rows, genes in parts:
        columns = np.flatnonzero(genes)
        both = np.ix_(columns, columns)
        total[both] += len(rows) * _correlation(subset(x, rows, columns), again_log1p)
        weight[both] += len(rows)
    return np.asarray(total / np.maximum(weight, 1))


def _add_products(moment: Float, block: sp.csr_matrix) -> None:
    """Add Σ x xᵀ over the cells of `block` [n, G] to `moment` [G, G]; sparse cells cost the square of their values."""
    n_genes = block.shape[1]
    if block.nnz > _DENSE * block.shape[0] * n_genes:
        for start in range(0, block.shape[0], _DENSE_ROWS):
            dense = block[start : start + _DENSE_ROWS].toarray()
            moment += dense.T @ dense
        return
    by_gene = block.T.tocsr()
    for start in range(0, n_genes, _DENSE_ROWS):
        moment[start : start + _DENSE_ROWS] += (by_gene[start : start + _DENSE_ROWS] @ block).toarray()


def _top_k(strength: Float, k: int) -> Bool:
    """True at the k largest positive entries of each row, the first of equal ones; the diagonal is 0."""
    n_genes = len(strength)
    top = np.zeros((n_genes, n_genes), dtype=bool)
    if k >= n_genes:
        return strength > 0
    for start in range(0, n_genes, _BLOCK_ROWS):
        rows = strength[start : start + _BLOCK_ROWS]
        kth = -np.partition(-rows, k - 1, axis=1)[:, k - 1 : k]
        above, equal = rows > kth, rows == kth
        room = k - above.sum(axis=1, keepdims=True)
        top[start : start + _BLOCK_ROWS] = (above | (equal & (equal.cumsum(axis=1) <= room))) & (rows > 0)
    return top
