"""Bring a prediction and the real cells to the same genes, conditions and scale, or say why that cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pandas as pd

from scdfm.data.cells import CellTable
from scdfm.data.conditions import CONTROL, canonical, near, parse, targets
from scdfm.data.design import Designed, texts
from scdfm.data.gene_names import Genes, read_genes
from scdfm.data.kinds import rescaling
from scdfm.data.labels import spellings
from scdfm.data.naming import Naming
from scdfm.data.reading import log1p_values, read_cells
from scdfm.data.source import Source, open_source
from scdfm.data.stored import Matrix, StoredMatrix, blocks
from scdfm.data.stored import subset as chosen_cells
from scdfm.data.values import LooksLikeCountsError, Reading
from scdfm.errors import ConditionError, ConfigError, DataError, ScdfmError
from scdfm.evaluation.pseudobulk import Population, row_means

if TYPE_CHECKING:
    from anndata import AnnData

Cells: TypeAlias = "str | Path | CellTable | AnnData"

SCALE_CELLS = 1000
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
    control: str | Sequence[str] = CONTROL,
    perturbation_key: str | None = None,
    subset: Mapping[str, str] | None = None,
    conditions: Sequence[str] | None = None,
    check_scale: bool = True,
    predicted_key: str | None = None,
    training_control: pd.Series[float] | None = None,
    backed: bool | None = None,
) -> Pair:
    """Read and align both; raises DataError or ConditionError where they do not fit (see `evaluate`).

    predicted_key: column of the prediction's labels; without it the real cells', or the only one that holds them.

    `training_control`: mean log1p expression of the model's own control cells by gene, if it is known. The test of
    scales takes it where the prediction holds no control cells, and the predicted cells only for want of both.
    """
    if isinstance(real, CellTable):
        if subset:
            raise ConfigError("subset goes with a file or an AnnData; give it to read_cells to choose cells of a table")
        table, key = real, perturbation_key or real.perturbation_key
        if key != real.perturbation_key:  # a table has its column: this one is of the prediction
            predicted_key = predicted_key or key
        same = control in (CONTROL, *real.naming.control)
        naming = real.naming if same else replace(real.naming, control=control)  # type: ignore[arg-type]
    else:
        key = perturbation_key or "perturbation"
        table = read_cells(real, key, control, subset=subset, backed=backed)
        naming = table.naming
    truth = _population(table)
    if CONTROL not in truth.rows:
        raise DataError("real: no control cells; expected some, every score is taken against them")
    measured = tuple(sorted(c for c in truth.rows if c != CONTROL))
    matched = [f"control cells are those of the same {', '.join(table.design.match)}"] if truth.matched else []
    if predicted is None:
        scored = chosen(conditions, measured, measured)
        return Pair(None, truth, scored, measured, tuple(matched))
    prediction_notes: list[str] = []
    if isinstance(predicted, CellTable):
        claim = _population(predicted)
    else:
        claim, prediction_notes = _read(predicted, key, predicted_key, naming, table, subset, backed)
    _check_declared(predicted, table)
    genes = shared_genes(claim.genes, truth.genes)
    notes = [*_unshared(claim, truth, genes), *prediction_notes, *matched]
    claim, truth = _restricted(claim, genes), _restricted(truth, genes)
    common, unmeasured = _common_conditions(claim, measured)
    if unmeasured:
        notes.append(f"{len(unmeasured)} predicted conditions are not measured and not scored: {few(unmeasured)}")
    scored = chosen(conditions, common, measured)
    if check_scale:
        _check_scale(claim, truth, scored, training_control)
    return Pair(claim, truth, scored, measured, tuple(notes))


def _population(table: CellTable) -> Population:
    table.require_all_measured("cells to be scored")
    rows = {c: table.rows(c) for c in table.conditions}
    if not table.design.match or CONTROL not in rows:
        return Population(table.X, np.asarray(table.genes), rows)
    shared_rows: dict[bytes, np.ndarray] = {}  # many conditions share their control rows
    own = {
        name: shared_rows.setdefault((controls := table.control_rows(name)).tobytes(), controls)
        for name in (*table.control_conditions, *table.conditions)
        if name != CONTROL
    }
    shares = {name: weights for name in rows if (weights := table.control_shares(name)) is not None}
    strata = {name: table.control_strata(name) for name in shares}
    return Population(table.X, np.asarray(table.genes), rows, own, shares, strata)


def _read(
    source: Cells,
    key: str,
    own_key: str | None,
    naming: Naming,
    real: CellTable,
    subset: Mapping[str, str] | None,
    backed: bool | None,
) -> tuple[Population, list[str]]:
    """A prediction, with notes: like real cells, but it may come without control, and with values below 0; `subset`
    only holds where it has the column."""
    with open_source(source) as opened:
        obs, name = opened.obs, f"prediction {opened.name}"
        key, notes = _label_column(obs, key, own_key, naming, real, name)
        mask = obs[key].notna().to_numpy()
        if not mask.all():
            raise DataError(
                f"{name}: {int((~mask).sum())} cells have no label in obs column '{key}'; expected one for each cell: "
                "label them, or remove these cells"
            )
        for column, value in (subset or {}).items():
            if column in obs.columns:
                mask &= np.isin(np.asarray(texts(obs[column]), dtype=object), spellings(value))
        rows = np.flatnonzero(mask)
        names = predicted_names(obs.iloc[rows], key, naming, real, name)
        genes, cells = predicted_genes(opened, naming, name), obs.index[rows].astype(str).tolist()
        index = None if mask.all() else rows
        reading = Reading(strict=False)
        try:
            X, _ = log1p_values(
                opened.matrix(None), index, reading, cells, genes.names.tolist(), name, backed, genes.columns
            )
        except LooksLikeCountsError:
            raise DataError(
                f"{name} holds whole numbers, these look like counts; expected log1p values as in the real cells: "
                "normalise it as those were (read_cells(..., target_sum=...)) and evaluate the result"
            ) from None
    codes = pd.Categorical(names)
    order = np.argsort(codes.codes, kind="stable")
    ends = np.cumsum(np.bincount(codes.codes, minlength=len(codes.categories)))
    places = dict(zip(codes.categories, np.split(order, ends[:-1]), strict=True))
    return Population(X, np.asarray(genes.names), places), notes + _below_zero(X)


def _label_column(
    obs: pd.DataFrame, key: str, own: str | None, naming: Naming, real: CellTable, name: str
) -> tuple[str, list[str]]:
    """The column of a prediction's labels: the one given, the real cells', or the only one of measured conditions."""
    if own is not None or key in obs.columns:
        if (own or key) in obs.columns:
            return own or key, []
        columns = [str(column) for column in obs.columns]
        raise DataError(
            f"{name}: label column '{own}' is not in obs; its columns are {', '.join(columns) or 'none'}"
            f"{near(str(own), columns)}: name one of them with predicted_key (--predicted-key)"
        )
    measured = set(real.conditions)
    fits = [
        column for column in obs.columns
        if list(obs.columns).count(column) == 1 and not pd.api.types.is_numeric_dtype(obs[column])
        and not measured.isdisjoint(_read_names(obs, column, naming, real, name))
    ]  # fmt: skip
    if len(fits) == 1:
        return fits[0], [f"conditions of the prediction are read from its column '{fits[0]}'"]
    columns = fits or [str(column) for column in obs.columns]
    raise DataError(
        f"{name}: perturbation column '{key}' of the real cells is not in obs, and {len(fits) or 'none'} of its columns "
        f"{'hold' if fits else 'holds'} measured conditions ({', '.join(columns) or 'none'}){near(key, columns)}: "
        "name the one to read with predicted_key (--predicted-key)"
    )


def _read_names(obs: pd.DataFrame, column: str, naming: Naming, real: CellTable, name: str) -> set[str]:
    """The conditions that a column would name, of its first cell of each label; none where it cannot be read so."""
    first = obs[obs[column].notna()].drop_duplicates(column)
    try:
        return set(predicted_names(first, column, naming, real, name)) - {CONTROL}
    except ScdfmError:
        return set()


def _below_zero(X: Matrix) -> list[str]:
    """What is said of a prediction with negative values, which no logarithm of 1 + counts has."""
    parts = blocks(X) if isinstance(X, StoredMatrix) else [X]
    lows = [part.data[part.data < 0] for part in parts]
    n = sum(map(len, lows))
    if not n:
        return []
    lowest, share = min(low.min() for low in lows if len(low)), n / (X.shape[0] * X.shape[1])
    return [
        f"{n} predicted values are below 0 (lowest {lowest:.3g}, {share:.1%} of all), which no log1p value is: scored as "
        "they are; a mean below 0 has no fold change: protocol paper ranks such genes last and gives them no direction"
    ]


def predicted_genes(source: Source, naming: Naming, name: str) -> Genes:
    """The genes of a prediction: by the column of var that names those of the real cells, where it has one."""
    if naming.genes in source.var.columns:
        return read_genes(source, naming.genes, naming.gene_versions)
    if pd.Index(source.genes).has_duplicates:
        raise DataError(f"{name}: gene names repeat; expected each once: make them unique (var_names_make_unique)")
    return read_genes(source, versions=naming.gene_versions)


def predicted_names(obs: pd.DataFrame, key: str, naming: Naming, real: CellTable, name: str) -> np.ndarray:
    """The conditions [n] of a prediction's cells, all of which have a label, in the words of the file or in scdfm's own.

    What labels do not say of covariates, doses and times is taken from the columns of the real cells' design, where a
    cell has a value there.
    """
    labels, design = obs[key].astype(str), real.design
    # A target of the real cells is no guide of another one: HLA-A is not pooled to HLA.
    real_targets = {target for condition in real.conditions for target in targets(condition)}
    own = {text: text for text in labels.unique() if _is_known(text, real_targets)}
    labels = labels.map(own | {text: naming.plain(text) for text in labels.unique() if text not in own})
    keys = [k for k in (design.dose_key, design.time_key) if k in obs.columns]
    unit_key = design.dose_unit_key if design.dose_unit_key in obs.columns else None
    given = obs[keys].notna().to_numpy()
    names = np.empty(len(obs), dtype=object)
    for pattern in np.unique(given, axis=0):
        rows = (given == pattern).all(axis=1)
        there = {k for k, has in zip(keys, pattern, strict=True) if has}
        dose, time = (k if k in there else None for k in (design.dose_key, design.time_key))
        unit = unit_key if dose else None
        row_design = replace(design, dose_key=dose, time_key=time, match_controls=(), dose_unit_key=unit)
        designed = Designed.read(obs[rows], labels[rows], row_design, Naming(), key, name)
        names[rows] = designed.names(labels[rows], Naming())[0]
    return names


def _is_known(name: str, real_targets: set[str]) -> bool:
    """Whether a label is a condition of `real_targets` in scdfm's own words."""
    try:
        perturbations = parse(name).perturbations
    except ConditionError:
        return False
    return bool(perturbations) and all(one.target in real_targets for one in perturbations)


def _check_declared(predicted: Cells, real: CellTable) -> None:
    if not isinstance(predicted, CellTable):
        return
    ours, theirs = predicted.scale.target_sum, real.scale.target_sum
    if ours is not None and theirs is not None and not np.isclose(ours, theirs, rtol=1e-3):
        raise DataError(
            f"prediction is normalised to {ours:g} counts per cell, the real cells to {theirs:g}; "
            f"read both with the same target_sum"
        )


def _unshared(predicted: Population, real: Population, genes: Sequence[str]) -> Iterator[str]:
    """What is said of genes that are not among the shared `genes`."""
    foreign = sorted(set(predicted.genes.tolist()).difference(genes))
    if foreign:
        yield f"{len(foreign)} predicted genes are not in the real cells and not scored: {few(foreign)}"
    if len(genes) < len(real.genes):
        yield f"{len(real.genes) - len(genes)} real genes are not predicted and not scored"


def shared_genes(predicted: np.ndarray, real: np.ndarray) -> list[str]:
    """The genes of both, in the order of the real ones; DataError below two."""
    theirs = set(predicted.tolist())
    common = [gene for gene in real.tolist() if gene in theirs]
    if len(common) < 2:
        raise DataError(
            f"prediction and real cells share {len(common)} gene names, expected at least 2 (prediction: "
            f"{few(predicted)}; real: {few(real)}); use the same kind of names in both"
        )
    return common


def _restricted(population: Population, genes: list[str]) -> Population:
    if population.genes.tolist() == genes:
        return population
    column = {gene: i for i, gene in enumerate(population.genes.tolist())}
    X = chosen_cells(population.X, None, np.array([column[gene] for gene in genes]))
    if not isinstance(X, StoredMatrix):
        X.sort_indices()
    return replace(population, X=X, genes=np.asarray(genes))


def _common_conditions(predicted: Population, measured: Sequence[str]) -> tuple[list[str], list[str]]:
    claimed = sorted(c for c in predicted.rows if c != CONTROL)
    real_conditions = set(measured)
    scored = [c for c in claimed if c in real_conditions]
    if not scored:
        raise ConditionError(
            f"prediction and real cells share no condition (prediction: {few(claimed)}; real: {few(measured)}); "
            f"expected the same names: check perturbation_key and control"
        )
    return scored, [c for c in claimed if c not in real_conditions]


def chosen(conditions: Sequence[str] | None, scored: Sequence[str], measured: Sequence[str]) -> tuple[str, ...]:
    """Of the `scored` conditions those that are named, or all; ConditionError where one is not among them."""
    if conditions is None:
        return tuple(scored)
    names = [canonical(name) for name in conditions]
    for name in names:
        if name not in scored:
            lacking = "predicted" if name in measured else "measured"
            raise ConditionError(f"condition '{name}' is not {lacking}{near(name, scored)}; leave it out of conditions")
    if not names:
        raise ConditionError("conditions is empty; name at least one, or leave it out to score all")
    return tuple(dict.fromkeys(names))


def _check_scale(
    predicted: Population, real: Population, conditions: Sequence[str], training_control: pd.Series[float] | None
) -> None:
    """Refuse a prediction that the real cells fit far better after another normalisation total, or in another base.

    The mean per gene, of control cells if there are any, is compared with the real cells (`data.kinds.rescaling`).
    """
    labels, shares, claim = list(conditions), np.ones(len(conditions)), None
    if CONTROL in predicted.rows:
        labels, shares, claim = [CONTROL], np.ones(1), row_means(predicted.X, predicted.rows[CONTROL])
    elif training_control is not None and set(real.genes.tolist()) <= set(training_control.index):
        labels, shares, claim = [CONTROL], np.ones(1), training_control[real.genes.tolist()].to_numpy(float)
    if claim is None:
        shares = np.array([predicted.n_cells(c) for c in labels], dtype=float)
        means = [row_means(predicted.X, predicted.rows[c]) for c in labels]
        claim = np.average(means, axis=0, weights=shares)
    shares = shares / shares.sum()
    samples = [_spread(real.rows[c], max(1, int(SCALE_CELLS * share))) for c, share in zip(labels, shares, strict=True)]
    each = [np.full(len(rows), share / len(rows)) for rows, share in zip(samples, shares, strict=True)]
    scale = rescaling(claim, real.X[np.concatenate(samples)], np.concatenate(each))
    if scale is not None:
        raise DataError(
            f"prediction is in another scale than the real cells (they agree better with their {scale.words}); expected "
            "natural logarithms (log1p) and the same target_sum: normalise it as the real cells, or pass "
            "check_scale=False if the scales are equal and the model is wrong"
        )


def _spread(rows: np.ndarray, n: int) -> np.ndarray:
    """At most `n` of `rows`, evenly spaced."""
    return rows if len(rows) <= n else rows[np.linspace(0, len(rows) - 1, n).astype(int)]


def few(names: Sequence[str] | np.ndarray, most: int = 3) -> str:
    """The first names, and dots where there are more."""
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")
