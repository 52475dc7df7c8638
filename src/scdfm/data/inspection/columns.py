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

from scdfm.data.conditions import SEPARATOR
from scdfm.data.design import labels_of, texts
from scdfm.data.doses import (
    UNITS,
    different_units,
    listed_amounts,
    number_of,
    parts_of,
    unit_column,
    units_of,
    with_units,
)
from scdfm.data.features import smiles_column
from scdfm.data.inspection.labels import Genes, Meaning, frequencies, meaning
from scdfm.data.naming import looks_like_control
from scdfm.errors import DataError

# Names in order of trust; the first that a file has wins among columns that are otherwise alike.
PERTURBATION_NAMES: Final = (
    "perturbation", "perturbations", "perturbation_name", "condition", "target_gene", "gene_target", "gene",
    "guide_identity", "guide_target", "guide", "sgrna", "drug", "drug_name", "product_name", "compound",
    "compound_name", "chemical", "molecule", "treatment", "treatment_name", "cytokine", "ligand", "stimulation",
    "stim", "group_id", "group", "label",
)  # fmt: skip
CONTEXT_NAMES: Final = (
    "perturbation_2", "perturbation2", "condition", "treatment", "stimulation", "stim", "stimulus", "cytokine", "media",
    "medium", "culture", "culture_condition", "environment", "context",
)  # fmt: skip
"""What columns are called that say what all cells of a culture got, beside the perturbation of each."""
COVARIATE_NAMES: Final = (
    "cell_type", "celltype", "cell_line", "cellline", "line", "cluster_id", "cell_label", "tissue", "organ", "donor",
    "donor_id", "patient", "patient_id", "individual", "strain", "species",
)  # fmt: skip
BATCH_NAMES: Final = (
    "batch", "gem_group", "lane", "library", "plate", "replicate", "rep", "sample", "sample_id", "run", "channel",
)  # fmt: skip
DOSE_NAMES: Final = ("dose", "dose_value", "dosage", "concentration", "dose_um", "dose_nm", "conc", "moi")
TIME_NAMES: Final = ("time", "timepoint", "time_point", "hours", "hour", "day", "days", "time_h")
_SPLIT_VALUES: Final = frozenset({"train", "validation", "valid", "val", "test", "ood"})


@dataclass(frozen=True)
class Guess:
    """A column of obs and why it was chosen; `value` is the label of untreated cells of a perturbation column."""

    column: str
    reason: str
    value: str | None = None


@dataclass(frozen=True)
class Candidate:
    """A column, or several joined by `+`, that may hold the perturbation of each cell, and what its labels mean."""

    column: str
    meaning: Meaning
    rank: int
    """Place of the name among those that are usual."""
    lists: bool = False
    """Whether labels list drugs and their amounts."""

    @property
    def guess(self) -> Guess:
        """The column, why it was chosen, and its control label."""
        control = control_label(self.meaning.controls) or self.meaning.controls[0]
        usual = "a usual name for it, " if self.rank < len(PERTURBATION_NAMES) else ""
        n = self.meaning.n_perturbed + len(self.meaning.controls)
        return Guess(self.column, f"{usual}{n} labels, '{control}' among them", control)


def candidates(obs: pd.DataFrame, genes: Genes, counts: pd.Series[int] | None = None) -> list[Candidate]:
    """Columns that may hold the perturbation of each cell, the likeliest first.

    Before all others comes a column whose targets are genes of the file, and names them instead of their guides; then
    one with a usual name; then the one of most labels. A column that says more of the cells than the likeliest, each of
    its labels having one label there, comes first in its place, unless it only adds a dose, a guide or a sample to it.
    counts: the number of cells that each row of obs stands for.
    """
    columns = []
    for column in map(str, obs.columns):
        if list(obs.columns).count(column) != 1 or _smells_of_number(obs[column]):
            continue
        lists = lists_amounts(obs[column])
        if lists and named(obs, DOSE_NAMES, ()):  # the doses have a column, the drugs another
            continue
        if (meant := meaning(frequencies(obs[column], counts), genes)) is not None:
            columns.append(Candidate(column, meant, _rank(column, PERTURBATION_NAMES), lists))
    columns.sort(
        key=lambda one: (not one.meaning.genetic, bool(one.meaning.naming.guides), one.rank, -one.meaning.n_perturbed)
    )
    columns = _joined(obs, genes, columns) + columns
    for other in columns[1:]:
        best = columns[0]
        if other.meaning.genetic == best.meaning.genetic and says_more(obs, other, best):
            columns.remove(other)
            columns.insert(0, other)
    return columns


def lists_amounts(values: pd.Series) -> bool:
    """Whether the first label of a column is a list of drugs and their amounts."""
    first = values.dropna().iloc[:1]
    return bool(len(first)) and listed_amounts(str(first.iloc[0])) is not None


def says_more(obs: pd.DataFrame, one: Candidate, other: Candidate) -> bool:
    """Whether each label of `one` has one label of `other`, more of them, and seldom is that label with something added."""
    if one.meaning.n_perturbed <= other.meaning.n_perturbed or (
        one.meaning.naming.guides and not other.meaning.naming.guides
    ):
        return False
    pairs = distinct_pairs(labels_of(obs, one.column, "obs"), labels_of(obs, other.column, "obs"))
    if not pairs["one"].is_unique:
        return False
    if one.lists:
        return True
    targets = {target.lower() for target in other.meaning.targets | one.meaning.measured}
    left = [
        re.split(r"[^a-z0-9]+", fine.lower().replace(coarse.lower(), " ")) if coarse.lower() in fine.lower() else None
        for fine, coarse in zip(pairs["one"], pairs["other"], strict=True)
    ]
    added = [words is not None and not set(filter(None, words)) & targets for words in left]
    return 2 * sum(added) < len(added)


def _joined(obs: pd.DataFrame, genes: Genes, columns: Sequence[Candidate]) -> list[Candidate]:
    """Two columns such as Drug1 and Drug2 that name combinations together, where no column alone says as much."""
    names = [str(column) for column in obs.columns if list(obs.columns).count(column) == 1]
    made = []
    for first in names:
        pair = next((other for other in names if other in _seconds(first)), None)
        if pair is None or _smells_of_number(obs[first]) or _smells_of_number(obs[pair]):
            continue
        one, two = (frequencies(obs[column]) for column in (first, pair))
        column = f"{first}{SEPARATOR}{pair}"
        meant = meaning(frequencies(labels_of(obs, column, "obs")), genes, joined=True)
        if meant is None or not {label for label in one if label in meant.targets} & set(two):
            continue
        labels = labels_of(obs, column, "obs")
        alone = [other for other in columns if other.column not in (first, pair)]
        if not any(decides(labels_of(obs, other.column, "obs"), labels) for other in alone):
            made.append(Candidate(column, meant, _rank(first, PERTURBATION_NAMES)))
    return made


def _seconds(first: str) -> tuple[str, ...]:
    """What the second of two columns is called."""
    stem = re.sub(r"(?:_?(?:1|a|A|first))$", "", first)
    ends = ("1", "2"), ("_1", "_2"), ("A", "B"), ("_A", "_B"), ("_a", "_b"), ("_first", "_second")
    by_end = tuple(stem + end for start, end in ends if first == stem + start and stem)
    return (*by_end, f"{first}_2", f"{first}2")


def control_label(labels: Sequence[str] | pd.Index) -> str | None:
    """The label of untreated cells among `labels` (most frequent first): one that is spelled as usual for them."""
    fits = [str(label) for label in labels if looks_like_control(str(label))]
    exact = [label for label in fits if label.strip().lower() in ("control", "ctrl")]
    return next(iter(exact or fits), None)


def covariate_guesses(obs: pd.DataFrame, untreated: pd.Series, taken: Sequence[str]) -> list[Guess]:
    """Columns of cell types, lines, donors, with more than one value that perturbed cells have.

    A column that another one of them decides (each value of the one has one value of the other) tells nothing new
    and is left out, as is one whose control cells are missing for some value (see `uncontrolled`).
    """
    guesses: list[Guess] = []
    for column in named(obs, (*COVARIATE_NAMES, *CONTEXT_NAMES), taken):
        values = obs[column].astype(str)
        n = values[~untreated].nunique()
        if not 2 <= n <= 100 or uncontrolled(obs[column], untreated):
            continue
        if any(decides(obs[other.column], obs[column]) for other in guesses):
            continue
        guesses.append(Guess(column, f"{n} values, each with control cells"))
    return guesses


def uncontrolled(values: pd.Series, untreated: pd.Series) -> list[str]:
    """Values that perturbed cells have and control cells have not, sorted."""
    texts = values.astype(str)
    return sorted(set(texts[~untreated]) - set(texts[untreated]))


def decides(one: pd.Series, other: pd.Series) -> bool:
    """Whether each value of `one` stands with one value of `other` only."""
    return bool(distinct_pairs(one, other)["one"].is_unique)


def distinct_pairs(one: pd.Series, other: pd.Series) -> pd.DataFrame:
    """The pairs of values, as texts, that stand in some cell of both columns."""
    coded = [pd.factorize(values.to_numpy(), use_na_sentinel=False) for values in (one, other)]
    pairs = pd.DataFrame({"one": coded[0][0], "other": coded[1][0]}).drop_duplicates()
    texts = [np.array([str(value) for value in values], dtype=object) for _, values in coded]
    return pd.DataFrame({name: text[pairs[name]] for name, text in zip(pairs, texts, strict=True)}).drop_duplicates()


def number_guess(
    obs: pd.DataFrame, names: Sequence[str], untreated: pd.Series, taken: Sequence[str], most: int = 50
) -> tuple[Guess | None, str | None]:
    """The column of doses or times among the usual `names`, or a note on one that has them but cannot be used."""
    note = None
    for column in named(obs, names, taken):
        amounts, unit = texts(obs.loc[~untreated, column]), unit_guess(obs, column, untreated)
        try:
            if unit is not None:
                beside = texts(obs.loc[~untreated, unit.column])
                amounts = with_units(amounts, beside, f"obs['{unit.column}']")
        except DataError as error:
            note = str(error)
            continue
        distinct = {"missing"} if (amounts.codes < 0).any() else set()
        distinct |= set(map(str, amounts.categories))
        units = units_of(distinct)
        numbers = {number_of(part) for text in distinct for part in parts_of(text)}
        if not all(_is_amount(part) for part in numbers):
            some = ", ".join(map(repr, sorted(numbers)[:3]))
            note = f"obs['{column}'] holds texts that are no numbers ({some}): not used"
        elif len(numbers) == 1:
            note = f"obs['{column}'] is {numbers.pop()} for every target: not needed"
        elif len(numbers) > most:
            note = f"obs['{column}'] holds {len(numbers)} different numbers: not taken for steps of dose or time"
        else:
            ordered = sorted({float(part) for part in numbers})
            of = f" {' or '.join(sorted({UNITS[unit][0] for unit in units}))}" if units else ""
            said = f"; written in {', '.join(units)}, read in{of}" if units else ""
            return Guess(column, f"{len(ordered)} values from {ordered[0]:g} to {ordered[-1]:g}{of}{said}"), None
    return None, note


def unit_guess(obs: pd.DataFrame, dose: str, untreated: pd.Series) -> Guess | None:
    """The column of the units of doses, where perturbed cells have different ones."""
    column = unit_column(obs, dose)
    units = [] if column is None else different_units(obs[~untreated], column)
    return Guess(str(column), f"units of '{dose}': {', '.join(units)}") if len(units) > 1 else None


def smiles_guess(obs: pd.DataFrame, labels: pd.Series, untreated: pd.Series) -> tuple[Guess | None, str | None]:
    """The column of SMILES, by its name, or a note where a label has more than one or none."""
    column = smiles_column(obs)
    if column is None:
        return None, None
    pairs = pd.DataFrame({"label": labels[~untreated], "smiles": obs.loc[~untreated, column].astype(object)})
    if (lacking := pairs["smiles"].isna() | (pairs["smiles"].astype(str).str.strip() == "")).any():
        return None, (
            f"obs['{column}'] has no SMILES for '{pairs['label'][lacking].iloc[0]}': not used; fill it in, or give SMILES "
            "by name (--features FILE.csv)"
        )
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
    columns = []
    treated = ~untreated.to_numpy()
    for column in map(str, obs.columns):
        if list(obs.columns).count(column) > 1 or _smells_of_number(obs[column]):
            continue
        values = obs[column].astype(str).str.strip().str.lower()[treated]
        if _SPLIT_VALUES >= set(values) > {"train"} and decides(pd.Series(conditions[treated]), values):
            columns.append(column)
    return columns


def importance(column: str) -> int:
    """What a column of obs tells by its name: 0 what was done, 1 to which cells, 3 in which batch, 2 anything else."""
    if _rank(column, PERTURBATION_NAMES) < len(PERTURBATION_NAMES):
        return 0
    usual = (*COVARIATE_NAMES, *CONTEXT_NAMES, *DOSE_NAMES, *TIME_NAMES)
    return 1 if _rank(column, usual) < len(usual) else 3 if _rank(column, BATCH_NAMES) < len(BATCH_NAMES) else 2


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
