"""The published results, as facts in a table: what each method reached on each split (arXiv 2602.07103)."""

from __future__ import annotations

from importlib import resources
from typing import Final

import pandas as pd

PUBLISHED_METRICS: Final = (
    "l2", "mse", "mae", "de_spearman", "pearson_delta", "ds", "pearson_delta_hat", "pearson_delta_hat_20",
)  # fmt: skip
"""Columns of figures; l2, mse and mae are better when smaller, the others when larger."""


def published(dataset: str | None = None, split: str | None = None) -> pd.DataFrame:
    """Columns dataset, split, part, model and PUBLISHED_METRICS (NaN where nothing was published)."""
    with resources.files("scdfm.datasets").joinpath("published.csv").open(encoding="utf-8") as handle:
        table = pd.read_csv(handle)
    if dataset is not None:
        table = table[table["dataset"] == dataset]
    if split is not None:
        table = table[table["split"] == split]
    return table.reset_index(drop=True)
