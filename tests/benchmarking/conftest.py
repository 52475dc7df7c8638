"""A small screen, options for fits of a second, and a peer's predictions of it."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import scdfm
import small


@pytest.fixture(scope="session")
def screen() -> ad.AnnData:
    return small.screen(n_targets=6)


@pytest.fixture(scope="session")
def cells(screen) -> scdfm.CellTable:
    return scdfm.read_cells(screen)


@pytest.fixture(scope="session")
def peer(screen, cells, tmp_path_factory):
    """Somebody's predictions: a path, and the way to write one of chosen conditions and genes."""
    folder = tmp_path_factory.mktemp("peer")

    def write(name: str, conditions=None, n_genes: int = 50):
        labels = screen.obs["perturbation"].astype(str)
        wanted = set(cells.conditions[1:] if conditions is None else conditions)
        predicted = screen[np.isin(labels, sorted(wanted)), :n_genes].copy()
        predicted.X = predicted.X * 0.95
        predicted.write_h5ad(folder / name)
        return folder / name

    return write
