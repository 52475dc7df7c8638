"""How alike the mean shifts of two conditions are expected to be: a covariance over conditions.

K(c, c') = [ κ^(n + n') · (
               Σ_t s_t s'_t ρ(s_t, s'_t)                     the same target in both
               + a_shared  · S S'                            all perturbations share a response
               + Σ_d a_d · Σ_{t ∈ c, t' ∈ c'} s_t s'_t' D_d(t, t') )  targets alike in a description d of them
           + a_setting  · [S > 0] [S' > 0] [equal covariates]  one setting: its few controls, and what it does to any cell
           + a_several  · [|c| > 1] [|c'| > 1]               combinations share a departure from the sum
           + a_pair     · Σ_{pairs} P(t, u; t', u') ]         pairs of like targets interact alike
           · (1 − g + g · A(c, c')) · exp(−(Δ log1p time)² / 2)

s is the log dose (1 without one, S its sum over targets), κ what each further target leaves of the sum of the targets'
effects, which overlap; of those there are n = S / max s − 1, each counted by its dose beside the highest. ρ is a Gaussian
in s, D_d a Gaussian in one description of targets ("similar": how they answer as genes; others: features), and P the
symmetric product of Gaussians in the targets' single responses ("profiles"). A is how alike two settings of the
covariates are: a Gaussian in the distance of their control means, so that a type of cells is expected to answer as those
do whose untreated cells are like its own; where settings share controls, the share of equal covariates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from scdfm.data.conditions import CONTROL, control_of, parse, targets
from scdfm.errors import ConditionError

Floats = npt.NDArray[np.float64]

SIMILAR = "similar"
"""The description by how targets answer as genes."""
TERMS = ("same", "shared", SIMILAR, "setting", "several", "pair")
UNSUMMED = ("setting", "several", "pair")
"""Terms that are no sum over targets."""
DOSE_LENGTH2 = 4.0
"""Squared length of the dose kernel, in log doses s."""
DESCRIPTOR_LENGTH2 = 1.0
"""Squared length of the descriptor kernel; descriptors are of length 1."""
BLOCK = 2048
"""Conditions whose terms of the covariance are in memory at once."""


@dataclass(frozen=True)
class Weights:
    """Weight a of each term (of `same`: 1; of one without any: 0), g, the share of a response that settings share only as
    far as alike, and κ."""

    terms: dict[str, float]
    group: float = 0.0
    kept: float = 1.0


@dataclass(frozen=True, eq=False)
class Encoded:
    """Conditions as arrays: `dose` [C, T] is s of each target (0 where absent), `pairs` [Q, 3] (condition, t, u)."""

    dose: Floats
    pairs: npt.NDArray[np.int64]
    covariates: npt.NDArray[np.str_]
    """[C, K] values of the covariates."""
    setting: npt.NDArray[np.int64]
    """[C] place of each setting among those whose control means are known; -1 of a name without covariates."""
    time: Floats
    """[C] log1p time, 0 where there is none."""


@dataclass(frozen=True, eq=False)
class ConditionKernel:
    """The covariance above, over conditions of `targets` (T) in settings of `covariates`.

    `profiles` [T, k] are the targets' single responses in principal components, `descriptors` [T, F] what each description
    knows of them beside (rows of length 1, or of zeros: nothing), each a term of its name. `controls` [S, G] are the
    control means (log1p) of `settings`, which have the names of their control cells; of all settings, or of none.
    """

    targets: tuple[str, ...]
    covariates: tuple[str, ...]
    profiles: Floats
    descriptors: Mapping[str, Floats]
    dose_reference: float
    """The dose whose s is 1, in the user's unit."""
    profile_length2: float
    settings: tuple[str, ...]
    controls: Floats
    controls_length2: float

    def with_settings(self, controls: Mapping[str, Floats]) -> ConditionKernel:
        """This kernel with the control means [G] of those that are further settings; itself where it knows none at all."""
        new = {name: row for name, row in controls.items() if name not in self.settings}
        if not (new and self.settings):
            return self
        rows = np.stack([np.asarray(row, dtype=np.float64) for row in new.values()])
        return replace(self, settings=(*self.settings, *new), controls=np.concatenate([self.controls, rows]))

    def with_targets(self, names: Sequence[str], descriptors: Mapping[str, Floats]) -> ConditionKernel:
        """This kernel with further targets [n], of `descriptors` [n, F] in each description, whose profiles are 0."""
        profiles = np.zeros((len(names), self.profiles.shape[1]))
        return replace(
            self,
            targets=(*self.targets, *names),
            profiles=np.concatenate([self.profiles, profiles]),
            descriptors={
                name: np.concatenate([rows, descriptors[name]]) for name, rows in self.descriptors.items()
            },
        )

    def likeness(self, names: Sequence[str], others: Sequence[str]) -> dict[str, Floats]:
        """How alike targets are in each description [n, m]; 0 where nothing is known of either."""
        place = {target: row for row, target in enumerate(self.targets)}
        rows, columns = [place[name] for name in names], [place[name] for name in others]
        return {name: alike[np.ix_(rows, columns)] for name, alike in self._likeness.items()}

    def with_profiles(self, names: Sequence[str], profiles: Floats) -> ConditionKernel:
        """This kernel with `profiles` [n, k] of some of its targets."""
        changed, place = self.profiles.copy(), {target: row for row, target in enumerate(self.targets)}
        changed[[place[name] for name in names]] = profiles
        return replace(self, profiles=changed)

    def encode(self, conditions: Sequence[str]) -> Encoded:
        """Conditions, whose targets must all be among `targets`, as arrays."""
        place = {target: column for column, target in enumerate(self.targets)}
        parsed = [parse(name) for name in conditions]
        dose = np.zeros((len(parsed), len(self.targets)))
        for row, condition in enumerate(parsed):
            for item in condition.perturbations:
                dose[row, place[item.target]] = self.log_dose(item.dose)
        pairs = [
            (row, *np.sort(present)[[first, second]])
            for row, present in enumerate(map(np.flatnonzero, dose))
            for first in range(len(present))
            for second in range(first + 1, len(present))
        ]
        values = [
            [dict(condition.covariates).get(key, "") for key in self.covariates] for condition in parsed
        ]
        return Encoded(
            dose,
            np.array(pairs, dtype=np.int64).reshape(-1, 3),
            np.array(values, dtype=np.str_).reshape(len(parsed), len(self.covariates)),
            np.array([self._place(name) for name in conditions], dtype=np.int64),
            np.array([np.log1p(condition.time or 0.0) for condition in parsed]),
        )

    def _place(self, condition: str) -> int:
        setting = control_of(condition)
        if not self.settings or setting == CONTROL:
            return -1
        if setting not in self.settings:
            raise ConditionError(
                f"condition '{condition}': nothing is known of the control cells '{setting}'; expected their mean, as of "
                f"the {len(self.settings)} settings of training: give it (EffectPrior.knowing, controls=...)"
            )
        return self.settings.index(setting)

    def log_dose(self, dose: float | None) -> float:
        """s = log(1 + dose/reference) / log 2: 0 without the drug, 1 at the reference, and 1 where no dose is known."""
        return 1.0 if dose is None else float(np.log1p(dose / self.dose_reference) / np.log(2))

    def terms(self, left: Encoded, right: Encoded) -> dict[str, Floats]:
        """Each term [C, C'] before weighting, the factors of covariates and of κ left out."""
        shared = np.outer(left.dose.sum(1), right.dose.sum(1))
        several = (left.dose > 0).sum(1) > 1, (right.dose > 0).sum(1) > 1
        return {
            "same": _same_target(left.dose, right.dose),
            "shared": shared,
            **{name: left.dose @ alike @ right.dose.T for name, alike in self._likeness.items()},
            "setting": (shared > 0) * self._equal(left, right) if self.covariates else np.zeros_like(shared),
            "several": np.outer(*several).astype(np.float64),
            "pair": _pairs(left, right, self._alike),
        }

    @cached_property
    def _alike(self) -> Floats:
        return np.exp(-_squared_distances(self.profiles) / self.profile_length2)

    @cached_property
    def _likeness(self) -> dict[str, Floats]:
        return {name: _likeness(rows) for name, rows in self.descriptors.items()}

    def akin(self, left: Encoded, right: Encoded) -> Floats:
        """A [C, C'], how alike the settings of the covariates are; 1 where there are none."""
        if not self.covariates:
            return np.ones((len(left.dose), len(right.dose)))
        if self.settings:
            known = np.outer(left.setting >= 0, right.setting >= 0)
            alike = self._settings_alike[np.ix_(left.setting, right.setting)]
            return np.where(known, alike, self._equal(left, right))
        return np.asarray((left.covariates[:, None] == right.covariates[None]).mean(-1))

    def _equal(self, left: Encoded, right: Encoded) -> Floats:
        """1 where all covariates are equal, else 0 [C, C']."""
        return np.asarray((left.covariates[:, None] == right.covariates[None]).all(-1), dtype=np.float64)

    @cached_property
    def _settings_alike(self) -> Floats:
        return np.asarray(np.exp(-_squared_distances(self.controls) / self.controls_length2))

    def matrix(self, left: Encoded, right: Encoded, weights: Weights) -> Floats:
        """K [C, C'] of encoded conditions; BLOCK of them at a time, for whose terms there is memory."""
        if (n := len(left.dose)) > BLOCK:
            parts = (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))
            return np.concatenate([self.matrix(_rows(left, part), right, weights) for part in parts])
        total = weighted(self.terms(left, right), self.further(left, right), weights)
        settings = 1 - weights.group + weights.group * self.akin(left, right)
        return np.asarray(total * settings * self.near(left, right))

    def further(self, left: Encoded, right: Encoded) -> Floats:
        """n + n' [C, C'], the targets beyond the strongest of either (0 of control)."""
        return np.asarray(np.add.outer(_beyond_one(left.dose), _beyond_one(right.dose)))

    def near(self, left: Encoded, right: Encoded) -> Floats:
        """exp(−(Δ log1p time)²/2) [C, C']."""
        return np.asarray(np.exp(-0.5 * (left.time[:, None] - right.time[None]) ** 2))

    def variance(self, encoded: Encoded, weights: Weights) -> Floats:
        """The diagonal [C] of `matrix(encoded, encoded)`."""
        rows = (_rows(encoded, slice(place, place + 1)) for place in range(len(encoded.dose)))
        return np.array([self.matrix(row, row, weights)[0, 0] for row in rows])


def weighted(terms: dict[str, Floats], further: Floats, weights: Weights) -> Floats:
    """The sum of `terms` [C, C'] with their weights and κ^`further`; terms of weight 0 may be absent from `weights`."""
    kept = weights.kept**further
    parts = ((1.0 if name in UNSUMMED else kept) * w * terms[name] for name, w in weights.terms.items())
    return np.asarray(sum(parts))


def every_target(conditions: Sequence[str]) -> tuple[str, ...]:
    """The targets of all the conditions, sorted."""
    return tuple(sorted({target for name in conditions for target in targets(name)}))


def _beyond_one(dose: Floats) -> Floats:
    """S / max s − 1 [C], so that a second target whose dose goes to 0 leaves the first one's effect whole."""
    strongest = dose.max(axis=1, initial=0.0)
    return np.asarray(dose.sum(1) / np.where(strongest > 0, strongest, 1.0) - (strongest > 0))


def _rows(encoded: Encoded, part: slice) -> Encoded:
    pairs = encoded.pairs[(encoded.pairs[:, 0] >= part.start) & (encoded.pairs[:, 0] < part.stop)]
    pairs = pairs - np.array([part.start, 0, 0])
    return Encoded(
        encoded.dose[part], pairs, encoded.covariates[part], encoded.setting[part], encoded.time[part]
    )


def _squared_distances(rows: Floats) -> Floats:
    squared = (rows * rows).sum(1)
    return np.asarray(np.maximum(squared[:, None] + squared[None] - 2 * rows @ rows.T, 0.0))


def _likeness(descriptors: Floats) -> Floats:
    """A Gaussian of the distances between rows [T, T]; 0 where nothing is known of either."""
    known = descriptors.any(axis=1)
    return np.asarray(np.exp(-_squared_distances(descriptors) / DESCRIPTOR_LENGTH2) * np.outer(known, known))


def _same_target(left: Floats, right: Floats) -> Floats:
    """Σ_t s s' exp(−(s − s')²/8), target by target."""
    if set(np.unique(left)) <= {0.0, 1.0} and set(np.unique(right)) <= {0.0, 1.0}:
        return np.asarray(left @ right.T)
    total = np.zeros((len(left), len(right)))
    for ours, theirs in zip(left.T, right.T, strict=True):
        rows, columns = np.flatnonzero(ours), np.flatnonzero(theirs)
        s, other = ours[rows, None], theirs[None, columns]
        total[np.ix_(rows, columns)] += s * other * np.exp(-((s - other) ** 2) / (2 * DOSE_LENGTH2))
    return total


def _pairs(left: Encoded, right: Encoded, profile: Floats) -> Floats:
    """Σ over pairs of either side of the symmetric product of profile kernels, each pair times its log doses."""
    total = np.zeros((len(left.dose), len(right.dose)))
    if not len(left.pairs) or not len(right.pairs):
        return total
    (row, t, u), (column, other_t, other_u) = left.pairs.T, right.pairs.T
    alike = profile[np.ix_(t, other_t)] * profile[np.ix_(u, other_u)]
    alike += profile[np.ix_(t, other_u)] * profile[np.ix_(u, other_t)]
    strength = (
        left.dose[row, t] * left.dose[row, u],
        right.dose[column, other_t] * right.dose[column, other_u],
    )
    alike *= 0.5 * np.outer(*strength)
    by_condition = np.zeros((len(left.dose), len(column)))
    np.add.at(by_condition, row, alike)
    np.add.at(total.T, column, by_condition.T)
    return total
