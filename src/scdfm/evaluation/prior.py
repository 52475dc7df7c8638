"""The row `prior`: what a run predicts before any training, its populations scored as those of the prediction are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import scipy.sparse as sp
from tqdm.auto import tqdm

from scdfm.data.cells import CellTable
from scdfm.data.source import open_source
from scdfm.data.stored import gathered
from scdfm.errors import ConditionError, DataError, RunError
from scdfm.evaluation.alignment import Cells, Pair
from scdfm.evaluation.pseudobulk import Population, Rows

if TYPE_CHECKING:
    from anndata import AnnData

PRIOR: Final = "prior"
BLOCK_CELLS: Final = 4096
"""Cells that are predicted together at most, or those of one condition."""
NO_PRIOR: Final = (
    f"no row '{PRIOR}': the flow of this run starts from noise, which predicts nothing before training"
)


class Predictor(Protocol):
    """What predicts whole populations: cells [conditions · n_cells, genes] (log1p), condition after condition."""

    def predict(
        self, conditions: Sequence[str], *, n_cells: int, genes: Sequence[str], seed: int
    ) -> AnnData: ...


@runtime_checkable
class Fitted(Protocol):
    """A run, as far as scores need it: its training means, and the same run before training, if that predicts."""

    @property
    def means(self) -> pd.DataFrame: ...
    def untrained(self) -> Predictor | None: ...


def prior_of(training: Fitted | pd.DataFrame | None) -> tuple[Predictor | None, list[str]]:
    """What predicts the row `prior` where `training` is a run, and a note where a run has none."""
    if training is None or isinstance(training, pd.DataFrame):
        return None, []
    found = training.untrained()
    return found, [NO_PRIOR] if found is None else []


def prior_population(
    prior: Predictor, predicted: Cells, pair: Pair, seed: int, progress: bool = False
) -> tuple[Population | None, list[str]]:
    """Cells of `prior` over the genes of `pair`: of each condition as many as are predicted, with the same seed.

    The seed is the one that `predicted` was made with, where it says so, else `seed`. A condition that `prior` cannot
    predict has no cells; the notes tell. None where that is all of them.
    """
    assert pair.predicted is not None
    options = {"genes": pair.real.genes.tolist(), "seed": _seed(predicted, seed)}
    rows: dict[str, Rows] = {name: np.empty(0, dtype=np.int64) for name in pair.conditions}
    failed: dict[str, str] = {}

    def parts() -> Iterator[sp.csr_matrix]:
        done = 0
        blocks = list(_blocks(pair))
        for names, n in tqdm(blocks, "prior", unit="block", disable=not progress):
            for name, cells in _predicted(prior, names, n, options):
                if isinstance(cells, str):
                    failed[name] = cells
                    continue
                rows[name] = np.arange(done, done + n)
                done += n
                yield cells

    X = gathered(parts(), pair.predicted.X)
    if len(failed) == len(pair.conditions):
        return None, [f"no row '{PRIOR}': {next(iter(failed.values()))}"]
    return Population(X, pair.real.genes, rows), _told(failed)


def _seed(predicted: Cells, default: int) -> int:
    if isinstance(predicted, CellTable):
        return default
    with open_source(predicted) as source:
        return default if source.seed is None else source.seed


def _blocks(pair: Pair) -> Iterator[tuple[list[str], int]]:
    """Conditions that are predicted together, and their number of cells."""
    assert pair.predicted is not None
    by_size: dict[int, list[str]] = {}
    for name in pair.conditions:
        by_size.setdefault(pair.predicted.n_cells(name), []).append(name)
    for n, names in by_size.items():
        size = max(1, BLOCK_CELLS // n)
        yield from ((names[start : start + size], n) for start in range(0, len(names), size))


def _predicted(
    prior: Predictor, names: Sequence[str], n_cells: int, options: dict[str, Any]
) -> Iterator[tuple[str, sp.csr_matrix | str]]:
    """Each of `names` with its cells, or with why it has none."""
    try:
        X = sp.csr_matrix(prior.predict(names, n_cells=n_cells, **options).X)
    except (ConditionError, DataError, RunError) as error:
        if len(names) == 1:
            yield names[0], str(error)
            return
        for name in names:
            yield from _predicted(prior, [name], n_cells, options)
        return
    yield from ((name, X[k * n_cells : (k + 1) * n_cells]) for k, name in enumerate(names))


def _told(failed: dict[str, str]) -> list[str]:
    if not failed:
        return []
    name, why = next(iter(failed.items()))
    return [
        f"{PRIOR}: undefined for {len(failed)} conditions that this run cannot predict (first: {name}: {why})"
    ]
