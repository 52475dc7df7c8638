"""What the numbers of a matrix are, recognised by themselves, and how such a matrix is read.

Counts of one cell are whole multiples of one count, whatever a normalisation divides them by; and a normalisation gives
all cells one total. So a transform is recognised where undoing it brings back multiples, or one total. A cell of counts k
on the log1p scale holds ln(1 + s·k) with one factor s (target_sum over the cell's total): (exp(x) − 1) / s is whole for
all of its values, at one s and in one base alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.optimize import minimize_scalar

from scdfm.data import stored
from scdfm.data.source import Source
from scdfm.data.tables import READ_ERRORS, reason
from scdfm.errors import DataError
from scdfm.options import Values

Kind = Literal[
    "counts", "log1p", "log2", "log10", "log1p-twice", "normalised", "fractional", "intensities", "scaled", "empty",
    "unreadable",
]  # fmt: skip
Floats = npt.NDArray[np.float64]

MOST: Final[dict[Values, float]] = {
    "log1p": 20.0, "log2": 30.0, "log10": 9.0, "log1p-twice": 3.1, "linear": 1e9,
}  # fmt: skip
"""The largest value of each: that of about a thousand million counts; log1p is held to 480 million."""
UNDO: Final[dict[Values, Callable[[Floats], Floats]]] = {
    "log1p": np.expm1,
    "log2": lambda x: np.exp2(x) - 1,
    "log10": lambda x: np.power(10.0, x) - 1,
    "log1p-twice": lambda x: np.expm1(np.expm1(x)),
    "linear": lambda x: x,
}
TARGET_SUM: Final = "10000"
OPTIONS: Final[dict[Kind, tuple[str, ...]]] = {
    "log1p": (),
    "counts": ("--target-sum", TARGET_SUM),
    "normalised": ("--target-sum", TARGET_SUM),
    "fractional": ("--target-sum", TARGET_SUM),
    "log2": ("--values", "log2"),
    "intensities": ("--values", "log2"),
    "log10": ("--values", "log10"),
    "log1p-twice": ("--values", "log1p-twice"),
}
"""The options that read a matrix of each kind; others cannot be read."""
MEANING: Final[dict[Kind, str]] = {
    "normalised": "normalised counts without a logarithm",
    "fractional": "counts with fractions, as ambient-RNA correction gives them, without a logarithm",
    "log2": "binary logarithms, log2(1 + x)",
    "log10": "decimal logarithms, log10(1 + x)",
    "log1p-twice": "logarithms of logarithms: log1p was taken twice",
    "intensities": "log2 intensities of an array, or bulk profiles: hardly a zero among them",
    "scaled": "scaled, centred or corrected values, which no count was",
}
"""Kinds that are neither log1p values nor whole counts, in words."""
_BLOCK: Final = 500  # cells of each of three blocks that are looked at
_SAME_TOTAL: Final = 0.02  # relative spread of the cells' totals below which they count as normalised to one
_ALIKE: Final = 1e-4
_NEAR: Final = 0.003  # how far from a whole number a multiple may be
_MULTIPLES: Final = (1.5, 30.0)  # multiples of the smallest value that tell something, and that float32 can tell
_FEWEST: Final = 20  # cells by whose multiples a transform is told
_DENSE: Final = 0.98  # share of values above 0,
_HIGH: Final = 4.0  # and their median, that log1p of single cells do not reach together


@dataclass(frozen=True)
class Recognised:
    """What values are, and by what one sees it; `sure` where they could hardly be anything else."""

    kind: Kind
    evidence: str
    sure: bool = True


@dataclass(frozen=True)
class Matrix:
    """One matrix (`layer` None: X): what it holds, the evidence, the share of nonzero values among the cells seen.

    `n_genes` is that of the table it belongs to, `n_empty` the number of cells seen without any value.
    """

    layer: str | None
    kind: Kind
    evidence: str
    density: float
    n_genes: int = 0
    n_empty: int = 0

    @property
    def name(self) -> str:
        """X, or the layer's name."""
        return "X" if self.layer is None else f"layer '{self.layer}'"

    @property
    def options(self) -> tuple[str, ...] | None:
        """The options of the command line that read it; None where it cannot be read."""
        layer = () if self.layer is None else ("--layer", self.layer)
        return (*layer, *OPTIONS[self.kind]) if self.kind in OPTIONS else None


def matrices(source: Source) -> list[Matrix]:
    """X, if there is one, every layer, and the matrix of `.raw`."""
    contents = []
    for layer in (None, *source.readable):
        try:
            at = source.at(layer)
            opened = at.matrix(layer)
            values = sample(opened)
        except (*READ_ERRORS, DataError, IndexError) as error:
            if layer is not None or source.readable:
                contents.append(Matrix(layer, "unreadable", f"cannot be read ({reason(error)})", 0.0))
                continue
            raise
        seen = recognise(values)
        density = values.nnz / max(1, values.shape[0] * values.shape[1])
        contents.append(Matrix(layer, seen.kind, seen.evidence, density, values.shape[1], _empty(opened, values)))
    return contents


def chosen(candidates: list[Matrix]) -> Matrix | None:
    """The matrix to fit on: log1p values or counts in X, else a layer of counts, else one of log1p values, else what can
    be brought to log1p values."""
    usable = [part for part in candidates if part.options is not None]

    def trust(part: Matrix) -> tuple[bool, ...]:
        plain = part.kind in ("counts", "log1p")
        return not plain, part.layer is not None, part.layer != "counts", part.kind != "counts"

    return min(usable, key=trust, default=None)


def sample(matrix: Any, rows: npt.NDArray[np.int64] | None = None) -> sp.csr_matrix:
    """Up to three blocks of cells (of the ascending `rows`), from the beginning, the middle and the end."""
    n = matrix.shape[0] if rows is None else len(rows)
    starts = [0] if n <= 3 * _BLOCK else [0, (n - _BLOCK) // 2, n - _BLOCK]
    height = n if n <= 3 * _BLOCK else _BLOCK
    return sp.csr_matrix(sp.vstack([_block(matrix, rows, start, height) for start in starts]))


def _block(matrix: Any, rows: npt.NDArray[np.int64] | None, start: int, height: int) -> sp.csr_matrix:
    block_rows = None if rows is None else rows[start : start + height]
    if block_rows is None:
        part = matrix[start : start + height]
    else:
        block_rows = block_rows[block_rows < block_rows[0] + 10 * height]  # what files read at once
        part = matrix[int(block_rows[0]) : int(block_rows[-1]) + 1]
    part = part.astype(np.float32) if part.dtype == np.float16 else part  # which sparse matrices do not hold
    return sp.csr_matrix(part if block_rows is None else sp.csr_matrix(part)[block_rows - block_rows[0]])


def recognise(values: sp.csr_matrix) -> Recognised:
    """What the values of some cells [n, A] are."""
    data = values.data
    if not len(data) or not data.any():
        return Recognised("empty", "zeros only")
    if not np.isfinite(data).all():
        return Recognised("unreadable", "holds values that are not finite")
    if data.min() < 0:
        return Recognised("scaled", f"negative values (down to {data.min():.3g})")
    highest = float(data.max())
    if (np.rint(data) == data).all():
        return Recognised("counts", f"whole numbers up to {highest:g}")
    values = values.astype(np.float64)
    values.eliminate_zeros()
    with np.errstate(over="ignore", invalid="ignore"):  # of values that no transform leaves so large
        return _of_fractions(values, highest)


def _of_fractions(values: sp.csr_matrix, highest: float) -> Recognised:
    fractions = f"fractions up to {highest:.4g}"
    if verdict := _undone(values, highest):
        kind, evidence = verdict
        return Recognised(kind, fractions + evidence)
    if _are_scaled(values):
        return Recognised("scaled", "every gene varies by about 1 standard deviation")
    if highest > MOST["log1p"]:
        return Recognised("fractional", f"{fractions}, too large for a logarithm", sure=False)
    if values.nnz >= _DENSE * np.prod(values.shape) and np.median(values.data) > _HIGH:
        return Recognised("intensities", f"{fractions}, {np.median(values.data):.3g} in the median, hardly a zero")
    return Recognised("log1p", fractions, sure=False)


def _undone(values: sp.csr_matrix, highest: float) -> tuple[Kind, str] | None:
    """The transform whose undoing leaves one total for all cells, or multiples of one count in each; None without one."""
    undone = {name: stored.mapped(values, UNDO[name]) for name in UNDO if name == "linear" or highest <= MOST[name]}
    spreads = {name: _spread(each) for name, each in undone.items()}
    best = min(spreads, key=lambda name: spreads[name])
    if spreads.get("log1p", np.inf) < max(_ALIKE, 10 * spreads[best]):  # cells so alike that any undoing fits
        best = "log1p"
    kinds: dict[Values, Kind] = {
        "log1p": "log1p", "log2": "log2", "log10": "log10", "log1p-twice": "log1p-twice", "linear": "normalised",
    }  # fmt: skip
    undoing = {"log1p": "undoing log1p, ", "linear": ""}
    if spreads[best] < _SAME_TOTAL:
        total = float(_totals(undone[best]).mean())
        said = undoing.get(best, f"undoing {kinds[best]}, ")
        return kinds[best], f"; {said}every cell adds up to {total:.4g}"
    for name, each in undone.items():
        if _are_multiples(each):
            said = undoing.get(name, f"undoing {kinds[name]}, ")
            return kinds[name], f"; {said}a cell's values are multiples of one count"
    return None


def _totals(values: sp.csr_matrix) -> Floats:
    totals: Floats = np.asarray(values.sum(axis=1), dtype=np.float64).ravel()
    return totals[totals > 0]


def _spread(values: sp.csr_matrix) -> float:
    """Relative spread of the cells' totals."""
    totals = _totals(values)
    return float(totals.std() / totals.mean()) if len(totals) > 1 else float("inf")


def _are_multiples(values: sp.csr_matrix) -> bool:
    """Whether in most cells all values are multiples of the smallest one, or of a half or a third of it."""
    fits = [any(_near_whole(multiples * part) for part in (1, 2, 3)) for multiples in _multiples(values)]
    return len(fits) >= _FEWEST and sum(fits) >= 0.8 * len(fits)


def _multiples(values: sp.csr_matrix) -> Iterator[Floats]:
    """The values of each cell, of up to 500, over its smallest, where three or more of them tell something."""
    for row in range(min(_BLOCK, values.shape[0])):
        part = values.data[values.indptr[row] : values.indptr[row + 1]]
        if len(part) > 3:
            multiples = part / part.min()
            multiples = multiples[(multiples > _MULTIPLES[0]) & (multiples < _MULTIPLES[1])]
            if len(multiples) > 2:
                yield multiples


def _are_scaled(values: sp.csr_matrix) -> bool:
    """Whether nearly all genes have a standard deviation of about 1, as division by it leaves."""
    mean = np.asarray(values.mean(axis=0)).ravel()
    square = np.asarray(values.multiply(values).mean(axis=0)).ravel()
    spread = np.sqrt(np.maximum(square - mean**2, 0))[mean > 0]
    return values.shape[0] >= 50 and len(spread) >= 10 and bool(np.mean(np.abs(spread - 1) < 0.15) > 0.9)


def _near_whole(multiples: Floats) -> bool:
    return bool(np.mean(np.abs(multiples - np.rint(multiples)) < _NEAR) > 0.95)


def _empty(matrix: Any, seen: sp.csr_matrix) -> int:
    """Cells without a value: all of a CSR matrix, whose rows need not be read for it, else of those seen."""
    indptr = getattr(matrix, "indptr", None) if getattr(matrix, "format", "") == "csr" else None
    if indptr is None and getattr(matrix, "format", "") == "csr" and hasattr(matrix, "group"):
        indptr = matrix.group["indptr"][:]
    lengths = np.diff(seen.indptr if indptr is None else indptr)
    return int((lengths == 0).sum())


BASES: Final = {"2": np.log(2.0), "10": np.log(10.0)}
"""Other logarithms in use, and the factor that brings them to the natural one."""
HALVED, QUARTERED, CLOSER = 0.5, 0.25, 0.15
"""Values are in another scale if rescaling leaves less than HALVED of the error at a factor of about 2 or more, or less
than CLOSER at any factor; in another base, if that leaves less than QUARTERED."""
FEWEST_VALUES: Final = 3
"""Different values of a cell that tell its factor: one or two are whole multiples of something by chance."""
SHOWN_CELLS: Final = 200
_LARGEST: Final = 64
"""Multiples of the smallest value that are looked at: float32 holds them to some thousandths."""
_SMALLEST_COUNTS: Final = 4
"""The smallest count of a cell may be more than one, up to this."""


def size_factors(X: sp.csr_matrix) -> Floats:
    """The factor s [N] of each cell's counts, where `X` [N, A] holds ln(1 + s·count); NaN where it does not."""
    factors = np.full(X.shape[0], np.nan)
    for row in range(X.shape[0]):
        values = np.unique(X.data[X.indptr[row] : X.indptr[row + 1]].astype(np.float64))
        factors[row] = _factor(np.expm1(values[values > 0]))
    return factors


def _factor(scaled: Floats) -> float:
    """The s of s·count for one cell's different values, ascending; NaN where they are no multiples of one number."""
    if len(scaled) < FEWEST_VALUES or not np.isfinite(scaled[-1]):
        return float("nan")
    multiples = scaled[scaled <= _LARGEST * scaled[0]] / scaled[0]
    for count in range(1, _SMALLEST_COUNTS + 1):
        whole = np.rint(multiples * count)
        distinct = len(np.unique(whole)) == len(whole) >= FEWEST_VALUES
        if distinct and np.all(np.abs(multiples * count - whole) < 2e-3 + 2e-4 * whole):
            return float(scaled[0] / count)
    return float("nan")


def base_of(X: stored.Matrix) -> str:
    """The base of the logarithm that `X` [N, A] holds, "e", "2" or "10", as its cells' whole counts tell; "" where not."""
    rows = np.unique(np.linspace(0, X.shape[0] - 1, SHOWN_CELLS).astype(int))
    cells = sp.csr_matrix(X[rows])
    for base, factor in {"e": 1.0, **BASES}.items():
        factors = size_factors(stored.mapped(cells, lambda x, factor=factor: x * factor))  # type: ignore[misc]
        if np.isfinite(factors).sum() > 0.5 * len(factors):
            return base
    return ""


class Rescaling(NamedTuple):
    """What would bring cells to another scale: `factor` on their counts (None: another base), and in words."""

    words: str
    factor: float | None


def rescaling(claim: Floats, X: sp.csr_matrix, shares: Floats, bases: Mapping[str, float] = BASES) -> Rescaling | None:
    """What brings the cells `X` [n, A], which count by `shares` [n], to the scale of the mean `claim` [A]; None: nothing.

    The mean is compared (L1) with that of ln(1 + c·expm1(x)) over the cells, and c sought that fits best; and with
    that of x by the factor of another base. A faulty model is not helped much by one factor; another total or base is.
    """
    linear, mass = np.expm1(X.data.astype(np.float64)), np.repeat(shares, np.diff(X.indptr))

    def gap(values: Floats) -> float:
        return float(np.abs(claim - np.bincount(X.indices, weights=mass * values, minlength=len(claim))).sum())

    def error(log2_factor: float) -> float:
        return gap(np.log1p(2.0**log2_factor * linear))

    unscaled = error(0.0)
    if not unscaled > 0:
        return None
    start = min(range(-7, 8), key=error)
    best = minimize_scalar(error, bounds=(start - 1, start + 1), method="bounded", options={"xatol": 0.01})
    factor, left = float(2.0**best.x), float(best.fun) / unscaled
    logarithms = {
        words.format(base): gap(X.data * by) / unscaled
        for base, ln in bases.items()
        for words, by in (("mean taken as log{}(1 + x)", 1 / ln), ("values taken as log{}(1 + x)", ln))
    }
    words = min(logarithms, key=lambda name: logarithms[name], default="")
    if words and logarithms[words] < min(QUARTERED, left):
        return Rescaling(words, None)
    if (left < HALVED and not 0.55 < factor < 1.8) or (left < CLOSER and not 0.95 < factor < 1.05):
        return Rescaling(f"counts multiplied by about {factor:.2g}", factor)
    return None
