"""Ways to split a screen: the published ones, by covariate, by a column of the screen, or by a file.

Conditions of the same targets stay together at every dose, time and covariate, unless the split is by these. `fold`
alone decides the test, so that fits of different seeds are replicates on one test; `seed` chooses the
validation conditions, always out of training. Every split is deterministic and carries a digest.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeGuard, cast

import numpy as np

from scdfm.config import SplitConfig
from scdfm.data.conditions import CONTROL, canonical, covariates, near, targets
from scdfm.data.naming import Naming
from scdfm.data.split import PARTS, Split, are_names, unmeasured
from scdfm.data.validation import (
    EVERYTHING,
    finish,
    share_of,
    singles_of,
    spare_pairs,
    touching,
    validation_like,
    validation_targets,
)
from scdfm.errors import ConditionError, DataError
from scdfm.files import read_text

if TYPE_CHECKING:
    from scdfm.data.cells import CellTable

COMBINATIONS_DOUBLES: Final = 15
_PUBLISHED_SEED: Final = 42
_COLUMN_VALUES: Final = {
    "train": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "test": "test", "ood": "test",
}  # fmt: skip


def additive_split(
    conditions: CellTable | Iterable[str],
    fold: int = 0,
    test_fraction: float = 0.3,
    validation_fraction: float | None = None,
    seed: int = 0,
) -> Split:
    """The published `additive` split: every single trains, a share of the combinations is tested.

    The combinations of targets, sorted as the file spells them, are shuffled by numpy's legacy
    RandomState(42 + fold); the first int(test_fraction · n) are the test, at every dose and covariate. Validation:
    combinations out of training.
    """
    names = _spelled(conditions)
    tested = _tested_combinations(names, fold, test_fraction)
    return finish("additive", fold, names, tested, validation_fraction, seed)


def holdout_split(
    conditions: CellTable | Iterable[str],
    fold: int = 0,
    held_out_targets: int = 12,
    validation_fraction: float | None = None,
    seed: int = 0,
    named: Sequence[str] | None = None,
) -> Split:
    """Unseen targets: some of them, in every condition that contains one, are the test.

    The sorted targets that were measured alone are shuffled by RandomState(42 + fold), the first `held_out_targets`
    held out; or those in `named`. Every dose and covariate of theirs is tested. Validation: further targets with all
    their conditions, out of training.
    """
    names = _spelled(conditions)
    if named is None:
        singles = singles_of(names)
        if not 1 <= held_out_targets < len(singles):
            raise DataError(
                f"holdout split: cannot hold out {held_out_targets} of {len(singles)} singles; expected at least 1 and "
                "fewer than there are (split.held_out_targets), or name the targets (split.targets)"
            )
        named = _shuffled(singles, fold)[:held_out_targets]
    all_targets = {target for name in names for target in targets(name)}
    for target in named:
        if target not in all_targets:
            raise ConditionError(
                f"holdout split: target '{target}' is not perturbed in the data; expected one of its {len(all_targets)} "
                f"targets (split.targets), without dose or covariate{near(target, all_targets)}"
            )
    tested = touching(names, set(named))
    return finish("holdout", fold, names, tested, validation_fraction, seed, draw=validation_targets)


def combinations_split(
    conditions: CellTable | Iterable[str],
    fold: int = 0,
    test_fraction: float = 0.3,
    validation_fraction: float | None = None,
    seed: int = 0,
) -> Split:
    """The published `combinations` split: the first 15 test combinations of `additive` and their singles are tested."""
    names = _spelled(conditions)
    tested = _tested_combinations(names, fold, test_fraction)
    first = [*dict.fromkeys(targets(name) for name in tested)][:COMBINATIONS_DOUBLES]
    alone = {(target,) for combination in first for target in combination}
    tested = [name for name in names if targets(name) in alone.union(first)]
    return finish("combinations", fold, names, tested, validation_fraction, seed)


def covariate_split(
    conditions: CellTable | Iterable[str],
    covariate: str,
    value: str | None = None,
    fold: int = 0,
    test_fraction: float = 0.3,
    validation_fraction: float | None = None,
    seed: int = 0,
) -> Split:
    """Unseen settings: every perturbed condition of a covariate's `value`, or pairs of (value, targets).

    Without a value the sorted pairs are shuffled by RandomState(42 + fold), and the first int(test_fraction · n) tested
    that leave their targets another value to train in, and their value other targets; doses and times of a pair stay
    together. Control cells are no part of a split: those of a tested value serve as controls. Validation: further
    such pairs out of training.
    """
    names = _spelled(conditions)
    lacking = [name for name in names if covariate not in covariates(name)]
    if lacking:
        keys = sorted({key for name in names for key in covariates(name)})
        raise DataError(
            f"covariate split: condition '{lacking[0]}' has no covariate '{covariate}'; expected one in every name "
            f"(those there are: {', '.join(keys) or 'none'}): read the cells with covariates=['{covariate}']"
        )
    pairs = {name: (covariates(name)[covariate], targets(name)) for name in names}

    def further(
        train: list[str], tested: Sequence[str], share: float | None, rng: np.random.Generator
    ) -> Iterable[str]:
        trained = {name: pairs[name] for name in train}
        n_pairs = share_of(len(set(trained.values())), share)
        return spare_pairs(trained, n_pairs, rng.permutation) or validation_like(train, tested, share, rng)

    if value is None:
        if not 0 < test_fraction < 1:
            raise DataError(f"split: test_fraction {test_fraction} is not between 0 and 1; try 0.3")
        order = np.random.RandomState(_PUBLISHED_SEED + fold).permutation
        n_pairs = int(test_fraction * len(set(pairs.values())))
        tested = spare_pairs({name: pairs[name] for name in sorted(names)}, n_pairs, order)
        if not tested:
            raise DataError(
                f"covariate split: {test_fraction:g} of {len(set(pairs.values()))} pairs of {covariate} and targets leaves "
                "none to test whose targets and value both train elsewhere; raise split.test_fraction, or hold out a "
                f"whole value (covariate:{covariate}=VALUE)"
            )
    else:
        values = {pair[0] for pair in pairs.values()}
        if value not in values:
            raise DataError(
                f"covariate split: no perturbed cell has {covariate}={value}; its values are "
                f"{', '.join(sorted(values))}{near(value, values)}"
            )
        tested = [name for name in names if pairs[name][0] == value]
    return finish("covariate", fold, names, tested, validation_fraction, seed, draw=further)


def column_split(cells: CellTable, column: str, validation_fraction: float | None = None, seed: int = 0) -> Split:
    """The split written in obs column `column`: `train`, `validation` (or `val`, `valid`) and `test` (or `ood`).

    All cells of a condition must agree; control cells are not looked at. Without a validation value,
    validation conditions are taken out of training.
    """
    if column not in cells.obs.columns:
        columns = ", ".join(map(str, cells.obs.columns))
        raise DataError(
            f"split column '{column}' is not in obs; columns are {columns}{near(column, map(str, cells.obs.columns))}"
            ": name one of them with --split obs:COLUMN (split.column)"
        )
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    values = cells.obs[column].astype(str).str.strip().to_numpy()
    for condition in cells.conditions:
        if condition == CONTROL:
            continue
        condition_values = sorted(set(values[cells.rows(condition)]))
        if len(condition_values) > 1:
            raise DataError(
                f"split column '{column}': condition '{condition}' has cells in {' and '.join(condition_values)}; "
                "expected one value for each condition"
            )
        if condition_values[0].lower() not in _COLUMN_VALUES:
            raise DataError(
                f"split column '{column}': condition '{condition}' has value '{condition_values[0]}'; "
                "expected train, validation or test"
            )
        parts[_COLUMN_VALUES[condition_values[0].lower()]].append(condition)
    if parts["validation"]:
        validation_fraction = 0.0
    names = [*parts["train"], *parts["test"]]
    return finish("column", 0, names, parts["test"], validation_fraction, seed, validation=parts["validation"])


def file_split(
    path: str | Path, conditions: CellTable | Iterable[str], validation_fraction: float | None = None, seed: int = 0
) -> Split:
    """The split of a TOML file with lists `test` and, optionally, `validation` and `train`.

    Without `train` the rest trains; with it, conditions named nowhere are left out. Without `validation`,
    validation conditions are taken out of training.
    """
    measured = _spelled(conditions)
    lists = _read_lists(Path(path), _naming(conditions))
    for key, names in lists.items():
        for name in names:
            if name not in measured and name != CONTROL:
                raise ConditionError(unmeasured(f"split file {path}: {key} condition", name, set(measured)))
    named = {name for names in lists.values() for name in names}
    train = lists.get("train", [name for name in measured if name not in named])
    if "validation" in lists:
        validation_fraction = 0.0
    return finish(
        "file", 0, [*train, *lists["test"]], lists["test"], validation_fraction, seed, lists.get("validation", [])
    )


def named_split(
    conditions: CellTable | Iterable[str],
    test: Sequence[str],
    validation_fraction: float | None = None,
    seed: int = 0,
    kind: str = "named",
) -> Split:
    """The split whose test are the conditions named in `test`; the rest trains, validation is taken out of it."""
    measured = _spelled(conditions)
    tested = [_naming(conditions).canonical(name) for name in test]
    for name in tested:
        if name not in measured:
            raise ConditionError(unmeasured(f"{kind} split: test condition", name, set(measured)))
    return finish(kind, 0, measured, tested, validation_fraction, seed)


def no_test_split(
    conditions: CellTable | Iterable[str], validation_fraction: float | None = None, seed: int = 0
) -> Split:
    """Every condition trains, but for the share that validates: the model of a screen once its method is chosen.

    Validation takes single doses and settings, and no target or covariate whole, as far as there are such conditions.
    """
    return finish(EVERYTHING, 0, _spelled(conditions), (), validation_fraction, seed)


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
    if config.kind == EVERYTHING:
        return no_test_split(cells, share, seed)
    if config.kind == "holdout":
        return holdout_split(cells, config.fold, config.held_out_targets, share, seed, config.targets)
    if config.kind == "covariate":
        assert config.covariate is not None
        return covariate_split(cells, config.covariate, config.value, config.fold, config.test_fraction, share, seed)
    published = additive_split if config.kind == "additive" else combinations_split
    return published(cells, config.fold, config.test_fraction, share, seed)


def _is_table(cells: CellTable | Iterable[str]) -> TypeGuard[CellTable]:
    # By its attributes: importing CellTable would bring pandas into a module of names.
    return hasattr(cells, "spelling")


def _naming(conditions: CellTable | Iterable[str]) -> Naming:
    return conditions.naming if _is_table(conditions) else Naming()


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
    """The combinations in shuffled order, those of the same targets side by side."""
    units: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        if len(targets(name)) > 1:
            units.setdefault(targets(name), []).append(name)
    order = np.random.RandomState(_PUBLISHED_SEED + fold).permutation(len(units))
    alike = list(units.values())
    return [name for place in order for name in alike[place]]


def _tested_combinations(names: Mapping[str, str], fold: int, test_fraction: float) -> list[str]:
    if not 0 < test_fraction < 1:
        raise DataError(f"split: test_fraction {test_fraction} is not between 0 and 1; try 0.3")
    shuffled = _shuffled_combinations(names, fold)
    combinations = [*dict.fromkeys(map(targets, shuffled))]
    tested = set(combinations[: int(test_fraction * len(combinations))])
    if not tested:
        others = (
            "hold out targets (--split holdout), a covariate (--split covariate:NAME), conditions of your own (--split "
            "FILE.toml), or nothing (--split none)"
        )
        remedy = f"raise split.test_fraction, or {others}" if combinations else others
        raise DataError(
            f"split: {test_fraction:g} of {len(combinations)} combinations leaves no test condition; {remedy}"
        )
    return [name for name in shuffled if targets(name) in tested]


def _read_lists(path: Path, naming: Naming) -> dict[str, list[str]]:
    """The canonical lists of a split file."""
    try:
        values = tomllib.loads(read_text(path))
    except OSError as error:
        raise DataError(f"split file {path} cannot be read ({error.strerror}); check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            f'split file {path} is not TOML ({error}); expected lines such as test = ["A+B", "C"]'
        ) from error
    if odd := sorted(set(values).difference(PARTS)):
        raise DataError(f"split file {path}: unknown key '{odd[0]}'; expected test, validation, train")
    if "test" not in values:
        raise DataError(f'split file {path}: no list \'test\'; expected a line such as test = ["A+B", "C"]')
    for key, names in values.items():
        if not are_names(names):
            raise DataError(f"split file {path}: {key} is {names!r}; expected a list of condition names")
    return {key: [naming.canonical(name) for name in names] for key, names in values.items()}
