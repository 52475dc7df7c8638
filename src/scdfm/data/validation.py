"""Validation conditions, always out of training: like the test in what is new about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from scdfm.data.conditions import covariates, parse, targets
from scdfm.data.split import Split
from scdfm.errors import DataError
from scdfm.seeds import numpy_rng

EVERYTHING: Final = "none"
"""The kind of a split that keeps nothing for a test."""
DRAWN: Final = ("additive", "holdout", "combinations", "covariate", EVERYTHING)
"""Kinds of splits whose validation conditions are always drawn; of others somebody may have named them."""
SHARE: Final = 0.1
"""Share of training that validates where nobody says how much."""
ENOUGH: Final = 5
"""Conditions that validate in a small screen too, as far as they are a third of it at most. Of fewer, what training adds
can hardly be told from chance: Student's factor is 2.8 for five, 12.7 for two. The prior that predicts knows them again."""


def finish(
    kind: str,
    fold: int,
    names: Iterable[str],
    tested: Sequence[str],
    validation_fraction: float | None,
    seed: int,
    validation: Sequence[str] = (),
    draw: Callable[[list[str], Sequence[str], float | None, np.random.Generator], Iterable[str]] | None = None,
) -> Split:
    """Take validation out of training by `draw` and check that nothing is empty."""
    if validation_fraction is not None and not 0 <= validation_fraction < 1:
        raise DataError(f"split: validation_fraction {validation_fraction} is not in [0, 1); try 0.1")
    train = sorted(set(names).difference(tested))
    if not tested and kind != EVERYTHING:
        raise DataError(f"{kind} split: no test condition, expected at least one; name or hold out some")
    if not train:
        raise DataError(f"{kind} split: no training condition is left, expected at least one; keep fewer for the test")
    if validation_fraction != 0:
        rng = numpy_rng(seed, "split", kind, fold)
        validation = list((draw or validation_like)(train, tested, validation_fraction, rng))
    rest = set(train).difference(validation)
    return Split(kind, fold, tuple(rest), tuple(validation), tuple(tested))


def share_of(n: int, share: float | None) -> int:
    """How many of n conditions or targets validate; None: SHARE of them, and ENOUGH if a third is no less."""
    return max(1, round(SHARE * n), min(ENOUGH, n // 3)) if share is None else max(1, round(share * n))


def validation_like(
    train: list[str], tested: Sequence[str], share: float | None, rng: np.random.Generator
) -> Iterator[str]:
    """Training conditions of as many targets as the test's combinations have; any, where there are none.

    Those of the same targets go together, unless the test, too, has some of them alone, or there is none. Where training
    knows every target of the test, it keeps targets and covariates of the validation too, as far as there are such
    conditions.
    """
    together = bool(tested) and not {targets(name) for name in train}.intersection(map(targets, tested))
    units: dict[object, list[str]] = {}
    for name in train:
        units.setdefault(targets(name) if together else name, []).append(name)
    sizes = {len(targets(name)) for name in tested}
    combined = {size for size in sizes if size > 1}
    every = list(units.values())
    alike = [unit for unit in every if len(targets(unit[0])) in (combined or sizes)] or every
    n_units = min(share_of(len(alike), share), len(every) - 1)
    drawn = [alike[place] for place in rng.permutation(len(alike))]
    trained_targets = {target for name in train for target in targets(name)}
    if trained_targets.issuperset(target for name in tested for target in targets(name)):
        drawn = _spare(drawn, train) or drawn
    yield from (name for unit in drawn[:n_units] for name in unit)


def _spare(units: Iterable[list[str]], train: Iterable[str]) -> list[list[str]]:
    """Those of the `units` that can leave `train`, one after the other, so that it still has all that they have."""
    left = _held(train)
    spare_units = []
    for unit in units:
        taken = _held(unit)
        if all(left[part] > count for part, count in taken.items()):
            left -= taken
            spare_units.append(unit)
    return spare_units


def _held(names: Iterable[str]) -> Counter[object]:
    """How many of the names hold each target, each value of a covariate, and each time."""
    return Counter(part for name in names for part in (*targets(name), *covariates(name).items(), parse(name).time))


def validation_targets(
    train: list[str], tested: Sequence[str], share: float | None, rng: np.random.Generator
) -> Iterator[str]:
    """Training targets with every training condition that contains them, up to a share of training."""
    n_conditions = share_of(len(train), share)
    singles = singles_of(train)
    taken: set[str] = set()
    for place in rng.permutation(len(singles)):
        moved = taken.union(touching(train, {singles[place]}))
        if len(moved) < len(train) and (not taken or len(moved) <= n_conditions):
            taken = moved
        if len(taken) >= n_conditions:
            break
    yield from sorted(taken)


def singles_of(names: Iterable[str]) -> list[str]:
    """The targets that were measured alone, each once, in the order of the names."""
    return [*dict.fromkeys(target for name in names if len(targets(name)) == 1 for target in targets(name))]


def touching(names: Iterable[str], held: set[str]) -> list[str]:
    """The names that hold one of the targets."""
    return [name for name in names if held.intersection(targets(name))]


def spare_pairs(
    pairs: Mapping[str, tuple[str, tuple[str, ...]]], n_pairs: int, permutation: Callable[[int], np.ndarray]
) -> list[str]:
    """Names of at most `n_pairs` (value, targets) pairs, each of which leaves both of its sides in another pair."""
    units = [*dict.fromkeys(pairs.values())]
    left = Counter(side for pair in units for side in enumerate(pair))
    held: set[tuple[str, tuple[str, ...]]] = set()
    for place in permutation(len(units)):
        sides = list(enumerate(units[place]))
        if len(held) < n_pairs and all(left[side] > 1 for side in sides):
            held.add(units[place])
            left.subtract(sides)
    return [name for name, pair in pairs.items() if pair in held]
