"""Raw counts, as the Virtual Cell Challenge scores them: read, checked, and told apart from log1p values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from scdfm.data.cells import CellTable
from scdfm.data.conditions import CONTROL
from scdfm.data.design import Design
from scdfm.data.labels import chosen_rows, label_cells
from scdfm.data.naming import Naming
from scdfm.data.source import Source, open_source
from scdfm.data.values import Check, Reading, to_csr, totals
from scdfm.errors import ConfigError, DataError
from scdfm.evaluation.pseudobulk import Floats, Rows, taken

if TYPE_CHECKING:
    from anndata import AnnData


MOST_PER_CELL: Final = 1e6
"""Counts of one cell at most, as in the challenge."""


@dataclass(frozen=True)
class Counts:
    """Raw counts `X` csr [N, A] (float64, whole numbers) over `genes`, with the `rows` of each condition.

    `order`: conditions as their labels are ordered in the file (categories, else sorted), which the draws of halves
    follow. `spelling`: the label of each condition. `where` names the file in errors.
    """

    X: sp.csr_matrix
    genes: NDArray[np.str_]
    rows: Mapping[str, Rows]
    order: tuple[str, ...]
    spelling: Mapping[str, str]
    where: str

    @property
    def conditions(self) -> tuple[str, ...]:
        """The perturbed conditions, sorted by name."""
        return tuple(sorted(name for name in self.rows if name != CONTROL))

    @cached_property
    def depth(self) -> Floats:
        """Counts of each cell [N]."""
        return totals(self.X)

    @cached_property
    def per_million(self) -> Floats:
        """What a cell's counts are divided by to be counts per million, [N]; 1 for an empty cell."""
        scale = self.depth / 1e6
        return np.asarray(scale + (scale == 0))

    @cached_property
    def logged(self) -> sp.csr_matrix:
        """log1p of counts per million, csr [N, A] float64; ranks, and their ties, are those of these values."""
        data = self.X.data / np.repeat(self.per_million, np.diff(self.X.indptr))
        np.log1p(data, out=data)
        return sp.csr_matrix((data, self.X.indices, self.X.indptr), shape=self.X.shape, copy=False)

    def sums(self, rows: Rows) -> tuple[Floats, Floats]:
        """Sum of counts [A], and mean of counts per million [A], over the cells `rows`."""
        block, n_genes = taken(self.X, rows), self.X.shape[1]
        counts = np.bincount(block.indices, weights=block.data, minlength=n_genes).astype(np.float64)
        scaled = block.data / np.repeat(self.per_million[rows], np.diff(block.indptr))
        mean = np.bincount(block.indices, weights=scaled, minlength=n_genes) / max(len(rows), 1)
        return counts, mean

    def restricted(self, genes: list[str]) -> Counts:
        """The counts of some genes, in their order."""
        if self.genes.tolist() == genes:
            return self
        place = {gene: i for i, gene in enumerate(self.genes.tolist())}
        X = sp.csr_matrix(self.X[:, [place[gene] for gene in genes]])
        X.sort_indices()
        return replace(self, X=X, genes=np.asarray(genes))


def read_counts(
    path_or_adata: str | Path | AnnData,
    perturbation_key: str = "perturbation",
    control: str | Sequence[str] = CONTROL,
    layer: str | None = None,
    subset: Mapping[str, str] | None = None,
    min_cells: int = 1,
    *,
    need_control: bool = True,
) -> Counts:
    """Read the raw counts of a screen from `.h5ad`, `.zarr` or an AnnData, into memory.

    perturbation_key, control, layer, subset, min_cells: as in `scdfm.read_cells`. need_control: False accepts cells
    without control, a prediction. Raises DataError where values are no counts (whole numbers, at most a million a cell).
    """
    naming = Naming(control=(control,) if isinstance(control, str) else tuple(control))
    with open_source(path_or_adata) as source:
        if need_control:
            subset_rows = chosen_rows(source.obs, subset, source.name)
            labelled = label_cells(source.obs, subset_rows, perturbation_key, naming, Design(), source.name, min_cells)
            rows, names = labelled.rows, labelled.names.astype(str)
        else:
            rows, names = _predicted(source, perturbation_key, naming, subset)
        labels = source.obs[perturbation_key].iloc[rows]
        where = f"{source.name}: layer '{layer}'" if layer else f"{source.name}: X"
        index = None if len(rows) == len(source.obs) else rows
        X = _checked(source, layer, index, [str(cell) for cell in source.obs.index[rows]], where)
        genes = source.genes
    _check_genes(genes, where)
    order, spelling = _ordered(labels, names)
    code = pd.Categorical(names, categories=order).codes
    places = {name: np.flatnonzero(code == i) for i, name in enumerate(order)}
    return Counts(X, genes, places, order, spelling, where)


def _predicted(
    source: Source, key: str, naming: Naming, subset: Mapping[str, str] | None
) -> tuple[Rows, NDArray[np.str_]]:
    """Rows and conditions of predicted cells; `subset` holds where the prediction has its columns."""
    own = {column: value for column, value in (subset or {}).items() if column in source.obs.columns}
    rows = chosen_rows(source.obs, own, source.name)
    if key not in source.obs.columns:
        raise DataError(
            f"prediction {source.name}: perturbation column '{key}' is not in obs; its columns are "
            f"{', '.join(map(str, source.obs.columns)) or 'none'}: name it with perturbation_key"
        )
    missing = int(source.obs[key].iloc[rows].isna().sum())
    if missing:
        raise DataError(
            f"prediction {source.name}: {missing} cells have no label in obs column '{key}'; expected one for each "
            "cell: label them, or remove these cells"
        )
    labels = source.obs[key].iloc[rows].astype(str)
    naming = naming.of_labels(list(labels.unique()))
    return rows, labels.map({text: naming.canonical(text) for text in labels.unique()}).to_numpy().astype(str)


def _checked(source: Source, layer: str | None, rows: Rows | None, cells: list[str], where: str) -> sp.csr_matrix:
    """The counts of the chosen rows as float64 csr; DataError where they are none."""
    csr = to_csr(source.matrix(layer), rows, where)
    broken = np.rint(csr.data) != csr.data
    if broken.any():
        at = int(np.argmax(broken))
        row = int(np.searchsorted(csr.indptr, at, side="right")) - 1
        raise DataError(
            f"{where}: {csr.data[at]:g} for gene '{source.genes[csr.indices[at]]}' in cell '{cells[row]}' "
            f"({int(broken.sum())} such values); protocol vcc2026 scores raw counts (whole numbers): name the layer "
            "that holds them (layer=, --layer), or score log1p values with protocol scdfm"
        )
    check = Check(Reading(target_sum=1.0), source.genes.tolist(), where)
    check.block(csr, cells)
    check.whole()
    csr = csr.astype(np.float64)
    depth = totals(csr)
    if depth.max() > MOST_PER_CELL:
        worst = int(np.argmax(depth))
        raise DataError(
            f"{where}: cell '{cells[worst]}' holds {depth[worst]:g} counts; expected at most {MOST_PER_CELL:g} a "
            "cell: remove such cells, or give counts that are not scaled"
        )
    csr.sort_indices()
    return csr


def _check_genes(genes: NDArray[np.str_], where: str) -> None:
    repeated = pd.Index(genes).duplicated()
    if repeated.any():
        raise DataError(
            f"{where}: gene '{genes[repeated][0]}' occurs more than once; expected unique names: make them so "
            "(AnnData.var_names_make_unique), or sum the repeats"
        )


def _ordered(labels: pd.Series, names: NDArray[np.str_]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Conditions in the order of their labels (categories, else sorted), and the first label of each."""
    categories = (
        [str(label) for label in labels.cat.categories]
        if isinstance(labels.dtype, pd.CategoricalDtype)
        else sorted(labels.astype(str).unique())
    )
    condition_of = dict(zip(labels.astype(str), names.tolist(), strict=True))
    spelling: dict[str, str] = {}
    for label in categories:
        if label in condition_of:
            spelling.setdefault(condition_of[label], label)
    return tuple(spelling), spelling


def refuse_options(given: Mapping[str, bool], protocol: str) -> None:
    """Raise ConfigError for the first option that is `given` though it has no effect under `protocol`."""
    for option in (name for name, there in given.items() if there):
        raise ConfigError(f"{option} is no option of protocol {protocol}; leave it out, or choose another protocol")


def counted(
    predicted: Any, real: Any, control: str, key: str | None, subset: Mapping[str, str] | None, layer: str | None
) -> tuple[Counts | None, Counts]:
    """Both sides as counts; the real ones from `layer`, if they are not read yet."""
    for side in (predicted, real):
        if isinstance(side, CellTable):
            raise ConfigError(
                "protocol vcc2026 scores raw counts, and a CellTable holds log1p values; give the file, an AnnData, or "
                "scdfm.read_counts(path, layer=...)"
            )
    key = key or "perturbation"
    if isinstance(real, Counts) and (subset or layer):
        raise ConfigError("subset and layer go with a file or an AnnData; give them to read_counts")
    truth = real if isinstance(real, Counts) else read_counts(real, key, control, layer, subset)
    if predicted is None or isinstance(predicted, Counts):
        return predicted, truth
    return read_counts(predicted, key, control, None, subset, need_control=False), truth


def log1p_cells(cells: Any) -> Any:
    """`cells`, unless they were read as counts."""
    if isinstance(cells, Counts):
        raise ConfigError("read_counts goes with protocol vcc2026; other protocols score log1p values (read_cells)")
    return cells
