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
AS_MUCH, FAR, FAR_GENES, LESS = 1.5, 2.5, 2, 0.9
"""Cells agree with a factor within AS_MUCH. Totals off by FAR, and half of the genes by FAR_GENES, tell another scale where
that leaves LESS of the difference to the control mean: a strong perturbation changes totals by some genes, a cell line
that is not the controls' changes many genes, but hardly their total."""
EXPECTED_SEEN, FEWEST_GENES = 3, 10
"""A gene tells a factor where so many of the cells would hold it as control cells do; the genes seen most do anyway."""
TINY = 1e-9


def require_scale(run: Trained, X: Matrix, genes: list[str], where: str) -> None:
    """Raise DataError where the cells `X` [N, A] of `genes` look to be in another scale than the run's control cells.

    Their mean per gene is compared with the run's control mean, and their normalised counts with those of the control
    cells that the run stores, in total and in the median gene. Fewer counts a cell lower means of logarithms, not these.
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
        factors = _factors(run.controls.X[:, columns], cells)
        if candidate is not None and candidate.factor is not None:
            agree = all(1 / AS_MUCH < factor / candidate.factor < AS_MUCH for factor in factors)
            candidate = candidate if agree else None
        candidate = candidate or _of_counts(reference[shared], cells, factors, bases)
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


def _factors(controls: sp.csr_matrix, cells: sp.csr_matrix) -> tuple[float, float]:
    """What brings normalised counts of `cells` [n, A] to those of `controls` [N, A]: in total, and in the median gene."""
    seen = np.bincount(controls.indices, minlength=controls.shape[1]) / controls.shape[0]
    n_told = max(FEWEST_GENES, int((seen * cells.shape[0] >= EXPECTED_SEEN).sum()))
    told = np.argsort(-seen, kind="stable")[:n_told]
    wanted, found = _counts(controls), _counts(cells)
    ratio = wanted[told] / np.maximum(found[told], TINY)
    return float(wanted.sum() / max(found.sum(), TINY)), float(np.median(ratio))


def _counts(cells: sp.csr_matrix) -> np.ndarray:
    """Normalised counts of each gene in a cell, on average [A]."""
    linear = np.expm1(cells.data.astype(np.float64))
    return np.bincount(cells.indices, weights=linear, minlength=cells.shape[1]) / cells.shape[0]


def _of_counts(
    reference: np.ndarray, cells: sp.csr_matrix, factors: tuple[float, float], bases: Mapping[str, float]
) -> Rescaling | None:
    """What brings `cells` to the counts of control cells, if both factors are far and they come nearer to their mean."""
    total, typical = factors
    if min(total / FAR, typical / FAR_GENES) < 1 < max(total * FAR, typical * FAR_GENES):
        return None

    changed = mapped(cells, lambda x: np.log1p(total * np.expm1(x)))
    candidates = {Rescaling(f"counts multiplied by about {total:.2g}", total): changed}
    wanted = total * _counts(cells).sum()
    for base, ln in bases.items():
        natural = sp.csr_matrix(cells * ln)
        if 1 / AS_MUCH < _counts(natural).sum() / wanted < AS_MUCH:
            candidates[Rescaling(f"values taken as log{base}(1 + x)", None)] = natural
    gaps = {candidate: _gap(reference, changed) for candidate, changed in candidates.items()}
    best = min(gaps, key=lambda candidate: gaps[candidate])
    return best if gaps[best] < LESS * _gap(reference, cells) else None


def _gap(reference: np.ndarray, cells: sp.csr_matrix) -> float:
    return float(np.abs(reference - np.asarray(cells.mean(axis=0)).ravel()).sum())
