"""How the simple rules take doses, times and covariates: the nearest measured, or columns of a regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log, log1p

import numpy as np

from scdfm.data.conditions import Condition, Perturbation, covariates, parse
from scdfm.evaluation.pseudobulk import Floats


def single_shift(
    measured: Sequence[tuple[Condition, Floats]], wanted: Perturbation, condition: Condition
) -> Floats | None:
    """The shift [A] of one target, from the training conditions that hold it alone; None where there is none.

    Those of the same covariates count, or without any those of every setting, averaged over settings. Of a setting
    it is the nearest dose (in log dose), then the nearest time; equally near ones are averaged. A dose of 0 that is
    not measured shifts nothing.
    """
    if wanted.dose == 0 and not any(_dose(single) == 0 for single, _ in measured):
        shape = measured[0][1].shape if measured else ()
        return np.zeros(shape)
    own = [entry for entry in measured if entry[0].covariates == condition.covariates] or measured
    settings: dict[tuple[tuple[str, str], ...], list[tuple[tuple[float, float], Floats]]] = {}
    for single, shift in own:
        far = (_log_ratio(_dose(single), wanted.dose), _gap(single.time, condition.time))
        settings.setdefault(single.covariates, []).append((far, shift))
    nearest = [_nearest(entries) for entries in settings.values()]
    return np.asarray(sum(nearest) / len(nearest)) if nearest else None


def _nearest(entries: Sequence[tuple[tuple[float, float], Floats]]) -> Floats:
    least = min(far for far, _ in entries)
    found = [shift for far, shift in entries if far == least]
    return np.asarray(sum(found) / len(found))


def _dose(single: Condition) -> float | None:
    return single.perturbations[0].dose


def _log_ratio(a: float | None, b: float | None) -> float:
    if a is None or b is None or a == b:
        return 0.0
    # Rounded, so that 10 is as near to 1 as to 100.
    return round(abs(log(a / b)), 9) if a and b else inf


def _gap(a: float | None, b: float | None) -> float:
    return 0.0 if a is None or b is None else abs(a - b)


@dataclass(frozen=True)
class DoseScale:
    """s(d) = log(1 + d/m) / log(1 + M/m): 0 at dose 0, 1 at the largest training dose M of the target; m its smallest.

    It is 1 where no dose is known. Targets without a dose in training take m and M over all targets.
    """

    ranges: Mapping[str, tuple[float, float]]
    overall: tuple[float, float]

    @classmethod
    def of(cls, conditions: Sequence[str]) -> DoseScale:
        """The scale of the positive doses of training `conditions`."""
        found: dict[str, list[float]] = {}
        for one in (one for name in conditions for one in parse(name).perturbations):
            if one.dose:
                found.setdefault(one.target, []).append(one.dose)
        every = [dose for doses in found.values() for dose in doses] or [1.0]
        return cls(
            {name: (min(doses), max(doses)) for name, doses in found.items()}, (min(every), max(every))
        )

    def __call__(self, perturbation: Perturbation) -> float:
        """s of a perturbation's dose."""
        if perturbation.dose is None:
            return 1.0
        low, high = self.ranges.get(perturbation.target, self.overall)
        return log1p(perturbation.dose / low) / log1p(high / low)


def settings_of(conditions: Sequence[str]) -> list[tuple[str, str]]:
    """The (key, value) pairs of the covariates that take several values in `conditions`, sorted."""
    pairs = {pair for name in conditions for pair in covariates(name).items()}
    keys = [key for key, _ in pairs]
    return sorted(pair for pair in pairs if keys.count(pair[0]) > 1)


def indicators(conditions: Sequence[str], settings: Sequence[tuple[str, str]]) -> Floats:
    """1 where a condition has a setting, [C, S]."""
    held = [covariates(name) for name in conditions]
    columns = [[pairs.get(key) == value for key, value in settings] for pairs in held]
    return np.array(columns, dtype=np.float64).reshape(len(conditions), len(settings))
