"""The summary as a table: for a page, for Markdown, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from scdfm.evaluation.ceiling import CEILING, DUPLICATE
from scdfm.evaluation.metrics import NEUTRAL
from scdfm.evaluation.vcc2026.score import RESERVED, scaled
from scdfm.report.labels import heading, higher_is_better, number, title

SEES_TEST_CELLS = (CEILING, DUPLICATE, *RESERVED)
"""Models that are made of the real test cells: yardsticks, never candidates for best."""


@dataclass(frozen=True)
class Cell:
    """One number of the table."""

    mean: str
    interval: str
    undefined: int
    best: bool


@dataclass(frozen=True)
class ScoreTable:
    """Rows of models, columns of metrics; `decimals` of each metric's numbers."""

    models: list[str]
    metrics: list[str]
    cells: dict[tuple[str, str], Cell]
    decimals: dict[str, int]

    @property
    def heads(self) -> dict[str, str]:
        """The name of each metric with the direction of better."""
        return {metric: heading(metric) for metric in self.metrics}


def score_table(summary: pd.DataFrame, metrics: Sequence[str] | None = None) -> ScoreTable:
    """`summary` (columns model, metric, mean, low, high, n, n_undefined) as text; the best of each metric marked.

    Each metric is written with as many decimals as give its typical value four digits. Best is the best mean
    among models that see no test cells and are defined on the most conditions: a mean over fewer, perhaps
    easier ones is not compared. Equal texts are equally best.
    """
    models = list(dict.fromkeys(summary["model"]))
    metrics = list(dict.fromkeys(summary["metric"]) if metrics is None else metrics)
    cells: dict[tuple[str, str], Cell] = {}
    places: dict[str, int] = {}
    for metric in metrics:
        part = summary[summary["metric"] == metric].set_index("model")
        places[metric] = decimals(part["mean"])
        texts = {str(model): number(float(mean), places[metric]) for model, mean in part["mean"].items()}
        best = _best(part, metric)
        winning = {texts[name] for name in best[:1]}
        for model, row in part.iterrows():
            low, high = float(row["low"]), float(row["high"])
            bounded = math.isfinite(low) and math.isfinite(high)
            cells[str(model), metric] = Cell(
                mean=texts[str(model)],
                interval=f"{number(low, places[metric])} to {number(high, places[metric])}" if bounded else "",
                undefined=int(row["n_undefined"]),
                best=model in best and texts[str(model)] in winning,
            )
    return ScoreTable(models, metrics, cells, places)


def scaled_summary(table: pd.DataFrame) -> pd.DataFrame:
    """The scaled scores of a table of protocol vcc2026 as a summary, under the titles of the metrics: more is better."""
    scores = scaled(table)
    names = scores["metric"].map(title)
    return pd.DataFrame(
        {"model": scores["model"], "metric": names, "mean": scores["scaled"], "low": math.nan, "high": math.nan,
         "n": 1, "n_undefined": scores["scaled"].isna().astype(int)}
    )  # fmt: skip


def decimals(values: pd.Series[float]) -> int:
    """Decimals that give the median magnitude of `values` four digits."""
    sizes = values.abs()
    sizes = sizes[(sizes > 0) & sizes.notna()]
    return 3 if sizes.empty else max(0, min(6, 3 - math.floor(math.log10(sizes.median()))))


def _best(part: pd.DataFrame, metric: str) -> list[str]:
    """Models that may be best on `metric`, the best first; none without a rival, or without better and worse."""
    if metric in NEUTRAL:
        return []
    candidates = part.drop(index=[name for name in SEES_TEST_CELLS if name in part.index]).dropna(subset="mean")
    if len(candidates) < 2:
        return []
    candidates = candidates[candidates["n"] == candidates["n"].max()]
    return [str(name) for name in candidates["mean"].sort_values(ascending=not higher_is_better(metric)).index]


def markdown(summary: pd.DataFrame, metrics: Sequence[str] | None = None, intervals: bool = False) -> str:
    """`summary` as a Markdown table: best in bold, the number of undefined conditions in brackets."""
    table = score_table(summary, metrics)
    rows = [["model", *table.heads.values()]]
    for model in table.models:
        cells = [table.cells.get((model, metric)) for metric in table.metrics]
        rows.append([model, *(_in_markdown(cell, intervals) for cell in cells)])
    return piped(rows, "|---|" + "---:|" * len(table.metrics))


def piped(rows: Sequence[Sequence[str]], rule: str) -> str:
    """Rows of a Markdown table, the first of headings, with `rule` below it."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows]
    return "".join([*lines[:1], f"{rule}\n", *lines[1:]])


def _in_markdown(cell: Cell | None, intervals: bool) -> str:
    if cell is None:
        return ""
    text = f"**{cell.mean}**" if cell.best else cell.mean
    if intervals and cell.interval:
        text += f" ({cell.interval})"
    return text + _undefined(cell)


def _undefined(cell: Cell) -> str:
    """How many conditions have no value; where none has one, the dash says it."""
    return f" [{cell.undefined} undefined]" if cell.undefined and cell.mean != number(math.nan, 0) else ""


def plain(summary: pd.DataFrame, metrics: Sequence[str] | None = None, width: int = 100) -> str:
    """`summary` for a terminal: aligned columns, `*` at the best, folded into blocks of at most `width` columns."""
    table = score_table(summary, metrics)
    names = ["", *table.models]
    margin = max(map(len, names))
    blocks: list[list[str]] = []
    for metric in table.metrics:
        column = _column(table, metric)
        if not blocks or _columns(blocks[-1][0]) + _columns(column[0]) + 2 > width:
            blocks.append([name.ljust(margin) for name in names])
        blocks[-1] = [f"{line}  {text}" for line, text in zip(blocks[-1], column, strict=True)]
    notes = {
        "* best of those that see no test cells": any(cell.best for cell in table.cells.values()),
        "– defined on no condition": any(cell.mean == number(math.nan, 0) for cell in table.cells.values()),
    }
    parts = ["\n".join(line.rstrip() for line in block) for block in blocks]
    if any(notes.values()):
        parts.append("   ".join(note for note, needed in notes.items() if needed))
    return "\n\n".join(parts) + "\n"


def _column(table: ScoreTable, metric: str) -> list[str]:
    """Head and cells of one metric, all equally wide: numbers to the right, counts of undefined behind them."""
    cells = [table.cells.get((model, metric)) or Cell("", "", 0, False) for model in table.models]
    numbers = [table.heads[metric], *(cell.mean for cell in cells)]
    behind = ["", *(("*" if cell.best else " ") + _undefined(cell) for cell in cells)]
    size, rest = max(map(_columns, numbers)), max(map(len, behind))
    return [" " * (size - _columns(text)) + text + more.ljust(rest) for text, more in zip(numbers, behind, strict=True)]


def _columns(text: str) -> int:
    """Terminal columns of `text`: a combining accent takes none."""
    return sum(character != "\u0302" for character in text)
