"""What people do in notebooks: cells run twice, objects kept, the working folder changed, Ctrl-C, copies and pickles."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest

import scdfm
import small
from scdfm.errors import DataError, InterruptedFitError
from scdfm.training.module import FlowModule


@pytest.fixture(scope="module")
def cells() -> scdfm.CellTable:
    return scdfm.read_cells(small.screen(n_genes=24, n_targets=4, cells_per_condition=8, n_controls=20, truth_cells=4))


@pytest.fixture(scope="module")
def run(cells: scdfm.CellTable, tmp_path_factory: pytest.TempPathFactory) -> scdfm.Run:
    return small.run(tmp_path_factory.mktemp("notebook") / "run", cells)


def values(run: scdfm.Run) -> np.ndarray:
    return run.predict(n_cells=3).X.toarray()


def test_a_cell_that_fits_is_run_twice(cells: scdfm.CellTable, run: scdfm.Run) -> None:
    before = values(run)
    with pytest.raises(DataError, match="exists and is not empty; choose another --out"):
        small.run(run.path, cells)
    np.testing.assert_array_equal(values(run), before)


def test_the_working_folder_changes(cells: scdfm.CellTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = small.run(Path("run"), cells)
    found = scdfm.screen(run, out="found", targets=run.manifest.targets[:2], cells=2)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert values(run).shape[1] == len(run.genes)
    assert found.means().shape == (len(found.conditions), len(run.genes))
    run.predict_to("p.h5ad", n_cells=3)
    assert [path.name for path in Path().iterdir()] == ["p.h5ad"]


@pytest.mark.parametrize("moved", [False, True])
def test_ctrl_c_in_a_cell_that_fits(
    cells: scdfm.CellTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    """Also where the folder is moved before the fit goes on: which weights are the best so far is not forgotten."""
    options = small.options(training={"max_steps": 6, "validate_every": 1, "keep": "best", "learning_rate": 0.3})
    config = scdfm.Config().updated(options)
    whole = scdfm.fit(cells, config=config, out=tmp_path / "whole", progress=False)
    step = FlowModule.training_step

    def stops(self: FlowModule, *given: object) -> object:
        if self.global_step == 4:
            raise KeyboardInterrupt
        return step(self, *given)  # type: ignore[arg-type]

    out = tmp_path / "run"
    with mock.patch.object(FlowModule, "training_step", stops), pytest.raises(InterruptedFitError, match="resume"):
        scdfm.fit(cells, config=config, out=out, progress=False)
    if moved:
        out = out.rename(tmp_path / "moved")
    run = scdfm.fit(cells, config=config, out=out, resume=True, progress=False)
    assert (run.path / "weights.safetensors").read_bytes() == (whole.path / "weights.safetensors").read_bytes()
    assert run.manifest.result == whole.manifest.result


def test_copies_and_pickles_are_equal(cells: scdfm.CellTable, run: scdfm.Run) -> None:
    before = values(run)
    for again in (copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))):
        assert again(run.config) == run.config
        assert again(run.split) == run.split
        assert again(run.manifest) == run.manifest
        assert again(cells).digest() == cells.digest()
        pd.testing.assert_frame_equal(again(run.means), run.means)
        np.testing.assert_array_equal(values(again(run)), before)
