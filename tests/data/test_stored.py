"""Cells on disk: every number, draw and message is that of cells in memory."""

from __future__ import annotations

import errno
import os
import re
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scdfm.config import PanelConfig
from scdfm.data import (
    CellTable,
    ConditionSampler,
    Split,
    coexpression_graph,
    read_cells,
    reading,
    select_genes,
    simulate,
)
from scdfm.data import stored as module
from scdfm.data.panel import gene_moments
from scdfm.data.stored import RowsWriter, StoredMatrix, blocks, stacked, subset
from scdfm.errors import DataError


@pytest.fixture(scope="module")
def screen() -> ad.AnnData:
    adata = simulate(n_genes=80, n_targets=5, cells_per_condition=20, n_controls=60, truth_cells=20, seed=1)
    rng = np.random.default_rng(0)
    return adata[rng.permutation(adata.n_obs)].copy()  # conditions are scattered over the file


@pytest.fixture(scope="module")
def path(screen: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("screen") / "screen.h5ad"
    screen.write_h5ad(path)
    return path


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks even of few cells."""
    for place in ("scdfm.data.stored", "scdfm.data.reading", "scdfm.data.cells"):
        monkeypatch.setattr(f"{place}.BLOCK_ROWS", 37)


def equal(found: sp.csr_matrix, expected: sp.csr_matrix) -> None:
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.indptr, expected.indptr)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.data, expected.data)
    assert found.dtype == expected.dtype


def both(path: Path, **options: object) -> tuple[CellTable, CellTable]:
    memory, disk = (read_cells(path, backed=backed, **options) for backed in (False, True))  # type: ignore[arg-type]
    assert isinstance(memory.X, sp.csr_matrix)
    assert isinstance(disk.X, StoredMatrix)
    return memory, disk


@pytest.mark.parametrize("rows", [[], [3], [5, 4, 4, 190, 0], list(range(20, 60)), list(range(0, 200, 3))])
def test_rows_in_any_order(path: Path, rows: list[int]) -> None:
    memory, disk = both(path)
    places = np.array(rows, dtype=np.int64)
    equal(disk.X[places], memory.X[places])
    columns = np.array([7, 3, 50])
    np.testing.assert_array_equal(disk.X[:, columns][places].toarray(), memory.X[places][:, columns].toarray())
    view = subset(disk.X, np.arange(199, -1, -1), np.arange(10, 40))
    np.testing.assert_array_equal(view[places].toarray(), memory.X[199 - places][:, 10:40].toarray())


def test_slices_views_sums_and_copies(path: Path) -> None:
    memory, disk = both(path)
    equal(disk.X[11:49], memory.X[11:49])
    equal(sp.csr_matrix(sp.vstack(list(blocks(disk.X)))), memory.X)
    view = disk.X.subset(np.arange(0, 100, 2), np.arange(5, 60, 5))
    expected = memory.X[0:100:2][:, 5:60:5]
    assert view.shape == expected.shape
    equal(view.compacted()[:], expected)
    assert view.sum() == pytest.approx(expected.astype(np.float64).sum(), rel=1e-12)
    equal(stacked(view, expected)[:], sp.csr_matrix(sp.vstack([expected, expected])))
    with pytest.raises(TypeError, match="rows first"):
        disk.X[np.arange(3), np.arange(3)]


@pytest.mark.parametrize("form", ["csr", "dense", "zarr", "gzip"])
@pytest.mark.parametrize("target_sum", [None, 1e4, "median"])
def test_every_form_and_declaration_gives_the_same_table(
    screen: ad.AnnData, tmp_path: Path, form: str, target_sum: object
) -> None:
    adata = screen.copy()
    if target_sum is not None:
        adata.X.data = np.rint(np.expm1(adata.X.data))
    if form == "dense":
        adata.X = adata.X.toarray()
    path = tmp_path / ("screen.zarr" if form == "zarr" else "screen.h5ad")
    if form == "zarr":
        with ad.settings.override(zarr_write_format=3), warnings.catch_warnings(action="ignore"):
            adata.write_zarr(path)
    else:
        adata.write_h5ad(path, compression="gzip" if form == "gzip" else None)
    memory, disk = both(path, target_sum=target_sum, min_cells=2, subset=None)
    equal(disk.X[:], memory.X)
    assert disk.scale == memory.scale
    assert disk.digest() == memory.digest()
    some = [name for name in memory.conditions if "+" in name]
    assert disk.select(some).digest() == memory.select(some).digest()
    pd.testing.assert_frame_equal(disk.means(), memory.means(), check_exact=True)
    pd.testing.assert_frame_equal(disk.means(some), memory.means().loc[some], check_exact=True)
    np.testing.assert_array_equal(disk.to_adata().X.toarray(), memory.X.toarray())


def test_chosen_cells_alone_are_read(path: Path) -> None:
    name = read_cells(path).conditions[3]
    adata = ad.read_h5ad(path)
    adata.obs["kept"] = np.where(adata.obs["perturbation"].isin(["control", name]), "yes", "no")
    memory = read_cells(adata, subset={"kept": "yes"})
    disk = read_cells(adata, subset={"kept": "yes"}, backed=True)
    assert disk.conditions == ("control", name)
    equal(disk.X[:], memory.X)


def test_panel_graph_and_batches_are_the_same_bits(path: Path) -> None:
    memory, disk = both(path)
    names = memory.conditions[1:]
    split = Split("file", 0, train=names[:-3], validation=names[-3:-1], test=names[-1:])
    for flavor in ("seurat", "cell_ranger"):
        config = PanelConfig(n_genes=30, flavor=flavor)  # type: ignore[arg-type]
        panels = [select_genes(cells, split, config) for cells in (memory, disk)]
        assert panels[0] == panels[1]
    columns, rows = memory.columns(panels[0].genes), np.arange(0, memory.n, 2)
    graphs = [coexpression_graph(subset(cells.X, rows, columns), 5) for cells in (memory, disk)]
    np.testing.assert_array_equal(*graphs)
    for linear in (True, False):
        moments = [vars(gene_moments(cells.X, linear)) for cells in (memory, disk)]
        for name, values in moments[0].items():
            np.testing.assert_array_equal(moments[1][name], values)
    samplers = [
        ConditionSampler(cells, split, panels[0], np.random.default_rng(4), n_conditions=3, n_cells=7)
        for cells in (memory, disk)
    ]
    for _ in range(3):
        first, second = (sampler.sample() for sampler in samplers)
        assert first.conditions == second.conditions
        assert (first.control == second.control).all()
        assert (first.target == second.target).all()


def test_size_decides_where_nothing_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(read_cells(path).X, sp.csr_matrix)
    monkeypatch.setattr(reading, "STORED_ABOVE", 1000)
    assert isinstance(read_cells(path).X, StoredMatrix)
    assert isinstance(read_cells(ad.read_h5ad(path)).X, sp.csr_matrix)  # it is in memory already
    backed = ad.read_h5ad(path, backed="r")
    assert isinstance(read_cells(backed).X, StoredMatrix)
    backed.file.close()


def test_scratch_files_have_no_name(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cells = read_cells(path, backed=True)
    assert not list(tmp_path.iterdir())
    os.utime(path)
    assert cells.X[:].nnz


def test_values_are_checked_on_the_way(screen: ad.AnnData, tmp_path: Path) -> None:
    def message(values: sp.csr_matrix, **options: object) -> str:
        adata = screen.copy()
        adata.X = values
        adata.write_h5ad(tmp_path / "bad.h5ad")
        found = []
        for backed in (False, True):
            with pytest.raises(DataError) as caught:
                read_cells(tmp_path / "bad.h5ad", backed=backed, **options)  # type: ignore[arg-type]
            # Reading stops at the first bad block, so only its bad values are counted.
            found.append(re.sub(r"\d+ such values", "such values", str(caught.value)))
        assert found[0] == found[1]
        return found[0]

    X = screen.X.copy()
    X.data[-1] = np.nan
    assert "nan for gene" in message(X)
    X.data[-1] = -1
    assert "no negative value" in message(X)
    X.data[-1] = 21
    assert "log1p values of at most 20" in message(X)
    X.data = np.rint(X.data)
    assert "look like raw counts" in message(X)
    X.data[:] = 0
    assert "holds only zeros" in message(X)
    assert "holds log1p values" in message(screen.X, target_sum=1e4)
    assert "holds log1p values" in message(screen.X, target_sum="median")


def test_csc_is_refused_on_disk_alone(screen: ad.AnnData, tmp_path: Path) -> None:
    adata = screen.copy()
    adata.X = sp.csc_matrix(adata.X)
    adata.write_h5ad(tmp_path / "csc.h5ad")
    assert read_cells(tmp_path / "csc.h5ad").X.nnz
    with pytest.raises(DataError, match=r"CSC matrix.*write it as CSR"):
        read_cells(tmp_path / "csc.h5ad", backed=True)


def test_a_full_or_missing_scratch_disk_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with pytest.raises(DataError, match=r"scratch file in /nowhere cannot be written.*TMPDIR"):
        read_cells(path, backed=True)


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RowsWriter(3)

    def full(*given: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "write", full)
    with pytest.raises(DataError, match="No space left"):
        writer.append(sp.csr_matrix(np.ones((2, 3), dtype=np.float32)))


def test_a_cut_scratch_file_is_named(path: Path) -> None:
    cells = read_cells(path, backed=True)
    os.truncate(cells.X._file.values._file, 10)  # type: ignore[union-attr]
    with pytest.raises(DataError, match="cut short"):
        cells.X[np.arange(5)]


def test_many_rows_cost_few_reads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = read_cells(path, backed=True)
    calls = []
    read = os.preadv
    monkeypatch.setattr(module.os, "preadv", lambda *given: calls.append(given) or read(*given))
    cells.X[np.arange(0, 200, 2)]
    assert len(calls) == 2


def test_rows_are_the_same_without_the_call_that_reads_anywhere(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = read_cells(path, backed=True)
    rows = np.array([5, 1, 200, 7])
    expected = cells.X[rows].toarray()
    monkeypatch.delattr(module.os, "preadv")
    np.testing.assert_array_equal(cells.X[rows].toarray(), expected)
