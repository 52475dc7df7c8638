"""Figures of scores: models against each other, against their ceiling, condition by condition, and training curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scdfm.plots.style import (
    INK,
    MUTED,
    PREDICTED,
    RULE,
    WIDTH,
    mark,
    model_colours,
    new_figure,
    said,
    shortened,
    styled,
)

TRACK = (-0.3, 1.12)
"""What `position_track` shows of the way from the worst acceptable score (0) to the ceiling (1)."""


@styled
def metric_dots(
    summary: pd.DataFrame,
    metrics: Sequence[str] | None = None,
    titles: Mapping[str, str] | None = None,
    columns: int = 1,
) -> Figure:
    """Mean and interval of every model, one panel per metric.

    `summary` has columns model, metric, mean, low, high, n (as `scdfm.summarise` gives them); models stand in
    the order of their rows. A model without a defined value keeps its line, with the word "undefined".
    """
    metrics = list(dict.fromkeys(summary["metric"])) if metrics is None else list(metrics)
    models = list(dict.fromkeys(summary["model"]))
    colours = model_colours(models)
    columns = max(1, min(columns, len(metrics)))
    rows = max(1, math.ceil(len(metrics) / columns))
    tallest = int(summary[summary["metric"].isin(metrics)].groupby("metric")["model"].size().max())
    figure = new_figure(WIDTH * columns, (0.62 + 0.25 * tallest) * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, metric in zip(panels, metrics, strict=False):
        _dots(axes, summary[summary["metric"] == metric].set_index("model"), colours)
        axes.set_title((titles or {}).get(metric, metric))
    for axes in panels[len(metrics) :]:
        axes.set_axis_off()
    return figure


def _dots(axes: Axes, part: pd.DataFrame, colours: Mapping[str, str]) -> None:
    heights = np.arange(len(part))[::-1]
    for height, (model, row) in zip(heights, part.iterrows(), strict=True):
        colour = colours[str(model)]
        if not np.isfinite(row["mean"]):
            axes.text(0.01, height, "undefined", color=MUTED, va="center", transform=axes.get_yaxis_transform())
            continue
        if np.isfinite([row["low"], row["high"]]).all():
            axes.plot([row["low"], row["high"]], [height, height], color=colour, lw=2.2, solid_capstyle="round")
        axes.plot(row["mean"], height, mark(str(model)), color=colour, ms=5.5, mec="white", mew=0.7)
    axes.set_yticks(heights, [shortened(str(model)) for model in part.index])
    axes.set_ylim(-0.6, len(part) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.margins(x=0.08)
    axes.locator_params(axis="x", nbins=5)
    axes.spines["left"].set_visible(False)


@styled
def position_track(positions: pd.DataFrame, model: str, titles: Mapping[str, str] | None = None) -> Figure:
    """Where each model lies between the worst acceptable score (0 %) and the ceiling (100 %), one line per metric.

    `positions` has columns model, metric, position (1 = ceiling; NaN where it is undefined). `model` is drawn
    large, the others small; a position outside the picture becomes an arrow with its number.
    """
    metrics = list(dict.fromkeys(positions["metric"]))
    colours = model_colours(dict.fromkeys([model, *positions["model"]]))
    figure = new_figure(WIDTH, 0.95 + 0.3 * max(1, len(metrics)))
    axes = figure.subplots()
    heights = {metric: len(metrics) - 1 - index for index, metric in enumerate(metrics)}
    for height in heights.values():
        axes.plot([0, 1], [height, height], color=RULE, lw=5, solid_capstyle="butt", zorder=1)
    for name, rows in positions.groupby("model", sort=False):
        _on_track(axes, rows.dropna(subset="position"), heights, colours[str(name)], str(name), large=name == model)
    axes.set_yticks(list(heights.values()), [(titles or {}).get(metric, metric) for metric in heights])
    axes.set_xticks([0, 0.5, 1], ["worst\nacceptable", "50 %", "ceiling"])
    axes.set_xlim(*TRACK)
    axes.set_ylim(-0.6, max(1, len(metrics)) - 0.4)
    axes.tick_params(axis="both", length=0, pad=8)
    axes.spines[["left", "bottom"]].set_visible(False)
    if len(positions):
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, handletextpad=0.2)
    return figure


def _on_track(
    axes: Axes, points: pd.DataFrame, heights: Mapping[str, int], colour: str, name: str, large: bool
) -> None:
    """One model's places; beyond the picture an arrow stands at the edge, with its number where it is the large one."""
    at, height = points["position"], points["metric"].map(heights)
    inside = at.between(*TRACK)
    for shape, shown in ((mark(name), inside), ("<", at < TRACK[0]), (">", at > TRACK[1])):
        axes.scatter(
            at[shown].clip(*TRACK),
            height[shown],
            marker=shape,
            label=name if shown is inside else None,
            color=colour,
            s=64 if large else 20,
            zorder=3 if large else 2,
            edgecolor="white",
            linewidth=0.8,
            clip_on=False,
        )
    for place, metric in zip(at, points["metric"], strict=True):
        if large and not TRACK[0] <= place <= TRACK[1]:
            left = place < TRACK[0]
            edge, offset, side = (TRACK[0], 7, "left") if left else (TRACK[1], -7, "right")
            axes.annotate(
                f"{place:.0%}".replace("-", "−"), (edge, heights[metric]), xytext=(offset, 0),
                textcoords="offset points", ha=side, va="center", fontsize=7, color=INK,
            )  # fmt: skip


@styled
def ranking(
    scores: pd.DataFrame,
    model: str,
    baseline: str | None = None,
    title: str = "",
    higher_is_better: bool = True,
    most: int = 24,
) -> Figure:
    """Best and worst conditions of `model`, each beside the same condition's score of `baseline`.

    `scores` is condition × model, values of one metric. With more than `most` conditions the best and the worst
    half of that number are shown, and the title says how many there are.
    """
    ordered = scores.dropna(subset=model).sort_values(model, ascending=not higher_is_better, kind="stable")
    half = most // 2
    cut = len(ordered) > most
    shown = pd.concat([ordered.head(half), ordered.tail(half)]) if cut else ordered
    figure = new_figure(WIDTH, 0.95 + 0.2 * max(3, len(shown) + cut))
    axes = figure.subplots()
    if shown.empty:
        said(axes, "no condition has a defined value")
        return figure
    heights = np.arange(len(shown) + cut)[::-1]
    if cut:
        heights = np.delete(heights, half)
        axes.axhline(heights[half] + 1, color=MUTED, lw=0.8, ls=(0, (2, 3)))
    colours = model_colours([model, *([baseline] if baseline else [])])
    if baseline:
        axes.hlines(heights, shown[model], shown[baseline], color=RULE, lw=2)
        axes.plot(shown[baseline], heights, "o", color=colours[baseline], ms=4.5, label=baseline)
    axes.plot(shown[model], heights, "o", color=colours[model], ms=6, mec="white", mew=0.7, label=model)
    axes.set_yticks(heights, [shortened(str(name), 24) for name in shown.index])
    axes.set_ylim(-0.7, len(shown) + cut - 0.3)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_title(title)
    axes.set_xlabel(
        f"{half} best and {half} worst of {len(ordered)} conditions" if cut else f"{len(ordered)} conditions"
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, handletextpad=0.2)
    return figure


@styled
def effect_sizes(sizes: pd.DataFrame, named: Sequence[str] = ()) -> Figure:
    """Predicted against real length of every condition's mean shift: above the line overshoots, below shrinks.

    `sizes` is condition × (real, predicted), Euclidean length over genes of mean − control mean (log1p);
    conditions of `named` are labelled.
    """
    figure = new_figure(WIDTH, WIDTH * 0.94)
    axes = figure.subplots()
    shown = sizes[np.isfinite(sizes[["real", "predicted"]]).all(axis=1)]
    if shown.empty:
        said(axes, "no condition to show")
        return figure
    limit = float(shown[["real", "predicted"]].to_numpy().max()) * 1.08 or 1.0
    axes.plot([0, limit], [0, limit], color=MUTED, lw=0.8, ls=(0, (4, 3)), zorder=1)
    axes.scatter(shown["real"], shown["predicted"], s=22, color=PREDICTED, alpha=0.7, linewidth=0)
    for name in dict.fromkeys(named):
        if name in shown.index:
            point = tuple(shown.loc[name, ["real", "predicted"]])
            right = point[0] > limit * 0.6
            axes.plot(*point, "o", ms=6.5, mfc="none", mec=INK, mew=0.9)
            axes.annotate(
                shortened(name), point, xytext=(-7 if right else 7, -3), textcoords="offset points",
                ha="right" if right else "left", fontsize=7.5,
            )  # fmt: skip
    axes.set(xlim=(0, limit), ylim=(0, limit), aspect="equal")
    axes.set_xlabel("real length of the mean shift (log1p)")
    axes.set_ylabel("predicted length")
    axes.grid()
    return figure


LOSSES = {"loss": "training loss", "cfm": "flow matching term", "mmd": "MMD² term"}
PANEL = (3.2, 2.2)
"""Inches of one curve."""


@styled
def training_curves(log: pd.DataFrame, columns: int = 3) -> Figure:
    """Losses and validation scores against the step, one panel each; empty columns are left out.

    `log` has a column step and any of loss, cfm, mmd, val_*; each row may fill only some of them. Training
    losses are noisy from step to step, so a running median (over 1/40 of the curve) runs through them.
    """
    names = [name for name in log.columns if name in LOSSES or name.startswith("val_")]
    curves = {name: curve for name in names if len(curve := _curve(log, name))}
    columns = max(1, min(columns, len(curves)))
    rows = max(1, -(-len(curves) // columns))
    figure = new_figure(PANEL[0] * columns, PANEL[1] * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, curve) in zip(panels, curves.items(), strict=False):
        _draw(axes, curve, smooth=name in LOSSES)
        axes.set_title(LOSSES.get(name) or f"validation {name.removeprefix('val_').replace('_', ' ')}")
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    if not curves:
        said(panels[0], "the log holds no curve")
    return figure


def _curve(log: pd.DataFrame, name: str) -> pd.Series[float]:
    values = log.set_index("step")[name].astype(float)
    return values[np.isfinite(values)]


def _draw(axes: Axes, curve: pd.Series[float], smooth: bool) -> None:
    window = max(1, len(curve) // 40)
    if smooth and window > 1:
        axes.plot(curve.index, curve, color=PREDICTED, lw=0.5, alpha=0.25, rasterized=len(curve) > 500)
        curve = curve.rolling(window, center=True, min_periods=1).median()
        axes.plot(curve.index, curve, color=PREDICTED, lw=1.5)
        low, high = np.quantile(curve, [0.0, 0.98])
        pad = 0.08 * (high - low) or 0.1 * (abs(high) or 1.0)
        axes.set_ylim(low - pad, high + pad)
    else:
        axes.plot(curve.index, curve, color=PREDICTED, lw=1.5, marker="o" if len(curve) <= 40 else None, ms=3)
    axes.grid(axis="y")
    axes.set_xlabel("step")
    axes.locator_params(axis="both", nbins=5)
