"""The picture of the first screen, made of what the demo left: `python docs/pictures.py demo` (make pictures).

Of the unseen doubles it shows the one whose L2 is the median: neither the best nor the worst.
"""

from __future__ import annotations

import sys
from pathlib import Path

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

IMAGES = Path(__file__).parent / "images"
ROWS = ("no change", "additive", "ridge", "prior", "scdfm", "ceiling")
INKS = {"light": ("#1f2933", "#66717d", "#a9b1ba"), "dark": ("#e6e9ec", "#aab3bc", "#6d7782")}
SHAPES = {"": ((9.4, 3.1), 1, 4), "-phone": ((4.7, 4.6), 2, 2)}
"""Inches, rows and columns of the picture, for wide pages and for narrow ones."""
REAL, PREDICTED = "#d55e00", "#2e8fd0"


def main(demo: Path) -> None:
    """Draw the figure for light and for dark pages."""
    real, predicted = (ad.read_h5ad(demo / name) for name in ("screen.h5ad", "predicted.h5ad"))
    scores = pd.read_csv(demo / "report/scores.csv")
    scores = scores[scores["metric"] == "l2"]
    own = scores[scores["model"] == "scdfm"].sort_values("value")
    condition = str(own["condition"].iloc[(len(own) - 1) // 2])
    cells = {
        "control cells": _cells(real, "control", predicted.var_names),
        f"real: {condition}": _cells(real, condition, predicted.var_names),
        "predicted": _cells(predicted, condition, predicted.var_names),
    }
    IMAGES.mkdir(exist_ok=True)
    for theme, inks in INKS.items():
        with mpl.rc_context(
            {"font.size": 12, "svg.hashsalt": "scdfm", "text.color": inks[0], "axes.labelcolor": inks[1]}
        ):
            for shape, (size, rows, columns) in SHAPES.items():
                figure = Figure(figsize=size, layout="constrained")
                panels = figure.subplots(rows, columns, width_ratios=(1,) * (columns - 1) + (1.25,)).ravel()
                _populations(panels[:-1], cells, inks)
                _bars(panels[-1], scores.groupby("model")["value"].mean(), len(own), inks)
                path = IMAGES / f"first-screen-{theme}{shape}.svg"
                figure.savefig(path, transparent=True, metadata={"Date": None})


def _cells(adata: ad.AnnData, condition: str, genes: pd.Index) -> np.ndarray:
    chosen = adata[(adata.obs["perturbation"] == condition).to_numpy(), genes].X
    return np.asarray(chosen.todense())


def _populations(panels: np.ndarray, cells: dict[str, np.ndarray], inks: tuple[str, str, str]) -> None:
    measured = np.concatenate(list(cells.values())[:2])
    centre = measured.mean(axis=0)
    axes = np.linalg.svd(measured - centre, full_matrices=False)[2][:2].T
    points = {name: ((values - centre) @ axes)[:200] for name, values in cells.items()}
    together = np.concatenate(list(points.values()))
    low, high = together.min(axis=0) - 0.5, together.max(axis=0) + 0.5
    control = points["control cells"]
    for panel, (name, at), colour in zip(panels, points.items(), (inks[2], REAL, PREDICTED), strict=False):
        panel.scatter(*control.T, s=6, color=inks[2], alpha=0.6, linewidth=0)
        if name != "control cells":
            panel.scatter(*at.T, s=9, color=colour, alpha=0.75, linewidth=0)
            panel.plot(*at.mean(axis=0), "o", ms=9, color=colour, mec=inks[0], mew=1.2)
        panel.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[], xlabel="PC 1")
        panel.set_title(name, loc="left", fontsize=12, fontweight="bold")
        panel.spines[:].set_color(inks[2])
    panels[0].set_ylabel("PC 2")


def _bars(panel: Axes, l2: pd.Series, n: int, inks: tuple[str, str, str]) -> None:
    colours = {"scdfm": PREDICTED, "ceiling": inks[1]}
    values = [float(l2[row]) for row in ROWS]
    bars = panel.barh(ROWS[::-1], values[::-1], color=[colours.get(row, inks[2]) for row in ROWS[::-1]], height=0.7)
    panel.bar_label(bars, fmt="%.2f", padding=3, fontsize=11.5, color=inks[0])
    panel.set_title(f"L2 error, {n} doubles", loc="left", fontsize=12, fontweight="bold")
    panel.set(xticks=[], xlim=(0, max(values) * 1.18))
    panel.spines[:].set_visible(False)
    panel.tick_params(axis="y", length=0, labelcolor=inks[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
