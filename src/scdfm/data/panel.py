"""Which genes are modelled: the most variable ones of the training cells, and every measured target."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm

from scdfm.config import PanelConfig
from scdfm.data.cells import CellTable
from scdfm.data.conditions import CONTROL, targets
from scdfm.data.split import Split
from scdfm.data.stored import Matrix, blocks, subset
from scdfm.errors import DataError

FEWEST = 2
"""Genes of a panel: a correlation over fewer is undefined."""


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
    """The panel of `config`: scanpy's highly variable genes of the training cells, every measured target, and `include`.

    Training cells are those of the training conditions and control (`cells = "all"`: all cells, the published
    leak). Targets are those of all conditions of the split, which takes names of test conditions but none of
    their cells. Genes that are constant in these cells are never variable, so fewer than `n_genes` may be found.
    """
    config = config or PanelConfig()
    split.check(cells.conditions)
    cells.columns(config.include)  # refuses a gene that is not measured
    genes = {target for condition in split.conditions for target in targets(condition)} | set(config.include)
    forced = np.isin(cells.genes, sorted(genes))
    n_all = len(cells.genes)
    if config.n_genes >= n_all:
        return GenePanel(_enough(cells.genes.tolist()), n_all)
    conditions = cells.conditions if config.cells == "all" else (CONTROL, *split.train)
    rows = np.flatnonzero(np.isin(cells.conditions, conditions)[cells.codes])
    measuring = cells.cells_measuring(conditions).sum(0) if cells.measured else None
    variable = variable_genes(subset(cells.X, rows), config.n_genes, config.flavor, measuring)
    return GenePanel(_enough(cells.genes[variable | forced].tolist()), int(variable.sum()))


def _enough(genes: list[str]) -> tuple[str, ...]:
    if len(genes) < FEWEST:
        raise DataError(
            f"panel: {len(genes)} genes vary among the training cells or are targets, expected at least {FEWEST}; "
            "give cells of more genes"
        )
    return tuple(genes)


def variable_genes(
    x: Matrix, n_genes: int, flavor: str = "seurat", measuring: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.bool_]:
    """Mask [A] of the `n_genes` most variable genes of cells x [n, A] by scanpy's ranking; constant ones never.

    measuring [A]: cells that measured each gene; None: all of them did.
    """
    moments = gene_moments(x, flavor == "seurat", measuring)
    varies = moments.lowest < moments.highest
    if varies.sum() <= n_genes:
        return varies
    # Constant genes take part in seurat's bins of mean expression, as published; cell_ranger's bins are
    # quantiles, which many silent genes would make coincide.
    ranked = varies if flavor == "cell_ranger" else np.ones_like(varies)
    score = np.full(len(varies), np.nan)
    score[ranked] = normalised_dispersion(moments.mean[ranked], moments.variance[ranked], flavor)
    cut = np.sort(score[~np.isnan(score)])[-n_genes:][:1]  # a variance lost in rounding ranks last
    return varies & (score >= cut)


@dataclass(frozen=True)
class GeneMoments:
    """Per gene [A]: `mean` and `variance` (divided by n − 1) over cells, `lowest` and `highest` log1p value."""

    mean: npt.NDArray[np.float64]
    variance: npt.NDArray[np.float64]
    lowest: npt.NDArray[np.float32]
    highest: npt.NDArray[np.float32]


def gene_moments(x: Matrix, linear: bool, measuring: npt.NDArray[np.int64] | None = None) -> GeneMoments:
    """Moments of log1p expression x [n, A], or if `linear` of the counts expm1(x), in one pass, summed in float64.

    measuring [A]: cells that measured each gene, whose moments they are; None: all of them did.
    """
    n_genes = x.shape[1]
    n = x.shape[0] if measuring is None else measuring
    total, square = np.zeros((2, n_genes))
    stored = np.zeros(n_genes, dtype=np.int64)
    lowest, highest = np.full(n_genes, np.inf, dtype=np.float32), np.zeros(n_genes, dtype=np.float32)
    for block in blocks(x):
        np.minimum.at(lowest, block.indices, block.data)
        np.maximum.at(highest, block.indices, block.data)
        stored += np.bincount(block.indices, minlength=n_genes)
        values = (np.expm1(block.data) if linear else block.data).astype(np.float64)
        total += np.bincount(block.indices, weights=values, minlength=n_genes)
        square += np.bincount(block.indices, weights=np.square(values, out=values), minlength=n_genes)
    mean = total / np.maximum(n, 1)
    variance = np.maximum(square - n * mean**2, 0) / np.maximum(n - 1, 1)
    return GeneMoments(mean, variance, np.where(stored < n, np.float32(0), lowest), highest)


def normalised_dispersion(
    mean: npt.NDArray[np.float64], variance: npt.NDArray[np.float64], flavor: str
) -> npt.NDArray[np.float64]:
    """Dispersion (variance / mean) of genes, standardised among genes of similar mean; NaN where it has none.

    seurat (Satija et al. 2015): log dispersion; 20 even bins of log1p mean; mean and standard deviation, and 1 for a
    gene alone in its bin. cell_ranger (Zheng et al. 2017): bins between the 10th, 15th, ... 100th percentiles of the
    mean; median and median absolute deviation (scaled to a normal's standard deviation).
    """
    mean = np.where(mean == 0, 1e-12, mean)
    dispersion = pd.Series(variance / mean)
    if flavor == "seurat":
        dispersion = dispersion.where(dispersion > 0).transform(np.log)
        bins = pd.Series(pd.cut(np.log1p(mean), bins=20))
        groups = dispersion.groupby(bins, observed=True)
        centre, spread = groups.transform("mean"), groups.transform("std")
        alone = spread.isna()
        return np.asarray((dispersion - centre.mask(alone, 0.0)) / spread.mask(alone, centre))
    edges = [-np.inf, *np.percentile(mean, np.arange(10, 105, 5)).tolist(), np.inf]
    bins = pd.Series(pd.cut(mean, bins=edges))
    centre = dispersion.groupby(bins, observed=True).transform("median")
    away = (dispersion - centre).abs()
    spread = away.groupby(bins, observed=True).transform("median") / norm.ppf(0.75)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((dispersion - centre) / spread)
