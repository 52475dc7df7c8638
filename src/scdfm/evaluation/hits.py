"""Does a ranking find the hits? What part of the true ones stands in the first 5, 10 and 20% of a ranked library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy.stats import hypergeom

from scdfm.data.conditions import CONTROL, near
from scdfm.errors import ConfigError, DataError
from scdfm.evaluation import baselines
from scdfm.evaluation.alignment import Cells, Pair, align
from scdfm.evaluation.prior import PRIOR, prior_of, prior_population, training_means
from scdfm.evaluation.pseudobulk import Floats, Moments, Population, control_moments, moments

SHARES: Final = (0.05, 0.1, 0.2)
"""Parts of the ranked library that are looked at."""
HITS: Final = 0.1
"""Part of the library that counts as true hits."""
FEWEST: Final = 20
"""Conditions that a library must have: 5% of fewer is no condition."""
CHANCE: Final = "chance"


def hits(
    predicted: Cells | None,
    real: Cells,
    control: str = CONTROL,
    training: Any = None,
    *,
    perturbation_key: str | None = None,
    name: str = "model",
    subset: Mapping[str, str] | None = None,
    conditions: Sequence[str] | None = None,
    signature: Mapping[str, float] | None = None,
    share_of_hits: float = HITS,
    backed: bool | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """How many of the true hits stand at the top of a ranking by the prediction, by simple rules, and by chance.

    The library is the scored conditions. It is ranked by `effect`, the squared mean shift from control without what
    sampling noise adds, and with `signature` (gene -> weight) by the weighted sum of the shift. True hits are the
    first `share_of_hits` of the real ranking. Where `training` is a run, its closed-form prior ranks too (row `prior`,
    as many cells, with the prediction's seed or `seed`). The other options are those of `evaluate`.

    Columns: model, score, share, n_ranked (conditions in that share), n_hits, found, recall (of the hits), precision
    (of the ranked) and p_chance, the probability that a random order finds as many. Row `chance`: what one finds on
    average. Rules that rank nothing (no change, training mean) have no row; what a rule cannot predict it ranks last.
    Raises ConfigError for fewer than 20 conditions.
    """
    if name in (PRIOR, CHANCE, "real"):
        raise ConfigError(f"name '{name}' is that of another row; choose another for the model")
    if not 0 < share_of_hits < 1:
        raise ConfigError(f"share_of_hits {share_of_hits:g}: expected a share between 0 and 1")
    pair = align(
        predicted, real, control=control, perturbation_key=perturbation_key, subset=subset, conditions=conditions,
        backed=backed,
    )  # fmt: skip
    n = len(pair.conditions)
    if n < FEWEST:
        raise ConfigError(f"hits: {n} scored conditions, expected at least {FEWEST}: rank a larger library")
    ranked_by: dict[str, Floats | None] = {"effect": None}
    if signature is not None:
        ranked_by["signature"] = _weights(signature, pair.real.genes.tolist())
    shifts = _shifts(pair, training, name)
    shifts |= _prior_shifts(predicted, pair, training, seed)
    rows = []
    for score, weight in ranked_by.items():
        scores = {
            model: np.einsum("kg,kg->k", shift, shift) - noise if weight is None else shift @ weight
            for model, (shift, noise) in shifts.items()
        }
        true = _first(scores.pop("real"), max(1, round(share_of_hits * n)))
        for model, values in scores.items():
            if len(np.unique(values[np.isfinite(values)])) > 1:
                rows += [_row(model, score, share, _first(values, _n(share, n)), true, n) for share in SHARES]
        rows += [_chance(score, share, len(true), n) for share in SHARES]
    columns = ["model", "score", "share", "n_ranked", "n_hits", "found", "recall", "precision", "p_chance"]
    return pd.DataFrame(rows, columns=columns)


def _shifts(pair: Pair, training: Any, name: str) -> dict[str, tuple[Floats, Floats]]:
    """Mean shifts [K, A] and their summed sampling variance [K] of `real`, the prediction, and the rules (0)."""
    controls = control_moments(pair.real, pair.conditions)
    shifts = {"real": _with_noise(pair.real, pair.conditions, controls)}
    if pair.predicted is not None:
        shifts[name] = _with_noise(pair.predicted, pair.conditions, controls)
    all_controls = moments(pair.real, [CONTROL]).mean[0]
    trained, _ = training_means(training, pair, all_controls)
    for rule, mean in baselines.predictions(trained, pair.conditions).items():
        if rule not in (baselines.NO_CHANGE, baselines.TRAINING_MEAN):
            shifts[rule] = (mean - controls.mean, np.zeros(len(mean)))
    return shifts


def _prior_shifts(predicted: Cells | None, pair: Pair, training: Any, seed: int) -> dict[str, tuple[Floats, Floats]]:
    """The same of what a run predicts before training; empty where there is no such run."""
    before, _ = prior_of(training)
    if before is None or predicted is None:
        return {}
    population, _ = prior_population(before, predicted, pair, seed)
    if population is None:
        return {}
    return {PRIOR: _with_noise(population, pair.conditions, control_moments(pair.real, pair.conditions))}


def _with_noise(population: Population, conditions: Sequence[str], controls: Moments) -> tuple[Floats, Floats]:
    stats = moments(population, conditions)
    n = np.array([population.n_cells(c) for c in conditions])
    shift = np.where(n[:, None] > 0, stats.mean - controls.mean, np.nan)
    return shift, stats.variance.sum(axis=1) / np.maximum(n - 1, 1)


def _weights(signature: Mapping[str, float], genes: list[str]) -> Floats:
    place = {gene: i for i, gene in enumerate(genes)}
    weights = np.zeros(len(genes))
    for gene, weight in signature.items():
        if gene not in place:
            raise DataError(
                f"signature: gene '{gene}' is not among the {len(genes)} that prediction and real cells share"
                f"{near(gene, genes)}; leave it out"
            )
        weights[place[gene]] = weight
    if not weights.any():
        raise ConfigError("signature: no gene has a weight; expected gene -> weight")
    return weights


def _n(share: float, n: int) -> int:
    return max(1, round(share * n))


def _first(values: Floats, n: int) -> set[int]:
    """Places of the `n` largest values; what has none comes last."""
    return set(np.argsort(-np.where(np.isfinite(values), values, -np.inf), kind="stable")[:n].tolist())


def _row(model: str, score: str, share: float, ranked: set[int], true: set[int], n: int) -> tuple[Any, ...]:
    overlap = len(ranked & true)
    p = float(hypergeom.sf(overlap - 1, n, len(true), len(ranked)))
    return (
        model, score, share, len(ranked), len(true), float(overlap), overlap / len(true), overlap / len(ranked), p,
    )  # fmt: skip


def _chance(score: str, share: float, n_hits: int, n: int) -> tuple[Any, ...]:
    ranked = _n(share, n)
    overlap = ranked * n_hits / n
    return (CHANCE, score, share, ranked, n_hits, overlap, overlap / n_hits, overlap / ranked, float("nan"))
