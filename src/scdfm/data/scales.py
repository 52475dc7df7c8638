"""What the values themselves tell of their scale: the factor of each cell's counts, the base of a logarithm, another total.

A cell of counts k on the log1p scale holds ln(1 + s·k) with one factor s (target_sum over the cell's total). Counts are
whole numbers, so (exp(x) − 1) / s is whole for all of its values, at one s and in one base alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.optimize import minimize_scalar

from scdfm.data.stored import Matrix, mapped

Floats = npt.NDArray[np.float64]

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


def base_of(X: Matrix) -> str:
    """The base of the logarithm that `X` [N, A] holds, "e", "2" or "10", as its cells' whole counts tell; "" where not."""
    rows = np.unique(np.linspace(0, X.shape[0] - 1, SHOWN_CELLS).astype(int))
    cells = sp.csr_matrix(X[rows])
    for base, factor in {"e": 1.0, **BASES}.items():
        factors = size_factors(mapped(cells, lambda x, factor=factor: x * factor))  # type: ignore[misc]
        if np.isfinite(factors).sum() > 0.5 * len(factors):
            return base
    return ""


class Rescaling(NamedTuple):
    """What would bring cells to another scale: `factor` on their counts (None: another base), and in words."""

    words: str
    factor: float | None


def rescaling(
    claim: Floats, X: sp.csr_matrix, shares: Floats, bases: Mapping[str, float] = BASES
) -> Rescaling | None:
    """What brings the cells `X` [n, A], which count by `shares` [n], to the scale of the mean `claim` [A]; None: nothing.

    The mean is compared (L1) with that of ln(1 + c·expm1(x)) over the cells, and c sought that fits best; and with
    that of x by the factor of another base. A faulty model is not helped much by one factor; another total or base is.
    """
    linear, mass = np.expm1(X.data.astype(np.float64)), np.repeat(shares, np.diff(X.indptr))

    def gap(values: Floats) -> float:
        return float(
            np.abs(claim - np.bincount(X.indices, weights=mass * values, minlength=len(claim))).sum()
        )

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
