"""What descriptions tell of targets that nobody measured: which way their responses go, and how large they are.

Which descriptions a screen bears out: those that predict its own targets, each left out with all of its conditions.

The marginal likelihood weighs all components of the shifts alike, and what a description tells lies in the few leading
ones: it gives gene sets the weight 0 where they lower the error of unseen targets (docs/log.md). So the weight of a
description is the one that predicts best where it is needed: a target that nobody measured.

How large its response is: most perturbations do little and a few do much, so the mean of the measured ones is more than a
new one is likely to show. A new target alone counts as if it were given at the dose typical · ratio^power. `ratio` is what
its own description and its expression tell of the size: exp of a Gaussian process over log sizes, with a term for each
description and one for the expression in control cells. Each has the share that makes the measured sizes most likely, and
none where they are not clearly likelier. `typical` and `power` are what lowers the error of the training targets, each
predicted without any of its conditions: a description may have told the size with the direction, and once is enough, so
`power` is less than 1 where that is clearly better.
Uncertainty is scaled by `ratio`, whatever counts of it in the expected response: variances are those of root mean
squares. It is scaled by `calibration` too: how far off left-out targets are, over what was expected of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scdfm.prior.kernel import ConditionKernel, Floats

STEPS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Weights that are tried, relative to the same target."""
CLEAR = 2.0
"""Standard errors of the mean gain over targets that a description must show."""
LEAST_TARGETS = 8
"""Targets, described or measured alone, below which no gain is clear and sizes tell nothing."""


def left_out(
    axes: Floats, inverse: Floats, dual: Floats, groups: Sequence[Sequence[int]]
) -> tuple[list[Floats], list[Floats]]:
    """What a Gaussian process misses of each group of its rows, predicted from all other rows, and the variances that
    it expects of that, noise included: [rows, J] of each group.

    The covariance of component j is (A diag(`inverse`[:, j]) Aᵀ)⁻¹ with A the `axes` [n, n], `dual` [n, J] its inverse
    times the measured values. The rows I of a group are missed by B dual[I] with their covariance
    B = ((A diag Aᵀ)[I, I])⁻¹ (the block form of Rasmussen & Williams 2006, eq. 5.12).
    """
    residuals: list[Floats] = [np.empty((0, dual.shape[1]))] * len(groups)
    variances = residuals.copy()
    sizes: dict[int, list[int]] = {}
    for place, rows in enumerate(groups):
        sizes.setdefault(len(rows), []).append(place)
    for size, places in sizes.items():
        members = np.array([groups[place] for place in places])
        own, (missed, expected) = axes[members], np.empty((2, len(places), size, dual.shape[1]))
        for j in range(dual.shape[1]):
            covariance = np.linalg.inv((own * inverse[:, j]) @ own.transpose(0, 2, 1))
            missed[..., j] = (covariance @ dual[members, j, None])[..., 0]
            expected[..., j] = covariance.diagonal(axis1=1, axis2=2)
        for place, *values in zip(places, missed, expected, strict=True):
            residuals[place], variances[place] = values
    return residuals, variances


def borne_out(
    known: Mapping[str, npt.NDArray[np.bool_]], errors: Callable[[Mapping[str, float]], Floats]
) -> dict[str, float]:
    """Weights of the descriptions that lower the errors of left-out targets clearly; the others are left out.

    known: the targets [T] that each description knows. errors: of each target [T], by weights of descriptions.
    A description goes up in STEPS as long as each lowers the errors of the targets that it knows by CLEAR standard errors
    of the mean; one after the other, that with the largest gain joins those chosen.
    """
    weights: dict[str, float] = {}
    left = {name: places for name, places in known.items() if places.sum() >= LEAST_TARGETS}
    before = errors(weights) if left else np.empty(0)
    while left:
        tried = {name: _climbed(name, weights, before, places, errors) for name, places in left.items()}
        name = max(tried, key=lambda one: float((before - tried[one][1])[left[one]].mean()))
        weight, before = tried[name]
        if not weight:
            break
        weights[name] = weight
        del left[name]
    return weights


def _climbed(
    name: str, weights: Mapping[str, float], before: Floats, known: npt.NDArray[np.bool_],
    errors: Callable[[Mapping[str, float]], Floats],
) -> tuple[float, Floats]:  # fmt: skip
    """The weight that a description climbs to beside the `weights`, 0 if not to the first step, and the errors there."""
    weight = 0.0
    for step in STEPS:
        after = errors({**weights, name: step})
        if not _clear((before - after)[known]):
            break
        weight, before = step, after
    return weight, before


def _clear(gain: Floats) -> bool:
    """Whether the mean of what each target gains is positive, by CLEAR standard errors."""
    mean = float(gain.mean())
    return mean > 0 and mean >= CLEAR * float(gain.std(ddof=1)) / len(gain) ** 0.5


EXPRESSION = "expression"
"""The term of the expression in control cells."""
TYPICAL = (0.25, 0.5, 0.75, 1.0)
POWERS = (1.0, 0.5, 0.0)
"""Values of `typical` and `power` that are tried."""
LEAST_CALIBRATION = 0.25
"""A smaller one is not believed."""
SHARES = (0.1, 0.3, 1.0, 3.0)
"""Variances of a term that are tried, relative to what no term explains."""
LIKELIER = 2.0
"""What a term must gain in log likelihood."""
FAINT = 0.01
"""Expression (log1p) below which differences say nothing."""
SMALLEST = 0.05
"""Smallest size that is told from none, in root mean squares of all sizes."""


@dataclass(frozen=True)
class Sizes:
    """What is known of the sizes of responses: `typical`, the `shares` of terms, and for each of the measured `targets` the
    weight `dual` of its likeness in the log of `ratio`, which `level` brings to the root mean square; `power` is that of
    `ratio` in what is expected, and `calibration` the factor of the standard deviation of its error."""

    typical: float = 1.0
    shares: Mapping[str, float] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    dual: tuple[float, ...] = ()
    level: float = 0.0
    power: float = 1.0
    calibration: float = 1.0

    def ratios(self, likeness: Mapping[str, Floats]) -> Floats:
        """`ratio` [n] of new targets by their `likeness` [n, m] to the measured ones, for each term."""
        if not self.shares:
            return np.ones(len(next(iter(likeness.values()), np.empty(0))))
        total = sum(share * likeness[name] for name, share in self.shares.items())
        return np.asarray(np.exp(total @ np.array(self.dual) - self.level))


def sized_alike(
    kernel: ConditionKernel, names: Sequence[str], others: Sequence[str], genes: Sequence[str], control: Floats
) -> dict[str, Floats]:
    """Likeness [n, m] of targets in each term of their sizes: the kernel's descriptions, and a Gaussian of the difference
    in the log of their expression, where both are among the `genes` that `control` [G] (log1p) is the mean of."""
    place = {gene: column for column, gene in enumerate(genes)}
    logs = np.log(FAINT + np.maximum(control, 0))
    left, right = ([place.get(name, -1) for name in side] for side in (names, others))
    known = np.outer(np.array(left, dtype=int) >= 0, np.array(right, dtype=int) >= 0)
    apart = np.subtract.outer(logs[left], logs[right]) if len(genes) else np.zeros(known.shape)
    return {**kernel.likeness(names, others), EXPRESSION: np.exp(-(apart**2) / 2) * known}


class Missed(NamedTuple):
    """Real responses [rows, J] to a target, those expected without any of its conditions, and the squared lengths [rows]
    that are expected of the error between them (`doubt`) and of the noise of measuring."""

    real: Floats
    expected: Floats
    doubt: Floats
    noise: Floats


def fitted_sizes(
    targets: Sequence[str], sizes: Floats, likeness: Mapping[str, Floats], missed: Sequence[Missed]
) -> Sizes:  # fmt: skip
    """From m targets measured alone: their `sizes` [m], `likeness` [m, m] in each term, and how each is predicted without
    its own conditions."""
    if len(targets) < LEAST_TARGETS:
        return Sizes()
    root = float(np.sqrt(np.square(sizes).mean())) or 1.0
    logs = np.log(np.maximum(sizes / root, SMALLEST))
    shares, level, ratios, dual = _shares(logs - logs.mean(), likeness), 0.0, np.ones(len(logs)), np.empty(0)
    if shares:
        inverse = np.linalg.inv(np.eye(len(logs)) + sum(share * likeness[name] for name, share in shares.items()))
        dual = inverse @ (logs - logs.mean())
        # Of each by the others (Rasmussen & Williams 2006, eq. 5.12).
        predictions = logs - logs.mean() - dual / np.diag(inverse)
        level = 0.5 * float(np.log(np.exp(2 * predictions).mean()))
        ratios = np.exp(predictions - level)
    typical, power = _nearest(missed, ratios)
    calibration = _calibration(missed, ratios, typical * ratios**power)
    return Sizes(typical, shares, tuple(targets) if shares else (), tuple(dual.tolist()), level, power, calibration)


def _calibration(missed: Sequence[Missed], ratios: Floats, scales: Floats) -> float:
    """How many times as far off targets of `ratios` [m] are as expected, where responses count `scales` [m] times; 1 where
    that is not clear."""
    over, weights = np.empty((2, len(missed)))
    for place, (one, ratio, scale) in enumerate(zip(missed, ratios, scales, strict=True)):
        doubt, noise = float((one.doubt * ratio**2).mean()), float(one.noise.mean())
        squared = float(np.square(one.real - scale * one.expected).sum(1).mean())
        over[place] = (squared - noise) / max(doubt, 1e-12)
        weights[place] = (doubt / max(doubt + noise, 1e-12)) ** 2  # what is mostly noise tells little
    mean = float(np.average(over, weights=weights)) if weights.sum() > 0 else 1.0
    error = float(np.sqrt((weights**2 * (over - mean) ** 2).sum()) / max(weights.sum(), 1e-12))
    return float(np.sqrt(max(mean, LEAST_CALIBRATION**2))) if abs(mean - 1) >= CLEAR * error else 1.0


def _nearest(missed: Sequence[Missed], ratios: Floats) -> tuple[float, float]:
    """Of TYPICAL and POWERS those that bring what is expected of m targets of `ratios` [m] nearest to what is real; the
    first of POWERS unless another is nearer by CLEAR standard errors of the mean over targets."""

    def errors(typical: float, power: float) -> Floats:
        scaled = [one.real - typical * ratio**power * one.expected for one, ratio in zip(missed, ratios, strict=True)]
        return np.array([np.linalg.norm(rows, axis=1).mean() for rows in scaled])

    best = [min((errors(typical, power) for typical in TYPICAL), key=np.mean) for power in POWERS]
    place = int(np.argmin([one.mean() for one in best]))
    if not _clear(best[0] - best[place]):
        place = 0
    typical = min(TYPICAL, key=lambda one: float(errors(one, POWERS[place]).mean()))
    return typical, POWERS[place]


def _shares(logs: Floats, likeness: Mapping[str, Floats]) -> dict[str, float]:
    """The shares of the terms that make the `logs` clearly likelier, joined one after the other, the best first."""
    shares: dict[str, float] = {}
    unexplained = np.eye(len(logs))
    best = _likelihood(logs, unexplained)
    while left := [name for name in likeness if name not in shares]:
        tried = [(name, share) for name in left for share in SHARES]
        likelihoods = [_likelihood(logs, unexplained + share * likeness[name]) for name, share in tried]
        place = int(np.argmax(likelihoods))
        if likelihoods[place] - best < LIKELIER:
            break
        (name, share), best = tried[place], likelihoods[place]
        shares[name], unexplained = share, unexplained + share * likeness[name]
    return shares


def _likelihood(logs: Floats, covariance: Floats) -> float:
    """Log likelihood (up to a constant) of `logs` ~ N(0, v · `covariance`) at its best v."""
    quadratic = float(logs @ np.linalg.solve(covariance, logs)) / len(logs)
    return -0.5 * len(logs) * float(np.log(max(quadratic, 1e-12))) - 0.5 * float(np.linalg.slogdet(covariance)[1])
