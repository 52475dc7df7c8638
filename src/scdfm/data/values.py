"""Expression values: read into CSR without densifying, checked against what they were declared to be, normalised.

Without a declaration values are log1p of normalised counts already, or, where a `target_sum` is given, counts to be
brought to log1p(count · target_sum / total of the cell); both are checked. A declaration (`kinds.Values`) is taken at
its word: logarithms of another kind become log1p, and with a `target_sum` anything is undone first, then normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from scdfm.data.kinds import MEANING, MOST, OPTIONS, UNDO, recognise, sample
from scdfm.data.stored import mapped
from scdfm.data.tables import values_of
from scdfm.errors import DataError
from scdfm.options import Values

_BLOCK_VALUES: Final = 8_000_000  # values of one dense block on its way to CSR


class ValuesError(DataError):
    """Values are not what they were declared to be; another matrix of the file may be."""


class LooksLikeCountsError(ValuesError):
    """Values declared log1p are whole numbers, all of them."""


TargetSum = float | Literal["median"] | None


@dataclass(frozen=True)
class Scale:
    """What the values of a table are: log1p of counts per `target_sum`.

    `declared` says what the file held: `counts` (normalised while reading) or `log1p` (`target_sum` is then
    unknown, None), `layer` where in it they stood (None: X), `values` what they were declared or, without a
    logarithm, recognised as (None: log1p, or whole counts).
    """

    transform: Literal["log1p"] = "log1p"
    target_sum: float | None = None
    declared: Literal["log1p", "counts"] = "log1p"
    layer: str | None = None
    values: Values | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping; `Scale(**mapping)` is its inverse."""
        return asdict(self)


def to_csr(matrix: Any, rows: npt.NDArray[np.int64] | None, where: str) -> sp.csr_matrix:
    """The chosen `rows` (None: all) of a dense or sparse, in-memory or on-disk matrix as new canonical CSR.

    Its dtype stays (half precision becomes float32, another byte order this machine's). Dense input goes through in
    blocks of rows. DataError where it is not a matrix of real numbers.
    """
    with values_of(where):
        csr = _as_csr(matrix, rows, where)
        csr.check_format(full_check=True)
    if not csr.has_canonical_format and csr.dtype.kind in "bui":
        csr = csr.astype(np.int64)  # a sum of small integers must not overflow
    csr.sum_duplicates()
    csr.eliminate_zeros()
    return csr


def _as_csr(matrix: Any, rows: npt.NDArray[np.int64] | None, where: str) -> sp.csr_matrix:
    if not all(hasattr(matrix, name) for name in ("shape", "dtype", "__getitem__")) or len(matrix.shape) != 2:
        raise DataError(f"{where} is a {type(matrix).__name__}; expected a dense, CSR or CSC matrix of numbers")
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
    places = np.arange(matrix.shape[0]) if rows is None else rows
    blocks = []
    for start in range(0, len(places), height):
        block = places[start : start + height]
        # Files read slices fast and lists of rows slowly, so the enclosing slice is read.
        low, high = int(block.min()), int(block.max()) + 1
        dense = np.asarray(matrix[low:high])[block - low]
        kind = np.dtype(np.float32) if dense.dtype == np.float16 else dense.dtype.newbyteorder("=")
        blocks.append(sp.csr_matrix(dense.astype(kind, copy=False)))
    return sp.csr_matrix(sp.vstack(blocks, format="csr"))


def to_log1p(
    csr: sp.csr_matrix, reading: Reading, cells: Sequence[str], genes: Sequence[str], where: str
) -> tuple[sp.csr_matrix, Scale]:
    """Checked log1p values (float32) and their scale, from values that are read as `reading` says.

    Counts become log1p(count · target_sum / total of the cell); `median` takes the median total of the cells
    that have any count, as scanpy's normalize_total does. A cell without counts stays zero.
    """
    reading = reading.of(sample(csr), where)
    check = Check(reading, genes, where)
    check.block(csr, cells)
    check.whole()
    target = None
    if reading.target_sum is not None:
        csr = reading.linear(csr)
        target = median_total(totals(csr)) if reading.target_sum == "median" else float(reading.target_sum)
    return reading.converted(csr, target), reading.scale(target)


@dataclass(frozen=True)
class Reading:
    """How values are read: as declared (`values`, `target_sum`), after `of` as they were then recognised.

    strict: refuse values that are recognised as something else, and those that no log1p value or count can be; a
    prediction's, which need not look like data, are only checked for what no score could be taken of.
    """

    target_sum: TargetSum = None
    values: Values | None = None
    strict: bool = True

    def __post_init__(self) -> None:
        if self.values is not None and self.values not in get_args(Values):
            raise DataError(f"values '{self.values}': expected one of {', '.join(get_args(Values))}")
        if self.values == "linear" and self.target_sum is None:
            raise DataError(
                "values 'linear' have no logarithm and need a total to be normalised to: give target_sum too "
                "(--target-sum 10000, or median)"
            )

    @property
    def expected(self) -> Values:
        """What the values must be."""
        return self.values or ("log1p" if self.target_sum is None else "linear")

    @property
    def whole(self) -> bool:
        """Whether only whole counts will do."""
        return self.values is None and self.target_sum is not None

    def of(self, seen: sp.csr_matrix, where: str) -> Reading:
        """This reading of values of which some are `seen`; ValuesError where they are recognised as something else."""
        if self.values is not None or not self.strict:
            return self
        verdict = recognise(seen)
        if verdict.kind not in MEANING and not (self.whole and verdict.kind == "log1p" and verdict.sure):
            return self
        if self.whole and verdict.kind in ("normalised", "fractional"):
            return replace(self, values="linear")
        if verdict.kind == "fractional" or (verdict.kind == "scaled" and seen.data.min() < 0):
            return self  # refused with the name of the cell
        if verdict.kind == "scaled":
            raise ValuesError(
                f"{where} looks like {MEANING['scaled']} ({verdict.evidence}); expected counts or log1p values: give those "
                f"from before, or if they are log1p values, {_declare('log1p')}"
            )
        if verdict.kind == "log1p":
            raise ValuesError(
                f"{where} holds log1p values ({verdict.evidence}); expected counts, since target_sum is given: leave "
                f"target_sum (--target-sum) out, or normalise them anew with {_declare('log1p')} beside it"
            )
        name, value = OPTIONS[verdict.kind]
        remedy = _declare(value) if name == "--values" else f"pass target_sum={value} ({name} {value}, or median)"
        may_be = not self.whole and seen.data.max() <= MOST["log1p"]
        instead = f"; if they are log1p values, {_declare('log1p')}" if may_be else ""
        raise ValuesError(
            f"{where} looks like {MEANING[verdict.kind]} ({verdict.evidence}); expected "
            f"{'counts' if self.whole else 'log1p values'}: {remedy}{instead}"
        )

    def linear(self, csr: sp.csr_matrix) -> sp.csr_matrix:
        """Values without their logarithm, float64 unless they had none."""
        return csr if self.expected == "linear" else mapped(csr, UNDO[self.expected])

    def converted(self, csr: sp.csr_matrix, target: float | None) -> sp.csr_matrix:
        """log1p values (float32) of checked ones; with a `target`, of `linear` ones normalised to it."""
        if target is not None:
            return normalised(csr, target)
        if self.expected == "log1p":
            return csr.astype(np.float32, copy=False)
        if self.expected == "log1p-twice":
            return mapped(csr, np.expm1).astype(np.float32)
        return mapped(csr, lambda x: x * np.log({"log2": 2.0, "log10": 10.0}[self.expected])).astype(np.float32)

    def scale(self, target: float | None) -> Scale:
        """What the values are once they are converted."""
        return Scale(target_sum=target, declared="log1p" if target is None else "counts", values=self.values)


def _declare(values: str) -> str:
    return f"declare values='{values}' (--values {values})"


@dataclass
class Check:
    """Holds values to what a reading expects, block of cells by block of cells.

    `negatives` counts values below 0, which only a reading that is not strict lets pass, and `lowest` is the lowest.
    """

    reading: Reading
    genes: Sequence[str]
    where: str
    empty: bool = True
    fractions: bool = False
    negatives: int = 0
    lowest: float = 0.0

    def block(self, csr: sp.csr_matrix, cells: Sequence[str]) -> None:
        """Check the values of some `cells`; ValuesError names the first that cannot be."""
        values = _Values(csr, cells, self.genes, self.where)
        values.refuse(~np.isfinite(csr.data), "a finite number", "remove such cells or genes")
        negative = csr.data < 0
        if negative.any():
            if self.reading.strict:
                remedy = "give counts or log1p values from before they were scaled, centred or corrected"
                values.refuse(negative, "no negative value", remedy)
            self.negatives += int(negative.sum())
            self.lowest = min(self.lowest, float(csr.data.min()))
        whole = np.rint(csr.data) == csr.data
        self.empty = self.empty and not csr.nnz
        self.fractions = self.fractions or not whole.all()
        most = MOST[self.reading.expected]
        large = csr.data > most
        if self.reading.whole:
            remedy = (
                "leave target_sum (--target-sum) out if these are log1p values; if they are counts with fractions, "
                f"{_declare('linear')} beside it, or choose the layer of counts"
            )
            values.refuse(~whole, "raw counts (whole numbers), since target_sum is given", remedy)
        if self.reading.expected == "linear":
            values.refuse(large, f"at most {most:g} counts", "an integer overflowed; count anew")
        elif large.any():
            self.whole()
            remedy = (
                "pass target_sum (--target-sum 10000) for counts, also normalised ones, which takes their logarithm"
            )
            if not self.reading.strict:
                remedy = "bring the prediction to log1p of counts per the total of the real cells"
            elif self.reading.values is not None:
                remedy = "they are none: leave values (--values) out, and what they look like is said"
            values.refuse(large, f"{self.reading.expected} values of at most {most:g}", remedy)

    def whole(self) -> None:
        """What only all blocks together can tell: that there are values, and that log1p values are no counts."""
        if self.empty:
            raise ValuesError(f"{self.where} holds only zeros; expected expression values (is it the right layer?)")
        if self.reading.values is None and self.reading.target_sum is None and not self.fractions:
            raise LooksLikeCountsError(
                f"{self.where} holds whole numbers only, these look like raw counts; "
                "expected log1p values: pass target_sum (for example 10000, or 'median'; --target-sum 10000)"
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
        raise ValuesError(
            f"{self.where}: {self.csr.data[place]:g} for gene '{gene}' in cell '{self.cells[row]}' "
            f"({int(bad.sum())} such values); expected {expected}: {remedy}"
        )
