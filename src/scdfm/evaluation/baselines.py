"""What simple rules predict from the training conditions' means alone.

Every baseline maps test conditions to a mean [K, A] (log1p of normalised counts); a row is NaN where the rule
has no answer. All work on shifts, mean − control mean, where the control is a condition's own if controls are matched.
Doses, times and covariates are taken as the nearest measured ones, or as columns of a regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, log, log1p

import numpy as np

from scdfm.data.conditions import Condition, Perturbation, control_of, covariates, parse, targets
from scdfm.evaluation.pseudobulk import Floats


def single_shift(
    measured: Sequence[tuple[Condition, Floats]], perturbation: Perturbation, condition: Condition
) -> Floats | None:
    """The shift [A] of one target, from the training conditions that hold it alone; None where there is none.

    Those of the same covariates count, or without any those of every setting, averaged over settings. Of a setting
    it is the nearest dose (in log dose), then the nearest time; equally near ones are averaged. A dose of 0 that is
    not measured shifts nothing.
    """
    if perturbation.dose == 0 and not any(_dose(single) == 0 for single, _ in measured):
        shape = measured[0][1].shape if measured else ()
        return np.zeros(shape)
    own = [entry for entry in measured if entry[0].covariates == condition.covariates] or measured
    settings: dict[tuple[tuple[str, str], ...], list[tuple[tuple[float, float], Floats]]] = {}
    for single, shift in own:
        far = (_log_ratio(_dose(single), perturbation.dose), _gap(single.time, condition.time))
        settings.setdefault(single.covariates, []).append((far, shift))
    nearest = [_nearest(entries) for entries in settings.values()]
    return np.asarray(sum(nearest) / len(nearest)) if nearest else None


def _nearest(entries: Sequence[tuple[tuple[float, float], Floats]]) -> Floats:
    least = min(far for far, _ in entries)
    shifts = [shift for far, shift in entries if far == least]
    return np.asarray(sum(shifts) / len(shifts))


def _dose(single: Condition) -> float | None:
    return single.perturbations[0].dose


def _log_ratio(a: float | None, b: float | None) -> float:
    if a is None or b is None or a == b:
        return 0.0
    # Rounded, so that 10 is as near to 1 as to 100.
    return round(abs(log(a / b)), 9) if a and b else inf


def _gap(a: float | None, b: float | None) -> float:
    return 0.0 if a is None or b is None else abs(a - b)


@dataclass(frozen=True)
class DoseScale:
    """s(d) = log(1 + d/m) / log(1 + M/m): 0 at dose 0, 1 at the largest training dose M of the target; m its smallest.

    It is 1 where no dose is known. Targets without a dose in training take m and M over all targets.
    """

    ranges: Mapping[str, tuple[float, float]]
    overall: tuple[float, float]

    @classmethod
    def of(cls, conditions: Sequence[str]) -> DoseScale:
        """The scale of the positive doses of training `conditions`."""
        target_doses: dict[str, list[float]] = {}
        for one in (one for name in conditions for one in parse(name).perturbations):
            if one.dose:
                target_doses.setdefault(one.target, []).append(one.dose)
        every = [dose for doses in target_doses.values() for dose in doses] or [1.0]
        return cls({name: (min(doses), max(doses)) for name, doses in target_doses.items()}, (min(every), max(every)))

    def __call__(self, perturbation: Perturbation) -> float:
        """s of a perturbation's dose."""
        if perturbation.dose is None:
            return 1.0
        low, high = self.ranges.get(perturbation.target, self.overall)
        return log1p(perturbation.dose / low) / log1p(high / low)


def settings_of(conditions: Sequence[str]) -> list[tuple[str, str]]:
    """The (key, value) pairs of the covariates that take several values in `conditions`, sorted."""
    pairs = {pair for name in conditions for pair in covariates(name).items()}
    keys = [key for key, _ in pairs]
    return sorted(pair for pair in pairs if keys.count(pair[0]) > 1)


def indicators(conditions: Sequence[str], settings: Sequence[tuple[str, str]]) -> Floats:
    """1 where a condition has a setting, [C, S]."""
    held = [covariates(name) for name in conditions]
    columns = [[pairs.get(key) == value for key, value in settings] for pairs in held]
    return np.array(columns, dtype=np.float64).reshape(len(conditions), len(settings))


BASELINES = ("no change", "training mean", "additive", "ridge", "low-rank linear", "covariance")
NO_CHANGE, TRAINING_MEAN, ADDITIVE, RIDGE, LOW_RANK, COVARIANCE = BASELINES
PENALTIES = tuple(float(10.0**e) for e in np.arange(-3, 3.01, 0.25))
"""Ridge penalties that leave-one-out chooses from."""


@dataclass(frozen=True)
class Training:
    """Means [C, A] of the training conditions and of control [A], over `genes` (A).

    `matched`: control means [A] of conditions, or of `control|key=value`, where control cells are matched. `linked`: what
    control cells say of targets (`scdfm.evaluation.prior`), where a scored target is in no training condition.
    `scored`: scored conditions that were given as training's, and left out.
    """

    conditions: tuple[str, ...]
    mean: Floats
    control: Floats
    genes: tuple[str, ...]
    matched: Mapping[str, Floats] = field(default_factory=dict)
    linked: Mapping[str, Floats] = field(default_factory=dict)
    scored: tuple[str, ...] = ()

    def controls(self, conditions: Sequence[str]) -> Floats:
        """The control mean of each of `conditions` [K, A]; one [A] for all where controls are not matched."""
        if not self.matched:
            return self.control
        own = [self.matched.get(c, self.matched.get(control_of(c), self.control)) for c in conditions]
        return np.array(own).reshape(len(own), len(self.control))

    @cached_property
    def shift(self) -> Floats:
        """Mean − control mean, [C, A]."""
        return self.mean - self.controls(self.conditions)

    def centre(self, conditions: Sequence[str]) -> Floats:
        """O of Systema: the mean [A] of the training conditions' means; NaN without any.

        With matched controls, for each of `conditions` its control mean plus the mean training shift [K, A].
        """
        if not self.conditions:
            return np.full_like(self.control, np.nan)
        if not self.matched:
            return np.asarray(self.mean.mean(axis=0))
        return np.asarray(self.controls(conditions) + self.shift.mean(axis=0))


def no_change(training: Training, conditions: Sequence[str]) -> Floats:
    """The control mean for every condition, [K, A]."""
    return _rows(training.controls(conditions), conditions)


def training_mean(training: Training, conditions: Sequence[str]) -> Floats:
    """The mean of the training conditions' means for every condition, [K, A] (`Training.centre`)."""
    return _rows(training.centre(conditions), conditions)


def _rows(values: Floats, conditions: Sequence[str]) -> Floats:
    """A row for each condition, [K, A]."""
    return np.array(np.broadcast_to(values, (len(conditions), values.shape[-1])))


def additive(training: Training, conditions: Sequence[str]) -> Floats:
    """Control plus the sum of the targets' single shifts, [K, A]; undefined unless every single trained.

    A target's shift is that of `scdfm.evaluation.baselines.single_shift`: of the same covariates and the nearest dose.
    """
    singles: dict[str, list[tuple[Condition, Floats]]] = {}
    for name, shift in zip(training.conditions, training.shift, strict=True):
        if len(targets(name)) == 1:
            singles.setdefault(targets(name)[0], []).append((parse(name), shift))
    control = no_change(training, conditions)
    predicted = np.full_like(control, np.nan)
    for k, name in enumerate(conditions):
        condition = parse(name)
        shifts = [single_shift(singles.get(one.target, []), one, condition) for one in condition.perturbations]
        terms = [shift for shift in shifts if shift is not None]
        if len(terms) == len(shifts):
            predicted[k] = control[k] + sum(terms)
    return predicted


def ridge(training: Training, conditions: Sequence[str], penalty: float | None = None) -> Floats:
    """Ridge regression of the shift on which targets are perturbed and on being a combination, [K, A].

    shift = Σ s(dose) · effect(target) + effect(combination) + Σ effect(covariate value), the last where training has
    several values; s is `DoseScale`. `penalty` (λ) none: the one of PENALTIES with the smallest leave-one-out error
    over the training conditions. Unseen targets add nothing; a condition with no seen target is undefined.
    """
    if not training.conditions:
        return np.full((len(conditions), len(training.control)), np.nan)
    trained_targets = sorted({target for condition in training.conditions for target in targets(condition)})
    scale, settings = DoseScale.of(training.conditions), settings_of(training.conditions)
    design = _design(training.conditions, trained_targets, scale, settings)
    if penalty is None:
        penalty = leave_one_out_penalty(design, training.shift)
    gram = design.T @ design + penalty * np.eye(design.shape[1])
    weights = np.linalg.solve(gram, design.T @ training.shift)
    predicted = training.controls(conditions) + _design(conditions, trained_targets, scale, settings) @ weights
    seen = [any(target in trained_targets for target in targets(condition)) for condition in conditions]
    predicted[~np.array(seen, dtype=bool)] = np.nan
    return predicted


def _design(
    conditions: Sequence[str], trained_targets: Sequence[str], scale: DoseScale, settings: Sequence[tuple[str, str]]
) -> Floats:
    """Columns of the `trained_targets` (the scaled dose), of being a combination, and of the covariates' `settings`,
    [C, T + 1 + S]."""
    column = {target: i for i, target in enumerate(trained_targets)}
    design = np.zeros((len(conditions), len(trained_targets) + 1))
    for row, condition in zip(design, conditions, strict=True):
        perturbations = parse(condition).perturbations
        for one in perturbations:
            if one.target in column:
                row[column[one.target]] = scale(one)
        row[-1] = len(perturbations) > 1
    return np.hstack([design, indicators(conditions, settings)])


def leave_one_out_penalty(design: Floats, response: Floats) -> float:
    """The λ of PENALTIES with the smallest leave-one-out squared error, in closed form.

    With the hat matrix H(λ) = X(XᵀX + λI)⁻¹Xᵀ the residual of a left-out row is (y − Hy)ᵢ / (1 − Hᵢᵢ). H is
    T diag(w) Tᵀ, from the eigenvectors V of the smaller of XᵀX (T = XV, w = 1 / (s + λ)) and XXᵀ (T = V, w = s / (s + λ)).
    Where no two conditions share a column, all penalties have the same error, and the smallest is taken.
    """
    if np.count_nonzero(design, axis=0).max(initial=0) <= 1:
        return PENALTIES[0]
    n, wide = len(design), len(design) < design.shape[1]
    s, v = np.linalg.eigh(design @ design.T if wide else design.T @ design)
    s = np.maximum(s, 0)
    turned = v if wide else design @ v
    if response.shape[1] > n:  # as many columns as rows have the same YYᵀ, and so the same residuals' norms
        response = np.asarray(np.linalg.qr(response.T, mode="r")).T
    answer, squares, errors = turned.T @ response, np.square(turned), []
    for penalty in PENALTIES:
        weight = (s if wide else 1.0) / (s + penalty)
        residual = response - turned @ (weight[:, None] * answer)
        squared = np.einsum("ng,ng->n", residual, residual)
        errors.append(float((squared / (1 - squares @ weight) ** 2).sum()))
    return PENALTIES[int(np.argmin(errors))]


def low_rank(training: Training, conditions: Sequence[str], rank: int = 10, penalty: float = 0.1) -> Floats:
    """The bilinear model of Ahlmann-Eltze, Huber and Anders (Nature Methods 2025), [K, A].

    Y ≈ G W Pᵀ + b: Y the training shifts (genes × conditions), b their mean, G their leading `rank` principal
    gene scores, P the rows of G that belong to a condition's targets (summed over its targets, times `DoseScale`)
    and columns of the covariates' values, where training has several, W by ridge. It answers for unseen targets too,
    where they are genes of the table; otherwise it is undefined.
    """
    undefined = np.full((len(conditions), len(training.control)), np.nan)
    row = {gene: i for i, gene in enumerate(training.genes)}
    usable = [i for i, c in enumerate(training.conditions) if all(t in row for t in targets(c))]
    if len(usable) < 2:
        return undefined
    y = training.shift[usable].T
    b = y.mean(axis=1, keepdims=True)
    n = min(rank, len(usable) - 1)
    scores = _principal_scores(y - b, n)

    scale, settings = DoseScale.of(training.conditions), settings_of(training.conditions)

    def embed(names: Sequence[str]) -> Floats:
        summed = [
            sum((scale(one) * scores[row[one.target]] for one in parse(c).perturbations), np.zeros(n)) for c in names
        ]
        return np.hstack([np.array(summed), indicators(names, settings)])

    p = embed([training.conditions[i] for i in usable])
    left = np.linalg.solve(scores.T @ scores + penalty * np.eye(n), scores.T @ (y - b))
    w = np.linalg.solve(p.T @ p + penalty * np.eye(p.shape[1]), p.T @ left.T).T
    places = [k for k, c in enumerate(conditions) if all(t in row for t in targets(c))]
    if places:
        answer = scores @ w @ embed([conditions[k] for k in places]).T + b
        undefined[places] = training.controls([conditions[k] for k in places]) + answer.T
    return undefined


def _principal_scores(values: Floats, n: int) -> Floats:
    """The `n` leading principal scores of the rows of `values` [G, C], [G, n]: by the smaller of both covariances.

    Eigenvalues ascend: the leading axes stand last.
    """
    if values.shape[0] < values.shape[1]:
        sizes, axes = np.linalg.eigh(values @ values.T)
        return np.asarray(axes[:, -n:] * np.sqrt(np.maximum(sizes[-n:], 0)))
    return np.asarray(values @ np.linalg.eigh(values.T @ values)[1][:, -n:])


def covariance(training: Training, conditions: Sequence[str]) -> Floats:
    """The shift of a target's neighbours from the covariance of control cells, [K, A].

    shift = a · Σ cov(·, target) / sd(target), the mean of a Gaussian whose target moves by a deviations. a is the same
    for all, fitted to the training conditions: below 0 where genes are knocked down, above 0 where they are activated.
    Undefined where a target is no gene, or does not vary over control cells.
    """
    predicted = np.full((len(conditions), len(training.control)), np.nan)
    rows = [row for row, name in enumerate(training.conditions) if _all_linked(training, name)]
    places = [k for k, name in enumerate(conditions) if _all_linked(training, name)]
    if not rows or not places:
        return predicted
    moved = np.array([_moved(training, training.conditions[row]) for row in rows])
    a = float((moved * training.shift[rows]).sum() / np.square(moved).sum())
    names = [conditions[k] for k in places]
    predicted[places] = training.controls(names) + a * np.array([_moved(training, name) for name in names])
    return predicted


def _all_linked(training: Training, condition: str) -> bool:
    return all(target in training.linked for target in targets(condition))


def _moved(training: Training, condition: str) -> Floats:
    """Where the neighbours of a condition's targets go, for one deviation of each target."""
    return np.asarray(sum(training.linked[target] for target in targets(condition)))


def predictions(training: Training, conditions: Sequence[str], ridge_penalty: float | None = None) -> dict[str, Floats]:
    """Every baseline's means [K, A] by name, in the order of BASELINES; `covariance` where targets are linked."""
    means = {
        NO_CHANGE: no_change(training, conditions),
        TRAINING_MEAN: training_mean(training, conditions),
        ADDITIVE: additive(training, conditions),
        RIDGE: ridge(training, conditions, ridge_penalty),
        LOW_RANK: low_rank(training, conditions),
    }
    return means | ({COVARIANCE: covariance(training, conditions)} if training.linked else {})
