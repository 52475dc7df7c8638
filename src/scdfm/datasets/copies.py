"""What the readers of public data sets share: columns and gene names as the known copies spell them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from scdfm.data.source import Source
from scdfm.data.values import to_csr
from scdfm.errors import DataError

LABEL: Final = "perturbation"
"""Column of obs that holds the condition in the tables read."""
SYMBOL_COLUMNS: Final = (
    "gene_name", "gene_symbol", "gene_symbols", "gene_names", "feature_name", "gene_short_name", "symbol",
)  # fmt: skip
_ENSEMBL: Final = re.compile(r"ENSG\d{6,}(\.\d+)?")
_ROWS_LOOKED_AT: Final = 200


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
            from anndata.utils import make_index_unique

            unique = make_index_unique(pd.Index(source.var[name].astype(str)))
            return np.asarray(unique, dtype=np.str_)
    raise DataError(
        f"{source.name}: genes are named by Ensembl ids and var has no column of symbols, expected one of "
        f"{', '.join(SYMBOL_COLUMNS)}: targets are symbols"
    )


def holds_counts(source: Source) -> bool:
    """Whether X begins with whole numbers only. The reader checks all of it against what this declares."""
    rows = np.arange(min(_ROWS_LOOKED_AT, len(source.obs)))
    values = to_csr(source.matrix(None), rows, f"{source.name}: X").data
    return bool(len(values)) and bool(np.all(values == np.rint(values)))
