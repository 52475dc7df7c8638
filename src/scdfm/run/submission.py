"""A submission as the Virtual Cell Challenge takes it: raw counts of predicted and control cells on one list of genes.

cell-eval2 0.20.0 (preset vcc2026) refuses other files: obs column `target`, control label `non-targeting`, the genes and
labels of the reference exactly, whole counts of at least 0, at most 1,000,000 a cell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scdfm.data import CONTROL, CellTable
from scdfm.data.conditions import SEPARATOR, parse, perturbation_of, targets
from scdfm.errors import ConditionError, DataError
from scdfm.run.contexts import in_context
from scdfm.run.cost import foretell
from scdfm.run.counts import library_factors
from scdfm.run.predict import condition_names, populations, starting
from scdfm.run.trained import Trained

COLUMN, CONTROL_LABEL, MOST_COUNTS = "target", "non-targeting", 1_000_000
"""Perturbation column, control label and largest total of a cell, of preset vcc2026."""


def submission(
    run: Trained,
    conditions: Sequence[str] | None = None,
    controls: CellTable | ad.AnnData | str | Path | None = None,
    *,
    n_cells: int | Mapping[str, int] | None = None,
    gene_axis: Sequence[str] | None = None,
    copy: Sequence[str] = (),
    context: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: bool = False,
    device: str = "auto",
    say: Callable[[str], object] | None = None,
) -> ad.AnnData:
    """Predicted counts of `conditions` beside the control cells they start from, labelled as the challenge labels them.

    controls, context: as for `predict`; genes of theirs that the run does not model are those of the control cell that
        a predicted cell starts from, unchanged. gene_axis: the genes of the file in their order; None takes all of theirs.
    n_cells: cells of every condition, or of each by name; None takes `sampling.cells` of the run's config.
    copy: columns of the control cells, such as the batch, that a predicted cell takes from the one it starts from.
        Covariates stand in columns of their own.
    say: is told what it will take before it starts (`scdfm.run.cost`); of several numbers of cells, for each.

    Raises ConditionError for conditions with a dose or time, which a label cannot say, DataError for genes and columns
    that the controls lack, for control cells that are none of counts, and what `predict` raises.
    """
    run, table = starting(run, controls, context, seed=seed)
    names = condition_names(run, conditions, context)
    for name in names:
        condition = parse(name)
        if condition.time is not None or perturbation_of(name) != SEPARATOR.join(targets(name)):
            raise ConditionError(
                f"condition '{name}': a submission names targets alone; expected no dose or time; write log1p values or "
                "counts (--counts) instead"
            )
    columns = _copied(run, table, copy)
    axis = list(map(str, table.genes)) if gene_axis is None else list(dict.fromkeys(gene_axis))
    places = table.columns(axis)
    own = _control_counts(table)
    row_of = {name: at for at, name in enumerate(table.obs.index.astype(str))}
    blocks, labels, index, rows, said = [], list[str](), list[str](), list[int](), {}

    def predict(names: Sequence[str], n: int, progress: bool = False) -> ad.AnnData:
        return populations(run, names, table, n, None, True, seed, progress, device, stored=controls is None)

    for n, some in _by_size(run, names, n_cells, context or {}).items():
        foretell(run, some, n, len(run.genes), len(some), predict, say)
        predicted = predict(some, n, progress)
        starts = [row_of[name] for name in predicted.obs["source_control"].astype(str)]
        blocks.append(_filled(predicted, own[starts], table)[:, places])
        labels += [SEPARATOR.join(targets(name)) for name in some for _ in range(n)]
        index, rows, said = [*index, *predicted.obs_names], [*rows, *starts], predicted.uns["scdfm"]
    cells = sp.vstack([*blocks, own[:, places]], format="csr")
    index += [f"{CONTROL}_{name}" for name in table.obs.index]
    obs = pd.DataFrame(
        {COLUMN: pd.Categorical([*labels, *[CONTROL_LABEL] * table.n])}, index=pd.Index(index, name="cell")
    )
    for column in columns:
        values = table.obs[column].astype(object).to_numpy()
        obs[column] = pd.Categorical([*values[rows], *values])
    adata = ad.AnnData(cells.astype(np.float32), obs=obs, var=pd.DataFrame(index=pd.Index(axis, name="gene")))
    adata.uns["scdfm"] = said
    require_submission(adata)
    return adata


def _copied(run: Trained, table: CellTable, copy: Sequence[str]) -> list[str]:
    """The columns of control cells that predicted ones take: covariates, and those asked for."""
    columns = list(dict.fromkeys([*run.manifest.conditions.covariates, *copy]))
    for column in columns:
        if column not in table.obs.columns or column in (COLUMN, table.perturbation_key):
            own_columns = [str(one) for one in table.obs.columns if one not in (COLUMN, table.perturbation_key)]
            raise DataError(
                f"submission: '{column}' is no column of the control cells that can be copied (theirs: "
                f"{', '.join(own_columns) or 'none'}); name one of them, or give the cells' own file (--controls)"
            )
    return columns


def _by_size(
    run: Trained, names: Sequence[str], n_cells: int | Mapping[str, int] | None, context: Mapping[str, str]
) -> dict[int, list[str]]:
    """Conditions by their number of cells."""
    if not isinstance(n_cells, Mapping):
        return {run.config.sampling.cells if n_cells is None else n_cells: list(names)}
    sizes = {in_context(run.manifest.naming.canonical(name), context): n for name, n in n_cells.items()}
    groups: dict[int, list[str]] = {}
    for name in names:
        if name not in sizes or sizes[name] < 1:
            what = "no number" if name not in sizes else f"{sizes[name]}"
            raise DataError(
                f"cells of '{name}': expected a number of at least 1, found {what}; name it in the table of cells"
            )
        groups.setdefault(sizes[name], []).append(name)
    return groups


def require_submission(adata: ad.AnnData) -> None:
    """Raise DataError unless `adata` keeps the challenge's rules on labels and values."""
    if COLUMN not in adata.obs.columns:
        raise DataError(f"submission: no obs column '{COLUMN}'; expected the target of each cell there")
    if CONTROL_LABEL not in set(adata.obs[COLUMN]):
        raise DataError(f"submission: no cell is labelled '{CONTROL_LABEL}'; expected the control cells too")
    X = sp.csr_matrix(adata.X)
    if not np.isfinite(X.data).all() or (X.data < 0).any() or (X.data != np.rint(X.data)).any():
        raise DataError(
            "submission: values that are no counts; expected whole numbers of at least 0: predict with counts"
        )
    totals = np.asarray(X.sum(axis=1, dtype=np.float64)).ravel()
    if (totals > MOST_COUNTS).any():
        raise DataError(
            f"submission: cell '{adata.obs_names[int(np.argmax(totals))]}' has {totals.max():,.0f} counts; expected "
            f"at most {MOST_COUNTS:,} a cell: give control cells of their own library sizes (raw counts, --target-sum)"
        )


def _control_counts(table: CellTable) -> sp.csr_matrix:
    """The counts [n, A] that the log1p values of control cells hold."""
    X = sp.csr_matrix(table.X[np.arange(table.n)])
    factor, counted = library_factors(X, "controls")
    counts = X.astype(np.float64)
    counts.data = np.expm1(counts.data) / np.repeat(factor, np.diff(X.indptr))
    if not counted:
        raise DataError(
            "controls: values are no logarithms of whole counts, so their counts are unknown; expected raw counts or log1p "
            "of them: give such cells with --controls"
        )
    counts.data = np.rint(counts.data)
    counts.eliminate_zeros()
    return counts


def _filled(predicted: ad.AnnData, own: sp.csr_matrix, table: CellTable) -> sp.csr_matrix:
    """Predicted counts on all genes of the table [n, A]: `own` ones of the control cells where the run models none."""
    modelled = table.columns(list(predicted.var_names))
    unmodelled = np.ones(own.shape[1])
    unmodelled[modelled] = 0
    spread = sp.csr_matrix(
        (np.ones(len(modelled)), (np.arange(len(modelled)), modelled)), shape=(len(modelled), own.shape[1])
    )
    return sp.csr_matrix(own @ sp.diags(unmodelled) + sp.csr_matrix(predicted.X) @ spread)
