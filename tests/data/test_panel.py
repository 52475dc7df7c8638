"""The gene panel: chosen on training cells, targets forced in, nothing learnt from the test."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from scdfm.config import PanelConfig
from scdfm.data import CellTable, GenePanel, Split, read_cells, select_genes
from scdfm.data.panel import gene_moments, normalised_dispersion
from scdfm.errors import ConditionError, DataError
from scdfm.processes import openmp_threads_kept

GENES = [f"G{i:03d}" for i in range(120)]
SPLIT = Split("file", 0, train=("G003", "G004"), validation=("G003+G005",), test=("G007", "G003+OUT"))
CONDITIONS = ["control", *SPLIT.conditions]


def screen(loud_in: str | None = None) -> CellTable:
    """30 cells a condition; the genes from 100 on vary wildly in the cells of condition `loud_in` alone."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(1, 2, 120) * rng.gamma(2, 0.5, (30 * len(CONDITIONS), 120))
    rate[:, :10] = 0.3 * rng.gamma(5, 0.2, (len(rate), 10))  # the targets hardly vary
    counts = rng.poisson(rate).astype(np.float32)
    labels = np.repeat(CONDITIONS, 30)
    if loud_in:
        counts[np.ix_(labels == loud_in, np.arange(100, 120))] *= rng.poisson(0.5, (30, 20)) * 200
    adata = ad.AnnData(
        sp.csr_matrix(counts),
        obs=pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(len(labels))]),
        var=pd.DataFrame(index=GENES),
    )
    return read_cells(adata, target_sum=1e4)


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger"])
def test_scanpy_on_training_cells_and_every_target(flavor: str) -> None:
    cells = screen()
    panel = select_genes(cells, SPLIT, PanelConfig(n_genes=30, flavor=flavor))  # type: ignore[arg-type]
    training = cells.select(["control", *SPLIT.train]).to_adata()
    if flavor == "cell_ranger":
        sc.pp.filter_genes(training, min_cells=1)
    with openmp_threads_kept():
        sc.pp.highly_variable_genes(training, n_top_genes=30, flavor=flavor)
    variable = set(training.var_names[training.var["highly_variable"]])
    targets = {"G003", "G004", "G005", "G007"}  # OUT is not measured
    assert set(panel.genes) == variable | targets
    assert targets - variable
    assert panel.n_variable == 30
    assert list(panel.genes) == [gene for gene in GENES if gene in set(panel.genes)]


@pytest.mark.parametrize("flavor", ["seurat", "cell_ranger"])
def test_dispersions_are_scanpys(flavor: str) -> None:
    adata = screen().to_adata()
    sc.pp.filter_genes(adata, min_cells=1)
    with openmp_threads_kept():
        sc.pp.highly_variable_genes(adata, n_top_genes=30, flavor=flavor)
    moments = gene_moments(adata.X, linear=flavor == "seurat")
    found = normalised_dispersion(moments.mean, moments.variance, flavor)
    np.testing.assert_allclose(found, adata.var["dispersions_norm"], rtol=1e-5, atol=1e-6)
    dense = adata.X.toarray().astype(np.float64)
    np.testing.assert_allclose(gene_moments(adata.X, linear=False).variance, dense.var(axis=0, ddof=1))


@pytest.mark.parametrize("condition", ["G007", "G003+G005"])
def test_cells_of_test_and_validation_choose_nothing(condition: str) -> None:
    quiet, loud = screen(), screen(loud_in=condition)
    config = PanelConfig(n_genes=30)
    assert select_genes(loud, SPLIT, config) == select_genes(quiet, SPLIT, config)
    leaky = PanelConfig(n_genes=30, cells="all")
    late = {gene for gene in select_genes(loud, SPLIT, leaky).genes if gene >= "G100"}
    assert len(late) > len({gene for gene in select_genes(quiet, SPLIT, leaky).genes if gene >= "G100"})


def test_as_many_genes_as_there_are_takes_all() -> None:
    for n_genes in (120, 5000):
        assert select_genes(screen(), SPLIT, PanelConfig(n_genes=n_genes)) == GenePanel(tuple(GENES), 120)


def test_silent_and_constant_genes_bring_no_warning_and_are_not_variable() -> None:
    cells = screen()
    dense = cells.X.toarray()
    dense[:, 10:60] = 0
    dense[:, 60] = np.float32(1.5)
    adata = cells.to_adata()
    adata.X = sp.csr_matrix(dense)
    changed = read_cells(adata)
    few = select_genes(changed, SPLIT, PanelConfig(n_genes=40))
    assert set(few.genes).isdisjoint(GENES[10:61])
    assert few.n_variable == 40
    most = select_genes(changed, SPLIT, PanelConfig(n_genes=100))
    training = changed.select(["control", *SPLIT.train]).X.toarray()
    varying = set(np.array(GENES)[training.min(axis=0) < training.max(axis=0)])
    assert set(most.genes) == varying | {"G003", "G004", "G005", "G007"}
    assert most.n_variable == len(varying) < 70


def test_digest_follows_the_genes_in_their_order() -> None:
    assert GenePanel(("A", "B"), 1).digest == GenePanel(("A", "B"), 2).digest
    assert GenePanel(("A", "B"), 1).digest != GenePanel(("B", "A"), 1).digest


def test_a_split_of_other_data_is_refused() -> None:
    with pytest.raises(ConditionError, match="train condition 'ELSE' is not measured"):
        select_genes(screen(), Split("file", 0, ("ELSE",), (), ("G007",)))


def test_genes_may_be_included_by_name() -> None:
    cells = screen()
    plain = select_genes(cells, SPLIT, PanelConfig(n_genes=30))
    left = [gene for gene in GENES if gene not in plain.genes][:2]
    panel = select_genes(cells, SPLIT, PanelConfig(n_genes=30, include=tuple(left)))
    assert set(panel.genes) == {*plain.genes, *left}
    assert panel.n_variable == plain.n_variable
    with pytest.raises(DataError, match=r"1 of 1 genes are not in the data \(first: 'NONE'\)"):
        select_genes(cells, SPLIT, PanelConfig(n_genes=30, include=("NONE",)))


def test_a_gene_is_as_variable_as_the_cells_that_measured_it() -> None:
    """Zeros of cells that did not measure a gene count for nothing."""
    x = np.log1p(np.random.default_rng(0).poisson(2.0, (300, 6)).astype(np.float32))
    measuring = np.full(6, 300)
    x[200:, 4] = 0
    measuring[4] = 200
    found = gene_moments(sp.csr_matrix(x), linear=False, measuring=measuring)
    for gene, n in enumerate(measuring):
        np.testing.assert_allclose(found.mean[gene], x[:n, gene].mean(), rtol=1e-6)
        np.testing.assert_allclose(found.variance[gene], x[:n, gene].var(ddof=1), rtol=1e-5)
        assert found.lowest[gene] == x[:n, gene].min()
