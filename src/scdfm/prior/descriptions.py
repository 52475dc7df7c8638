"""Which descriptions of targets a screen bears out: those that predict its own targets, each left out with all of its
conditions.

The marginal likelihood weighs all components of the shifts alike, and what a description tells lies in the few leading
ones: it gives gene sets the weight 0 where they lower the error of unseen targets (docs/log.md). So the weight of a
description is the one that predicts best where it is needed: a target that nobody measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from scdfm.prior.kernel import Floats

STEPS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Weights that are tried, relative to the same target."""
CLEAR = 2.0
"""Standard errors of the mean gain over targets that a description must show."""
LEAST_TARGETS = 8
"""Described targets below which no gain is clear."""


def left_out(axes: Floats, inverse: Floats, dual: Floats, groups: Sequence[Sequence[int]]) -> list[Floats]:
    """What a Gaussian process misses of each group of its rows, predicted from all other rows: [rows, J] of each group.

    The covariance of component j is (A diag(`inverse`[:, j]) Aᵀ)⁻¹ with A the `axes` [n, n], `dual` [n, J] its inverse
    times the measured values. The rows I of a group are missed by ((A diag Aᵀ)[I, I])⁻¹ dual[I] (the block form of
    Rasmussen & Williams 2006, eq. 5.12).
    """
    residuals: list[Floats] = [np.empty((0, dual.shape[1]))] * len(groups)
    sizes: dict[int, list[int]] = {}
    for place, rows in enumerate(groups):
        sizes.setdefault(len(rows), []).append(place)
    for size, places in sizes.items():
        members = np.array([groups[place] for place in places])
        own, missed = axes[members], np.empty((len(places), size, dual.shape[1]))
        for j in range(dual.shape[1]):
            blocks = (own * inverse[:, j]) @ own.transpose(0, 2, 1)
            missed[..., j] = np.linalg.solve(blocks, dual[members, j, None])[..., 0]
        for place, values in zip(places, missed, strict=True):
            residuals[place] = values
    return residuals


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
        gain = (before - after)[known]
        if gain.mean() <= 0 or gain.mean() < CLEAR * gain.std(ddof=1) / len(gain) ** 0.5:
            break
        weight, before = step, after
    return weight, before
