"""Genes by a column of var, and features that are no genes."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scdfm.data import read_cells
from scdfm.data.inspection import inspect
from scdfm.errors import DataError

COUNTS = np.array([[1, 0, 3, 9], [2, 5, 0, 1], [4, 1, 1, 7], [0, 2, 2, 5]], dtype=np.float32)
LABELS = ("control", "control", "A", "A")

ID = "ENSG00000141510"


def screen(var: pd.DataFrame) -> ad.AnnData:
    """Four cells of counts."""
    obs = pd.DataFrame({"perturbation": LABELS}, index=[f"cell{i}" for i in range(4)])
    return ad.AnnData(sp.csr_matrix(COUNTS), obs=obs, var=var)


def by_hand(counts: np.ndarray) -> np.ndarray:
    """log1p of counts per 100 [4, A]."""
    return np.log1p(counts / counts.sum(1, keepdims=True) * 100)


def test_a_column_names_genes() -> None:
    var = pd.DataFrame({"gene_name": ["A", "B", None, "B"]}, index=["E1", "E2", "E3", "E4"])
    cells = read_cells(screen(var), target_sum=100, genes="gene_name")
    assert cells.genes.tolist() == ["A", "B", "E3", "B-1"]
    np.testing.assert_allclose(cells.mean("A"), by_hand(COUNTS)[2:].mean(0), rtol=1e-6)
    assert ["1 genes have no name" in note for note in cells.notes[:2]] == [True, False]
    assert "the first keeps it" in cells.notes[1]
    with pytest.raises(DataError, match="gene column 'gene_names' is not in var.*did you mean 'gene_name'"):
        read_cells(screen(var), target_sum=100, genes="gene_names")


def test_a_column_names_genes_where_numbers_are_the_index() -> None:
    var = pd.DataFrame({"feature_name": ["A", "B", "C", "D"]}, index=["0", "1", "2", "3"])
    cells = read_cells(screen(var), target_sum=100, genes="feature_name")
    assert cells.genes.tolist() == ["A", "B", "C", "D"]


@pytest.mark.parametrize("backed", [False, True])
def test_features_of_other_types_count_for_nothing(backed: bool, tmp_path) -> None:
    kinds = ["Gene Expression", "Gene Expression", "Gene Expression", "CRISPR Guide Capture"]
    screen(pd.DataFrame({"feature_types": kinds}, index=["A", "B", "C", "A_sg1"])).write_h5ad(tmp_path / "x.h5ad")
    for target_sum in (100, "median"):
        cells = read_cells(tmp_path / "x.h5ad", target_sum=target_sum, backed=backed)
        assert cells.genes.tolist() == ["A", "B", "C"]
        total = np.median(COUNTS[:, :3].sum(1)) if target_sum == "median" else 100
        expected = np.log1p(COUNTS[:, :3] / COUNTS[:, :3].sum(1, keepdims=True) * total)
        np.testing.assert_allclose(cells.mean("control"), expected[:2].mean(0), rtol=1e-6)
    assert any("1 features are left out" in note and "CRISPR Guide Capture" in note for note in cells.notes)


def test_targets_that_another_column_names_are_told() -> None:
    var = pd.DataFrame({"symbol": ["A", "B", "C", "D"]}, index=["E1", "E2", "E3", "E4"])
    (note,) = read_cells(screen(var), target_sum=100).notes
    assert "1 of 1 targets are genes by var['symbol']" in note
    assert "--gene-column symbol" in note
    assert not read_cells(screen(var), target_sum=100, genes="symbol").notes


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ([f"{ID}.7", "B", "C", "D"], f"without the version that var has ('{ID}' is '{ID}.7'): drop versions"),
        ([ID.lower(), "B", "C", "D"], f"in another case than var has ('{ID}' is '{ID.lower()}'): rename the labels"),
    ],
)
def test_targets_that_are_spelled_otherwise_are_told(index: list[str], words: str) -> None:
    adata = screen(pd.DataFrame(index=index))
    adata.obs["perturbation"] = ["control", "control", ID, ID]
    (note,) = read_cells(adata, target_sum=100).notes
    assert words in note
    if "version" in words:  # inspect has the option in its line
        assert "--gene-versions drop" in str(inspect(adata).decisions)
    else:
        assert any(words in pitfall for pitfall in inspect(adata).pitfalls)
