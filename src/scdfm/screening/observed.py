"""A population somebody observed, or wishes for: the cells of a file, on the genes of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scdfm.data.naming import Naming
from scdfm.data.reading import cells_of, read_like
from scdfm.data.source import open_source
from scdfm.data.stored import in_memory, subset
from scdfm.errors import DataError
from scdfm.evaluation.pseudobulk import Floats
from scdfm.run.scale import require_scale

if TYPE_CHECKING:
    from anndata import AnnData

    from scdfm.data import CellTable
    from scdfm.screening.ensemble import Ensemble

FEWEST_GENES = 0.5
"""Share of the run's genes that an observed population must have measured."""


@dataclass(frozen=True)
class Observed:
    """Cells of one population: log1p expression `cells` [M, g] of the run's genes at `places` (ascending) [g]."""

    cells: sp.csr_matrix
    places: np.ndarray

    @property
    def mean(self) -> Floats:
        """Mean expression [g]."""
        return np.asarray(self.cells.mean(axis=0), dtype=np.float64).ravel()


def read_observed(
    source: str | Path | AnnData | CellTable,
    ensemble: Ensemble,
    condition: str | None = None,
    where: str = "observed",
) -> Observed:
    """The population in `source`: all its cells, or those of `condition` under the run's perturbation key.

    source: path (.h5ad, .zarr), AnnData or CellTable, as the screen that the run was fitted on was: its declaration
    (log1p, or counts with their target sum) holds for this file too, as does its layer, where the file has it.
    Raises DataError where values are not as declared, or where fewer than half of the run's genes are measured.
    """
    table = _table(source, ensemble, condition)
    columns = {str(gene): at for at, gene in enumerate(table.genes)}
    places = np.array([at for at, gene in enumerate(ensemble.genes) if gene in columns], dtype=np.int64)
    if len(places) < FEWEST_GENES * len(ensemble.genes):
        missing = next(gene for gene in ensemble.genes if gene not in columns)
        raise DataError(
            f"{where}: {len(places)} of the run's {len(ensemble.genes)} genes are measured (first missing: "
            f"'{missing}'), expected at least half; give cells measured on the genes of the training data"
        )
    if table.n < 2:
        raise DataError(f"{where}: 1 cell, expected at least 2; give a population")
    require_scale(ensemble.first, table.X, list(columns), where)
    measured = np.array([columns[ensemble.genes[at]] for at in places], dtype=np.int64)
    return Observed(in_memory(subset(table.X, None, measured)), places)


def _table(source: str | Path | AnnData | CellTable, ensemble: Ensemble, condition: str | None) -> CellTable:
    from scdfm.data import CellTable

    manifest = ensemble.first.manifest
    if isinstance(source, CellTable):
        return source if condition is None else source.select([manifest.naming.canonical(condition)])
    with open_source(source) as opened:
        layer = manifest.layer_in(opened.readable)
        if condition is not None:
            key = {"perturbation_key": manifest.perturbation_key, "layer": layer, "subset": manifest.subset}
            options = key | manifest.numbers | manifest.design | manifest.naming.to_dict()
            return read_like(source, options).select([manifest.naming.canonical(condition)])
        # Every cell is one population here; cells_of checks values and genes, and wants a label to begin with.
        one = pd.DataFrame({"population": "control"}, index=opened.obs.index.astype(str))
        naming = Naming(genes=manifest.naming.genes, gene_versions=manifest.naming.gene_versions)
        return cells_of(
            replace(opened, obs=one), "population", naming, layer=layer, strict=False, **manifest.numbers
        )
