"""Which conditions train, validate and test."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from scdfm.data.conditions import canonical, near, targets
from scdfm.errors import ConditionError, DataError

UNKNOWN: Final = "unknown"
"""Kind of the split of a model whose training conditions nobody recorded; its parts are empty."""
PARTS: Final = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Canonical names of the conditions of each part, sorted; `control` belongs to none.

    `kind` and `fold` say how the split was made. `test` may be empty only in a split made by hand.
    """

    kind: str
    fold: int
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for part in PARTS:
            names = tuple(sorted(canonical(name) for name in getattr(self, part)))
            object.__setattr__(self, part, names)
            for name in names:
                if not targets(name):
                    raise DataError(f"split: {name} stands in {part}; leave it out, controls are used everywhere")
                if name in seen:
                    raise DataError(f"split: condition '{name}' stands in {seen[name]} and in {part}; keep one")
                seen[name] = part
        if not self.train and self.kind != UNKNOWN:
            raise DataError("split: no training condition is left, expected at least one; keep fewer for the test")

    @property
    def conditions(self) -> tuple[str, ...]:
        """Every condition of the split: train, validation, test."""
        return self.train + self.validation + self.test

    @property
    def digest(self) -> str:
        """sha256 of the parts: equal digests mean equal parts, however they were made."""
        parts = {part: getattr(self, part) for part in PARTS}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def part(self, name: str) -> tuple[str, ...]:
        """The conditions of `train`, `validation` or `test`."""
        if name not in PARTS:
            raise DataError(f"split: no part '{name}'; expected one of {', '.join(PARTS)}")
        return tuple(getattr(self, name))

    def composed(self) -> tuple[str, ...]:
        """Test combinations that `additive` can predict: training has every target alone, at any dose or covariate."""
        alone = {target for name in self.train if len(targets(name)) == 1 for target in targets(name)}
        return tuple(c for c in self.test if len(targets(c)) > 1 and alone.issuperset(targets(c)))

    def check(self, conditions: Iterable[str]) -> None:
        """Raise ConditionError unless every condition of the split is among the canonical `conditions`."""
        measured = set(conditions)
        for part in PARTS:
            for name in getattr(self, part):
                if name not in measured:
                    raise ConditionError(unmeasured(f"split: {part} condition", name, measured))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping, digest included."""
        parts = {part: list(getattr(self, part)) for part in PARTS}
        return {"kind": self.kind, "fold": self.fold, **parts, "digest": self.digest}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Split:
        """The split of `to_dict`; DataError where a key is missing or the digest does not fit."""
        expected = {"kind", "fold", *PARTS, "digest"}
        if set(values) != expected:
            odd = sorted(expected.symmetric_difference(values))
            raise DataError(
                f"split: missing or unexpected keys {', '.join(odd)}; expected {', '.join(sorted(expected))}"
            )
        for part in PARTS:
            if not are_names(values[part]):
                raise DataError(f"split: {part} is {values[part]!r}, expected a list of condition names")
        split = cls(str(values["kind"]), int(values["fold"]), *(tuple(values[part]) for part in PARTS))
        if split.digest != values["digest"]:
            raise DataError(f"split: digest {values['digest']} does not fit the names ({split.digest}); it was edited")
        return split


def unmeasured(what: str, name: str, measured: set[str]) -> str:
    """The complaint about a name that the data do not hold."""
    hint = near(name, measured)
    return f"{what} '{name}' is not measured; expected one of the {len(measured)} conditions of the data{hint}"


def are_names(value: Any) -> bool:
    """Whether a value read from a file is a list of names."""
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
