"""Scaled scores of protocol vcc2026 on the test conditions of a screen: the simple rules, and predictions of counts.

    python benchmarks/vcc2026_screen.py SCREEN.h5ad [--layer counts --fold 0] [--predicted NAME=COUNTS.h5ad ...]

The split is additive; the rules use the counts of its training and validation conditions. A prediction holds raw
counts of the test conditions, in X.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd

import scdfm
from scdfm.evaluation.vcc2026.counts import read_counts
from scdfm.report.tables import markdown, scaled_summary


def main() -> None:
    """Score, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("screen", type=Path)
    parser.add_argument("--layer", default="counts")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--predicted", action="append", default=[], help="NAME=COUNTS.h5ad; may be repeated")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    start = time.perf_counter()
    split = scdfm.additive_split(scdfm.read_cells(options.screen, target_sum=1e4, layer=options.layer), options.fold)
    real = read_counts(options.screen, layer=options.layer)
    training = pd.DataFrame(index=[*split.train, *split.validation])
    shared = {"protocol": "vcc2026", "training": training, "conditions": split.test, "seed": options.seed}
    table = scdfm.evaluate(None, real, **shared)
    attrs, parts = table.attrs, [table]
    for given in options.predicted:
        name, _, file = given.partition("=")
        predicted = read_counts(file, need_control=False)
        parts.insert(0, scdfm.evaluate(predicted, real, name=name, references=False, **shared))
    table = pd.concat(parts, ignore_index=True)
    table.attrs = attrs
    raw = scdfm.scaled(table).groupby("metric", sort=False)[["baseline", "replicate"]].first().dropna()
    text = "\n".join(
        [
            f"{options.screen.name}, additive split, fold {options.fold}: {len(split.test)} test conditions, "
            f"seed {options.seed} ({time.perf_counter() - start:.0f} s)",
            "",
            markdown(scaled_summary(table)),
            "| | mean response (0) | replicate (1) |",
            "|---|---:|---:|",
            *(f"| {name} | {row.baseline:.4f} | {row.replicate:.4f} |" for name, row in raw.iterrows()),
        ]
    )  # fmt: skip
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
