"""Whole populations on real cells: half of the cells fits, the other half judges what is generated.

    python benchmarks/populations.py DATA [--screens papalexi,norman,mcfaline,kang] [--rows prior,controls,...] [--seeds 3]
        [--budgets 1000,4000] [--set section.key=value ...] [--cells 150] [--conditions 10] [--jobs 1] [--out DIR]

DATA is the folder of papalexi.h5ad, perturbench_devel.h5ad and kang_pbmc.h5ad. Of every condition, and of the controls, a
random half of the cells fits. The conditions with most cells, at most --conditions, are then generated (a tenth of all,
never judged, validates) and compared with the other half by `compare`. Kang's cell types and McFaline's lines are not
told: they are hidden states. Rows:

- `prior`: the closed-form prior's own populations, no network;
- `controls`: control cells as they are; `shifted`: moved gene by gene to the mean that the prior expects and cut at 0;
  `scaled`: multiplied instead, so that zeros stay zeros (genes that would be more than tripled are then moved);
- `floor`: the cells of the condition that fitted;
- `default`, `gaussian`: the preset and its fit from noise, after each number of steps of --budgets.

--set puts options over the preset in every fit. A finished row is kept in --out under a digest of data and options, and an
interrupted fit goes on: repeat the command. The digest knows nothing of the code: give another --out to other code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

import scdfm
from scdfm.data import CONTROL
from scdfm.evaluation import interval
from scdfm.evaluation.distribution import (
    Axes,
    Sample,
    Truth,
    energy_and_mmd,
    mean_error,
    principal_axes,
    wasserstein,
)
from scdfm.files import write_json, write_text
from scdfm.seeds import derive, numpy_rng
from screens import RESULTS, gaps_table

Cells = npt.NDArray[np.float32]
"""[n, G] log1p expression, cells first."""
ALONE = ("variance", "zeros", "correlation", "auc")
"""What a shift of genes leaves alone, or makes meaningless."""
SHAPES = ("energy", "mmd", "wasserstein", "responders", "response", "auc_axes")
METRICS = ("l2", *SHAPES, *ALONE)
EQUAL = tuple(f"{name}=" for name in SHAPES)
"""SHAPES after the means are made equal."""
KEPT = "step"
"""The step whose weights the fit kept; 0 is the prior."""
AXES = 50
VARIES = 0.1
"""Share of cells in which a gene is on, from which it counts for correlations and responders."""
CLEAR = 3.0
"""Standard errors by which real cells must differ from controls along their shift, for responders to be told."""
FACTOR = 3.0
"""Most by which `equalled` multiplies a gene: a few cells cannot stand for many."""
ROWS = ("prior", "controls", "shifted", "scaled", "floor", "default", "gaussian")
FITTED: dict[str, dict[str, Any]] = {
    "default": {},
    "gaussian": {"flow": {"source": "gaussian"}, "sampling": {"steps": 4, "shrink": False}},
}


def compare(
    predicted: Cells,
    real: Cells,
    control: Cells,
    axes: Axes | None = None,
    seed: int = 0,
    classify: bool = True,
) -> dict[str, float]:
    """How far generated cells are from real ones: METRICS, and EQUAL, some of them after the means are made equal.

    All three are dense log1p arrays, cells × genes, the genes in one order; some hundred cells take about a second, without
    `classify` (the areas under the curve) a tenth of one:

        sys.path.insert(0, "benchmarks"); from populations import axes_of, compare
        compare(generated, other_half, control_cells, axes_of(all_real_cells))["wasserstein"]

    Lower is better (`auc`: 0.5 is perfect). `l2` of means. `energy` distance and `mmd`² on 50 principal `axes`, unbiased
    for independent cells: forced or stratified means make them too small, axes of few real cells too large (without
    `axes` they are those of control and real cells). `wasserstein`, `variance` and `zeros`: mean over genes of the
    1-Wasserstein distance and of the errors of variance and of the share of zeros. `correlation`: root mean square error
    over pairs of genes that are on in a tenth of the real cells. `responders`: error of the share of cells that lie
    nearer to the real mean than to that of control, and `response`: 1-Wasserstein distance, both along the real shift over
    the variance of each such gene; control is at 0, the real mean at 1. The shift comes from one half of the real
    cells and is applied to the other, in turn; NaN unless they differ from controls by 3 standard errors. `auc`: how well
    boosted trees tell real from generated, 5-fold cross-validated, by genes (impossible values show), and `auc_axes` by
    the axes. NAME=: after generated cells are shifted, gene by gene, by what their mean misses, without a cut at 0.
    """
    predicted, real, control = (np.ascontiguousarray(x, dtype=np.float32) for x in (predicted, real, control))
    axes = axes_of(np.vstack([control, real])) if axes is None else axes
    judge = _Judge(real, control, seed, classify, axes, Truth.of(_sample(real, axes)))
    missed = real.mean(0) - predicted.mean(0)
    scores = {"l2": float(np.linalg.norm(missed)), **judge.shapes(predicted), **judge.alone(predicted)}
    equal = judge.shapes(predicted + missed, equal=True)
    return scores | {f"{name}=": value for name, value in equal.items()}


def axes_of(cells: Cells) -> Axes:
    """Principal axes of real cells, for `compare`."""
    return principal_axes(cells.copy(), AXES, derive(0, "axes"))


def equalled(cells: Cells, wanted: npt.NDArray[Any]) -> Cells:
    """Cells with the mean `wanted` [G] in every gene by multiplication, so that zeros stay zeros; at most tripled."""
    found = cells.mean(0, dtype=np.float64)
    factor = np.divide(wanted, found, out=np.ones(len(found)), where=found > 0)
    return (cells * np.minimum(factor, FACTOR)).astype(np.float32)


def moved(cells: Cells, wanted: npt.NDArray[Any]) -> Cells:
    """max(0, x + δ), δ for each gene such that the mean is `wanted` [G].

    n·mean(max(0, x + δ)) is the largest of S_k + k·δ over k = 1…n, S_k the sum of the k largest x.
    """
    n = len(cells)
    found, goal = cells.mean(0, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    sums = np.cumsum(-np.sort(-cells.astype(np.float64), axis=0), axis=0)
    shift = ((n * goal - sums) / np.arange(1, n + 1)[:, None]).min(0)
    # To the last digits a mean is what it was asked to be: nothing is to be added then, not even to zeros.
    shift = np.where(np.abs(goal - found) <= 1e-5 * found, 0, shift)
    return np.maximum(cells + shift, 0).astype(np.float32)


CHANGES: dict[str, Callable[[Cells, npt.NDArray[Any]], Cells]] = {
    "controls": lambda cells, _: cells,
    "shifted": moved,
    "scaled": lambda cells, wanted: moved(equalled(cells, wanted), wanted),
}


@dataclass(frozen=True)
class _Judge:
    """What does not depend on the prediction."""

    real: Cells
    control: Cells
    seed: int
    classify: bool
    axes: Axes
    truth: Truth

    def shapes(self, cells: Cells, equal: bool = False) -> dict[str, float]:
        """SHAPES of a population; `equal`, where its means were made equal."""
        sample, real = _sample(cells, self.axes), self.truth.sample
        values = (
            *energy_and_mmd(sample.coordinates, self.truth),
            wasserstein(sample.ordered, real.ordered),
            *response(cells, self.real, self.control, self.seed, equal),
            self._area(sample.coordinates, real.coordinates),
        )
        return dict(zip(SHAPES, values, strict=True))

    def alone(self, cells: Cells) -> dict[str, float]:
        """ALONE of a population."""
        sample, real = _sample(cells, self.axes), self.truth.sample
        on = _on(self.real)
        gap = correlations(cells[:, on]) - correlations(self.real[:, on])
        pairs = gap[np.triu_indices(len(gap), 1)]
        values = (
            mean_error(sample.variance, real.variance),
            mean_error(sample.zero, real.zero),
            float(np.sqrt(np.mean(pairs**2))) if len(pairs) else float("nan"),
            self._area(cells, self.real),
        )
        return dict(zip(ALONE, values, strict=True))

    def _area(self, predicted: npt.NDArray[Any], real: npt.NDArray[Any]) -> float:
        """Mean area under the ROC curve of boosted trees over 5 folds."""
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.model_selection import StratifiedKFold, cross_val_score

        if not self.classify or min(len(predicted), len(real)) < 10:
            return float("nan")
        trees = HistGradientBoostingClassifier(
            max_iter=40, max_leaf_nodes=8, learning_rate=0.15, early_stopping=False, random_state=self.seed
        )
        folds = StratifiedKFold(5, shuffle=True, random_state=self.seed)
        labels = np.repeat([0, 1], [len(predicted), len(real)])
        found = cross_val_score(trees, np.vstack([predicted, real]), labels, cv=folds, scoring="roc_auc")
        return float(found.mean())


def _on(cells: Cells) -> npt.NDArray[np.bool_]:
    """Genes that are on in a share VARIES of the cells."""
    return np.asarray((cells > 0).mean(0) >= VARIES)


def _sample(cells: Cells, axes: Axes) -> Sample:
    columns = np.ascontiguousarray(cells.T)
    return Sample(np.sort(columns, axis=1), axes.project(columns), columns.var(1), (columns == 0).mean(1))


def correlations(cells: Cells) -> npt.NDArray[np.float64]:
    """Pearson correlations of genes [g, g]; a gene without spread has none, 0."""
    centred = cells.astype(np.float64) - cells.mean(0, dtype=np.float64)
    length = np.linalg.norm(centred, axis=0)
    unit = np.divide(centred, length, out=np.zeros_like(centred), where=length > 1e-6)
    return np.asarray(unit.T @ unit)


def response(
    predicted: Cells, real: Cells, control: Cells, seed: int, equal: bool = False
) -> tuple[float, float]:
    """Error of the share of responders, and 1-Wasserstein distance along the real shift, see `compare`.

    `equal` puts the predicted cells at the mean of the half that the shift does not come from: along it, the mean of all
    real cells lies too far out.
    """
    on = _on(real) | _on(control)
    predicted, real, control = (cells[:, on].astype(np.float64) for cells in (predicted, real, control))
    halves = np.array_split(numpy_rng(seed, "response").permutation(len(real)), 2)
    spread, zero = (control.var(0) + real.var(0)) / 2, control.mean(0)
    shares, distances = [], []
    for told, judged in (halves, halves[::-1]):
        direction = (real[told].mean(0) - zero) / spread
        ours, theirs, none = ((cells - zero) @ direction for cells in (predicted, real[judged], control))
        error = np.sqrt(theirs.var() / len(theirs) + none.var() / len(none))
        if not theirs.mean() > CLEAR * error > 0:
            return float("nan"), float("nan")
        if equal:
            ours = ours + (theirs.mean() - ours.mean())
        ours, theirs = ours / theirs.mean(), theirs / theirs.mean()
        shares.append(np.mean(ours > 0.5) - np.mean(theirs > 0.5))
        distances.append(wasserstein(np.sort(ours)[None], np.sort(theirs)[None]))
    return float(abs(np.mean(shares))), float(np.mean(distances))


def _papalexi(data: Path) -> scdfm.CellTable:
    return scdfm.read_cells(data / "papalexi.h5ad", target_sum=10_000)


def _norman(data: Path) -> scdfm.CellTable:
    return scdfm.read_cells(data / "perturbench_devel.h5ad", subset={"dataset": "norman19"})


def _mcfaline(data: Path) -> scdfm.CellTable:
    return scdfm.read_cells(data / "perturbench_devel.h5ad", subset={"dataset": "mcfaline23"})


def _kang(data: Path) -> scdfm.CellTable:
    return scdfm.read_cells(data / "kang_pbmc.h5ad", "group_id", "ctrl", target_sum=10_000)


SCREENS: dict[str, Callable[[Path], scdfm.CellTable]] = {
    "papalexi": _papalexi, "norman": _norman, "mcfaline": _mcfaline, "kang": _kang,
}  # fmt: skip


@dataclass(frozen=True)
class Halved:
    """One screen and seed: the half that fits, the half that judges, and the rows that are made of them."""

    cells: scdfm.CellTable
    seed: int
    config: scdfm.Config
    folder: Path
    n_cells: int
    n_conditions: int

    @cached_property
    def halves(self) -> tuple[scdfm.CellTable, scdfm.CellTable]:
        """Cells that fit and cells that judge, of every condition half."""
        orders = [
            numpy_rng(self.seed, "halves", name).permutation(self.cells.rows(name))
            for name in self.cells.conditions
        ]
        fits = [order[: len(order) // 2] for order in orders]
        judges = [order[len(order) // 2 :] for order in orders]
        return self.cells.take(np.sort(np.concatenate(fits))), self.cells.take(
            np.sort(np.concatenate(judges))
        )

    @cached_property
    def split(self) -> scdfm.Split:
        """All conditions train, but for a tenth that validates; of a single condition none does."""
        names = [name for name in self.cells.conditions if name != CONTROL]
        n = min(max(1, round(0.1 * len(names))), len(names) - 1)
        ranked = sorted(names, key=lambda name: -self.cells.n_cells(name))
        spare = ranked[min(self.n_conditions, len(names) - n) :]
        validation = numpy_rng(self.seed, "validation").choice(spare, n, replace=False).tolist() if n else []
        return scdfm.Split("measured", 0, tuple(set(names).difference(validation)), tuple(validation), ())

    @property
    def judged(self) -> list[str]:
        """The training conditions with most cells."""
        ranked = sorted(self.split.train, key=lambda name: (-self.cells.n_cells(name), name))
        return sorted(ranked[: self.n_conditions])

    def fitted(self, row: str, steps: int) -> scdfm.Run:
        """The run of FITTED after so many steps; one that was interrupted goes on."""
        config = self._configured(row, steps)
        out = self.folder / f"run-{row}-{steps}-{self._digest(config)}"
        out.mkdir(parents=True, exist_ok=True)
        return scdfm.fit(self.halves[0], self.split, config, out=out, resume=True, progress=False)

    def _configured(self, row: str, steps: int) -> scdfm.Config:
        return self.config.updated({"seed": self.seed, "training": {"max_steps": steps}}).updated(FITTED[row])

    def _digest(self, config: scdfm.Config) -> str:
        text = f"{self.data} {self.n_cells} {self.n_conditions} {config.model_dump_json()}"
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @cached_property
    def data(self) -> str:
        """The digest of the screen."""
        return self.cells.digest()

    @cached_property
    def closed_form(self) -> scdfm.Run:
        """The run of no training: what it generates is the prior's own."""
        return self.fitted("default", 0)

    def scores(self, row: str, steps: int) -> pd.DataFrame:
        """condition, metric, value of one row, kept once they are there."""
        path = self.folder / f"{named(row, steps)}-{self._digest(self._configured('default', steps))}.json"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, [list(entry) for entry in self._scored(row, steps)])
        return pd.DataFrame(json.loads(path.read_text()), columns=["condition", "metric", "value"]).astype(
            {"value": float}
        )

    def _scored(self, row: str, steps: int) -> list[tuple[str, str, float | None]]:
        populations = self.populations(row, steps)
        control, found = self.drawn(self.halves[1], CONTROL, 1000), []
        kept = self.fitted(row, steps).manifest.result["step"] if row in FITTED else None
        for name, cells in populations.items():
            scores = compare(
                cells, self.drawn(self.halves[1], name, self.n_cells), control, self.axes, self.seed
            )
            found += [(name, metric, None if np.isnan(value) else value) for metric, value in scores.items()]
            found.append((name, KEPT, kept))
        return found

    def populations(self, row: str, steps: int) -> Mapping[str, Cells]:
        """The cells [n, G] of a row for each judged condition."""
        if row in FITTED or row == "prior":
            run = self.fitted(row, steps) if row in FITTED else self.closed_form
            made = run.predict(self.judged, n_cells=self.n_cells, seed=self.seed)
            labels = made.obs[run.manifest.perturbation_key].to_numpy()
            return {name: made.X[labels == name].toarray() for name in self.judged}
        if row == "floor":
            return {name: self.drawn(self.halves[0], name, self.n_cells) for name in self.judged}
        found = {}
        for name in self.judged:
            cells = self.drawn(self.halves[0], CONTROL, self.n_cells, name)
            found[name] = CHANGES[row](cells, self.expected(name))
        return found

    @cached_property
    def axes(self) -> Axes:
        """Of all cells of the screen, both halves alike, at most 4,000."""
        rows = numpy_rng(self.seed, "axes").permutation(self.cells.n)[:4000]
        columns = self.cells.columns(self.closed_form.genes)
        return axes_of(self.cells.X[np.sort(rows)][:, columns].toarray())

    def expected(self, name: str) -> npt.NDArray[np.float64]:
        """The mean [G] that the prior expects of a condition."""
        run = self.closed_form
        shift = run.knowing([name]).predict([name])[0]
        return np.maximum(run.means.loc[CONTROL].to_numpy() + shift, 0)

    def drawn(self, cells: scdfm.CellTable, condition: str, n: int, *path: str) -> Cells:
        """At most n cells of a condition over the panel."""
        rows = numpy_rng(self.seed, "drawn", condition, *path).permutation(cells.rows(condition))[:n]
        columns = cells.columns(self.closed_form.genes)
        return np.asarray(cells.X[np.sort(rows)][:, columns].toarray(), dtype=np.float32)


def named(row: str, steps: int) -> str:
    """A row's name in the tables."""
    return f"{row} {steps}" if row in FITTED else row


def one(screen: str, seed: int, args: argparse.Namespace) -> pd.DataFrame:
    """The long table of one screen and seed: model, condition, metric, value, seed."""
    torch.set_num_threads(1)
    cells = SCREENS[screen](args.data)
    config = scdfm.Config.preset("default").with_settings(args.set)
    half = Halved(cells, seed, config, args.out / screen / f"seed{seed}", args.cells, args.conditions)
    tables = []
    for row, steps in args.lines:
        tables.append(half.scores(row, steps).assign(model=named(row, steps), seed=seed))
        print(f"{screen}, seed {seed}, {named(row, steps)}: done", file=sys.stderr, flush=True)
    return pd.concat(tables)


def beside_prior(scores: pd.DataFrame) -> pd.DataFrame:
    """Every row against the prior, paired by condition (by seed, where one condition is judged); positive is better."""
    unit = "condition" if len(scores["condition"].unique()) > 1 else "seed"
    wide = scores.groupby(["metric", unit, "model"], sort=False)["value"].mean().unstack()  # noqa: PD010
    rows = []
    for metric in (*METRICS, *EQUAL):
        table = wide.loc[metric]
        for model in [name for name in table if name != "prior"]:
            gap = (table["prior"] - table[model]).dropna().to_numpy()
            if len(gap):
                rows.append((model, metric, "prior", gap.mean(), *interval(gap), len(gap)))
    columns = ["model", "metric", "against", "improvement", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns).sort_values("model", key=_order(scores), kind="stable")


def _order(scores: pd.DataFrame) -> Callable[[pd.Series], pd.Series]:
    places = {name: place for place, name in enumerate(scores["model"].unique())}
    return lambda names: names.map(places)


def means_table(scores: pd.DataFrame, metrics: Sequence[str]) -> str:
    """Means over conditions and seeds, rows × metrics."""
    means = scores.groupby(["model", "metric"], sort=False)["value"].mean()
    lines = ["| row | " + " | ".join(metrics) + " |", "|---|" + "---:|" * len(metrics)]
    for model in scores["model"].unique():
        lines.append(f"| {model} | " + " | ".join(_number(means[model, metric]) for metric in metrics) + " |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3g}"


def section(screen: str, scores: pd.DataFrame) -> str:
    """One screen as Markdown."""
    gaps = beside_prior(scores) if "prior" in set(scores["model"]) else None
    lines = [
        f"## {screen}",
        "",
        f"{scores['condition'].nunique()} conditions, {scores['seed'].nunique()} seeds.",
        "",
    ]
    for title, metrics in (("As generated", METRICS), ("After the means are made equal", EQUAL)):
        shown = (*metrics, KEPT) if metrics is METRICS else metrics
        lines += [f"{title}:", "", means_table(scores, shown), ""]
        if gaps is not None:
            lines += ["Paired with the prior, positive is better:", "", gaps_table(gaps, metrics), ""]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """The command line, `lines` among it: the rows with their steps."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("data", type=Path)
    options.add_argument("--screens", default=",".join(SCREENS))
    options.add_argument("--rows", default=",".join(ROWS))
    options.add_argument("--budgets", default="250,1000,4000", help="training steps of the fitted rows")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--set", action="append", default=[], metavar="section.key=value")
    options.add_argument(
        "--cells", type=int, default=150, help="cells of a condition, generated and real, at most"
    )
    options.add_argument("--conditions", type=int, default=10)
    options.add_argument("--jobs", type=int, default=1, help="screens and seeds at once, each on one thread")
    options.add_argument("--out", type=Path, default=Path("runs/populations"))
    options.add_argument("--results", type=Path, default=RESULTS)
    args = options.parse_args()
    args.screens, args.rows = args.screens.split(","), args.rows.split(",")
    for what, names, known in (("screen", args.screens, SCREENS), ("row", args.rows, ROWS)):
        if unknown := [name for name in names if name not in known]:
            options.error(f"{what} '{unknown[0]}': expected some of {', '.join(known)}")
    budgets = [int(text) for text in args.budgets.split(",")]
    if min(budgets) < 1:
        options.error(f"budget {min(budgets)}: expected steps from 1 on; row 'prior' is that of no step")
    args.lines = [(row, steps) for row in args.rows for steps in (budgets if row in FITTED else [0])]
    return args


def main() -> None:
    """Score what is missing; write one page."""
    args = arguments()
    units = [(screen, seed, args) for screen in args.screens for seed in range(args.seeds)]
    if args.jobs > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
            tables = list(pool.map(one, *zip(*units, strict=True)))
    else:
        tables = [one(*unit) for unit in units]
    given = [Path(text).name if Path(text).exists() else text for text in sys.argv[1:]]
    command = shlex.join(["python", "benchmarks/populations.py", *given])
    about = (
        "Half of the cells of every condition fits, the other half judges. Lower is better; `auc` is perfect at 0.5. "
        "What each number is: `compare` in benchmarks/populations.py. `step`: whose weights the fits kept, on average."
    )
    pages = [f"# Populations of real cells\n\n`{command}` (scdfm {scdfm.__version__})\n\n{about}\n"]
    for screen in args.screens:
        found = [table for table, unit in zip(tables, units, strict=True) if unit[0] == screen]
        pages.append(section(screen, pd.concat(found)))
    args.results.mkdir(parents=True, exist_ok=True)
    write_text(args.results / "populations.md", "\n".join(pages))
    print("\n".join(pages))


if __name__ == "__main__":
    main()
