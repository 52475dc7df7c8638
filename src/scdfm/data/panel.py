"""Which genes are modelled: the most variable ones of the training cells, and every measured target."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from scdfm.config import PanelConfig
from scdfm.data.cells import CellTable
from scdfm.data.conditions import CONTROL, targets
from scdfm.data.splits import Split
from scdfm.threads import openmp_threads_kept

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class GenePanel:
    """The G modelled genes, in the order of the table; `n_variable` of them were chosen for their variance."""

    genes: tuple[str, ...]
    n_variable: int

    @property
    def digest(self) -> str:
        """sha256 of the gene names in their order."""
        return hashlib.sha256("\n".join(self.genes).encode()).hexdigest()


def select_genes(cells: CellTable, split: Split, config: PanelConfig | None = None) -> GenePanel:
    """The panel of `config`: scanpy's highly variable genes of the training cells, and every measured target.

    Training cells are those of the training conditions and control (`cells = "all"`: all cells, the published
    leak). Targets are those of all conditions of the split, which takes names of test conditions but none of
    their cells. Genes that are constant in these cells are never variable, so fewer than `n_genes` may be found.
    """
    config = config or PanelConfig()
    split.check(cells.conditions)
    wanted = {target for condition in split.conditions for target in targets(condition)}
    forced = np.isin(cells.genes, sorted(wanted))
    n_all = len(cells.genes)
    if config.n_genes >= n_all:
        return GenePanel(tuple(cells.genes.tolist()), n_all)
    chosen = cells.conditions if config.cells == "all" else (CONTROL, *split.train)
    rows = np.flatnonzero(np.isin(cells.conditions, chosen)[cells.codes])
    variable = variable_genes(cells.X[rows], config.n_genes, config.flavor)
    return GenePanel(tuple(cells.genes[variable | forced].tolist()), int(variable.sum()))


def variable_genes(x: csr_matrix, n_genes: int, flavor: str = "seurat") -> npt.NDArray[np.bool_]:
    """Mask [A] of the `n_genes` most variable genes of cells x [n, A] by scanpy's ranking; constant ones never."""
    import scanpy as sc
    from anndata import AnnData

    lowest, highest = (extreme.toarray().ravel() for extreme in (x.min(axis=0), x.max(axis=0)))
    varies: npt.NDArray[np.bool_] = lowest < highest
    if varies.sum() <= n_genes:
        return varies
    # Constant genes take part in seurat's bins of mean expression, as published; cell_ranger's bins are
    # quantiles, which many silent genes would make coincide.
    columns = np.flatnonzero(varies) if flavor == "cell_ranger" else np.arange(x.shape[1])
    ranked = AnnData(x[:, columns])
    # A variance lost in rounding ranks last.
    with openmp_threads_kept(), np.errstate(invalid="ignore", divide="ignore"):
        sc.pp.highly_variable_genes(ranked, n_top_genes=n_genes, flavor=flavor)
    chosen = columns[ranked.var["highly_variable"].to_numpy()]
    return varies & np.isin(np.arange(x.shape[1]), chosen)
