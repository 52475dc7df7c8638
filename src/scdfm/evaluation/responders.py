"""Do the predicted *cells* show the responders of the real ones? Rank tests of both against control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scdfm.data.cells import Stratum
from scdfm.data.conditions import CONTROL
from scdfm.data.stored import stacked, subset
from scdfm.evaluation.alignment import Pair
from scdfm.evaluation.ceiling import CEILING, Halves
from scdfm.evaluation.expression import RankTests, against_control
from scdfm.evaluation.pseudobulk import Floats, Population, Rows, halved_controls
from scdfm.evaluation.vcc2026.metrics import own_genes
from scdfm.seeds import numpy_rng

FDR = 0.05


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
    return {
        "de_recall": _share(both, true),
        "de_precision": _share(both, called),
        "de_direction": _share(alike, both),
    }


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


def _of_half(
    controls: Population, half: Mapping[str, Rows], conditions: tuple[str, ...], progress: bool
) -> RankTests:
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
