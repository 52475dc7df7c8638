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

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

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
    """Conditions as arrays: `dose` [C, T] is s of each target, not stored where 0; `pairs` [Q, 3] (condition, t, u)."""

    dose: sp.csr_array
    pairs: npt.NDArray[np.int64]
    covariates: npt.NDArray[np.str_]
    """[C, K] values of the covariates."""
    setting: npt.NDArray[np.int64]
    """[C] place of each setting among those whose control means are known; -1 of a name without covariates."""
    time: Floats
    """[C] log1p time, 0 where there is none."""

    def __len__(self) -> int:
        return int(self.dose.shape[0])

    @cached_property
    def total(self) -> Floats:
        """S [C], the sum over targets."""
        return np.asarray(self.dose.sum(axis=1), dtype=np.float64)

    @cached_property
    def n_targets(self) -> npt.NDArray[np.int64]:
        """Number of targets [C] that do something."""
        return np.diff(self.dose.indptr).astype(np.int64)

    @cached_property
    def rows(self) -> npt.NDArray[np.int64]:
        """The condition of each dose that is stored."""
        return np.repeat(np.arange(len(self)), self.n_targets)

    @cached_property
    def strongest(self) -> Floats:
        """max s [C], 0 of control."""
        doses = np.zeros(len(self))
        np.maximum.at(doses, self.rows, self.dose.data)
        return doses

    def of_targets(self, rows: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> Floats:
        """s of targets [Q] of conditions `rows` [Q], which have them."""
        n = self.dose.shape[1]
        at = np.searchsorted(self.rows * n + self.dose.indices, rows * n + targets)
        return np.asarray(self.dose.data[at], dtype=np.float64)

    def scaled(self, factors: Floats) -> Encoded:
        """Doses s times `factors` [C]."""
        doses = self.dose.data * factors[self.rows]
        return replace(self, dose=sp.csr_array((doses, self.dose.indices, self.dose.indptr), shape=self.dose.shape))

    def among(self, n_targets: int) -> Encoded:
        """The same among so many targets, of which these are the first."""
        parts = (self.dose.data, self.dose.indices, self.dose.indptr)
        return replace(self, dose=sp.csr_array(parts, shape=(len(self), n_targets)))


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
    dose_onset: float
    """The dose above which s grows with its logarithm, below with the dose: the lowest that was measured."""
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
            descriptors={name: np.concatenate([rows, descriptors[name]]) for name, rows in self.descriptors.items()},
        )

    def likeness(self, names: Sequence[str], others: Sequence[str]) -> dict[str, Floats]:
        """How alike targets are in each description [n, m]; 0 where nothing is known of either."""
        rows, columns = ([self._places[name] for name in side] for side in (names, others))
        return {name: _likeness(descriptor[rows], descriptor[columns]) for name, descriptor in self.descriptors.items()}

    @cached_property
    def _places(self) -> dict[str, int]:
        return {target: place for place, target in enumerate(self.targets)}

    def with_profiles(self, names: Sequence[str], profiles: Floats) -> ConditionKernel:
        """This kernel with `profiles` [n, k] of some of its targets."""
        changed = self.profiles.copy()
        changed[[self._places[name] for name in names]] = profiles
        return replace(self, profiles=changed)

    def encode(self, conditions: Sequence[str]) -> Encoded:
        """Conditions, whose targets must all be among `targets`, as arrays."""
        parsed = [parse(name) for name in conditions]
        present = [
            sorted(
                (self._places[item.target], s)
                for item in condition.perturbations
                if (s := self.log_dose(item.dose)) != 0
            )
            for condition in parsed
        ]
        places, doses = zip(*itertools.chain.from_iterable(present), strict=True) if any(present) else ((), ())
        first = np.concatenate([[0], np.cumsum([len(row) for row in present])]).astype(np.int64)
        dose = sp.csr_array(
            (np.array(doses, dtype=np.float64), np.array(places, dtype=np.int64), first),
            shape=(len(parsed), len(self.targets)),
        )
        pairs = [
            (row, t, u) for row, entries in enumerate(present) for (t, _), (u, _) in itertools.combinations(entries, 2)
        ]
        values = [[dict(condition.covariates).get(key, "") for key in self.covariates] for condition in parsed]
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
        """s = log(1 + dose/onset) / log(1 + reference/onset): 0 without the drug, 1 at the reference and where no dose is
        known.

        With an onset among the measured doses those below it would all be nearly 0, and what is learned from them, a
        response divided by next to nothing, would swing between and beyond the others.
        """
        if dose is None:
            return 1.0
        return float(np.log1p(dose / self.dose_onset) / np.log1p(self.dose_reference / self.dose_onset))

    def terms(self, left: Encoded, right: Encoded) -> dict[str, Floats]:
        """Each term [C, C'] before weighting, the factors of covariates and of κ left out."""
        shared = np.outer(left.total, right.total)
        several = left.n_targets > 1, right.n_targets > 1
        return {
            "same": _same_target(left.dose, right.dose),
            "shared": shared,
            **{name: _alike(left.dose, right.dose, descriptor) for name, descriptor in self.descriptors.items()},
            "setting": (shared > 0) * self._equal(left, right) if self.covariates else np.zeros_like(shared),
            "several": np.outer(*several).astype(np.float64),
            "pair": _pairs(left, right, self.profiles, self.profile_length2),
        }

    def akin(self, left: Encoded, right: Encoded) -> Floats:
        """A [C, C'], how alike the settings of the covariates are; 1 where there are none."""
        if not self.covariates:
            return np.ones((len(left), len(right)))
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
        return np.asarray(np.exp(-_squared_distances(self.controls, self.controls) / self.controls_length2))

    def matrix(self, left: Encoded, right: Encoded, weights: Weights) -> Floats:
        """K [C, C'] of encoded conditions; BLOCK of them at a time, for whose terms there is memory."""
        if (n := len(left)) > BLOCK:
            whole = np.empty((n, len(right)))
            for part in blocks(n):
                whole[part] = self.matrix(_rows(left, part), right, weights)
            return whole
        pair = (left, right)
        return weighted(self.terms(*pair), self.further(*pair), self.akin(*pair), self.near(*pair), weights)

    def further(self, left: Encoded, right: Encoded) -> Floats:
        """n + n' [C, C'], the targets beyond the strongest of either (0 of control)."""
        return np.asarray(np.add.outer(_beyond_one(left), _beyond_one(right)))

    def near(self, left: Encoded, right: Encoded) -> Floats:
        """exp(−(Δ log1p time)²/2) [C, C']."""
        return np.asarray(np.exp(-0.5 * (left.time[:, None] - right.time[None]) ** 2))

    def variance(self, encoded: Encoded, weights: Weights) -> Floats:
        """The diagonal [C] of `matrix(encoded, encoded)`."""
        rows = (_rows(encoded, slice(place, place + 1)) for place in range(len(encoded)))
        return np.array([self.matrix(row, row, weights)[0, 0] for row in rows])


def weighted(terms: dict[str, Floats], further: Floats, akin: Floats, near: Floats, weights: Weights) -> Floats:
    """K [C, C'] of its parts; terms of weight 0 may be absent from `weights`."""
    factor = weights.kept**further
    parts = ((1.0 if name in UNSUMMED else factor) * w * terms[name] for name, w in weights.terms.items())
    return np.asarray(sum(parts) * (1 - weights.group + weights.group * akin) * near)


def blocks(n: int) -> list[slice]:
    """Up to BLOCK of n conditions at a time."""
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]


def every_target(conditions: Sequence[str]) -> tuple[str, ...]:
    """The targets of all the conditions, sorted."""
    return tuple(sorted({target for name in conditions for target in targets(name)}))


def _beyond_one(encoded: Encoded) -> Floats:
    """S / max s − 1 [C], so that a second target whose dose goes to 0 leaves the first one's effect whole."""
    strongest = encoded.strongest
    return np.asarray(encoded.total / np.where(strongest > 0, strongest, 1.0) - (strongest > 0))


def _rows(encoded: Encoded, part: slice) -> Encoded:
    pairs = encoded.pairs[(encoded.pairs[:, 0] >= part.start) & (encoded.pairs[:, 0] < part.stop)]
    pairs = pairs - np.array([part.start, 0, 0])
    return Encoded(encoded.dose[part], pairs, encoded.covariates[part], encoded.setting[part], encoded.time[part])


def _squared_distances(rows: Floats, others: Floats) -> Floats:
    lengths = (rows * rows).sum(1)[:, None] + (others * others).sum(1)[None]
    return np.asarray(np.maximum(lengths - 2 * rows @ others.T, 0.0))


def _likeness(rows: Floats, others: Floats) -> Floats:
    """A Gaussian of the distances between rows of a description [n, m]; 0 where nothing is known of either."""
    known = np.outer(rows.any(axis=1), others.any(axis=1))
    return np.asarray(np.exp(-_squared_distances(rows, others) / DESCRIPTOR_LENGTH2) * known)


def _alike(left: sp.csr_array, right: sp.csr_array, descriptor: Floats) -> Floats:
    """Σ_{t, t'} s_t s'_t' D(t, t') [C, C'], of the targets that take part: a condition has few of all."""
    (ours, left), (theirs, right) = _present(left), _present(right)
    return np.ascontiguousarray((right @ (left @ _likeness(descriptor[ours], descriptor[theirs])).T).T)


def _present(dose: sp.csr_array) -> tuple[npt.NDArray[Any], sp.csr_array]:
    """The targets [T'] of any condition, and `dose` [C, T'] of them."""
    places, columns = np.unique(dose.indices, return_inverse=True)
    return places, sp.csr_array((dose.data, columns, dose.indptr), shape=(dose.shape[0], len(places)))


def _same_target(left: sp.csr_array, right: sp.csr_array) -> Floats:
    """Σ_t s s' exp(−(s − s')²/8), target by target."""
    if (left.data == 1).all() and (right.data == 1).all():
        return np.asarray((left @ right.T).toarray())
    total = np.zeros((left.shape[0], right.shape[0]))
    by_target = [sp.csc_array(side) for side in (left, right)]
    for target in np.intersect1d(left.indices, right.indices):
        (rows, ours), (columns, theirs) = (_column(side, target) for side in by_target)
        s, other = ours[:, None], theirs[None]
        total[np.ix_(rows, columns)] += s * other * np.exp(-((s - other) ** 2) / (2 * DOSE_LENGTH2))
    return total


def _column(dose: sp.csc_array, target: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The conditions of a target, and its s in each."""
    part = slice(dose.indptr[target], dose.indptr[target + 1])
    return dose.indices[part], dose.data[part]


def _pairs(left: Encoded, right: Encoded, profiles: Floats, length2: float) -> Floats:
    """Σ over pairs of either side of the symmetric product of profile kernels, each pair times its log doses."""
    if not len(left.pairs) or not len(right.pairs):
        return np.zeros((len(left), len(right)))
    ours, theirs = (np.unique(side.pairs[:, 1:]) for side in (left, right))
    profile = np.exp(-_squared_distances(profiles[ours], profiles[theirs]) / length2)
    (t, u), (other_t, other_u) = (
        np.searchsorted(ours, left.pairs[:, 1:].T),
        np.searchsorted(theirs, right.pairs[:, 1:].T),
    )
    alike = profile[np.ix_(t, other_t)] * profile[np.ix_(u, other_u)]
    alike += profile[np.ix_(t, other_u)] * profile[np.ix_(u, other_t)]
    of_left, of_right = (_of_pairs(side) for side in (left, right))
    return np.ascontiguousarray((of_right @ (of_left @ (0.5 * alike)).T).T)


def _of_pairs(encoded: Encoded) -> sp.csr_array:
    """The log doses of each pair [C, Q], multiplied, in its condition."""
    row, t, u = encoded.pairs.T
    strength = encoded.of_targets(row, t) * encoded.of_targets(row, u)
    return sp.csr_array((strength, (row, np.arange(len(row)))), shape=(len(encoded), len(row)))
