"""Files larger than memory from the command line: cells stay on disk by themselves, predictions resume."""

from __future__ import annotations

import anndata as ad
import pandas as pd
import pytest

import scdfm
from scdfm.data import reading
from scdfm.run import shards

OPTIONS = {
    "panel": {"n_genes": 20},
    "graph": {"k": 5},
    "model": {"width": 16, "gene_heads": 2, "layers": 1},
    "training": {"max_steps": 1, "warmup_steps": 0, "validate_every": 1, "cells_per_condition": 4,
                 "validation_cells": 4, "accelerator": "cpu"},
    "sampling": {"steps": 1, "cells": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    screen = scdfm.simulate(n_genes=30, n_targets=4, cells_per_condition=8, n_controls=20, truth_cells=8, seed=3)
    screen.write_h5ad(folder / "screen.h5ad")
    config = scdfm.Config().updated(OPTIONS)
    scdfm.fit(scdfm.read_cells(screen), config=config, out=folder / "run", progress=False)
    return folder


def test_size_decides_and_the_user_is_told(call, folder, monkeypatch):
    asked = ["predict", folder / "run", "--out", folder / "p.h5ad", "--test", "--quiet", "--overwrite"]
    assert call(*asked)[0] == 0
    files = ["evaluate", folder / "p.h5ad", folder / "screen.h5ad", "--run", folder / "run"]
    assert "stay on disk" not in call(*files, "--out", folder / "memory")[2]
    monkeypatch.setattr(reading, "STORED_ABOVE", 100)
    code, _, err = call(*files, "--out", folder / "disk")
    assert (code, "larger than 2 GiB, so its cells stay on disk (--in-memory: do not)" in err) == (0, True)
    assert "stay on disk" not in call(*files, "--out", folder / "chosen", "--in-memory")[2]
    tables = [pd.read_csv(folder / name / "scores.csv") for name in ("memory", "disk", "chosen")]
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    pd.testing.assert_frame_equal(tables[0], tables[2], check_exact=True)


def test_a_prediction_is_resumed_as_zarr(call, folder, monkeypatch):
    out = folder / "p.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(shards.Shards, "join", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        call("predict", folder / "run", "--out", out, "--test", "--quiet")
    assert not out.exists()
    code, _, err = call("predict", folder / "run", "--out", out, "--test", "--quiet")
    assert (code, "continue it with --resume" in err) == (2, True)
    code, said, _ = call("predict", folder / "run", "--out", out, "--test", "--quiet", "--resume")
    run = scdfm.Run.load(folder / "run")
    assert code == 0
    assert f"{4 * len(run.split.test)} cells × {len(run.genes)} genes, {len(run.split.test)} conditions" in said
    assert (ad.read_zarr(out).X != run.predict().X).nnz == 0
