"""The figures of a report: what each shows, in words for those who see it and those who do not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree  # reads what matplotlib drew a moment before  # nosec B405

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage

from scdfm import plots
from scdfm.files import written_whole
from scdfm.report.labels import count, heading, higher_is_better, title
from scdfm.report.populations import Plane, Populations

MOST_ROWS, MOST_GENES = 40, 30
NAMED_GENES = 12
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Illustration:
    """A figure, the name of its files, and its words."""

    name: str
    figure: Figure
    alt: str
    caption: str = ""
    wide: bool = False

    @cached_property
    def svg(self) -> bytes:
        """The figure as an SVG file."""
        return plots.render(self.figure, "svg")

    def html(self) -> str:
        """The figure as an element of a page."""
        return inlined(self.svg, self.name, self.alt)

    def write(self, folder: Path) -> None:
        """Write the figure as `name`.svg and `name`.png."""
        for kind, content in (("svg", self.svg), ("png", plots.render(self.figure, "png"))):
            with written_whole(folder / f"{self.name}.{kind}") as path:
                path.write_bytes(content)


def metric_panels(summary: pd.DataFrame) -> list[Illustration]:
    """One panel per metric: mean and interval of each model."""
    return [
        Illustration(
            name=f"metric_{re.sub(r'[^A-Za-z0-9_-]+', '_', metric)}",
            figure=plots.metric_dots(summary, [metric], {metric: heading(metric)}),
            alt=f"{title(metric)}: mean and 95 % interval of every model; the numbers are in the table of scores.",
        )
        for metric in dict.fromkeys(summary["metric"])
    ]


def track(positions: pd.DataFrame, model: str) -> Illustration:
    """Where the models lie between worst acceptable and ceiling."""
    metrics = list(dict.fromkeys(positions["metric"]))
    return Illustration(
        name="position",
        figure=plots.position_track(positions, model, {metric: title(metric) for metric in metrics}),
        caption="Worst acceptable is the better of no change and the training mean; the ceiling is half of the real cells "
        "as the prediction.",
        alt=f"Position of {model} and of the baselines between worst acceptable and ceiling on "
        f"{count(len(metrics), 'metric')}; the numbers are in the table above.",
    )


def ranked(table: pd.DataFrame, metric: str, model: str, baseline: str | None) -> Illustration:
    """Best and worst conditions, each beside the best baseline."""
    part = table[table["metric"] == metric]
    wide = part.pivot_table(index="condition", columns="model", values="value", sort=False, dropna=False)
    against = f"; the line shows how far {model} is from {baseline}" if baseline else ""
    return Illustration(
        name="ranking",
        figure=plots.ranking(wide, model, baseline, heading(metric), higher_is_better(metric)),
        caption=f"Conditions in the order of {title(metric)}, best first{against}.",
        alt=f"{title(metric)} of {model} for single conditions, best to worst; the numbers are in the table of conditions.",
    )


def sizes(populations: Populations, named: Sequence[str]) -> Illustration:
    """Predicted against real size of effects; conditions of `named` are labelled."""
    real, predicted = populations.real_shifts, populations.predicted_shifts
    lengths = pd.DataFrame(
        {"real": np.linalg.norm(real, axis=1), "predicted": np.linalg.norm(predicted, axis=1)},
        index=real.index,
    )
    under = int((lengths["predicted"] < lengths["real"]).sum())
    return Illustration(
        name="effect_sizes",
        figure=plots.effect_sizes(lengths, named),
        caption="Size of the effect, one dot per condition. Below the dashed line the prediction is too timid, above "
        f"it too bold: too timid for {under} of {count(len(lengths), 'condition')}.",
        alt=f"Predicted against real length of the mean shift; {under} of {count(len(lengths), 'condition')} are "
        "predicted smaller than they are.",
    )


def close_up(
    populations: Populations, condition: str, rank: str, plane: Plane, responders: Sequence[str]
) -> list[Illustration]:
    """Mean shift, cells, and single genes of one condition; `rank` (best, median, worst) names the files."""
    real, predicted = populations.real_shifts.T[condition], populations.predicted_shifts.T[condition]
    top = list(real.abs().nlargest(NAMED_GENES).index)
    right = int((np.sign(real[top]) == np.sign(predicted[top])).sum())
    n_real, n_predicted = populations.n_cells(condition)
    cells = f"{count(n_real, 'real cell')}, {count(n_predicted, 'predicted cell')}"
    return [
        Illustration(
            name=f"shift_{rank}",
            figure=plots.shift_scatter(real, predicted, top, condition),
            caption=f"Mean shift from control, one dot per gene; the {len(top)} that truly shift most are named, "
            f"{right} of them predicted in the right direction.",
            alt=f"Predicted against real mean shift of {condition}. Genes that truly shift most: {', '.join(top)}.",
        ),
        Illustration(
            name=f"cells_{rank}",
            figure=plots.cell_map(plane.points(condition), plane.names, condition, plane.limits),
            caption=f"Cells on principal components fitted on real cells ({cells}); ringed dots are means.",
            alt=f"Control, real and predicted cells of {condition} on two principal components ({cells}).",
        ),
        Illustration(
            name=f"violins_{rank}",
            figure=plots.violins(
                populations.expression(populations.real, condition, responders),
                populations.expression(populations.predicted, condition, responders),
                populations.control_mean(condition)[list(responders)],
                condition,
            ),
            caption="The genes that respond most clearly (Mann-Whitney, real cells against control); white dots are means.",
            alt=f"Expression of {', '.join(responders)} over real and predicted cells of {condition}, and control means.",
        ),
    ]


def heat(populations: Populations, order: Sequence[str]) -> Illustration:
    """Conditions × top genes, real beside predicted; `order` is best to worst."""
    take = np.unique(np.linspace(0, len(order) - 1, min(MOST_ROWS, len(order))).round().astype(int))
    real = populations.real_shifts.loc[[order[at] for at in take]]
    genes = (real**2).sum().nlargest(MOST_GENES).index
    real = real.loc[_clustered(real[genes]), _clustered(real[genes].T)]
    shown = count(len(real), "condition")
    left_out = f" ({shown} of {len(order)}, evenly from best to worst)" if len(real) < len(order) else ""
    return Illustration(
        name="heat_map",
        figure=plots.heat_map(real, populations.predicted_shifts.loc[real.index, real.columns], len(order)),
        caption=f"Shift of the mean from control, the {len(genes)} genes that move most{left_out}; similar conditions "
        "and genes stand together, in the order of the real shifts.",
        alt=f"Heat map of mean shifts, {shown} by {count(len(genes), 'gene')}, real on the left, predicted on the right.",
        wide=True,
    )


def _clustered(frame: pd.DataFrame) -> pd.Index:
    """The rows of `frame`, similar ones beside each other."""
    if len(frame) < 3:
        return frame.index
    return frame.index[leaves_list(linkage(frame.to_numpy(dtype=float), "average", optimal_ordering=True))]


def curves(log: pd.DataFrame) -> Illustration:
    """Training curves."""
    return Illustration(
        name="training",
        figure=plots.training_curves(log),
        caption="Losses on training conditions, scores on validation conditions; test cells take part in neither.",
        alt=f"Training curves over {count(int(log['step'].max()), 'step')}.",
        wide=True,
    )


def inlined(svg: bytes, name: str, alt: str) -> str:
    """`svg` (our own, as matplotlib writes it) as an element that scales to its place and is read aloud as `alt`.

    Identifiers are shared by everything on a page, so each gets the figure's `name` in front.
    """
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(svg)  # nosec B314
    metadata = root.find(f"{{{SVG}}}metadata")
    if metadata is not None:
        root.remove(metadata)
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key in ("href", f"{{{XLINK}}}href") and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            elif "url(#" in value:
                element.set(key, re.sub(r"url\(#", f"url(#{name}-", value))
    for key in ("width", "height"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", alt)
    return ElementTree.tostring(root, encoding="unicode")
