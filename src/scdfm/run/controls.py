"""Control cells of a file, read as the cells of a run were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pandas as pd

from scdfm.data.cells import CellTable
from scdfm.data.conditions import CONTROL, SEPARATOR
from scdfm.data.design import Design
from scdfm.data.naming import Naming
from scdfm.data.reading import cells_of
from scdfm.data.recognise import looks_like_control
from scdfm.data.source import Source, open_source
from scdfm.run.manifest import Manifest


def read_controls(
    cells: Any, manifest: Manifest, reading: Mapping[str, Any] | None = None, backed: bool | None = None
) -> CellTable:
    """Control cells of a file or an AnnData, read as the run's were but for the options of `read_cells` in `reading`.

    A file without the column of labels, and without any other that names control cells, is one of control cells alone.
    """
    asked = manifest.control_reading | dict(reading or {})
    naming = Naming(**{field.name: asked[field.name] for field in fields(Naming)})
    design = Design(asked["covariates"], None, None, asked["match_controls"], asked["control_fallback"])
    with open_source(cells) as source:
        return cells_of(
            _labelled(source, asked["perturbation_key"]), asked["perturbation_key"], naming, asked["target_sum"],
            asked["layer"], asked.get("subset"), design=design, backed=backed, strict=False, values=asked["values"],
            min_genes=asked.get("min_genes", 0),
        )  # fmt: skip


def _labelled(source: Source, key: str) -> Source:
    """`source` with all cells labelled as control, where it has no labels."""
    obs = source.obs
    texts = [obs.iloc[:, at] for at, kind in enumerate(obs.dtypes) if not pd.api.types.is_numeric_dtype(kind)]
    named = any(looks_like_control(str(label)) for values in texts for label in pd.unique(values.dropna()))
    if key in obs.columns or SEPARATOR in key or named:
        return source
    note = f"there is no column '{key}', and none that names control cells: all {len(obs)} cells are taken for control"
    return replace(source, obs=obs.assign(**{key: CONTROL}), notes=(*source.notes, note))
