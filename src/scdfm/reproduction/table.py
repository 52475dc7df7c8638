"""The end of a reproduction: what was published and what was found here, in one table."""

from __future__ import annotations

import math
from typing import Any, Final

import pandas as pd

from scdfm.benchmarking import Tables
from scdfm.datasets import published
from scdfm.datasets.published import PUBLISHED_METRICS
from scdfm.reproduction.experiments import Experiment

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
        for model, found in summary.groupby("model", sort=False):
            by_metric = found.set_index("metric")
            rows += [(part, HERE, model, name, *_found(by_metric, name)) for name in PUBLISHED_METRICS]
    return pd.DataFrame(rows, columns=["part", "source", "model", "metric", "value", "low", "high"])


def _found(by_metric: pd.DataFrame, name: str) -> tuple[float, float, float]:
    """Mean and interval of a published column: cell-eval's where the model has it."""
    found = by_metric[["mean", "low", "high"]].astype(float).T.to_dict("list")
    for own in NAMES.get(name, (name,)):
        if own in found and not math.isnan(found[own][0]):
            mean, low, high = found[own]
            return mean, low, high
    return float("nan"), float("nan"), float("nan")


def markdown(table: pd.DataFrame) -> str:
    """The table of `beside_published` as Markdown, one section a part."""
    sections = []
    for part, rows in table.groupby("part", sort=False):
        lines = [
            f"### {part}", "", "| source | model | " + " | ".join(HEADS.values()) + " |", "|---" * (2 + len(HEADS)) + "|",
        ]  # fmt: skip
        for (source, model), found in rows.groupby(["source", "model"], sort=False):
            by_metric = found.set_index("metric")
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
