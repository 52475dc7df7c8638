"""What is said of cells that were read otherwise than their owner may think, and of what else their file holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from scdfm.data.conditions import targets
from scdfm.data.design import Design
from scdfm.data.doses import UNITS, different_units, units_of
from scdfm.data.gene_names import elsewhere
from scdfm.data.kinds import matrices
from scdfm.data.naming import Naming
from scdfm.data.source import Source
from scdfm.data.stored import Matrix, row_lengths
from scdfm.data.values import Reading, Scale
from scdfm.errors import DataError


def of_values(X: Matrix, scale: Scale, reading: Reading, cells: pd.Index, where: str) -> Iterator[str]:
    """Numbers that are no whole counts, and cells without any."""
    if scale.values != reading.values:
        yield (
            f"{where} holds numbers with fractions: taken for corrected or normalised counts, and normalised to "
            f"{scale.target_sum:g} (--values {scale.values})"
        )
    empty = np.flatnonzero(row_lengths(X) == 0)
    if len(empty):
        yield (
            f"{where}: {len(empty)} cells have no gene above 0 (first: cell '{cells[empty[0]]}') and pull means toward 0; "
            "min_genes=1 (--min-genes 1) leaves them out"
        )


def of_doses(obs: pd.DataFrame, design: Design) -> Iterator[str]:
    """Units that doses were written in, where they were."""
    key, unit_key = design.dose_key, design.dose_unit_key
    if key is None:
        return
    units = different_units(obs, unit_key) if unit_key else units_of(map(str, pd.unique(obs[key].dropna())))
    if units:
        said = " and ".join(sorted({UNITS[unit][0] for unit in units}))
        yield f"doses written in {', '.join(units)} are read in {said}"


def of_genes(source: Source, naming: Naming, conditions: Sequence[str]) -> Iterator[str]:
    """Where targets are found that the index of var does not name."""
    every = {target for condition in conditions for target in targets(condition)}
    named = naming.genes is not None or naming.gene_versions == "drop"
    if not named and not every & set(source.genes.tolist()):
        yield from filter(None, [elsewhere(source, every)])


def other_matrices(source: Source, layer: str | None) -> str:
    """Which other matrices of the file can be read and how, as the end of an error."""
    try:
        found = [part for part in matrices(source) if part.layer != layer and part.options is not None]
    except DataError:
        return ""
    told = [
        f"{part.name} holds {part.kind}: {' '.join(part.options or ()) or 'leave --layer out'}"
        for part in found
    ]
    return f"; {'; '.join(told)}" if told else ""
