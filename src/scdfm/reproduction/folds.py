"""The folds of a published experiment: scored on the genes that the published scores choose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from scdfm.benchmarking import Fold, Folds, Plan
from scdfm.benchmarking.folds import scored_conditions
from scdfm.data import CONTROL, CellTable, targets
from scdfm.data.panel import variable_genes


class PublishedFolds(Folds):
    """Folds whose scored genes are the `n_genes` most variable of the panel over test and control cells (scanpy).

    With `apart` singles and combinations are scored by themselves.
    """

    def __init__(self, plan: Plan, cells: CellTable, n_genes: int, apart: bool) -> None:
        super().__init__(plan, cells)
        self.n_genes, self.apart = n_genes, apart

    def _scored_genes(self, number: int) -> tuple[str, ...]:
        panel = super()._scored_genes(number)
        split = self.plan.fold_split(self.cells, number)
        seen = self.cells.select([CONTROL, *scored_conditions(self.plan, self.cells, split)])
        variable = variable_genes(seen.X[:, seen.columns(panel)], self.n_genes)
        return tuple(np.array(panel)[variable].tolist())

    def _fold(self, number: int) -> Fold:
        fold = super()._fold(number)
        if not self.apart:
            return fold
        sizes = sorted({len(targets(name)) for name in fold.conditions})
        groups = (tuple(name for name in fold.conditions if len(targets(name)) == size) for size in sizes)
        return replace(fold, apart=tuple(groups))
