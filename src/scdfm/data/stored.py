"""Expression that stays on disk: rows of a CSR matrix in a scratch file, read when they are asked for.

A screen larger than memory is streamed once from the user's file, checked and normalised on the way, into plain
arrays that any row can be read from at the speed of the disk. The scratch file has no name: it goes with the
process, however that ends.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from scdfm.errors import DataError

BLOCK_ROWS: Final = 4096
"""Rows of one block in a pass over a matrix. Sums are taken block by block, so that a matrix on disk and one in
memory give the same bits."""
_GAP: Final = 8
"""Unwanted rows that are read along, rather than asking the system once more."""

Rows: TypeAlias = npt.NDArray[np.int64]


class Scratch:
    """A file without a name, of values of one type: appended to first, then read anywhere by any thread."""

    def __init__(self, dtype: Any) -> None:
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        try:
            # A name that goes at once, or on Windows with the process.
            handle = tempfile.TemporaryFile(prefix="scdfm-", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise _no_room(error) from error
        self._turn = threading.Lock()
        self._file = handle.fileno()
        weakref.finalize(self, handle.close)

    def append(self, values: npt.NDArray[Any]) -> None:
        """Write `values` at the end."""
        view = _bytes(np.ascontiguousarray(values, dtype=self.dtype))
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            raise _no_room(error) from error

    def read(self, spans: Rows) -> npt.NDArray[Any]:
        """The values from spans[i, 0] up to spans[i, 1], one span after another."""
        out: npt.NDArray[Any] = np.empty(int((spans[:, 1] - spans[:, 0]).sum()), dtype=self.dtype)
        view, done = _bytes(out), 0
        for low, high in (spans * self.dtype.itemsize).tolist():
            while low < high:  # the system may return less than was asked for
                got = self._read_at(low, view[done : done + high - low])
                if not got:
                    raise DataError("scratch file of the cells is cut short; read the cells again")
                low, done = low + got, done + got
        return out

    def _read_at(self, place: int, view: memoryview) -> int:
        """Fill `view` with what stands at `place`; the number of bytes that there were."""
        if hasattr(os, "preadv"):
            return os.preadv(self._file, [view], place)
        with self._turn:  # without that call a file has one place for all threads
            os.lseek(self._file, place, os.SEEK_SET)
            read = os.read(self._file, len(view))
        view[: len(read)] = read
        return len(read)


def _bytes(values: npt.NDArray[Any]) -> memoryview:
    return memoryview(values.view(np.uint8))  # type: ignore[arg-type]


def _no_room(error: OSError) -> DataError:
    return DataError(
        f"scratch file in {tempfile.gettempdir()} cannot be written ({error.strerror or error}); expected room for "
        "8 bytes a stored value: point TMPDIR to a larger disk, or read the cells into memory (backed=False)"
    )


@dataclass(frozen=True, eq=False)
class RowsFile:
    """Rows of CSR float32 in scratch files, one of columns and one of values; `starts` [N + 1] divides them."""

    columns: Scratch
    values: Scratch
    starts: Rows
    width: int

    def read(self, rows: Rows) -> sp.csr_matrix:
        """CSR of `rows`, in the order given; equal and neighbouring rows are read once and together."""
        unique_rows, place = np.unique(rows, return_inverse=True)
        if not len(unique_rows):
            return sp.csr_matrix(np.empty((0, self.width), dtype=np.float32))
        breaks = np.flatnonzero(np.diff(unique_rows) > _GAP) + 1
        first, last = unique_rows[np.r_[0, breaks]], unique_rows[np.r_[breaks - 1, len(unique_rows) - 1]] + 1
        spans = np.stack([self.starts[first], self.starts[last]], axis=1)
        columns, values = self.columns.read(spans), self.values.read(spans)
        offsets = np.r_[0, np.cumsum(spans[:, 1] - spans[:, 0])]
        group = np.searchsorted(first, unique_rows, side="right") - 1
        shift = (offsets[:-1] - spans[:, 0])[group]
        low, high = self.starts[unique_rows] + shift, self.starts[unique_rows + 1] + shift
        return _picked(columns, values, low, high, place, self.width)


def _picked(
    columns: npt.NDArray[np.int32], values: npt.NDArray[np.float32], low: Rows, high: Rows, place: Rows, width: int
) -> sp.csr_matrix:  # fmt: skip
    """CSR whose row i is the stretch `low`:`high` number place[i] of `columns` and `values`."""
    if len(place) == len(low) and (place[:-1] < place[1:]).all() and (low[1:] == high[:-1]).all():
        return sp.csr_matrix(
            (values[low[0] : high[-1]], columns[low[0] : high[-1]], np.r_[low, high[-1]] - low[0]),
            shape=(len(low), width),
        )
    lengths = (high - low)[place]
    indptr = np.r_[0, np.cumsum(lengths)]
    taken = np.arange(indptr[-1]) + np.repeat(low[place] - indptr[:-1], lengths)
    return sp.csr_matrix((values[taken], columns[taken], indptr), shape=(len(place), width))


class RowsWriter:
    """Collects blocks of CSR rows into scratch files."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._columns, self._values = Scratch(np.int32), Scratch(np.float32)
        self._lengths: list[Rows] = [np.zeros(1, dtype=np.int64)]

    def append(self, block: sp.csr_matrix) -> None:
        """Add the rows of `block` [n, width] at the end."""
        self._columns.append(block.indices)
        self._values.append(block.data)
        self._lengths.append(np.diff(block.indptr).astype(np.int64))

    def finished(self) -> StoredMatrix:
        """The matrix of all rows added."""
        starts = np.cumsum(np.concatenate(self._lengths))
        return StoredMatrix(RowsFile(self._columns, self._values, starts, self.width))


class StoredMatrix:
    """Float32 expression [N, A] on disk, used as a CSR matrix is: `X[rows]` reads rows, `X[:, columns]` is a view.

    It has no `tocsr`, so that nothing that converts what it is given reads all of it: `in_memory` says so.
    """

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(self, file: RowsFile, rows: Rows | None = None, columns: Rows | None = None) -> None:
        self._file, self._rows, self._columns = file, rows, columns

    @property
    def shape(self) -> tuple[int, int]:
        """N and A."""
        rows, columns = self._rows, self._columns
        n = len(self._file.starts) - 1 if rows is None else len(rows)
        return n, self._file.width if columns is None else len(columns)

    def __getitem__(self, key: Any) -> Any:
        """Rows as CSR in memory, or for `[:, columns]` a view on these columns."""
        if isinstance(key, tuple):
            rows, columns = key
            if not isinstance(rows, slice) or rows != slice(None):
                raise TypeError("take rows first, then columns: X[rows][:, columns]")
            return self.subset(None, np.asarray(columns))
        rows = np.arange(self.shape[0])[key] if isinstance(key, slice) else np.asarray(key, dtype=np.int64)
        block = self._file.read(rows if self._rows is None else self._rows[rows])
        return block if self._columns is None else block[:, self._columns]

    def subset(self, rows: Rows | None, columns: Rows | None = None) -> StoredMatrix:
        """A view on some rows and columns, in the order given; nothing is read."""
        return StoredMatrix(self._file, _within(self._rows, rows), _within(self._columns, columns))

    def row_lengths(self) -> Rows:
        """Number of stored values in each row [N], over all columns of the file."""
        lengths = np.diff(self._file.starts)
        return lengths if self._rows is None else lengths[self._rows]

    def compacted(self) -> StoredMatrix:
        """These rows and columns in scratch files of their own, so that nothing else is read along with them."""
        return written(blocks(self), self.shape[1])

    def sum(self) -> float:
        """Sum of all values, in float64."""
        return float(sum(block.data.sum(dtype=np.float64) for block in blocks(self)))


def _within(outer: Rows | None, inner: Rows | None) -> Rows | None:
    if inner is None:
        return outer
    inner = np.asarray(inner, dtype=np.int64)
    return inner if outer is None else outer[inner]


Matrix: TypeAlias = "sp.csr_matrix | StoredMatrix"


def subset(X: Matrix, rows: Rows | None, columns: Rows | None = None) -> Matrix:
    """Some rows (None: all) and columns: a copy where X is in memory, a view where it is on disk."""
    if isinstance(X, StoredMatrix):
        return X.subset(rows, columns)
    part = X if rows is None else X[rows]
    return part if columns is None else part[:, columns]


def row_lengths(X: Matrix) -> Rows:
    """Number of stored values in each row [N]."""
    return X.row_lengths() if isinstance(X, StoredMatrix) else np.diff(X.indptr).astype(np.int64)


def in_memory(X: Matrix) -> sp.csr_matrix:
    """All of X as CSR in memory, a copy."""
    return sp.csr_matrix(X[:]) if isinstance(X, StoredMatrix) else X.copy()


def stacked(*parts: Matrix) -> Matrix:
    """The rows of all, in memory where all are."""
    loaded = [part for part in parts if not isinstance(part, StoredMatrix)]
    if len(loaded) == len(parts):
        return sp.csr_matrix(sp.vstack(loaded, format="csr"))
    return written((block for part in parts for block in blocks(part)), parts[0].shape[1])


def gathered(parts: Iterable[sp.csr_matrix], like: Matrix, width: int | None = None) -> Matrix:
    """The rows of all `parts`, of `width` columns (None: those of `like`): on disk where `like` is, else in memory."""
    width = like.shape[1] if width is None else width
    if not isinstance(like, StoredMatrix):
        empty = sp.csr_matrix(np.empty((0, width), dtype=np.float32))
        return sp.csr_matrix(sp.vstack([empty, *parts], format="csr"))
    return written(parts, width)


def written(parts: Iterable[sp.csr_matrix], width: int) -> StoredMatrix:
    """The rows of all `parts`, of `width` columns, on disk."""
    writer = RowsWriter(width)
    for part in parts:
        writer.append(part)
    return writer.finished()


def mapped(X: sp.csr_matrix, change: Callable[[npt.NDArray[np.float64]], npt.NDArray[Any]]) -> sp.csr_matrix:
    """The stored values through `change`, which keeps 0, in float64."""
    return sp.csr_matrix((change(X.data.astype(np.float64)), X.indices, X.indptr), shape=X.shape)


def blocks(X: Matrix, height: int | None = None) -> Iterator[sp.csr_matrix]:
    """The rows of X in order, `height` (BLOCK_ROWS) at a time."""
    height = height or BLOCK_ROWS
    for start in range(0, X.shape[0], height):
        yield X[start : start + height]


def content_digest(X: Matrix) -> bytes:
    """sha256 of the stored values and where they stand, in one pass."""
    lengths, columns, values = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    for block in blocks(X):
        lengths.update(np.diff(block.indptr).astype("<i8").tobytes())
        columns.update(np.ascontiguousarray(block.indices, dtype="<i4").data)
        values.update(np.ascontiguousarray(block.data, dtype="<f4").data)
    return lengths.digest() + columns.digest() + values.digest()
