"""From the spread of predictions to the error to be expected, learned on measured conditions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from scipy.optimize import nnls

from scdfm.screening.correlation import Floats
from scdfm.screening.ensemble import Ensemble
from scdfm.seeds import numpy_rng

MOST: Final = 16
"""Conditions that calibrate at most."""
ENOUGH: Final = 4
"""With fewer held-out conditions, training conditions take part too (and the calibration says so)."""


@dataclass(frozen=True)
class Calibration:
    """error² ≈ floor² + factor² · spread², both ≥ 0, by least squares over `n` measured conditions.

    The error is ‖predicted mean − measured mean‖. `conditions` says which ones: "validation" (no run trained on them),
    "validation and training" (optimistic) or "none" (the spread is passed on as it is). `rank_agreement` is the
    Spearman correlation of spread and error over these conditions (None below four).
    """

    floor: float
    factor: float
    n: int
    conditions: str
    rank_agreement: float | None = None

    @classmethod
    def fitted(cls, spread: Floats, error: Floats, conditions: str) -> Calibration:
        """The calibration of `spread` [n] by `error` [n]. Below ENOUGH conditions there is no floor."""
        from scipy.stats import spearmanr

        n = len(spread)
        if n == 0:
            return cls(0.0, 1.0, 0, "none")
        design = np.column_stack([np.ones(n), np.square(spread)])
        design[:, 0] *= n >= ENOUGH
        (floor, factor), _ = nnls(design, np.square(error))
        agreement = None
        if n >= ENOUGH and np.ptp(spread) > 0 and np.ptp(error) > 0:
            agreement = float(spearmanr(spread, error).statistic)
        return cls(float(np.sqrt(floor)), float(np.sqrt(factor)), n, conditions, agreement)

    def expected_error(self, spread: Floats) -> Floats:
        """The uncertainty [k] of conditions with this `spread` [k]: root mean square error to be expected."""
        return np.asarray(np.sqrt(self.floor**2 + np.square(self.factor * spread)))

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def calibrating(
    ensemble: Ensemble, seed: int, most: int = MOST, among: Collection[str] | None = None
) -> tuple[list[str], str]:
    """Which measured conditions (`among` these, None: all) calibrate, at most `most`, and what they are to the runs."""
    beyond = ensemble.extrapolated(
        [*ensemble.held_out, *ensemble.trained]
    )  # of which nothing can be learned here
    usable = {
        name for name in ensemble.measured.index if name not in beyond and (among is None or name in among)
    }
    held_out = [name for name in ensemble.held_out if name in usable]
    trained = [name for name in ensemble.trained if name in usable]
    rng = numpy_rng(seed, "screen", "calibration")
    if len(held_out) > most:
        held_out = sorted(rng.choice(held_out, most, replace=False).tolist())
    if len(held_out) >= ENOUGH or not trained:
        return held_out, "validation" if held_out else "none"
    wanted = min(len(trained), most - len(held_out))
    return sorted(
        [*held_out, *rng.choice(trained, wanted, replace=False).tolist()]
    ), "validation and training"
