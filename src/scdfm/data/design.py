"""What columns of obs say of each cell beside its label: covariates, dose, time, and which controls are its own.

Values become texts (numbers as short as they can be: 10, 0.5), for they stand in the names of conditions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from scdfm.data.conditions import (
    COVARIATE_SIGN,
    KEY,
    SEPARATOR,
    TIME,
    Condition,
    Perturbation,
    near,
    number_text,
    parse,
    spelled_parts,
)
from scdfm.data.doses import different_units, in_one_unit, unit_column, with_units
from scdfm.data.naming import Naming
from scdfm.data.tables import plain, unreadable
from scdfm.errors import DataError

_OPTIONS: Final = {
    f"{what} column": f" with {option} (--{option.replace('_', '-')})"
    for what, option in (
        ("perturbation", "perturbation_key"), ("covariate", "covariates"), ("dose", "dose_key"), ("time", "time_key"),
        ("match_controls", "match_controls"), ("subset", "subset"), ("dose unit", "dose_unit_key"),
    )
}  # fmt: skip
"""The option that names a column, as an error says it."""


@dataclass(frozen=True)
class Design:
    """Columns of obs: `covariates` and `time_key` enter the names of perturbed conditions, `dose_key` those of targets.

    Control cells are matched to perturbed ones by `match_controls` (None: by the covariates; empty: not at all).
    A group of perturbed cells without control cells is an error, or with `control_fallback` "all" it takes
    every control cell. `dose_unit_key` names the units of doses, where they stand in a column of their own.
    """

    covariates: tuple[str, ...] = ()
    dose_key: str | None = None
    time_key: str | None = None
    match_controls: tuple[str, ...] | None = None
    control_fallback: Literal["error", "all"] = "error"
    dose_unit_key: str | None = None

    def __post_init__(self) -> None:
        for name in ("covariates", "match_controls"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if self.dose_unit_key is not None and self.dose_key is None:
            raise DataError(
                "dose_unit_key is the column of the units of doses; name that of the doses too, with dose_key (--dose-key)"
            )
        if self.control_fallback not in ("error", "all"):
            raise DataError(f"control_fallback '{self.control_fallback}': expected error or all")
        for key in self.covariates:
            if not KEY.fullmatch(key):
                raise DataError(
                    f"covariate column '{key}': expected a name that starts with a letter and holds letters, digits, "
                    "blanks, '_', '.' and '-' only, as conditions are named by it; rename the column"
                )
            if key == TIME:
                raise DataError(
                    f"covariate column '{TIME}': expected it as a number; give it with time_key='{TIME}', or rename it"
                )
        for name in ("covariates", "match_controls"):
            if repeated := _repeated(getattr(self, name) or ()):
                raise DataError(f"{name}: column '{repeated}' is named twice, expected once; leave one out")

    @property
    def match(self) -> tuple[str, ...]:
        """The columns that control cells are matched by."""
        return self.covariates if self.match_controls is None else self.match_controls

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able mapping; `Design(**mapping)` is its inverse."""
        return asdict(self)


def labels_of(obs: pd.DataFrame, key: str, name: str) -> pd.Series:
    """The label of each cell as text, missing where it has none: obs[key], or where there is no such column the values
    of several joined by `+`: `Drug1+Drug2`. A blank or missing value among several says that there is no further target.
    """
    columns = [part.strip() for part in key.split(SEPARATOR)]
    if key in obs.columns or len(columns) < 2 or not all(columns):
        labels = column_of(obs, key, "perturbation column", name)
        return labels.astype(str).where(labels.notna().to_numpy(), None)
    parts = [texts(column_of(obs, column, "perturbation column", name)) for column in columns]
    joined = pd.DataFrame({place: part.codes for place, part in enumerate(parts)}, index=obs.index)
    codes, each = joined.groupby(list(joined), sort=False).ngroup(), joined.drop_duplicates()
    words = [
        [str(part.categories[code]) for part, code in zip(parts, row, strict=True) if code >= 0]
        for row in each.to_numpy()
    ]
    return codes.map({place: SEPARATOR.join(targets) or None for place, targets in enumerate(words)}).astype(object)


def column_of(obs: pd.DataFrame, column: str, what: str, name: str) -> pd.Series:
    """A column of obs; DataError names those there are, and the option of `what` that names one."""
    column = column if column in obs.columns else plain(column)
    if column not in obs.columns:
        if why := unreadable(obs).get(column):
            raise DataError(f"{name}: {what} '{column}' of obs cannot be read ({why}); write it anew (write_h5ad)")
        columns = [str(other) for other in obs.columns]
        raise DataError(
            f"{name}: {what} '{column}' is not in obs; its columns are {', '.join(columns) or 'none'}"
            f"{near(column, columns)}: name one of them{_OPTIONS.get(what, '')}"
        )
    if (repeats := list(obs.columns).count(column)) > 1:
        raise DataError(f"{name}: obs has {repeats} columns named '{column}', expected one; rename the others")
    return obs[column]


def _doses(obs: pd.DataFrame, labels: pd.Series, design: Design, amounts: pd.Categorical, name: str) -> pd.Categorical:
    """The doses as numbers in one unit; DataError where units beside them would be passed over."""
    key, unit_key = str(design.dose_key), design.dose_unit_key
    where = f"{name}: obs column '{key}'"
    if unit_key is not None:
        units = texts(column_of(obs, unit_key, "dose unit column", name))
        amounts = with_units(amounts, units, f"{name}: obs column '{unit_key}'")
    elif (beside := unit_column(obs, key)) and len(units_there := different_units(obs, beside)) > 1:
        raise DataError(
            f"{where} holds doses in different units ({', '.join(units_there)} in '{beside}'); expected one: name that "
            f"column with dose_unit_key (--dose-unit-key {beside}), and they become uM or ug/ml"
        )
    return in_one_unit(amounts, labels, where)


def texts(values: pd.Series) -> pd.Categorical:
    """The values as texts; missing and blank ones are missing (code -1)."""
    categorical = pd.Categorical(values).remove_unused_categories()
    written = [_text(value) for value in categorical.categories.to_numpy()]
    categories = sorted({text for text in written if text})
    place = {text: i for i, text in enumerate(categories)}
    codes = np.array([*(place.get(text, -1) for text in written), -1])[categorical.codes]
    return pd.Categorical.from_codes(codes.tolist(), categories=pd.Index(categories, dtype=object))


def _text(value: object) -> str:
    # str of a float32 is as short as its own precision allows; as a float64 it would be 0.10000000149.
    return number_text(float(str(value))) if isinstance(value, float | np.floating) else plain(value)


@dataclass(frozen=True)
class Designed:
    """What the design's columns say of N cells: a categorical of texts for each column."""

    design: Design
    columns: dict[str, pd.Categorical]
    cells: npt.NDArray[np.object_]
    name: str

    @classmethod
    def read(
        cls, obs: pd.DataFrame, labels: pd.Series, design: Design, naming: Naming, key: str, name: str
    ) -> Designed:
        """The columns of `obs`; a covariate without a column is taken from the labels where all of them hold it."""
        columns: dict[str, pd.Categorical] = {}
        for what, keys in (
            ("covariate column", design.covariates),
            ("dose column", (design.dose_key,)),
            ("time column", (design.time_key,)),
            ("match_controls column", design.match),
        ):
            for column in filter(None, keys):
                if column == key and what != "match_controls column":
                    raise DataError(f"{name}: {what} '{column}' is the perturbation column; name another")
                if what == "covariate column" and column not in obs.columns:
                    held = labels.map({x: dict(naming.parse(x).covariates).get(column) for x in set(labels)})
                    if held.notna().all():
                        columns[column] = texts(held)
                        continue
                if column not in columns:
                    columns[column] = texts(column_of(obs, column, what, name))
        if design.dose_key:
            columns[design.dose_key] = _doses(obs, labels, design, columns[design.dose_key], name)
        return cls(design, columns, obs.index.astype(str).to_numpy(dtype=object), name)

    def take(self, rows: npt.NDArray[Any]) -> Designed:
        """What is said of some of the cells."""
        columns = {key: values[rows] for key, values in self.columns.items()}
        return replace(self, columns=columns, cells=self.cells[rows])

    def names(self, labels: pd.Series, naming: Naming) -> tuple[npt.NDArray[np.object_], dict[str, str]]:
        """The condition [N] of every cell, `control` for untreated ones, and the label (the first in sorted order) of
        each condition."""
        label = pd.Categorical(labels)
        conditions = [naming.parse(str(text)) for text in label.categories]
        untreated = np.array([not one.perturbations for one in conditions], dtype=bool)[label.codes]
        used = [self.columns[key] for key in (*self.design.covariates, *self._numbers())]
        codes = {"label": label.codes.astype(np.int64)}
        codes |= {str(i): np.where(untreated, -1, values.codes) for i, values in enumerate(used)}
        group = pd.DataFrame(codes).groupby(list(codes), sort=False).ngroup().to_numpy()
        _, firsts = np.unique(group, return_index=True)
        spelled = [(str(label[row]), self._name(row, str(label[row]), naming)) for row in firsts]
        spelling = {name: text for text, name in sorted(spelled, reverse=True)}
        return np.array([name for _, name in spelled], dtype=object)[group], spelling

    def groups(self, untreated: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """The code [N] of each cell's control-matching group; DataError where a perturbed cell's has no control."""
        match = self.design.match
        if not match:
            return np.zeros(len(self.cells), dtype=np.int64)
        for key in match:
            self._complete(key, ~untreated, "match_controls column")
        codes = pd.DataFrame({key: self.columns[key].codes for key in match})
        group = codes.groupby(list(match), sort=True).ngroup().to_numpy().astype(np.int64)
        held = set(group[untreated].tolist())
        lacking = ~untreated & ~np.isin(group, sorted(held))
        if lacking.any() and self.design.control_fallback == "error":
            first = int(np.argmax(lacking))
            n, groups = int((group[lacking] == group[first]).sum()), len(set(group[lacking].tolist()))
            others = f" (nor have those of {groups - 1} further groups)" if groups > 1 else ""
            settings = {int(group[row]): self._setting(row) for row in np.flatnonzero(untreated)[::-1]}
            raise DataError(
                f"{self.name}: {n} perturbed cells of {self._setting(first)} have no control cells of their own{others}; "
                f"control cells exist for {_listed(sorted(settings.values()))}: match controls by other columns "
                '(match_controls), or take all of them (control_fallback="all")'
            )
        return group

    def _numbers(self) -> list[str]:
        return [key for key in (self.design.dose_key, self.design.time_key) if key]

    def _setting(self, row: int) -> str:
        return ", ".join(f"{key}={self._value(key, row)}" for key in self.design.match)

    def _value(self, key: str, row: int) -> str | None:
        code = self.columns[key].codes[row]
        return None if code < 0 else str(self.columns[key].categories[code])

    def _complete(self, key: str, rows: npt.NDArray[np.bool_], what: str) -> None:
        missing = rows & (self.columns[key].codes < 0)
        if missing.any():
            raise DataError(
                f"{self.name}: {int(missing.sum())} perturbed cells have no value in {what} '{key}' (first: cell "
                f"'{self.cells[np.argmax(missing)]}'); expected one for each: fill it in, or leave these cells out"
            )

    def _name(self, row: int, label: str, naming: Naming) -> str:
        """The canonical name of a cell from its label and columns."""
        said = naming.parse(label)
        if not said.perturbations:
            undeclared = [key for key, _ in said.covariates if key not in self.design.covariates]
            if undeclared:
                raise DataError(
                    f"{self.name}: control label '{label}' holds covariate '{undeclared[0]}', which is not declared; "
                    f"name it with covariates, or label these cells '{naming.control[0]}'"
                )
            return str(Condition())
        pairs = dict(said.covariates)
        for key in self.design.covariates:
            value = self._given(key, row, "covariate column")
            if COVARIATE_SIGN in value:
                raise DataError(
                    f"{self.name}: value '{value}' of covariate column '{key}' (cell '{self.cells[row]}') holds "
                    f"'{COVARIATE_SIGN}', which separates covariates in names; rename it"
                )
            self._agree(row, label, key, pairs.setdefault(key, value), value)
        time = said.time
        if self.design.time_key:
            value = self._given(self.design.time_key, row, "time column")
            time = self._number(value, row, self.design.time_key, "time")
            if said.time is not None:
                self._agree(row, label, TIME, number_text(said.time), number_text(time))
        perturbations = said.perturbations
        if self.design.dose_key:
            perturbations = self._dosed(row, naming.plain(label), said, self.design.dose_key)
        return str(Condition(perturbations, tuple(pairs.items()), time))

    def _given(self, key: str, row: int, what: str) -> str:
        value = self._value(key, row)
        if value is None:
            raise DataError(
                f"{self.name}: perturbed cell '{self.cells[row]}' has no value in {what} '{key}'; expected one for "
                "each perturbed cell: fill it in, or leave these cells out"
            )
        return value

    def _agree(self, row: int, label: str, key: str, said: str, given: str) -> None:
        if said != given:
            raise DataError(
                f"{self.name}: cell '{self.cells[row]}' has label '{label}', but {key} '{given}' in obs; "
                "expected both to agree: correct one of them"
            )

    def _number(self, text: str, row: int, key: str, what: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (np.isfinite(value) and value >= 0):
            raise DataError(
                f"{self.name}: {what} '{text}' in obs column '{key}' (cell '{self.cells[row]}'); expected a number "
                "of at least 0: correct it, or leave these cells out"
            )
        return value

    def _dosed(self, row: int, label: str, said: Condition, key: str) -> tuple[Perturbation, ...]:
        """The label's targets with the dose column's number, or numbers in the order of the label."""
        text = self._given(key, row, "dose column")
        parts = [parse(part).perturbations for part in spelled_parts(label)]
        numbers = [text] if _is_float(text) else [piece.strip() for piece in text.split("+")]
        if len(numbers) == 1:
            numbers *= len(parts)
        elif len(numbers) == len(said.perturbations):
            parts = [part for part in parts if part]
        if len(numbers) != len(parts):
            raise DataError(
                f"{self.name}: dose '{text}' in obs column '{key}' holds {len(numbers)} numbers for label '{label}' "
                f"(cell '{self.cells[row]}') of {len(said.perturbations)} targets; expected one, or one per target"
            )
        dosed = []
        for part, number in zip(parts, numbers, strict=True):
            for target in part:
                dose = self._number(number, row, key, "dose")
                if target.dose is not None:
                    self._agree(row, label, "dose", number_text(target.dose), number_text(dose))
                dosed.append(Perturbation(target.target, dose))
        return tuple(dosed)


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def _listed(values: Sequence[str], most: int = 10) -> str:
    shown = "; ".join(values[:most])
    return shown + (f" and {len(values) - most} more" if len(values) > most else "")
