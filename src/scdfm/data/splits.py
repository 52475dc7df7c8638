"""Which conditions train, validate and test: published splits, a column of the screen, or a file.

`fold` alone decides the test, so that fits of different seeds are replicates on one test; `seed` chooses the
validation conditions, always out of training. Every split is deterministic and carries a digest.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeGuard, cast

import numpy as np

from scdfm.config import SplitConfig
from scdfm.data.conditions import CONTROL, canonical, near, targets
from scdfm.errors import ConditionError, DataError
from scdfm.seeds import numpy_rng

if TYPE_CHECKING:
    from scdfm.data.cells import CellTable

UNKNOWN: Final = "unknown"
"""Kind of the split of a model whose training conditions nobody recorded; its parts are empty."""
PARTS: Final = ("train", "validation", "test")
COMBINATIONS_DOUBLES: Final = 15
_PUBLISHED_SEED: Final = 42
_COLUMN_VALUES: Final = {
    "train": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "test": "test", "ood": "test",
}  # fmt: skip


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
                if name == CONTROL:
                    raise DataError(
                        f"split: control stands in {part}; leave it out, controls are used everywhere"
                    )
                if name in seen:
                    raise DataError(
                        f"split: condition '{name}' stands in {seen[name]} and in {part}; keep one"
                    )
                seen[name] = part
        if not self.train and self.kind != UNKNOWN:
            raise DataError(
                "split: no training condition is left, expected at least one; keep fewer for the test"
            )

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
        """Test combinations of which every target was measured alone in training: what `additive` can predict."""
        alone = set(self.train)
        return tuple(c for c in self.test if len(targets(c)) > 1 and alone.issuperset(targets(c)))

    def check(self, conditions: Iterable[str]) -> None:
        """Raise ConditionError unless every condition of the split is among the canonical `conditions`."""
        measured = set(conditions)
        for part in PARTS:
            for name in getattr(self, part):
                if name not in measured:
                    raise ConditionError(_unmeasured(f"split: {part} condition", name, measured))

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
            if not _names(values[part]):
                raise DataError(f"split: {part} is {values[part]!r}, expected a list of condition names")
        split = cls(str(values["kind"]), int(values["fold"]), *(tuple(values[part]) for part in PARTS))
        if split.digest != values["digest"]:
            raise DataError(
                f"split: digest {values['digest']} does not fit the names ({split.digest}); it was edited"
            )
        return split


def additive_split(
    conditions: CellTable | Iterable[str],
    fold: int = 0,
    test_fraction: float = 0.3,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Split:
    """The published `additive` split: every single trains, a share of the combinations is tested.

    The combinations, sorted as the file spells them, are shuffled by numpy's legacy RandomState(42 + fold);
    the first int(test_fraction · n) are the test. Validation: combinations out of training.
    """
    names = _spelled(conditions)
    tested = _tested_combinations(names, fold, test_fraction)
    return _finish("additive", fold, names, tested, validation_fraction, seed)


def holdout_split(
    conditions: CellTable | Iterable[str],
    fold: int = 0,
    held_out_targets: int = 12,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Split:
    """Unseen targets: some measured singles, and every condition that contains one of them, are the test.

    The sorted singles are shuffled by RandomState(42 + fold), the first `held_out_targets` held out.
    Validation: further targets with all their conditions, out of training.
    """
    names = _spelled(conditions)
    singles = [name for name in names if len(targets(name)) == 1]
    if not 1 <= held_out_targets < len(singles):
        raise DataError(
            f"holdout split: cannot hold out {held_out_targets} of {len(singles)} singles; "
            "expected at least 1 and fewer than there are (split.held_out_targets)"
        )
    held = set(_shuffled(singles, fold)[:held_out_targets])
    return _finish(
        "holdout", fold, names, _touching(names, held), validation_fraction, seed, unseen_targets=True
    )


def combinations_split(
    conditions: CellTable | Iterable[str],
    fold: int = 0,
    test_fraction: float = 0.3,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Split:
    """The published `combinations` split: the first 15 test combinations of `additive` and their singles are tested."""
    names = _spelled(conditions)
    first = _tested_combinations(names, fold, test_fraction)[:COMBINATIONS_DOUBLES]
    singles = {target for name in first for target in targets(name)}.intersection(names)
    return _finish("combinations", fold, names, [*first, *singles], validation_fraction, seed)


def column_split(cells: CellTable, column: str, validation_fraction: float = 0.1, seed: int = 0) -> Split:
    """The split written in obs column `column`: `train`, `validation` (or `val`, `valid`) and `test` (or `ood`).

    All cells of a condition must agree; control cells are not looked at. Without a validation value,
    validation conditions are taken out of training.
    """
    if column not in cells.obs.columns:
        known = ", ".join(map(str, cells.obs.columns))
        raise DataError(
            f"split column '{column}' is not in obs; columns are {known}{near(column, map(str, cells.obs.columns))}"
        )
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    values = cells.obs[column].astype(str).str.strip().to_numpy()
    for condition in cells.conditions:
        if condition == CONTROL:
            continue
        found = sorted(set(values[cells.rows(condition)]))
        if len(found) > 1:
            raise DataError(
                f"split column '{column}': condition '{condition}' has cells in {' and '.join(found)}; "
                "expected one value for each condition"
            )
        if found[0].lower() not in _COLUMN_VALUES:
            raise DataError(
                f"split column '{column}': condition '{condition}' has value '{found[0]}'; "
                "expected train, validation or test"
            )
        parts[_COLUMN_VALUES[found[0].lower()]].append(condition)
    if parts["validation"]:
        validation_fraction = 0.0
    names = [*parts["train"], *parts["test"]]
    return _finish(
        "column", 0, names, parts["test"], validation_fraction, seed, validation=parts["validation"]
    )


def file_split(
    path: str | Path,
    conditions: CellTable | Iterable[str],
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Split:
    """The split of a TOML file with lists `test` and, optionally, `validation` and `train`.

    Without `train` the rest trains; with it, conditions named nowhere are left out. Without `validation`,
    validation conditions are taken out of training.
    """
    measured = _spelled(conditions)
    lists = _read_lists(Path(path), conditions.control if _is_table(conditions) else CONTROL)
    for key, names in lists.items():
        for name in names:
            if name not in measured and name != CONTROL:
                raise ConditionError(_unmeasured(f"split file {path}: {key} condition", name, set(measured)))
    named = {name for names in lists.values() for name in names}
    train = lists.get("train", [name for name in measured if name not in named])
    if "validation" in lists:
        validation_fraction = 0.0
    return _finish(
        "file",
        0,
        [*train, *lists["test"]],
        lists["test"],
        validation_fraction,
        seed,
        lists.get("validation", []),
    )


def named_split(
    conditions: CellTable | Iterable[str],
    test: Sequence[str],
    validation_fraction: float = 0.1,
    seed: int = 0,
    kind: str = "named",
) -> Split:
    """The split whose test are the conditions named in `test`; the rest trains, validation is taken out of it."""
    measured = _spelled(conditions)
    control = conditions.control if _is_table(conditions) else CONTROL
    tested = [canonical(name, control) for name in test]
    for name in tested:
        if name not in measured:
            raise ConditionError(_unmeasured(f"{kind} split: test condition", name, set(measured)))
    return _finish(kind, 0, measured, tested, validation_fraction, seed)


def make_split(cells: CellTable | Iterable[str], config: SplitConfig | None = None, seed: int = 0) -> Split:
    """The split that `config` (default: additive) asks for, of a table of cells or of condition names."""
    config = config or SplitConfig()
    share = config.validation_fraction
    if config.kind == "column":
        assert config.column is not None
        if _is_table(cells):
            return column_split(cells, config.column, share, seed)
        raise DataError("split kind 'column' reads obs; expected a CellTable, found condition names")
    if config.kind == "file":
        assert config.path is not None
        return file_split(config.path, cells, share, seed)
    if config.kind == "named":
        assert config.test is not None
        return named_split(cells, config.test, share, seed)
    if config.kind == "holdout":
        return holdout_split(cells, config.fold, config.held_out_targets, share, seed)
    published = additive_split if config.kind == "additive" else combinations_split
    return published(cells, config.fold, config.test_fraction, share, seed)


def _is_table(cells: CellTable | Iterable[str]) -> TypeGuard[CellTable]:
    # By its attributes: importing CellTable would bring pandas into a module of names.
    return hasattr(cells, "spelling")


def _spelled(conditions: CellTable | Iterable[str]) -> dict[str, str]:
    """Canonical name -> spelling in the file, in sorted order of the spellings; control left out.

    The published shuffle starts from the sorted labels of the file, so renaming must not reorder them.
    """
    if _is_table(conditions):
        spelling = conditions.spelling
    elif isinstance(conditions, str):
        raise DataError(f"split: expected several condition names, found the text '{conditions}'")
    else:
        names = cast("Iterable[str]", conditions)
        spelling = {canonical(label): label for label in sorted(set(names), reverse=True)}
    ordered = sorted((label, name) for name, label in spelling.items() if name != CONTROL)
    return {name: label for label, name in ordered}


def _shuffled(names: Sequence[str], fold: int) -> list[str]:
    order = np.random.RandomState(_PUBLISHED_SEED + fold).permutation(len(names))
    return [names[place] for place in order]


def published_order(conditions: CellTable | Iterable[str], fold: int = 0) -> list[str]:
    """The combinations in the order of the published shuffle; the test of `additive` is its beginning."""
    return _shuffled_combinations(_spelled(conditions), fold)


def _shuffled_combinations(names: Iterable[str], fold: int) -> list[str]:
    return _shuffled([name for name in names if len(targets(name)) > 1], fold)


def _tested_combinations(names: Mapping[str, str], fold: int, test_fraction: float) -> list[str]:
    if not 0 < test_fraction < 1:
        raise DataError(f"split: test_fraction {test_fraction} is not between 0 and 1; try 0.3")
    combinations = _shuffled_combinations(names, fold)
    tested = combinations[: int(test_fraction * len(combinations))]
    if not tested:
        raise DataError(
            f"split: {test_fraction:g} of {len(combinations)} combinations leaves no test condition; raise "
            "split.test_fraction, or choose split.kind 'holdout' for a screen of singles"
        )
    return tested


def _touching(names: Iterable[str], held: set[str]) -> list[str]:
    return [name for name in names if held.intersection(targets(name))]


def _finish(
    kind: str,
    fold: int,
    names: Iterable[str],
    tested: Sequence[str],
    validation_fraction: float,
    seed: int,
    validation: Sequence[str] = (),
    unseen_targets: bool = False,
) -> Split:
    """Take validation out of training and check that nothing is empty."""
    if not 0 <= validation_fraction < 1:
        raise DataError(f"split: validation_fraction {validation_fraction} is not in [0, 1); try 0.1")
    train = sorted(set(names).difference(tested))
    if not tested:
        raise DataError(f"{kind} split: no test condition, expected at least one; name or hold out some")
    if not train:
        raise DataError(
            f"{kind} split: no training condition is left, expected at least one; keep fewer for the test"
        )
    if validation_fraction:
        rng = numpy_rng(seed, "split", kind, fold)
        draw = _validation_targets if unseen_targets else _validation_like
        validation = list(draw(train, tested, validation_fraction, rng))
    rest = set(train).difference(validation)
    return Split(kind, fold, tuple(rest), tuple(validation), tuple(tested))


def _validation_like(
    train: list[str], tested: Sequence[str], share: float, rng: np.random.Generator
) -> Iterator[str]:
    """Training conditions of as many targets as the test's combinations have; any, where there are none."""
    sizes = {len(targets(name)) for name in tested}
    combined = {size for size in sizes if size > 1}
    alike = [name for name in train if len(targets(name)) in (combined or sizes)] or train
    wanted = min(max(1, round(share * len(alike))), len(train) - 1)
    yield from (alike[place] for place in rng.permutation(len(alike))[:wanted])


def _validation_targets(
    train: list[str], tested: Sequence[str], share: float, rng: np.random.Generator
) -> Iterator[str]:
    """Training singles with every training condition that contains them, up to a share of training."""
    wanted = max(1, round(share * len(train)))
    singles = [name for name in train if len(targets(name)) == 1]
    taken: set[str] = set()
    for place in rng.permutation(len(singles)):
        moved = taken.union(_touching(train, {singles[place]}))
        if len(moved) < len(train) and (not taken or len(moved) <= wanted):
            taken = moved
        if len(taken) >= wanted:
            break
    yield from sorted(taken)


def _unmeasured(what: str, name: str, measured: set[str]) -> str:
    hint = near(name, measured)
    return (
        f"{what} '{name}' is not measured; expected one of the {len(measured)} conditions of the data{hint}"
    )


def _names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _read_lists(path: Path, control: str) -> dict[str, list[str]]:
    """The canonical lists of a split file."""
    try:
        with path.open("rb") as handle:
            values = tomllib.load(handle)
    except OSError as error:
        raise DataError(f"split file {path} cannot be read ({error.strerror}); check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f'split file {path} is not TOML ({error}); expected lines such as test = ["A+B", "C"]'
        ) from error
    if odd := sorted(set(values).difference(PARTS)):
        raise DataError(f"split file {path}: unknown key '{odd[0]}'; expected test, validation, train")
    if "test" not in values:
        raise DataError(f'split file {path}: no list \'test\'; expected a line such as test = ["A+B", "C"]')
    for key, names in values.items():
        if not _names(names):
            raise DataError(f"split file {path}: {key} is {names!r}; expected a list of condition names")
    return {key: [canonical(name, control) for name in names] for key, names in values.items()}
