"""Training curves."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scdfm.plots.style import PREDICTED, new_figure, said, styled

LOSSES = {"loss": "training loss", "cfm": "flow matching term", "mmd": "MMD² term"}
PANEL = (3.2, 2.2)
"""Inches of one curve."""


@styled
def training_curves(log: pd.DataFrame, columns: int = 3) -> Figure:
    """Losses and validation scores against the step, one panel each; empty columns are left out.

    `log` has a column step and any of loss, cfm, mmd, val_*; each row may fill only some of them. Training
    losses are noisy from step to step, so a running median (over 1/40 of the curve) runs through them.
    """
    wanted = [name for name in log.columns if name in LOSSES or name.startswith("val_")]
    curves = {name: curve for name in wanted if len(curve := _curve(log, name))}
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
