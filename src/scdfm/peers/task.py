"""What a method of others is handed, a folder with training cells and what to predict; and what it answered.

The answer is checked: its cells are brought to the screen's genes, and the facts it tells are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scdfm.data import CONTROL, CellTable
from scdfm.data.conditions import parse
from scdfm.data.gene_names import read_genes
from scdfm.data.source import open_source
from scdfm.data.values import to_csr
from scdfm.errors import DataError
from scdfm.evaluation.alignment import few, predicted_names
from scdfm.files import new_folder, read_text, write_h5ad, write_json

if TYPE_CHECKING:
    from anndata import AnnData

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
    write_h5ad(folder / TRAIN, adata, compression=None)
    write_json(folder / TASK, described(task))


def described(task: Task) -> dict[str, Any]:
    """The entries of task.json."""
    table = task.training
    train = [name for name in table.conditions if name != CONTROL]
    return {
        "predict": list(task.conditions), "train": train, "control": CONTROL,
        "perturbation_key": table.perturbation_key, "covariates": list(table.covariates),
        "match_controls": list(table.design.match),
        "conditions": {name: _parts(name) for name in (*train, *task.conditions)},
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
        source_genes = read_genes(source, naming.genes, naming.gene_versions)
        places = pd.Index(source_genes.names).get_indexer(pd.Index(genes))
        rows = pd.Index(source.obs.index.astype(str)).get_indexer(pd.Index(table.obs.index.astype(str)))
        if min(places.min(initial=0), rows.min(initial=0)) < 0:
            return None
        columns = places if source_genes.columns is None else source_genes.columns[places]
        matrix = to_csr(source.matrix(layer), np.asarray(rows, dtype=np.int64), source.name)
        return matrix[:, columns].astype(np.float32)


@dataclass(frozen=True)
class Answer:
    """Predicted cells of some of the conditions asked for, over the genes asked for, no value below 0.

    `below_zero` is the share of values that were cut at 0; `facts` what the method tells of itself; `notes` what was done.
    """

    cells: AnnData
    conditions: tuple[str, ...]
    below_zero: float
    facts: dict[str, Any]
    notes: tuple[str, ...]


def read_answer(folder: Path, task: Task) -> Answer:
    """The answer to `task` in `folder`; DataError where it cannot be scored: no such file, genes missing, NaN."""
    from anndata import AnnData, read_h5ad

    path, key = folder / PREDICTED, task.training.perturbation_key
    if not path.is_file():
        raise DataError(f"it wrote no {PREDICTED}; expected one in the folder it is given")
    try:
        adata = read_h5ad(path)
    except Exception as error:  # whatever the reader raises, the file is of no use
        raise DataError(f"{PREDICTED} cannot be read ({error}); write it with AnnData.write_h5ad") from error
    if key not in adata.obs:
        raise DataError(
            f"{PREDICTED} has no obs column '{key}'; write the condition of each cell there, as in train.h5ad"
        )
    adata = adata[adata.obs[key].notna().to_numpy()]
    X, notes = _of_genes(adata, task.genes)
    names = predicted_names(adata.obs, key, task.training.naming, task.training, PREDICTED)
    held = tuple(name for name in task.conditions if name in set(names))
    if not held:
        raise DataError(f"{PREDICTED} holds none of the {len(task.conditions)} conditions asked for")
    if foreign := sorted(set(names) - {*task.conditions, CONTROL}):
        notes.append(f"{len(foreign)} conditions were not asked for and are not scored ({few(foreign)})")
    kept = np.isin(names.astype(str), held)
    X, names = X[kept], names[kept]
    if not np.isfinite(X.data).all():
        row = int(np.searchsorted(X.indptr, np.flatnonzero(~np.isfinite(X.data))[0], side="right")) - 1
        raise DataError(
            f"{int((~np.isfinite(X.data)).sum())} values of {PREDICTED} are not finite (first: condition '{names[row]}')"
        )
    below = X.data < 0
    share = float(below.sum() / max(1, X.shape[0] * X.shape[1]))
    if share:
        notes.append(f"{share:.2%} of its values were below 0 (lowest {X.data.min():.3g}), cut at 0")
    X.data[below] = 0
    X.eliminate_zeros()
    if missing := [name for name in task.conditions if name not in held]:
        notes.append(f"scored on {len(held)} of {len(task.conditions)} test conditions; not predicted: {few(missing)}")
    facts, more = _facts(folder)
    obs = pd.DataFrame({key: names.astype(str)}, index=[str(i) for i in range(len(names))])
    cells = AnnData(X, obs=obs, var=pd.DataFrame(index=pd.Index(task.genes, dtype=object)))
    return Answer(cells, held, share, facts, (*notes, *more))


def _of_genes(adata: AnnData, genes: Sequence[str]) -> tuple[sp.csr_matrix, list[str]]:
    """The values [cells × genes], and a note on genes that were not asked for."""
    if adata.X is None:
        raise DataError(f"{PREDICTED} has no X; expected log1p values there")
    index = pd.Index(adata.var_names.astype(str))
    if index.has_duplicates:
        raise DataError(f"gene names of {PREDICTED} repeat; expected each gene of task.json once")
    places = index.get_indexer(pd.Index(genes))
    if (places < 0).any():
        missing = [gene for gene, place in zip(genes, places, strict=True) if place < 0]
        raise DataError(
            f"{PREDICTED} lacks {len(missing)} of the {len(genes)} genes asked for ({few(missing)}); expected all of them"
        )
    try:
        X = sp.csr_matrix(adata.X, dtype=np.float32)[:, places]
    except (TypeError, ValueError) as error:
        raise DataError(f"X of {PREDICTED} is no matrix of numbers ({error})") from error
    foreign = sorted(set(index) - set(genes))
    return X, [f"{len(foreign)} genes were not asked for and are not scored ({few(foreign)})"] if foreign else []


def _facts(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """facts.json where there is one, and a note where it cannot be read."""
    if not (folder / FACTS).is_file():
        return {}, []
    try:
        facts = json.loads(read_text(folder / FACTS))
    except (OSError, ValueError, RecursionError) as error:
        return {}, [f"{FACTS} cannot be read ({error}) and is left out"]
    return (facts, []) if isinstance(facts, dict) else ({}, [f"{FACTS} is no JSON object and is left out"])
