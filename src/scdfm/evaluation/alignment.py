"""Bring a prediction and the real cells to the same genes, conditions and scale, or say why that cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pandas as pd
from scipy import sparse

from scdfm.data.cells import CellTable, read_cells
from scdfm.data.conditions import CONTROL, canonical, near
from scdfm.data.source import open_source
from scdfm.data.values import to_csr, to_log1p
from scdfm.errors import ConditionError, DataError
from scdfm.evaluation.pseudobulk import Population, row_means, taken

if TYPE_CHECKING:
    from anndata import AnnData

Cells: TypeAlias = "str | Path | CellTable | AnnData"

FACTORS = (0.1, 0.2, 0.25, 1 / 3, 0.4, 0.5, 2 / 3, 0.8, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 10.0, 100.0)
"""Ratios of normalisation totals that a prediction is tried against."""
BETTER = 0.5
"""A prediction whose error falls below this share once rescaled is one in another scale."""
SCALE_CELLS = 2000
"""Real cells that stand for all in the test of scales."""


@dataclass(frozen=True)
class Pair:
    """Prediction and real cells over the same genes (A, in the real table's order).

    `conditions` are scored; `measured` are all real conditions but control; `notes` tell what was left out.
    """

    predicted: Population | None
    real: Population
    conditions: tuple[str, ...]
    measured: tuple[str, ...]
    notes: tuple[str, ...]


def align(
    predicted: Cells | None,
    real: Cells,
    *,
    control: str = CONTROL,
    perturbation_key: str | None = None,
    subset: Mapping[str, str] | None = None,
    conditions: Sequence[str] | None = None,
    check_scale: bool = True,
) -> Pair:
    """Read and align both; raises DataError or ConditionError where they do not fit (see `evaluate`)."""
    key = perturbation_key or "perturbation"
    table = real if isinstance(real, CellTable) else read_cells(real, key, control, subset=subset)
    truth = _population(table)
    if CONTROL not in truth.rows:
        raise DataError("real: no control cells; expected some, every score is taken against them")
    measured = tuple(sorted(c for c in truth.rows if c != CONTROL))
    if predicted is None:
        chosen = _chosen(conditions, measured, measured)
        return Pair(None, truth, chosen, measured, ())
    claim = (
        _population(predicted) if isinstance(predicted, CellTable) else _read(predicted, key, control, subset)
    )
    _check_declared(predicted, table)
    genes, notes = _common_genes(claim, truth)
    claim, truth = _restricted(claim, genes), _restricted(truth, genes)
    scored, unmeasured = _common_conditions(claim, measured)
    if unmeasured:
        notes.append(
            f"{len(unmeasured)} predicted conditions are not measured and not scored: {_few(unmeasured)}"
        )
    chosen = _chosen(conditions, scored, measured)
    if check_scale:
        _check_scale(claim, truth, chosen)
    return Pair(claim, truth, chosen, measured, tuple(notes))


def _population(table: CellTable) -> Population:
    return Population(table.X, np.asarray(table.genes), {c: table.rows(c) for c in table.conditions})


def _read(source: Cells, key: str, control: str, subset: Mapping[str, str] | None) -> Population:
    """A prediction: like real cells, but it may come without control, and `subset` only holds where it has the column."""
    with open_source(source) as opened:
        obs, name = opened.obs, f"prediction {opened.name}"
        if key not in obs.columns:
            known = [str(column) for column in obs.columns]
            raise DataError(
                f"{name}: perturbation column '{key}' is not in obs; its columns are {', '.join(known) or 'none'}"
                f"{near(key, known)}: name it with perturbation_key"
            )
        kept = obs[key].notna().to_numpy()
        if not kept.all():
            raise DataError(
                f"{name}: {int((~kept).sum())} cells have no label in obs column '{key}'; expected one for each cell: "
                "label them, or remove these cells"
            )
        for column, value in (subset or {}).items():
            if column in obs.columns:
                kept &= (obs[column].astype(str) == str(value)).to_numpy()
        rows = np.flatnonzero(kept)
        labels = obs[key].astype(str).to_numpy()[rows]
        X = to_csr(opened.matrix(None), None if kept.all() else rows, name)
        genes, cells = opened.genes, obs.index[rows].astype(str).tolist()
    if pd.Index(genes).has_duplicates:
        raise DataError(
            f"{name}: gene names repeat; expected each once: make them unique (var_names_make_unique)"
        )
    if X.nnz and (np.rint(X.data) == X.data).all():
        raise DataError(
            f"{name} holds whole numbers, these look like counts; expected log1p values as in the real cells: "
            "normalise it as those were (read_cells(..., target_sum=...)) and evaluate the result"
        )
    X, _ = to_log1p(X, None, cells, genes.tolist(), name)
    names = {label: canonical(label, control) for label in np.unique(labels)}
    codes = pd.Categorical([names[label] for label in labels])
    places = {c: np.flatnonzero(codes.codes == i) for i, c in enumerate(codes.categories)}
    return Population(X, np.asarray(genes), places)


def _check_declared(predicted: Cells, real: CellTable) -> None:
    if not isinstance(predicted, CellTable):
        return
    ours, theirs = predicted.scale.target_sum, real.scale.target_sum
    if ours is not None and theirs is not None and not np.isclose(ours, theirs, rtol=1e-3):
        raise DataError(
            f"prediction is normalised to {ours:g} counts per cell, the real cells to {theirs:g}; "
            f"read both with the same target_sum"
        )


def _common_genes(predicted: Population, real: Population) -> tuple[list[str], list[str]]:
    theirs = set(predicted.genes.tolist())
    common = [gene for gene in real.genes.tolist() if gene in theirs]
    if len(common) < 2:
        raise DataError(
            f"prediction and real cells share {len(common)} gene names, expected at least 2 (prediction: "
            f"{_few(predicted.genes)}; real: {_few(real.genes)}); use the same kind of names in both"
        )
    notes = []
    if len(common) < len(theirs):
        foreign = sorted(theirs - set(common))
        notes.append(
            f"{len(foreign)} predicted genes are not in the real cells and not scored: {_few(foreign)}"
        )
    if len(common) < len(real.genes):
        notes.append(f"{len(real.genes) - len(common)} real genes are not predicted and not scored")
    return common, notes


def _restricted(population: Population, genes: list[str]) -> Population:
    if population.genes.tolist() == genes:
        return population
    column = {gene: i for i, gene in enumerate(population.genes.tolist())}
    X = sparse.csr_matrix(population.X[:, [column[gene] for gene in genes]])
    X.sort_indices()
    return Population(X, np.asarray(genes), population.rows)


def _common_conditions(predicted: Population, measured: Sequence[str]) -> tuple[list[str], list[str]]:
    claimed = sorted(c for c in predicted.rows if c != CONTROL)
    scored = [c for c in claimed if c in set(measured)]
    if not scored:
        raise ConditionError(
            f"prediction and real cells share no condition (prediction: {_few(claimed)}; real: {_few(measured)}); "
            f"expected the same names: check perturbation_key and control"
        )
    return scored, [c for c in claimed if c not in set(scored)]


def _chosen(asked: Sequence[str] | None, scored: Sequence[str], measured: Sequence[str]) -> tuple[str, ...]:
    if asked is None:
        return tuple(scored)
    names = [canonical(name) for name in asked]
    for name in names:
        if name not in scored:
            lacking = "predicted" if name in measured else "measured"
            raise ConditionError(
                f"condition '{name}' is not {lacking}{near(name, scored)}; leave it out of conditions"
            )
    if not names:
        raise ConditionError("conditions is empty; name at least one, or leave it out to score all")
    return tuple(dict.fromkeys(names))


def _check_scale(predicted: Population, real: Population, conditions: Sequence[str]) -> None:
    """Refuse a prediction that the real cells fit far better after another normalisation total.

    Pooled over cells, the predicted mean per gene is compared (L1) with the mean of log1p(c · expm1(x)) of the
    real cells. A faulty model is not helped much by one factor c; another `target_sum` is.
    """
    labels = [*conditions, CONTROL] if CONTROL in predicted.rows else list(conditions)
    weights = np.array([predicted.n_cells(c) for c in labels], dtype=float)
    claim = np.average([row_means(predicted.X, predicted.rows[c]) for c in labels], axis=0, weights=weights)
    share = np.maximum(1, np.floor(SCALE_CELLS * weights / weights.sum())).astype(int)
    cells = np.concatenate([_spread(real.rows[c], n) for c, n in zip(labels, share, strict=True)])
    lengths = [min(n, real.n_cells(c)) for c, n in zip(labels, share, strict=True)]
    each = np.repeat(weights / weights.sum() / lengths, lengths)
    order = np.argsort(cells)
    block, each = taken(real.X, cells[order]), each[order]
    linear, mass = np.expm1(block.data.astype(np.float64)), np.repeat(each, np.diff(block.indptr))

    def error(factor: float) -> float:
        truth = np.bincount(block.indices, weights=mass * np.log1p(factor * linear), minlength=len(claim))
        return float(np.abs(claim - truth).sum())

    errors = {factor: error(factor) for factor in FACTORS}
    best = min(errors, key=errors.__getitem__)
    if errors[best] < BETTER * error(1.0):
        raise DataError(
            f"prediction is in another scale than the real cells (it fits them after multiplying their counts by about "
            f"{best:.3g}); expected the same target_sum: normalise it as the real cells, or pass check_scale=False "
            "if the scales are equal and the model is wrong"
        )


def _spread(rows: np.ndarray, n: int) -> np.ndarray:
    """At most `n` of `rows`, evenly spaced."""
    return rows if len(rows) <= n else rows[np.linspace(0, len(rows) - 1, n).astype(int)]


def _few(names: Sequence[str] | np.ndarray, most: int = 3) -> str:
    shown = ", ".join(str(name) for name in list(names)[:most])
    return shown + (", ..." if len(names) > most else "")
