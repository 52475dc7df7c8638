"""Figures from tables and arrays; no model, no file and no global matplotlib state is touched."""

from scdfm.plots.populations import cell_map, heat_map, shift_scatter, violins
from scdfm.plots.scores import effect_sizes, metric_dots, position_track, ranking, training_curves
from scdfm.plots.style import model_colours, render

__all__ = [
    "cell_map", "effect_sizes", "heat_map", "metric_dots", "model_colours", "position_track", "ranking", "render",
    "shift_scatter", "training_curves", "violins",
]  # fmt: skip
