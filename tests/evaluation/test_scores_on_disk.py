"""Scores of cells on disk are those of cells in memory, bit for bit."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdfm
from scdfm.data.stored import StoredMatrix
from scdfm.evaluation import expression
from scdfm.evaluation.alignment import align
from scdfm.evaluation.expression import against_control


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A prediction without control cells, on other genes in another order, and real cells in a random one."""
    folder = tmp_path_factory.mktemp("files")
    options = {"n_genes": 40, "n_targets": 4, "n_controls": 40, "truth_cells": 8}
    real = scdfm.simulate(cells_per_condition=12, seed=1, **options)
    claim = scdfm.simulate(cells_per_condition=9, seed=1, **options)
    claim.X.data *= np.random.default_rng(1).uniform(0.8, 1.2, claim.X.nnz).astype(np.float32)
    order = np.random.default_rng(0).permutation(real.n_obs)
    real[order].copy().write_h5ad(folder / "real.h5ad")
    kept = claim[claim.obs["perturbation"].isin(list(claim.obs["perturbation"].unique())[2:])]
    kept[:, kept.var_names[::-1][:36]].copy().write_h5ad(folder / "claim.h5ad")
    return folder / "claim.h5ad", folder / "real.h5ad"


@pytest.mark.parametrize("protocol", ["scdfm", "paper"])
def test_every_score_is_the_same(
    files: tuple[Path, Path], protocol: scdfm.evaluation.Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expression, "BATCH_CELLS", 30)  # a few conditions at a time
    genes = 20 if protocol == "paper" else None
    memory, disk = (
        scdfm.evaluate(*files, protocol=protocol, genes=genes, check_scale=False, backed=backed, seed=1)
        for backed in (False, True)
    )
    pd.testing.assert_frame_equal(disk, memory, check_exact=True)
    assert disk.attrs == memory.attrs
    assert memory["value"].notna().mean() > 0.5


def test_tests_are_taken_a_few_conditions_at_a_time(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = scdfm.read_cells(files[1], backed=True)
    pair = align(None, real)
    assert isinstance(pair.real.X, StoredMatrix)
    monkeypatch.setattr(expression, "BATCH_CELLS", 1)
    sizes, tested = [], expression.tested
    monkeypatch.setattr(expression, "tested", lambda *given: sizes.append(given[0].X.shape[0]) or tested(*given))
    found = against_control(pair.real, pair.conditions, "control")
    assert len(sizes) > 2
    assert max(sizes) <= 2 * real.n_cells("control")
    expected = against_control(align(None, files[1], backed=False).real, pair.conditions, "control")
    np.testing.assert_array_equal(found.p_value, expected.p_value)
    np.testing.assert_array_equal(found.z, expected.z)


def test_a_report_of_cells_on_disk(files: tuple[Path, Path], tmp_path: Path) -> None:
    from scdfm.report import evaluate_files

    claim = ad.read_h5ad(files[0])
    pages = []
    for backed in (False, True):
        real = scdfm.read_cells(files[1], backed=backed)
        found = evaluate_files(claim, real, tmp_path / str(backed), metrics=["l2", "energy"])
        pages.append(found.path.read_text())
    assert pages[0] == pages[1]
