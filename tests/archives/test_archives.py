"""What earlier releases wrote is loaded, predicted from, gone on with and ranked, with the numbers of then."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdfm
from scdfm.errors import RunError

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import make  # noqa: E402

ARCHIVES = sorted(path.name for path in HERE.iterdir() if (path / "run").is_dir())


@pytest.fixture(params=ARCHIVES)
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy that may be written into."""
    return Path(shutil.copytree(HERE / request.param, tmp_path / request.param))


def same(found: ad.AnnData, expected: ad.AnnData) -> None:
    """Another machine's sums differ in their last digits, which may carry a value over zero."""
    assert found.obs_names.equals(expected.obs_names)
    assert found.var_names.equals(expected.var_names)
    pd.testing.assert_frame_equal(found.obs.astype(str), expected.obs.astype(str))
    assert np.isclose(found.X.toarray(), expected.X.toarray(), atol=1e-4).mean() > 0.99


def test_there_is_one() -> None:
    assert ARCHIVES


def test_a_run_predicts_what_it_did(archive: Path) -> None:
    expected = ad.read_h5ad(archive / "predicted.h5ad")
    names = list(expected.obs["perturbation"].cat.categories)
    run = scdfm.Run.load(archive / "run")
    same(run.predict(names, seed=1), expected)
    other = run.predict(names, seed=2)
    assert np.isclose(other.X.toarray(), expected.X.toarray(), atol=1e-4).mean() < 0.99  # what the comparison can tell


def test_a_run_of_the_last_format_before_the_first_release_is_one_of_today(archive: Path) -> None:
    path = archive / "run" / "manifest.json"
    text = path.read_text()
    assert '"format": 1,' in text
    names = scdfm.Run.load(archive / "run").split.train[:1]
    expected = scdfm.Run.load(archive / "run").predict(names, n_cells=5)
    path.write_text(text.replace('"format": 1,', '"format": 8,'))
    assert (scdfm.Run.load(archive / "run").predict(names, n_cells=5).X != expected.X).nnz == 0
    path.write_text(text.replace('"format": 1,', '"format": 7,'))
    with pytest.raises(RunError, match=r"made before the first release \(format 7, this one reads 1\)"):
        scdfm.Run.load(archive / "run")


def test_a_prediction_goes_on(archive: Path) -> None:
    expected = ad.read_h5ad(archive / "predicted.h5ad")
    names = list(expected.obs["perturbation"].cat.categories)
    scdfm.Run.load(archive / "run").predict_to(archive / "half.h5ad", names, seed=1, resume=True)
    same(ad.read_h5ad(archive / "half.h5ad"), expected)
    assert not (archive / "half.h5ad.parts").exists()


def test_a_fit_goes_on(archive: Path) -> None:
    cells = scdfm.read_cells(archive / "screen.h5ad")
    said: list[str] = []
    run = scdfm.fit(cells, config=make.config(), out=archive / "begun", resume=True, progress=False, say=said.append)
    assert run.manifest.result["step"] == 4
    assert run.config.flow.pairing == "random"
    assert said == ["the fit was begun by scdfm 0.1.0 and goes on with its random pairs (flow.pairing)"]
    expected = np.load(archive / "fitted.npz")
    for name, value in run.field.state_dict().items():
        np.testing.assert_allclose(value.numpy(), expected[name], atol=1e-4, err_msg=name)


def test_a_screen_is_opened_and_ranked_anew(archive: Path) -> None:
    found = scdfm.Screen.load(archive / "ranked")
    assert found.is_complete
    assert len(found.proposed) == 1
    assert found.cells(found.conditions[0]).n_obs == 4
    table = found.table.set_index("condition")
    run = scdfm.Run.load(archive / "run")
    options = {"out": archive / "ranked", "cells": 4, "keep_cells": True, "resume": True}
    again = scdfm.screen(run, rank_by="uncertainty", **options)
    anew = again.table.set_index("condition").loc[table.index]
    np.testing.assert_allclose(anew["energy"], table["energy"], rtol=1e-4)
    assert again.table["uncertainty"].is_monotonic_decreasing


def test_a_benchmark_goes_on(archive: Path) -> None:
    before = pd.read_csv(archive / "bench" / "scores.csv", keep_default_na=False, na_values={"value": [""]})
    cells = scdfm.read_cells(archive / "screen.h5ad")
    found = scdfm.benchmark(cells, out=archive / "bench", resume=True, progress=False, **make.BENCHMARK)
    keys = ["model", "fold", "seed", "beside", "condition", "metric"]
    both = before.merge(found.scores, on=keys, suffixes=("", "_anew"))
    assert len(both) == len(before) == len(found.scores)
    np.testing.assert_allclose(both["value_anew"], both["value"], rtol=1e-3, atol=1e-4)


def test_what_came_after_a_release_tells_fits_apart_where_it_says_something(archive: Path) -> None:
    manifest = scdfm.Run.load(archive / "run").manifest
    weighted = manifest.config.updated({"training": {"screen_weights": {"a": 2.0}}})
    later = [
        manifest.model_copy(update={"config": weighted}),
        manifest.model_copy(update={"unmeasured": {"a": manifest.panel[:1]}}),
    ]
    assert len({one.identity for one in (manifest, *later)}) == 3
