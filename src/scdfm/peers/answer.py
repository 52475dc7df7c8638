"""What a method of others answered: its cells, checked and brought to the screen's genes, and the facts it tells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scdfm.data import CONTROL
from scdfm.errors import DataError
from scdfm.evaluation.alignment import predicted_names
from scdfm.files import read_text
from scdfm.peers.task import FACTS, PREDICTED, Task

if TYPE_CHECKING:
    from anndata import AnnData


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
        found = read_h5ad(path)
    except Exception as error:  # whatever the reader raises, the file is of no use
        raise DataError(f"{PREDICTED} cannot be read ({error}); write it with AnnData.write_h5ad") from error
    if key not in found.obs:
        raise DataError(
            f"{PREDICTED} has no obs column '{key}'; write the condition of each cell there, as in train.h5ad"
        )
    found = found[found.obs[key].notna().to_numpy()]
    X, notes = _of_genes(found, task.genes)
    names = predicted_names(found.obs, key, task.training.naming, task.training, PREDICTED)
    held = tuple(name for name in task.conditions if name in set(names))
    if not held:
        raise DataError(f"{PREDICTED} holds none of the {len(task.conditions)} conditions asked for")
    if foreign := sorted(set(names) - {*task.conditions, CONTROL}):
        notes.append(f"{len(foreign)} conditions were not asked for and are not scored ({_few(foreign)})")
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
        notes.append(
            f"scored on {len(held)} of {len(task.conditions)} test conditions; not predicted: {_few(missing)}"
        )
    facts, more = _facts(folder)
    obs = pd.DataFrame({key: names.astype(str)}, index=[str(i) for i in range(len(names))])
    cells = AnnData(X, obs=obs, var=pd.DataFrame(index=pd.Index(task.genes, dtype=object)))
    return Answer(cells, held, share, facts, (*notes, *more))


def _of_genes(found: AnnData, genes: Sequence[str]) -> tuple[sp.csr_matrix, list[str]]:
    """The values [cells × genes], and a note on genes that were not asked for."""
    if found.X is None:
        raise DataError(f"{PREDICTED} has no X; expected log1p values there")
    index = pd.Index(found.var_names.astype(str))
    if index.has_duplicates:
        raise DataError(f"gene names of {PREDICTED} repeat; expected each gene of task.json once")
    places = index.get_indexer(pd.Index(genes))
    if (places < 0).any():
        missing = [gene for gene, place in zip(genes, places, strict=True) if place < 0]
        raise DataError(
            f"{PREDICTED} lacks {len(missing)} of the {len(genes)} genes asked for ({_few(missing)}); expected all of them"
        )
    try:
        X = sp.csr_matrix(found.X, dtype=np.float32)[:, places]
    except (TypeError, ValueError) as error:
        raise DataError(f"X of {PREDICTED} is no matrix of numbers ({error})") from error
    foreign = sorted(set(index) - set(genes))
    return X, [
        f"{len(foreign)} genes were not asked for and are not scored ({_few(foreign)})"
    ] if foreign else []


def _facts(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """facts.json where there is one, and a note where it cannot be read."""
    if not (folder / FACTS).is_file():
        return {}, []
    try:
        found = json.loads(read_text(folder / FACTS))
    except (OSError, ValueError, RecursionError) as error:
        return {}, [f"{FACTS} cannot be read ({error}) and is left out"]
    return (found, []) if isinstance(found, dict) else ({}, [f"{FACTS} is no JSON object and is left out"])


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
