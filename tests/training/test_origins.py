"""Which cells tell the prior and the frame how far cells spread."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

import scdfm
from scdfm.training import origins


def inputs(genes: list[str]) -> Any:
    return SimpleNamespace(manifest=SimpleNamespace(seed=0), panel=SimpleNamespace(genes=genes))


def table(n_cells: int) -> scdfm.CellTable:
    return scdfm.read_cells(
        scdfm.simulate(n_genes=30, n_targets=4, cells_per_condition=n_cells, n_controls=400, seed=1)
    )


def test_variances_are_those_of_cells_around_their_conditions() -> None:
    cells = table(60)
    names = [name for name in cells.conditions if name != "control"]
    residual = origins._residual(cells, names, inputs(list(cells.genes)))
    assert len(residual.cells) == 60 * len(names)
    within = [cells.take(cells.rows(name)).X.toarray().var(axis=0, ddof=1) for name in names]
    np.testing.assert_allclose(residual.variances(), np.mean(within, axis=0), rtol=1e-4)


def test_one_cell_each_takes_the_spread_of_the_controls() -> None:
    cells = table(60)
    names = [name for name in cells.conditions if name != "control"]
    few = cells.take(
        np.sort(np.concatenate([cells.rows("control"), *(cells.rows(name)[:1] for name in names)]))
    )
    residual = origins._residual(few, names, inputs(list(cells.genes)))
    controls = few.take(few.rows("control")).X.toarray()
    assert len(residual.cells) == len(controls)
    np.testing.assert_allclose(residual.variances(), controls.var(axis=0, ddof=1), rtol=1e-4)
    np.testing.assert_array_equal(residual.means, residual.controls)
