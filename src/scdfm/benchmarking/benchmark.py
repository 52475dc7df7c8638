"""The whole benchmark: a folder that is filled piece by piece, and the tables at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from scdfm.benchmarking.page import Page
from scdfm.benchmarking.pieces import Scored, run_pieces
from scdfm.benchmarking.plan import Models, Options, PeerOptions, Plan, make_plan
from scdfm.benchmarking.tables import Tables, aggregate, costs
from scdfm.config import Config, SplitConfig
from scdfm.data import CellTable, Split, read_cells
from scdfm.errors import ConfigError
from scdfm.evaluation.evaluate import Protocol
from scdfm.files import new_folder, write_csv, write_text
from scdfm.jobs import begun
from scdfm.processes import require_one

if TYPE_CHECKING:
    from anndata import AnnData

RECORD, PAGE, MARKDOWN, COSTS = "benchmark.json", "benchmark.html", "benchmark.md", "costs.csv"
TABLES = ("scores", "summary", "differences")


@dataclass(frozen=True)
class Benchmark:
    """A finished benchmark: its folder, its tables (see `Tables`), notes on what was left out, a terminal's text."""

    path: Path
    plan: Plan
    tables: Tables
    notes: tuple[str, ...]
    text: str

    @property
    def page(self) -> Path:
        """The HTML page."""
        return self.path / PAGE

    @property
    def scores(self) -> pd.DataFrame:
        """Long: model, fold, seed, beside, condition, metric, value, n_cells."""
        return self.tables.scores

    @property
    def summary(self) -> pd.DataFrame:
        """One row per part, model and metric, with a 95% interval."""
        return self.tables.summary

    @property
    def differences(self) -> pd.DataFrame:
        """Each model against its best baseline, paired, with a 95% interval."""
        return self.tables.differences


def benchmark(
    cells: CellTable | AnnData | str | Path,
    split: str | SplitConfig | Split = "additive",
    folds: Sequence[int] | None = None,
    seeds: int | Sequence[int] = 3,
    *,
    out: str | Path,
    models: Models = "default",
    protocol: Protocol = "scdfm",
    metrics: Sequence[str] | None = None,
    options: Options = None,
    n_cells: int | None = None,
    resume: bool = False,
    progress: bool = True,
    final: str | Path | None = None,
    peers: PeerOptions | None = None,
) -> Benchmark:
    """Fit, predict and evaluate `models` over folds and seeds, and leave one table in the folder `out`.

    cells: the screen, log1p values (`read_cells`).
    split: additive, holdout, combinations, covariate:NAME[=VALUE], FILE.toml, obs:COLUMN, a SplitConfig, or a Split;
        the fold decides the test.
    folds: default 0-4; a file or a column has fold 0 alone. seeds: how many (0, 1, ...), or which.
    models: presets (`default`, `tiny`, `paper`), `file:NAME=PRED.h5ad` for anybody's predictions (`{fold}` and
        `{seed}` in the path stand for numbers), `command:NAME=COMMAND` for any method and the names of bundled peers
        (docs/peers.md), Contenders, or `baselines` for no model. All baselines and the ceiling are always in the table.
    peers: budget, weights and annotations of commands and peers.
    protocol: as for `evaluate`; `paper` with the additive split scores the published table's conditions.
    options: nested options over every preset, such as {"training": {"max_steps": 500}}, or texts: "training.max_steps=500".
    n_cells: predicted cells of each condition; default each preset's `sampling.cells`.
    resume: continue in `out`: finished pieces are read, an interrupted fit goes on, models, folds and seeds may
        be added. The tables are those of an uninterrupted benchmark.
    final: a run folder to create after the folds: the one model that is fitted, on every condition and with the first
        seed, but for those that validate. No fold scores it.

    All models of a fold are scored on the same cells and genes: the genes of the screen that each of them
    predicts. Raises ConfigError, DataError or RunError, one line each.
    """
    require_one("benchmark")
    plan = make_plan(
        split, folds, seeds, models, protocol=protocol, metrics=metrics, options=options, n_cells=n_cells,
        peers=peers,
    )  # fmt: skip
    fitted = None if final is None else final_config(plan, Path(final), resume)
    table = cells if isinstance(cells, CellTable) else read_cells(cells)
    table.require_all_measured("benchmark")
    record = {"data": table.digest(), "split": _said(plan.split), "protocol": plan.protocol}
    out = begun(out, RECORD, record, resume)
    scored = run_pieces(plan, table, out, progress)
    tables, notes = aggregate(scored), _notes(scored)
    spent = costs(scored)
    page = Page(plan, tables, notes, table, [done.n_genes for done in scored], spent)
    for name in TABLES:
        write_csv(out / f"{name}.csv", getattr(tables, name))
    write_csv(out / COSTS, spent)
    write_text(out / MARKDOWN, page.markdown())
    write_text(out / PAGE, page.html())
    if fitted is not None:
        from scdfm.training import fit

        fit(table, config=fitted, out=Path(str(final)), resume=resume, progress=progress)
    return Benchmark(out, plan, tables, notes, page.text())


def final_config(plan: Plan, out: Path, resume: bool) -> Config:
    """The config of the run that is fitted on everything; ConfigError unless one model of the plan is fitted."""
    configs = [one.config for one in plan.contenders if one.config is not None]
    if len(configs) != 1:
        raise ConfigError(
            f"benchmark: --final {out} fits one model on every condition, but {len(configs)} of --models are fitted; name "
            "one preset, or fit it by hand (scdfm fit --split none)"
        )
    if not resume:
        new_folder(out)
    split = SplitConfig(kind="none", validation_fraction=configs[0].split.validation_fraction)
    return configs[0].model_copy(update={"seed": plan.seeds[0], "split": split})


def _said(split: SplitConfig | Split) -> dict[str, object]:
    """What makes a split the same one."""
    if isinstance(split, Split):
        return split.to_dict()
    return split.model_dump(mode="json", exclude={"fold", "validation_fraction"})


def _notes(scored: Sequence[Scored]) -> tuple[str, ...]:
    """Every note once, with the model and folds it is about."""
    where: dict[tuple[str, str], list[int]] = {}
    for done in scored:
        for note in done.notes:
            where.setdefault((done.piece.name, note), []).append(done.piece.fold)
    return tuple(
        f"{name}, fold{'s' * (len(set(folds)) > 1)} {', '.join(map(str, sorted(set(folds))))}: {note}"
        for (name, note), folds in where.items()
    )
