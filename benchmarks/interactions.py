"""Are predicted interactions those that cells show? Held-out doubles, scored from predictions and from their cells.

    python benchmarks/interactions.py SCREEN.h5ad [--folds 0 1 2 3 4] [--runs DIR] [--cells 128] [--max-steps N] [--out DIR]
    python benchmarks/interactions.py --effects norman_effects.npz --authors norman_double_regression.csv

SCREEN is a screen of singles and doubles (log1p, obs column `perturbation`). Fold i is the additive split's; its run is
DIR/fold<i> of --runs where given, else a small setting is fitted. Test doubles are predicted with their singles, and scored
as in Norman et al. 2019 on one list of genes (those the measured singles move most) beside the same scores of their
cells; `prior` is the run at step 0; ridge predicts singles and doubles too, additive predicts c₁ = c₂ = 1 and so no order.
Printed: Spearman correlation over test doubles of all folds with a 95 % interval (bootstrap over doubles), and the share of
classes that agree.
The second form compares the formula alone, on measured effects, with the authors' coefficients. Finished folds are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

import scdfm
from accuracy import NARROW
from scdfm.evaluation import PRIOR, baselines
from scdfm.screening.interaction import informative_genes
from scdfm.seeds import numpy_rng
from screens import RESULTS, heading

SCORES = ("c", "magnitude", "dominance", "dcor_singles", "dcor_double", "dcor_fit", "dcor_residual", "departure")


def run_of(cells: scdfm.CellTable, fold: int, args: argparse.Namespace) -> scdfm.Run:
    """The run of a fold: given, or fitted at the small size of accuracy.py."""
    if args.runs:
        return scdfm.Run.load(args.runs / f"fold{fold}")
    config = scdfm.Config().updated({**NARROW, "split": {"fold": fold}})
    if args.max_steps:
        config = config.updated({"training": {"max_steps": args.max_steps, "validate_every": args.max_steps}})
    return scdfm.fit(cells, config=config, out=args.out / f"run{fold}", resume=True)


def one_fold(cells: scdfm.CellTable, fold: int, args: argparse.Namespace) -> pd.DataFrame:
    """Long table of a fold: condition, model, and every score from predictions (model `measured`: from cells)."""
    run = run_of(cells, fold, args)
    singles = [name for name in run.split.train if "+" not in name]
    tests = [name for name in run.split.test if all(part in singles for part in name.split("+"))]
    options = {"conditions": tests, "cells": args.cells, "resume": True, "progress": True, "say": print}
    screens = {"scdfm": scdfm.screen(run, out=args.out / f"screen{fold}", **options)}
    if untrained := run.untrained():
        screens[PRIOR] = scdfm.screen(untrained, out=args.out / f"screen{fold}_prior", **options)
    known = run.means
    wanted = list(dict.fromkeys(screens["scdfm"].conditions))
    genes = informative_genes(known.loc[singles] - known.loc["control"])
    measured = cells.means(["control", *wanted])[run.genes]
    control = pd.Series(run.controls.mean("control")[run.controls.columns(run.genes)], index=run.genes)
    names = [name for name in run.split.train if name in known.index]
    training = baselines.Training(
        tuple(names), known.loc[names].to_numpy(), known.loc["control"].to_numpy(), tuple(run.genes)
    )
    ridge = pd.DataFrame(baselines.ridge(training, wanted), index=wanted, columns=run.genes)
    parts = {
        "measured": scdfm.interactions(measured, pairs=tests, genes=genes),
        **{model: scdfm.interactions(one.means(wanted), control, tests, genes) for model, one in screens.items()},
        "ridge": scdfm.interactions(ridge, known.loc["control"], tests, genes),
    }
    return pd.concat([part.assign(model=model, fold=fold) for model, part in parts.items()]).reset_index()


def agreement(table: pd.DataFrame, model: str, score: str, rng: np.random.Generator) -> tuple[float, float, float]:
    """Spearman correlation of a model's score with the measured one, and its 95 % interval over doubles."""
    columns = ["c1", "c2"] if score == "c" else [score]
    index = ["fold", "condition"]
    mine = table[table["model"] == model].set_index(index)[columns]
    real = table[table["model"] == "measured"].set_index(index)[columns].reindex(mine.index)
    groups = {
        name: np.flatnonzero(mine.index.get_level_values(1) == name) for name in set(mine.index.get_level_values(1))
    }
    names = sorted(groups)
    a, b = mine.to_numpy(), real.to_numpy()

    def value(rows: np.ndarray) -> float:
        return float(spearmanr(a[rows].ravel(), b[rows].ravel(), nan_policy="omit").statistic)

    draws = [
        value(np.concatenate([groups[names[at]] for at in rng.integers(len(names), size=len(names))]))
        for _ in range(1000)
    ]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return value(np.arange(len(a))), float(low), float(high)


def markdown(table: pd.DataFrame) -> str:
    """One row per model."""
    lines = ["| model | " + " | ".join(SCORES) + " | same class |", "|---" * (len(SCORES) + 2) + "|"]
    real = table[table["model"] == "measured"].set_index(["fold", "condition"])["kind"]
    for model in (name for name in table["model"].unique() if name != "measured"):
        rng = numpy_rng(0, "interactions", model)
        cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*agreement(table, model, score, rng)) for score in SCORES]
        kinds = table[table["model"] == model].set_index(["fold", "condition"])["kind"]
        lines.append(f"| {model} | " + " | ".join(cells) + f" | {(kinds == real.reindex(kinds.index)).mean():.0%} |")
    most = real.value_counts(normalize=True)
    lines.append("| additive | " + " | ".join("–" for _ in SCORES) + f" | {most.get('additive', 0):.0%} |")
    return "\n".join(lines) + f"\n\nmeasured classes: {real.value_counts().to_dict()}\n"


def against_authors(effects: Path, authors: Path) -> str:
    """The formula on measured effects beside the authors' own numbers (robust regression, their own genes)."""
    bundle = np.load(effects, allow_pickle=False)
    labels = [*map(str, bundle["sing_labels"]), *map(str, bundle["doub_labels"]), "control"]
    shifts = np.vstack([bundle["lfc_s"], bundle["lfc_d"], np.zeros_like(bundle["lfc_s"][:1])]).astype(float)
    ours = scdfm.interactions(pd.DataFrame(shifts, index=labels, columns=bundle["genes_hvg"].astype(str)))
    theirs = pd.read_csv(authors).set_index("name")
    rows = []
    for name, mine in ours.iterrows():
        a, b = str(name).split("+")
        for label, first, second in ((f"{a}_{b}", "first", "second"), (f"{b}_{a}", "second", "first")):
            if label in theirs.index:
                row = theirs.loc[label]
                rows.append(
                    {
                        "c1": (mine["c1"], row[f"ts_coef_{first}"]), "c2": (mine["c2"], row[f"ts_coef_{second}"]),
                        "magnitude": (mine["magnitude"], row["ts_norm2"]),
                        "dominance": (mine["dominance"], row["abs_log_ts_ratio"]),
                        "dcor_singles": (mine["dcor_singles"], row["dcor_singles"]),
                        "dcor_double": (mine["dcor_double"], row["dcor"]),
                        "dcor_fit": (mine["dcor_fit"], row["ts_linear_dcor"]),
                    }
                )  # fmt: skip
                break
    lines = [
        f"{len(rows)} doubles of both",
        "",
        "| score | Spearman | Pearson | median here | median there |",
        "|---" * 5 + "|",
    ]
    for key in rows[0]:
        mine, other = np.array([row[key] for row in rows]).T
        rank, linear = spearmanr(mine, other).statistic, np.corrcoef(mine, other)[0, 1]
        lines.append(f"| {key} | {rank:.2f} | {linear:.2f} | {np.median(mine):.2f} | {np.median(other):.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Score every fold that is not there yet; print and keep the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("screen", type=Path, nargs="?")
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--cells", type=int, default=128)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--effects", type=Path)
    parser.add_argument("--authors", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/interactions"))
    args = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if args.effects and args.authors:
        text = "\n".join(
            [*heading("Interaction scores beside the authors'"), against_authors(args.effects, args.authors)]
        )
        print(text)
        (RESULTS / "interactions_authors.md").write_text(text, encoding="utf-8")
    if args.screen:
        args.out.mkdir(parents=True, exist_ok=True)
        cells = scdfm.read_cells(args.screen)
        for fold in args.folds:
            path = args.out / f"fold{fold}.csv"
            if not path.is_file():
                one_fold(cells, fold, args).to_csv(path, index=False)
        table = pd.concat([pd.read_csv(args.out / f"fold{fold}.csv") for fold in args.folds])
        table.to_csv(RESULTS / "interactions.csv", index=False)
        text = "\n".join([*heading("Interactions of unseen doubles"), markdown(table)])
        print(text)
        (RESULTS / "interactions.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
