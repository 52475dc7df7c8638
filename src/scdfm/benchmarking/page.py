"""A benchmark for readers: Markdown, a terminal's text, and one self-contained HTML page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from scdfm.benchmarking.plan import Contender, Plan
from scdfm.benchmarking.tables import ALL, Tables, cost_markdown, cost_rows, cost_text, is_prior
from scdfm.config import SplitConfig
from scdfm.data import CellTable, Split
from scdfm.evaluation import PRIOR
from scdfm.evaluation.comparison import OUTCOMES, Comparison, comparisons
from scdfm.plots import model_colours
from scdfm.report.figures import Illustration, metric_panels
from scdfm.report.labels import MEANINGS, MODELS, count, heading, number, title
from scdfm.report.results import tally
from scdfm.report.shell import Fact, provenance, render
from scdfm.report.tables import ScoreTable, markdown, plain, score_table

EXPLAINED = (
    "Mean over folds of the mean over test conditions (of the mean over seeds), with the 95 % interval of that mean: "
    "bootstrap over conditions, which keeps a condition that several folds test together."
)


@dataclass(frozen=True)
class Part:
    """The tables of one part: all conditions, singles, doubles."""

    name: str
    n_conditions: int
    scores: ScoreTable
    gains: Sequence[Comparison]


@dataclass(frozen=True)
class Page:
    """What a benchmark says to a reader."""

    plan: Plan
    tables: Tables
    notes: Sequence[str]
    cells: CellTable
    n_genes: Sequence[int]
    """Scored genes of each fold."""
    spent: pd.DataFrame
    """What models cost (`tables.costs`)."""

    @cached_property
    def parts(self) -> list[Part]:
        """Every part, `all` first."""
        summary, gaps = self.tables.summary, self.tables.differences
        return [
            Part(
                str(name),
                int((part["n"] + part["n_undefined"]).max()),
                score_table(part),
                comparisons(gaps[gaps["part"] == name]),
            )
            for name, part in summary.groupby("part", sort=False)
        ]

    @property
    def verdicts(self) -> list[str]:
        """A sentence for each contender."""
        sentences = [verdict(name.name, self.parts[0].gains) for name in self.plan.contenders]
        return sentences or ["Baselines and ceiling, no model."]

    @property
    def colours(self) -> dict[str, str]:
        """The colour of each model, as in the figures."""
        return model_colours(self.parts[0].scores.models)

    @property
    def facts(self) -> list[str]:
        """The size of the benchmark."""
        scores = self.tables.scores
        least, most = min(self.n_genes), max(self.n_genes)
        seeds = [count(len(self.plan.seeds), "seed")] if self.plan.contenders else []
        return [
            f"{self.plan.split.kind} split", count(len(self.plan.folds), "fold"), *seeds,
            count(scores["condition"].nunique(), "test condition"),
            count(most, "gene") if least == most else f"{least:,} to {most:,} genes",
            f"protocol {self.plan.protocol}",
        ]  # fmt: skip

    @property
    def has_prior(self) -> bool:
        """Whether the tables hold what some model predicts before training."""
        return any(is_prior(name) for name in self.parts[0].scores.models)

    @property
    def panels(self) -> list[Illustration]:
        """A picture of each metric over all conditions."""
        summary = self.tables.summary
        return metric_panels(summary[summary["part"] == ALL])

    @property
    def glossary(self) -> list[tuple[str, str]]:
        """The metrics in words."""
        return [(title(name), MEANINGS[name]) for name in self.parts[0].scores.metrics if name in MEANINGS]

    @property
    def models(self) -> list[tuple[str, str]]:
        """The references in words."""
        names = [PRIOR if is_prior(name) else name for name in self.parts[0].scores.models]
        return [(name, MODELS[name]) for name in dict.fromkeys(names) if name in MODELS]

    @property
    def by_fold(self) -> tuple[str, list[int], dict[str, list[str]]]:
        """The first metric of each model fold by fold: its heading, the folds, and rows of text."""
        scores, metric = self.tables.scores, self.parts[0].scores.metrics[0]
        own = scores[(scores["beside"] == "") & (scores["metric"] == metric)]
        means = own.groupby(["model", "fold"])["value"].mean()
        places, folds = self.parts[0].scores.decimals[metric], list(self.plan.folds)
        rows = {
            model: [number(float(means.get((model, fold), float("nan"))), places) for fold in folds]
            for model in self.parts[0].scores.models
        }
        return heading(metric), folds, rows

    @property
    def costs(self) -> list[list[str]]:
        """What models cost, where commands are among them: headings, then a row for each."""
        return cost_rows(self.spent)

    @property
    def provenance(self) -> list[Fact]:
        """Where the numbers come from."""
        given = {
            "screen": {"path": self.cells.source, "digest": self.cells.digest(), "cells": self.cells.n},
            "split": said(self.plan.split),
            "folds": self.plan.folds, "seeds": self.plan.seeds,
            "model": {model.name: described(model) for model in self.plan.contenders},
        }  # fmt: skip
        return provenance(given, {}, None)

    def html(self) -> str:
        """One file without script or any other source; every name in it is escaped."""
        return render(("scdfm.benchmarking", "benchmark.html"), {"page": self, "explained": EXPLAINED})

    def markdown(self) -> str:
        """All tables, with intervals."""
        summary = self.tables.summary
        lines = ["# scdfm benchmark", "", *self.verdicts, "", ", ".join(self.facts) + ".", "", EXPLAINED, ""]
        for part in self.parts:
            if len(self.parts) > 1:
                lines += [f"## {part.name} ({part.n_conditions} conditions, counted in every fold)", ""]
            lines.append(markdown(summary[summary["part"] == part.name], intervals=True))
            if part.gains:
                lines += ["| model | metric | against | gain (95 % interval) | |", "|---|---|---|---:|---|"]
                lines += [_gain_row(gain, part.scores.decimals[gain.metric]) for gain in part.gains]
                lines.append("")
        if self.costs:
            lines += ["## Cost", "", cost_markdown(self.spent)]
        lines += [f"- {note.replace('|', chr(92) + '|')}" for note in self.notes]
        return "\n".join(lines).rstrip() + "\n"

    def text(self) -> str:
        """For a terminal: the table of each part, and a sentence for each model."""
        summary, blocks = self.tables.summary, []
        for part in self.parts:
            head = f"{part.name}\n" if len(self.parts) > 1 else ""
            blocks.append(head + plain(summary[summary["part"] == part.name]))
        blocks += [cost_text(self.spent)] if self.costs else []
        return "\n".join([*blocks, *self.notes, *self.verdicts])


def _gain_row(gain: Comparison, places: int) -> str:
    """A row of the Markdown table of gains."""
    value, low, high = (number(x, places) for x in (gain.gain, gain.low, gain.high))
    return (
        f"| {gain.model} | {heading(gain.metric)} | {gain.baseline} | {value} ({low} to {high}) | "
        f"{OUTCOMES[gain.outcome]} |"
    )


def verdict(model: str, gains: Sequence[Comparison]) -> str:
    """On how many metrics `model` beats the best baseline, and its prior where it has one."""
    own = [gain for gain in gains if gain.model == model and not is_prior(gain.baseline)]
    if not own:
        return f"{model}: no metric is defined for it and for a baseline."
    sentences = [f"{model} against the best baseline of each of {tally(own)}"]
    if prior := [gain for gain in gains if gain.model == model and is_prior(gain.baseline)]:
        sentences.append(f"Beside the prior alone, on {tally(prior)}")
    return " ".join(sentences)


def said(split: SplitConfig | Split) -> dict[str, Any]:
    """A split's kind and what decides it."""
    if isinstance(split, Split):
        return {"kind": split.kind, "digest": split.digest}
    return split.model_dump(exclude={"fold", "validation_fraction"}, exclude_none=True)


def described(model: Contender) -> str:
    """What a contender is."""
    if model.command is not None:
        return f"command {shlex.join(model.command)}" if model.peer is None else f"peer {model.peer.name}"
    if model.config is None:
        return f"predictions {model.predictions}"
    return f"fitted, {model.config.training.max_steps:,} steps"
