"""Differential expression of every condition against control: Mann-Whitney tests on sparse cells.

Do the predicted *cells* show the responders of the real ones? Rank tests of both against control tell.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import ndtr
from scipy.stats import false_discovery_control, mannwhitneyu
from tqdm.auto import tqdm

from scdfm.data.cells import Stratum
from scdfm.data.conditions import CONTROL
from scdfm.data.stored import StoredMatrix, stacked, subset
from scdfm.evaluation.alignment import Pair
from scdfm.evaluation.ceiling import CEILING, Halves
from scdfm.evaluation.pseudobulk import Floats, Population, Rows, halved_controls, own_genes, taken
from scdfm.processes import openmp_threads_kept
from scdfm.seeds import numpy_rng

SMALL = 8
"""Conditions of at most this many cells get the exact test on genes without ties, as scipy's `auto` does."""

FDR = 0.05
"""Below it a gene responds."""

BATCH_CELLS = 20_000
"""Cells of conditions that are tested at once where cells are on disk, or as many as there are control cells."""


@dataclass(frozen=True)
class RankTests:
    """Two-sided Mann-Whitney tests of K conditions against control, each [K, A].

    `p_value`: asymptotic with tie and continuity corrections (exact for small samples without ties);
    `fdr`: Benjamini-Hochberg within each condition; `z`: the test's z-score (sign: up or down).
    """

    p_value: Floats
    fdr: Floats
    z: Floats


def against_control(
    population: Population, conditions: Sequence[str], control: str, progress: bool = False
) -> RankTests:
    """Test each of `conditions` against its control cells, all genes; conditions that share them at once."""
    with tqdm(total=len(conditions), desc="rank tests", unit="condition", disable=not progress) as bar:
        if population.matched:
            return _against_own(population, conditions, control, bar)
        return _against_shared(population, conditions, control, bar)


def _against_shared(population: Population, conditions: Sequence[str], control: str, bar: tqdm[Any]) -> RankTests:
    p_value, z = _asymptotic(population, conditions, control, bar)
    for k, condition in enumerate(conditions):
        if population.n_cells(condition) <= SMALL:
            _exact(p_value[k], population, condition, control)
    return RankTests(p_value=p_value, fdr=false_discovery_control(p_value, axis=1), z=z)


def _against_own(population: Population, conditions: Sequence[str], control: str, bar: tqdm[Any]) -> RankTests:
    """The tests of conditions with control cells of their own, group by group."""
    values = np.empty((3, len(conditions), population.X.shape[1]))
    place = {condition: k for k, condition in enumerate(conditions)}
    whole = [condition for condition in conditions if condition not in population.strata]
    for places in population.control_groups(whole).values():
        names = [whole[k] for k in places]
        rows = {name: population.rows[name] for name in names} | {control: population.control_rows(names[0])}
        tests = _against_shared(Population(population.X, population.genes, rows), names, control, bar)
        values[:, [place[name] for name in names]] = (tests.p_value, tests.fdr, tests.z)
    if divided := [condition for condition in conditions if condition in population.strata]:
        tests = _stratified(population, divided, control, bar)
        values[:, [place[name] for name in divided]] = (tests.p_value, tests.fdr, tests.z)
    return RankTests(*values)


def _stratified(population: Population, conditions: Sequence[str], control: str, bar: tqdm[Any]) -> RankTests:
    """The tests of conditions in several batches: each batch's cells against its own controls, taken together.

    z = Σ a·z_b / √Σ a² with a² = n·m / (n + m + 1), n cells and m controls of batch b: van Elteren's weights (1960).
    """
    batches: dict[bytes, dict[str, Rows]] = {}
    for name in conditions:
        for stratum in population.strata[name]:
            rows = batches.setdefault(stratum.controls.tobytes(), {control: stratum.controls})
            rows[name] = np.concatenate([rows[name], stratum.rows]) if name in rows else stratum.rows
    total, weight = np.zeros((len(conditions), population.X.shape[1])), np.zeros((len(conditions), 1))
    places = {name: k for k, name in enumerate(conditions)}
    with tqdm(disable=True) as silent:
        for rows in batches.values():
            names = [name for name in rows if name != control]
            _, z = _asymptotic(Population(population.X, population.genes, rows), names, control, silent)
            n, m = np.array([len(rows[name]) for name in names])[:, None], len(rows[control])
            square = n * m / (n + m + 1)
            at = [places[name] for name in names]
            total[at] += np.sqrt(square) * np.nan_to_num(z)
            weight[at] += square
    bar.update(len(conditions))
    z = total / np.sqrt(weight)
    p_value = 2 * ndtr(-np.abs(z))
    return RankTests(p_value=p_value, fdr=false_discovery_control(p_value, axis=1), z=z)


def _asymptotic(
    population: Population, conditions: Sequence[str], control: str, bar: tqdm[Any]
) -> tuple[Floats, Floats]:
    """p-values and z-scores [K, A]; of cells on disk a few conditions are in memory at once, beside the control."""
    if not isinstance(population.X, StoredMatrix):
        tests = tested(population, conditions, control)
        bar.update(len(conditions))
        return tests
    parts = []
    for batch in _batches(population, conditions, max(BATCH_CELLS, population.n_cells(control))):
        rows = {label: population.rows[label] for label in (control, *batch)}
        ends = np.cumsum([len(part) for part in rows.values()])
        places = {label: np.arange(end - len(rows[label]), end) for label, end in zip(rows, ends, strict=True)}
        X = taken(population.X, np.concatenate(list(rows.values())))
        parts.append(tested(Population(X, population.genes, places), batch, control))
        bar.update(len(batch))
    p_value, z = (np.concatenate(values) for values in zip(*parts, strict=True))
    return p_value, z


def _batches(population: Population, conditions: Sequence[str], at_once: int) -> Iterator[list[str]]:
    """Neighbouring conditions, of `at_once` cells together or one that has more."""
    batch: list[str] = []
    n = 0
    for condition in conditions:
        more = population.n_cells(condition)
        if batch and n + more > at_once:
            yield batch
            batch, n = [], 0
        batch.append(condition)
        n += more
    if batch:
        yield batch


def tested(population: Population, conditions: Sequence[str], control: str) -> tuple[Floats, Floats]:
    """p-values and z-scores [K, A] of cells in memory, by the normal approximation whatever their number."""
    import anndata
    from illico import asymptotic_wilcoxon
    from loguru import logger
    from numba import config as numba_config

    logger.disable("illico")
    labels = [control, *conditions]
    rows = np.concatenate([population.rows[label] for label in labels])
    group = np.repeat([f"{i:06d}" for i in range(len(labels))], [population.n_cells(label) for label in labels])
    assert not isinstance(population.X, StoredMatrix)
    if (
        len(rows) == (X := population.X).shape[0]
    ):  # all cells take part: label them where they lie, instead of copying the matrix
        placed = np.empty(len(rows), dtype=group.dtype)
        placed[rows] = group
        group = placed
    else:
        X = taken(population.X, rows)
    X = _from_zero(X)
    if not X.has_sorted_indices:
        X = X.sorted_indices()
    table = anndata.AnnData(
        sparse.csr_matrix(X),
        obs=pd.DataFrame({"group": group}, index=np.arange(len(group)).astype(str)),
        var=pd.DataFrame(index=np.arange(X.shape[1]).astype(str)),
    )
    with openmp_threads_kept(), contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        result = asymptotic_wilcoxon(
            table,
            is_log1p=True,
            group_keys="group",
            reference="000000",
            exp_post_agg=True,
            n_threads=min(n_threads(), numba_config.NUMBA_NUM_THREADS),  # type: ignore[attr-defined]
        )
    shape = (len(labels), X.shape[1])
    p_value, z, u = (result[name].to_numpy().reshape(shape)[1:] for name in ("p_value", "z_score", "statistic"))
    sizes = np.array([population.n_cells(label) for label in conditions])
    # At U of exactly n·m/2 the compiled kernel still subtracts the continuity correction; p is 1 there.
    level = u == sizes[:, None] * population.n_cells(control) / 2
    return np.where(level, 1.0, np.clip(p_value, 0, 1)), np.where(level, 0.0, z)


def _from_zero(X: sparse.csr_matrix) -> sparse.csr_matrix:
    """X with the genes that have negative values raised to 0: ranks stay, and sparse tests take 0 for the smallest."""
    if not X.nnz or X.data.min() >= 0:
        return X
    lowest = np.minimum(np.asarray(X.min(axis=0).todense()).ravel(), 0)
    return sparse.csr_matrix(X.toarray() - lowest)


def _exact(p_value: Floats, population: Population, condition: str, control: str) -> None:
    """Replace `p_value` [A] by the exact test's on genes whose values are all different."""
    x, y = (taken(population.X, population.rows[c]).toarray() for c in (condition, control))
    both = np.sort(np.vstack([x, y]), axis=0)
    untied = np.flatnonzero((np.diff(both, axis=0) != 0).all(axis=0))
    if len(untied):
        p_value[untied] = mannwhitneyu(x[:, untied], y[:, untied], method="exact", axis=0).pvalue


def n_threads() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fold_change(mean: Floats, control: Floats) -> Floats:
    """Fold change of geometric-like means, expm1(mean) / expm1(control mean), [K, A].

    1e-9 is added to both, so that a gene silent in control ranks above all others by its mean rather than
    at infinity, and one silent in both stays at 1.
    """
    return (np.expm1(mean) + 1e-9) / (np.expm1(control) + 1e-9)


def score_responders(
    pair: Pair, model: str, halves: Halves | None, seed: int, progress: bool = False
) -> dict[str, dict[str, Floats]]:
    """`de_recall`, `de_precision` and `de_direction` [K] of the prediction (called `model`) and of the ceiling.

    A prediction enters with at most as many cells as are real, so that numbers of cells do not decide what is
    significant. The ceiling's halves are tested against halves of the control cells of their own.
    """
    own = own_genes(pair.conditions, pair.real.genes)
    values = {}
    if pair.predicted is not None:
        claim = against_control(_beside_control(pair, seed), pair.conditions, CONTROL, progress)
        truth = against_control(pair.real, pair.conditions, CONTROL, progress)
        values[model] = agreement(claim, truth, own)
    if halves is not None:
        controls = halved_controls(pair.real, seed)
        first = _of_half(controls[0], halves.predicting, pair.conditions, progress)
        second = _of_half(controls[1], halves.compared, pair.conditions, progress)
        values[CEILING] = agreement(first, second, own)
    return values


def agreement(predicted: RankTests, real: RankTests, own: NDArray[np.bool_]) -> dict[str, Floats]:
    """Recall and precision of the real responders among the predicted ones, and the share of both that move alike.

    Genes that a condition targets itself (`own` [K, A]) do not count. NaN where there is nothing to share out.
    """
    called, true = (np.nan_to_num(tests.fdr, nan=1.0) < FDR for tests in (predicted, real))
    called, true = called & ~own, true & ~own
    both = called & true
    alike = both & (np.sign(predicted.z) == np.sign(real.z))
    return {"de_recall": _share(both, true), "de_precision": _share(both, called), "de_direction": _share(alike, both)}


def _share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> Floats:
    n = whole.sum(axis=1)
    return np.where(n > 0, part.sum(axis=1) / np.maximum(n, 1), np.nan)


def _beside_control(pair: Pair, seed: int) -> Population:
    """The predicted cells with the real control cells of each condition.

    Predicted cells are of no batch. So of a condition in several batches each batch's control cells are thinned until
    they stand as its real cells do.
    """
    predicted, real = pair.predicted, pair.real
    assert predicted is not None
    rows: dict[str, Rows] = {}
    for condition in pair.conditions:
        drawn, limit = predicted.rows[condition], real.n_cells(condition)
        if len(drawn) > limit:
            drawn = np.sort(numpy_rng(seed, "responders", condition).choice(drawn, limit, replace=False))
        rows[condition] = drawn
    own = {c: _standing(real, c, seed) for c in pair.conditions}
    used = np.unique(np.concatenate([real.rows[CONTROL], *own.values()]))
    n = predicted.X.shape[0]

    def placed(controls: Rows) -> Rows:
        return n + np.searchsorted(used, controls)

    matched = {c: placed(controls) for c, controls in own.items()} if real.matched else {}
    rows[CONTROL] = placed(real.rows[CONTROL])
    return Population(stacked(predicted.X, subset(real.X, used)), real.genes, rows, matched)


def _standing(real: Population, condition: str, seed: int) -> Rows:
    """Rows of control cells of `condition`, in the shares of batches that its own cells have."""
    strata = real.strata.get(condition)
    if strata is None:
        return real.control_rows(condition)
    share = min(len(one.controls) / len(one.rows) for one in strata)
    rng = numpy_rng(seed, "responders", "matched", condition)
    numbers = [max(1, int(share * len(one.rows))) for one in strata]
    draws = [rng.choice(one.controls, n, replace=False) for one, n in zip(strata, numbers, strict=True)]
    return np.unique(np.concatenate(draws))


def _within(strata: tuple[Stratum, ...], rows: Rows) -> tuple[Stratum, ...]:
    """The strata of some of a condition's cells."""
    parts = [Stratum(np.intersect1d(one.rows, rows), one.controls) for one in strata]
    return tuple(one for one in parts if len(one.rows))


def _of_half(controls: Population, half: Mapping[str, Rows], conditions: tuple[str, ...], progress: bool) -> RankTests:
    """Tests of half the cells of each condition; NaN for those of no cell."""
    there = [c for c in conditions if len(half[c]) and len(controls.control_rows(c))]
    values = np.full((3, len(conditions), len(controls.genes)), np.nan)
    if there:
        strata = {c: _within(controls.strata[c], half[c]) for c in there if c in controls.strata}
        population = replace(
            controls, rows={**controls.rows, **{c: half[c] for c in there}},
            strata={c: parts for c, parts in strata.items() if parts},
        )  # fmt: skip
        tests = against_control(population, there, CONTROL, progress)
        at = [conditions.index(c) for c in there]
        values[:, at] = (tests.p_value, tests.fdr, tests.z)
    return RankTests(*values)
