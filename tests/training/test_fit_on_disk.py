"""A fit on cells that stay on disk is the fit on cells in memory, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import scdfm
import small
from scdfm.data.stored import RowsFile, StoredMatrix

OPTIONS = small.options(
    panel={"n_genes": 25},
    flow={"genes_per_step": 16},
    training={"max_steps": 3, "validate_every": 3, "keep_controls": 20},
)


def test_weights_and_predictions(tmp_path: Path) -> None:
    screen = scdfm.simulate(n_genes=40, n_targets=4, cells_per_condition=12, n_controls=30, truth_cells=8, seed=3)
    order = np.random.default_rng(0).permutation(screen.n_obs)
    screen[order].copy().write_h5ad(tmp_path / "screen.h5ad")
    runs = []
    for backed in (False, True):
        cells = scdfm.read_cells(tmp_path / "screen.h5ad", backed=backed)
        assert isinstance(cells.X, StoredMatrix) == backed
        out = tmp_path / f"run{backed}"
        config = scdfm.Config().updated(OPTIONS)
        runs.append(scdfm.fit(cells, config=config, out=out, progress=False))
    manifests = [json.loads((run.path / "manifest.json").read_text()) for run in runs]
    digests = [manifest.pop("digests") for manifest in manifests]
    assert manifests[0] == manifests[1]
    # The file of control cells holds when it was written; its cells are compared below.
    stored = [digest.pop("controls.h5ad") for digest in digests]
    assert all(stored)
    assert digests[0] == digests[1]
    assert runs[0].controls.digest() == runs[1].controls.digest()
    first, second = (run.predict(seed=1, controls=tmp_path / "screen.h5ad") for run in runs)
    assert (first.X != second.X).nnz == 0
    # Controls on disk give the same population too.
    cells = scdfm.read_cells(tmp_path / "screen.h5ad", backed=True)
    assert (runs[0].predict(seed=1, controls=cells).X != first.X).nnz == 0


def test_no_pass_reads_more_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 20 cells, and a few conditions of a step: however many cells there are, no read takes more."""
    for place in ("stored.BLOCK_ROWS", "reading.BLOCK_ROWS", "cells.BLOCK_ROWS", "graph._BLOCK_ROWS"):
        monkeypatch.setattr(f"scdfm.data.{place}", 20)
    monkeypatch.setattr("scdfm.training.prepared.SPREAD_CELLS", 20)
    monkeypatch.setattr("scdfm.run.counts.LAW_CELLS", 60)
    reads: list[int] = []
    read = RowsFile.read

    def counted(file: RowsFile, rows: np.ndarray) -> object:
        reads.append(len(rows))
        return read(file, rows)

    monkeypatch.setattr(RowsFile, "read", counted)
    screen = scdfm.simulate(n_genes=40, n_targets=4, cells_per_condition=30, n_controls=300, truth_cells=8, seed=3)
    screen.write_h5ad(tmp_path / "screen.h5ad")
    cells = scdfm.read_cells(tmp_path / "screen.h5ad", backed=True)
    config = scdfm.Config().updated(OPTIONS).updated({"flow": {"pairing_cells": 8}})
    scdfm.fit(cells, config=config, out=tmp_path / "run", progress=False)
    assert len(reads) > 20
    assert max(reads) <= 60 < cells.n / 5
