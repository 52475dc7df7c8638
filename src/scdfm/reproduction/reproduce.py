"""One published experiment from data to table, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from scdfm.benchmarking import Plan, Tables, aggregate, run_pieces
from scdfm.data import CellTable
from scdfm.errors import ConfigError
from scdfm.files import write_text, written_whole
from scdfm.jobs import begun
from scdfm.reproduction.check import Check, control_check
from scdfm.reproduction.experiments import (
    SCORED_GENES,
    SMOKE_FOLDS,
    SMOKE_GENES,
    Experiment,
    experiment_named,
)
from scdfm.reproduction.folds import PublishedFolds
from scdfm.reproduction.table import METRICS, beside_published, markdown

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
    _write_csv(out / CHECK, checked.rows)
    if check and not smoke and not unseen:
        checked.require()
    scored = run_pieces(plan, cells, out, progress, _folds(experiment, plan, cells, smoke))
    tables = aggregate(scored)
    table = beside_published(tables, experiment)
    text = "\n\n".join(
        [f"## {name}", checked.text(), markdown(table), *_remarks(experiment, plan, smoke, unseen)]
    )
    _write_csv(out / TABLE, table)
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


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with written_whole(path) as temporary:
        table.to_csv(temporary, index=False)
