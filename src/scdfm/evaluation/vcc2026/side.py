"""One side of a comparison, the real or a predicted one: profiles, their sampling error, differential expression.

For condition p with cells i, counts y_ig, totals l_i and sums P_g: profile b_g = log1p(TS · P_g / Σ P), sampling
correction by leaving out one cell at a time, rank tests and fold changes of counts per million.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.stats import false_discovery_control
from threadpoolctl import threadpool_limits

from scdfm.data.conditions import CONTROL
from scdfm.evaluation.expression import n_threads, tested
from scdfm.evaluation.pseudobulk import Floats, Population, Rows, taken
from scdfm.evaluation.vcc2026.counts import Counts

PROFILE_TOTAL: Final = 5e4
"""TS: counts that a condition's summed profile is brought to before its logarithm."""
GATE: Final = 5.0
"""Counts per million that a gene must exceed in the control cells to be tested."""
PSEUDOCOUNT: Final = 1e-9
SIGNIFICANT: Final = 0.05
_BLOCK: Final = 32  # cells whose leave-one-out profiles are dense at once: they stay in cache


@dataclass(frozen=True)
class Tests:
    """Rank tests against control: `kept` [A] passed the gate; `p_value`, `fdr`, `fold` (log2) [K, A], NaN elsewhere."""

    kept: NDArray[np.bool_]
    p_value: Floats
    fdr: Floats
    fold: Floats

    @cached_property
    def significant(self) -> NDArray[np.bool_]:
        """Genes with an FDR below 0.05 [K, A]."""
        return np.nan_to_num(self.fdr, nan=1.0) < SIGNIFICANT


@dataclass(frozen=True)
class Side:
    """K conditions: `profile` [K, A], `correction` [K], those of the control cells, and the `tests` against these."""

    conditions: tuple[str, ...]
    profile: Floats
    correction: Floats
    control_profile: Floats
    control_correction: float
    tests: Tests

    @property
    def shift(self) -> Floats:
        """Profile − control profile, [K, A]."""
        return self.profile - self.control_profile


def side_of(
    cells: Counts,
    rows: Mapping[str, Rows],
    conditions: Sequence[str],
    control: tuple[Counts, Rows] | None = None,
) -> Side:
    """The side of `conditions`, whose cells are `rows` of `cells`.

    control: the cells compared with, if not `rows[CONTROL]` of the same: a prediction meets the real control.
    """
    own, control_rows = control or (cells, rows[CONTROL])
    names = list(conditions)
    with threadpool_limits(1), ThreadPoolExecutor(n_threads()) as pool:
        summed = list(pool.map(lambda name: cells.sums(rows[name]), names))
        correction = np.array(list(pool.map(lambda name: jackknife(cells, rows[name]), names)))
    counts, mean = (np.array(part).reshape(len(names), -1) for part in zip(*summed, strict=True))
    control_counts, control_mean = own.sums(control_rows)
    return Side(
        tuple(names), profiles(counts), correction, profiles(control_counts[None])[0], jackknife(own, control_rows),
        _tests(cells, rows, names, own, control_rows, mean, control_mean),
    )  # fmt: skip


def profiles(counts: Floats) -> Floats:
    """log1p of summed `counts` [K, A] brought to 50,000 in all; 0 where there is none."""
    total = counts.sum(axis=1, keepdims=True)
    return np.asarray(
        np.log1p(counts * np.divide(PROFILE_TOTAL, total, out=np.zeros_like(total), where=total > 0))
    )


def jackknife(cells: Counts, rows: Rows) -> float:
    """Sampling variance of a profile, summed over genes: (n − 1)/n · Σ_g Σ_i (v_ig − v̄_g)², v_ig without cell i.

    It is 0 below two cells, or without a count. Deviations from the full profile are summed, which is exact and
    keeps the digits.
    """
    X = taken(cells.X, rows)
    n, depth = X.shape[0], cells.depth[rows]
    whole = float(depth.sum())
    if n < 2 or whole <= 0:
        return 0.0
    counts, _ = cells.sums(rows)
    profile = profiles(counts[None])[0]
    first, second = np.zeros((2, X.shape[1]))
    for start in range(0, n, _BLOCK):
        left = whole - depth[start : start + _BLOCK]
        values = X[start : start + _BLOCK].toarray()
        np.subtract(counts, values, out=values)
        values *= np.divide(PROFILE_TOTAL, left, out=np.zeros_like(left), where=left > 0)[:, None]
        np.log1p(values, out=values)
        values -= profile
        first += values.sum(axis=0)
        second += np.einsum("ij,ij->j", values, values)
    return max((n - 1) / n * float((second - first**2 / n).sum()), 0.0)


def _tests(
    cells: Counts, rows: Mapping[str, Rows], conditions: list[str], own: Counts, control_rows: Rows,
    mean: Floats, control_mean: Floats,
) -> Tests:  # fmt: skip
    """Two-sided Mann-Whitney tests (normal, tie and continuity corrected), Benjamini-Hochberg within a condition."""
    kept = control_mean > GATE
    placed = {name: rows[name] for name in conditions}
    logged, controls = cells.logged, control_rows
    if own is not cells:
        controls = np.arange(logged.shape[0], logged.shape[0] + len(control_rows))
        logged = sp.vstack([logged, taken(own.logged, control_rows)], format="csr")
    shape = (len(conditions), logged.shape[1])
    p_value, fdr, fold = np.full((3, *shape), np.nan)
    fold[:, kept] = np.log2((mean[:, kept] + PSEUDOCOUNT) / (control_mean[kept] + PSEUDOCOUNT))
    if kept.any():
        population = Population(logged, np.arange(shape[1]).astype(str), {**placed, CONTROL: controls})
        p_value[:, kept] = tested(population, conditions, CONTROL)[0][:, kept]
        fdr[:, kept] = false_discovery_control(p_value[:, kept], axis=1)
    return Tests(kept, p_value, fdr, fold)
