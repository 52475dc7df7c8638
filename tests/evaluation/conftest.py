"""Small simulated screens that the evaluation is tried on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scdfm.data.cells import CellTable
from scdfm.data.reading import read_cells
from scdfm.data.simulate import simulate


@pytest.fixture(scope="session")
def screen() -> CellTable:
    """A screen with strong interactions: 120 genes, 8 singles, their doubles, 60 cells each."""
    return read_cells(simulate(n_genes=120, n_targets=8, cells_per_condition=60, n_controls=150, truth_cells=1, seed=3))


@pytest.fixture(scope="session")
def held_out(screen: CellTable) -> list[str]:
    """Doubles kept for the test."""
    return [condition for condition in screen.conditions if "+" in condition][::2]


@pytest.fixture(scope="session")
def cells_as():
    """AnnData of some rows of a table under new names and new labels."""

    def build(table: CellTable, rows: np.ndarray, labels: list[str]) -> AnnData:
        obs = pd.DataFrame({"perturbation": labels}, index=[f"p{i}" for i in range(len(labels))])
        return AnnData(table.X[rows], obs=obs, var=pd.DataFrame(index=table.genes.astype(object)))

    return build


@pytest.fixture(scope="session")
def noisy(screen: CellTable, held_out: list[str], cells_as) -> AnnData:
    """A prediction of the test conditions: 15 of their cells each among 15 control cells."""
    rng = np.random.default_rng(0)
    rows = [
        rng.choice(screen.rows(source), 15, replace=False)
        for condition in held_out
        for source in (condition, "control")
    ]
    return cells_as(screen, np.concatenate(rows), list(np.repeat(held_out, 30)))
