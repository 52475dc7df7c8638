"""One screen, two runs and a prediction for all cases."""

from __future__ import annotations

from pathlib import Path

import pytest

import scdfm
from bad_input.bench import SMALL, Bench, simulated


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The files that every case starts from."""
    folder = tmp_path_factory.mktemp("good")
    simulated(3).write_h5ad(folder / "screen.h5ad")
    runs = []
    for seed in (0, 1):
        cells = scdfm.read_cells(folder / "screen.h5ad")
        config = scdfm.Config().with_settings([*SMALL, f"seed={seed}"])
        runs.append(scdfm.fit(cells, config=config, out=folder / f"run{seed}", progress=False))
    runs[0].predict(n_cells=4).write_h5ad(folder / "predicted.h5ad")
    return Bench(folder / "screen.h5ad", runs[0].path, runs[1].path, folder / "predicted.h5ad", folder)


@pytest.fixture
def bench(good: Bench, tmp_path: Path) -> Bench:
    """The good files and a folder of the test's own."""
    return Bench(good.screen, good.run, good.other_run, good.predicted, tmp_path)
