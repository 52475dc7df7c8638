"""What each part of the method is worth: full, no MMD, no graph, softmax attention, at one budget of steps.

    python benchmarks/ablation.py SCREEN.h5ad [--setting cpu|gpu] [--seeds 3] [--folds 0] [--max-steps N] [--out DIR]

SCREEN is a screen of singles and doubles, log1p, obs column `perturbation` (the log of experiments names the one
used). All variants see the same folds, seeds and steps; every fit predicts the test doubles, scored beside all baselines.
Prints two Markdown tables: means over folds and test conditions, averaged over seeds, with 95% intervals; and
each variant against the full model, paired by fold, seed and condition. Finished pieces are kept: repeat the command
to go on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import scdfm
from scdfm.benchmarking import Benchmark, Contender, benchmark
from scdfm.evaluation import LOWER_IS_BETTER, interval
from scdfm.reproduction import VARIANTS

METRICS = ("l2", "mae", "pearson_delta", "ds", "de_spearman", "pearson_delta_hat", "pearson_delta_hat_20", "energy")
FULL = "full"
# `cpu` is for two cores; `gpu` has half the published width, which an accelerator fits in minutes.
SETTINGS: dict[str, dict[str, Any]] = {
    "cpu": {
        "panel": {"n_genes": 300},
        "model": {"width": 32, "heads": 2, "layers": 2},
        "flow": {"genes_per_step": 128},
        "training": {
            "max_steps": 1000, "conditions_per_batch": 4, "cells_per_condition": 8, "warmup_steps": 50,
            "validate_every": 1000, "ema_decay": 0.99,
        },
        "sampling": {"steps": 3, "cells": 32},
        "split": {"validation_fraction": 0.0},
    },
    "gpu": {
        "model": {"width": 256, "heads": 8, "layers": 4},
        "flow": {"genes_per_step": 1000},
        "training": {
            "max_steps": 20_000, "conditions_per_batch": 4, "cells_per_condition": 32, "learning_rate": 5e-4,
            "warmup_steps": 500, "validate_every": 20_000, "precision": "bf16",
        },
        "sampling": {"cells": 128},
        "split": {"validation_fraction": 0.0},
    },
}  # fmt: skip


def main() -> None:
    """Run every piece that is not there yet; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("screen", type=Path)
    parser.add_argument("--setting", choices=SETTINGS, default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, nargs="+", default=[0])
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    args = parser.parse_args()
    base = scdfm.Config().updated(SETTINGS[args.setting])
    if args.max_steps:
        base = base.updated({"training": {"max_steps": args.max_steps, "validate_every": args.max_steps}})
    result = benchmark(
        args.screen, "additive", args.folds, args.seeds, out=args.out, metrics=METRICS, resume=True,
        models=[Contender(name, base.updated(over)) for name, over in VARIANTS.items()],
    )  # fmt: skip
    print(
        f"setting {args.setting}: {base.training.max_steps} steps, width {base.model.width}, folds {args.folds}, "
        f"{args.seeds} seeds\n"
    )
    print(scores(result))
    print(against(result.scores, FULL, [name for name in VARIANTS if name != FULL]))


def scores(result: Benchmark) -> str:
    """Every model's means with intervals, as Markdown; – where a model has no such score."""
    table = result.summary[result.summary["part"] == "all"]
    rows = []
    for model, found in table.groupby("model", sort=False):
        by_metric = found.set_index("metric")[["mean", "low", "high"]].astype(float).reindex(METRICS)
        cells = [_cell(*by_metric.loc[name]) for name in METRICS]
        rows.append(f"| {model} | " + " | ".join(cells) + " |")
    return _table("model", rows)


def against(table: pd.DataFrame, base: str, variants: Sequence[str]) -> str:
    """How much worse each variant is than the model `base` (positive = base is better), paired, as Markdown."""
    rows = []
    for variant in variants:
        cells = []
        for metric in METRICS:
            wide = table[(table["metric"] == metric) & table["model"].isin([base, variant])].pivot_table(
                index=["fold", "condition"], columns="model", values="value"
            )
            sign = -1 if metric in LOWER_IS_BETTER else 1
            loss = (sign * (wide[base] - wide[variant])).groupby("condition").mean().to_numpy(np.float64)
            cells.append(_cell(float(loss.mean()), *interval(loss)))
        rows.append(f"| {variant} | " + " | ".join(cells) + " |")
    return _table(f"loss beside {base}", rows)


def _cell(mean: float, low: float, high: float) -> str:
    return "–" if np.isnan(mean) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _table(head: str, rows: list[str]) -> str:
    arrows = [f"{name} {'↓' if name in LOWER_IS_BETTER else '↑'}" for name in METRICS]
    return "\n".join([f"| {head} | " + " | ".join(arrows) + " |", "|---" * (1 + len(METRICS)) + "|", *rows]) + "\n"


if __name__ == "__main__":
    main()
