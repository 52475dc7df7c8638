"""Real Norman cells, full length: five composed doubles held out, every baseline beside the model.

    python benchmarks/norman_subset.py DATA.h5ad [--seeds 3] [--max-steps N] [--out DIR]

DATA is a screen with obs columns `dataset` and `perturbation` whose `norman19` subset holds the doubles below
(perturbench_devel.h5ad). Each seed fits, predicts 100 cells a condition, and evaluates; the table gives the mean
over seeds and conditions with its 95% interval. Finished seeds are kept, so the command can be repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import scdfm
from scdfm.data import named_split
from scdfm.evaluation import summarise
from scdfm.report import markdown

METRICS = (
    "l2",
    "mse",
    "mae",
    "pearson_delta",
    "ds",
    "de_spearman",
    "pearson_delta_hat",
    "pearson_delta_hat_20",
    "energy",
)
TEST = ("MAP2K3+MAP2K6", "KLF1+MAP2K6", "KLF1+TGFBR2", "MAPK1+TGFBR2", "MAP2K3+SLC38A2")


def one_seed(cells: scdfm.CellTable, seed: int, max_steps: int | None, out: Path) -> pd.DataFrame:
    """The long table of one fit."""
    config = scdfm.Config.preset("default").updated({"seed": seed})
    if max_steps:
        config = config.updated({"training": {"max_steps": max_steps}})
    split = named_split(cells, TEST, seed=seed)
    run = scdfm.fit(cells, split, config, out=out / f"run{seed}", resume=True)
    predicted = run.predict(n_cells=100, seed=seed, progress=True)
    table = scdfm.evaluate(predicted, cells, training=run, name="scdfm", seed=seed)
    return table.assign(seed=seed)


def main() -> None:
    """Fit and score every seed; print one row per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/norman_subset"))
    args = parser.parse_args()
    cells = scdfm.read_cells(args.data, subset={"dataset": "norman19"})
    tables = [one_seed(cells, seed, args.max_steps, args.out) for seed in range(args.seeds)]
    show(pd.concat(tables), args.out / "metrics.csv")


def show(table: pd.DataFrame, path: Path) -> None:
    """Save the long table; print the mean over seeds and conditions with its 95% interval."""
    table.to_csv(path, index=False)
    replicates = table.assign(condition=table["condition"] + " of seed " + table["seed"].astype(str))
    print(markdown(summarise(replicates), METRICS, intervals=True))


if __name__ == "__main__":
    main()
