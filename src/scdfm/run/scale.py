"""Cells that are given to a run must be on its scale: log1p, with the target_sum that it was fitted at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import scipy.sparse as sp

from scdfm.data import CONTROL
from scdfm.data.kinds import BASES, Rescaling, base_of, rescaling
from scdfm.data.stored import Matrix, mapped, subset
from scdfm.errors import DataError
from scdfm.run.trained import Trained

SCALE_CELLS: Final = 1000
"""Cells that stand for all, evenly spaced."""
AS_MUCH, FAR, LESS = 1.5, 2.5, 0.9
"""Totals of cells agree with a factor within AS_MUCH of theirs; a factor of FAR tells another scale where that leaves LESS
of the difference to the control mean. Perturbations and cell types change totals over a run's genes too, but less."""


def require_scale(run: Trained, X: Matrix, genes: list[str], where: str) -> None:
    """Raise DataError where the cells `X` [N, A] of `genes` look to be in another scale than the run's control cells.

    Their mean per gene is compared with the run's control mean, and their totals of normalised counts with those of the
    control cells that the run stores, over the genes of both. Fewer counts a cell lower means of logarithms, not totals.
    """
    column = {gene: at for at, gene in enumerate(genes)}
    shared = [place for place, gene in enumerate(run.genes) if gene in column]
    reference = _control_mean(run)
    if reference is None or not shared or not X.shape[0]:
        return
    rows = np.unique(np.linspace(0, X.shape[0] - 1, SCALE_CELLS).astype(int))
    cells = subset(X, rows, np.array([column[run.genes[place]] for place in shared]))[:]
    bases = {} if base_of(cells) == "e" else BASES  # whole counts tell the base of real cells beyond doubt
    candidate = rescaling(reference[shared], cells, np.full(len(rows), 1 / len(rows)), bases)
    if "controls.h5ad" in run.manifest.digests:
        columns = run.controls.columns([run.genes[place] for place in shared])
        total = _total(run.controls.X[:, columns])
        if candidate is not None and candidate.factor is not None:
            agree = 1 / AS_MUCH < total / max(_total(cells), 1e-9) / candidate.factor < AS_MUCH
            candidate = candidate if agree else None
        candidate = candidate or _of_totals(reference[shared], cells, total, bases)
    if candidate is None:
        return
    per = run.manifest.scale["target_sum"]
    scale = "log1p, as the run's training cells were" if per is None else f"log1p of counts per {per:g}"
    raise DataError(
        f"{where}: cells in another scale than the run's control cells (they agree better with their {candidate.words}); "
        f"expected {scale}: normalise them so, or give raw counts with their target_sum"
    )


def _control_mean(run: Trained) -> np.ndarray | None:
    """Mean of the run's control cells [G], if it keeps means or cells."""
    if "means.csv" in run.manifest.digests and CONTROL in run.means.index:
        return run.means.loc[CONTROL].to_numpy(np.float64)
    if "controls.h5ad" in run.manifest.digests:
        return run.controls.mean(CONTROL)
    return None


def _total(cells: sp.csr_matrix) -> float:
    """Normalised counts of a cell, on average."""
    return float(np.expm1(cells.data.astype(np.float64)).sum() / cells.shape[0])


def _of_totals(
    reference: np.ndarray, cells: sp.csr_matrix, total: float, bases: Mapping[str, float]
) -> Rescaling | None:
    """What brings `cells` to the `total` of control cells, if they are far from it and come nearer to their mean."""
    factor = total / max(_total(cells), 1e-9)
    if 1 / FAR < factor < FAR:
        return None

    changed = mapped(cells, lambda x: np.log1p(factor * np.expm1(x)))
    candidates = {Rescaling(f"counts multiplied by about {factor:.2g}", factor): changed}
    for base, ln in bases.items():
        natural = sp.csr_matrix(cells * ln)
        if 1 / AS_MUCH < _total(natural) / total < AS_MUCH:
            candidates[Rescaling(f"values taken as log{base}(1 + x)", None)] = natural
    gaps = {candidate: _gap(reference, changed) for candidate, changed in candidates.items()}
    best = min(gaps, key=lambda candidate: gaps[candidate])
    return best if gaps[best] < LESS * _gap(reference, cells) else None


def _gap(reference: np.ndarray, cells: sp.csr_matrix) -> float:
    return float(np.abs(reference - np.asarray(cells.mean(axis=0)).ravel()).sum())
