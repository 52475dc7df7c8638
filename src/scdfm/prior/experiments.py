"""Which conditions would tell most about all the others: greedy reduction of the prior's own uncertainty.

Given what was measured, the mean shifts of conditions c and d covary by
C(c, d) = K(c, d) − K(c, ·)(K + λW)⁻¹K(·, d), with the covariance K of `scdfm.prior.kernel` and λ the median noise of the
leading components. Measuring c takes Σ_d C(c, d)² / (C(c, c) + λ) off the summed variance of the conditions d (Cohn,
Ghahramani & Jordan 1996, eq. 8). Each choice is the condition that takes most, and is conditioned on in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from scdfm.prior.effects import EffectPrior
from scdfm.prior.kernel import Floats, every_target

REFERENCES = 300
"""Conditions d whose variance counts, at most; evenly over all."""
BLOCK = 2048
LEADING = 10


def telling(prior: EffectPrior, conditions: Sequence[str], n: int) -> list[int]:
    """Places of the `n` of `conditions` to measure next, first first; `prior` must know their targets and settings."""
    count = len(conditions)
    references = np.unique(np.linspace(0, count - 1, min(count, REFERENCES)).round().astype(int))
    noise = float(np.median(prior.noise[:LEADING]))
    rows, variance = _explained(prior, conditions, noise)
    factors = np.zeros((count, n))
    covariance = _covariance(prior, conditions, references) - rows @ rows[references].T
    picked: list[int] = []
    for step in range(n):
        gain = np.square(covariance).sum(1) / (np.maximum(variance, 0) + noise)
        gain[picked] = -np.inf
        pick = int(gain.argmax())
        picked.append(pick)
        column = _covariance(prior, conditions, [pick])[:, 0] - rows @ rows[pick]
        column -= factors[:, :step] @ factors[pick, :step]
        factors[:, step] = column / np.sqrt(max(variance[pick], 0) + noise)
        covariance -= np.outer(factors[:, step], factors[references, step])
        variance = variance - np.square(factors[:, step])
    return picked


def _explained(prior: EffectPrior, conditions: Sequence[str], noise: float) -> tuple[Floats, Floats]:
    """R [C, n] with R Rᵀ what the measured conditions explain of the covariance, and the variance [C] they leave."""
    kernel = prior.knowing(every_target(conditions)).kernel
    measured = kernel.encode(prior.conditions)
    rows, variances = [np.zeros((0, len(prior.conditions)))], [np.zeros(0)]
    for start in range(0, len(conditions), BLOCK):
        asked = kernel.encode(conditions[start : start + BLOCK])
        block = kernel.matrix(asked, measured, prior.weights) @ prior.axes / np.sqrt(prior.powers + noise)
        rows.append(block)
        variances.append(kernel.variance(asked, prior.weights) - np.square(block).sum(1))
    return np.concatenate(rows), np.concatenate(variances)


def _covariance(prior: EffectPrior, conditions: Sequence[str], columns: Iterable[int]) -> Floats:
    """K [C, columns] between all conditions and some of them."""
    kernel = prior.knowing(every_target(conditions)).kernel
    some = kernel.encode([conditions[column] for column in columns])
    blocks = [
        kernel.matrix(kernel.encode(conditions[start : start + BLOCK]), some, prior.weights)
        for start in range(0, len(conditions), BLOCK)
    ]
    return np.concatenate(blocks)
