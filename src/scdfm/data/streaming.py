"""From the matrix of an opened screen to checked log1p values: in memory, or block by block to a scratch file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from scdfm.data.kinds import sample
from scdfm.data.stored import BLOCK_ROWS, Matrix, RowsWriter, StoredMatrix
from scdfm.data.tables import READ_ERRORS, values_of
from scdfm.data.values import Check, Reading, Scale, median_total, to_csr, to_log1p, totals
from scdfm.errors import DataError

STORED_ABOVE: Final = 2 << 30
"""Bytes of expression (8 a stored value, 4 a value of a dense matrix) from which cells stay on disk by themselves."""

Rows = npt.NDArray[np.int64]


def log1p_values(
    matrix: Any, rows: Rows | None, reading: Reading, cells: Sequence[str], genes: Sequence[str], where: str,
    backed: bool | None = None, columns: Rows | None = None,
) -> tuple[Matrix, Scale]:  # fmt: skip
    """Checked log1p values of the chosen `rows` (None: all) and their scale, as `to_log1p` gives them.

    columns: those of `genes` in the matrix (None: all), ascending; the others count for nothing, totals included.

    backed: True streams them to a scratch file (8 bytes a stored value), False keeps them in memory; None decides
    by size: a matrix on disk of more than STORED_ABOVE bytes stays there.
    """
    stored = backed if backed is not None else _on_disk(matrix) and _size(matrix, rows) > STORED_ABOVE
    if not stored or len(getattr(matrix, "shape", ())) != 2:
        return to_log1p(_of(to_csr(matrix, rows, where), columns), reading, cells, genes, where)
    if getattr(matrix, "format", "csr") == "csc" and _on_disk(matrix):
        raise DataError(
            f"{where} is a CSC matrix, whose cells cannot be read one after another; expected CSR or dense for cells "
            "that stay on disk: write it as CSR (adata.X = adata.X.tocsr()), or pass backed=False (--in-memory)"
        )
    return _streamed(matrix, rows, reading, cells, genes, where, columns)


def _streamed(
    matrix: Any, rows: Rows | None, reading: Reading, cells: Sequence[str], genes: Sequence[str], where: str,
    columns: Rows | None,
) -> tuple[StoredMatrix, Scale]:  # fmt: skip
    """One pass over `matrix`; a second, ahead of it, where the median total has to be known first."""
    with values_of(where):
        seen = sample(matrix, rows)
    reading = reading.of(_of(seen, columns), where)
    check = Check(reading, genes, where)
    target = None
    if reading.target_sum is not None:
        target = _target(matrix, rows, reading, cells, genes, where, columns)
    writer = RowsWriter(len(genes))
    for start, block in _row_blocks(matrix, rows, where, columns):
        check.block(block, cells[start : start + block.shape[0]])
        writer.append(reading.converted(block if target is None else reading.linear(block), target))
    check.whole()
    return writer.finished(), reading.scale(target)


def _target(
    matrix: Any, rows: Rows | None, reading: Reading, cells: Sequence[str], genes: Sequence[str], where: str,
    columns: Rows | None,
) -> float:  # fmt: skip
    if reading.target_sum != "median":
        return float(reading.target_sum or 0)
    check, cell_totals = Check(reading, genes, where), []
    for start, block in _row_blocks(matrix, rows, where, columns):
        check.block(block, cells[start : start + block.shape[0]])
        cell_totals.append(totals(reading.linear(block)))
    check.whole()
    return median_total(np.concatenate(cell_totals))


def genes_found(matrix: Any, rows: Rows, where: str, columns: Rows | None) -> Rows:
    """Number of genes (`columns`, None: all) with a value other than 0 in each of the ascending `rows`."""
    if (_on_disk(matrix) and getattr(matrix, "format", "csr") == "csr") or not hasattr(matrix, "to_memory"):
        parts = [np.diff(block.indptr) for _, block in _row_blocks(matrix, rows, where, columns)]
        return np.concatenate(parts)
    return np.diff(_of(to_csr(matrix, rows, where), columns).indptr)


def _row_blocks(
    matrix: Any, rows: Rows | None, where: str, columns: Rows | None
) -> Iterator[tuple[int, sp.csr_matrix]]:
    """Blocks of the chosen rows as canonical CSR, each with the place of its first row among the chosen ones."""
    done = 0
    for low in range(0, matrix.shape[0], BLOCK_ROWS):
        high = min(low + BLOCK_ROWS, matrix.shape[0])
        block_rows = (
            None if rows is None else rows[np.searchsorted(rows, low) : np.searchsorted(rows, high)] - low
        )
        if block_rows is not None and not len(block_rows):
            continue
        with values_of(where):
            part = matrix[low:high]  # files read slices fast and lists of rows slowly
        block = _of(to_csr(part, block_rows, where), columns)
        yield done, block
        done += block.shape[0]


def _of(block: sp.csr_matrix, columns: Rows | None) -> sp.csr_matrix:
    """The `columns` (ascending) of a canonical block, itself canonical."""
    return block if columns is None else sp.csr_matrix(block[:, columns])


def _on_disk(matrix: Any) -> bool:
    """Whether this is a matrix of an open file or store, not an array."""
    return hasattr(matrix, "to_memory") or hasattr(matrix, "chunks")


def _size(matrix: Any, rows: Rows | None) -> float:
    """Bytes of the chosen rows."""
    share = 1.0 if rows is None else len(rows) / max(1, matrix.shape[0])
    if not hasattr(matrix, "to_memory"):
        return float(share * 4 * matrix.shape[0] * matrix.shape[1])
    try:
        return float(share * 8 * matrix.group["data"].shape[0])
    except READ_ERRORS:  # a damaged file, which whoever reads it will name
        return 0.0
