"""Scores of groups of conditions: by the targets seen in training, by effect size, by number of cells."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from scdfm.evaluation import stratified
from scdfm.evaluation.vcc2026.score import ALL
from scdfm.report.standing import Standing
from scdfm.report.words import heading


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


SHOWN = ("l2", "pearson_delta", "ds", "pearson_delta_hat", "energy")
"""Metrics of the tables of groups, as far as they were scored; else the first five of the table."""
WAYS = {
    "targets": ("By targets seen in training", "targets"),
    "effect": ("By size of the real effect", "size of effect"),
    "cells": ("By number of real cells", "number of cells"),
}
FEWEST = 6
"""Conditions that thirds make sense for."""


def blocks(table: pd.DataFrame, model: str, stands: Sequence[Standing], seed: int = 0) -> list[Block]:
    """Every grouping that `table` (as `evaluate` gave it, with its attrs) allows."""
    n = table.loc[table["model"] == model, "condition"].nunique()
    known = {
        "targets": "training_conditions" in table.attrs,
        "effect": "effect_size" in table.attrs,
        "cells": True,
    }
    by_condition = set(table.loc[table["condition"] != ALL, "metric"])
    scored = {standing.metric: standing for standing in stands if standing.metric in by_condition}
    shown = [scored[metric] for metric in SHOWN if metric in scored] or list(scored.values())[:5]
    return [
        Block(
            heading_of,
            head,
            [heading(standing.metric) for standing in shown],
            _groups(table, by, model, shown, seed),
        )
        for by, (heading_of, head) in WAYS.items()
        if known[by] and (by == "targets" or n >= FEWEST)
    ]


def _groups(table: pd.DataFrame, by: str, model: str, shown: Sequence[Standing], seed: int) -> list[Group]:
    part = table[table["metric"].isin([standing.metric for standing in shown])]
    part.attrs = table.attrs
    summary = stratified(part, by, seed=seed)
    groups = []
    for stratum, rows in summary.groupby("stratum", sort=False):
        size = int((rows["n"] + rows["n_undefined"]).max())
        means = {
            (str(name), str(metric)): float(mean)
            for name, metric, mean in rows[["model", "metric", "mean"]].to_numpy()
        }
        groups.append(
            Group(_named(str(stratum)), size, [_part(means, model, standing) for standing in shown])
        )
    return groups


def _named(stratum: str) -> str:
    """A stratum's name for readers: "1 low effect" is the low third."""
    third = re.fullmatch(r"\d (low|middle|high) \w+", stratum)
    return f"{third[1]} third" if third else stratum


def _part(means: Mapping[tuple[str, str], float], model: str, standing: Standing) -> Part:
    own = standing.written(means[model, standing.metric])
    if standing.baseline is None:
        return Part(own, "")
    return Part(own, f"{standing.baseline} {standing.written(means[standing.baseline, standing.metric])}")
