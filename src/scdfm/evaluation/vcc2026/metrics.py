"""The metrics of the Virtual Cell Challenge 2026, a prediction's side against the real one.

A side holds profiles, their sampling error and differential expression. For condition p with cells i, counts y_ig, totals
l_i and sums P_g: profile b_g = log1p(TS · P_g / Σ P), sampling correction by leaving out one cell at a time, rank tests and
fold changes of counts per million.

Definitions: cell-eval2 0.20.0, preset vcc2026 (its metric specification); docs/evaluation.md repeats them.
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
from scdfm.evaluation.expression import FDR, n_threads, tested
from scdfm.evaluation.metrics import DENOMINATOR, FIDELITY, FOLD_ERROR, JACCARD, NUMERATOR, PDS, REACH
from scdfm.evaluation.pseudobulk import Floats, Population, Rows, own_genes, taken
from scdfm.evaluation.vcc2026.counts import Counts

PROFILE_TOTAL: Final = 5e4
"""TS: counts that a condition's summed profile is brought to before its logarithm."""
GATE: Final = 5.0
"""Counts per million that a gene must exceed in the control cells to be tested."""
PSEUDOCOUNT: Final = 1e-9
_BLOCK: Final = 32  # cells whose leave-one-out profiles are dense at once: they stay in cache
PURITY: Final = 0.9
"""Share of right directions that a ranking must keep (direction reach)."""
GATE_GENES: Final = 10
"""Real significant genes that a condition needs for the error of its fold changes."""


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
        return np.nan_to_num(self.fdr, nan=1.0) < FDR


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
    cells: Counts, rows: Mapping[str, Rows], conditions: Sequence[str], control: tuple[Counts, Rows] | None = None
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
    return np.asarray(np.log1p(counts * np.divide(PROFILE_TOTAL, total, out=np.zeros_like(total), where=total > 0)))


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


def compared(predicted: Side, real: Side, genes: NDArray[np.str_]) -> dict[str, Floats]:
    """Values [K] of every metric but the ratio of sums (`ratio`), K the conditions of `predicted`.

    `real` may hold more conditions: a prediction is told apart from all of them.
    """
    at = np.array([real.conditions.index(name) for name in predicted.conditions])
    own = own_genes(predicted.conditions, genes)
    panel = own_genes(real.conditions, genes).any(axis=0)
    values = {PDS: discrimination(predicted.shift[:, ~panel], real.shift[:, ~panel], at)}
    values |= _expression(predicted, real, at, own)
    return values | _directions(predicted.tests, real.tests, at, own, genes)


def ratio(values: dict[str, Floats]) -> float:
    """`expr_mse_unbiased_capped_norm`: Σ numerator / Σ denominator over conditions where both are finite.

    NaN where the denominators do not sum to a positive number: the screen shows no effect at its depth.
    """
    above, below = values[NUMERATOR], values[DENOMINATOR]
    both = np.isfinite(above) & np.isfinite(below)
    total = float(below[both].sum())
    return float(above[both].sum()) / total if total > 0 else float("nan")


def discrimination(predicted: Floats, real: Floats, at: NDArray[np.int64]) -> Floats:
    """1 − rank/(n − 1) [K] of the true condition `at` among the n of `real` by cosine distance; ties share their rank.

    The distance to a shift without length is 1. NaN without a gene; 1 for a single condition.
    """
    if not real.shape[1]:
        return np.full(len(predicted), np.nan)
    if len(real) < 2:
        return np.ones(len(predicted))
    length = np.sqrt(np.einsum("ij,ij->i", predicted, predicted))[:, None] * np.sqrt(np.einsum("ij,ij->i", real, real))
    product = predicted @ real.T
    distance = np.clip(1 - np.divide(product, length, out=np.zeros_like(product), where=length != 0), 0, 2)
    true = distance[np.arange(len(at)), at][:, None]
    rank = (distance < true).sum(axis=1) + ((distance == true).sum(axis=1) - 1) / 2
    return np.asarray(1 - rank / (len(real) - 1))


def _expression(predicted: Side, real: Side, at: NDArray[np.int64], own: NDArray[np.bool_]) -> dict[str, Floats]:
    """Squared errors and effects per gene, own targets left out, with their sampling error taken off."""
    n_genes = (~own).sum(axis=1)
    weight = np.divide(1.0, n_genes, out=np.zeros(len(own)), where=n_genes > 0)
    error, effect = (
        np.einsum("ij,ij->i", gap, gap)
        for gap in (np.where(own, 0, predicted.profile - real.profile[at]), np.where(own, 0, real.shift[at]))
    )
    capped = np.minimum(predicted.correction, real.correction[at])
    claim = float((capped * weight).sum())
    if claim > 0:
        capped = capped * min(1.0, spread(predicted.profile, own, weight) / claim)
    noise, mass = real.correction[at], np.expm1(real.profile[at]).sum(axis=1) / PROFILE_TOTAL
    values = {
        NUMERATOR: (error - capped - noise) * weight,
        DENOMINATOR: (effect - noise - real.control_correction) * weight,
        "expr_mse_unbiased": (error - predicted.correction - noise) * weight,
        "expr_real_mass_ratio": mass,
    }
    return {name: np.where(n_genes > 0, scores, np.nan) for name, scores in values.items()}


def spread(profile: Floats, own: NDArray[np.bool_], weight: Floats) -> float:
    """What of sampling error a prediction can have: the weighted sum of squares of its profiles about their mean.

    Genes are those that at least two conditions keep (`own` are left out), each condition weighs `weight`.
    """
    w = weight[:, None] * ~own
    whole, n_conditions = w.sum(axis=0), (~own).sum(axis=0)
    usable = (n_conditions >= 2) & (whole > 0)
    deviation = profile[:, usable] - profile[:, usable].mean(axis=0)
    w, whole = w[:, usable], whole[usable]
    squares = (w * deviation**2).sum(axis=0) - (w * deviation).sum(axis=0) ** 2 / whole
    return float(np.maximum(squares, 0).sum())


def _directions(
    predicted: Tests, real: Tests, at: NDArray[np.int64], own: NDArray[np.bool_], genes: NDArray[np.str_]
) -> dict[str, Floats]:
    """Metrics of differential expression; a condition's own targets are left out where the real side tests them."""
    own = own & real.kept
    called, true = predicted.significant & ~own, real.significant[at] & ~own
    fold = real.fold[at]
    judged = predicted.kept & real.kept & ~own & (np.nan_to_num(fold) != 0)
    right = judged & (np.sign(predicted.fold) == np.sign(fold))
    n_true = true.sum(axis=1)
    n_called = (called & judged).sum(axis=1)
    either = (called | true).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        fidelity = (called & right).sum(axis=1) / np.maximum(n_called, n_true)
        jaccard = np.where(either > 0, (called & true).sum(axis=1) / either, 1.0)
    by_name = np.argsort(np.argsort(genes, kind="stable"), kind="stable")
    reach = np.full(len(at), np.nan)
    for k in np.flatnonzero(n_true):
        pool = np.flatnonzero(true[k] & predicted.kept)
        order = np.lexsort(
            (by_name[pool], -np.abs(predicted.fold[k, pool]), predicted.p_value[k, pool], predicted.fdr[k, pool])
        )
        reach[k] = _deepest(judged[k, pool][order], right[k, pool][order]) / n_true[k]
    errors = fold_errors(predicted.fold, fold, fold, true)
    return {FIDELITY: fidelity, REACH: reach, JACCARD: jaccard, FOLD_ERROR: errors}


def _deepest(judged: NDArray[np.bool_], right: NDArray[np.bool_]) -> int:
    """The largest number of `judged` genes from the top of a ranking of which 90% are `right`; 0 without any."""
    depth, good = np.cumsum(judged), np.cumsum(right)
    pure = (depth > 0) & (good / np.maximum(depth, 1) >= PURITY)
    return int(depth[pure].max(initial=0))


def fold_errors(a: Floats, b: Floats, scale: Floats, true: NDArray[np.bool_]) -> Floats:
    """Σ|a − b| / Σ|scale| over the `true` genes [K, A] -> [K]; NaN below ten of them. A fold change that a side
    lacks is 0."""
    gap = np.where(true, np.abs(np.nan_to_num(a) - np.nan_to_num(b)), 0).sum(axis=1)
    size = np.where(true, np.abs(scale), 0).sum(axis=1)
    usable = (true.sum(axis=1) >= GATE_GENES) & (size > 0)
    return np.asarray(np.divide(gap, size, out=np.full(len(gap), np.nan), where=usable))
