"""A file or an AnnData, read as a screen: `read_cells`, and `read_like` for a second file of the same kind.

Its matrix becomes checked log1p values, in memory or block by block in a scratch file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from scdfm.data.cells import CellTable
from scdfm.data.conditions import CONTROL, targets
from scdfm.data.design import Design
from scdfm.data.doses import UNITS, different_units, units_of
from scdfm.data.gene_names import elsewhere, read_genes, unique_names
from scdfm.data.kinds import matrices, sample
from scdfm.data.labels import Labelled, chosen_rows, label_cells
from scdfm.data.naming import Naming
from scdfm.data.source import Source, open_source
from scdfm.data.stored import BLOCK_ROWS, Matrix, RowsWriter, StoredMatrix, row_lengths
from scdfm.data.tables import READ_ERRORS, plain, values_of
from scdfm.data.values import (
    Check,
    Reading,
    Scale,
    TargetSum,
    ValuesError,
    checked_target_sum,
    median_total,
    to_csr,
    to_log1p,
    totals,
)
from scdfm.errors import DataError
from scdfm.options import Values

if TYPE_CHECKING:
    from anndata import AnnData


def read_cells(
    path_or_adata: str | Path | AnnData,
    perturbation_key: str = "perturbation",
    control: str | Sequence[str] = "control",
    target_sum: TargetSum = None,
    layer: str | None = None,
    subset: Mapping[str, str] | None = None,
    min_cells: int = 1,
    *,
    exclude: Sequence[str] = (),
    separator: str | None = None,
    guides: Sequence[str] = (),
    genes: str | None = None,
    gene_versions: Literal["keep", "drop"] = "keep",
    covariates: Sequence[str] = (),
    dose_key: str | None = None,
    time_key: str | None = None,
    match_controls: Sequence[str] | None = None,
    control_fallback: Literal["error", "all"] = "error",
    values: Values | None = None,
    min_genes: int = 0,
    dose_unit_key: str | None = None,
    backed: bool | None = None,
) -> CellTable:
    """Read a screen from `.h5ad`, `.h5mu`, `.zarr` or an AnnData; its matrix becomes CSR, never dense.

    perturbation_key: the obs column of condition labels, made canonical (`scdfm.data.conditions.canonical`), or
        columns that name a combination together, joined by `+`: `Drug1+Drug2`.
    control: the label of untreated cells, or several; `*` stands for any text: `non-targeting_*`. In combinations too
        they stand for no target: `A+NT-1` is the single `A`. A label is taken at its word, but for `control` and `ctrl`,
        which stand for each other.
    exclude: labels of cells to leave out, such as those whose guide is unknown; `*` as above, and `nan` also stands for
        missing labels.
    separator: what joins targets in labels beside `+`: `|`, `__`, `_`, `;` or a comma. Within brackets nothing joins.
        `none`: nothing joins them, so that `Na+/K+` is one target, whose name becomes `(Na+/K+)`.
    guides: patterns of guide names, such as `GENE_sg*`: what stands for `GENE` is the target, so that the guides of a
        gene are one condition, and two guides of one gene in a cell a single.
    genes: the column of var that names genes, such as `gene_name` where the index holds Ensembl ids; features that
        var['feature_types'] says are no genes (guides, antibodies) are left out in any case.
    gene_versions: "drop" takes the version off Ensembl ids (`ENSG00000141510.18`) of genes and targets.
    target_sum: None declares the values log1p; a number or "median" declares them raw counts, which become
        log1p(count · target_sum / total of the cell). Either declaration is checked.
    values: what the numbers are, taken at its word: natural logarithms of 1 + x ("log1p"), "log2" or "log10" of it,
        "log1p-twice", or no logarithm ("linear": counts, also with fractions or normalised; needs target_sum). They
        become log1p; with a target_sum they are undone first, then normalised.
    layer: the layer to read instead of X; "raw" is the matrix of `.raw`, with its own genes.
    subset: keep the cells with these values, column by column.
    min_cells: conditions (control aside) with fewer cells are left out.
    min_genes: cells with fewer genes of a value other than 0 are left out; 1 leaves out empty ones.
    covariates: obs columns, such as the cell type, whose values join the names of perturbed conditions
        (`A|cell_type=B cells`).
    dose_key: the obs column of doses in the user's unit, kept as they are: a number for every target of the cell's
        label, or numbers joined by `+`, one per target in the order of the label. Controls need none.
        Amounts with units ("100 nM") become µM, or µg/ml.
    dose_unit_key: the obs column of the units of doses, where they stand beside the numbers.
    time_key: the obs column of times (`|time=24`), likewise.
    match_controls: obs columns that a perturbed cell shares with its control cells; without it the covariates.
    control_fallback: "error" refuses perturbed cells without matching control cells, "all" gives them all.
    backed: True keeps the expression on disk (CSR or dense files; scratch space in TMPDIR of 8 bytes a stored value,
        freed with the process), False in memory; None decides by size: on disk from 2 GiB. The numbers are the same.

    Repeated cell names get a suffix (`-1`, `-2`, ...), as anndata's obs_names_make_unique gives. Raises DataError
    or ConditionError where the file, a column, a label or a value is not as expected.
    """
    match = match_controls if match_controls is None else tuple(match_controls)
    design = Design(tuple(covariates), dose_key, time_key, match, control_fallback, dose_unit_key)
    naming = Naming(control, exclude, separator, guides, genes, gene_versions)  # type: ignore[arg-type]
    with open_source(path_or_adata) as source:
        return cells_of(
            source,
            perturbation_key,
            naming,
            target_sum,
            layer,
            subset,
            min_cells,
            design,
            backed,
            values=values,
            min_genes=min_genes,
        )


def read_like(path_or_adata: str | Path | AnnData, options: Mapping[str, Any], backed: bool | None = None) -> CellTable:
    """Read a screen with the `options` of `read_cells` that another was read with, whose labels it need not all hold, nor
    its column of gene names."""
    rest = dict(options)
    names, columns = (
        {entry.name: rest.pop(entry.name) for entry in fields(kind) if entry.name in rest} for kind in (Naming, Design)
    )
    naming, design = Naming(**names), Design(**columns)
    with open_source(path_or_adata) as source:
        return cells_of(source, naming=naming, design=design, backed=backed, strict=False, **rest)


def cells_of(
    source: Source,
    perturbation_key: str = "perturbation",
    naming: Naming = Naming(),  # noqa: B008
    target_sum: TargetSum = None,
    layer: str | None = None,
    subset: Mapping[str, str] | None = None,
    min_cells: int = 1,
    design: Design = Design(),  # noqa: B008
    backed: bool | None = None,
    strict: bool = True,
    values: Values | None = None,
    min_genes: int = 0,
) -> CellTable:
    """The table of an opened screen; the options are those of `read_cells`.

    strict: False for a file that is read as another was, and need not hold every label that `naming` names, nor its
    column of gene names.
    """
    reading = Reading(checked_target_sum(target_sum), values)
    if min_cells < 1:
        raise DataError(f"min_cells is {min_cells}; expected at least 1")
    subset_rows = chosen_rows(source.obs, subset, source.name, strict)
    opened, source = source, source.at(layer)
    named = strict or naming.genes in source.var.columns
    genes = read_genes(source, naming.genes if named else None, naming.gene_versions)
    where = f"{source.name}: layer '{layer}'" if layer else f"{source.name}: X"
    if min_genes > 0:
        subset_rows = _with_genes(source.matrix(layer), subset_rows, min_genes, where, genes.columns)
    labelled = label_cells(source.obs, subset_rows, perturbation_key, naming, design, source.name, min_cells, strict)
    rows = labelled.rows
    conditions = (CONTROL, *sorted(set(labelled.names) - {CONTROL}))
    obs = _obs(source.obs, labelled, perturbation_key, conditions, design)
    try:
        X, scale = log1p_values(
            source.matrix(layer), rows if len(rows) < len(source.obs) else None, reading, obs.index.tolist(),
            genes.names.tolist(), where, backed, genes.columns,
        )  # fmt: skip
    except ValuesError as error:
        raise type(error)(f"{error}{other_matrices(opened, layer)}") from error
    return CellTable(
        X=X,
        genes=genes.names,
        obs=obs,
        conditions=conditions,
        codes=obs[perturbation_key].cat.codes.to_numpy().astype(np.int64),
        scale=replace(scale, layer=layer),
        perturbation_key=perturbation_key,
        spelling={name: labelled.spelling[name] for name in conditions},
        match=labelled.match,
        naming=labelled.naming,
        source=None if source.path is None else source.path.absolute(),
        design=design,
        notes=(
            *source.notes, *genes.notes, *labelled.notes, *gene_notes(source, naming, conditions),
            *dose_notes(source.obs, design), *value_notes(X, scale, reading, obs.index, where),
        ),
        subset={column: plain(value) for column, value in (subset or {}).items()},
        min_genes=min_genes,
    )  # fmt: skip


def _with_genes(
    matrix: Any, rows: npt.NDArray[np.int64], min_genes: int, where: str, columns: npt.NDArray[np.int64] | None
) -> npt.NDArray[np.int64]:
    kept = rows[genes_found(matrix, rows, where, columns) >= min_genes]
    if not len(kept):
        raise DataError(f"{where}: no cell has {min_genes} genes; expected some: lower min_genes (--min-genes)")
    return kept


def _obs(obs: pd.DataFrame, labelled: Labelled, key: str, conditions: Sequence[str], design: Design) -> pd.DataFrame:
    """The rows that are read, under unique names, with their conditions and covariates as categoricals."""
    obs = obs.iloc[labelled.rows].copy()
    obs.index = pd.Index(unique_names(obs.index.astype(str)), dtype=object)
    obs[key] = pd.Categorical(labelled.names, categories=pd.Index(conditions))
    for column in design.covariates:
        obs[column] = labelled.columns[column]
    for column in obs.select_dtypes("category").columns:
        if column != key:
            obs[column] = obs[column].cat.remove_unused_categories()
    return obs


def value_notes(X: Matrix, scale: Scale, reading: Reading, cells: pd.Index, where: str) -> Iterator[str]:
    """Numbers that are no whole counts, and cells without any."""
    if scale.values != reading.values:
        yield (
            f"{where} holds numbers with fractions: taken for corrected or normalised counts, and normalised to "
            f"{scale.target_sum:g} (--values {scale.values})"
        )
    empty = np.flatnonzero(row_lengths(X) == 0)
    if len(empty):
        yield (
            f"{where}: {len(empty)} cells have no gene above 0 (first: cell '{cells[empty[0]]}') and pull means toward 0; "
            "min_genes=1 (--min-genes 1) leaves them out"
        )


def dose_notes(obs: pd.DataFrame, design: Design) -> Iterator[str]:
    """Units that doses were written in, where they were."""
    key, unit_key = design.dose_key, design.dose_unit_key
    if key is None:
        return
    units = different_units(obs, unit_key) if unit_key else units_of(map(str, pd.unique(obs[key].dropna())))
    if units:
        said = " and ".join(sorted({UNITS[unit][0] for unit in units}))
        yield f"doses written in {', '.join(units)} are read in {said}"


def gene_notes(source: Source, naming: Naming, conditions: Sequence[str]) -> Iterator[str]:
    """Where targets are found that the index of var does not name."""
    every = {target for condition in conditions for target in targets(condition)}
    named = naming.genes is not None or naming.gene_versions == "drop"
    if not named and not every & set(source.genes.tolist()):
        yield from filter(None, [elsewhere(source, every)])


def other_matrices(source: Source, layer: str | None) -> str:
    """Which other matrices of the file can be read and how, as the end of an error."""
    try:
        others = [part for part in matrices(source) if part.layer != layer and part.options is not None]
    except DataError:
        return ""
    hints = [f"{part.name} holds {part.kind}: {' '.join(part.options or ()) or 'leave --layer out'}" for part in others]
    return f"; {'; '.join(hints)}" if hints else ""


STORED_ABOVE: Final = 2 << 30
"""Bytes of expression (8 a stored value, 4 a value of a dense matrix) from which cells stay on disk by themselves."""

Rows = npt.NDArray[np.int64]


def log1p_values(
    matrix: Any, rows: Rows | None, reading: Reading, cells: Sequence[str], genes: Sequence[str], where: str,
    backed: bool | None = None, columns: Rows | None = None,
) -> tuple[Matrix, Scale]:  # fmt: skip
    """Checked log1p values of the chosen `rows` (None: all) and their scale, as `to_log1p` gives them.

    columns: those of `genes` in the matrix (None: all), ascending; the others count for nothing, totals included.

    backed: True streams them to a scratch file (8 bytes a stored value), False keeps them in memory; None decides
    by size: a matrix on disk of more than STORED_ABOVE bytes stays there.
    """
    stored = backed if backed is not None else _on_disk(matrix) and _size(matrix, rows) > STORED_ABOVE
    if not stored or len(getattr(matrix, "shape", ())) != 2:
        return to_log1p(_of(to_csr(matrix, rows, where), columns), reading, cells, genes, where)
    if getattr(matrix, "format", "csr") == "csc" and _on_disk(matrix):
        raise DataError(
            f"{where} is a CSC matrix, whose cells cannot be read one after another; expected CSR or dense for cells "
            "that stay on disk: write it as CSR (adata.X = adata.X.tocsr()), or pass backed=False (--in-memory)"
        )
    return _streamed(matrix, rows, reading, cells, genes, where, columns)


def _streamed(
    matrix: Any, rows: Rows | None, reading: Reading, cells: Sequence[str], genes: Sequence[str], where: str,
    columns: Rows | None,
) -> tuple[StoredMatrix, Scale]:  # fmt: skip
    """One pass over `matrix`; a second, ahead of it, where the median total has to be known first."""
    with values_of(where):
        seen = sample(matrix, rows)
    reading = reading.of(_of(seen, columns), where)
    check = Check(reading, genes, where)
    target = None
    if reading.target_sum is not None:
        target = _target(matrix, rows, reading, cells, genes, where, columns)
    writer = RowsWriter(len(genes))
    for start, block in _row_blocks(matrix, rows, where, columns):
        check.block(block, cells[start : start + block.shape[0]])
        writer.append(reading.converted(block if target is None else reading.linear(block), target))
    check.whole()
    return writer.finished(), reading.scale(target)


def _target(
    matrix: Any, rows: Rows | None, reading: Reading, cells: Sequence[str], genes: Sequence[str], where: str,
    columns: Rows | None,
) -> float:  # fmt: skip
    if reading.target_sum != "median":
        return float(reading.target_sum or 0)
    check, cell_totals = Check(reading, genes, where), []
    for start, block in _row_blocks(matrix, rows, where, columns):
        check.block(block, cells[start : start + block.shape[0]])
        cell_totals.append(totals(reading.linear(block)))
    check.whole()
    return median_total(np.concatenate(cell_totals))


def genes_found(matrix: Any, rows: Rows, where: str, columns: Rows | None) -> Rows:
    """Number of genes (`columns`, None: all) with a value other than 0 in each of the ascending `rows`."""
    if (_on_disk(matrix) and getattr(matrix, "format", "csr") == "csr") or not hasattr(matrix, "to_memory"):
        parts = [np.diff(block.indptr) for _, block in _row_blocks(matrix, rows, where, columns)]
        return np.concatenate(parts)
    return np.diff(_of(to_csr(matrix, rows, where), columns).indptr)


def _row_blocks(
    matrix: Any, rows: Rows | None, where: str, columns: Rows | None
) -> Iterator[tuple[int, sp.csr_matrix]]:
    """Blocks of the chosen rows as canonical CSR, each with the place of its first row among the chosen ones."""
    done = 0
    for low in range(0, matrix.shape[0], BLOCK_ROWS):
        high = min(low + BLOCK_ROWS, matrix.shape[0])
        block_rows = None if rows is None else rows[np.searchsorted(rows, low) : np.searchsorted(rows, high)] - low
        if block_rows is not None and not len(block_rows):
            continue
        with values_of(where):
            part = matrix[low:high]  # files read slices fast and lists of rows slowly
        block = _of(to_csr(part, block_rows, where), columns)
        yield done, block
        done += block.shape[0]


def _of(block: sp.csr_matrix, columns: Rows | None) -> sp.csr_matrix:
    """The `columns` (ascending) of a canonical block, itself canonical."""
    return block if columns is None else sp.csr_matrix(block[:, columns])


def _on_disk(matrix: Any) -> bool:
    """Whether this is a matrix of an open file or store, not an array."""
    return hasattr(matrix, "to_memory") or hasattr(matrix, "chunks")


def _size(matrix: Any, rows: Rows | None) -> float:
    """Bytes of the chosen rows."""
    share = 1.0 if rows is None else len(rows) / max(1, matrix.shape[0])
    if not hasattr(matrix, "to_memory"):
        return float(share * 4 * matrix.shape[0] * matrix.shape[1])
    try:
        return float(share * 8 * matrix.group["data"].shape[0])
    except READ_ERRORS:  # a damaged file, which whoever reads it will name
        return 0.0
