"""Norman et al. 2019 (Science 365:786): CRISPRa of 101 genes and 125 pairs in K562, whichever copy is at hand.

| copy | condition | values |
|---|---|---|
| figshare 43390776 (published) and GEARS | `condition`: `AHR+ctrl`, `AHR+FEV`, `ctrl`; `control` 0/1 | log1p |
| scPerturb | `perturbation`: `AHR`, `AHR_FEV`, `control` | counts |
| pertpy | `perturbation_name`, `guide_identity`, `guide_ids` | log1p, counts in a layer |
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from scdfm.data.cells import CellTable
from scdfm.data.naming import Naming
from scdfm.data.reading import cells_of
from scdfm.data.source import Source, open_source
from scdfm.datasets.copies import LABEL, column, holds_counts, relabelled, symbols
from scdfm.datasets.remote import download
from scdfm.errors import ConditionError, DataError

if TYPE_CHECKING:
    from anndata import AnnData

COLUMNS: Final = ("condition", "perturbation_name", "perturbation", "guide_identity", "guide_ids")
"""Condition columns of the known copies, the published one first."""
TARGET_SUM: Final = 1e4
"""Counts are normalised to this total, the scale of the copies that ship log1p values."""
_CONTROL: Final = "ctrl"
_ABSENT: Final = re.compile(r"(ctrl|control|NegCtrl\d*|non-targeting|)", re.IGNORECASE)


def norman(path: str | Path | AnnData | None = None, progress: bool = True) -> CellTable:
    """The Norman screen: conditions canonical, log1p values of X, or of counts normalised to 10,000.

    path: any known copy (`.h5ad`, `.zarr`, AnnData); None downloads the published one (`scdfm.datasets.download`).
    Labels become `A+B` in the order of the file before they are canonical: that order, kept in
    `CellTable.spelling`, decides the published splits. Raises DataError where the copy is of an unknown form.
    """
    origin: Any = download("norman", progress=progress) if path is None else path
    with open_source(origin) as source:
        key = column(source, COLUMNS)
        obs = relabelled(source, source.obs[key], plus_label)
        _check_controls(source, obs[LABEL])
        counts = holds_counts(source)
        return cells_of(
            replace(source, obs=obs, genes=symbols(source)),
            LABEL,
            Naming((_CONTROL,)),
            TARGET_SUM if counts else None,
        )


def plus_label(label: str) -> str:
    """`ctrl`, `A+ctrl` or `A+B`, targets in the order of `label`.

    Known are targets joined by `+`, `,` or `_`, with absent ones called ctrl, control, NegCtrl and a number, or
    nothing; and guide identities (`A_B__A_B`), of which the first half counts.
    """
    text = label.strip()
    parts = text.split("+") if "+" in text else re.split(r"[_,]", text.split("__")[0])
    members = [part.strip() for part in parts if not _ABSENT.fullmatch(part.strip())]
    if len(members) > 2 or "*" in members:
        raise ConditionError(
            f"Norman condition '{label}': expected at most two genes such as 'A', 'A+B' or 'A_B'; remove its cells"
        )
    return "+".join(members if len(members) == 2 else [*members, _CONTROL])


def _check_controls(source: Source, labels: pd.Series) -> None:
    """Where obs says in a column of its own which cells are controls, it must agree with the labels."""
    if "control" not in source.obs.columns:
        return
    said = pd.to_numeric(
        source.obs["control"].astype(str).replace({"True": "1", "False": "0"}), errors="coerce"
    )
    if said.isna().any():
        return  # a column of another meaning
    differing = (said == 1).to_numpy() != (labels == _CONTROL).to_numpy()
    if differing.any():
        cell = source.obs.index[differing][0]
        raise DataError(
            f"{source.name}: {int(differing.sum())} cells disagree on being control (first: '{cell}', condition "
            f"'{labels[cell]}', obs column 'control' {said[cell]:g}); correct one of the two"
        )
