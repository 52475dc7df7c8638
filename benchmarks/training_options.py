"""What learning rate, batch, genes a step and averaged weights are worth, where training pays: two hidden cell states.

    python benchmarks/training_options.py [--seeds 3] [--steps 1000] [--only NAME,...] [--out DIR]

The screens, their judges and columns are those of hidden_states.py: additive fold 0 of 60 genes, scored on fresh cells of
the true law, drawn independently. Each row is the preset with one option changed, the last weights kept, so that the
optimisation is judged and not the rule that keeps weights; `as it is` is the preset with none, `prior` no training.
Differences are to `as it is` of the same screen, mean and standard error over seeds, positive where the change is better.
An interrupted fit goes on: repeat the command.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path

import pandas as pd

import scdfm
from hidden_states import CELLS, COLUMNS, CONTROLS, Law, fitted, judged, measured, table
from scdfm.files import write_text
from scdfm.seeds import numpy_rng
from screens import RESULTS, heading

PRESET, PRIOR = "as it is", "prior"
CHANGES: dict[str, tuple[str, ...]] = {
    PRESET: (),
    "learning rate 2e-4": ("training.learning_rate=0.0002",),
    "learning rate 6e-4": ("training.learning_rate=0.0006",),
    "learning rate 6e-3": ("training.learning_rate=0.006",),
    "weights not averaged": ("training.ema_decay=0",),
    "averaged by .999": ("training.ema_decay=0.999",),
    "4 conditions a step": ("training.conditions_per_batch=4",),
    "16 conditions a step": ("training.conditions_per_batch=16",),
    "3 cells of a condition": ("training.cells_per_condition=3",),
    "12 cells of a condition": ("training.cells_per_condition=12",),
    "30 genes a step": ("flow.genes_per_step=30",),
}
"""Rows, each as settings over those of hidden_states.py: 2e-3, .99, 8 conditions of 6 cells, all 60 genes."""
COMMON = ("training.keep=last", "training.compile=off")
SCORED = ("energy", "wasserstein", "responders", "correlation", "l2")


def one_seed(seed: int, rows: list[str], args: argparse.Namespace) -> pd.DataFrame:
    """Scores of each row on one screen, means over test conditions."""
    law = Law.drawn(seed)
    cells = measured(law, seed)
    split = scdfm.additive_split(cells, fold=0, seed=seed)
    truth = table(law, {"control": CONTROLS, **dict.fromkeys(split.test, CELLS)}, numpy_rng(seed, "truth"))
    found = []
    for row in rows:
        settings = Namespace(set=[*COMMON, *CHANGES.get(row, ())])
        steps = 0 if row == PRIOR else args.steps
        run = fitted(cells, split, seed, settings, args.out / f"{seed}-{steps}-{row.replace(' ', '_')}", steps)
        means = pd.DataFrame(judged(run, truth, split)).T[list(COLUMNS)].mean()
        found.append(means.to_dict() | {"seed": seed, "row": row})
        print(f"seed {seed}, {row}: energy {means['energy']:.4f}", flush=True)
    return pd.DataFrame(found)


def page(scores: pd.DataFrame, steps: int) -> str:
    """Means over seeds, and what each change does to energy distance and Wasserstein distance."""
    paired = ("energy", "wasserstein")
    lines = [*heading("Learning rate, batch, genes a step and averaged weights"), f"{steps:,} steps.", ""]
    lines.append(
        "| row | seeds | " + " | ".join(SCORED) + " | " + " | ".join(f"{name}, gain" for name in paired) + " |"
    )
    lines.append("|---|---:|" + "---:|" * (len(SCORED) + len(paired)))
    as_is = scores[scores["row"] == PRESET].set_index("seed")
    for row, part in scores.groupby("row", sort=False):
        part = part.set_index("seed")
        values = [f"{part[name].mean():.4f}" for name in SCORED]
        for name in paired:
            gain = (as_is[name] - part[name]).dropna()
            values.append("–" if row == PRESET else f"{gain.mean():+.4f} ± {gain.sem():.4f}")
        lines.append(f"| {row} | {len(part)} | " + " | ".join(values) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Fit, score, write the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--steps", type=int, default=1000)
    options.add_argument("--only", help=f"some of the changes, by comma: {', '.join(CHANGES)}")
    options.add_argument("--out", type=Path, default=Path("runs/training_options"))
    options.add_argument("--results", type=Path, default=RESULTS)
    args = options.parse_args()
    asked = args.only.split(",") if args.only else list(CHANGES)
    if unknown := [name for name in asked if name not in CHANGES]:
        options.error(f"change '{unknown[0]}': expected some of {', '.join(CHANGES)}")
    rows = [PRIOR, *(name for name in CHANGES if name in asked or name == PRESET)]
    scores = pd.concat([one_seed(seed, rows, args) for seed in range(args.seeds)], ignore_index=True)
    text = page(scores, args.steps)
    args.results.mkdir(parents=True, exist_ok=True)
    write_text(args.results / "training_options.md", text)
    print(text)


if __name__ == "__main__":
    main()
