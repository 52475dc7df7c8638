"""Which cells of a screen are read, and the labels that say what was done to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from scdfm.data.conditions import CONTROL, CONTROL_SPELLINGS, near, number_text
from scdfm.data.design import Design, Designed, column_of, labels_of, texts
from scdfm.data.naming import MISSING, Naming, looks_like_control, looks_unassigned
from scdfm.data.tables import plain, unreadable
from scdfm.errors import DataError


@dataclass(frozen=True)
class Labelled:
    """N cells that are read: their `rows` in the file, condition `names`, control-matching groups `match`, each [N].

    `columns` holds what the design's columns say of them, `spelling` the label of each condition; `naming` is that of
    this file, and `notes` say what was left out and which labels may mean something else.
    """

    rows: npt.NDArray[np.int64]
    names: npt.NDArray[np.object_]
    match: npt.NDArray[np.int64]
    columns: dict[str, pd.Categorical]
    spelling: dict[str, str]
    naming: Naming
    notes: tuple[str, ...]


def label_cells(
    obs: pd.DataFrame,
    rows: npt.NDArray[np.int64],
    key: str,
    naming: Naming,
    design: Design,
    name: str,
    min_cells: int,
    strict: bool = True,
) -> Labelled:
    """The conditions of the cells `rows` of obs, without excluded cells and those of perturbed conditions of fewer than
    `min_cells`. strict: refuse labels of `naming` that no cell has."""
    labels = labels_of(obs, key, name).iloc[rows]
    frequent = labels.fillna(MISSING).value_counts()
    naming = naming.of_labels(list(frequent.index))
    if not naming.excludes(MISSING):
        require_labels(labels, key, name)
    if strict:
        require_named(naming, list(frequent.index), key, name)
    left_out = labels.fillna(MISSING).map({label: naming.excludes(str(label)) for label in frequent.index})
    rows, labels = rows[~left_out.to_numpy(bool)], labels[~left_out.to_numpy(bool)]
    if not len(rows):
        raise DataError(f"{name}: every cell of obs column '{key}' is left out by exclude; expected some to remain")
    check_control(labels, naming, key, name, strict)
    designed = Designed.read(obs.iloc[rows], labels, design, naming, key, name)
    names, spelling = designed.names(labels, naming)
    _, codes, sizes = np.unique(names.astype(str), return_inverse=True, return_counts=True)
    kept = (sizes[codes] >= min_cells) | (names == CONTROL)
    designed = designed.take(kept)
    return Labelled(
        rows[kept], names[kept], designed.groups(names[kept] == CONTROL), designed.columns, spelling, naming,
        (*_excluded(frequent, naming), *_doubtful(labels, naming)),
    )  # fmt: skip


def chosen_rows(
    obs: pd.DataFrame, subset: Mapping[str, str] | None, name: str, strict: bool = True
) -> npt.NDArray[np.int64]:
    """The rows of the cells that have the values of `subset`, column by column.

    strict: False where the subset is that of another file, which an error on a missing column then says.
    """
    chosen = np.ones(len(obs), dtype=bool)
    for column, value in (subset or {}).items():
        if not strict and not {column, plain(column)} & {*obs.columns, *unreadable(obs)}:
            raise DataError(
                f"{name}: obs has no column '{column}', by which the cells of the run were chosen ({column}={value}); if "
                f"all cells of this file are such, add the column (adata.obs['{column}'] = '{value}'), or ask for all "
                "cells (--subset none)"
            )
        chosen &= having(column_of(obs, column, "subset column", name), value, f"{name}: subset {column}={value}")
    if not len(obs):
        raise DataError(f"{name} holds no cells; expected at least one control and one perturbed cell")
    if not chosen.any():
        raise DataError(f"{name}: no cell has all of the subset {dict(subset or {})}; ask for fewer columns")
    return np.flatnonzero(chosen)


def spellings(value: object) -> tuple[str, ...]:
    """How `texts` may write a value that a user gives: as it is, or as the shortest number."""
    text = plain(value)
    try:
        return text, number_text(float(text))
    except ValueError:
        return (text,)


def having(values: pd.Series, value: object, where: str) -> npt.NDArray[np.bool_]:
    """Which cells have `value` in a column, compared as texts without blanks around them, numbers as they are shortest."""
    categorical = texts(values)
    categories = [str(text) for text in categorical.categories]
    category = next((text for text in spellings(value) if text in categories), None)
    if category is None:
        raise DataError(
            f"{where} matches no cell; values of '{values.name}' are {listed(categories)}{near(str(value), categories)}"
        )
    return np.asarray(categorical.codes == categories.index(category))


def require_labels(labels: pd.Series, key: str, name: str) -> None:
    """Raise DataError where a cell has no label."""
    missing = labels.isna().to_numpy()
    if missing.any():
        raise DataError(
            f"{name}: {int(missing.sum())} cells have no label in obs column '{key}' (first: cell "
            f"'{labels.index[missing][0]}'); expected one for each cell: leave these cells out (--exclude {MISSING}, "
            f"exclude=['{MISSING}']), or label them"
        )


def require_named(naming: Naming, labels: Sequence[str], key: str, name: str) -> None:
    """Raise DataError where no cell has a label that the options name; `labels` are the most frequent first."""
    for option, what in (("control", "control cells"), ("exclude", "cells to leave out")):
        text = naming.unmatched(option, labels)
        if text is not None:
            raise DataError(
                f"{name}: no cell of obs column '{key}' is labelled '{text}', which {what} are expected to be; name their "
                f"label with {option}; most frequent are {listed(labels)}{near(text, labels)}"
            )


def check_control(labels: pd.Series, naming: Naming, key: str, name: str, strict: bool) -> None:
    """Raise DataError unless some cell is untreated; strict: also where some are labelled `control`, undeclared."""
    frequent = list(map(str, labels.value_counts().index))
    untreated = [label for label in frequent if not naming.parse(label).perturbations]
    if not untreated:
        raise DataError(
            f"{name}: no cell of obs column '{key}' is labelled '{naming.control[0]}' alone, which control cells are "
            f"expected to be; name their label with control (--control); most frequent are {listed(frequent)}"
        )
    beside = [label for label in untreated if label.strip() in CONTROL_SPELLINGS]
    if strict and beside and not CONTROL_SPELLINGS & set(naming.control):
        raise DataError(
            f"{name}: {int(labels.isin(beside).sum())} cells of obs column '{key}' are labelled '{beside[0]}', which is "
            f"none of the control labels given ({listed(naming.control)}); leave them out (--exclude {beside[0]}), or "
            f"count them too (--control {beside[0]} beside the others)"
        )


def _excluded(frequent: pd.Series, naming: Naming) -> list[str]:
    """What was left out, in words."""
    gone = frequent[[naming.excludes(str(label)) for label in frequent.index]]
    return [f"{int(gone.sum())} cells left out by their label: {listed(list(gone.index))}"] if len(gone) else []


def _doubtful(labels: pd.Series, naming: Naming) -> list[str]:
    """Labels that are read as perturbations and look like none, in words."""
    frequent = [str(label) for label in labels.value_counts().index]
    perturbed = [label for label in frequent if naming.parse(label).perturbations]
    notes = []
    if alike := [label for label in perturbed if looks_like_control(label)]:
        notes.append(
            f"labels that look like control cells are read as perturbations: {listed(alike)}; if they are untreated, "
            "name each with --control (control=[...]), or leave them out with --exclude"
        )
    if unassigned := [label for label in perturbed if looks_unassigned(label)]:
        notes.append(
            f"labels that look like cells without a known perturbation are read as perturbations: {listed(unassigned)}; "
            "leave them out with --exclude (exclude=[...])"
        )
    return notes


def listed(values: Sequence[str], most: int = 10) -> str:
    """The first `most` values in quotes, and how many more there are."""
    shown = ", ".join(f"'{value}'" for value in values[:most])
    return shown + (f" and {len(values) - most} more" if len(values) > most else "")
