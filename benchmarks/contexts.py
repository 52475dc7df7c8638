"""A context of which only control cells exist: each held out whole, its control cells given in a file of their own.

    python benchmarks/contexts.py ../shared/data [--seeds 3] [--preset instant] [--max-steps N] [--out DIR]

DATA is the folder with kang_pbmc.h5ad (five cell types, interferon) and perturbench_devel.h5ad (McFaline-Figueroa: three
lines, nine genes). For each context and seed a run is fitted on the other contexts, which has no cell of this one, and
predicts it as `scdfm predict RUN --controls FILE --context KEY=VALUE --all` does. `held out` repeats it with the context's
control cells in the file of the fit (`--split covariate:KEY=VALUE`). A simulated screen of six lines, two of them known by
control cells only, is scored against the true means. Predictions are kept in --out, so the command can be repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

import scdfm
from scdfm.benchmarking.tables import summarise
from scdfm.data import CONTROL, Split, covariate_split
from scdfm.data.simulate import simulate_cell_types
from scdfm.files import write_text
from scdfm.report import markdown
from screens import RESULTS, gaps, gaps_table, heading

METRICS = ("l2", "mse", "pearson_delta", "ds", "pearson_delta_hat", "energy")
MODEL, PRIOR = "scdfm, from its controls", "prior, from its controls"


@dataclass(frozen=True)
class Screen:
    """A screen of several contexts: how its file is read, and the column of the contexts."""

    title: str
    name: str
    cells: scdfm.CellTable
    key: str
    settings: dict[str, Any]

    @property
    def contexts(self) -> list[str]:
        """The contexts, sorted."""
        return sorted(self.cells.obs[self.key].astype(str).unique())


def screens(folder: Path) -> Iterator[Screen]:
    """The real ones."""
    kang = scdfm.read_cells(folder / "kang_pbmc.h5ad", "group_id", "ctrl", target_sum=10_000, covariates=["cluster_id"])
    yield Screen(
        "Kang: five cell types under interferon β", "kang", kang, "cluster_id", {"model": {"perturbation": "drugs"}}
    )
    mcfaline = scdfm.read_cells(
        folder / "perturbench_devel.h5ad", subset={"dataset": "mcfaline23"}, covariates=["cell_type"]
    )
    yield Screen("McFaline-Figueroa: three lines, nine genes", "mcfaline", mcfaline, "cell_type", {})


def simulated() -> tuple[Screen, ad.AnnData, tuple[str, ...]]:
    """Six lines of ten targets, and the two of them that are known by control cells only."""
    adata = simulate_cell_types(n_genes=300, n_targets=10, n_types=6, cells_per_condition=60, n_controls=300, seed=0)
    cells = scdfm.read_cells(adata, covariates=["cell_type"])
    return Screen("Six simulated lines", "simulated", cells, "cell_type", {}), adata, ("type2", "type5")


def controls_of(screen: Screen, held: str) -> ad.AnnData:
    """The control cells of a context, without label and context: what a file of theirs holds."""
    cells = screen.cells.select([CONTROL]).to_adata()
    cells = cells[(cells.obs[screen.key] == held).to_numpy()].copy()
    cells.obs = cells.obs[[]]
    return cells


def without(screen: Screen, held: tuple[str, ...]) -> scdfm.CellTable:
    """The screen without any cell of some contexts."""
    return screen.cells.take(np.flatnonzero(~screen.cells.obs[screen.key].isin(held).to_numpy()))


def fitted(cells: scdfm.CellTable, split: Split, config: scdfm.Config, out: Path) -> scdfm.Run:
    """The run in `out`, fitted unless it is there."""
    return scdfm.fit(cells, split, config, out=out, resume=True, progress=False)


def _named(config: scdfm.Config) -> str:
    """The row of a fit: one of no steps is the prior alone."""
    return MODEL if config.training.max_steps else PRIOR


def everything(cells: scdfm.CellTable) -> Split:
    """A split of which every condition trains."""
    return Split("named", 0, tuple(name for name in cells.conditions if name != CONTROL), (), ())


def scored(screen: Screen, held: str, config: scdfm.Config, out: Path) -> tuple[pd.DataFrame, float]:
    """Scores of a context held out, and the largest difference to the same context held out by a split."""
    cells = without(screen, (held,))
    run = fitted(cells, everything(cells), config, out / "file")
    table = run.read_controls(controls_of(screen, held), {screen.key: held}, target_sum=None)
    given = {"controls": table, "seed": config.seed}
    split = covariate_split(screen.cells, screen.key, held, validation_fraction=0)
    asked = [name for name in split.test if {name.split("|")[0]} <= {one.split("|")[0] for one in cells.conditions}]
    found = run.predict(asked, **given)
    scores = scdfm.evaluate(
        found,
        screen.cells,
        training=run.means,
        conditions=asked,
        metrics=METRICS,
        name=_named(config),
        seed=config.seed,
    )
    tables = [scores]
    if config.training.max_steps:
        untrained = run.untrained()
        assert untrained is not None
        tables.append(
            scdfm.evaluate(
                untrained.predict(asked, **given), screen.cells, training=run.means, conditions=asked,
                metrics=METRICS, name=PRIOR, seed=config.seed, references=False,
            )
        )  # fmt: skip
    whole = fitted(screen.cells, split, config, out / "split").predict(asked, seed=config.seed)
    shared = [gene for gene in found.var_names if gene in set(whole.var_names)]
    apart = float(np.abs(found[:, shared].X.toarray() - whole[:, shared].X.toarray()).max())
    return pd.concat(tables, ignore_index=True), apart


def of_truth(seeds: int, config: scdfm.Config, out: Path) -> pd.DataFrame:
    """L2 and correlation of shifts against the true means, mean over the conditions of two unseen lines, by seed."""
    from scdfm.evaluation.baselines import Training, predictions

    screen, adata, held = simulated()
    truth = pd.DataFrame(adata.uns["true_means"])
    cells, rows = without(screen, held), []
    for seed in range(seeds):
        run = fitted(cells, everything(cells), config.updated({"seed": seed}), out / f"simulated_{seed}")
        genes = run.genes
        trained = [name for name in run.means.index if name != CONTROL]
        for line in held:
            asked = [name for name in truth.index if name.endswith(f"={line}") and not name.startswith(CONTROL)]
            own = truth.loc[f"{CONTROL}|{screen.key}={line}", genes].to_numpy()
            given = {"controls": controls_of(screen, line), "context": {screen.key: line}, "seed": seed}
            found = run.predict(asked, **given)
            means = {_named(config): np.stack([mean_of(found, name) for name in asked])}
            columns = screen.cells.columns(genes)
            matched = {name: screen.cells.control_mean(name)[columns] for name in screen.cells.control_conditions}
            training = Training(
                tuple(trained), run.means.loc[trained].to_numpy(), run.means.loc[CONTROL].to_numpy(), tuple(genes), matched
            )  # fmt: skip
            means |= predictions(training, asked)
            means["measured cells"] = screen.cells.means(asked)[genes].to_numpy()
            for model, values in means.items():
                for name, row in zip(asked, values, strict=True):
                    real = truth.loc[name, genes].to_numpy()
                    rows.append(
                        (model, seed, name, np.linalg.norm(row - real), np.corrcoef(row - own, real - own)[0, 1])
                    )
    return pd.DataFrame(rows, columns=["model", "seed", "condition", "l2", "pearson_delta"])


def mean_of(cells: ad.AnnData, name: str) -> np.ndarray:
    """Mean of the predicted cells of a condition."""
    return np.asarray(cells[cells.obs["perturbation"] == name].X.mean(0)).ravel()


def truth_table(table: pd.DataFrame) -> str:
    """Means over seeds and conditions, and how far seeds lie apart."""
    lines = ["| model | L2 to the true mean ↓ | Pearson Δ ↑ | between seeds (L2) |", "|---|---:|---:|---:|"]
    for model, part in table.groupby("model", sort=False):
        by_seed = part.groupby("seed")["l2"].mean()
        shown = part[["l2", "pearson_delta"]].mean()
        if shown.notna().any():
            lines.append(f"| {model} | {shown['l2']:.3f} | {shown['pearson_delta']:.3f} | ±{by_seed.std():.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Hold out each context in turn; write one page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("data", type=Path)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--preset", default="instant")
    options.add_argument("--max-steps", type=int)
    options.add_argument("--out", type=Path, default=Path("runs/contexts"))
    options.add_argument("--results", type=Path, default=RESULTS)
    args = options.parse_args()
    config = scdfm.Config.preset(args.preset)
    if args.max_steps:
        config = config.updated({"training": {"max_steps": args.max_steps}})
    page = [
        *heading("Contexts known by their control cells alone"),
        "Each context is held out whole. The run has no cell of it; its control cells come in a file of their own, "
        "without labels. Simple rules take the same control cells. Intervals are over conditions of all contexts.", "",
    ]  # fmt: skip
    for screen in screens(args.data):
        tables, apart = [], []
        for place, held in enumerate(screen.contexts):
            for seed in range(args.seeds):
                own = config.updated({"seed": seed, **screen.settings})
                folder = args.out / f"{screen.name}_{held.replace(' ', '_').replace('+', '')}_{seed}"
                folder.mkdir(parents=True, exist_ok=True)
                scores, difference = scored(screen, held, own, folder)
                tables.append(scores.assign(fold=place, seed=seed, beside=""))
                apart.append(difference)
        joined = pd.concat(tables, ignore_index=True)
        models = [name for name in (MODEL, PRIOR) if name in set(joined["model"])]
        metrics = [metric for metric in METRICS if metric in set(joined["metric"])]
        page += [
            f"## {screen.title}", "",
            f"{len(screen.contexts)} contexts ({', '.join(screen.contexts)}), {args.seeds} seeds. Largest difference of "
            f"any value to the prediction of the run whose file held the context's control cells: {max(apart):.3g}.", "",
            markdown(summarise(joined), metrics, intervals=True), "",
            "Paired by condition; positive is better:", "", gaps_table(gaps(joined, models), metrics), "",
        ]  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    page += [
        "## Six simulated lines, two known by control cells only", "",
        "Ten targets in six lines (`simulate_cell_types`: 80% of the variance of responses in common), 60 cells each; "
        "against the true means, which no cell enters.", "",
        truth_table(of_truth(args.seeds, config, args.out)), "",
    ]  # fmt: skip
    text = "\n".join(page)
    args.results.mkdir(parents=True, exist_ok=True)
    write_text(args.results / "contexts.md", text)
    print(text)


if __name__ == "__main__":
    main()
