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

STEPS = (0.1, 0.3, 1.0)
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
    found: list[Floats] = [np.empty((0, dual.shape[1]))] * len(groups)
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
            found[place] = values
    return found


def borne_out(
    known: Mapping[str, npt.NDArray[np.bool_]], errors: Callable[[Mapping[str, float]], Floats]
) -> dict[str, float]:
    """Weights of the descriptions that lower the errors of left-out targets clearly; the others are left out.

    known: the targets [T] that each description knows. errors: of each target [T], by weights of descriptions.
    One after the other, the description that gains most joins those chosen, at the weight whose gain is largest less its
    standard error; it must gain by CLEAR standard errors over the targets that it knows.
    """
    chosen: dict[str, float] = {}
    left = [name for name, places in known.items() if places.sum() >= LEAST_TARGETS]
    before = errors(chosen) if left else np.empty(0)
    while left:
        tried = [(name, step, errors({**chosen, name: step})) for name in left for step in STEPS]
        gains = [(before - after)[known[name]] for name, _, after in tried]
        errors_of = [float(gain.std(ddof=1)) / len(gain) ** 0.5 for gain in gains]
        sure = [float(gain.mean()) - error for gain, error in zip(gains, errors_of, strict=True)]
        best = int(np.argmax(sure))
        if sure[best] <= 0 or float(gains[best].mean()) < CLEAR * errors_of[best]:
            break
        name, step, before = tried[best]
        chosen[name] = step
        left.remove(name)
    return chosen
