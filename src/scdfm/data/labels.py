"""Which cells of a screen are read, and the labels that say what was done to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from scdfm.data.conditions import CONTROL, CONTROL_SPELLINGS, COVARIATE_SIGN, near, parse
from scdfm.data.design import Design, Designed, column_of
from scdfm.errors import DataError


@dataclass(frozen=True)
class Labelled:
    """N cells that are read: their `rows` in the file, condition `names`, control-matching groups `match`, each [N].

    `columns` holds what the design's columns say of them, `spelling` the label of each condition.
    """

    rows: npt.NDArray[np.int64]
    names: npt.NDArray[np.object_]
    match: npt.NDArray[np.int64]
    columns: dict[str, pd.Categorical]
    spelling: dict[str, str]


def label_cells(
    obs: pd.DataFrame,
    rows: npt.NDArray[np.int64],
    key: str,
    control: str,
    design: Design,
    name: str,
    min_cells: int,
) -> Labelled:
    """The conditions of the cells `rows` of obs, without those of perturbed conditions of fewer than `min_cells`."""
    labels = labels_of(obs, key, rows, name)
    check_control(labels, control, key, name)
    designed = Designed.read(obs.iloc[rows], labels, design, control, key, name)
    names, spelling = designed.names(labels, control)
    _, codes, sizes = np.unique(names.astype(str), return_inverse=True, return_counts=True)
    kept = (sizes[codes] >= min_cells) | (names == CONTROL)
    designed = designed.take(kept)
    return Labelled(
        rows[kept], names[kept], designed.groups(names[kept] == CONTROL), designed.columns, spelling
    )


def chosen_rows(obs: pd.DataFrame, subset: Mapping[str, str] | None, name: str) -> npt.NDArray[np.int64]:
    """The rows of the cells that have the values of `subset`, column by column."""
    chosen = np.ones(len(obs), dtype=bool)
    for column, value in (subset or {}).items():
        values = column_of(obs, column, "subset column", name).astype(str).to_numpy()
        if str(value) not in set(values):
            known = sorted(set(values))
            raise DataError(
                f"{name}: subset {column}={value} matches no cell; values of '{column}' are "
                f"{listed(known)}{near(str(value), known)}"
            )
        chosen &= values == str(value)
    if not len(obs):
        raise DataError(f"{name} holds no cells; expected at least one control and one perturbed cell")
    if not chosen.any():
        raise DataError(f"{name}: no cell has all of the subset {dict(subset or {})}; ask for fewer columns")
    return np.flatnonzero(chosen)


def labels_of(obs: pd.DataFrame, key: str, rows: npt.NDArray[np.int64], name: str) -> pd.Series:
    """The label of each of `rows` as text; DataError where one is missing."""
    labels = column_of(obs, key, "perturbation column", name).iloc[rows]
    missing = labels.isna().to_numpy()
    if missing.any():
        raise DataError(
            f"{name}: {int(missing.sum())} cells have no label in obs column '{key}' (first: cell "
            f"'{labels.index[missing][0]}'); expected one for each cell: remove these cells, or label them"
        )
    return labels.astype(str)


def check_control(labels: pd.Series, control: str, key: str, name: str) -> None:
    """Raise DataError unless some cell is labelled `control`."""
    frequent = labels.value_counts()
    text = control.strip()
    stripped = [str(label).strip() for label in frequent.index]
    # `control` and `ctrl` stand for each other; any other label must be there as it was given.
    given = text in CONTROL_SPELLINGS or any(
        label == text or label.startswith(text + COVARIATE_SIGN) for label in stripped
    )
    if not given or all(parse(str(label), control).perturbations for label in frequent.index):
        raise DataError(
            f"{name}: no cell of obs column '{key}' is labelled '{control}', which control cells are expected to be; "
            f"name their label with control; most frequent are {listed(list(frequent.index))}"
            f"{near(control, map(str, frequent.index))}"
        )


def listed(values: Sequence[str], most: int = 10) -> str:
    """The first `most` values in quotes, and how many more there are."""
    shown = ", ".join(f"'{value}'" for value in values[:most])
    return shown + (f" and {len(values) - most} more" if len(values) > most else "")
