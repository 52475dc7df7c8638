"""The two public screens, whichever copy is at hand, and what was published of them.

Norman et al. 2019 (Science 365:786): CRISPRa of 101 genes and 125 pairs in K562.

| copy | condition | values |
|---|---|---|
| figshare 43390776 (published) and GEARS | `condition`: `AHR+ctrl`, `AHR+FEV`, `ctrl`; `control` 0/1 | log1p |
| scPerturb | `perturbation`: `AHR`, `AHR_FEV`, `control` | counts |
| pertpy | `perturbation_name`, `guide_identity`, `guide_ids` | log1p, counts in a layer |

ComboSciPlex: 17 drugs on A549 cells, 6 alone and 25 pairs (figshare 44229635). The published experiments normalise its
counts to the median total; the X that the file ships is of another scale.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from scdfm.data.cells import CellTable
from scdfm.data.gene_names import unique_names
from scdfm.data.naming import Naming
from scdfm.data.reading import cells_of
from scdfm.data.source import Source, open_source
from scdfm.data.split import Split
from scdfm.data.splits import named_split
from scdfm.data.values import to_csr
from scdfm.datasets.remote import download
from scdfm.errors import ConditionError, DataError

if TYPE_CHECKING:
    from anndata import AnnData

PUBLISHED_METRICS: Final = (
    "l2", "mse", "mae", "de_spearman", "pearson_delta", "ds", "pearson_delta_hat", "pearson_delta_hat_20",
)  # fmt: skip
"""Columns of figures; l2, mse and mae are better when smaller, the others when larger."""
NORMAN_COLUMNS: Final = ("condition", "perturbation_name", "perturbation", "guide_identity", "guide_ids")
"""Condition columns of the known copies, the published one first."""
NORMAN_SUM: Final = 1e4
"""Counts are normalised to this total, the scale of the copies that ship log1p values."""
NO_GENE: Final = "ctrl"
_NO_GENES: Final = re.compile(r"(ctrl|control|NegCtrl\d*|non-targeting|)", re.IGNORECASE)
TEST: Final = (
    "Panobinostat+Crizotinib", "Panobinostat+Curcumin", "Panobinostat+SRT1720", "Panobinostat+Sorafenib",
    "SRT2104+Alvespimycin", "control+Alvespimycin", "control+Dacinostat",
)  # fmt: skip
"""The published test conditions of ComboSciPlex."""
COMBOSCIPLEX_COLUMNS: Final = ("condition", "perturbation")
DRUG_COLUMNS: Final = ("Drug1", "Drug2")
COUNTS: Final = "counts"
NO_DRUG: Final = "control"
_NO_DRUGS: Final = frozenset({"control", "ctrl", "dmso", "vehicle", ""})
LABEL: Final = "perturbation"
"""Column of obs that holds the condition in the tables read."""
SYMBOL_COLUMNS: Final = (
    "gene_name", "gene_symbol", "gene_symbols", "gene_names", "feature_name", "gene_short_name", "symbol",
)  # fmt: skip
_ENSEMBL: Final = re.compile(r"ENSG\d{6,}(\.\d+)?")
_SEEN: Final = 200


def norman(path: str | Path | AnnData | None = None, progress: bool = True) -> CellTable:
    """The Norman screen: conditions canonical, log1p values of X, or of counts normalised to 10,000.

    path: any known copy (`.h5ad`, `.zarr`, AnnData); None downloads the published one (`scdfm.datasets.download`).
    Labels become `A+B` in the order of the file before they are canonical: that order, kept in
    `CellTable.spelling`, decides the published splits. Raises DataError where the copy is of an unknown form.
    """
    origin: Any = download("norman", progress=progress) if path is None else path
    with open_source(origin) as source:
        key = column(source, NORMAN_COLUMNS)
        obs = relabelled(source, source.obs[key], gene_label)
        _check_controls(source, obs[LABEL])
        counts = holds_counts(source)
        return cells_of(
            replace(source, obs=obs, genes=symbols(source)), LABEL, Naming((NO_GENE,)), NORMAN_SUM if counts else None
        )


def gene_label(label: str) -> str:
    """`ctrl`, `A+ctrl` or `A+B`, targets in the order of `label`.

    Known are targets joined by `+`, `,` or `_`, with absent ones called ctrl, control, NegCtrl and a number, or
    nothing; and guide identities (`A_B__A_B`), of which the first half counts.
    """
    text = label.strip()
    parts = text.split("+") if "+" in text else re.split(r"[_,]", text.split("__")[0])
    members = [part.strip() for part in parts if not _NO_GENES.fullmatch(part.strip())]
    if len(members) > 2 or "*" in members:
        raise ConditionError(
            f"Norman condition '{label}': expected at most two genes such as 'A', 'A+B' or 'A_B'; remove its cells"
        )
    return "+".join(members if len(members) == 2 else [*members, NO_GENE])


def _check_controls(source: Source, labels: pd.Series) -> None:
    """Where obs says in a column of its own which cells are controls, it must agree with the labels."""
    if "control" not in source.obs.columns:
        return
    said = pd.to_numeric(source.obs["control"].astype(str).replace({"True": "1", "False": "0"}), errors="coerce")
    if said.isna().any():
        return  # a column of another meaning
    differing = (said == 1).to_numpy() != (labels == NO_GENE).to_numpy()
    if differing.any():
        cell = source.obs.index[differing][0]
        raise DataError(
            f"{source.name}: {int(differing.sum())} cells disagree on being control (first: '{cell}', condition "
            f"'{labels[cell]}', obs column 'control' {said[cell]:g}); correct one of the two"
        )


def combosciplex(path: str | Path | AnnData | None = None, progress: bool = True) -> CellTable:
    """The ComboSciPlex screen: log1p of counts normalised to their median total, conditions canonical.

    path: a copy (`.h5ad`, `.zarr`, AnnData) with counts in layer `counts` or X, and conditions in `condition`
    (`A+B`, `control+A`, `control+control`) or in `Drug1` and `Drug2`; None downloads the published one. Raises
    DataError where there are no counts.
    """
    origin: Any = download("combosciplex", progress=progress) if path is None else path
    with open_source(origin) as source:
        obs = relabelled(source, _drug_labels(source), drug_label)
        return cells_of(replace(source, obs=obs), LABEL, Naming((NO_DRUG,)), "median", layer=_counts_layer(source))


def combosciplex_split(
    conditions: CellTable | Iterable[str], validation_fraction: float | None = None, seed: int = 0
) -> Split:
    """The published split: TEST is tested, all else trains, validation is taken out of training."""
    return named_split(conditions, TEST, validation_fraction, seed, kind="combosciplex")


def drug_label(label: str) -> str:
    """`control`, `control+A` or `A+B`, drugs in the order of `label`."""
    members = [part.strip() for part in label.split("+") if part.strip().lower() not in _NO_DRUGS]
    return "+".join(members if len(members) > 1 else [NO_DRUG, *members])


def _drug_labels(source: Source) -> pd.Series:
    if not any(name in source.obs.columns for name in COMBOSCIPLEX_COLUMNS) and set(DRUG_COLUMNS) <= set(
        source.obs.columns
    ):
        first, second = (source.obs[name].astype(object).fillna("").astype(str) for name in DRUG_COLUMNS)
        return (first + "+" + second).rename("Drug1+Drug2")
    return source.obs[column(source, COMBOSCIPLEX_COLUMNS)]


def _counts_layer(source: Source) -> str | None:
    if COUNTS in source.layers:
        return COUNTS
    if holds_counts(source):
        return None
    raise DataError(
        f"{source.name}: no layer '{COUNTS}' and X holds no counts; the published scale is counts normalised to "
        "their median total: give the copy with its counts"
    )


def column(source: Source, candidates: Sequence[str]) -> str:
    """The first of the `candidates` for a condition column that obs has."""
    for name in candidates:
        if name in source.obs.columns:
            return name
    columns = ", ".join(map(str, source.obs.columns)) or "none"
    raise DataError(
        f"{source.name}: obs has none of the condition columns {', '.join(candidates)}; its columns are {columns}: "
        "use read_cells with its perturbation_key"
    )


def relabelled(source: Source, labels: pd.Series, rename: Callable[[str], str]) -> pd.DataFrame:
    """obs with `rename` of each label in column LABEL; DataError where a cell has none."""
    missing = labels.isna().to_numpy()
    if missing.any():
        raise DataError(
            f"{source.name}: {int(missing.sum())} cells have no label in obs column '{labels.name}' (first: cell "
            f"'{labels.index[missing][0]}'); remove these cells"
        )
    texts = labels.astype(str)
    names = {text: rename(text) for text in texts.unique()}
    return source.obs.assign(**{LABEL: texts.map(names).astype(object)})


def symbols(source: Source) -> npt.NDArray[np.str_]:
    """Gene symbols [A]: the names in var, or its column of symbols where the names are Ensembl ids.

    A symbol that occurs again gets a suffix (`-1`, `-2`, ...), as anndata's var_names_make_unique gives.
    """
    ensembl = sum(bool(_ENSEMBL.fullmatch(gene)) for gene in source.genes)
    if 2 * ensembl <= len(source.genes):
        return source.genes
    for name in SYMBOL_COLUMNS:
        if name in source.var.columns:
            return np.asarray(unique_names(source.var[name].astype(str).to_numpy()), dtype=np.str_)
    raise DataError(
        f"{source.name}: genes are named by Ensembl ids and var has no column of symbols, expected one of "
        f"{', '.join(SYMBOL_COLUMNS)}: targets are symbols"
    )


def holds_counts(source: Source) -> bool:
    """Whether X begins with whole numbers only. The reader checks all of it against what this declares."""
    rows = np.arange(min(_SEEN, len(source.obs)))
    values = to_csr(source.matrix(None), rows, f"{source.name}: X").data
    return bool(len(values)) and bool(np.all(values == np.rint(values)))


def published(dataset: str | None = None, split: str | None = None) -> pd.DataFrame:
    """The published results, as facts in a table: what each method reached on each split (arXiv 2602.07103).

    Columns dataset, split, part, model and PUBLISHED_METRICS (NaN where nothing was published).
    """
    with resources.files("scdfm.datasets").joinpath("published.csv").open(encoding="utf-8") as handle:
        table = pd.read_csv(handle)
    if dataset is not None:
        table = table[table["dataset"] == dataset]
    if split is not None:
        table = table[table["split"] == split]
    return table.reset_index(drop=True)
