"""Which conditions to measure next: those about which the model is least sure, and that say different things.

The error of a prediction is taken to be a Gaussian process over predicted effects: conditions c and d with predicted
means m_c, m_d (on the screen's principal axes) and uncertainties u_c, u_d covary by
k(c, d) = u_c · u_d · exp(−‖m_c − m_d‖² / 2ℓ²), ℓ the median distance between candidates. What is measured is conditioned on
first; then each proposal is the candidate of largest remaining variance, and is conditioned on in turn. That is the
greedy maximum of log det k, a determinantal point process over what is not known yet (Chen, Zhang and Zhou, NeurIPS 2018).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from scdfm.errors import DataError
from scdfm.evaluation.distribution import squared_distances
from scdfm.screening.correlation import Floats
from scdfm.screening.effect import Reference
from scdfm.screening.ensemble import Ensemble
from scdfm.screening.store import Store

NOISE: Final = 0.01
"""Variance of a measurement, as a share of the mean u²: a measured condition keeps this much doubt."""
_SAMPLE: Final = 500


def proposed(
    table: pd.DataFrame, store: Store, ensemble: Ensemble, reference: Reference, n: int
) -> list[str]:
    """The `n` conditions of the screen's `table` to measure next, first first; none that the runs' data hold already.

    DataError where fewer than `n` are left to choose from.
    """
    uncertainty = dict(zip(table["condition"], table["uncertainty"].astype(float), strict=True))
    free = set(table.loc[~table["measured"].astype(bool), "condition"])
    if n > len(free):
        raise DataError(
            f"propose {n}: {len(free)} of the screen's {len(table)} conditions are not measured yet; "
            "propose fewer, or screen more conditions"
        )
    names, places = [], []
    for shard in store.shards():
        kept = [row for row, name in enumerate(shard.names) if name in free]
        names += [shard.names[row] for row in kept]
        places.append(reference.project(shard.means[kept]))
    candidates = np.concatenate(places)
    known = (
        reference.project(ensemble.measured.to_numpy(np.float64))
        if len(ensemble.measured)
        else candidates[:0]
    )
    doubt = np.array([uncertainty[name] for name in names])
    return [names[at] for at in diverse(candidates, doubt, known, n)]


def diverse(candidates: Floats, uncertainty: Floats, known: Floats, n: int) -> list[int]:
    """The places of `n` of the `candidates` [N, D] with `uncertainty` [N], given measured points `known` [C, D].

    Measured points have the candidates' mean uncertainty before they are measured.
    """
    points = np.concatenate([candidates, known])
    u = np.concatenate([uncertainty, np.full(len(known), uncertainty.mean())])
    length = _median_distance(candidates)
    noise = NOISE * float(np.square(uncertainty).mean())
    factor = np.zeros((len(points), len(known) + n))
    variance = np.square(u)
    picked: list[int] = []
    for step in range(len(known) + n):
        if step < len(known):
            pivot = len(candidates) + step
        else:
            left = variance[: len(candidates)].copy()
            left[picked] = -np.inf
            pivot = int(left.argmax())
            picked.append(pivot)
        kernel = np.exp(-squared_distances(points, points[[pivot]])[:, 0] / (2 * length**2))
        column = u * u[pivot] * kernel - factor[:, :step] @ factor[pivot, :step]
        factor[:, step] = column / np.sqrt(max(variance[pivot], 0) + noise + 1e-300)
        variance = variance - np.square(factor[:, step])
    return picked


def _median_distance(points: Floats) -> float:
    """Median distance between some evenly drawn ones of `points`, 1 where they all coincide."""
    some = points[np.unique(np.linspace(0, len(points) - 1, min(_SAMPLE, len(points))).astype(int))]
    if len(some) < 2:
        return 1.0
    distances = np.sqrt(squared_distances(some, some))[np.triu_indices(len(some), 1)]
    return float(np.median(distances)) or 1.0
