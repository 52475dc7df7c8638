"""The conditions of a screen: every combination of some targets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from scdfm.data.conditions import CONTROL, COVARIATE_SIGN, SEPARATOR, canonical, covariates, parse
from scdfm.data.labels import listed
from scdfm.errors import ConditionError

if TYPE_CHECKING:
    from scdfm.run import Run

ORDERS: Final = (1, 2, 3)
MOST: Final = 1_000_000
"""Conditions that one screen may hold."""


def members(condition: str) -> tuple[str, ...]:
    """The singles of a canonical condition, sorted: doses stay with their target, covariates go to each."""
    whole = parse(condition)
    return tuple(str(replace(whole, perturbations=(part,))) for part in whole.perturbations)


def combinations(targets: Iterable[str], order: int, setting: str = "") -> list[str]:
    """Every condition of 1 to `order` of the `targets`: singles first, then pairs, then triples, each sorted.

    setting: covariates and time that each of them has, `KEY=VALUE|KEY=VALUE`.
    """
    if order not in ORDERS:
        raise ConditionError(f"order {order}: expected 1 (singles), 2 (and pairs) or 3 (and triples)")
    unique_targets = sorted(dict.fromkeys(target.strip() for target in targets if target.strip()))
    if len(unique_targets) < order:
        raise ConditionError(
            f"order {order} needs at least {order} targets, found {len(unique_targets)}; name more, or lower the order"
        )
    total = sum(math.comb(len(unique_targets), size) for size in range(1, order + 1))
    if total > MOST:
        raise ConditionError(
            f"{len(unique_targets)} targets of order {order} make {total:,} conditions, expected at most {MOST:,}; "
            "name fewer targets, or lower the order"
        )
    sizes = range(1, order + 1)
    end = f"{COVARIATE_SIGN}{setting}" if setting else ""
    if setting and parse(CONTROL + end).perturbations:
        raise ConditionError(
            f"setting '{setting}': expected KEY=VALUE, more of them joined by '|', e.g. cell_line=K562|time=24"
        )
    parts = (part for size in sizes for part in itertools.combinations(unique_targets, size))
    return [canonical(SEPARATOR.join(part) + end) for part in parts]


def all_targets(run: Run) -> list[str]:
    """Every target that the run was trained on; ConditionError where nobody recorded them."""
    if not run.manifest.targets:
        raise ConditionError(f"run {run.path} does not say what it was trained on; name the targets (--targets A,B,C)")
    return list(run.manifest.targets)


def combined(run: Run, targets: Iterable[str] | None, order: int, setting: str = "") -> list[str]:
    """`combinations` of the targets, by default all that the run was trained on; ConditionError where `setting` lacks one
    of its covariates."""
    names = combinations(all_targets(run) if targets is None else targets, order, setting)
    given = covariates(names[0])
    for key, values in run.encoder.schema.covariates.items():
        if key not in given:
            raise ConditionError(
                f"setting '{setting}' has no covariate '{key}', which the run was trained with; expected one of "
                f"{listed(values)}: --setting '{key}={values[0]}' (setting='{key}={values[0]}')"
            )
    return names


def genome(run: Run, setting: str = "") -> list[str]:
    """Every gene that the run models and can predict, as a single of its own, sorted; those never perturbed among them."""
    end = f"{COVARIATE_SIGN}{setting}" if setting else ""
    names = [canonical(gene + end) for gene in sorted(run.genes)]
    return [name for name in names if run.encoder.knows(name) and members(name)]


def chosen(
    run: Run, targets: Sequence[str] | None, order: int, conditions: Sequence[str] | None, setting: str = "",
    unseen: bool = False,
) -> list[str]:  # fmt: skip
    """The canonical names of a screen: `conditions` as given with their singles, or the combinations of `targets`.

    unseen: beside those, every gene of the run as a single (`genome`).
    """
    if conditions is None:
        names = combined(run, targets, order, setting)
        return list(dict.fromkeys([*names, *genome(run, setting)])) if unseen else names
    if unseen:
        raise ConditionError("genome: every gene is asked for, and conditions are named; give one of both")
    names = [run.manifest.naming.canonical(name) for name in conditions]
    if not names or not all(map(members, names)):
        raise ConditionError("conditions: expected perturbed ones to predict, e.g. 'A' or 'A+B'")
    singles = [single for name in names for single in members(name)]
    return list(dict.fromkeys([*sorted(singles), *names]))
