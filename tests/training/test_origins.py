"""Which cells tell the prior and the frame what, and which are kept from them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import scdfm
from scdfm.training import origins

OPTIONS = {
    "panel": {"n_genes": 25}, "graph": {"k": 5}, "model": {"width": 16, "heads": 2, "gene_heads": 2, "layers": 1},
    "training": {"max_steps": 2, "warmup_steps": 1, "validate_every": 2, "validation_cells": 4, "accelerator": "cpu",
                 "cells_per_condition": 4, "keep": "last"},
    "flow": {"genes_per_step": 16}, "sampling": {"steps": 1, "cells": 5, "shrink": False},
}  # fmt: skip


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


def test_a_validation_condition_is_predicted_without_its_own_cells(tmp_path: Path) -> None:
    """Other cells of it change what is predicted of others, and nothing of what is predicted of it."""
    screen = scdfm.simulate(n_genes=30, n_targets=5, cells_per_condition=8, n_controls=20, seed=3)
    split = scdfm.additive_split(scdfm.read_cells(screen), fold=0)
    name, test = split.validation[0], split.test[0]
    other = screen.copy()
    other.X = other.X.toarray()
    rows = (other.obs["perturbation"] == name).to_numpy()
    other.X[rows] = 2 * other.X[rows, ::-1]
    found = []
    for place, adata in enumerate((screen, other)):
        run = scdfm.fit(
            scdfm.read_cells(adata),
            split,
            scdfm.Config().updated(OPTIONS),
            out=tmp_path / f"{place}",
            progress=False,
        )
        assert name in run.prior.conditions
        assert name not in run.training_prior.conditions
        found.append([run.predict([asked], seed=1).X.toarray() for asked in (name, test)])
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert (found[0][1] != found[1][1]).any()
