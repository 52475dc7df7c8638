"""Files in the forms that people have: MuData, no X, columns that cannot be read, names that are odd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata.io import write_elem

from scdfm.data import read_cells, tables
from scdfm.data.inspection import inspect
from scdfm.errors import DataError

LABELS = np.repeat(["control", "A", "B"], [40, 20, 20])


def screen(**columns: Any) -> ad.AnnData:
    obs = pd.DataFrame({"perturbation": LABELS, **columns}, index=[f"c{i}" for i in range(len(LABELS))])
    X = np.random.default_rng(0).poisson(3.0, (len(obs), 5)).astype(np.float32)
    return ad.AnnData(sp.csr_matrix(X), obs=obs, var=pd.DataFrame(index=["A", "B", "C", "D", "E"]))


def write_mudata(path: Path, modalities: dict[str, ad.AnnData], obs: pd.DataFrame) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:
        file.attrs["encoding-type"] = "MuData"
        write_elem(file, "obs", obs)
        group = file.create_group("mod")
        for name, adata in modalities.items():
            write_elem(group, name, adata)


def test_the_genes_of_a_mudata_file_are_read_with_what_all_modalities_say(tmp_path: Path) -> None:
    rna, guides = screen(), screen(guide=LABELS)[::-1, :2].copy()
    del rna.obs["perturbation"]
    shared = pd.DataFrame({"rna:perturbation": LABELS, "donor": "d1"}, index=rna.obs_names)[::-1]
    write_mudata(tmp_path / "f.h5mu", {"gdo": guides, "rna": rna}, shared)
    cells = read_cells(tmp_path / "f.h5mu", target_sum=1e4)
    counts = rna.X.toarray()
    wanted = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    np.testing.assert_allclose(cells.mean("A"), wanted[LABELS == "A"].mean(0), rtol=1e-6)
    assert {"donor", "gdo:guide"} <= set(cells.obs.columns)
    assert read_cells(tmp_path / "f.h5mu", "gdo:guide", target_sum=1e4).conditions == cells.conditions
    found = inspect(tmp_path / "f.h5mu")
    assert any("MuData file: its modality 'rna' is read" in note for note in found.notes)
    assert found.n_genes == 5


def test_a_mudata_file_without_rna_says_how_to_take_a_modality_out(tmp_path: Path) -> None:
    path = tmp_path / "f.h5mu"
    write_mudata(path, {"adt": screen(), "gdo": screen()}, screen().obs)
    with pytest.raises(DataError, match="MuData file of the modalities adt, gdo.*expected one called rna") as caught:
        read_cells(path)
    code = str(caught.value).split("in Python: ")[1].replace("NAME", "adt").replace("'adt.h5ad'", "out")
    eval(code, {"anndata": ad, "h5py": h5py, "out": tmp_path / "adt.h5ad"})
    assert read_cells(tmp_path / "adt.h5ad", target_sum=1e4).n == 80


def test_a_file_without_x_names_its_layers(tmp_path: Path) -> None:
    adata = screen()
    adata.layers["counts"] = adata.X.copy()
    adata.write_h5ad(tmp_path / "f.h5ad")
    with h5py.File(tmp_path / "f.h5ad", "a") as file:
        del file["X"]
        nothing = file.create_dataset("X", data=h5py.Empty("f"))
        nothing.attrs["encoding-type"], nothing.attrs["encoding-version"] = "null", "0.1.0"
    with pytest.raises(DataError, match=r"has no X; name one of its layers with --layer .*: counts"):
        read_cells(tmp_path / "f.h5ad")
    assert "--layer counts --target-sum 10000" in str(inspect(tmp_path / "f.h5ad").line)
    assert read_cells(tmp_path / "f.h5ad", layer="counts", target_sum=1e4).n == 80


def test_a_column_that_cannot_be_read_is_left_out_and_told(tmp_path: Path) -> None:
    screen(note="x").write_h5ad(tmp_path / "f.h5ad")
    with h5py.File(tmp_path / "f.h5ad", "a") as file:
        file["obs/note"].attrs["encoding-type"] = "of-the-future"
    cells = read_cells(tmp_path / "f.h5ad", target_sum=1e4)
    assert cells.n_cells("A") == 20
    assert any("obs['note'] cannot be read and is left out" in note for note in cells.notes)
    with pytest.raises(DataError, match="covariate column 'note' of obs cannot be read"):
        read_cells(tmp_path / "f.h5ad", target_sum=1e4, covariates=["note"])


def test_names_of_columns_are_texts_without_blanks_and_marks() -> None:
    adata = screen()
    adata.obs[0] = 1.5
    adata.obs["cell_type "] = np.where(np.arange(80) % 2, "T cells", " T cells ")
    adata.obs.columns = ["\ufeffperturbation", *adata.obs.columns[1:]]
    adata.var_names = ["A ", "B", "C", "D", "E"]
    assert inspect(adata).line is not None
    cells = read_cells(adata, target_sum=1e4, covariates=["cell_type"], subset={"cell_type": "T cells"})
    assert cells.conditions == ("control", "A|cell_type=T cells", "B|cell_type=T cells")
    assert cells.n == 80
    assert cells.genes.tolist() == ["A", "B", "C", "D", "E"]
    assert "0" in cells.obs.columns


def test_numbers_are_chosen_by_their_shortest_text() -> None:
    adata = screen(batch=np.repeat([1.0, 2.0], 40))
    for text in ("2", "2.0"):
        assert read_cells(adata, target_sum=1e4, subset={"batch": "1"}).n == 40
        with pytest.raises(DataError, match="matches no cell; values of 'batch' are '1', '2'"):
            read_cells(adata, target_sum=1e4, subset={"batch": f"{text}5"})


def test_a_missing_column_names_its_option() -> None:
    adata = screen().copy()
    adata.obs.columns = ["gene"]
    for options, flag in (({}, "--perturbation-key"), ({"perturbation_key": "gene", "dose_key": "d"}, "--dose-key")):
        with pytest.raises(DataError, match=f"its columns are gene: name one of them with .*{flag}"):
            read_cells(adata, target_sum=1e4, **options)


@pytest.mark.parametrize("on_disk", [True, False])
def test_many_cells_are_looked_at_by_their_kinds(
    on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    adata = screen(
        cell_type=np.tile(["x", "y"], 40), dose=np.where(LABELS == "control", np.nan, rng.choice([1.0, 2.0], 80)),
        depth=rng.random(80), barcode=[f"b{i}" for i in range(80)], batch=pd.Categorical(np.tile(["p", "q"], 40)),
    )  # fmt: skip
    adata.write_h5ad(tmp_path / "f.h5ad")
    source = tmp_path / "f.h5ad" if on_disk else adata
    whole = inspect(source)
    monkeypatch.setattr(tables, "MANY", 10)
    monkeypatch.setattr("scdfm.data.source.MANY", 10)
    monkeypatch.setattr(tables, "_VALUES", 20)
    assert inspect(source).to_dict() == whole.to_dict()
    monkeypatch.setattr(tables, "_KINDS", 8)
    fewer = inspect(source)
    assert fewer.perturbation == whole.perturbation
    assert (fewer.n_controls, fewer.n_cells) == (40, 80)
    assert any("not looked at: " in note for note in fewer.notes)
