"""Reading screens: every storage form gives the same table, and the table keeps what it promises."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from scdfm.data import CONTROL, CellTable, read_cells, targets, values
from scdfm.errors import ConditionError, DataError

LABELS = ["ctrl", "B+A", "A+ctrl", "A+B", "ctrl", "C", "ctrl+A", "B+A", "C+D+A", "ctrl"]
GENES = [f"G{i}" for i in range(12)]


def counts() -> np.ndarray:
    x = np.random.default_rng(0).poisson(1.2, (len(LABELS), len(GENES))).astype(np.float32)
    x[0, 0] = 7
    return x


def screen(x: Any = None, labels: list[str] | None = None) -> ad.AnnData:
    labels = labels or LABELS
    x = np.log1p(counts()) if x is None else x
    obs = pd.DataFrame(
        {"perturbation": pd.Categorical(labels), "line": ["K562", "RPE1"] * (len(labels) // 2)},
        index=[f"cell{i}" for i in range(len(labels))],
    )
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=GENES))


@pytest.fixture(scope="module")
def cells() -> CellTable:
    return read_cells(screen(), control="ctrl")


def test_the_table(cells: CellTable) -> None:
    assert cells.conditions == (CONTROL, "A", "A+B", "A+C+D", "C")
    assert isinstance(cells.X, sp.csr_matrix)
    assert cells.X.dtype == np.float32
    assert cells.X.has_canonical_format
    np.testing.assert_array_equal(cells.X.toarray(), np.log1p(counts()))
    assert cells.genes.tolist() == GENES
    assert cells.codes.dtype == np.int64
    assert [cells.conditions[code] for code in cells.codes[:4]] == [CONTROL, "A+B", "A", "A+B"]
    column = cells.obs["perturbation"]
    assert column.tolist() == [cells.conditions[code] for code in cells.codes]
    assert tuple(column.cat.categories) == cells.conditions
    assert cells.obs["line"].tolist() == ["K562", "RPE1"] * 5
    assert cells.spelling == {CONTROL: "ctrl", "A": "A+ctrl", "A+B": "A+B", "A+C+D": "C+D+A", "C": "C"}
    assert (cells.control, cells.perturbation_key, cells.source) == ("ctrl", "perturbation", None)
    assert cells.scale.to_dict() == {
        "transform": "log1p",
        "target_sum": None,
        "declared": "log1p",
        "layer": None,
        "values": None,
    }
    assert cells.n == 10


def test_rows_means_and_selections(cells: CellTable) -> None:
    assert cells.rows("A+B").tolist() == [1, 3, 7]
    assert cells.n_cells(CONTROL) == 3
    dense = cells.X.toarray().astype(np.float64)
    means = cells.means()
    assert list(means.index) == list(cells.conditions)
    assert list(means.columns) == GENES
    for name in cells.conditions:
        np.testing.assert_allclose(means.loc[name], dense[cells.rows(name)].mean(axis=0), rtol=1e-14)
        np.testing.assert_array_equal(cells.mean(name), means.loc[name])
    assert list(cells.means(["C", "A"]).index) == ["C", "A"]
    assert cells.means([]).shape == (0, 12)
    some = cells.select(["C", "A+B"])
    assert some.conditions == ("A+B", "C")
    assert some.obs.index.tolist() == ["cell1", "cell3", "cell5", "cell7"]
    np.testing.assert_array_equal(some.mean("C"), cells.mean("C"))
    assert set(some.spelling) == {"A+B", "C"}
    turned = cells.take([9, 1, 9])
    assert turned.codes.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(turned.X.toarray(), cells.X.toarray()[[9, 1, 9]])
    assert cells.columns(["G3", "G0"]).tolist() == [3, 0]


def test_means_are_accumulated_in_float64() -> None:
    x = np.full((20_002, 1), 0.1, dtype=np.float32)
    labels = ["control", "control", *["A"] * 20_000]
    table = read_cells(
        ad.AnnData(sp.csr_matrix(x), obs=pd.DataFrame({"perturbation": labels}, index=list(map(str, range(20_002)))))
    )
    assert table.mean("A")[0] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_unknown_names_are_told(cells: CellTable) -> None:
    with pytest.raises(ConditionError, match="condition 'A.Z' is not measured; expected one of the 5 conditions"):
        cells.rows("A+Z")
    with pytest.raises(ConditionError, match="did you mean 'A.C.D'"):
        cells.select(["A+C+E"])
    with pytest.raises(DataError, match=r"2 of 3 genes are not in the data \(first: 'Q'\)"):
        cells.columns(["G1", "Q", "R"])


def test_cells_are_required_where_they_are_used(cells: CellTable) -> None:
    cells.require_cells(["A+B", "A", CONTROL])
    with pytest.raises(ConditionError, match="condition 'C' has 1 cell, expected at least 2; leave it out"):
        cells.require_cells(["A", "C"])
    with pytest.raises(ConditionError, match="condition 'A' has 2 cells, expected at least 3"):
        cells.require_cells(["A"], at_least=3)
    assert read_cells(screen(), control="ctrl", min_cells=2).conditions == (CONTROL, "A", "A+B")
    with pytest.raises(DataError, match="min_cells is 0"):
        read_cells(screen(), control="ctrl", min_cells=0)


def test_digest_follows_values_genes_cells_and_conditions(cells: CellTable) -> None:
    assert read_cells(screen(), control="ctrl").digest() == cells.digest()
    x = np.log1p(counts())
    x[3, 3] += 0.5
    relabelled = [*LABELS[:-1], "C"]
    renamed = screen()
    renamed.var_names = ["Q0", *GENES[1:]]
    other_cell = screen()
    other_cell.obs_names = ["x", *other_cell.obs_names[1:]]
    others = [screen(x), screen(labels=relabelled), renamed, other_cell]
    digests = {read_cells(other, control="ctrl").digest() for other in others}
    assert len(digests | {cells.digest()}) == 5


def test_to_adata_reads_back(cells: CellTable, tmp_path: Path) -> None:
    adata = cells.to_adata()
    adata.write_h5ad(tmp_path / "again.h5ad")
    again = read_cells(tmp_path / "again.h5ad")
    assert again.digest() == cells.digest()
    assert again.source == tmp_path / "again.h5ad"
    assert again.obs["line"].tolist() == cells.obs["line"].tolist()


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "dense": np.asarray,
    "dense float64": lambda x: x.astype(np.float64),
    "dense float16": lambda x: x.astype(np.float16),
    "dense Fortran": np.asfortranarray,
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "csr array": sp.csr_array,
    "csc array float64": lambda x: sp.csc_array(x.astype(np.float64)),
    "csr of stored zeros": lambda x: sp.csr_matrix((x.ravel(), np.tile(np.arange(12), 10), np.arange(0, 121, 12))),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["memory", "h5ad", "zarr 2", "zarr 3", "backed", "view", "layer"])
def test_every_form_gives_the_same_table(form: str, place: str, tmp_path: Path) -> None:
    """Halves of whole numbers, so that no form rounds."""
    x = counts() / 2
    expected = read_cells(screen(x), control="ctrl")
    made = FORMS[form](x)
    source: Any = screen(made)
    layer = None
    if place == "view":
        twice = ad.concat([source, source], index_unique="-")
        source = twice[:10, GENES]
        assert source.is_view
        expected = read_cells(ad.concat([screen(x)], keys=["0"], index_unique="-"), control="ctrl")
    elif place == "layer":
        source = ad.AnnData(sp.csr_matrix((10, 12), dtype=np.float32), source.obs, source.var, layers={"values": made})
        layer = "values"
    elif place != "memory":
        source = _stored(source, place, tmp_path)
    table = read_cells(source, control="ctrl", layer=layer)
    assert table.digest() == expected.digest()
    assert table.scale.layer == layer


def _stored(adata: ad.AnnData, place: str, folder: Path) -> Any:
    if place.startswith("zarr"):
        # Writing warns of defaults to come; reading must not warn.
        with ad.settings.override(zarr_write_format=int(place[-1])), warnings.catch_warnings(action="ignore"):
            adata.write_zarr(folder / "screen.zarr")
        return folder / "screen.zarr"
    adata.write_h5ad(folder / "screen.h5ad")
    return ad.read_h5ad(folder / "screen.h5ad", backed="r") if place == "backed" else str(folder / "screen.h5ad")


def test_a_view_of_cells_and_genes() -> None:
    adata = screen(sp.csr_matrix(np.log1p(counts())))
    view = adata[adata.obs["line"] == "K562", GENES[:5]]
    table = read_cells(view, control="ctrl")
    np.testing.assert_array_equal(table.X.toarray(), np.log1p(counts())[::2, :5])
    assert view.is_view


def test_the_input_is_left_alone() -> None:
    x = sp.csr_matrix(counts())
    x.data[:3] = 0  # stored zeros, which the table drops
    adata = screen(x)
    before = (adata.X.data.copy(), adata.X.indices.copy(), adata.X.indptr.copy(), adata.obs.copy())
    table = read_cells(adata, control="ctrl", target_sum=100)
    table.X.data[:] = 0
    for now, then in zip((adata.X.data, adata.X.indices, adata.X.indptr), before[:3], strict=True):
        np.testing.assert_array_equal(now, then)
    pd.testing.assert_frame_equal(adata.obs, before[3])


@pytest.mark.filterwarnings("ignore:Some cells have zero counts")
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32, np.uint8, np.int64, np.uint64])
@pytest.mark.parametrize("sparse", [False, True])
def test_counts_are_normalised_as_scanpy_does(kind: type, sparse: bool) -> None:
    x = counts().astype(kind)
    x[5] = 0  # a cell without counts stays zero
    expected = screen(x.astype(np.float64))
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    table = read_cells(screen(sp.csr_matrix(x) if sparse else x), control="ctrl", target_sum=1e4)
    np.testing.assert_allclose(table.X.toarray(), expected.X, rtol=1e-6)
    assert table.scale.to_dict() == {
        "transform": "log1p",
        "target_sum": 1e4,
        "declared": "counts",
        "layer": None,
        "values": None,
    }
    assert table.X[5].nnz == 0


@pytest.mark.filterwarnings("ignore:Some cells have zero counts")
def test_median_total_is_scanpys() -> None:
    x = counts()
    x[5] = 0
    expected = screen(x.astype(np.float64))
    sc.pp.normalize_total(expected)
    sc.pp.log1p(expected)
    table = read_cells(screen(x), control="ctrl", target_sum="median")
    np.testing.assert_allclose(table.X.toarray(), expected.X, rtol=1e-6)
    assert table.scale.target_sum == np.median(np.delete(x, 5, axis=0).sum(axis=1))


def test_huge_counts_stay_finite() -> None:
    x = counts().astype(np.float64)
    x[0, 0] = 1e9
    table = read_cells(screen(x), control="ctrl", target_sum=1e4)
    assert np.isfinite(table.X.data).all()
    assert table.X[0, 0] == pytest.approx(np.log1p(1e4), rel=1e-5)


def test_subset_by_columns(tmp_path: Path) -> None:
    adata = screen(sp.csc_matrix(np.log1p(counts())))
    adata.obs["batch"] = pd.Categorical([1, 1, 1, 1, 1, 1, 2, 2, 2, 2])
    adata.write_h5ad(tmp_path / "s.h5ad")
    for source in (adata, tmp_path / "s.h5ad"):
        table = read_cells(source, control="ctrl", subset={"line": "K562", "batch": "1"})
        assert table.obs.index.tolist() == ["cell0", "cell2", "cell4"]
        assert table.conditions == (CONTROL, "A")
        assert list(table.obs["batch"].cat.categories) == [1]
        np.testing.assert_array_equal(table.X.toarray(), np.log1p(counts())[[0, 2, 4]])


def test_dense_files_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen().write_h5ad(tmp_path / "dense.h5ad")
    whole = read_cells(tmp_path / "dense.h5ad", control="ctrl")
    seen: list[tuple[int, ...]] = []
    csr = sp.csr_matrix

    def spy(matrix: Any, *args: Any, **options: Any) -> Any:
        if isinstance(matrix, np.ndarray):
            seen.append(matrix.shape)
        return csr(matrix, *args, **options)

    monkeypatch.setattr(values, "_BLOCK_VALUES", 36)
    monkeypatch.setattr(values.sp, "csr_matrix", spy)
    assert read_cells(tmp_path / "dense.h5ad", control="ctrl").digest() == whole.digest()
    assert seen == [(3, 12), (3, 12), (3, 12), (1, 12)]


def test_unused_categories_repeated_cells_and_number_labels() -> None:
    adata = screen()
    adata.obs["perturbation"] = adata.obs["perturbation"].cat.add_categories(["never", "A+A"])
    table = read_cells(adata, control="ctrl")
    assert "never" not in table.conditions
    twice = ad.AnnData(np.log1p(counts()), obs=adata.obs.copy(), var=adata.var)
    twice.obs_names = ["x"] * 10
    assert read_cells(twice, control="ctrl").obs.index.tolist()[:3] == ["x", "x-1", "x-2"]
    drugs = screen()
    drugs.obs["perturbation"] = [0, 1] * 5
    assert read_cells(drugs, control="0").conditions == (CONTROL, "1")


def test_controls_alone_are_a_table() -> None:
    table = read_cells(screen(labels=["ctrl"] * 10), control="ctrl")
    assert table.conditions == (CONTROL,)
    assert table.n_cells(CONTROL) == 10


@pytest.mark.parametrize("name", ["тест+ген", "HLA-A/B", "x" * 3000, "<script>alert(1)</script>", "A B", "日本"])
def test_unusual_names(name: str, tmp_path: Path) -> None:
    adata = screen(labels=["ctrl", name] * 5)
    adata.write_h5ad(tmp_path / "s.h5ad")
    table = read_cells(tmp_path / "s.h5ad", control="ctrl")
    assert set(targets(table.conditions[1])) == set(name.split("+"))


def test_real_norman_cells(shared: Path) -> None:
    path = shared / "data" / "perturbench_devel.h5ad"
    table = read_cells(path, subset={"dataset": "norman19"})
    assert table.X.shape == (3375, 500)
    assert table.n_cells(CONTROL) == 100
    sizes = [len(targets(name)) for name in table.conditions]
    assert (sizes.count(1), sizes.count(2)) == (18, 15)
    raw = ad.read_h5ad(path)
    rows = (raw.obs["dataset"] == "norman19").to_numpy()
    mean = np.asarray(raw.X[rows & (raw.obs["perturbation"] == "KLF1+MAP2K6").to_numpy()].todense(), np.float64).mean(
        axis=0
    )
    np.testing.assert_allclose(table.mean("KLF1+MAP2K6"), mean, rtol=1e-6)


def test_real_counts_of_two_screens(shared: Path) -> None:
    kang = read_cells(
        shared / "data" / "kang_pbmc.h5ad", "group_id", "ctrl", target_sum="median", subset={"cluster_id": "B cells"}
    )
    assert kang.conditions == (CONTROL, "stim")
    assert set(kang.obs["cluster_id"]) == {"B cells"}
    with pytest.raises(DataError, match=r"kang_pbmc\.h5ad: X holds whole numbers only, .* pass target_sum"):
        read_cells(shared / "data" / "kang_pbmc.h5ad", "group_id", "ctrl")
