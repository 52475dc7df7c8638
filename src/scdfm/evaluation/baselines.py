"""What simple rules predict from the training conditions' means alone.

Every baseline maps test conditions to a mean [K, A] (log1p of normalised counts); a row is NaN where the rule
has no answer. All work on shifts, mean − control mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scdfm.data.conditions import targets
from scdfm.evaluation.pseudobulk import Floats

NO_CHANGE, TRAINING_MEAN, ADDITIVE, RIDGE, LOW_RANK = (
    "no change",
    "training mean",
    "additive",
    "ridge",
    "low-rank linear",
)
BASELINES = (NO_CHANGE, TRAINING_MEAN, ADDITIVE, RIDGE, LOW_RANK)
PENALTIES = tuple(float(10.0**e) for e in np.arange(-3, 3.01, 0.25))
"""Ridge penalties that leave-one-out chooses from."""


@dataclass(frozen=True)
class Training:
    """Means [C, A] of the training conditions and of control [A], over `genes` (A)."""

    conditions: tuple[str, ...]
    mean: Floats
    control: Floats
    genes: tuple[str, ...]

    @property
    def shift(self) -> Floats:
        """Mean − control mean, [C, A]."""
        return self.mean - self.control

    @property
    def centre(self) -> Floats:
        """O of Systema: the mean [A] of the training conditions' means; NaN without any."""
        if not self.conditions:
            return np.full_like(self.control, np.nan)
        return np.asarray(self.mean.mean(axis=0))


def no_change(training: Training, conditions: Sequence[str]) -> Floats:
    """The control mean for every condition, [K, A]."""
    return np.tile(training.control, (len(conditions), 1))


def training_mean(training: Training, conditions: Sequence[str]) -> Floats:
    """The mean of the training conditions' means for every condition, [K, A]."""
    return np.tile(training.centre, (len(conditions), 1))


def additive(training: Training, conditions: Sequence[str]) -> Floats:
    """Control plus the sum of the targets' single shifts, [K, A]; undefined unless every single trained."""
    shift = dict(zip(training.conditions, training.shift, strict=True))
    predicted = np.full((len(conditions), len(training.control)), np.nan)
    for k, condition in enumerate(conditions):
        singles = targets(condition)
        if all(target in shift for target in singles):
            predicted[k] = training.control + sum(shift[target] for target in singles)
    return predicted


def ridge(training: Training, conditions: Sequence[str], penalty: float | None = None) -> Floats:
    """Ridge regression of the shift on which targets are perturbed and on being a combination, [K, A].

    shift = Σ effect(target) + effect(combination). `penalty` (λ) none: the one of PENALTIES with the smallest
    leave-one-out error over the training conditions. Unseen targets add nothing; a condition with no seen
    target is undefined.
    """
    if not training.conditions:
        return np.full((len(conditions), len(training.control)), np.nan)
    known = sorted({target for condition in training.conditions for target in targets(condition)})
    design = _design(training.conditions, known)
    if penalty is None:
        penalty = leave_one_out_penalty(design, training.shift)
    gram = design.T @ design + penalty * np.eye(design.shape[1])
    weights = np.linalg.solve(gram, design.T @ training.shift)
    predicted = training.control + _design(conditions, known) @ weights
    seen = [any(target in known for target in targets(condition)) for condition in conditions]
    predicted[~np.array(seen, dtype=bool)] = np.nan
    return predicted


def _design(conditions: Sequence[str], known: Sequence[str]) -> Floats:
    """Indicator columns of the `known` targets, then one of being a combination, [C, T + 1]."""
    column = {target: i for i, target in enumerate(known)}
    design = np.zeros((len(conditions), len(known) + 1))
    for row, condition in zip(design, conditions, strict=True):
        names = targets(condition)
        row[[column[name] for name in names if name in column]] = 1
        row[-1] = len(names) > 1
    return design


def leave_one_out_penalty(design: Floats, response: Floats) -> float:
    """The λ of PENALTIES with the smallest leave-one-out squared error, in closed form.

    With the hat matrix H(λ) = X(XᵀX + λI)⁻¹Xᵀ the residual of a left-out row is (y − Hy)ᵢ / (1 − Hᵢᵢ); its squared
    norm over genes is the diagonal of (I − H) YYᵀ (I − H), so the genes are summed over once.
    """
    u, s, _ = np.linalg.svd(design, full_matrices=False)
    gram = response @ response.T
    errors = []
    for penalty in PENALTIES:
        rest = np.eye(len(design)) - (u * (s**2 / (s**2 + penalty))) @ u.T
        squared = np.einsum("ij,jk,ik->i", rest, gram, rest, optimize=True)
        errors.append(float((squared / np.diag(rest) ** 2).sum()))
    return PENALTIES[int(np.argmin(errors))]


def low_rank(training: Training, conditions: Sequence[str], rank: int = 10, penalty: float = 0.1) -> Floats:
    """The bilinear model of Ahlmann-Eltze, Huber and Anders (Nature Methods 2025), [K, A].

    Y ≈ G W Pᵀ + b: Y the training shifts (genes × conditions), b their mean, G their leading `rank` principal
    gene scores, P the rows of G that belong to a condition's targets (summed over its targets), W by ridge. It
    answers for unseen targets too, where they are genes of the table; otherwise it is undefined.
    """
    undefined = np.full((len(conditions), len(training.control)), np.nan)
    row = {gene: i for i, gene in enumerate(training.genes)}
    usable = [i for i, c in enumerate(training.conditions) if all(t in row for t in targets(c))]
    if len(usable) < 2:
        return undefined
    y = training.shift[usable].T
    b = y.mean(axis=1, keepdims=True)
    n = min(rank, len(usable) - 1)
    _, axes = np.linalg.eigh((y - b).T @ (y - b))  # ascending: the leading axes stand last
    scores = (y - b) @ axes[:, -n:]

    def embed(names: Sequence[str]) -> Floats:
        return np.array([scores[[row[t] for t in targets(c)]].sum(axis=0) for c in names])

    p = embed([training.conditions[i] for i in usable])
    left = np.linalg.solve(scores.T @ scores + penalty * np.eye(n), scores.T @ (y - b))
    w = np.linalg.solve(p.T @ p + penalty * np.eye(n), p.T @ left.T).T
    known = [k for k, c in enumerate(conditions) if all(t in row for t in targets(c))]
    if known:
        answer = scores @ w @ embed([conditions[k] for k in known]).T + b
        undefined[known] = training.control + answer.T
    return undefined


def predictions(
    training: Training, conditions: Sequence[str], ridge_penalty: float | None = None
) -> dict[str, Floats]:
    """Every baseline's means [K, A] by name, in the order of BASELINES."""
    return {
        NO_CHANGE: no_change(training, conditions),
        TRAINING_MEAN: training_mean(training, conditions),
        ADDITIVE: additive(training, conditions),
        RIDGE: ridge(training, conditions, ridge_penalty),
        LOW_RANK: low_rank(training, conditions),
    }
