"""The columns of predicted cells: the names of conditions, and what the user's own file says of its cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from scdfm.data.conditions import CONTROL, SEPARATOR, covariates, number_text, parse, targets
from scdfm.run.trained import Trained

TARGETS = "targets"
"""Column of predicted cells with the targets of their condition, without dose, covariates and time."""


def own_columns(run: Trained, names: Sequence[str], n_cells: int, sources: pd.DataFrame) -> dict[str, Any]:
    """Columns of obs of `n_cells` cells for each of `names`; `sources` is obs of the control cell of each [N].

    The perturbation key holds the condition's name, `targets` the targets alone (`JQ1+TGF`). The dose and time keys hold
    numbers, different doses of several targets joined by `+`; covariates theirs. Columns that match controls, such as
    the batch, hold the value of the control cell.
    """
    manifest = run.manifest
    key, design = manifest.perturbation_key, manifest.design
    labels = [SEPARATOR.join(targets(name)) or CONTROL for name in names]
    columns: dict[str, Any] = {
        key: pd.Categorical(np.repeat(names, n_cells), categories=list(names)),
        "source_control": sources.index.astype(str).to_numpy(dtype=object),
    }
    for covariate in manifest.conditions.covariates:
        columns[covariate] = _repeated([covariates(name)[covariate] for name in names], n_cells)
    if dose_key := design.get("dose_key"):
        columns.setdefault(dose_key, _repeated([_dose(name) for name in names], n_cells))
    if time_key := design.get("time_key"):
        columns.setdefault(time_key, np.repeat([_number(parse(name).time) for name in names], n_cells))
    for column in design.get("match_controls") or ():
        if column not in columns and column in sources.columns:
            columns[column] = pd.Categorical(sources[column].astype(str))
    columns.setdefault(TARGETS, _repeated(labels, n_cells))
    return columns


def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table of obs of all `tables`: numbers stay numbers where they are so in all, texts become categories."""
    columns = {}
    for name in tables[0].columns:
        parts = [table[name] for table in tables]
        if all(pd.api.types.is_numeric_dtype(part) for part in parts):
            columns[name] = pd.concat(parts)
        else:
            columns[name] = pd.concat([_texts(part) for part in parts]).astype("category")
    return pd.DataFrame(columns)


def _texts(part: pd.Series) -> pd.Series:
    if pd.api.types.is_numeric_dtype(part):
        return part.map(number_text, na_action="ignore").astype(object)
    return part.astype(object)


def _repeated(values: Sequence[Any], n_cells: int) -> Any:
    """Each value `n_cells` times: an array of numbers, or a categorical."""
    if all(isinstance(value, float) for value in values):
        return np.repeat(np.array(values, dtype=np.float64), n_cells)
    texts = [number_text(value) if isinstance(value, float) and value == value else value for value in values]
    entries = [None if text != text else text for text in texts]
    return pd.Categorical(np.repeat(np.array(entries, dtype=object), n_cells))


def _dose(name: str) -> float | str:
    """The dose of every target, or different ones in the order of the label; NaN where one is not known."""
    all_doses = [one.dose for one in parse(name).perturbations]
    if not all_doses or None in all_doses:
        return float("nan")
    doses = [float(dose) for dose in all_doses if dose is not None]
    return doses[0] if len(set(doses)) == 1 else SEPARATOR.join(map(number_text, doses))


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
