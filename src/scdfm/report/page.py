"""The page: what stands where, as plain values that the template only has to place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from scdfm.plots import model_colours
from scdfm.report.figures import Illustration
from scdfm.report.labels import MEANINGS, MODELS, number, title
from scdfm.report.results import Block, MetricResult, Verdict
from scdfm.report.shell import HOME, Fact, render
from scdfm.report.tables import ScoreTable


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
        return [
            *self.metric_panels,
            *self.overview,
            *(item for _, items in self.close_ups for item in items),
            *single,
        ]


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
    sizes = own.groupby("condition", sort=False)["n_cells"].first()
    return [
        ConditionRow(
            str(name),
            int(sizes[name]),
            [
                _sortable(float(values.get((name, metric), math.nan)), scores.decimals[metric])
                for metric in scores.metrics
            ],
        )
        for name in sizes.index
    ]


def _sortable(value: float, places: int) -> tuple[str, str]:
    return ("" if math.isnan(value) else repr(value)), number(value, places)


def html(page: Page) -> str:
    """The page as one self-contained HTML file."""
    return render((HOME, "report.html"), {"page": page}, script=(HOME, "script.js"))
