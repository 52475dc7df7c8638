"""The names and definitions of cell-eval, for parity with published figures.

Two releases are followed: 0.5.42 (with pdex 0.1.21), which the published figures used, and 0.8.2 (with pdex
0.3.0). Where they answer 0 for what has no answer, so do these; docs/evaluation.md lists the differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import false_discovery_control

from scdfm.data.conditions import CONTROL
from scdfm.data.stored import stacked, subset
from scdfm.evaluation import metrics as formulas
from scdfm.evaluation.alignment import Pair
from scdfm.evaluation.expression import FDR, SMALL, RankTests, against_control
from scdfm.evaluation.metrics import discrimination
from scdfm.evaluation.pseudobulk import Floats, Population, moments
from scdfm.evaluation.ranks import Distance

Release = Literal["0.5.42", "0.8.2"]
RELEASES: Final = ("0.5.42", "0.8.2")
DEPTHS: Final = (None, 50, 100, 200, 500)
_OVERLAP: Final = {f"{kind}_at_{k or 'N'}": (kind, k) for kind in ("overlap", "precision") for k in DEPTHS}
_DISCRIMINATION: Final[dict[str, Distance]] = {
    "discrimination_score_l1": "cityblock",
    "discrimination_score_l2": "euclidean",
    "discrimination_score_cosine": "cosine",
}
NAMES: Final = (
    "mse_delta", "mae_delta", *_DISCRIMINATION, *_OVERLAP, "de_spearman_sig", "de_direction_match",
    "de_spearman_lfc_sig", "de_sig_genes_recall", "de_nsig_counts_real", "de_nsig_counts_pred", "pr_auc", "roc_auc",
)  # fmt: skip


@dataclass(frozen=True)
class Side:
    """The prediction or the real cells: means [K, G], control mean [G], FDR [K, G] and fold changes [K, G].

    `ratio` is what rank correlations see (the log ratio in 0.8.2, where both are the same).
    """

    mean: Floats
    control: Floats
    fdr: Floats
    ratio: Floats
    log_ratio: Floats


def cell_eval(pair: Pair, scored: NDArray[np.int64], names: Sequence[str], release: Release) -> dict[str, Floats]:
    """Values [K] of cell-eval's metrics `names` over the `scored` genes, each side against its own control.

    A prediction without control cells is taken to have the real ones. As published, all control cells are one,
    whatever the covariates.
    """
    if not names:
        return {}
    assert pair.predicted is not None
    real = _side(_scored(replace(pair.real, matched={}), scored), pair.conditions, release)
    predicted = _side(_scored(_with_control(pair.predicted, pair.real), scored), pair.conditions, release)
    values: dict[str, Floats] = {}
    for name in names:
        if name in _DISCRIMINATION:
            values[name] = _discrimination(pair, scored, predicted, real, _DISCRIMINATION[name], release)
        elif name in ("mse_delta", "mae_delta"):
            error = formulas.mse if name == "mse_delta" else formulas.mae
            values[name] = error(predicted.mean - predicted.control, real.mean - real.control)
    return values | _expression(predicted, real, names, release)


def _scored(population: Population, scored: NDArray[np.int64]) -> Population:
    if np.array_equal(scored, np.arange(population.X.shape[1])):
        return population
    scored = np.sort(scored)
    return Population(subset(population.X, None, scored), population.genes[scored], population.rows)


def _with_control(predicted: Population, real: Population) -> Population:
    if CONTROL in predicted.rows:
        return predicted
    control = subset(real.X, real.rows[CONTROL])
    n = predicted.X.shape[0]
    rows = dict(predicted.rows) | {CONTROL: np.arange(n, n + control.shape[0])}
    return Population(stacked(predicted.X, control), predicted.genes, rows)


def _side(population: Population, conditions: Sequence[str], release: Release) -> Side:
    means = moments(population, [CONTROL, *conditions]).mean
    control, mean = means[0], means[1:]
    tests = against_control(population, conditions, CONTROL)
    if release == "0.8.2":
        with np.errstate(divide="ignore", invalid="ignore"):
            log_ratio = np.log2(np.expm1(mean) / np.expm1(control))
        log_ratio[np.isnan(log_ratio)] = 0.0  # silent in both; silent in one is infinite
        return Side(mean, control, tests.fdr.astype(np.float32), *(log_ratio.astype(np.float32),) * 2)
    # pdex 0.1.21 corrects over all conditions at once. It takes the data for logarithmic (and expm1 of their mean)
    # only where cells sum to less than 15 on average; otherwise fold changes are ratios of mean log1p values.
    p_value = _single_precision(tests, population, conditions)
    fdr = false_discovery_control(p_value.ravel()).reshape(p_value.shape)
    if population.X.sum() < 15 * population.X.shape[0]:
        target, reference = np.expm1(mean).astype(np.float32), np.expm1(control).astype(np.float32)
    else:
        target, reference = mean.astype(np.float32), control.astype(np.float32)
    ratio = np.ones_like(target)
    np.divide(target, reference, out=ratio, where=np.broadcast_to(reference != 0, target.shape))
    ratio = np.where(reference == 0, 20.0, np.where(target == 0, 1 / 20, ratio))
    with np.errstate(invalid="ignore"):  # a mean below 0 has no logarithm: no direction, and the last rank
        log_ratio = np.log2(ratio).astype(np.float32)
    return Side(mean, control, fdr, ratio.astype(np.float32), log_ratio)


def _single_precision(tests: RankTests, population: Population, conditions: Sequence[str]) -> Floats:
    """The tests' p-values as scipy gives them for float32 cells: those below 1e-45 are 0."""
    p_value = np.minimum(2 * ndtr(-np.abs(tests.z.astype(np.float32))), 1)
    small = [k for k, condition in enumerate(conditions) if population.n_cells(condition) <= SMALL]
    p_value[small] = tests.p_value[small]
    return np.asarray(p_value)


def _discrimination(
    pair: Pair, scored: NDArray[np.int64], predicted: Side, real: Side, distance: Distance, release: Release
) -> Floats:
    genes = pair.real.genes[np.sort(scored)]
    own = [np.flatnonzero(genes == condition) for condition in pair.conditions]
    shift = (predicted.mean - predicted.control, real.mean - real.control)
    return discrimination(*shift, signed=release == "0.8.2", distance=distance, without=own)


def _expression(predicted: Side, real: Side, names: Sequence[str], release: Release) -> dict[str, Floats]:
    called, true = predicted.fdr < FDR, real.fdr < FDR
    agree = np.sign(predicted.log_ratio) == np.sign(real.log_ratio)
    hits, n_true = (called & true).sum(1).astype(float), true.sum(1).astype(float)
    counted = np.where(n_true > 0, n_true, np.nan)
    values: dict[str, Floats] = {
        "de_direction_match": (agree & true).sum(1) / counted,
        "de_sig_genes_recall": hits / counted,
        "de_nsig_counts_real": n_true,
        "de_nsig_counts_pred": called.sum(1).astype(float),
    }
    values["de_spearman_sig"] = np.full(len(true), _counts_agree(n_true, values["de_nsig_counts_pred"], release))
    x, y = predicted.ratio, real.ratio
    values["de_spearman_lfc_sig"] = np.array(
        [formulas.spearman(x[k, keep], y[k, keep], 2) for k, keep in enumerate(true)]
    )
    ranked = [_ranked(side.log_ratio, side.fdr) for side in (predicted, real)]
    for name, (kind, k) in _OVERLAP.items():
        values[name] = np.array([_overlap(p, r, kind, k) for p, r in zip(*ranked, strict=True)])
    if {"pr_auc", "roc_auc"} & set(names):
        values["pr_auc"], values["roc_auc"] = _areas(predicted.fdr, true, release)
    return {name: values[name] for name in names if name in values}


def _counts_agree(real: Floats, predicted: Floats, release: Release) -> float:
    """Spearman over conditions of the numbers of significant genes, the same for every condition."""
    present = (real > 0) | ((predicted > 0) if release == "0.5.42" else False)
    return formulas.spearman(real[present], predicted[present], 2) if present.any() else 1.0


def _ranked(log_ratio: Floats, fdr: Floats) -> list[NDArray[np.int64]]:
    """Significant genes of each condition, largest |log fold change| first, ties in the genes' order."""
    ranked = []
    for size, q in zip(np.abs(log_ratio), fdr, strict=True):
        genes = np.flatnonzero(q < FDR)
        ranked.append(genes[np.argsort(-size[genes], kind="stable")])
    return ranked


def _overlap(predicted: NDArray[np.int64], real: NDArray[np.int64], kind: str, k: int | None) -> float:
    """Shared genes among the top k of both, over k; k at most the real (overlap) or predicted (precision) genes."""
    available = len(real) if kind == "overlap" else len(predicted)
    depth = min(k or available, available)
    return len(np.intersect1d(predicted[:depth], real[:depth])) / depth if depth else 0.0


def _areas(fdr: Floats, true: NDArray[np.bool_], release: Release) -> tuple[Floats, Floats]:
    """Areas under the precision-recall and ROC curves of −log10 predicted FDR for the real significant genes."""
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

    k = len(fdr)
    if release == "0.5.42":  # one curve over all conditions; an FDR of exactly 0 counts as 1e-10
        score = -np.log10(np.where(fdr == 0, np.float32(1e-10), fdr)).ravel()
        label = true.ravel()
        if not 0 < label.sum() < label.size:
            return np.full(k, np.nan), np.full(k, np.nan)
        precision, recall, _ = precision_recall_curve(label, score)
        return np.full(k, auc(recall, precision)), np.full(k, roc_auc_score(label, score))
    score = -np.log10(np.clip(fdr, np.float32(1e-10), 1))
    areas = np.full((2, k), np.nan)
    for i in range(k):
        if 0 < true[i].sum() < true[i].size:
            areas[:, i] = average_precision_score(true[i], score[i]), roc_auc_score(true[i], score[i])
    return areas[0], areas[1]
