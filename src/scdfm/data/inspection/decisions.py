"""What an inspection decided about the names of a file, each as one sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from scdfm.data.conditions import CONTROL_SPELLINGS, SEPARATOR
from scdfm.data.inspection.columns import Candidate
from scdfm.data.inspection.labels import Genes
from scdfm.data.labels import listed
from scdfm.data.naming import NONE


def decisions(
    best: Candidate, others: Sequence[Candidate], genes: Genes, counts: Counter[str], obs: pd.DataFrame
) -> Iterator[str]:
    """Why this column, what is control, what is left out, what joins targets, and where genes are named so.

    counts: the cells of each label of the column.
    """
    meant, naming, column = best.meaning, best.meaning.naming, best.column
    yield from _column(best, others, obs)
    cells = sum(counts[label] for label in meant.controls)
    if len(meant.controls) > 1 or not CONTROL_SPELLINGS & set(meant.controls):
        yield f"control cells are the {cells:,} labelled {listed(meant.controls, 5)}; name others with --control"
    if meant.unassigned:
        gone = sum(counts[label] for label in meant.unassigned)
        yield (
            f"the {gone:,} cells labelled {listed(meant.unassigned, 5)} look unassigned (no label that names a "
            "perturbation) and are left out by --exclude: they are neither controls nor perturbed"
        )
    if best.lists:
        yield (
            f"the labels of obs['{column}'] list drugs and amounts ('{obs[column].dropna().iloc[0]}'): they are read as "
            f"'{next(label for label in counts if '@' in label)}', amounts in uM or ug/ml"
        )
    if naming.separator == NONE:
        yield f"no label joins targets ('{next(one for one in counts if SEPARATOR in one)}' is one): --separator none"
    elif naming.separator is not None:
        joined = [
            label
            for label in counts
            if naming.separator in label and label not in {*meant.controls, *meant.unassigned}
        ]
        yield (
            f"{len(joined)} labels look like combinations joined by '{naming.separator}' (first: '{joined[0]}'): "
            "--separator splits them"
        )
    if naming.guides:
        n = meant.n_perturbed
        yield (
            f"the labels of obs['{column}'] are guides: {n} of them are pooled to {len(meant.targets)} genes by their "
            f"names ({', '.join(naming.guides)})"
        )
    if naming.gene_versions == "drop":
        yield (
            f"{len(meant.measured)} of {len(meant.targets)} targets are genes of this file but for the version of their "
            "ids: --gene-versions drop"
        )
    if naming.genes is not None:
        inside = len(meant.targets & genes[None])
        yield (
            f"genes are named by var['{naming.genes}'], where {len(meant.measured)} of {len(meant.targets)} targets are "
            f"found, and not by the index, where {inside} are: --gene-column {naming.genes}"
        )


def _column(best: Candidate, others: Sequence[Candidate], obs: pd.DataFrame) -> Iterator[str]:
    if SEPARATOR in best.column and best.column not in obs.columns:
        first, second = best.column.split(SEPARATOR)
        yield f"obs['{first}'] and obs['{second}'] name combinations together and are read as one: {best.column}"
    usual = [
        other
        for other in others
        if other.rank < best.rank or other.meaning.n_perturbed > best.meaning.n_perturbed
    ]
    if usual:
        why = (
            "whose targets are genes of this file"
            if best.meaning.genetic
            else "which says most of what was done to each cell"
        )
        yield (
            f"the perturbation is obs['{best.column}'] ({len(best.meaning.targets)} targets), {why}, and not "
            f"obs['{usual[0].column}'] ({usual[0].meaning.n_perturbed} labels beside control)"
        )


def aliases(
    best: Candidate, genes: Genes, var: pd.DataFrame, names: Sequence[str], obs: pd.DataFrame
) -> dict[str, str]:
    """Genes by other names: those that another column of var has for them, and those of which a column of obs beside the
    perturbation has the id that var has."""
    unmeasured = best.meaning.targets - best.meaning.measured
    if not unmeasured or not best.meaning.measured:
        return {}
    gene_of: dict[str, str] = {}
    for column in map(str, var.columns):
        if list(var.columns).count(column) > 1 or pd.api.types.is_numeric_dtype(var[column]):
            continue
        for text, name in zip(var[column].astype(str), names, strict=True):
            for part in text.replace(",", "|").replace(";", "|").split("|"):
                if part.strip() in unmeasured:
                    gene_of.setdefault(part.strip(), name)
    return gene_of | _by_id(
        best.column, unmeasured - set(gene_of), dict(zip(var.index.astype(str), names, strict=True)), obs
    )


def _by_id(
    key: str, unmeasured: frozenset[str], genes: Mapping[str, str], obs: pd.DataFrame
) -> dict[str, str]:
    """Targets whose cells all have one id, in some column of obs, that is the index of a gene."""
    if key not in obs.columns or not unmeasured:
        return {}
    firsts = obs.loc[obs[key].astype(str).isin(unmeasured).to_numpy()].drop_duplicates(key)
    gene_of: dict[str, str] = {}
    for column in map(str, obs.columns):
        if column != key and list(obs.columns).count(column) == 1:
            for target, text in zip(firsts[key].astype(str), firsts[column].astype(str), strict=True):
                if text in genes and genes[text] != target:
                    gene_of.setdefault(target, genes[text])
    return gene_of
