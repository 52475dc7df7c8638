"""Which conditions to measure next: those that make the predictions of all others surest.

The error of a prediction is taken to be a Gaussian process over conditions. With the source `prior` its covariance is
what the run's prior is left with after all that was measured (`EffectPrior.covariance`). Other sources have no such law:
there conditions c and d with predicted means m_c, m_d (on the screen's principal axes) and uncertainties u_c, u_d covary
by u_c · u_d · exp(−‖m_c − m_d‖² / 2ℓ²), ℓ the median distance between candidates.
A proposal is the candidate x whose measurement takes most of the variance of all unmeasured conditions d of the screen,
Σ_d k(d, x)² / (k(x, x) + noise). It is conditioned on, then the next is sought (active learning, Cohn, Ghahramani and
Jordan, JAIR 1996; for Gaussian processes Seo et al., IJCNN 2000). One of large variance that says nothing of others, which
the largest remaining variance would choose, comes late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import pandas as pd

from scdfm.data.conditions import targets
from scdfm.errors import DataError
from scdfm.evaluation.populations import squared_distances
from scdfm.evaluation.pseudobulk import Floats
from scdfm.prior import EffectPrior
from scdfm.screening.effect import Untreated
from scdfm.screening.ensemble import Ensemble
from scdfm.screening.store import Store

NOISE: Final = 0.01
"""Variance of a measurement where no prior tells it, as a share of the mean u²: a measured condition keeps this doubt."""
SAMPLE: Final = 500
"""Conditions, evenly drawn, that stand for all of a larger screen."""


class Errors(Protocol):
    """Errors of the predictions of N conditions, before any of them is measured."""

    @property
    def noise(self) -> float:
        """Variance that a measurement adds."""

    def covariance(self, places: Sequence[int]) -> Floats:
        """Of the errors of the conditions at `places` with those of all: [len(places), N]."""

    def variance(self) -> Floats:
        """[N]"""


@dataclass(frozen=True)
class PriorErrors:
    """What a prior is left unsure of, over all genes."""

    prior: EffectPrior
    names: tuple[str, ...]

    @property
    def noise(self) -> float:
        """Of a condition with as many cells as the measured ones have on average."""
        return self.prior.measurement_noise

    def covariance(self, places: Sequence[int]) -> Floats:
        """What a measurement at `places` would tell of all."""
        return self.prior.covariance([self.names[place] for place in places], self.names)

    def variance(self) -> Floats:
        """Squared lengths of the errors."""
        return self.prior.doubt(self.names)


@dataclass(frozen=True)
class MeanErrors:
    """Errors alike where predicted means are: `points` [N, D], with `uncertainty` [N]."""

    points: Floats
    uncertainty: Floats
    length: float

    @property
    def noise(self) -> float:
        """A share of the mean variance."""
        return NOISE * float(self.variance().mean())

    def covariance(self, places: Sequence[int]) -> Floats:
        """By the distances of means."""
        some = list(places)
        kernel = np.exp(-squared_distances(self.points[some], self.points) / (2 * self.length**2))
        return np.asarray(self.uncertainty[some, None] * self.uncertainty * kernel)

    def variance(self) -> Floats:
        """u²"""
        return np.square(self.uncertainty)


def proposed(table: pd.DataFrame, store: Store, ensemble: Ensemble, untreated: Untreated, n: int) -> list[str]:
    """The `n` conditions of the screen's `table` to measure next, first first; none that the runs' data hold already.

    DataError where fewer than `n` are left to choose from.
    """
    unmeasured = set(table.loc[~table["measured"].astype(bool), "condition"])
    if n > len(unmeasured):
        raise DataError(
            f"propose {n}: {len(unmeasured)} of the screen's {len(table)} conditions are not measured yet; "
            "propose fewer, or screen more conditions"
        )
    free = [name for name in store.names if name in unmeasured]
    measured = [str(name) for name in ensemble.measured.index if targets(str(name))]
    errors: Errors
    if ensemble.first.config.flow.source == "prior":
        errors, known = _prior_errors(ensemble, untreated, free, measured)
    else:
        errors, known = _mean_errors(table, store, ensemble, untreated, free), len(measured)
    return [free[at] for at in most_informative(errors, len(free), known, n)]


def _prior_errors(
    ensemble: Ensemble, untreated: Untreated, free: list[str], measured: list[str]
) -> tuple[PriorErrors, int]:  # fmt: skip
    """Errors of `free` conditions, then of those measured that the first run's prior has not learned from, and how many."""
    held = sorted(set(measured) - set(ensemble.first.prior.conditions))
    return PriorErrors(ensemble.prior([*free, *held], untreated.table), (*free, *held)), len(held)


def _mean_errors(
    table: pd.DataFrame, store: Store, ensemble: Ensemble, untreated: Untreated, free: list[str]
) -> MeanErrors:  # fmt: skip
    """Errors of `free` and then of measured conditions, which had the mean uncertainty before they were measured."""
    uncertainty = table.set_index("condition")["uncertainty"].loc[free].to_numpy(np.float64)
    points = untreated.whole.project(store.means(free).to_numpy(np.float64))
    means = ensemble.measured
    known = means.loc[[name for name in means.index if targets(str(name))]].to_numpy(np.float64)
    doubt = np.concatenate([uncertainty, np.full(len(known), uncertainty.mean())])
    return MeanErrors(np.concatenate([points, untreated.whole.project(known)]), doubt, median_distance(points))


def most_informative(errors: Errors, candidates: int, known: int, n: int) -> list[int]:
    """The places of `n` of the first `candidates` conditions, the last `known` of `errors` being measured already.

    Of more than SAMPLE candidates an even sample stands for all, and each for itself.
    """
    aims = np.unique(np.linspace(0, candidates - 1, min(SAMPLE, candidates)).astype(int))
    stands_for = (candidates - 1) / max(len(aims) - 1, 1) if candidates > 1 else 1.0
    towards, variance = errors.covariance(aims.tolist()), errors.variance()
    factors = np.zeros((known + n, len(variance)))
    picked: list[int] = []
    for step in range(known + n):
        if step < known:
            chosen = candidates + step
        else:
            gain = _gain(towards, variance, aims, stands_for)[:candidates] / (
                variance[:candidates] + errors.noise + TINY
            )
            gain[picked] = -np.inf
            chosen = int(gain.argmax())
            picked.append(chosen)
        column = errors.covariance([chosen])[0] - factors[:step, chosen] @ factors[:step]
        column = column / np.sqrt(max(variance[chosen], 0) + errors.noise + TINY)
        towards = towards - np.outer(column[aims], column)
        variance = np.maximum(variance - np.square(column), 0)
        factors[step] = column
    return picked


TINY: Final = 1e-300


def _gain(towards: Floats, variance: Floats, aims: np.ndarray, stands_for: float) -> Floats:
    """Σ_d k(d, x)² [N] over all candidates d: those of the sample, and x itself, which counts once in any case."""
    others = np.square(towards)
    others[np.arange(len(aims)), aims] = 0
    return np.asarray(stands_for * others.sum(0) + np.square(variance))


def median_distance(points: Floats) -> float:
    """Median distance between some evenly drawn ones of `points`, 1 where they all coincide."""
    some = points[np.unique(np.linspace(0, len(points) - 1, min(SAMPLE, len(points))).astype(int))]
    if len(some) < 2:
        return 1.0
    distances = np.sqrt(squared_distances(some, some))[np.triu_indices(len(some), 1)]
    return float(np.median(distances)) or 1.0
