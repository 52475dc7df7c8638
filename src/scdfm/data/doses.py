"""Doses with their units: amounts in different units become numbers in one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from typing import Final

import numpy as np
import pandas as pd

from scdfm.data.conditions import number_text
from scdfm.errors import DataError

_MICRO: Final = ("u", "µ", "μ")  # the letter, the sign of old keyboards, the Greek letter
_POWERS: Final = {"": 1.0, "m": 1e-3, **dict.fromkeys(_MICRO, 1e-6), "n": 1e-9, "p": 1e-12, "f": 1e-15}


def _units() -> dict[str, tuple[str, float]]:
    """Every unit that is known, spelled as `_plain` gives it: what it becomes, and the factor to that."""
    units: dict[str, tuple[str, float]] = {"%": ("%", 1.0), "u/ml": ("U/ml", 1.0), "iu/ml": ("U/ml", 1.0)}
    for prefix, power in _POWERS.items():
        for spelled, unit, base in (
            ("M", "uM", 1e-6), ("mol/l", "uM", 1e-6), ("g/ml", "ug/ml", 1e-6), ("g/l", "ug/ml", 1e-3),
        ):  # fmt: skip
            units[prefix + spelled] = (unit, power / base)
            if prefix:  # `m` alone would be many things
                units[(prefix + spelled).lower()] = (unit, power / base)
    return units


UNITS: Final = _units()
_AMOUNT: Final = re.compile(r"\s*((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*([^\s0-9.+-][^\s+]*)\s*")
_LISTED: Final = re.compile(r"\s*\[\s*\(\s*['\"].*\)\s*,?\s*\]\s*", re.DOTALL)
UNIT_NAMES: Final = ("{dose}_unit", "{dose}_units", "dose_unit", "dose_units", "unit", "units")
"""What the column of the units of a column `dose` is called."""


def _plain(unit: str) -> str:
    """A unit as UNITS spells it."""
    text = unit.strip()
    return text if text in UNITS else text.replace("L", "l") if text.replace("L", "l") in UNITS else text.lower()


def unit_of(text: str) -> str | None:
    """The unit that an amount such as `10 nM` has, as UNITS spells it; None for anything else."""
    amount = _AMOUNT.fullmatch(text)
    return _plain(amount[2]) if amount and _plain(amount[2]) in UNITS else None


def parts_of(text: str) -> list[str]:
    """The amounts of a text that joins several by `+`, one per target; the sign of an exponent joins nothing."""
    return [part.strip() for part in re.split(r"(?<![0-9.][eE])\+", text)]


def number_of(text: str) -> str:
    """An amount with a unit as a number in the unit that UNITS turns it into; anything else as it is."""
    amount = _AMOUNT.fullmatch(text)
    if not amount or _plain(amount[2]) not in UNITS:
        return text
    return number_text(float(f"{float(amount[1]) * UNITS[_plain(amount[2])][1]:.12g}"))


def listed_amounts(text: str) -> list[tuple[str, str]] | None:
    """The names and amounts of a label such as `[('Trametinib', 0.05, 'uM')]`, a list of drug, number and unit; amounts
    are numbers as `number_of` gives them. None for any other text."""
    if not _LISTED.fullmatch(text):
        return None
    try:
        entries = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    amounts = []
    for one in entries:
        if not isinstance(one, tuple) or [type(part) for part in one] not in ([str, float, str], [str, int, str]):
            return None
        amounts.append((one[0].strip(), number_of(f"{number_text(one[1])} {one[2]}")))
    return amounts


def units_of(texts: Iterable[str]) -> list[str]:
    """The different units among amounts, sorted."""
    return sorted({unit for text in texts for part in parts_of(text) if (unit := unit_of(part))})


def with_units(amounts: pd.Categorical, units: pd.Categorical, where: str) -> pd.Categorical:
    """`amounts` with the unit that stands beside each; DataError for a unit that is not known."""
    for unit in units.categories:
        if _plain(str(unit)) not in UNITS:
            raise DataError(
                f"{where}: unit '{unit}' is not known; expected M, mM, uM, nM, pM, or g/ml, mg/ml, ug/ml, ng/ml: rename "
                "it, or give doses in one unit and leave dose_unit_key (--dose-unit-key) out"
            )
    pairs = pd.DataFrame({"amount": amounts.codes, "unit": units.codes})
    texts = {
        (amount, unit): "+".join(
            f"{part} {units.categories[unit]}" if unit >= 0 else part
            for part in parts_of(str(amounts.categories[amount]))
        )
        for amount, unit in pairs[pairs["amount"] >= 0].drop_duplicates().itertuples(index=False)
    }
    categories = sorted(set(texts.values()))
    place = {pair: categories.index(text) for pair, text in texts.items()}
    codes = [place.get(pair, -1) for pair in zip(pairs["amount"], pairs["unit"], strict=True)]
    return pd.Categorical.from_codes(codes, categories=pd.Index(categories, dtype=object))


def in_one_unit(amounts: pd.Categorical, labels: pd.Series, where: str) -> pd.Categorical:
    """`amounts` as numbers, where some have a unit; DataError where they cannot be compared.

    Amounts of substance become µM, those of mass µg/ml, whatever units a file has, so that files agree.
    """
    texts = [str(text) for text in amounts.categories]
    if not units_of(texts):
        return amounts
    for text in texts:
        for part in parts_of(text):
            if unit_of(part) is None and part.strip("0. ") not in ("",):
                raise DataError(
                    f"{where}: dose '{part}' has no known unit, but others have ({', '.join(units_of(texts))}); expected "
                    "one for each: write it behind the number, as in '10 nM'"
                )
    kind = {text: {UNITS[unit][0] for part in parts_of(text) if (unit := unit_of(part))} for text in texts}
    pairs = pd.DataFrame({"label": labels.astype(str).to_numpy(), "amount": amounts.codes}).drop_duplicates()
    seen: dict[str, set[str]] = {}
    for label, code in pairs.itertuples(index=False):
        units = seen.setdefault(label, set())
        units |= kind[texts[code]] if code >= 0 and "+" not in texts[code] else set()
        if len(units) > 1:
            raise DataError(
                f"{where}: '{label}' has doses in {' and in '.join(sorted(units))}, which cannot be compared; give them in "
                "one of the two"
            )
    numbers = ["+".join(map(number_of, parts_of(text))) for text in texts]
    categories = sorted(set(numbers))
    codes = np.array([*map(categories.index, numbers), -1])[amounts.codes]
    return pd.Categorical.from_codes(codes, categories=pd.Index(categories, dtype=object))


def unit_column(obs: pd.DataFrame, dose: str) -> str | None:
    """The column that holds the units of a column of doses, by its name."""
    names = {name.format(dose=dose).lower() for name in UNIT_NAMES}
    return next((str(c) for c in obs.columns if str(c).lower() in names and str(c) != dose), None)


def different_units(obs: pd.DataFrame, column: str) -> list[str]:
    """The known units that a column of units holds, sorted, each once however it is spelled."""
    units = {_plain(str(unit)) for unit in pd.unique(obs[column].dropna())}
    return sorted(unit for unit in units if unit in UNITS)
