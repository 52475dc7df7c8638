"""Whole populations on real cells: half of the cells fits, the other half judges what is generated.

    python benchmarks/populations.py DATA [--screens papalexi,norman,mcfaline,kang] [--rows prior,controls,...] [--seeds 3]
        [--budgets 1000,4000] [--set section.key=value ...] [--cells 150] [--conditions 10] [--jobs 1] [--out DIR]

DATA is the folder of papalexi.h5ad, perturbench_devel.h5ad and kang_pbmc.h5ad. Of every condition, and of the controls, a
random half of the cells fits. The conditions with most cells, at most --conditions, are then generated (a tenth of all,
never judged, validates) and compared with the other half by `compare` (population_scores.py). Kang's cell types and
McFaline's lines are not told: they are hidden states; `kang-told` and `mcfaline-told` have them as covariates (rows
prior, floor, default). Every row has as many cells of a condition as its fitting half, at
most --cells: scores of few cells are not those of many. Rows:

- `prior`: the closed-form prior's own populations, no network;
- `controls`: control cells as they are; `shifted`: moved gene by gene to the mean that the prior expects and cut at 0;
  `scaled`: multiplied instead, so that zeros stay zeros (genes that would be more than tripled are then moved);
- `floor`: the cells of the condition that fitted;
- `own`: these cells, each gene brought to the mean and the values that the prior expects, so that only which values go
  together is the condition's own: the room of a flow that keeps the prior's means and values;
- `default`, `gaussian`: the preset and its fit from noise, after each number of steps of --budgets.

--set puts options over the preset in every fit. A finished row is kept in --out under a digest of data and options, and an
interrupted fit goes on: repeat the command. The digest knows nothing of the code: give another --out to other code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

import scdfm
from population_scores import EQUAL, METRICS, Axes, Cells, axes_of, compare, equalled, moved
from scdfm.data import CONTROL
from scdfm.data.conditions import control_of
from scdfm.evaluation import interval
from scdfm.files import write_json, write_text
from scdfm.prior import PriorStart
from scdfm.seeds import numpy_rng, torch_rng
from screens import RESULTS, gaps_table, heading

KEPT = "step"
"""The step whose weights the fit kept; 0 is the prior."""
ROWS = ("prior", "controls", "shifted", "scaled", "floor", "own", "default", "gaussian")
FITTED: dict[str, dict[str, Any]] = {
    "default": {},
    "gaussian": {"flow": {"source": "gaussian"}, "sampling": {"steps": 4, "shrink": False}},
}
CHANGES: dict[str, Callable[[Cells, npt.NDArray[Any]], Cells]] = {
    "controls": lambda cells, _: cells,
    "shifted": moved,
    "scaled": lambda cells, wanted: moved(equalled(cells, wanted), wanted),
}


def _papalexi(data: Path) -> scdfm.CellTable:
    return scdfm.read_cells(data / "papalexi.h5ad", target_sum=10_000)


def _norman(data: Path) -> scdfm.CellTable:
    return scdfm.read_cells(data / "perturbench_devel.h5ad", subset={"dataset": "norman19"})


def _mcfaline(data: Path, covariates: Sequence[str] = ()) -> scdfm.CellTable:
    return scdfm.read_cells(data / "perturbench_devel.h5ad", subset={"dataset": "mcfaline23"}, covariates=covariates)


def _kang(data: Path, covariates: Sequence[str] = ()) -> scdfm.CellTable:
    return scdfm.read_cells(data / "kang_pbmc.h5ad", "group_id", "ctrl", target_sum=10_000, covariates=covariates)


SCREENS: dict[str, Callable[[Path], scdfm.CellTable]] = {
    "papalexi": _papalexi, "norman": _norman, "mcfaline": _mcfaline, "kang": _kang,
    "mcfaline-told": lambda data: _mcfaline(data, ["cell_type"]), "kang-told": lambda data: _kang(data, ["cluster_id"]),
}  # fmt: skip
TOLD = tuple(name for name in SCREENS if name.endswith("-told"))


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
            numpy_rng(self.seed, "halves", name).permutation(self.cells.rows(name)) for name in self.cells.conditions
        ]
        fits = [order[: len(order) // 2] for order in orders]
        judges = [order[len(order) // 2 :] for order in orders]
        return self.cells.take(np.sort(np.concatenate(fits))), self.cells.take(np.sort(np.concatenate(judges)))

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
        out = self.folder / f"run-{row}-{steps}-{self._digest(config, self.n_conditions)}"
        out.mkdir(parents=True, exist_ok=True)
        return scdfm.fit(self.halves[0], self.split, config, out=out, resume=True, progress=False)

    def _configured(self, row: str, steps: int) -> scdfm.Config:
        return self.config.updated({"seed": self.seed, "training": {"max_steps": steps}}).updated(FITTED[row])

    def _digest(self, config: scdfm.Config, *numbers: int) -> str:
        text = " ".join([self.data, *map(str, numbers), config.model_dump_json()])
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
        digest = self._digest(self._configured("default", steps), self.n_cells, self.n_conditions)
        path = self.folder / f"{named(row, steps)}-{digest}.json"
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
            scores = compare(cells, self.drawn(self.halves[1], name, self.n_cells), control, self.axes, self.seed)
            found += [(name, metric, None if np.isnan(value) else value) for metric, value in scores.items()]
            found.append((name, KEPT, kept))
        return found

    def populations(self, row: str, steps: int) -> Mapping[str, Cells]:
        """The cells [n, G] of a row for each judged condition."""
        if row in FITTED or row == "prior":
            run = self.fitted(row, steps) if row in FITTED else self.closed_form
            return {name: self.predicted(run, name) for name in self.judged}
        if row == "floor":
            return {name: self.drawn(self.halves[0], name, self.size(name)) for name in self.judged}
        if row == "own":
            return {name: self.own(name) for name in self.judged}
        found = {}
        for name in self.judged:
            cells = self.drawn(self.halves[0], CONTROL, self.size(name), name)
            found[name] = CHANGES[row](cells, self.expected(name))
        return found

    def size(self, name: str) -> int:
        """How many cells of a condition every row has."""
        return min(self.n_cells, self.halves[0].n_cells(name))

    def predicted(self, run: scdfm.Run, name: str) -> Cells:
        """Cells of a condition as a run predicts them."""
        return np.asarray(run.predict([name], n_cells=self.size(name), seed=self.seed).X.toarray())

    def own(self, name: str) -> Cells:
        """The prior's population of a condition, started by the condition's own fitting cells instead of any donors."""
        run, rng = self.closed_form, torch_rng(self.seed, "own", name)
        cells = torch.from_numpy(self.drawn(self.halves[0], name, self.size(name)))
        all_alike = torch.zeros(len(cells), dtype=torch.long)
        levels = run.spread.marginals_of(control_of(name))
        uniform = torch.rand(cells.shape, generator=rng)
        donors = levels.scores(cells, cells.mean(0, keepdim=True), all_alike.numpy(), uniform).half()
        spread = replace(run.spread, donors=donors, settings={})
        control = run.means.loc[[CONTROL]].to_numpy()
        start = PriorStart.around(spread, [name], self.expected(name)[None], control, np.zeros(1))
        begin = start.population(all_alike, rng, stratified=run.config.sampling.noise == "stratified")
        return start.cells(begin, begin, all_alike).numpy()

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
    lines = [f"## {screen}", "", f"{scores['condition'].nunique()} conditions, {scores['seed'].nunique()} seeds.", ""]
    for title, metrics in (("As generated", METRICS), ("After the means are made equal", EQUAL)):
        shown = (*metrics, KEPT) if metrics is METRICS else metrics
        lines += [f"{title}:", "", means_table(scores, shown), ""]
        if gaps is not None:
            lines += ["Paired with the prior, positive is better:", "", gaps_table(gaps, metrics), ""]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """The command line, `lines` among it: the rows with their steps."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", type=Path)
    options.add_argument("--screens", default=",".join(name for name in SCREENS if name not in TOLD))
    options.add_argument("--rows", default=",".join(ROWS))
    options.add_argument("--budgets", default="250,1000,4000", help="training steps of the fitted rows")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--set", action="append", default=[], metavar="section.key=value")
    options.add_argument("--cells", type=int, default=150, help="cells of a condition, generated and real, at most")
    options.add_argument("--conditions", type=int, default=10)
    options.add_argument("--jobs", type=int, default=1, help="screens and seeds at once, each on one thread")
    options.add_argument("--out", type=Path, default=Path("runs/populations"))
    options.add_argument("--results", type=Path, default=RESULTS)
    args = options.parse_args()
    args.screens, args.rows = args.screens.split(","), args.rows.split(",")
    for what, names, known in (("screen", args.screens, SCREENS), ("row", args.rows, ROWS)):
        if unknown := [name for name in names if name not in known]:
            options.error(f"{what} '{unknown[0]}': expected some of {', '.join(known)}")
    hidden = [row for row in args.rows if row not in ("prior", "floor", "default")]
    if hidden and set(args.screens) & set(TOLD):
        options.error(
            f"row '{hidden[0]}' is of screens that tell no covariates; with {', '.join(TOLD)} give --rows prior,floor"
        )
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
    about = (
        "Half of the cells of every condition fits, the other half judges. Lower is better; `auc` is perfect at 0.5. "
        "What each number is: `compare` in benchmarks/population_scores.py. "
        "`step`: whose weights the fits kept, on average."
    )
    pages = ["\n".join([*heading("Populations of real cells"), about, ""])]
    for screen in args.screens:
        found = [table for table, unit in zip(tables, units, strict=True) if unit[0] == screen]
        pages.append(section(screen, pd.concat(found)))
    args.results.mkdir(parents=True, exist_ok=True)
    write_text(args.results / "populations.md", "\n".join(pages))
    print("\n".join(pages))


if __name__ == "__main__":
    main()
