"""The tables obs and var of a file, column by column: one that cannot be read does not take the others with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

# What h5py, zarr and anndata raise on files that are truncated, of another kind or of another version.
READ_ERRORS: Final = (
    OSError,
    KeyError,
    ValueError,
    TypeError,
    RuntimeError,
    AttributeError,
    NotImplementedError,
)
BYTE_ORDER_MARK: Final = "\ufeff"
UNREADABLE: Final = "unreadable"
"""Key in a table's attrs: the columns that could not be read, each with the reason."""
UNSEEN: Final = "unseen"
"""Key in the attrs of a table of distinct rows: the columns left out because they would make too many of them."""
MANY: Final = 500_000
"""Rows from which a table is looked at by its distinct rows."""
_CHUNK: Final = 1_000_000  # texts that are read at once
_VALUES: Final = 100_000  # different values of a column that still tell kinds of cells apart
_KINDS: Final = 300_000  # kinds of cells, of all columns together


def reason(error: BaseException) -> str:
    """The kind of a library's error and the start of its text, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


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
    row, kinds = np.zeros(n, dtype=np.int64), 1
    kept: dict[
        str, tuple[Any, npt.NDArray[np.int64]]
    ] = {}  # values of each column, and their codes by kind of row
    for name, read in sorted(columns, key=lambda column: rank(column[0])):
        values = read()
        coded = None if values is None else _coded(values)
        if coded is None:
            continue
        codes, found = coded
        merged, pairs = pd.factorize(row * (len(found) + 1) + codes + 1)
        if len(pairs) > _KINDS:
            unseen.append(name)
            continue
        before, code = np.divmod(pairs, len(found) + 1)
        kept = {other: (each, old[before]) for other, (each, old) in kept.items()}
        kept[name] = (found, code - 1)
        row, kinds = merged, len(pairs)
    first = np.empty(kinds, dtype=np.int64)
    first[row[::-1]] = np.arange(n - 1, -1, -1)  # of several the last that is written stays
    ordered = [name for name, _ in columns if name in kept]
    table = pd.DataFrame({name: _taken(*kept[name]) for name in ordered}, index=pd.Index(first))
    table.attrs[UNSEEN] = unseen
    return table, pd.Series(np.bincount(row, minlength=kinds), index=table.index)


def _coded(values: Any) -> tuple[npt.NDArray[np.int64], Any] | None:
    """The code of each row (-1: missing) and the values by code; None where there are too many."""
    values = values.array if isinstance(values, pd.Series) else values
    if isinstance(values, pd.Categorical):
        codes, found = values.codes.astype(np.int64), values.categories.to_frame(index=False)
        return (codes, found) if len(found) <= _VALUES else None
    codes, found = pd.factorize(values)
    return (codes.astype(np.int64), found) if len(found) <= _VALUES else None


def _taken(found: Any, codes: npt.NDArray[np.int64]) -> Any:
    """The values of codes, in the kind of column they came from: categories, numbers, or objects."""
    if isinstance(found, pd.DataFrame):
        return pd.Categorical.from_codes(codes, categories=pd.Index(found.iloc[:, 0]))
    return pd.Series(found).reindex(codes).to_numpy()


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
    for start in range(0, element.shape[0], _CHUNK):
        codes, found = pd.factorize(np.asarray(element[start : start + _CHUNK], dtype=object))
        parts.append(np.array([place.setdefault(text, len(place)) for text in found], dtype=np.int32)[codes])
        if len(place) > _VALUES:
            return None
    texts = [text.decode() if isinstance(text, bytes) else str(text) for text in place]
    return pd.Categorical.from_codes(np.concatenate(parts), categories=pd.Index(texts, dtype=object))
