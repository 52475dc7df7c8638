"""The 0 and the 1 of the challenge's scale: the mean response of the real conditions, and a repeat of the experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import pandas as pd
import scipy.sparse as sp
from tqdm.auto import tqdm

from scdfm.data.conditions import CONTROL
from scdfm.evaluation.pseudobulk import Floats, Rows
from scdfm.evaluation.registry import ERROR, FOLD_ERROR, VCC_METRICS
from scdfm.evaluation.vcc2026.counts import Counts
from scdfm.evaluation.vcc2026.metrics import compared, fold_errors, own_genes, ratio
from scdfm.evaluation.vcc2026.side import Side, side_of
from scdfm.seeds import numpy_rng

MEAN_RESPONSE: Final = "mean response"


def mean_response(counts: Counts, seed: int) -> Counts:
    """The zero of the scale: the mean count profile of the real conditions themselves, the same for all of them.

    A gene's mean leaves out the conditions that target it. The draws are those of cell-eval2's baseline of this seed.
    """
    names = sorted(counts.conditions, key=lambda name: counts.spelling[name])
    means = np.array([counts.sums(counts.rows[name])[0] / len(counts.rows[name]) for name in names])
    kept = ~own_genes(names, counts.genes)
    n = kept.sum(axis=0)
    left_out = np.where(n > 0, (means * kept).sum(axis=0) / np.maximum(n, 1), means.mean(axis=0))
    control = counts.sums(counts.rows[CONTROL])[0] / len(counts.rows[CONTROL])
    scale = np.divide(left_out, control, out=np.zeros_like(control), where=control > 0)
    rng = np.random.default_rng(seed)
    parts, rows, start = [], {}, 0
    for name in names:
        size = len(counts.rows[name])
        parts.append(_scaled(counts, scale, size, rng))
        rows[name] = np.arange(start, start + size)
        start += size
    return replace(counts, X=sp.csr_matrix(sp.vstack(parts, format="csr")), rows=rows)


def emitted(counts: Counts, real: Side, profile: Mapping[str, Floats], seed: int) -> Counts:
    """As many cells of each condition as there are real ones, whose expected profile is `profile` [A].

    `profile` is log1p of counts brought to 50,000, as `Side.profile`; a gene without control counts stays at 0. The
    control cells drawn depend on the seed and the condition, not on the predictor.
    """
    control = np.expm1(real.control_profile)
    parts, rows, start = [], {}, 0
    for name, log_profile in profile.items():
        linear = np.expm1(np.maximum(log_profile, 0))
        scale = np.divide(linear, control, out=np.zeros_like(control), where=control > 0)
        size = len(counts.rows[name])
        parts.append(_scaled(counts, scale, size, numpy_rng(seed, "emission", name)))
        rows[name] = np.arange(start, start + size)
        start += size
    return replace(counts, X=sp.csr_matrix(sp.vstack(parts, format="csr")), rows=rows)


def _scaled(counts: Counts, scale: Floats, size: int, rng: np.random.Generator) -> sp.csr_matrix:
    """`size` control cells drawn with replacement, their counts times `scale` [A]; rounded to float32, as published."""
    control = counts.rows[CONTROL]
    cells = counts.X[control[rng.integers(0, len(control), size=size)]]
    cells.data = (cells.data * scale[cells.indices]).astype(np.float32).astype(np.float64)
    cells.eliminate_zeros()
    return cells


SPLITS: Final = 5


def replicates(
    counts: Counts, real: Side, seed: int, progress: bool = False, splits: int = SPLITS
) -> pd.DataFrame:
    """Columns split, metric, value, n: aggregates of `splits` random splits, and the conditions that have a value.

    Each condition of two cells or more is split into halves of equal size. The error of fold changes keeps the
    genes and the scale of `real`, the side of all cells, and compares the fold changes of the halves.
    """
    seeds = np.random.SeedSequence(seed).generate_state(splits)
    rows = []
    for i in tqdm(range(splits), "halves", unit="split", disable=not progress):
        values = _split(counts, real, int(seeds[i]))
        error = values.pop(ERROR)
        for name in VCC_METRICS:
            if name == ERROR:
                rows.append((i, name, float(error[0]), 0))
                continue
            defined = values[name][np.isfinite(values[name])]
            rows.append((i, name, float(defined.mean()) if len(defined) else np.nan, len(defined)))
    return pd.DataFrame(rows, columns=["split", "metric", "value", "n"])


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
