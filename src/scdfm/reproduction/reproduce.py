"""One published experiment from data to the table beside the published rows, resumable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pandas as pd

from scdfm.benchmarking import Plan, Tables, aggregate, run_pieces
from scdfm.data import CellTable
from scdfm.datasets import published
from scdfm.datasets.screens import PUBLISHED_METRICS
from scdfm.errors import ConfigError
from scdfm.files import write_csv, write_text
from scdfm.jobs import begun
from scdfm.reproduction.check import Check, PublishedFolds, control_check
from scdfm.reproduction.experiments import (
    SCORED_GENES,
    SMOKE_FOLDS,
    SMOKE_GENES,
    Experiment,
    experiment_named,
)

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


def beside_published(tables: Tables, experiment: Experiment) -> pd.DataFrame:
    """Long: part, source (published or here), model, metric (PUBLISHED_METRICS), value, low, high (95% interval)."""
    rows: list[tuple[Any, ...]] = []
    nan = float("nan")
    facts = published(*experiment.published)
    for part, ours in experiment.parts.items():
        for _, fact in facts[facts["part"] == part].iterrows():
            rows += [
                (part, PUBLISHED, fact["model"], name, fact[name], nan, nan) for name in PUBLISHED_METRICS
            ]
        summary = tables.summary[tables.summary["part"] == ours]
        for model, scores in summary.groupby("model", sort=False):
            by_metric = scores.set_index("metric")
            rows += [
                (part, HERE, model, name, *_mean_and_interval(by_metric, name)) for name in PUBLISHED_METRICS
            ]
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
        lines = [
            f"### {part}", "", "| source | model | " + " | ".join(HEADS.values()) + " |", "|---" * (2 + len(HEADS)) + "|",
        ]  # fmt: skip
        for (source, model), scores in rows.groupby(["source", "model"], sort=False):
            by_metric = scores.set_index("metric")
            cells = [
                _cell(name, *by_metric.loc[name, ["value", "low", "high"]].astype(float)) for name in HEADS
            ]
            lines.append(f"| {source} | {model} | " + " | ".join(cells) + " |")
        sections.append("\n".join(lines))
    return "\n\n".join(sections) + "\n"


def _cell(metric: str, value: float, low: float, high: float) -> str:
    if math.isnan(value):
        return "–"
    digits = 5 if metric in ("mse", "mae") else 4
    text = f"{value:.{digits}f}"
    return text if math.isnan(low) else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


RECORD, CHECK, TABLE, TEXT = "experiment.json", "check.csv", "table.csv", "table.md"


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
    text = "\n\n".join(
        [f"## {name}", checked.text(), markdown(table), *_remarks(experiment, plan, smoke, unseen)]
    )
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
