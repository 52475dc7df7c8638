"""What a method of others is handed: a folder with the training cells, and a file that says what to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scdfm.data import CONTROL, CellTable
from scdfm.data.conditions import parse
from scdfm.data.gene_names import read_genes
from scdfm.data.source import open_source
from scdfm.data.values import to_csr
from scdfm.files import new_folder, write_json, written_whole

TRAIN: Final = "train.h5ad"
TASK: Final = "task.json"
PREDICTED: Final = "predicted.h5ad"
FACTS: Final = "facts.json"
LOG: Final = "log.txt"
COUNTS: Final = "counts"
"""Layer of raw counts, in the screen's file and in the folder."""


@dataclass(frozen=True)
class Task:
    """What is asked of a method: `cells` populations of each of `conditions`, over `genes`, within `budget` seconds.

    `training` are control and training cells alone. `extra` are further entries of task.json.
    """

    training: CellTable
    conditions: tuple[str, ...]
    genes: tuple[str, ...]
    seed: int
    budget: float
    cells: int
    extra: Mapping[str, Any] = field(default_factory=dict)


def write_task(folder: Path, task: Task) -> None:
    """Leave train.h5ad and task.json in a new folder.

    train.h5ad: X log1p [cells × genes], the layer `counts` where the screen's file has raw counts, and the columns of obs
    that conditions are read from. task.json: see docs/peers.md.
    """
    new_folder(folder)
    table = task.training
    adata = _restricted(table, task.genes).to_adata()
    key, design = table.perturbation_key, table.design
    optional = (design.dose_key, design.dose_unit_key, design.time_key)
    columns = dict.fromkeys((key, *design.covariates, *design.match, *(name for name in optional if name)))
    adata.obs = adata.obs[[name for name in columns if name in adata.obs]]
    if (counts := _counts(table, task.genes)) is not None:
        adata.layers[COUNTS] = counts
    with written_whole(folder / TRAIN) as path:
        adata.write_h5ad(path)
    write_json(folder / TASK, described(task))


def described(task: Task) -> dict[str, Any]:
    """The entries of task.json."""
    table = task.training
    known = [name for name in table.conditions if name != CONTROL]
    return {
        "predict": list(task.conditions), "train": known, "control": CONTROL,
        "perturbation_key": table.perturbation_key, "covariates": list(table.covariates),
        "match_controls": list(table.design.match),
        "conditions": {name: _parts(name) for name in (*known, *task.conditions)},
        "genes": list(task.genes), "target_sum": table.scale.target_sum, "counts": _layer(table),
        "cells": task.cells, "seed": task.seed, "budget": task.budget, **task.extra,
    }  # fmt: skip


def _parts(name: str) -> dict[str, Any]:
    """A condition's targets, their doses, covariates and time."""
    made = parse(name)
    return {
        "targets": [one.target for one in made.perturbations],
        "doses": [one.dose for one in made.perturbations],
        "covariates": dict(made.covariates),
        "time": made.time,
    }


def _restricted(table: CellTable, genes: Sequence[str]) -> CellTable:
    columns = table.columns(genes)
    return replace(table, X=table.X[:, columns], genes=table.genes[columns])


def _layer(table: CellTable) -> str | None:
    """Where the screen's file holds raw counts: the layer that was read as such, else a layer `counts`."""
    if table.source is None:
        return None
    if table.scale.declared == "counts":
        return table.scale.layer or "X"
    with open_source(table.source) as source:
        return COUNTS if COUNTS in source.layers else None


def _counts(table: CellTable, genes: Sequence[str]) -> sp.csr_matrix | None:
    """Raw counts of the table's cells; None where its file has none for each of them."""
    if (layer := _layer(table)) is None or table.source is None:
        return None
    with open_source(table.source) as source:
        naming = table.naming
        found = read_genes(source, naming.genes, naming.gene_versions)
        places = pd.Index(found.names).get_indexer(pd.Index(genes))
        rows = pd.Index(source.obs.index.astype(str)).get_indexer(pd.Index(table.obs.index.astype(str)))
        if min(places.min(initial=0), rows.min(initial=0)) < 0:
            return None
        columns = places if found.columns is None else found.columns[places]
        matrix = to_csr(source.matrix(layer), np.asarray(rows, dtype=np.int64), source.name)
        return matrix[:, columns].astype(np.float32)
