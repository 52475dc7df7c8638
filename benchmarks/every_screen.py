"""Simulated screens whose truth is known: unseen triples, unseen doses, unseen drugs with and without telling features.

    python benchmarks/every_screen.py [--parts triples,doses,drugs] [--size small] [--seeds 3] [--out DIR]

Predictions are compared with the true means of the simulation, so no noise of measured cells is in the score. Each seed
is another screen and another fit. Finished fits are kept in --out, so the command can be repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

import scdfm
from scdfm.data import features, simulate_doses, simulate_drugs
from scdfm.data.conditions import doses, targets
from scdfm.evaluation import PRIOR
from scdfm.evaluation.baselines import Training, predictions
from screens import RESULTS, pooled, write_page

SMALL = {"n_genes": 40, "truth_cells": 2000}
FULL = {"n_genes": 200, "truth_cells": 4000}
N_CELLS = 100
# Converges within a minute on one core for 40 genes.
SMALL_OPTIONS = {
    "graph": {"k": 10},
    "model": {"width": 32, "layers": 1, "gene_heads": 4},
    "flow": {"genes_per_step": None},
    "training": {
        "max_steps": 500, "validate_every": 500, "validation_cells": 16, "learning_rate": 4e-3, "warmup_steps": 25,
        "ema_decay": 0.98, "accelerator": "cpu",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A screen to fit with what else it needs: models by name, each with its features, and simple rules' means."""

    cells: scdfm.CellTable
    split: scdfm.Split
    truth: pd.DataFrame
    models: dict[str, features.FeatureTable | None]
    rules: dict[str, pd.DataFrame]
    options: dict[str, object]


def triples(seed: int, small: bool) -> Case:
    """Every triple is the test; singles and doubles train."""
    size = (
        dict(SMALL, n_targets=6, n_doubles=15, n_triples=8)
        if small
        else dict(FULL, n_targets=10, n_doubles=45, n_triples=40)
    )
    screen = scdfm.simulate(**size, seed=seed)  # type: ignore[arg-type]
    cells = scdfm.read_cells(screen)
    split = _split(cells, [name for name in cells.conditions if len(targets(name)) == 3], seed)
    return Case(cells, split, screen.uns["true_means"], {"scdfm": None}, _rules(cells, split), {})


def dose_response(seed: int, small: bool) -> Case:
    """For each drug two doses between measured ones are the test."""
    screen = simulate_doses(**dict(SMALL, n_drugs=4) if small else dict(FULL, n_drugs=12), seed=seed)  # type: ignore[arg-type]
    cells = scdfm.read_cells(screen, "drug", dose_key="dose")
    steps = sorted({float(doses(name)[0] or 0) for name in cells.conditions if name != "control"})
    held = {steps[2], steps[4]}
    split = _split(cells, [name for name in cells.conditions if name != "control" and doses(name)[0] in held], seed)
    means = cells.means()
    rules = {name: rule for name, rule in _rules(cells, split).items() if name in ("no change", "training mean")} | {
        "nearest dose": pd.DataFrame({name: nearest_dose(name, split, means) for name in split.test}).T,
        "interpolation": pd.DataFrame({name: interpolated(name, split, means) for name in split.test}).T,
    }
    return Case(cells, split, screen.uns["true_means"], {"scdfm": None}, rules, {"model": {"perturbation": "drugs"}})


def unseen_drugs(seed: int, small: bool) -> Case:
    """A quarter of the drugs is the test, described by features that tell, or by those of other drugs."""
    size = dict(SMALL, n_drugs=40) if small else dict(FULL, n_drugs=80)
    screen = simulate_drugs(**size, seed=seed)  # type: ignore[arg-type]
    other = simulate_drugs(**dict(size, truth_cells=1), shuffled=True, seed=seed)  # type: ignore[arg-type]
    cells = scdfm.read_cells(screen, "drug")
    split = scdfm.holdout_split(cells, fold=seed, held_out_targets=len(cells.conditions) // 4, seed=seed)
    told, shuffled = (features.table(adata.uns["features"]) for adata in (screen, other))
    rules = {name: rule for name, rule in _rules(cells, split).items() if name in ("no change", "training mean")}
    rules["ridge on features"] = ridge_on_features(cells, split, told)
    models = {"scdfm": told, "scdfm, shuffled features": shuffled}
    return Case(cells, split, screen.uns["true_means"], models, rules, {"model": {"perturbation": "drugs"}})


PARTS: dict[str, tuple[str, Callable[[int, bool], Case]]] = {
    "triples": ("Three targets, from singles and doubles", triples),
    "doses": ("Doses between the measured ones", dose_response),
    "drugs": ("Drugs never measured, from their features", unseen_drugs),
}


def _split(cells: scdfm.CellTable, test: list[str], seed: int) -> scdfm.Split:
    """Some test conditions, one of the others to validate, the rest to train."""
    rest = [name for name in cells.conditions if name not in {"control", *test}]
    kept = rest[(7 * seed) % len(rest)]
    return scdfm.Split("by hand", 0, tuple(name for name in rest if name != kept), (kept,), tuple(test))


def _rules(cells: scdfm.CellTable, split: scdfm.Split) -> dict[str, pd.DataFrame]:
    """Means of the test by every baseline; validation conditions train them too."""
    trained = (*split.train, *split.validation)
    known = Training(trained, cells.means(trained).to_numpy(), cells.mean("control"), tuple(cells.genes))
    found = predictions(known, split.test)
    return {name: pd.DataFrame(values, list(split.test), list(cells.genes)) for name, values in found.items()}


def _neighbours(name: str, split: scdfm.Split) -> list[tuple[float, str]]:
    """The trained doses of the same target, as (log dose, condition), ascending."""
    trained = [c for c in (*split.train, *split.validation) if targets(c) == targets(name)]
    return sorted((float(np.log(doses(c)[0] or np.nan)), c) for c in trained)


def nearest_dose(name: str, split: scdfm.Split, means: pd.DataFrame) -> pd.Series:
    """The measured mean at the nearest trained dose."""
    place = np.log(doses(name)[0] or np.nan)
    return means.loc[min(_neighbours(name, split), key=lambda pair: abs(pair[0] - place))[1]]


def interpolated(name: str, split: scdfm.Split, means: pd.DataFrame) -> pd.Series:
    """The line, in log dose, between the measured means of the two neighbours."""
    place, pairs = float(np.log(doses(name)[0] or np.nan)), _neighbours(name, split)
    below = max((pair for pair in pairs if pair[0] < place), default=pairs[0])
    above = min((pair for pair in pairs if pair[0] > place), default=pairs[-1])
    weight = 0.0 if above[0] == below[0] else (place - below[0]) / (above[0] - below[0])
    return (1 - weight) * means.loc[below[1]] + weight * means.loc[above[1]]


def ridge_on_features(cells: scdfm.CellTable, split: scdfm.Split, table: features.FeatureTable) -> pd.DataFrame:
    """Ridge regression (λ 1) of shifts on standardised features, for the test."""
    trained = [*split.train, *split.validation]
    scaled = table.standardiser(trained)(table)
    z, new = (
        np.column_stack([scaled.restricted(names).values, np.ones(len(names))]) for names in (trained, split.test)
    )
    shift = cells.means(trained).to_numpy() - cells.mean("control")
    weights = np.linalg.solve(z.T @ z + np.diag([*np.ones(z.shape[1] - 1), 1e-6]), z.T @ shift)
    return pd.DataFrame(cells.mean("control") + new @ weights, list(split.test), list(cells.genes))


def predicted_means(
    case: Case, model: str, seed: int, out: Path, options: dict[str, object]
) -> dict[str, pd.DataFrame]:
    """Fit one of the case's models and average the populations that its prior and it itself predict for the test."""
    config = scdfm.Config().updated(options).updated(case.options).updated({"seed": seed})
    run = scdfm.fit(
        case.cells, case.split, config, features=case.models[model], out=out / model.replace(", ", "-").replace(" ", "-"),
        resume=True, progress=False,
    )  # fmt: skip
    found = {}
    for name, predictor in ((f"{PRIOR} ({model})", run.untrained()), (model, run)):
        if predictor is not None:
            adata: AnnData = predictor.predict(case.split.test, n_cells=N_CELLS, seed=seed, progress=False)
            cells = scdfm.read_cells(with_controls(adata, case.cells), case.cells.perturbation_key)
            found[name] = cells.means(case.split.test)
    return found


def with_controls(predicted: AnnData, cells: scdfm.CellTable) -> AnnData:
    """The predicted cells and two measured controls, for a table cannot be without."""
    from anndata import concat

    rows = cells.take(cells.rows("control")[:2]).to_adata()[:, predicted.var_names]
    return concat([predicted, rows], join="inner", index_unique="-")


def scored(case: Case, means: pd.DataFrame, model: str) -> pd.DataFrame:
    """Long table of the errors of `means` (test condition × gene) against the true means."""
    truth, control = case.truth[means.columns], case.truth.loc["control", means.columns].to_numpy()
    rows = []
    for name in case.split.test:
        real, found = truth.loc[name].to_numpy(), means.loc[name].to_numpy()
        shift, guess = real - control, found - control
        rows.append((model, name, "l2", float(np.linalg.norm(found - real))))
        rows.append((model, name, "mae", float(np.abs(found - real).mean())))
        told = float(np.corrcoef(shift, guess)[0, 1]) if model != "no change" and guess.std() else float("nan")
        rows.append((model, name, "pearson_delta", told))
    return pd.DataFrame(rows, columns=["model", "condition", "metric", "value"])


def score_case(case: Case, seed: int, out: Path, options: dict[str, object]) -> pd.DataFrame:
    """The long table of every rule and model of a case."""
    tables = [scored(case, means, name) for name, means in case.rules.items()]
    for model in case.models:
        found = predicted_means(case, model, seed, out, options)
        tables += [scored(case, means, name) for name, means in found.items()]
    table = pd.concat(tables, ignore_index=True)
    # The same name stands for something else in the screen of another seed.
    return table.assign(condition=table["condition"] + f" of screen {seed}", seed=seed, beside="")


def main() -> None:
    """Fit and score the parts that are asked for; one page each."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--parts", default=",".join(PARTS))
    options.add_argument("--size", choices=("full", "small"), default="full")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--max-steps", type=int)
    options.add_argument("--out", type=Path)
    options.add_argument("--results", type=Path, default=RESULTS)
    args = options.parse_args()
    small = args.size == "small"
    settings: dict[str, object] = dict(SMALL_OPTIONS) if small else {}
    if args.max_steps:
        settings["training"] = dict(settings.get("training", {}), max_steps=args.max_steps)  # type: ignore[call-overload]
    out = args.out or Path(f"runs/every_screen-{args.size}")
    for part in args.parts.split(","):
        title, make = PARTS[part]
        tables = [score_case(make(seed, small), seed, out / f"{part}{seed}", settings) for seed in range(args.seeds)]
        steps = scdfm.Config().updated(settings).training.max_steps
        text = f"{args.seeds} simulated screens, {steps} steps each; scored against the true means of the simulation."
        models = [name for name in tables[0]["model"].unique() if str(name).startswith("scdfm")]
        write_page(args, f"simulated_{part}", title, text, *pooled(tables, models))


if __name__ == "__main__":
    main()
