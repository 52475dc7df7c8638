"""The tables obs and var of a file, column by column: one that cannot be read does not take the others with it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from scdfm.errors import DataError, ScdfmError

# What h5py, zarr and anndata raise on files that are truncated, of another kind or of another version.
READ_ERRORS: Final = (
    OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, NotImplementedError,
)  # fmt: skip
BYTE_ORDER_MARK: Final = "\ufeff"
UNREADABLE: Final = "unreadable"
"""Key in a table's attrs: the columns that could not be read, each with the reason."""
UNSEEN: Final = "unseen"
"""Key in the attrs of a table of distinct rows: the columns left out because they would make too many of them."""
MANY: Final = 500_000
"""Rows from which a table is looked at by its distinct rows."""
_CHUNK: Final = 1_000_000  # rows that are worked on at once
_VALUES: Final = 100_000  # different values of a column that still tell kinds of cells apart
_LOOKED_UP: Final = 1 << 23  # pairs whose places a table holds
_KINDS: Final = 200_000  # kinds of cells, of all columns together


def reason(error: BaseException) -> str:
    """The kind of a library's error and the start of its text, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextlib.contextmanager
def values_of(where: str) -> Iterator[None]:
    """A block that reads values of a matrix; DataError where they cannot be read."""
    try:
        yield
    except ScdfmError:
        raise
    except (*READ_ERRORS, IndexError) as error:
        raise DataError(f"{where} cannot be read ({reason(error)}); write the file anew (write_h5ad)") from error


def is_read_error(error: BaseException) -> bool:
    """Whether a library says by `error` that it cannot read something."""
    # The error for an encoding that this anndata does not know is private to anndata.
    return isinstance(error, READ_ERRORS) or type(error).__name__ == "IORegistryError"


def read_table(element: Any) -> Any:
    """The table at an element of a file (or what else stands there), its column names as `tidied` gives them.

    Columns that cannot be read are left out and stand in `attrs["unreadable"]`.
    """
    from anndata.io import read_elem

    with warnings.catch_warnings(action="ignore"):  # on old or odd files, which are read or refused
        try:
            return tidied(read_elem(element))
        except Exception as error:
            names = _column_names(element)
            if not is_read_error(error) or names is None:
                raise
            index = pd.Index(read_elem(element[str(element.attrs["_index"])]))
            columns, lacking = _readable(element, names, len(index))
            table = pd.DataFrame(dict(columns), index=index)
            table.attrs[UNREADABLE] = lacking
            return tidied(table)


def read_distinct(element: Any, rank: Callable[[str], int]) -> tuple[Any, pd.Series[int] | None]:
    """The table of `read_table`, or of MANY rows the distinct ones of it with their numbers (`distinct`); column by
    column, so that never more than one of them is in memory."""
    names = _column_names(element)
    if names is None or (n := _length(element)) <= MANY:
        return read_table(element), None
    with warnings.catch_warnings(action="ignore"):
        lacking: dict[str, str] = {}
        table, counts = distinct([(name, _reader(element, name, n, lacking)) for name in names], n, rank)
    table.attrs[UNREADABLE] = lacking
    return tidied(table), counts


def distinct(
    columns: Sequence[tuple[str, Callable[[], Any]]], n: int, rank: Callable[[str], int]
) -> tuple[pd.DataFrame, pd.Series[int]]:
    """The distinct rows of a table of `n` rows, in the order of their first, and how many rows each stands for.

    columns: names, and what reads each. Those with a value of its own for almost every row tell no kinds of rows
    apart and are left out, as are those that cannot be read (None), and those of the highest `rank` that would make
    more than _KINDS of rows. The index holds the places of the first rows.
    """
    unseen: list[str] = []
    row = np.zeros(n, dtype=np.int32)
    by_name: dict[str, tuple[Any, npt.NDArray[np.int64]]] = {}  # values of each column, and their codes by kind of row
    kinds = 1
    for name, read in sorted(columns, key=lambda column: rank(column[0])):
        values = read()
        coded = None if values is None else _coded(values)
        if coded is None:
            continue
        codes, levels = coded
        width = len(levels) + 1
        pairs = _pairs(row, codes, kinds, width)
        if len(pairs) > _KINDS:
            unseen.append(name)
            continue
        _renumber(row, codes, pairs, width)
        before, code = np.divmod(pairs, width)
        by_name = {other: (each, old[before]) for other, (each, old) in by_name.items()}
        by_name[name] = (levels, code - 1)
        kinds = len(pairs)
    first = np.full(kinds, n, dtype=np.int64)
    for start in range((n - 1) // _CHUNK * _CHUNK, -1, -_CHUNK):  # of several writes to one place the last stays
        part = row[start : start + _CHUNK]
        first[part[::-1]] = np.arange(start + len(part) - 1, start - 1, -1)
    order = np.argsort(first)
    ordered = [name for name, _ in columns if name in by_name]
    data = {name: _taken(by_name[name][0], by_name[name][1][order]) for name in ordered}
    table = pd.DataFrame(data, index=pd.Index(first[order]))
    table.attrs[UNSEEN] = unseen
    return table, pd.Series(np.bincount(row, minlength=kinds)[order], index=table.index)


def _pairs(
    row: npt.NDArray[np.int32], codes: npt.NDArray[np.integer[Any]], kinds: int, width: int
) -> npt.NDArray[np.int64]:
    """The pairs of a kind of row and a code (-1: missing) that there are, each as kind · width + code + 1, ascending."""
    seen = np.zeros(kinds * width, dtype=bool)
    for start in range(0, len(row), _CHUNK):
        seen[_keys(row, codes, start, width)] = True
    return np.flatnonzero(seen)


def _renumber(
    row: npt.NDArray[np.int32], codes: npt.NDArray[np.integer[Any]], pairs: npt.NDArray[np.int64], width: int
) -> None:
    """Make `row` the place of each row's pair among the `pairs`, in place."""
    place = None
    if pairs[-1] < _LOOKED_UP:
        place = np.zeros(int(pairs[-1]) + 1, dtype=np.int32)
        place[pairs] = np.arange(len(pairs))
    for start in range(0, len(row), _CHUNK):
        keys = _keys(row, codes, start, width)
        row[start : start + _CHUNK] = np.searchsorted(pairs, keys) if place is None else place[keys]


def _keys(
    row: npt.NDArray[np.int32], codes: npt.NDArray[np.integer[Any]], start: int, width: int
) -> npt.NDArray[np.int64]:
    part = slice(start, start + _CHUNK)
    return row[part].astype(np.int64) * width + codes[part] + 1


def _coded(values: Any) -> tuple[npt.NDArray[np.integer[Any]], Any] | None:
    """The code of each row (-1: missing) and the values by code; None where there are too many."""
    values = values.array if isinstance(values, pd.Series) else values
    if isinstance(values, pd.Categorical):
        categories = values.categories.to_frame(index=False)
        return (values.codes, categories) if len(categories) <= _VALUES else None
    parts = []
    levels = pd.Index([])
    for start in range(0, len(values), _CHUNK):  # a table of all values at once takes as much memory as the rest
        codes, new = pd.factorize(pd.Series(values[start : start + _CHUNK]))
        further = new[~new.isin(levels)]
        levels = further if not len(levels) else levels.append(further)
        if len(levels) > _VALUES:
            return None
        parts.append(np.append(levels.get_indexer(new), -1).astype(np.int32)[codes])
    return np.concatenate(parts), levels


def _taken(levels: Any, codes: npt.NDArray[np.int64]) -> Any:
    """The values of codes, in the kind of column they came from: categories, numbers, or objects."""
    if isinstance(levels, pd.DataFrame):
        return pd.Categorical.from_codes(codes, categories=pd.Index(levels.iloc[:, 0]))
    return pd.Series(levels).reindex(codes).to_numpy()


def tidied(table: Any) -> Any:
    """A table whose column names are texts without blanks or byte order marks around them; anything else as it is."""
    if not isinstance(table, pd.DataFrame):
        return table
    named = [plain(column) for column in table.columns]
    if named == list(table.columns):
        return table
    return table.set_axis(pd.Index(named, dtype=object), axis=1)


def plain(value: object) -> str:
    """A text without blanks and byte order marks around it."""
    return str(value).strip().strip(BYTE_ORDER_MARK).strip()


def unreadable(table: pd.DataFrame) -> dict[str, str]:
    """The columns of a table's file that could not be read, each with the reason."""
    return dict(table.attrs.get(UNREADABLE, {}))


def _column_names(element: Any) -> list[str] | None:
    """The columns of an encoded table, None where it is something else or of an older format."""
    if not hasattr(element, "keys") or "_index" not in element.attrs or "column-order" not in element.attrs:
        return None
    return [str(name) for name in element.attrs["column-order"]]


def _length(element: Any) -> int:
    index = element[str(element.attrs["_index"])]
    return int(index.shape[0]) if hasattr(index, "shape") else 0


def _readable(element: Any, names: Iterable[str], n: int) -> tuple[list[tuple[str, Any]], dict[str, str]]:
    """The columns that can be read, and of the others why not."""
    lacking: dict[str, str] = {}
    read = [(name, _reader(element, name, n, lacking)()) for name in names]
    return [(name, values) for name, values in read if name not in lacking], lacking


def _reader(element: Any, name: str, n: int, lacking: dict[str, str]) -> Callable[[], Any]:
    """What reads one column; None, with the reason in `lacking`, where that cannot be."""
    from anndata.io import read_elem

    def read() -> Any:
        try:
            kind = element[name].attrs.get("encoding-type") if n > MANY else None
            if kind == "categorical" and element[f"{name}/categories"].shape[0] > _VALUES:
                return None
            values = _texts(element[name]) if kind == "string-array" else read_elem(element[name])
            if values is not None and len(values) != n:
                raise ValueError(f"{len(values)} values for {n} rows")
        except Exception as error:
            if not is_read_error(error):
                raise
            lacking[name] = reason(error)
            return None
        return values

    return read


def _texts(element: Any) -> pd.Categorical | None:
    """The texts of an array as a categorical; None where they hardly repeat, as names of cells do."""
    place: dict[Any, int] = {}
    parts = []
    for start in range(0, element.shape[0], 2 * _VALUES):
        codes, levels = pd.factorize(np.asarray(element[start : start + 2 * _VALUES], dtype=object))
        if len(levels) > _VALUES:
            return None
        parts.append(np.array([place.setdefault(text, len(place)) for text in levels], dtype=np.int32)[codes])
        if len(place) > _VALUES:
            return None
    texts = [text.decode() if isinstance(text, bytes) else str(text) for text in place]
    return pd.Categorical.from_codes(np.concatenate(parts), categories=pd.Index(texts, dtype=object))
