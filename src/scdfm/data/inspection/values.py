"""What the matrices of a file hold: counts, log1p values, or something that has to be brought to one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import scipy.sparse as sp

from scdfm.data.source import READ_ERRORS, Source, reason
from scdfm.data.values import MOST_LOG1P
from scdfm.errors import DataError

Kind = Literal["counts", "log1p", "normalised", "scaled", "empty", "unreadable"]
_BLOCK: Final = 500  # cells of each of three blocks that are looked at
_SAME_TOTAL: Final = 0.02  # relative spread of the cells' totals below which they count as normalised to one


@dataclass(frozen=True)
class Matrix:
    """One matrix (`layer` None: X): what it holds, the evidence, the share of nonzero values among the cells seen."""

    layer: str | None
    kind: Kind
    evidence: str
    density: float

    @property
    def name(self) -> str:
        """X, or the layer's name."""
        return "X" if self.layer is None else f"layer '{self.layer}'"


def matrices(source: Source) -> list[Matrix]:
    """X, if there is one, and every layer."""
    found = []
    for layer in (None, *source.layers):
        try:
            opened = source.matrix(layer)
            values = _sampled(opened, len(source.obs))
        except (*READ_ERRORS, DataError, IndexError) as error:
            if layer is not None or source.layers:
                found.append(Matrix(layer, "unreadable", f"cannot be read ({reason(error)})", 0.0))
                continue
            raise
        found.append(
            Matrix(layer, *_kind(values), density=values.nnz / max(1, len(source.genes) * values.shape[0]))
        )
    return found


def _sampled(matrix: Any, n: int) -> sp.csr_matrix:
    """Up to three blocks of cells, from the beginning, the middle and the end."""
    starts = [0] if n <= 3 * _BLOCK else [0, (n - _BLOCK) // 2, n - _BLOCK]
    height = n if n <= 3 * _BLOCK else _BLOCK
    return sp.csr_matrix(sp.vstack([sp.csr_matrix(matrix[start : start + height]) for start in starts]))


def _kind(values: sp.csr_matrix) -> tuple[Kind, str]:
    """What the values are, and by what one sees it."""
    data = values.data
    if not len(data) or not data.any():
        return "empty", "zeros only"
    if not np.isfinite(data).all():
        return "unreadable", "holds values that are not finite"
    if data.min() < 0:
        return "scaled", f"negative values (down to {data.min():.3g})"
    highest = float(data.max())
    if (np.rint(data) == data).all():
        return "counts", f"whole numbers up to {highest:g}"
    if highest > MOST_LOG1P:
        return "normalised", f"fractions up to {highest:.4g}, too large for a logarithm"
    return "log1p", f"fractions up to {highest:.3g}" + _totals(values)


def _totals(values: sp.csr_matrix) -> str:
    """What the cells add up to once the logarithm is undone, if it is one number for all."""
    totals = np.asarray(values.astype(np.float64).expm1().sum(axis=1)).ravel()
    totals = totals[totals > 0]
    if len(totals) > 1 and totals.std() < _SAME_TOTAL * totals.mean():
        return f"; undoing log1p, every cell adds up to {totals.mean():.4g}"
    return ""


def chosen(found: list[Matrix]) -> Matrix | None:
    """The matrix to fit on: log1p values or counts in X, else a layer of counts, else one of log1p values."""
    usable = [part for part in found if part.kind in ("counts", "log1p")]
    by_trust = sorted(
        usable, key=lambda part: (part.layer is not None, part.layer != "counts", part.kind != "counts")
    )
    return by_trust[0] if by_trust else None
