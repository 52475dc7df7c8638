"""The repeat of the experiment: one half of the real cells scored against the other, each with its own controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from scdfm.data.conditions import CONTROL
from scdfm.evaluation.pseudobulk import Floats, Rows
from scdfm.evaluation.registry import ERROR, FOLD_ERROR, VCC_METRICS
from scdfm.evaluation.vcc2026.counts import Counts
from scdfm.evaluation.vcc2026.metrics import compared, fold_errors, own_genes, ratio
from scdfm.evaluation.vcc2026.side import Side, side_of

SPLITS: Final = 5


def replicates(
    counts: Counts, real: Side, seed: int, progress: bool = False, splits: int = SPLITS
) -> pd.DataFrame:
    """Columns split, metric, value, n: aggregates of `splits` random splits, and the conditions that have a value.

    Each condition of two cells or more is split into halves of equal size. The error of fold changes keeps the
    genes and the scale of `real`, the side of all cells, and compares the fold changes of the halves.
    """
    seeds = np.random.SeedSequence(seed).generate_state(splits)
    found = []
    for i in tqdm(range(splits), "halves", unit="split", disable=not progress):
        values = _split(counts, real, int(seeds[i]))
        error = values.pop(ERROR)
        for name in VCC_METRICS:
            if name == ERROR:
                found.append((i, name, float(error[0]), 0))
                continue
            defined = values[name][np.isfinite(values[name])]
            found.append((i, name, float(defined.mean()) if len(defined) else np.nan, len(defined)))
    return pd.DataFrame(found, columns=["split", "metric", "value", "n"])


def _split(counts: Counts, real: Side, seed: int) -> dict[str, Floats]:
    a, b = halves(counts.rows, counts.order, seed)
    names = [name for name in real.conditions if name in a]
    first, second = side_of(counts, a, names), side_of(counts, b, names)
    values = compared(second, first, counts.genes)
    at = np.array([real.conditions.index(name) for name in names])
    own = own_genes(names, counts.genes)
    true = real.tests.significant[at] & ~own
    values[FOLD_ERROR] = fold_errors(first.tests.fold, second.tests.fold, real.tests.fold[at], true)
    values[ERROR] = np.array([ratio(values)])
    return values


def halves(
    rows: Mapping[str, Rows], order: Sequence[str], seed: int
) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """Two disjoint halves of ⌊n/2⌋ rows of every condition and of control, drawn in `order`; without those of one cell."""
    rng = np.random.default_rng(seed)
    first: dict[str, Rows] = {}
    second: dict[str, Rows] = {}
    for name in order:
        drawn = rng.permutation(rows[name])
        half = len(drawn) // 2
        if half:
            first[name], second[name] = np.sort(drawn[:half]), np.sort(drawn[half : 2 * half])
    return first, second


def anchors(table: pd.DataFrame) -> pd.DataFrame:
    """Columns metric, replicate, replicate_sd, replicate_min, replicate_max over the splits (sd divided by n)."""
    values = table.groupby("metric", sort=False)["value"]
    return pd.DataFrame(
        {
            "replicate": values.mean(),
            "replicate_sd": values.std(ddof=0),
            "replicate_min": values.min(),
            "replicate_max": values.max(),
        }
    ).reset_index()


def splittable(counts: Counts) -> bool:
    """Whether the control cells can be halved, and some condition."""
    big = [name for name, rows in counts.rows.items() if len(rows) > 1]
    return CONTROL in big and len(big) > 1
