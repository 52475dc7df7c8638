"""The metrics: their names, which direction is good, where values can lie; and the pointwise ones, each a formula.

Everything is log1p of normalised counts; K conditions, G scored genes. A value that has no definition is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from scdfm.data.conditions import near
from scdfm.errors import ConfigError
from scdfm.evaluation.expression import fold_change
from scdfm.evaluation.pseudobulk import Floats
from scdfm.evaluation.ranks import Distance, standing

POINTWISE: Final = (
    "l2", "mse", "mae", "pearson_delta", "ds", "ds_signed", "de_spearman", "pearson_delta_hat",
    "pearson_delta_hat_20", "mse_weighted", "pearson_delta_weighted", "r2_delta_weighted", "mse_corrected",
    "pearson_delta_split", "ds_cosine", "centroid_accuracy", "transpose_rank",
)  # fmt: skip
WEIGHTED: Final = ("mse_weighted", "pearson_delta_weighted", "r2_delta_weighted")
"""Pointwise metrics that weigh genes by their test against control."""
DISTRIBUTION: Final = ("energy", "mmd", "wasserstein", "variance_error", "zero_fraction_error")
METRICS: Final = (*POINTWISE, *DISTRIBUTION)
RESPONDERS: Final = ("de_recall", "de_precision", "de_direction")
"""Differential expression of predicted cells; as long again as everything else, so scored where it is asked for."""
PDS: Final = "pds_cosine"
ERROR: Final = "expr_mse_unbiased_capped_norm"
FIDELITY: Final = "de_wilcoxon_direction_fidelity_yield_raw"
REACH: Final = "de_wilcoxon_direction_reach_raw"
JACCARD: Final = "de_wilcoxon_sig_jaccard"
FOLD_ERROR: Final = "de_wilcoxon_lfc_nmae"
VCC_SCORED: Final = (PDS, ERROR, FIDELITY, REACH, JACCARD, FOLD_ERROR)
"""The six metrics of the Virtual Cell Challenge 2026."""
NUMERATOR, DENOMINATOR = "expr_mse_unbiased_capped", "expr_distance_unbiased"
VCC_DIAGNOSTICS: Final = (NUMERATOR, DENOMINATOR, "expr_mse_unbiased", "expr_real_mass_ratio")
"""Parts of `expr_mse_unbiased_capped_norm`, and checks of it; not scored by themselves."""
VCC_METRICS: Final = (*VCC_SCORED, *VCC_DIAGNOSTICS)
LOWER_IS_BETTER: Final = frozenset({
    "l2", "mse", "mae", "mse_delta", "mae_delta", "mse_weighted", "mse_corrected", *DISTRIBUTION, ERROR, FOLD_ERROR,
})  # fmt: skip
NEUTRAL: Final = frozenset({"de_nsig_counts_real", "de_nsig_counts_pred", *VCC_DIAGNOSTICS})
"""Counts and parts of other metrics, without a better or worse."""
_CORRELATIONS: Final = (
    "pearson_delta",
    "pearson_delta_hat",
    "pearson_delta_hat_20",
    "pearson_delta_weighted",
    "pearson_delta_split",
    "de_spearman",
)
_SHARES: Final = (
    "ds", "ds_signed", "ds_cosine", "centroid_accuracy", "transpose_rank", "zero_fraction_error", *RESPONDERS, PDS,
    REACH, FIDELITY, JACCARD,
)  # fmt: skip
_UNBIASED: Final = ("energy", "mmd", "mse_corrected", ERROR)
RANGES: Final[dict[str, tuple[float, float]]] = {
    **dict.fromkeys(LOWER_IS_BETTER - set(_UNBIASED), (0.0, np.inf)),
    **dict.fromkeys(_CORRELATIONS, (-1.0, 1.0)),
    **dict.fromkeys(_SHARES, (0.0, 1.0)),
    "r2_delta_weighted": (-np.inf, 1.0),
}
"""Where the values of a metric can lie; one without an entry may lie anywhere (unbiased distances fall below 0)."""
FLAT = 1e-9
"""A vector whose largest departure from its mean is below this (times the values' scale) counts as constant."""


def checked(metrics: Iterable[str] | None, choices: tuple[str, ...]) -> tuple[str, ...]:
    """`metrics` in the order of `choices`, or all of them; ConfigError on an unknown name."""
    if metrics is None:
        return choices
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in names:
        if name not in choices:
            raise ConfigError(f"metric '{name}': expected some of {', '.join(choices)}{near(name, choices)}")
    if not names:
        raise ConfigError("metrics is empty; name at least one, or leave it out for all")
    return tuple(name for name in choices if name in names)


def l2(predicted: Floats, real: Floats) -> Floats:
    """Euclidean norm over genes of predicted − real mean, [K]."""
    return np.asarray(np.linalg.norm(predicted - real, axis=1))


def mse(predicted: Floats, real: Floats) -> Floats:
    """Mean over genes of the squared difference of means, [K]."""
    return np.asarray(np.mean((predicted - real) ** 2, axis=1))


def mae(predicted: Floats, real: Floats) -> Floats:
    """Mean over genes of the absolute difference of means, [K]."""
    return np.asarray(np.mean(np.abs(predicted - real), axis=1))


def pearson(x: Floats, y: Floats, scale: float = 1.0) -> Floats:
    """Pearson correlation of the rows of `x` and `y` [K, G] -> [K]; NaN where either row is constant.

    `scale` is the size of the numbers that were subtracted to give `x` and `y`: rounding leaves about
    1e-16 of it, so a row flatter than 1e-9 of it is constant.
    """
    x = x - x.mean(axis=1, keepdims=True)
    y = y - y.mean(axis=1, keepdims=True)
    flat = (np.abs(x).max(axis=1, initial=0) <= FLAT * scale) | (np.abs(y).max(axis=1, initial=0) <= FLAT * scale)
    norm = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    product = np.einsum("kg,kg->k", x, y)
    return np.where(flat, np.nan, product / np.where(flat, 1.0, norm)).clip(-1, 1)


def pearson_delta(predicted: Floats, real: Floats, predicted_origin: Floats, origin: Floats) -> Floats:
    """Pearson of (predicted − its origin) and (real − origin), [K].

    With the control mean as origin this is Pearson Δ; with the mean O of the training conditions' means it is
    Systema's Pearson Δ̂ (Viñas Torné et al. 2025). Origins are [G] or [K, G].
    """
    scale = max(float(np.abs(real).max(initial=0)), 1e-300)
    return pearson(predicted - predicted_origin, real - origin, scale)


def on_top(values: Floats, top: NDArray[np.int64]) -> Floats:
    """`values` [K, G] at each condition's own genes `top` [K, n] -> [K, n]."""
    return np.take_along_axis(values, top, axis=1)


def top_genes(score: Floats, n: int = 20) -> NDArray[np.int64]:
    """The `n` columns of largest `score` per row [K, G] -> [K, n]; ties go to the earlier gene."""
    return np.argsort(-score, axis=1, kind="stable")[:, :n]


def spearman(x: Floats, y: Floats, fewest: int = 3) -> float:
    """Spearman correlation of two vectors; NaN below `fewest` values or where either is constant."""
    if len(x) < fewest:
        return float("nan")
    return float(pearson(rankdata(x)[None], rankdata(y)[None])[0])


def effect_weights(z: Floats) -> Floats:
    """Weights [K, G] of genes from their test against control `z` [K, G], each row summing to 1.

    |z| is brought to 0 to 1 within a condition and squared (Mejia et al. 2025): genes that do not respond hardly
    count. Equal weights where no gene stands out.
    """
    size = np.abs(z)
    low, high = size.min(axis=1, keepdims=True), size.max(axis=1, keepdims=True)
    spread = np.where(high > low, high - low, 1.0)
    weight = np.where(high > low, ((size - low) / spread) ** 2, 1.0)
    return np.asarray(weight / weight.sum(axis=1, keepdims=True))


def mse_weighted(predicted: Floats, real: Floats, weight: Floats) -> Floats:
    """Σ w (p − r)² over genes, [K]."""
    return np.asarray(np.einsum("kg,kg->k", weight, (predicted - real) ** 2))


def pearson_weighted(predicted: Floats, real: Floats, weight: Floats) -> Floats:
    """Weighted Pearson correlation of the rows of shifts `predicted` and `real` [K, G]; NaN where one is constant."""
    x, y = _centred(predicted, weight), _centred(real, weight)
    xx, yy, xy = (np.einsum("kg,kg,kg->k", weight, a, b) for a, b in ((x, x), (y, y), (x, y)))
    flat = ~((xx > FLAT**2) & (yy > FLAT**2))
    return np.where(flat, np.nan, xy / np.sqrt(np.where(flat, 1.0, xx * yy))).clip(-1, 1)


def r2_weighted(predicted: Floats, real: Floats, weight: Floats) -> Floats:
    """1 − Σ w (p − r)² / Σ w (r − r̄)² of shifts [K, G], r̄ the weighted mean; NaN where the real one is constant."""
    y = _centred(real, weight)
    total = np.einsum("kg,kg,kg->k", weight, y, y)
    flat = ~(total > FLAT**2)
    error = mse_weighted(predicted, real, weight)
    return np.where(flat, np.nan, 1 - error / np.where(flat, 1.0, total))


def _centred(values: Floats, weight: Floats) -> Floats:
    return np.asarray(values - np.einsum("kg,kg->k", weight, values)[:, None])


def discrimination(
    predicted: Floats,
    real: Floats,
    *,
    signed: bool,
    distance: Distance = "cityblock",
    without: list[NDArray[np.int64]] | None = None,
    groups: Iterable[list[int]] | None = None,
) -> Floats:
    """Discrimination score [K] of shifts from control `predicted` and `real`, both [K, A].

    1 − r / K, where r (from 0) is the rank of the true condition among all K by distance to the prediction:
    1 is best, chance is (K + 1) / 2K. Conditions at exactly the same distance share their mean rank. The
    published variant compares |shift| (`signed=False`), so that a shift of the wrong sign counts as right.
    `without` names genes (columns) left out for each condition. `groups` are places of conditions that are ranked
    among themselves (default: all). Undefined (NaN) for a single condition.
    """
    if groups is not None:
        scores = np.full(len(predicted), np.nan)
        for places in groups:
            left_out = None if without is None else [without[k] for k in places]
            scores[places] = discrimination(
                predicted[places], real[places], signed=signed, distance=distance, without=left_out
            )
        return scores
    if not signed:
        predicted, real = np.abs(predicted), np.abs(real)
    scores = np.full(len(predicted), np.nan)
    if len(real) < 2:
        return scores
    own = standing(predicted, real, distance)
    scores[own.ranked] = (1 - (own.closer + own.level / 2) / len(real))[own.ranked]
    for k, genes in enumerate(without or []):
        if own.ranked[k] and len(genes):
            columns = np.delete(np.arange(real.shape[1]), genes)
            row = cdist(predicted[k : k + 1, columns], real[:, columns], distance)[0]
            level = np.sum(row == row[k]) - 1
            scores[k] = 1 - (np.sum(row < row[k]) + level / 2) / len(real)
    return scores


def centroid_accuracy(predicted: Floats, real: Floats, groups: Iterable[list[int]] | None = None) -> Floats:
    """Systema's centroid accuracy [K]: share of the other real means that lie farther from the prediction than its own.

    By Euclidean distance of means [K, G]; equal distances count half. Chance is 1/2; NaN for a single condition.
    """
    return _share_farther(predicted, real, "euclidean", groups)


def transpose_rank(predicted: Floats, real: Floats, groups: Iterable[list[int]] | None = None) -> Floats:
    """Share of the other *predictions* that lie farther from a condition's real mean than its own, [K].

    A model that predicts one mean for all is at chance, 1/2, here and in `centroid_accuracy`; a prediction that is
    near to everything passes one of the two alone.
    """
    return _share_farther(real, predicted, "euclidean", groups)


def ds_cosine(predicted: Floats, real: Floats, groups: Iterable[list[int]] | None = None) -> Floats:
    """Share of the other real shifts that point further away from the predicted one than its own does, [K].

    Shifts [K, A] hold no gene that a condition targets. A shift without length points nowhere: distance 1.
    """
    if not real.shape[1]:
        return np.full(len(predicted), np.nan)
    return _share_farther(predicted, real, "cosine", groups)


def _share_farther(queries: Floats, answers: Floats, distance: Distance, groups: Iterable[list[int]] | None) -> Floats:
    """For each row of `queries` [K, A] the share of the other `answers` [K, A], in its group, farther than its own.

    Answers without a value (nothing predicted) do not take part; a row whose own is without one gives NaN.
    """
    shares = np.full(len(queries), np.nan)
    for places in groups or [list(range(len(queries)))]:
        own = standing(queries[places], answers[places], distance)
        others = own.closer + own.level + own.farther
        shares[places] = np.where(others > 0, (own.farther + own.level / 2) / np.maximum(others, 1), np.nan)
    return shares


def de_spearman(predicted: Floats, real: Floats, control: Floats, significant: NDArray[np.bool_]) -> Floats:
    """Spearman of predicted and real fold changes over each condition's `significant` genes [K, A] -> [K].

    Undefined (NaN) below three significant genes, and where a fold change is constant over them.
    """
    x, y = fold_change(predicted, control), fold_change(real, control)
    return np.array([spearman(x[k, keep], y[k, keep]) for k, keep in enumerate(significant)])


@dataclass(frozen=True)
class Standard:
    """What predicted means are scored against, K conditions over A genes.

    `real` [K, A] with its mean sampling variance over genes `noise` [K]; `control` [A], the real one, or [K, A], each
    condition's own; `centre` (likewise), Systema's O (NaN where nothing trained); `scored` [G], columns of the
    pointwise metrics; `top` [K, 20] and `significant` [K, G], places within the scored genes; `weight` [K, G];
    `targeted` [A], genes that a condition targets; `apart`, the control means that prediction and truth subtract where
    they must not share one, each as `control`. `groups`: places of conditions with the same control, where there are
    several.
    """

    real: Floats
    control: Floats
    centre: Floats
    scored: NDArray[np.int64]
    top: NDArray[np.int64]
    significant: NDArray[np.bool_]
    noise: Floats
    weight: Floats
    targeted: NDArray[np.bool_]
    apart: tuple[Floats, Floats]
    groups: tuple[list[int], ...] | None = None


def _columns(values: Floats, columns: NDArray[np.int64]) -> Floats:
    """Some columns of `values` [..., A], rows together in memory; all of them without a copy."""
    if np.array_equal(columns, np.arange(values.shape[-1])):
        return values
    return np.take(values, columns, axis=-1)


def score_means(
    predicted: Floats,
    standard: Standard,
    metrics: Iterable[str],
    predicted_control: Floats | None = None,
    *,
    noise: Floats | float = 0.0,
    apart: Floats | None = None,
) -> dict[str, Floats]:
    """Values [K] of the pointwise `metrics` for `predicted` means [K, A]; rows of NaN give NaN.

    `predicted_control` [A]: the origin of predicted shifts where it is not the real control (protocol paper). `noise`
    [K]: mean sampling variance of the prediction. `apart` [K, A]: what a rule predicts from one half of the control cells.
    """
    origin = standard.control if predicted_control is None else predicted_control
    columns = standard.scored
    one, two = (half[..., columns] for half in standard.apart)
    free = ~standard.targeted
    p, r, o = (_columns(values, columns) for values in (predicted, standard.real, standard.centre))
    control, shifts = standard.control[..., columns], (predicted - origin, standard.real - standard.control)
    origin_on_top = o[standard.top] if o.ndim == 1 else on_top(o, standard.top)
    values: dict[str, Callable[[], Floats]] = {
        "l2": lambda: l2(p, r),
        "mse": lambda: mse(p, r),
        "mae": lambda: mae(p, r),
        "pearson_delta": lambda: pearson_delta(p, r, origin[..., columns], control),
        "ds": lambda: discrimination(*shifts, signed=False, groups=standard.groups),
        "ds_signed": lambda: discrimination(*shifts, signed=True, groups=standard.groups),
        "de_spearman": lambda: de_spearman(p, r, control, standard.significant),
        "pearson_delta_hat": lambda: pearson_delta(p, r, o, o),
        "pearson_delta_hat_20": lambda: pearson_delta(
            on_top(p, standard.top), on_top(r, standard.top), origin_on_top, origin_on_top
        ),
        "mse_weighted": lambda: mse_weighted(p, r, standard.weight),
        "pearson_delta_weighted": lambda: pearson_weighted(p - origin[..., columns], r - control, standard.weight),
        "r2_delta_weighted": lambda: r2_weighted(p - control, r - control, standard.weight),
        "mse_corrected": lambda: mse(p, r) - np.minimum(noise, standard.noise) - standard.noise,
        "pearson_delta_split": lambda: pearson_delta(p if apart is None else apart[:, columns], r, one, two),
        "ds_cosine": lambda: ds_cosine(shifts[0][:, free], shifts[1][:, free], standard.groups),
        "centroid_accuracy": lambda: centroid_accuracy(p, r, standard.groups),
        "transpose_rank": lambda: transpose_rank(p, r, standard.groups),
    }
    return {name: values[name]() for name in metrics if name in values}
