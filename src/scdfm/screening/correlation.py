"""Distance correlation of Székely, Rizzo and Bakirov (Annals of Statistics 2007), the V-statistic.

dCov²(x, y) is the mean product of the two doubly centred matrices of distances between observations;
dCor² = dCov²(x, y) / √(dCov²(x, x) · dCov²(y, y)). It is 0 for independent variables only, and 1 for y = a + b·x.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Distances:
    """Distances [n, n] between the observations of one variable, centred by row and by column, and dCov²(x, x)."""

    centred: Floats
    variance: float

    @classmethod
    def of(cls, x: npt.ArrayLike) -> Distances:
        """The distances of `x`: n numbers, or n vectors [n, d] with Euclidean distance."""
        values = np.asarray(x, dtype=np.float64)
        columns = values[:, None] if values.ndim == 1 else values
        if columns.shape[1] == 1:
            distances = np.abs(columns - columns.T)
        else:
            distances = np.sqrt(sum((column[:, None] - column[None, :]) ** 2 for column in columns.T))
        means = distances.mean(axis=0)
        distances -= means[:, None]
        distances -= means[None, :] - means.mean()
        return cls(distances, float(np.vdot(distances, distances)) / len(values) ** 2)


def distance_correlation(x: Distances, y: Distances) -> float:
    """dCor(x, y) in [0, 1]; NaN where x or y is constant."""
    scale = np.sqrt(x.variance) * np.sqrt(y.variance)
    if scale == 0:
        return float("nan")
    covariance = float(np.vdot(x.centred, y.centred)) / len(x.centred) ** 2
    return float(np.sqrt(min(1.0, max(0.0, covariance / scale))))
