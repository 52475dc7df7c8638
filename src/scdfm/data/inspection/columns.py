"""Guesses at what the columns of obs mean, each with its reason: perturbation, control, covariates, dose, time, SMILES.

A guess rests on names that are usual for such columns and on values; it is a proposal for a person to check.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from scdfm.data.features import smiles_column

# Names in order of trust; the first that a file has wins among columns that are otherwise alike.
PERTURBATION_NAMES: Final = (
    "perturbation", "perturbations", "perturbation_name", "condition", "target_gene", "gene_target", "gene",
    "guide_identity", "guide_target", "guide", "sgrna", "drug", "drug_name", "product_name", "compound",
    "compound_name", "chemical", "molecule", "treatment", "treatment_name", "cytokine", "ligand", "stimulation",
    "stim", "group_id", "group", "label",
)  # fmt: skip
COVARIATE_NAMES: Final = (
    "cell_type", "celltype", "cell_line", "cellline", "line", "cluster_id", "cell_label", "tissue", "organ", "donor",
    "donor_id", "patient", "patient_id", "individual", "strain", "species",
)  # fmt: skip
BATCH_NAMES: Final = (
    "batch", "gem_group", "lane", "library", "plate", "replicate", "rep", "sample", "sample_id", "run", "channel",
)  # fmt: skip
DOSE_NAMES: Final = ("dose", "dose_value", "dosage", "concentration", "dose_um", "dose_nm", "conc", "moi")
TIME_NAMES: Final = ("time", "timepoint", "time_point", "hours", "hour", "day", "days", "time_h")
_CONTROL: Final = re.compile(
    r"(control|ctrl|ctl|cntrl|non[-_ ]?target(ing)?|nt|ntc|neg(ative)?[-_ ]?(control|ctrl)?|safe[-_ ]?target(ing)?|"
    r"unperturbed|untreated|unstimulated|unstim|vehicle|dmso|pbs|mock|scramble(d)?|wild[-_ ]?type|wt|none|no[-_ ]drug)",
    re.IGNORECASE,
)
_SPLIT_VALUES: Final = frozenset({"train", "validation", "valid", "val", "test", "ood"})


@dataclass(frozen=True)
class Guess:
    """A column of obs and why it was chosen; `value` is the label of untreated cells of a perturbation column."""

    column: str
    reason: str
    value: str | None = None


def perturbation_guesses(obs: pd.DataFrame) -> list[Guess]:
    """Columns that may hold the perturbation of each cell, with their control label, the likeliest first."""
    found: list[tuple[tuple[int, int, int], Guess]] = []
    for place, column in enumerate(map(str, obs.columns)):
        values = obs[column]
        if _smells_of_number(values) or list(obs.columns).count(column) > 1:
            continue
        labels = values.astype(str).value_counts()
        control = control_label(labels.index)
        if control is None or len(labels) < 2:
            continue
        rank = _rank(column, PERTURBATION_NAMES)
        usual = "a usual name for it, " if rank < len(PERTURBATION_NAMES) else ""
        reason = f"{usual}{len(labels)} labels, '{control}' among them"
        # Without a usual name the column of most labels says most.
        found.append(((rank, -len(labels), place), Guess(column, reason, control)))
    return [guess for _, guess in sorted(found, key=lambda pair: pair[0])]


def control_label(labels: Sequence[str] | pd.Index) -> str | None:
    """The label of untreated cells among `labels` (most frequent first): one that is spelled as usual for them."""
    fits = [str(label) for label in labels if _CONTROL.fullmatch(str(label).strip())]
    exact = [label for label in fits if label.strip().lower() in ("control", "ctrl")]
    return next(iter(exact or fits), None)


def covariate_guesses(obs: pd.DataFrame, untreated: pd.Series, taken: Sequence[str]) -> list[Guess]:
    """Columns of cell types, lines, donors, with more than one value that perturbed cells have.

    A column that another one of them decides (each value of the one has one value of the other) tells nothing new
    and is left out, as is one whose control cells are missing for some value (see `uncontrolled`).
    """
    chosen: list[Guess] = []
    for column in named(obs, COVARIATE_NAMES, taken):
        values = obs[column].astype(str)
        n = values[~untreated].nunique()
        if not 2 <= n <= 100 or uncontrolled(obs[column], untreated):
            continue
        if any(decides(obs[other.column], obs[column]) for other in chosen):
            continue
        chosen.append(Guess(column, f"{n} values, each with control cells"))
    return chosen


def batch_columns(obs: pd.DataFrame, untreated: pd.Series, taken: Sequence[str]) -> list[str]:
    """Columns of batches whose every value among perturbed cells has control cells: controls can be matched by them."""
    return [
        column
        for column in named(obs, BATCH_NAMES, taken)
        if 2 <= obs[column].nunique() <= 1000 and not uncontrolled(obs[column], untreated)
    ]


def uncontrolled(values: pd.Series, untreated: pd.Series) -> list[str]:
    """Values that perturbed cells have and control cells have not, sorted."""
    texts = values.astype(str)
    return sorted(set(texts[~untreated]) - set(texts[untreated]))


def decides(one: pd.Series, other: pd.Series) -> bool:
    """Whether each value of `one` stands with one value of `other` only."""
    pairs = pd.DataFrame({"one": one.astype(str).to_numpy(), "other": other.astype(str).to_numpy()})
    return len(pairs.drop_duplicates()) == pairs["one"].nunique()


def number_guess(
    obs: pd.DataFrame, names: Sequence[str], untreated: pd.Series, taken: Sequence[str], most: int = 50
) -> tuple[Guess | None, str | None]:
    """The column of doses or times among the usual `names`, or a note on one that has them but cannot be used."""
    note = None
    for column in named(obs, names, taken):
        texts = obs.loc[~untreated, column].astype(str)
        distinct = set(texts)
        numbers = {part for text in distinct for part in text.split("+")}
        if not all(_is_amount(part) for part in numbers):
            note = f"obs['{column}'] holds texts that are no numbers ({_some(numbers)}): not used"
        elif len(numbers) == 1:
            note = f"obs['{column}'] is {numbers.pop()} for every target: not needed"
        elif len(numbers) > most:
            note = (
                f"obs['{column}'] holds {len(numbers)} different numbers: not taken for steps of dose or time"
            )
        else:
            ordered = sorted({float(part) for part in numbers})
            return Guess(column, f"{len(ordered)} values from {ordered[0]:g} to {ordered[-1]:g}"), None
    return None, note


def smiles_guess(
    obs: pd.DataFrame, labels: pd.Series, untreated: pd.Series
) -> tuple[Guess | None, str | None]:
    """The column of SMILES, by its name, or a note where a label has more than one or none."""
    column = smiles_column(obs)
    if column is None:
        return None, None
    pairs = pd.DataFrame({"label": labels[~untreated], "smiles": obs.loc[~untreated, column].astype(object)})
    if (lacking := pairs["smiles"].isna()).any():
        return None, f"obs['{column}'] has no SMILES for '{pairs['label'][lacking].iloc[0]}': not used"
    each = pairs.drop_duplicates()["label"].value_counts()
    if (several := each[each > 1]).size:
        return None, (
            f"obs['{column}'] has {several.iloc[0]} different SMILES for '{several.index[0]}', and more than one for "
            f"{len(several)} of {len(each)} labels, so the columns of this file do not belong together: check how they "
            "were joined, and give SMILES by name (--features FILE.csv)"
        )
    return Guess(column, f"{pairs['smiles'].nunique()} molecules"), None


def split_columns(obs: pd.DataFrame, conditions: npt.NDArray[np.object_], untreated: pd.Series) -> list[str]:
    """Columns whose values name parts of a split, one for all cells of a condition."""
    found = []
    treated = ~untreated.to_numpy()
    for column in map(str, obs.columns):
        if list(obs.columns).count(column) > 1 or _smells_of_number(obs[column]):
            continue
        values = obs[column].astype(str).str.strip().str.lower()[treated]
        if _SPLIT_VALUES >= set(values) > {"train"} and decides(pd.Series(conditions[treated]), values):
            found.append(column)
    return found


def named(obs: pd.DataFrame, names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The columns with usual names, in the order of the names."""
    columns = [c for c in map(str, obs.columns) if c not in taken and list(obs.columns).count(c) == 1]
    return sorted((c for c in columns if _rank(c, names) < len(names)), key=lambda c: _rank(c, names))


def _rank(column: str, names: Sequence[str]) -> int:
    text = re.sub(r"[ .-]+", "_", column.strip().lower())
    return names.index(text) if text in names else len(names)


def _smells_of_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) or pd.api.types.is_datetime64_any_dtype(values)


def _is_amount(text: str) -> bool:
    try:
        value = float(text)
    except ValueError:
        return False
    return bool(np.isfinite(value)) and value >= 0


def _some(values: set[str], most: int = 3) -> str:
    return ", ".join(repr(value) for value in sorted(values)[:most])
