"""The prior's means alone, no network: L2 of test conditions beside ridge, over many splits in a minute.

    python benchmarks/prior.py NORMAN_LIKE.h5ad [--splits inner|outer] [--expected kept=1 pair=1] [--pull kept=1e6 pair=0.3]
        [--width 0.25] [--simulated 0]

What is believed before any data (`scdfm.prior.learn.EXPECTED`, and PULL_OF, how firmly) is chosen on the inner splits,
which lie inside the training conditions of additive fold 0: 5 additive, 6 combinations, 3 draws of 12 unseen targets. The
outer ones are those of accuracy.py: 5 additive, 5 combinations, 3 draws. A pull of 1e6 leaves a weight as it is expected.
--width is how much the noise of components differs (EXCESS_WIDTH); --simulated adds so many screens of `scdfm.simulate`, in
inner splits of seeds from 100 on, in outer ones from 0 on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import scdfm
from accuracy import NARROW, unseen_targets
from scdfm.data import select_genes
from scdfm.evaluation.baselines import Training, ridge
from scdfm.prior import learn
from scdfm.prior.kernel import every_target

CELLS = 20
"""Cells of each condition that tell the variance of genes."""


def inner(cells: scdfm.CellTable) -> Iterator[tuple[str, scdfm.Split]]:
    """Splits of the conditions that additive fold 0 leaves for training."""
    fold = scdfm.additive_split(cells, fold=0)
    names = [*fold.train, *fold.validation]
    for draw in range(5):
        yield "additive", scdfm.additive_split(names, fold=draw, validation_fraction=0)
    for draw in range(6):
        yield "combinations", scdfm.combinations_split(names, fold=draw, validation_fraction=0)
    rows = np.concatenate([cells.rows(name) for name in ("control", *names)])
    known = cells.take(np.sort(rows))
    for draw in range(3):
        yield "unseen targets", unseen_targets(known, draw)


def outer(cells: scdfm.CellTable) -> Iterator[tuple[str, scdfm.Split]]:
    """The splits that accuracy.py reports."""
    for fold in range(5):
        yield "additive", scdfm.additive_split(cells, fold=fold)
    for fold in range(5):
        yield "combinations", scdfm.combinations_split(cells, fold=fold)
    for draw in range(3):
        yield "unseen targets", unseen_targets(cells, draw)


def errors(cells: scdfm.CellTable, split: scdfm.Split) -> tuple[float, float, float]:
    """Mean L2 of the prior over all test conditions, and of prior and ridge over those that ridge predicts."""
    genes = select_genes(cells, split, scdfm.Config().updated(NARROW).panel).genes
    columns, names, tests = cells.columns(genes), [*split.train, *split.validation], list(split.test)
    control = cells.control_mean("control")[columns]
    means = cells.means(names).to_numpy()[:, columns]
    rows = [cells.rows(name)[:CELLS] for name in names]
    values = cells.X[np.concatenate(rows)][:, columns].toarray()
    variances = ((values - np.repeat(means, [len(some) for some in rows], axis=0)) ** 2).mean(0)
    counts = [cells.n_cells(name) for name in names]
    prior = learn.learn_prior(names, means - control, counts, variances * CELLS / (CELLS - 1), genes).prior
    expected = control + prior.knowing(every_target(tests)).predict(tests)
    simple = ridge(Training(tuple(names), means, control, tuple(genes)), tests)
    real = cells.means(tests).to_numpy()[:, columns]
    ours, theirs = (np.linalg.norm(np.maximum(mean, 0) - real, axis=1) for mean in (expected, simple))
    both = np.isfinite(theirs)
    return float(ours.mean()), float(ours[both].mean()), float(theirs[both].mean())


def assigned(pairs: Sequence[str], known: Sequence[str]) -> dict[str, float]:
    """NAME=VALUE as a table."""
    found = dict(pair.split("=", 1) for pair in pairs)
    if unknown := sorted(set(found) - set(known)):
        raise SystemExit(f"'{unknown[0]}': expected some of {', '.join(known)}")
    return {name: float(value) for name, value in found.items()}


def main() -> None:
    """Print one row for each kind of split."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("screen", type=Path)
    options.add_argument("--splits", choices=("inner", "outer"), default="inner")
    options.add_argument("--expected", nargs="*", default=[], metavar="NAME=VALUE")
    options.add_argument("--pull", nargs="*", default=[], metavar="NAME=VALUE")
    options.add_argument("--width", type=float, default=learn.EXCESS_WIDTH)
    options.add_argument("--simulated", type=int, default=0, metavar="SCREENS")
    args = options.parse_args()
    learn.EXPECTED.update(assigned(args.expected, list(learn.EXPECTED)))
    learn.PULL_OF.update(assigned(args.pull, list(learn.EXPECTED)))
    learn.EXCESS_WIDTH = args.width
    cells = scdfm.read_cells(args.screen)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for kind, split in (inner if args.splits == "inner" else outer)(cells):
        found.setdefault(kind, []).append(errors(cells, split))
    first = 100 if args.splits == "inner" else 0
    for seed in range(first, first + args.simulated):
        cells = scdfm.read_cells(scdfm.simulate(seed=seed))
        found.setdefault("simulated", []).append(errors(cells, scdfm.additive_split(cells, fold=0)))
    print("| splits | prior | prior where ridge predicts | ridge | folds of the prior |")
    print("|---|---:|---:|---:|---|")
    for kind, rows in found.items():
        each = ", ".join(f"{row[0]:.3f}" for row in rows)
        print(f"| {args.splits} {kind} | " + " | ".join(f"{x:.3f}" for x in np.mean(rows, 0)) + f" | {each} |")


if __name__ == "__main__":
    main()
