"""One screen, two runs and a prediction for all cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import scdfm
from bad_input.bench import SMALL, Bench, designed, simulated


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
    targets = runs[0].manifest.targets
    scdfm.screen(runs[0], out=folder / "screened", targets=targets, cells=3)
    designed(3).write_h5ad(folder / "designed.h5ad")
    cells = scdfm.read_cells(folder / "designed.h5ad", covariates=["cell_type"], dose_key="dose", time_key="time")
    features = pd.DataFrame({"a": range(3), "b": [1.0, 0.0, 1.0]}, index=targets)
    runs.append(
        scdfm.fit(
            cells,
            config=scdfm.Config().with_settings(SMALL),
            features=features,
            out=folder / "designed",
            progress=False,
        )
    )
    return Bench(
        folder / "screen.h5ad", runs[0].path, runs[1].path, folder / "predicted.h5ad", folder / "designed.h5ad",
        runs[2].path, folder / "screened", folder,
    )  # fmt: skip


@pytest.fixture
def bench(good: Bench, tmp_path: Path) -> Bench:
    """The good files and a folder of the test's own."""
    return replace(good, folder=tmp_path)
