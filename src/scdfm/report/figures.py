"""The figures of a report: the cells behind them, and what each shows, in words for all who see it or do not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree  # reads what matplotlib drew a moment before  # nosec B405

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.cluster.hierarchy import leaves_list, linkage

from scdfm import plots
from scdfm.data.conditions import CONTROL
from scdfm.evaluation.alignment import Pair
from scdfm.evaluation.expression import RankTests, against_control
from scdfm.evaluation.pseudobulk import Population, Rows, row_means, taken
from scdfm.files import written_whole
from scdfm.report.labels import count, heading, higher_is_better, title
from scdfm.seeds import numpy_rng

if TYPE_CHECKING:
    from sklearn.decomposition import PCA

MOST_ROWS, MOST_GENES = 40, 30
NAMED_GENES = 12
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
MOST_FITTED, MOST_SHOWN = 3000, 400
"""Cells that the plane is fitted on, and cells of one population drawn on it."""

Array = NDArray[Any]
Limits = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Populations:
    """Real cells (control among them) and predicted cells of the scored conditions, on the same genes."""

    real: Population
    predicted: Population
    conditions: tuple[str, ...]
    tests: RankTests | None = None
    """Of the conditions [K, A], where they were made."""

    @classmethod
    def of(cls, pair: Pair, tests: RankTests | None = None) -> Populations:
        """The populations of an aligned prediction, with the tests of its conditions."""
        assert pair.predicted is not None
        return cls(pair.real, pair.predicted, pair.conditions, tests)

    def control_mean(self, condition: str) -> pd.Series[float]:
        """Mean per gene of the real control cells that a condition is compared with (log1p)."""
        if condition not in self._control_means:
            self._control_means[condition] = pd.Series(self.real.control_mean(condition), self.real.genes)
        return self._control_means[condition]

    @cached_property
    def _control_means(self) -> dict[str, pd.Series[float]]:
        return {}

    @cached_property
    def real_shifts(self) -> pd.DataFrame:
        """Mean − control mean of every condition (condition × gene, log1p)."""
        return self._shifts(self.real)

    @cached_property
    def predicted_shifts(self) -> pd.DataFrame:
        """Predicted mean − real control mean of every condition (condition × gene, log1p)."""
        return self._shifts(self.predicted)

    def _shifts(self, population: Population) -> pd.DataFrame:
        shifts = [
            row_means(population.X, population.rows[name]) - self.control_mean(name).to_numpy()
            for name in self.conditions
        ]
        return pd.DataFrame(shifts, index=list(self.conditions), columns=self.real.genes)

    def n_cells(self, condition: str) -> tuple[int, int]:
        """Numbers of real and of predicted cells of `condition`."""
        return self.real.n_cells(condition), self.predicted.n_cells(condition)

    def expression(self, population: Population, condition: str, genes: Sequence[str]) -> pd.DataFrame:
        """Cells of `condition` × `genes` (log1p)."""
        columns = pd.Index(self.real.genes).get_indexer(pd.Index(genes))
        block = taken(population.X, population.rows[condition])[:, columns]
        return pd.DataFrame(block.toarray(), columns=list(genes))

    def responders(self, conditions: Sequence[str], n: int) -> dict[str, list[str]]:
        """For each condition the `n` genes whose real cells differ most clearly from control (Mann-Whitney |z|)."""
        if self.tests is None:
            z = np.abs(against_control(self.real, conditions, CONTROL).z)
        else:
            z = np.abs(self.tests.z[[self.conditions.index(name) for name in conditions]])
        order = np.argsort(-np.nan_to_num(z), axis=1, kind="stable")[:, :n]
        return {name: [str(gene) for gene in self.real.genes[row]] for name, row in zip(conditions, order, strict=True)}

    def plane(self, seed: int = 0) -> Plane:
        """Principal components of real cells: control and scored conditions, the same number from each."""
        from sklearn.decomposition import PCA

        rng = numpy_rng(seed, "report", "plane")
        names = (CONTROL, *self.conditions)
        each = max(5, MOST_FITTED // len(names))
        fitted = np.concatenate([_drawn(self.real, self.real.rows[name], each, rng) for name in names])
        n_components = min(2, *fitted.shape)
        pca = PCA(n_components, svd_solver="randomized", random_state=int(rng.integers(2**31))).fit(fitted)
        return Plane(self, pca, _limits(_projected(pca, fitted)), seed)


@dataclass(frozen=True)
class Plane:
    """Two principal components of the real cells, and the part of the plane that holds almost all of them."""

    populations: Populations
    pca: PCA
    limits: Limits
    seed: int

    @property
    def names(self) -> list[str]:
        """The axes, with the share of the variance each explains."""
        shares = [*self.pca.explained_variance_ratio_, 0.0][:2]
        return [f"PC {index + 1} ({share:.0%} of variance)" for index, share in enumerate(shares)]

    def points(self, condition: str) -> dict[str, Array]:
        """Coordinates [n, 2] of control, real and predicted cells (at most 400 of each)."""
        real, predicted = self.populations.real, self.populations.predicted
        rng = numpy_rng(self.seed, "report", "points", condition)
        groups = {
            "control": (real, real.control_rows(condition)),
            "real": (real, real.rows[condition]),
            "predicted": (predicted, predicted.rows[condition]),
        }
        return {
            name: _projected(self.pca, _drawn(population, rows, MOST_SHOWN, rng))
            for name, (population, rows) in groups.items()
        }


def _drawn(population: Population, rows: Rows, most: int, rng: np.random.Generator) -> Array:
    """At most `most` of the cells `rows`, dense [n, G]."""
    if len(rows) > most:
        rows = np.sort(rng.choice(rows, most, replace=False))
    return np.asarray(taken(population.X, rows).toarray())


def _projected(pca: PCA, cells: Array) -> Array:
    points = np.asarray(pca.transform(cells))
    return np.column_stack([points, np.zeros(len(points))])[:, :2]


def _limits(points: Array) -> Limits:
    low, high = np.quantile(points, [0.005, 0.995], axis=0)
    pad = 0.12 * (high - low) + 1e-3
    return (float(low[0] - pad[0]), float(high[0] + pad[0])), (float(low[1] - pad[1]), float(high[1] + pad[1]))


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
        {"real": np.linalg.norm(real, axis=1), "predicted": np.linalg.norm(predicted, axis=1)}, index=real.index
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
