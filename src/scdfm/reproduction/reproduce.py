"""One published experiment from data to the table beside the published rows, resumable.

Before any fit its protocol is checked: no change, the row called Control, has no model in it. It must score as published on
data, scale, test conditions and scored genes. The publication does not say which folds its figures are of, so the nearest
of the folds and their mean counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from scdfm.benchmarking import Fold, Folds, Plan, Tables, aggregate, run_pieces
from scdfm.benchmarking.folds import scored_conditions
from scdfm.benchmarking.pieces import scores_of
from scdfm.benchmarking.tables import ALL, kind
from scdfm.data import CONTROL, CellTable, targets
from scdfm.data.panel import variable_genes
from scdfm.datasets import published
from scdfm.datasets.screens import PUBLISHED_METRICS
from scdfm.errors import ConfigError, DataError
from scdfm.evaluation.baselines import NO_CHANGE
from scdfm.files import write_csv, write_text
from scdfm.jobs import begun
from scdfm.report.tables import piped
from scdfm.reproduction.experiments import SCORED_GENES, SMOKE_FOLDS, SMOKE_GENES, Experiment, experiment_named

NAMES: Final[dict[str, tuple[str, ...]]] = {
    "de_spearman": ("de_spearman_lfc_sig", "de_spearman"),
    "ds": ("discrimination_score_l1", "ds"),
}
"""Published columns by the name that cell-eval gives them, and scdfm's for the simple rules, which have no cells."""
METRICS: Final = (
    *(name for name in PUBLISHED_METRICS if name not in NAMES),
    *(name for names in NAMES.values() for name in names),
)
"""All metrics that a reproduction scores."""
HEADS: Final = {
    "l2": "L2 ↓", "mse": "MSE ↓", "mae": "MAE ↓", "de_spearman": "DE-Spearman ↑", "pearson_delta": "Pearson Δ ↑",
    "ds": "DS ↑", "pearson_delta_hat": "Pearson Δ̂ ↑", "pearson_delta_hat_20": "Pearson Δ̂₂₀ ↑",
}  # fmt: skip
PUBLISHED, HERE = "published", "here"
RECORD, CHECK, TABLE, TEXT = "experiment.json", "check.csv", "table.csv", "table.md"
TOLERANCE: Final = 0.03
"""How far the Control row may be off the published one, relative."""
CHECKED: Final = ("l2", "mse", "mae", "ds")
PUBLISHED_CONTROL: Final = "Control"


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
            rows.append({"part": part, "metric": metric, "published": _published(experiment, part, metric), **values})
    table = pd.DataFrame(rows)
    candidates = [name for name in table.columns if name not in ("part", "metric", "published")]
    off = {name: _deviation(table, name) for name in candidates}
    nearest = min(off, key=lambda name: off[name])
    return Check(table, nearest, off[nearest])


def control_row(folds: PublishedFolds, number: int) -> pd.DataFrame:
    """fold, kind, metric, value of no change, one row a condition and metric."""
    fold = folds.fold(number)
    table = scores_of(None, fold, fold.conditions, protocol="paper", metrics=CHECKED)
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


def beside_published(tables: Tables, experiment: Experiment) -> pd.DataFrame:
    """Long: part, source (published or here), model, metric (PUBLISHED_METRICS), value, low, high (95% interval)."""
    rows: list[tuple[Any, ...]] = []
    nan = float("nan")
    facts = published(*experiment.published)
    for part, ours in experiment.parts.items():
        for _, fact in facts[facts["part"] == part].iterrows():
            rows += [(part, PUBLISHED, fact["model"], name, fact[name], nan, nan) for name in PUBLISHED_METRICS]
        summary = tables.summary[tables.summary["part"] == ours]
        for model, scores in summary.groupby("model", sort=False):
            by_metric = scores.set_index("metric")
            rows += [(part, HERE, model, name, *_mean_and_interval(by_metric, name)) for name in PUBLISHED_METRICS]
    return pd.DataFrame(rows, columns=["part", "source", "model", "metric", "value", "low", "high"])


def _mean_and_interval(by_metric: pd.DataFrame, name: str) -> tuple[float, float, float]:
    """Mean and interval of a published column: cell-eval's where the model has it."""
    estimates = by_metric[["mean", "low", "high"]].astype(float).T.to_dict("list")
    for own in NAMES.get(name, (name,)):
        if own in estimates and not math.isnan(estimates[own][0]):
            mean, low, high = estimates[own]
            return mean, low, high
    return float("nan"), float("nan"), float("nan")


def markdown(table: pd.DataFrame) -> str:
    """The table of `beside_published` as Markdown, one section a part."""
    sections = []
    for part, rows in table.groupby("part", sort=False):
        lines = [["source", "model", *HEADS.values()]]
        for (source, model), scores in rows.groupby(["source", "model"], sort=False):
            by_metric = scores.set_index("metric")
            cells = [_cell(name, *by_metric.loc[name, ["value", "low", "high"]].astype(float)) for name in HEADS]
            lines.append([str(source), str(model), *cells])
        sections.append(f"### {part}\n\n" + piped(lines, "|---" * (2 + len(HEADS)) + "|"))
    return "\n".join(sections)


def _cell(metric: str, value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "–"
    digits = 5 if metric in ("mse", "mae") else 4
    text = f"{value:.{digits}f}"
    return text if math.isnan(low) else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


@dataclass(frozen=True)
class Reproduction:
    """A finished reproduction: its folder, the protocol check, all scores, and the table beside the published rows."""

    path: Path
    check: Check
    tables: Tables
    table: pd.DataFrame
    text: str


def reproduce(
    name: str,
    data: str | Path | None = None,
    *,
    out: str | Path,
    preset: str = "paper",
    smoke: bool = False,
    folds: Sequence[int] | None = None,
    seeds: int = 1,
    settings: Sequence[str] = (),
    unseen: bool = False,
    check: bool = True,
    resume: bool = False,
    progress: bool = True,
) -> Reproduction:
    """Run the experiment `name` (norman-additive, norman-holdout, combosciplex, ablation) and leave all in `out`.

    data: a copy of its data set; None downloads the published file. preset: `paper`, or another one on the
    published panel size. smoke: tiny sizes, one fold, and made-up data unless `data` is given; the check is told, not
    held. folds: those fitted, default all published ones. settings: `section.key=value` over the preset.
    unseen: norman-holdout tests targets that never train, a harder split than the published one. check: False
    goes on where the Control row is off. resume: continue in `out`.

    Raises DataError when the Control row is more than 3% off the published one, before anything is fitted.
    """
    experiment = experiment_named(name, unseen)
    contenders = experiment.contenders(preset, smoke, settings)
    fitted = tuple(folds if folds is not None else experiment.folds[: SMOKE_FOLDS if smoke else None])
    if unknown := [fold for fold in fitted if fold not in experiment.folds]:
        raise ConfigError(f"fold {unknown[0]}: {name} has folds {', '.join(map(str, experiment.folds))}")
    out = begun(out, RECORD, {"experiment": name, "smoke": smoke, "unseen": unseen}, resume)
    cells = experiment.table(data, smoke, out)
    plan = Plan(experiment.split, fitted, tuple(range(seeds)), contenders, "paper", METRICS)
    checked = _check(experiment, plan, cells, smoke)
    write_csv(out / CHECK, checked.rows)
    if check and not smoke and not unseen:
        checked.require()
    scored = run_pieces(plan, cells, out, progress, _folds(experiment, plan, cells, smoke))
    tables = aggregate(scored)
    table = beside_published(tables, experiment)
    text = "\n\n".join([f"## {name}", checked.text(), markdown(table), *_remarks(experiment, plan, smoke, unseen)])
    write_csv(out / TABLE, table)
    write_text(out / TEXT, text + "\n")
    return Reproduction(out, checked, tables, table, text)


def _check(experiment: Experiment, plan: Plan, cells: CellTable, smoke: bool) -> Check:
    """The protocol check on the published panel: over all published folds, whichever are fitted."""
    published = experiment.contenders("paper", smoke)[:1]
    folds = plan.folds if smoke else experiment.folds
    plan = replace(plan, folds=folds, seeds=(0,), contenders=published)
    return control_check(experiment, _folds(experiment, plan, cells, smoke))


def _folds(experiment: Experiment, plan: Plan, cells: CellTable, smoke: bool) -> PublishedFolds:
    return PublishedFolds(plan, cells, SMOKE_GENES if smoke else SCORED_GENES, experiment.apart)


def _remarks(experiment: Experiment, plan: Plan, smoke: bool, unseen: bool) -> list[str]:
    """What a reader must know of the figures."""
    remarks = [
        f"Fold{'s' * (len(plan.folds) > 1)} {', '.join(map(str, plan.folds))}; {len(plan.seeds)} seed"
        f"{'s' * (len(plan.seeds) > 1)}. Intervals: 95%, over conditions. Scored as published (protocol `paper`), on genes "
        "chosen with test cells. The simple rules have no cells: their DS and DE-Spearman are scdfm's own."
    ]
    if smoke:
        remarks.append("A smoke run: sizes are tiny, the figures mean nothing.")
    if unseen:
        remarks.append("Test targets never train here; the published rows are of an easier split.")
    if experiment.name == "norman-holdout" and not unseen:
        remarks.append(
            "The published holdout rows are those of the split `combinations` (15 doubles and the singles of their "
            "genes, which other doubles train on); `--unseen` holds genes out altogether."
        )
    return remarks
