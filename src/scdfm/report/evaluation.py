"""Evaluate and leave everything in a folder: scores, summary, the report as one HTML file, figures as PNG and SVG.

`Page` is what stands where in the report, as plain values that the template only has to place.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from scdfm.data import CellTable
from scdfm.data.conditions import CONTROL
from scdfm.errors import DataError
from scdfm.evaluation import Counts, evaluate, evaluate_against, scaled, summarise
from scdfm.evaluation.alignment import Cells
from scdfm.evaluation.evaluate import Protocol
from scdfm.evaluation.summary import models_of
from scdfm.evaluation.vcc2026.score import ALL
from scdfm.files import made, write_csv, write_text
from scdfm.plots import model_colours
from scdfm.report import figures
from scdfm.report.figures import Illustration, Populations
from scdfm.report.labels import MEANINGS, MODELS, PAPER_NOTE, count, higher_is_better, number, title
from scdfm.report.results import Block, MetricResult, Verdict, blocks, headline, metric_results, positions, verdict
from scdfm.report.shell import HOME, Fact, render
from scdfm.report.shell import provenance as facts_of
from scdfm.report.tables import ScoreTable, plain, scaled_summary, score_table

if TYPE_CHECKING:
    from scdfm.run import Run

COLUMNS = ("model", "condition", "metric", "value", "n_cells")
VIOLINS = 8
"""Genes shown as violins for each condition."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_files` found: `path` of the page, `text` for a terminal, the long `table` and its `summary`."""

    path: Path
    text: str
    table: pd.DataFrame
    summary: pd.DataFrame


def evaluate_files(
    predicted: Cells | Counts,
    real: CellTable | Counts,
    out_dir: str | Path,
    *,
    training: Run | pd.DataFrame | None = None,
    protocol: Protocol = "scdfm",
    name: str = "model",
    against: Cells | None = None,
    against_name: str = "other",
    metrics: Iterable[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    seed: int = 0,
    predicted_key: str | None = None,
    backed: bool | None = None,
    progress: bool = False,
) -> Evaluation:
    """Score `predicted` against `real` and write `scores.csv`, `summary.csv`, `report.html` and `figures/`.

    predicted: path, AnnData or CellTable, with its control under the same label as `real` and its conditions under
        the same obs column, or under `predicted_key`. Protocol vcc2026 takes Counts (`read_counts`) of both, writes
        `scaled.csv` too, and draws no populations. training: the run that predicted (adds its curves and provenance), a
        table of means, or None. against: another prediction, called `against_name`, that it is compared with pair by
        pair. provenance: further lines for the report, such as the command. The other options: `evaluate`.
    """
    columns: dict[str, Any] = {}
    if isinstance(real, CellTable):
        columns = {"control": real.control, "perturbation_key": real.perturbation_key}
    given: dict[str, Any] = {
        "training": training, "protocol": protocol, "metrics": metrics, "name": name, "seed": seed,
        "predicted_key": predicted_key, "backed": backed, "progress": progress, **columns,
    }  # fmt: skip
    seen: list[Populations] = []
    given["on_cells"] = lambda pair, tests: seen.append(Populations.of(pair, tests))
    if against is None:
        table = evaluate(predicted, real, **given)
    else:
        table = evaluate_against(predicted, against, real, against_name=against_name, **given)
    rival = None if against is None else against_name
    summary = summarise(table, seed=seed)
    files, text = {"scores.csv": table, "summary.csv": summary}, plain(summary)
    if protocol == "vcc2026":
        files["scaled.csv"] = scaled(table)
        text += f"\non the scale of the challenge (0 mean response, 1 replicate):\n{plain(scaled_summary(table))}"
    out_dir = made(Path(out_dir))
    for file, frame in files.items():
        write_csv(out_dir / file, frame)
    run = None if training is None or isinstance(training, pd.DataFrame) else training
    lines = dict(provenance or {})
    if isinstance(real, CellTable):
        lines["real cells"] = {"path": real.source, "digest": real.digest()}
    page = compose(table, name, seen[0] if seen else None, run, lines, seed, rival)
    verdicts = [one for one in (page.verdict, page.duel_verdict) if one is not None]
    said = "\n".join(textwrap.fill(f"{one.sentence} {one.trained}".rstrip(), 100) for one in verdicts)
    return Evaluation(page.write(out_dir), f"{text}\n{said}", table, summary)


def write(
    out_dir: str | Path,
    table: pd.DataFrame,
    populations: Populations | None = None,
    *,
    run: Run | None = None,
    model: str | None = None,
    against: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """Write `report.html` and `figures/` into `out_dir` (made if need be); returns the path of the page.

    table: what `scdfm.evaluate` gave (long: model, condition, metric, value, n_cells). populations: the cells that were
        scored; without them the report holds scores alone.
    run: the run that predicted; adds training curves and its provenance.
    model: the one of `table` that the report is about; needed where the table holds several besides references.
    against: another model of `table` that it is compared with, pair by pair.
    provenance: further lines on where the numbers come from. seed: of the intervals and of the cells drawn.

    Raises DataError where `table` lacks a column or `model`.
    """
    model = subject(table, model)
    page = compose(table, model, populations, run, dict(provenance or {}), seed, against)
    return page.write(Path(out_dir))


def subject(table: pd.DataFrame, model: str | None) -> str:
    """The model a report on `table` is about; DataError where that is not one."""
    lacking = [name for name in COLUMNS if name not in table.columns]
    if lacking:
        raise DataError(
            f"table of scores: column '{lacking[0]}' is missing, expected {', '.join(COLUMNS)}; give what evaluate returned"
        )
    models = [str(name) for name in table["model"].unique()]
    candidates = models_of(table) if model is None else [model]
    if len(candidates) != 1 or candidates[0] not in models:
        names = ", ".join(models) or "none"
        raise DataError(f"table of scores: expected one model to report on, found {names}; name it with model=")
    return candidates[0]


def compose(
    table: pd.DataFrame,
    model: str,
    populations: Populations | None,
    run: Run | None,
    given: Mapping[str, Any],
    seed: int,
    against: str | None = None,
) -> Page:
    """The page about `model`, compared with `against` if named: every number, word and figure of it."""
    summary = summarise(table, seed=seed)
    results = metric_results(table, model, seed)
    duel = [] if against is None else metric_results(table, model, seed, against)
    scores = score_table(summary)
    leading = headline(results)
    metric = leading.metric if leading else scores.metrics[0]
    order = best_to_worst(table, model, metric)
    overview = [figures.track(positions(table), model)]
    if len(order):
        overview.append(figures.ranked(table, metric, model, leading.baseline if leading else None))
    close_ups: list[tuple[str, list[Illustration]]] = []
    heat_map = None
    if populations is not None and len(order):
        conditions = {rank: str(order.index[at]) for rank, at in places(len(order)).items()}
        overview.append(figures.sizes(populations, list(conditions.values())))
        close_ups = _close_ups(populations, conditions, order, metric, scores.decimals[metric], seed)
        heat_map = figures.heat(populations, [str(name) for name in order.index])
    log = run.log if run is not None else pd.DataFrame()
    return Page(
        model=model,
        verdict=verdict(results, model, _n_trained(run, table)),
        facts=_facts(table, model, populations),
        notes=[
            *([PAPER_NOTE] if table.attrs.get("protocol") == "paper" else []),
            *map(str, table.attrs.get("notes", [])),
            *_beyond(run, table.loc[table["model"] == model, "condition"]),
        ],
        scores=scores,
        scaled=score_table(scaled_summary(table)) if table.attrs.get("protocol") == "vcc2026" else None,
        results=results,
        duel=duel,
        duel_verdict=verdict(duel, model) if duel else None,
        strata=blocks(table, model, results),
        condition_rows=condition_rows(table, scores, model),
        metric_panels=figures.metric_panels(summary),
        overview=overview,
        headline=title(metric),
        close_ups=close_ups,
        heat_map=heat_map,
        training=figures.curves(log) if len(log) else None,
        provenance=facts_of(given, table.attrs.get("provenance", {}), run),
    )


def _n_trained(run: Run | None, table: pd.DataFrame) -> int:
    """How many of the scored conditions `run` knows from their own cells."""
    return 0 if run is None else len(set(table["condition"].astype(str)).intersection(run.known))


def _beyond(run: Run | None, conditions: pd.Series) -> list[str]:
    """What of the scored conditions is an extrapolation for `run`, as one note."""
    if run is None:
        return []
    from scdfm.run.extrapolation import extrapolated, told

    note = told(extrapolated(run, [str(name) for name in conditions.unique()]))
    return [f"{note}."] if note else []


def best_to_worst(table: pd.DataFrame, model: str, metric: str) -> pd.Series[float]:
    """Defined values of `metric` by condition, best first."""
    part = table[(table["model"] == model) & (table["metric"] == metric)].set_index("condition")["value"].dropna()
    return part.sort_values(ascending=not higher_is_better(metric), kind="stable")


def places(n: int) -> dict[str, int]:
    """Where the best, the median and the worst of `n` ordered conditions stand; each condition once."""
    ranks = {"best": 0, "median": (n - 1) // 2, "worst": n - 1}
    return {rank: at for rank, at in ranks.items() if rank == "best" or (at != 0 and (rank == "worst" or at != n - 1))}


def _close_ups(
    populations: Populations,
    conditions: Mapping[str, str],
    order: pd.Series[float],
    metric: str,
    decimals: int,
    seed: int,
) -> list[tuple[str, list[Illustration]]]:
    plane = populations.plane(seed)
    responders = populations.responders(list(conditions.values()), VIOLINS)
    return [
        (
            f"{rank.capitalize()}: {condition} ({title(metric)} {number(float(order[condition]), decimals)})",
            figures.close_up(populations, condition, rank, plane, responders[condition]),
        )
        for rank, condition in conditions.items()
    ]


def _facts(table: pd.DataFrame, model: str, populations: Populations | None) -> Sequence[tuple[str, str]]:
    """The size of what was scored, in a line."""
    named = table.loc[table["model"] == model, "condition"]
    n_conditions = named[named != ALL].nunique()
    facts = [count(n_conditions, "condition")]
    if populations is not None:
        n_real, n_predicted = (sum(n) for n in zip(*map(populations.n_cells, populations.conditions), strict=True))
        n_control = populations.real.n_cells(CONTROL)
        facts += [
            count(len(populations.real.genes), "gene"), count(n_real, "real cell"), count(n_control, "control cell"),
            count(n_predicted, "predicted cell"),
        ]  # fmt: skip
    facts.append(f"protocol {table.attrs.get('protocol', 'unknown')}")
    return [tuple(fact.split(" ", 1)) for fact in facts]  # type: ignore[misc]


@dataclass(frozen=True)
class Page:
    """Everything a report says. Sections whose content is empty or None are left out."""

    model: str
    verdict: Verdict
    facts: Sequence[tuple[str, str]]
    notes: Sequence[str]
    scores: ScoreTable
    scaled: ScoreTable | None
    results: Sequence[MetricResult]
    duel: Sequence[MetricResult]
    duel_verdict: Verdict | None
    strata: Sequence[Block]
    condition_rows: Sequence[ConditionRow]
    metric_panels: Sequence[Illustration]
    overview: Sequence[Illustration]
    headline: str
    close_ups: Sequence[tuple[str, Sequence[Illustration]]]
    heat_map: Illustration | None
    training: Illustration | None
    provenance: Sequence[Fact]

    def write(self, folder: Path) -> Path:
        """Leave `report.html`, one self-contained file, and `figures/` in `folder`; returns the path of the page."""
        pictures = made(folder / "figures")
        for illustration in self.illustrations:
            illustration.write(pictures)
        path = folder / "report.html"
        write_text(path, render((HOME, "report.html"), {"page": self}, script=(HOME, "script.js")))
        return path

    @property
    def colours(self) -> dict[str, str]:
        """The colour of each model, as in the figures."""
        return model_colours([self.model, *self.scores.models])

    @property
    def has_prior(self) -> bool:
        """Whether the table holds what the run predicts before training."""
        return any(result.prior is not None for result in self.results)

    @property
    def sections(self) -> list[tuple[str, str]]:
        """Anchors and names of the sections that are there."""
        sections = [
            ("scores", "Scores", True), ("standing", "Baselines and ceiling", True),
            ("duel", "The other model", bool(self.duel)), ("conditions", "Conditions", True),
            ("populations", "Populations", bool(self.close_ups)), ("training", "Training", self.training is not None),
            ("provenance", "Provenance", True), ("glossary", "Metrics", True),
        ]  # fmt: skip
        return [(anchor, name) for anchor, name, there in sections if there]

    @property
    def mute(self) -> dict[str, str]:
        """The metrics that cannot tell anything on this screen, and why."""
        return {row.metric: row.mute for row in self.results if row.mute}

    @property
    def glossary(self) -> list[tuple[str, str]]:
        """The metrics of this page in words."""
        return [(title(metric), MEANINGS[metric]) for metric in self.scores.metrics if metric in MEANINGS]

    @property
    def models(self) -> list[tuple[str, str]]:
        """The references of this page in words."""
        return [(model, MODELS[model]) for model in self.scores.models if model in MODELS]

    @property
    def illustrations(self) -> list[Illustration]:
        """Every figure of the page."""
        single = [item for item in (self.heat_map, self.training) if item is not None]
        return [*self.metric_panels, *self.overview, *(item for _, items in self.close_ups for item in items), *single]


@dataclass(frozen=True)
class ConditionRow:
    """One condition in the table of all: `cells` holds (number for sorting, text) of each metric."""

    name: str
    n_cells: int
    cells: Sequence[tuple[str, str]]


def condition_rows(table: pd.DataFrame, scores: ScoreTable, model: str) -> list[ConditionRow]:
    """Every condition's scores of `model`, in the order of the table."""
    own = table[table["model"] == model]
    values = dict(zip(zip(own["condition"], own["metric"], strict=True), own["value"], strict=True))
    rows = []
    for name, n_cells in own.groupby("condition", sort=False)["n_cells"].first().items():
        row = [(float(values.get((name, metric), math.nan)), scores.decimals[metric]) for metric in scores.metrics]
        cells = [("" if math.isnan(value) else repr(value), number(value, places)) for value, places in row]
        rows.append(ConditionRow(str(name), int(n_cells), cells))
    return rows
