"""Expression values: read into CSR without densifying, checked against what they were declared to be, normalised.

Two declarations exist. `log1p`: values are log1p of normalised counts already. `counts`: whole numbers, to be
brought to log1p(count · target_sum / total of the cell).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from scdfm.data.source import READ_ERRORS, reason
from scdfm.errors import DataError, ScdfmError

MOST_LOG1P: Final = 20.0  # log1p of 480 million: no normalised count is larger
MOST_COUNTS: Final = 1e9  # of one gene in one cell; beyond it lie integers that have overflowed
_BLOCK_VALUES: Final = 8_000_000  # values of one dense block on its way to CSR


class LooksLikeCountsError(DataError):
    """Values declared log1p are whole numbers, all of them."""


TargetSum = float | Literal["median"] | None


@dataclass(frozen=True)
class Scale:
    """What the values of a table are: log1p of counts per `target_sum`.

    `declared` says what the file held: `counts` (normalised while reading) or `log1p` (`target_sum` is then
    unknown, None), `layer` where in it they stood (None: X).
    """

    transform: Literal["log1p"] = "log1p"
    target_sum: float | None = None
    declared: Literal["log1p", "counts"] = "log1p"
    layer: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping; `Scale(**mapping)` is its inverse."""
        return asdict(self)


def to_csr(matrix: Any, rows: npt.NDArray[np.int64] | None, where: str) -> sp.csr_matrix:
    """The chosen `rows` (None: all) of a dense or sparse, in-memory or on-disk matrix as new canonical CSR.

    Its dtype stays (half precision becomes float32, another byte order this machine's). Dense input goes through in
    blocks of rows. DataError where it is not a matrix of real numbers.
    """
    try:
        csr = _as_csr(matrix, rows, where)
        csr.check_format(full_check=True)
    except ScdfmError:
        raise
    except (*READ_ERRORS, IndexError) as error:
        raise DataError(
            f"{where} cannot be read ({reason(error)}); write the file anew (write_h5ad)"
        ) from error
    if not csr.has_canonical_format and csr.dtype.kind in "bui":
        csr = csr.astype(np.int64)  # a sum of small integers must not overflow
    csr.sum_duplicates()
    csr.eliminate_zeros()
    return csr


def _as_csr(matrix: Any, rows: npt.NDArray[np.int64] | None, where: str) -> sp.csr_matrix:
    if not all(hasattr(matrix, name) for name in ("shape", "dtype", "__getitem__")) or len(matrix.shape) != 2:
        raise DataError(
            f"{where} is a {type(matrix).__name__}; expected a dense, CSR or CSC matrix of numbers"
        )
    if np.dtype(matrix.dtype).kind not in "buif":
        raise DataError(f"{where} holds values of type {matrix.dtype}; expected real numbers")
    if hasattr(matrix, "to_memory"):  # anndata's sparse matrix on disk: what it gives is ours to keep
        return _sparse_to_csr(matrix.to_memory(), rows, copy=False)
    return _sparse_to_csr(matrix, rows, copy=True) if sp.issparse(matrix) else _dense_to_csr(matrix, rows)


def _sparse_to_csr(matrix: Any, rows: npt.NDArray[np.int64] | None, copy: bool) -> sp.csr_matrix:
    if rows is None:
        return sp.csr_matrix(matrix, copy=copy)
    return sp.csr_matrix(sp.csr_matrix(matrix)[rows])


def _dense_to_csr(matrix: Any, rows: npt.NDArray[np.int64] | None) -> sp.csr_matrix:
    height = max(1, _BLOCK_VALUES // max(1, matrix.shape[1]))
    chosen = np.arange(matrix.shape[0]) if rows is None else rows
    blocks = []
    for start in range(0, len(chosen), height):
        block = chosen[start : start + height]
        # Files read slices fast and lists of rows slowly, so the enclosing slice is read.
        low, high = int(block.min()), int(block.max()) + 1
        dense = np.asarray(matrix[low:high])[block - low]
        kind = np.dtype(np.float32) if dense.dtype == np.float16 else dense.dtype.newbyteorder("=")
        blocks.append(sp.csr_matrix(dense.astype(kind, copy=False)))
    return sp.csr_matrix(sp.vstack(blocks, format="csr"))


def to_log1p(
    csr: sp.csr_matrix, target_sum: TargetSum, cells: Sequence[str], genes: Sequence[str], where: str
) -> tuple[sp.csr_matrix, Scale]:
    """Checked log1p values (float32) and their scale, from log1p values (`target_sum` None) or raw counts.

    Counts become log1p(count · target_sum / total of the cell); `median` takes the median total of the cells
    that have any count, as scanpy's normalize_total does. A cell without counts stays zero.
    """
    check = Check(target_sum is not None, genes, where)
    check.block(csr, cells)
    check.whole()
    if target_sum is None:
        return csr.astype(np.float32, copy=False), Scale()
    target = median_total(totals(csr)) if target_sum == "median" else float(target_sum)
    return normalised(csr, target), Scale(target_sum=target, declared="counts")


@dataclass
class Check:
    """Holds values to what they were declared to be, block of cells by block of cells: counts, or log1p values."""

    counts: bool
    genes: Sequence[str]
    where: str
    empty: bool = True
    fractions: bool = False

    def block(self, csr: sp.csr_matrix, cells: Sequence[str]) -> None:
        """Check the values of some `cells`; DataError names the first that cannot be."""
        values = _Values(csr, cells, self.genes, self.where)
        values.refuse(~np.isfinite(csr.data), "a finite number", "remove such cells or genes")
        values.refuse(csr.data < 0, "no negative value", "give counts or log1p values, not scaled ones")
        whole = np.rint(csr.data) == csr.data
        self.empty = self.empty and not csr.nnz
        self.fractions = self.fractions or not whole.all()
        if not self.counts:
            large = csr.data > MOST_LOG1P
            if large.any():
                self.whole()
            remedy = "pass target_sum for raw counts, or take the logarithm (scanpy.pp.log1p)"
            values.refuse(large, f"log1p values of at most {MOST_LOG1P:g}", remedy)
            return
        remedy = "leave target_sum out if these are log1p values, or choose the layer of counts"
        values.refuse(~whole, "raw counts (whole numbers), since target_sum is given", remedy)
        remedy = "an integer overflowed; count anew"
        values.refuse(csr.data > MOST_COUNTS, f"at most {MOST_COUNTS:g} counts", remedy)

    def whole(self) -> None:
        """What only all blocks together can tell: that there are values, and that log1p values are no counts."""
        if self.empty:
            raise DataError(
                f"{self.where} holds only zeros; expected expression values (is it the right layer?)"
            )
        if not self.counts and not self.fractions:
            raise LooksLikeCountsError(
                f"{self.where} holds whole numbers only, these look like raw counts; "
                "expected log1p values: pass target_sum (for example 10000, or 'median')"
            )


def totals(csr: sp.csr_matrix) -> npt.NDArray[np.float64]:
    """Counts of each cell [N]."""
    return np.asarray(csr.sum(axis=1, dtype=np.float64)).ravel()


def median_total(total: npt.NDArray[np.float64]) -> float:
    """The median of the cells' `total` [N] over those that have any count."""
    return float(np.median(total[total > 0]))


def normalised(csr: sp.csr_matrix, target: float) -> sp.csr_matrix:
    """Counts to log1p of counts per `target`, worked out in float64."""
    counts = csr.astype(np.float64)
    total = totals(counts)
    factor = target / np.where(total > 0, total, 1.0)
    counts.data = np.log1p(counts.data * np.repeat(factor, np.diff(counts.indptr)))
    X = counts.astype(np.float32)
    X.eliminate_zeros()  # what float32 cannot hold beside a large count
    return X


def checked_target_sum(target_sum: Any) -> TargetSum:
    """`target_sum` if it is None, "median" or a positive number; DataError otherwise."""
    if target_sum is None or target_sum == "median":
        return target_sum  # type: ignore[no-any-return]
    if isinstance(target_sum, int | float | np.number) and not isinstance(target_sum, bool):
        value = float(target_sum)
        if np.isfinite(value) and value > 0:
            return value
    raise DataError(f"target_sum {target_sum!r}: expected None, 'median' or a positive number such as 10000")


@dataclass(frozen=True)
class _Values:
    """Values with the names that an error needs."""

    csr: sp.csr_matrix
    cells: Sequence[str]
    genes: Sequence[str]
    where: str

    def refuse(self, bad: npt.NDArray[np.bool_], expected: str, remedy: str) -> None:
        """Raise DataError naming the first of the `bad` stored values, if there is any."""
        if not bad.any():
            return
        place = int(np.argmax(bad))
        row = int(np.searchsorted(self.csr.indptr, place, side="right")) - 1
        gene = self.genes[self.csr.indices[place]]
        raise DataError(
            f"{self.where}: {self.csr.data[place]:g} for gene '{gene}' in cell '{self.cells[row]}' "
            f"({int(bad.sum())} such values); expected {expected}: {remedy}"
        )
