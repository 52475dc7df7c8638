"""ComboSciPlex: 17 drugs on A549 cells, 6 alone and 25 pairs (figshare 44229635).

The published experiments normalise its counts to the median total; the X that the file ships is of another scale.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from scdfm.data.cells import CellTable
from scdfm.data.naming import Naming
from scdfm.data.reading import cells_of
from scdfm.data.source import Source, open_source
from scdfm.data.split import Split
from scdfm.data.splits import named_split
from scdfm.datasets.copies import LABEL, column, holds_counts, relabelled
from scdfm.datasets.remote import download
from scdfm.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

TEST: Final = (
    "Panobinostat+Crizotinib",
    "Panobinostat+Curcumin",
    "Panobinostat+SRT1720",
    "Panobinostat+Sorafenib",
    "SRT2104+Alvespimycin",
    "control+Alvespimycin",
    "control+Dacinostat",
)
"""The published test conditions."""
COLUMNS: Final = ("condition", "perturbation")
DRUG_COLUMNS: Final = ("Drug1", "Drug2")
COUNTS: Final = "counts"
_CONTROL: Final = "control"
_ABSENT: Final = frozenset({"control", "ctrl", "dmso", "vehicle", ""})


def combosciplex(path: str | Path | AnnData | None = None, progress: bool = True) -> CellTable:
    """The ComboSciPlex screen: log1p of counts normalised to their median total, conditions canonical.

    path: a copy (`.h5ad`, `.zarr`, AnnData) with counts in layer `counts` or X, and conditions in `condition`
    (`A+B`, `control+A`, `control+control`) or in `Drug1` and `Drug2`; None downloads the published one. Raises
    DataError where there are no counts.
    """
    origin: Any = download("combosciplex", progress=progress) if path is None else path
    with open_source(origin) as source:
        obs = relabelled(source, _labels(source), plus_label)
        return cells_of(
            replace(source, obs=obs), LABEL, Naming((_CONTROL,)), "median", layer=_counts_layer(source)
        )


def combosciplex_split(
    conditions: CellTable | Iterable[str], validation_fraction: float = 0.1, seed: int = 0
) -> Split:
    """The published split: TEST is tested, all else trains, validation is taken out of training."""
    return named_split(conditions, TEST, validation_fraction, seed, kind="combosciplex")


def plus_label(label: str) -> str:
    """`control`, `control+A` or `A+B`, drugs in the order of `label`."""
    members = [part.strip() for part in label.split("+") if part.strip().lower() not in _ABSENT]
    return "+".join(members if len(members) > 1 else [_CONTROL, *members])


def _labels(source: Source) -> pd.Series:
    if not any(name in source.obs.columns for name in COLUMNS) and set(DRUG_COLUMNS) <= set(
        source.obs.columns
    ):
        first, second = (source.obs[name].astype(object).fillna("").astype(str) for name in DRUG_COLUMNS)
        return (first + "+" + second).rename("Drug1+Drug2")
    return source.obs[column(source, COLUMNS)]


def _counts_layer(source: Source) -> str | None:
    if COUNTS in source.layers:
        return COUNTS
    if holds_counts(source):
        return None
    raise DataError(
        f"{source.name}: no layer '{COUNTS}' and X holds no counts; the published scale is counts normalised to "
        "their median total: give the copy with its counts"
    )
