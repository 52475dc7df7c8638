"""Does a prediction resemble its own condition more than the others?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from scdfm.evaluation.pseudobulk import Floats

Distance = Literal["cityblock", "euclidean", "cosine"]


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
    every = cdist(predicted, real, distance)
    for k, row in enumerate(every):
        if not np.isfinite(predicted[k]).all():
            continue
        if without is not None and len(without[k]):
            kept = np.delete(np.arange(real.shape[1]), without[k])
            row = cdist(predicted[k : k + 1, kept], real[:, kept], distance)[0]
        closer = np.sum(row < row[k])
        level = np.sum(row == row[k]) - 1
        scores[k] = 1 - (closer + level / 2) / len(real)
    return scores


def centroid_accuracy(predicted: Floats, real: Floats, groups: Iterable[list[int]] | None = None) -> Floats:
    """Systema's centroid accuracy [K]: share of the other real means that lie farther from the prediction than its own.

    By Euclidean distance of means [K, G]; equal distances count half. Chance is 1/2; NaN for a single condition.
    """
    return _share_farther(cdist(predicted, real), groups)


def transpose_rank(predicted: Floats, real: Floats, groups: Iterable[list[int]] | None = None) -> Floats:
    """Share of the other *predictions* that lie farther from a condition's real mean than its own, [K].

    A model that predicts one mean for all is at chance, 1/2, here and in `centroid_accuracy`; a prediction that is
    near to everything passes one of the two alone.
    """
    return _share_farther(cdist(real, predicted), groups)


def ds_cosine(predicted: Floats, real: Floats, groups: Iterable[list[int]] | None = None) -> Floats:
    """Share of the other real shifts that point further away from the predicted one than its own does, [K].

    Shifts [K, A] hold no gene that a condition targets. A shift without length points nowhere: distance 1.
    """
    if not real.shape[1]:
        return np.full(len(predicted), np.nan)
    distance = cdist(predicted, real, "cosine")
    nowhere = (np.abs(predicted).max(axis=1) == 0)[:, None] | (np.abs(real).max(axis=1) == 0)
    return _share_farther(np.where(nowhere, 1.0, distance), groups)


def _share_farther(distance: Floats, groups: Iterable[list[int]] | None) -> Floats:
    """For each row of `distance` [K, K] the share of the other columns, in its group, farther than the diagonal.

    Columns without a distance (nothing predicted) do not take part; a diagonal without one gives NaN.
    """
    shares = np.full(len(distance), np.nan)
    for places in groups or [list(range(len(distance)))]:
        within = distance[np.ix_(places, places)]
        own = np.diag(within)[:, None]
        others = np.isfinite(within).sum(axis=1) - 1
        farther = (within > own).sum(axis=1) + ((within == own).sum(axis=1) - 1) / 2
        usable = np.isfinite(own[:, 0]) & (others > 0)
        shares[places] = np.where(usable, farther / np.maximum(others, 1), np.nan)
    return shares
