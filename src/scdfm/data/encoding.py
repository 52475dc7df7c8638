"""From names of conditions to the tensors that a velocity field reads.

What a name may hold is learned from the conditions trained on: known covariate values, and the dose and the time
that others are measured in.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Final

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from scdfm.condition_tensors import ConditionShape, ConditionTensors
from scdfm.data.conditions import DOSE_SIGN, Condition, Perturbation, Vocabulary, near, parse
from scdfm.data.features import FeatureTable
from scdfm.data.labels import listed
from scdfm.errors import ConditionError

NONE: Final = float("nan")
"""Dose and time of what has none."""


class ConditionSchema(BaseModel):
    """What the names of trained conditions hold beside targets."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    covariates: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = {}
    """Known values of each covariate, in the order of their embeddings."""
    dose_reference: Annotated[float, Field(gt=0)] | None = None
    """Median of the trained doses, the unit of the model's; None where there is none above 0."""
    time_reference: Annotated[float, Field(gt=0)] | None = None
    """Likewise of times."""

    @classmethod
    def of(cls, conditions: Iterable[str]) -> ConditionSchema:
        """The schema of the conditions trained on."""
        parsed = [parse(condition) for condition in conditions]
        values: dict[str, set[str]] = {}
        for condition in parsed:
            for key, value in condition.covariates:
                values.setdefault(key, set()).add(value)
        return cls(
            covariates={key: tuple(sorted(values[key])) for key in sorted(values)},
            dose_reference=_median(p.dose for condition in parsed for p in condition.perturbations),
            time_reference=_median(condition.time for condition in parsed),
        )


def _median(values: Iterable[float | None]) -> float | None:
    positive = [value for value in values if value]
    return float(statistics.median(positive)) if positive else None


@dataclass(frozen=True)
class _Row:
    """One condition: a place in each list for every target that is there."""

    tokens: tuple[int, ...]
    identified: tuple[bool, ...]
    features: tuple[int, ...]
    dose: tuple[float, ...]
    time: float
    covariates: tuple[int, ...]


class ConditionEncoder:
    """Encodes names by a vocabulary, a schema, and what is known of targets.

    identified: targets whose own vector means something, because training saw them or the gene encoder reads their gene;
        None: all of the vocabulary. features: standardised features, for targets in and outside the vocabulary.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        schema: ConditionSchema | None = None,
        identified: Collection[str] | None = None,
        features: FeatureTable | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.schema = schema or ConditionSchema()
        self.features = features
        """Standardised features."""
        self._identified = None if identified is None else frozenset(identified)
        self._places = {} if features is None else {name: i for i, name in enumerate(features.names)}
        self._rows: dict[str, _Row] = {}

    @cached_property
    def descriptions(self) -> dict[str, dict[str, np.ndarray]]:
        """By the kind of each description the standardised features [F] of its targets; none where the run has none."""
        return {} if self.features is None else self.features.rows_of()

    def encode(self, conditions: Sequence[str], slots: int | None = None) -> ConditionTensors:
        """The tensors of canonical `conditions`, P = `slots`, or with None as many as the largest needs.

        As published, a condition fills at least two slots: absent targets among the first two are the control
        token, so a single is (gene, control). Slots from the third on are `<pad>` where empty. A target at dose
        0 is absent. Raises ConditionError for a name that the run knows too little of.
        """
        rows = [self._row(name) for name in conditions]
        slots = self.slots(conditions) if slots is None else slots
        for name, row in zip(conditions, rows, strict=True):
            if len(row.tokens) > slots:
                raise ConditionError(
                    f"condition '{name}' has {len(row.tokens)} targets, expected at most {slots}; ask for more slots"
                )
        tokens = np.full((len(rows), slots), Vocabulary.PAD, dtype=np.int64)
        tokens[:, : Vocabulary.PUBLISHED_SLOTS] = Vocabulary.CONTROL
        for place, row in enumerate(rows):
            tokens[place, : len(row.tokens)] = row.tokens
        schema = self.schema
        return ConditionTensors(
            tokens=torch.from_numpy(tokens),
            dose=_filled([row.dose for row in rows], slots, NONE) if schema.dose_reference else None,
            time=torch.tensor([row.time for row in rows]) if schema.time_reference else None,
            covariates=torch.tensor([row.covariates for row in rows]) if schema.covariates else None,
            **self._described(rows, slots),
        )

    def shape(self, null: bool = False) -> ConditionShape:
        """The parts that a velocity field of these conditions has; `null`: some are left out in training."""
        return ConditionShape(
            dose=self.schema.dose_reference is not None,
            time=self.schema.time_reference is not None,
            covariates=sum(map(len, self.schema.covariates.values())),
            features=0 if self.features is None else self.features.n_features,
            null=null,
        )

    def slots(self, conditions: Iterable[str]) -> int:
        """P that the largest of `conditions` needs, two at least."""
        return max([Vocabulary.PUBLISHED_SLOTS, *(len(self._row(name).tokens) for name in conditions)])

    def knows(self, condition: str) -> bool:
        """Whether `encode` takes the condition."""
        try:
            self._row(condition)
        except ConditionError:
            return False
        return True

    def identified(self, target: str) -> bool:
        """Whether the target's own vector means something."""
        return target in (self.vocabulary if self._identified is None else self._identified)

    def described(self, target: str) -> bool:
        """Whether there are features of the target."""
        return target in self._places

    def _described(self, rows: list[_Row], slots: int) -> dict[str, torch.Tensor]:
        if self.features is None:
            return {}
        places = _filled([row.features for row in rows], slots, -1).long()
        described = places >= 0
        values = torch.from_numpy(self.features.values)[places.clamp(min=0)]
        return {
            "identified": _filled([row.identified for row in rows], slots, 1).bool(),
            "features": values * described.unsqueeze(-1),
            "described": described,
        }

    def _row(self, name: str) -> _Row:
        if name not in self._rows:
            condition = parse(name)
            present = [p for p in condition.perturbations if p.dose != 0]
            for perturbation in condition.perturbations:
                self._require(perturbation.target, name)
            identified = [self.identified(p.target) for p in present]
            self._rows[name] = _Row(
                # A target that is known by its features alone stands in a slot of a token nothing reads.
                tokens=tuple(
                    self.vocabulary.index(p.target) if own else Vocabulary.MASK
                    for p, own in zip(present, identified, strict=True)
                ),
                identified=tuple(identified),
                features=tuple(self._places.get(p.target, -1) for p in present),
                dose=tuple(self._dose(p, name) for p in present),
                time=self._time(condition, name),
                covariates=self._covariates(condition, name),
            )
        return self._rows[name]

    def _require(self, target: str, condition: str) -> None:
        """A target is known by a vector that means something, or by its features; never by nothing."""
        if self.identified(target) or self.described(target):
            return
        if target not in self.vocabulary:
            names = self.vocabulary.tokens[len(Vocabulary.SPECIAL) :]
            before, at, amount = target.rpartition(DOSE_SIGN)
            if at and before in self.vocabulary:
                raise ConditionError(
                    f"dose '{amount}' of condition '{condition}' is no number; expected one without a unit, in the unit "
                    f"of the doses that the run was fitted on: '{before}{DOSE_SIGN}0.5'"
                )
            close = near(target, (*names, *self._places))
            raise ConditionError(
                f"target '{target}' of condition '{condition}' is unknown: it is not in the panel of the run, no target "
                "of the screen, and has no features; fit with it in the panel if the data measure it "
                f"(--set 'panel.include=[\"{target}\"]'), or with a row for it in the features (--features){close}"
            )
        raise ConditionError(
            f"condition '{condition}': nothing is known of '{target}', which was in no training condition; expected "
            "features of it (fit with --features, features=...), or that it is a measured gene of a fit with "
            "model.perturbation = 'genes'"
        )

    def _dose(self, perturbation: Perturbation, condition: str) -> float:
        if perturbation.dose is None:
            return NONE
        if self.schema.dose_reference is None:
            raise ConditionError(
                f"condition '{condition}' has a dose, but no training condition has one; ask for "
                f"'{perturbation.target}', or fit on data with doses (dose_key)"
            )
        return _in_units(perturbation.dose, self.schema.dose_reference, f"condition '{condition}': dose")

    def _time(self, condition: Condition, name: str) -> float:
        if condition.time is None or (condition.time == 0 and self.schema.time_reference is None):
            return NONE
        if self.schema.time_reference is None:
            raise ConditionError(
                f"condition '{name}' has a time, but no training condition has one; leave it out, or fit on data with "
                "times (time_key)"
            )
        return _in_units(condition.time, self.schema.time_reference, f"condition '{name}': time")

    def _covariates(self, condition: Condition, name: str) -> tuple[int, ...]:
        given, places, first = dict(condition.covariates), [], 0
        for key in given:
            if key not in self.schema.covariates:
                keys = ", ".join(self.schema.covariates) or "none"
                raise ConditionError(
                    f"condition '{name}': covariate '{key}' is unknown; expected {keys}, the covariates of the training "
                    f"data: leave it out, or fit with covariates that hold it{near(key, self.schema.covariates)}"
                )
        for key, values in self.schema.covariates.items():
            if key not in given:
                raise ConditionError(
                    f"condition '{name}' has no covariate '{key}', which the model was trained with; write "
                    f"'{name}|{key}=...' with one of {listed(values)}"
                )
            if given[key] not in values:
                raise ConditionError(
                    f"condition '{name}': '{given[key]}' is no known value of covariate '{key}'; expected one of "
                    f"{listed(values)}{near(given[key], values)}, or control cells of it, which place it "
                    f"(--controls FILE --context '{key}={given[key]}', controls=..., context=...)"
                )
            places.append(first + values.index(given[key]))
            first += len(values)
        return tuple(places)


def _in_units(value: float, reference: float, what: str) -> float:
    """A dose or time in units of the trained ones' median, which float32 must hold."""
    if value / reference > float(np.finfo(np.float32).max):
        raise ConditionError(
            f"{what} {value:g} is too far from {reference:g}, the median of those trained on; expected one unit for all: "
            "correct it"
        )
    return value / reference


def _filled(lists: Sequence[Sequence[float]], width: int, empty: float) -> torch.Tensor:
    """Lists of up to `width` numbers as the rows of a float32 tensor, the rest `empty`."""
    filled = np.full((len(lists), width), empty, dtype=np.float32)
    for place, values in enumerate(lists):
        filled[place, : len(values)] = values
    return torch.from_numpy(filled)
