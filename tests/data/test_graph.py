"""The co-expression graph: golden equality, scipy, and the meaning of each option."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
from scipy import stats

from scdfm.data import Vocabulary, coexpression_graph, vocabulary_graph
from scdfm.data import graph as module
from scdfm.data.graph import coexpression_axes
from scdfm.data.stored import RowsWriter, StoredMatrix
from scdfm.errors import DataError


@pytest.fixture
def golden(shared: Path) -> dict[str, npt.NDArray[np.generic]]:
    with np.load(shared / "golden" / "graph.npz") as file:
        return dict(file)


@pytest.fixture
def x() -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(0)
    programs = rng.normal(size=(3, 40))
    return np.log1p(rng.poisson(np.exp(0.5 + 0.4 * rng.normal(size=(200, 3)) @ programs))).astype(np.float64)


def reference(x: npt.NDArray[np.float64], k: int, negative_edges: bool) -> npt.NDArray[np.bool_]:
    """Gene by gene, with scipy's Pearson r."""
    n = x.shape[1]
    edge = np.eye(n, dtype=bool)
    for i in range(n):
        r = np.array([0.0 if i == j else stats.pearsonr(x[:, i], x[:, j]).statistic for j in range(n)])
        strength = np.abs(r) if negative_edges else np.maximum(r, 0)
        for j in np.argsort(-strength, kind="stable")[:k]:
            edge[i, j] = edge[j, i] = edge[i, j] or strength[j] > 0
    return edge


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
@pytest.mark.parametrize("negative_edges", [True, False])
def test_faithful_mode_is_the_official_graph(golden: dict, negative_edges: bool, form: type) -> None:
    graph = coexpression_graph(form(golden["expression"]), int(golden["k"]), negative_edges, faithful=True)
    masked = golden[f"masked_negative_edges_{str(negative_edges).lower()}"]
    np.testing.assert_array_equal(graph, ~masked)


@pytest.mark.parametrize("negative_edges", [True, False])
def test_vocabulary_order_is_the_official_padding(golden: dict, negative_edges: bool) -> None:
    names = golden["gene_names"].tolist()
    graph = coexpression_graph(golden["expression"], int(golden["k"]), negative_edges, faithful=True)
    padded = vocabulary_graph(graph, names, Vocabulary.build(names))
    np.testing.assert_array_equal(padded, ~golden[f"padded_sorted_masked_negative_edges_{str(negative_edges).lower()}"])


@pytest.mark.parametrize("k", [1, 4, 10])
@pytest.mark.parametrize("negative_edges", [True, False])
def test_equal_to_scipy(x: npt.NDArray[np.float64], k: int, negative_edges: bool) -> None:
    np.testing.assert_array_equal(coexpression_graph(x, k, negative_edges), reference(x, k, negative_edges))


def test_symmetric_with_self_loops_and_at_least_k_neighbours(x: npt.NDArray[np.float64]) -> None:
    graph = coexpression_graph(x, 5)
    assert (graph == graph.T).all()
    assert graph.diagonal().all()
    assert (graph.sum(axis=1) >= 6).all()


def test_k_beyond_the_genes_takes_all(x: npt.NDArray[np.float64]) -> None:
    assert coexpression_graph(x, 40).all()
    assert coexpression_graph(x, 39).all()


def test_blocks_change_nothing(x: npt.NDArray[np.float64], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [coexpression_graph(x, 5, faithful=faithful) for faithful in (True, False)]
    monkeypatch.setattr(module, "_BLOCK_ROWS", 7)
    for faithful, graph in zip((True, False), whole, strict=True):
        np.testing.assert_array_equal(coexpression_graph(sp.csr_matrix(x), 5, faithful=faithful), graph)


def test_constant_genes_know_themselves_alone(x: npt.NDArray[np.float64]) -> None:
    x[:, 3], x[:, 7] = 0.0, np.log1p(0.1)
    graph = coexpression_graph(x, 5)
    for gene in (3, 7):
        assert graph[gene].sum() == graph[:, gene].sum() == 1
    others = np.delete(np.arange(40), [3, 7])
    np.testing.assert_array_equal(graph[np.ix_(others, others)], coexpression_graph(x[:, others], 5))


def test_equal_correlations_keep_the_first_gene() -> None:
    a, b = np.array([0.0, 1, 0, 1]), np.array([0.0, 0, 1, 1])
    graph = coexpression_graph(np.stack([a, b, b, b, a + b], axis=1), 1)
    # Genes 1, 2 and 3 are equal: 1 chooses 2; 2 and 3 choose 1; the sum chooses 0.
    expected = np.eye(5, dtype=bool)
    for i, j in ((1, 2), (1, 3), (0, 4)):
        expected[i, j] = expected[j, i] = True
    np.testing.assert_array_equal(graph, expected)


def test_targets_outside_the_panel_and_special_tokens_see_themselves_alone() -> None:
    vocabulary = Vocabulary.build(["Z", "A", "M"], ["OUT"])
    graph = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=bool)  # of Z, A, M
    among = vocabulary_graph(graph, ["Z", "A", "M"], vocabulary)
    assert among.shape == (8, 8)
    ids = {name: vocabulary.index(name) for name in (*vocabulary.SPECIAL, "OUT", "Z", "A", "M")}
    assert among[ids["Z"], ids["A"]]
    assert among[ids["A"], ids["M"]]
    assert not among[ids["Z"], ids["M"]]
    for name in (*vocabulary.SPECIAL, "OUT"):
        assert np.flatnonzero(among[ids[name]]).tolist() == [ids[name]]
        assert np.flatnonzero(among[:, ids[name]]).tolist() == [ids[name]]


def test_refusals(x: npt.NDArray[np.float64]) -> None:
    with pytest.raises(DataError, match=r"shape \(1, 40\); expected at least 2 cells"):
        coexpression_graph(x[:1])
    with pytest.raises(DataError, match=r"graph\.k is 0"):
        coexpression_graph(x, 0)
    with pytest.raises(DataError, match="expected one row and column for each of 2 genes"):
        vocabulary_graph(np.eye(3, dtype=bool), ["A", "B"], Vocabulary.build("AB"))


def test_axes_of_coexpression_give_back_the_correlations(x: npt.NDArray[np.float64]) -> None:
    x[:, 3] = 1.0
    genes = [f"G{place}" for place in range(x.shape[1])]
    table = coexpression_axes(x, genes)
    assert table.names == tuple(gene for gene in genes if gene != "G3")
    varying = np.delete(x, 3, axis=1)
    np.testing.assert_allclose(table.values @ table.values.T, np.corrcoef(varying.T), atol=1e-5)
    assert (table.parts[0].kind, table.parts[0].scaled) == ("coexpression", True)


def test_axes_of_constant_genes_are_refused() -> None:
    with pytest.raises(DataError, match="features 'coexpression': every one of 3 genes is constant in control cells"):
        coexpression_axes(np.ones((5, 3)), ["A", "B", "C"])


def test_correlations_are_those_within_the_cells_that_measured_both(x: npt.NDArray[np.float64]) -> None:
    """The same cells in two parts: as either alone. Genes that no part measured together know nothing of each other."""
    n, genes = len(x), x.shape[1]
    rows, all_genes = np.arange(n), np.ones(genes, dtype=bool)
    twice = sp.csr_matrix(np.vstack([x, x + 5]))
    parts = [(rows, all_genes), (rows + n, all_genes)]
    np.testing.assert_array_equal(coexpression_graph(twice, k=3, parts=parts), coexpression_graph(x, k=3))
    first = np.arange(genes) < genes // 2
    split = coexpression_graph(sp.csr_matrix(np.vstack([x, x])), k=genes, parts=[(rows, first), (rows + n, ~first)])
    assert split[np.ix_(first, first)].all()
    assert not split[np.ix_(first, ~first)].any()
    names = [f"G{gene}" for gene in range(genes)]
    axes = (coexpression_axes(one, names, of).values for one, of in ((twice, parts), (sp.csr_matrix(x), ())))
    np.testing.assert_allclose(*(values @ values.T for values in axes), atol=1e-5)


def test_cells_on_disk_are_read_in_blocks_whatever_part_they_are_of(
    x: npt.NDArray[np.float64], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, read = RowsWriter(x.shape[1]), []
    writer.append(sp.csr_matrix(x.astype(np.float32)))
    disk, plain = writer.finished(), StoredMatrix.__getitem__

    def counted(matrix: StoredMatrix, key: object) -> object:
        found = plain(matrix, key)
        read.append(found.shape[0])
        return found

    monkeypatch.setattr(StoredMatrix, "__getitem__", counted)
    monkeypatch.setattr(module, "_BLOCK_ROWS", 32)
    parts = [(np.arange(0, 200, 2), np.arange(40) < 30), (np.arange(1, 200, 2), np.arange(40) > 9)]
    in_memory = coexpression_graph(sp.csr_matrix(x.astype(np.float32)), k=3, parts=parts)
    np.testing.assert_array_equal(coexpression_graph(disk, k=3, parts=parts), in_memory)
    assert read
    assert max(read) <= 32
