"""The folds of a published experiment, and the check of its protocol: no change must score as published before any fit.

The row called Control has no model in it: it depends on data, scale, test conditions and scored genes alone. The
publication does not say which folds its figures are of, so the nearest of the folds and their mean counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pandas as pd

from scdfm.benchmarking import Fold, Folds, Plan
from scdfm.benchmarking.folds import scored_conditions
from scdfm.benchmarking.tables import ALL, kind
from scdfm.data import CONTROL, CellTable, targets
from scdfm.data.panel import variable_genes
from scdfm.datasets import published
from scdfm.errors import DataError
from scdfm.evaluation import evaluate
from scdfm.evaluation.baselines import NO_CHANGE
from scdfm.reproduction.experiments import Experiment


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


TOLERANCE: Final = 0.03
CHECKED: Final = ("l2", "mse", "mae", "ds")
PUBLISHED_CONTROL: Final = "Control"


@dataclass(frozen=True)
class Check:
    """The Control row here and as published.

    `rows`: part, metric, published, then one column for each fold and their mean. `deviation` is the largest relative
    difference (of mse: of its root, so that all are in units of expression) of the candidate `nearest`.
    """

    rows: pd.DataFrame
    nearest: str
    deviation: float

    @property
    def passed(self) -> bool:
        """Whether the row is within TOLERANCE of the published one."""
        return self.deviation <= TOLERANCE

    def text(self) -> str:
        """The verdict in one line."""
        verdict = "passed" if self.passed else "not passed"
        return (
            f"protocol check {verdict}: the Control row ({self.nearest}) is {100 * self.deviation:.1f}% off the "
            f"published one, {100 * TOLERANCE:g}% allowed; {self._values()}"
        )

    def require(self) -> None:
        """Raise DataError unless passed."""
        if not self.passed:
            raise DataError(
                f"{self.text()}: is this the published copy at its published scale (scdfm download)? "
                "--no-check goes on all the same"
            )

    def _values(self) -> str:
        return ", ".join(
            f"{row['part']} {row['metric']} {row[self.nearest]:.4g} (published {row['published']:.4g})"
            for _, row in self.rows[self.rows["metric"] == "l2"].iterrows()
        )


def control_check(experiment: Experiment, folds: PublishedFolds) -> Check:
    """Score no change on every fold of the plan and hold it against the published Control rows."""
    scores = pd.concat([control_row(folds, number) for number in folds.plan.folds])
    rows = []
    for part, ours in experiment.parts.items():
        own = scores if ours == ALL else scores[scores["kind"] == ours]
        means = own.groupby(["metric", "fold"])["value"].mean()
        for metric in CHECKED:
            values = {f"fold {fold}": float(means[metric, fold]) for fold in folds.plan.folds}
            if len(values) > 1:
                values["mean of folds"] = float(np.mean(list(values.values())))
            rows.append(
                {"part": part, "metric": metric, "published": _published(experiment, part, metric), **values}
            )
    table = pd.DataFrame(rows)
    candidates = [name for name in table.columns if name not in ("part", "metric", "published")]
    off = {name: _deviation(table, name) for name in candidates}
    nearest = min(off, key=lambda name: off[name])
    return Check(table, nearest, off[nearest])


def control_row(folds: PublishedFolds, number: int) -> pd.DataFrame:
    """fold, kind, metric, value of no change, one row a condition and metric."""
    fold = folds.fold(number)
    cells = folds.cells
    tables = [
        evaluate(
            None, fold.cells, control=cells.control, protocol="paper", training=fold.training, metrics=CHECKED,
            perturbation_key=cells.perturbation_key, conditions=group, seed=number,
        )
        for group in fold.groups(fold.conditions)
    ]  # fmt: skip
    table = pd.concat(tables, ignore_index=True)
    table = table[table["model"] == NO_CHANGE]
    return table.assign(fold=number, kind=[kind(str(name)) for name in table["condition"]])


def _published(experiment: Experiment, part: str, metric: str) -> float:
    table = published(*experiment.published)
    row = table[(table["part"] == part) & (table["model"] == PUBLISHED_CONTROL)]
    return float(row[metric].iloc[0])


def _deviation(table: pd.DataFrame, candidate: str) -> float:
    """The largest relative difference over parts and metrics."""
    ratio = table[candidate].to_numpy(np.float64) / table["published"].to_numpy(np.float64)
    root = np.where(table["metric"] == "mse", 0.5, 1.0)
    return float(np.max(np.abs(ratio**root - 1)))
