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
