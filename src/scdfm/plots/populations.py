"""Figures of populations: mean shifts, cells on a plane, single genes, conditions × genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scdfm.plots.style import CONTROL, INK, MUTED, PREDICTED, REAL, WIDTH, new_figure, said, shortened, styled

POPULATIONS: Mapping[str, str] = {"control": CONTROL, "real": REAL, "predicted": PREDICTED}
UNIT = "log1p expression"


@styled
def shift_scatter(
    real: pd.Series[float], predicted: pd.Series[float], named: Sequence[str] = (), title: str = ""
) -> Figure:
    """Predicted against real mean shift of every gene (mean − real control mean, log1p), `named` genes labelled.

    Both series are indexed by gene. On the dashed line the prediction is right; on the axis it says nothing.
    """
    figure = new_figure(WIDTH, WIDTH * 0.94)
    axes = figure.subplots()
    x, y = real.to_numpy(dtype=float), predicted.reindex(real.index).to_numpy(dtype=float)
    reach = float(np.nanmax(np.abs(np.concatenate([x, y])), initial=0.0)) * 1.1 or 1.0
    axes.axhline(0, color=MUTED, lw=0.5)
    axes.axvline(0, color=MUTED, lw=0.5)
    axes.plot([-reach, reach], [-reach, reach], color=MUTED, lw=0.8, ls=(0, (4, 3)), zorder=1)
    labelled = real.index.isin(list(named))
    axes.scatter(x[~labelled], y[~labelled], s=8, color=PREDICTED, alpha=0.35, linewidth=0, rasterized=True)
    axes.scatter(x[labelled], y[labelled], s=20, color=PREDICTED, edgecolor=INK, linewidth=0.7, zorder=3)
    room = {side: 1.45 if (np.sign(x[labelled]) == side).any() else 1.0 for side in (-1, 1)}
    axes.set(xlim=(-reach * room[-1], reach * room[1]), ylim=(-reach, reach))
    for side in (-1, 1):
        part = {str(real.index[int(at)]): (x[at], y[at]) for at in np.flatnonzero(labelled & (np.sign(x) == side))}
        _label_column(axes, part, side * reach * 1.43, side)
    axes.set_xlabel("real shift of the mean (log1p)")
    axes.set_ylabel("predicted shift of the mean")
    axes.set_title(shortened(title, 44))
    return figure


def _label_column(axes: Axes, points: Mapping[str, tuple[float, float]], edge: float, side: int) -> None:
    """Names in a column at `edge`, in the order of their points, spread so that none covers another."""
    low, high = axes.get_ylim()
    step = (high - low) / 19
    names = sorted(points, key=lambda name: points[name][1])
    heights = np.array([points[name][1] for name in names])
    for index in range(1, len(heights)):
        heights[index] = max(heights[index], heights[index - 1] + step)
    top = high - step / 2
    for index in range(len(heights) - 1, -1, -1):
        heights[index] = min(heights[index], top)
        top = heights[index] - step
    for name, height in zip(names, heights, strict=True):
        axes.annotate(
            shortened(name, 14), points[name], xytext=(edge, height), fontsize=7, va="center",
            ha="right" if side > 0 else "left", arrowprops={"arrowstyle": "-", "lw": 0.4, "color": MUTED, "shrinkB": 2},
        )  # fmt: skip


@styled
def cell_map(
    points: Mapping[str, np.ndarray[Any, Any]], axis_names: Sequence[str] = ("PC 1", "PC 2"), title: str = "",
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> Figure:  # fmt: skip
    """Cells of control, real and predicted populations on one plane; the large ringed dot is each mean.

    `points` holds [n, 2] coordinates under the names control, real, predicted (any may be missing).
    """
    figure = new_figure(WIDTH, WIDTH * 0.94)
    axes = figure.subplots()
    for name, colour in POPULATIONS.items():
        cells = points.get(name)
        if cells is None or not len(cells):
            continue
        size = float(np.clip(2500 / len(cells), 4, 14))
        axes.scatter(
            cells[:, 0], cells[:, 1], s=size, color=colour, alpha=0.5, linewidth=0, rasterized=True, label=name
        )
    for name, colour in POPULATIONS.items():
        cells = points.get(name)
        if cells is not None and len(cells):
            axes.plot(*cells.mean(axis=0), "o", ms=9, color=colour, mec="white", mew=1.6)
            axes.plot(*cells.mean(axis=0), "o", ms=10.5, mfc="none", mec=INK, mew=0.7)
    if limits:
        axes.set(xlim=limits[0], ylim=limits[1])
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(axis_names[0])
    axes.set_ylabel(axis_names[1])
    axes.set_title(shortened(title, 44))
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, handletextpad=0.2, markerscale=2)
    return figure


@styled
def violins(real: pd.DataFrame, predicted: pd.DataFrame, control: pd.Series[float], title: str = "") -> Figure:
    """Expression of single genes: real cells to the left of each line, predicted to the right.

    `real` and `predicted` are cells × genes (log1p) with the same genes, `control` the control mean per gene.
    """
    genes = list(real.columns)
    figure = new_figure(WIDTH, WIDTH * 0.94)
    axes = figure.subplots()
    if not genes or real.empty or predicted.empty:
        said(axes, "no gene to show")
        return figure
    _half_violins(axes, real[genes], "low", REAL)
    _half_violins(axes, predicted[genes], "high", PREDICTED)
    for name in ("real", "predicted"):
        axes.plot([], [], color=POPULATIONS[name], lw=6, alpha=0.75, label=name)
    places = np.arange(len(genes))
    axes.hlines(
        control.reindex(genes), places - 0.42, places + 0.42, color=INK, lw=1, ls=(0, (2, 1.5)), label="control mean"
    )
    axes.set_xticks(
        places, [shortened(str(gene), 14) for gene in genes], rotation=40, ha="right", rotation_mode="anchor"
    )
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(bottom=min(0.0, float(axes.get_ylim()[0])))
    axes.set_ylabel(UNIT)
    axes.grid(axis="y")
    axes.set_title(shortened(title, 44))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, handlelength=1.4)
    return figure


def _half_violins(axes: Axes, cells: pd.DataFrame, side: Literal["low", "high"], colour: str) -> None:
    shift = -0.02 if side == "low" else 0.02
    places = np.arange(cells.shape[1]) + shift
    parts: Any = axes.violinplot(
        [cells[gene].to_numpy(dtype=float) for gene in cells], positions=places, widths=0.84, points=64,
        showextrema=False, side=side, bw_method=_bandwidth,
    )  # fmt: skip
    for body in parts["bodies"]:
        body.set(facecolor=colour, edgecolor=colour, alpha=0.75, linewidth=0.8)
    for place, gene in zip(places, cells, strict=True):
        axes.plot(
            place + (-0.05 if side == "low" else 0.05), cells[gene].mean(), "o", ms=3.8, color="white", mec=INK, mew=0.8
        )


def _bandwidth(estimate: Any) -> float:
    """Scott's rule, no wider than 0.15 log units: the heap at 0 stays a heap instead of a bell.

    matplotlib's kernels are this factor × the sample's standard deviation wide.
    """
    spread = float(np.std(estimate.dataset, ddof=1))
    return min(float(estimate.scotts_factor()), 0.15 / spread)


@styled
def heat_map(real: pd.DataFrame, predicted: pd.DataFrame, total: int | None = None) -> Figure:
    """Mean shifts of conditions (rows) × genes (columns), real beside predicted, on one colour scale.

    Both frames have the same rows and columns (mean − control mean, log1p). `total` is the number of conditions
    there are, told when more than are shown.
    """
    n_conditions, n_genes = real.shape
    figure = new_figure(2.0 + 2 * 0.155 * max(n_genes, 10), 1.6 + 0.155 * max(n_conditions, 4))
    panels = figure.subplots(1, 2, sharey=True)
    if real.empty:
        for axes in panels:
            said(axes, "nothing to show")
        return figure
    reach = float(np.nanquantile(np.abs(real.to_numpy(dtype=float)), 0.99)) or 1.0
    for axes, frame, name in ((panels[0], real, "real"), (panels[1], predicted, "predicted")):
        image = axes.imshow(frame, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest")
        axes.set_xticks(
            np.arange(n_genes), [shortened(str(gene), 12) for gene in frame.columns], rotation=90, fontsize=6.5
        )
        axes.tick_params(length=0)
        axes.set_title(name, color=POPULATIONS[name])
        axes.spines[:].set_visible(False)
    panels[0].set_yticks(np.arange(n_conditions), [shortened(str(name)) for name in real.index], fontsize=7.5)
    bar = figure.colorbar(image, ax=panels, location="bottom", shrink=0.4, aspect=40, pad=0.02)
    shown = f"; {n_conditions} of {total} conditions" if total and total > n_conditions else ""
    bar.set_label(f"shift of the mean from control (log1p){shown}", fontsize=8)
    bar.outline.set_visible(False)
    return figure
