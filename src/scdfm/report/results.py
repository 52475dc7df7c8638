"""How a model does on each metric and in each group of conditions, and the verdict that follows from the numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from scdfm.evaluation import PRIOR, calibration, differences, harm, position, stratified
from scdfm.evaluation.comparison import OUTCOMES, Comparison, Outcome, by_outcome, comparisons
from scdfm.evaluation.summary import RIVALS, once
from scdfm.evaluation.vcc2026.score import ALL
from scdfm.report.labels import count, heading, number, percent, title
from scdfm.report.tables import decimals

HEADLINES = ("l2", "mse", "mae", "pearson_delta")
"""Metrics that a verdict speaks of: the first of these that is defined, else the first that is."""
ALLOWS_SPREAD = "mse_corrected"
"""Takes off the more noise the more predicted cells scatter: of evenly drawn ones, whose means have hardly any, it would
praise training for wider populations alone."""
SHOWN = ("l2", "pearson_delta", "ds", "pearson_delta_hat", "energy")
"""Metrics of the tables of groups, as far as they were scored; else the first five of the table."""
WAYS = {
    "targets": ("By targets seen in training", "targets"),
    "effect": ("By size of the real effect", "size of effect"),
    "cells": ("By number of real cells", "number of cells"),
}
FEWEST = 6
"""Conditions that thirds make sense for."""


@dataclass(frozen=True)
class MetricResult:
    """How the model stands on one metric.

    `beside`: the comparison with the best baseline, None where the table has none; `own`, `other`: means of the model
    and of that baseline over the `n` conditions where both are defined; `position`: 0 worst acceptable, 1 ceiling;
    `harmed`: share of conditions where the model is worse than no change; `alone`: no other baseline has a value;
    `prior`: the comparison with what the same run predicts before training, None where the table has no such row.
    `resolved`: share of the metric's range that its positive control goes; `mute`: why the metric cannot tell here.
    `chosen`: the other row is a model that the reader named.
    """

    metric: str
    decimals: int
    beside: Comparison | None = None
    own: float = math.nan
    other: float = math.nan
    n: int = 0
    position: float = math.nan
    harmed: float = math.nan
    alone: bool = False
    prior: Comparison | None = None
    resolved: float = math.nan
    mute: str = ""
    chosen: bool = False

    @property
    def outcome(self) -> Outcome:
        """Better or worse only where the whole interval says so."""
        return "undefined" if self.beside is None else self.beside.outcome

    @property
    def baseline(self) -> str | None:
        """The row that the model is compared with."""
        return None if self.beside is None else self.beside.baseline

    def written(self, value: float) -> str:
        """`value` with this metric's decimals."""
        return number(value, self.decimals)


def metric_results(table: pd.DataFrame, model: str, seed: int = 0, rival: str | None = None) -> list[MetricResult]:
    """How `model` does on every metric of a long table of scores, in the table's order.

    rival: another model of the table that takes the place of the best baseline.
    """
    table = once(table)
    beside = _of_model(differences(table, seed=seed, against=rival), model)
    with_prior = rival is None and PRIOR in set(table["model"])
    prior = _of_model(differences(table, seed=seed, against=PRIOR), model) if with_prior else {}
    shares, ways = _column(harm(table), model, "share"), _column(positions(table), model, "position")
    calibrated = calibration(table, seed=seed).set_index("metric")
    results = []
    for metric in table.loc[table["model"] == model, "metric"].unique():
        wide = table[table["metric"] == metric].pivot_table(
            index="condition", columns="model", values="value", sort=False, dropna=False
        )
        fields: dict[str, Any] = {"prior": prior.get(metric)}
        if metric in calibrated.index:
            row = calibrated.loc[metric]
            fields |= {"resolved": float(row["resolved"]), "mute": str(row["reason"])}
        own = wide[model].dropna()
        if (comparison := beside.get(metric)) is not None:
            common = wide[[model, comparison.baseline]].dropna()
            own = common[model]
            fields |= {
                "beside": comparison, "other": float(common[comparison.baseline].mean()), "chosen": rival is not None,
                "position": ways.get(metric, math.nan), "harmed": shares.get(metric, math.nan),
                "alone": _rivals(wide) == 1,
            }  # fmt: skip
        n = len(own) if comparison is None else comparison.n
        results.append(MetricResult(metric, decimals(wide.mean()), own=float(own.mean()), n=n, **fields))
    return results


def _of_model(differences: pd.DataFrame, model: str) -> dict[str, Comparison]:
    """The comparisons of `model` by metric."""
    return {one.metric: one for one in comparisons(differences) if one.model == model}


def _column(table: pd.DataFrame, model: str, name: str) -> dict[str, float]:
    """A column of a table of models and metrics, by metric."""
    own = table[table["model"] == model]
    return {str(metric): float(value) for metric, value in zip(own["metric"], own[name], strict=True)}


def _rivals(wide: pd.DataFrame) -> int:
    """Baselines with a value on some condition, the mean response of protocol vcc2026 among them."""
    return sum(bool(wide[name].notna().any()) for name in RIVALS if name in wide)


def positions(table: pd.DataFrame) -> pd.DataFrame:
    """Columns model, metric, position: 0 at the worst acceptable score, 1 at the ceiling."""
    placed = position(table)
    return placed.assign(position=placed["percent"] / 100)[["model", "metric", "position"]]


def headline(results: Sequence[MetricResult]) -> MetricResult | None:
    """The metric that the verdict speaks of; None where nothing is defined."""
    by_metric = {result.metric: result for result in results if not math.isnan(result.own)}
    for metric in HEADLINES:
        if metric in by_metric:
            return by_metric[metric]
    return next(iter(by_metric.values()), None)


@dataclass(frozen=True)
class Verdict:
    """`sentence` for the top of the page, `tally` over all metrics, and the `outcome` that colours them.

    Where the table has the row `prior`, the sentence says what training added to it, and `trained` on which metrics.
    """

    sentence: str
    tally: str
    outcome: Outcome
    trained: str = ""


def verdict(results: Sequence[MetricResult], model: str, n_trained: int = 0) -> Verdict:
    """Judge `model` by its headline metric against the best baseline, and count the others.

    n_trained: how many of the scored conditions trained it.
    """
    first = headline(results)
    if first is None:
        return Verdict(f"No metric is defined for {model}: nothing can be said of it.", "", "undefined")
    rows = [result.beside for result in results if result.beside is not None]
    priors = [result.prior for result in results if result.prior is not None and result.metric != ALLOWS_SPREAD]
    against = f"{first.baseline} on" if first.chosen else "the best baseline of each of"
    known = f"This is no test of {model}: {n_trained} of the scored conditions trained it." if n_trained else ""
    return Verdict(
        " ".join(filter(None, [known, _sentence(first, model), _beside_prior(first)])),
        _counted(f"Against {against}", rows),
        first.outcome,
        _counted("What training added to it, over", priors),
    )


def tally(entries: Iterable[Comparison]) -> str:
    """On which metrics a model is better, not told apart, worse, or without an interval, in words."""
    parts = {outcome: [title(metric) for metric in metrics] for outcome, metrics in by_outcome(entries).items()}
    n = count(sum(map(len, parts.values())), "metric")
    said = [f"{OUTCOMES[outcome]} on {len(names)} ({', '.join(names)})" for outcome, names in parts.items()]
    return f"{n}: {'; '.join(said)}."


def _counted(start: str, entries: Iterable[Comparison]) -> str:
    """The tally of the metrics that have an interval, as a sentence that begins with `start`."""
    judged = [one for one in entries if one.outcome != "undefined"]
    return f"{start} {tally(judged)}" if judged else ""


def _sentence(result: MetricResult, model: str) -> str:
    on, metric, comparison = f"On {count(result.n, 'condition')}", title(result.metric), result.beside
    if comparison is None:
        return f"{on} {model} has a mean {metric} of {result.written(result.own)}, with no baseline to judge it by."
    values = f"{result.written(result.own)} against {result.written(result.other)}"
    best = f"the best baseline ({comparison.baseline})"
    if result.chosen or result.alone:
        best = comparison.baseline + ("" if result.chosen else ", the only baseline there is")
    words = {
        "better": f"is better than {best}",
        "worse": f"is worse than {best}" + ("" if result.chosen else ", which should be used instead"),
        "unclear": f"cannot be told apart from {best}",
        "undefined": f"cannot be compared with {best} on so few",
    }
    gain = f"paired gain {result.written(comparison.gain)}"
    if comparison.outcome != "undefined":
        gain += f", 95 % interval {result.written(comparison.low)} to {result.written(comparison.high)}"
    return f"{on} {model} {words[comparison.outcome]}: mean {metric} {values} ({gain}){_way(result.position, model)}."


def _beside_prior(result: MetricResult) -> str:
    """What training added on the headline metric, and whether that is clear."""
    comparison = result.prior
    if comparison is None:
        return ""
    if comparison.none:
        return "Beside the prior alone: no difference."
    words = {
        "better": "clear",
        "worse": "clear: the prior alone is better",
        "unclear": "not clear",
        "undefined": "too few conditions to tell",
    }
    gain = f"gain {result.written(comparison.gain)}"
    if comparison.outcome != "undefined":
        gain += f" (95 % interval {result.written(comparison.low)} to {result.written(comparison.high)})"
    return f"Beside the prior alone: {gain}, {words[comparison.outcome]}."


def _way(position: float, model: str) -> str:
    if math.isnan(position):
        return ""
    if position < 0:
        return f"; {model} lies below the worst acceptable score"
    if position >= 1:
        return f"; {model} reaches the ceiling"
    return f"; {model} is {percent(position)} of the way from the worst acceptable score to the ceiling"


@dataclass(frozen=True)
class Part:
    """One metric in one group: the model's mean, and the best baseline's over the same conditions."""

    text: str
    other: str


@dataclass(frozen=True)
class Group:
    """One group of conditions."""

    name: str
    n: int
    cells: Sequence[Part]


@dataclass(frozen=True)
class Block:
    """One way of grouping: a table of groups × metrics."""

    title: str
    head: str
    metrics: Sequence[str]
    rows: Sequence[Group]


def blocks(table: pd.DataFrame, model: str, results: Sequence[MetricResult]) -> list[Block]:
    """Every grouping that `table` (as `evaluate` gave it, with its attrs) allows."""
    n = table.loc[table["model"] == model, "condition"].nunique()
    available = {"targets": "training_conditions" in table.attrs, "effect": "effect_size" in table.attrs, "cells": True}
    by_condition = set(table.loc[table["condition"] != ALL, "metric"])
    scored = {result.metric: result for result in results if result.metric in by_condition}
    shown = [scored[metric] for metric in SHOWN if metric in scored] or list(scored.values())[:5]
    return [
        Block(heading_of, head, [heading(result.metric) for result in shown], _groups(table, by, model, shown))
        for by, (heading_of, head) in WAYS.items()
        if available[by] and (by == "targets" or n >= FEWEST)
    ]


def _groups(table: pd.DataFrame, by: str, model: str, shown: Sequence[MetricResult]) -> list[Group]:
    part = table[table["metric"].isin([result.metric for result in shown])]
    part.attrs = table.attrs
    summary = stratified(part, by)
    groups = []
    for stratum, rows in summary.groupby("stratum", sort=False):
        size = int((rows["n"] + rows["n_undefined"]).max())
        means = {
            (str(name), str(metric)): float(mean) for name, metric, mean in rows[["model", "metric", "mean"]].to_numpy()
        }
        groups.append(Group(_named(str(stratum)), size, [_part(means, model, result) for result in shown]))
    return groups


def _named(stratum: str) -> str:
    """A stratum's name for readers: "1 low effect" is the low third."""
    third = re.fullmatch(r"\d (low|middle|high) \w+", stratum)
    return f"{third[1]} third" if third else stratum


def _part(means: Mapping[tuple[str, str], float], model: str, result: MetricResult) -> Part:
    own = result.written(means[model, result.metric])
    if result.baseline is None:
        return Part(own, "")
    return Part(own, f"{result.baseline} {result.written(means[result.baseline, result.metric])}")
