"""What numbers are is recognised, and read so that the means are those of the counts."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scdfm.data import read_cells
from scdfm.data.inspection import inspect
from scdfm.data.kinds import base_of, recognise, rescaling, size_factors
from scdfm.errors import DataError

GENES = [f"G{i:02d}" for i in range(40)]
LABELS = np.repeat(["control", "G03", "G07", "G11", "G19", "G23", "G31"], 30)
Floats = np.ndarray


@pytest.fixture(scope="module")
def counts() -> Floats:
    """Poisson counts [210, 40] of cells of different depth, some 40% of them zero."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(0.5, 4.0, len(GENES)) + 0.1
    return rng.poisson(rate * rng.lognormal(0, 0.4, (len(LABELS), 1))).astype(np.float64)


def cp10k(counts: Floats) -> Floats:
    """Counts per 10,000."""
    return counts / counts.sum(1, keepdims=True) * 1e4


def screen(X: Floats, genes: list[str] | None = None, dtype: Any = np.float32) -> ad.AnnData:
    obs = pd.DataFrame({"perturbation": LABELS}, index=[f"c{i}" for i in range(len(LABELS))])
    return ad.AnnData(sp.csr_matrix(X.astype(dtype)), obs=obs, var=pd.DataFrame(index=genes or GENES))


def options(line: str | None) -> dict[str, Any]:
    """The options of `read_cells` in a proposed line."""
    words = shlex.split(str(line))
    named = {"--values": "values", "--target-sum": "target_sum", "--layer": "layer", "--min-genes": "min_genes"}
    found: dict[str, Any] = {named[a]: b for a, b in itertools.pairwise(words) if a in named}
    return {name: int(text) if text.isdecimal() else text for name, text in found.items()}


# What the file holds, the kind it is recognised as, and the option that reads it.
KINDS: dict[str, tuple[Callable[[Floats], Floats], str, dict[str, Any]]] = {
    "log1p": (np.log1p, "log1p", {}),
    "not logged": (lambda x: x, "normalised", {"target_sum": 10000}),
    "per million": (lambda x: 100 * x, "normalised", {"target_sum": 10000}),
    "log2": (lambda x: np.log2(1 + x), "log2", {"values": "log2"}),
    "log10": (lambda x: np.log10(1 + x), "log10", {"values": "log10"}),
    "twice": (lambda x: np.log1p(np.log1p(x)), "log1p-twice", {"values": "log1p-twice"}),
}


@pytest.mark.parametrize("case", KINDS)
@pytest.mark.parametrize("genes", [40, 25])
def test_normalisations_are_recognised_and_undone(case: str, genes: int, counts: Floats, tmp_path: Path) -> None:
    change, kind, expected = KINDS[case]
    # Of a part of the genes the totals differ, and the multiples of one count have to tell.
    adata = screen(change(cp10k(counts))[:, :genes], GENES[:genes])
    found = inspect(adata)
    assert found.matrix is not None
    assert found.matrix.kind == kind
    assert options(found.line) == expected
    wanted = np.log1p(cp10k(counts))[:, :genes]
    if "target_sum" in expected:
        wanted = np.log1p(cp10k(counts[:, :genes]))
    adata.write_h5ad(tmp_path / "f.h5ad")
    for source, backed in ((adata, False), (tmp_path / "f.h5ad", True)):
        cells = read_cells(source, **expected, backed=backed)
        np.testing.assert_allclose(cells.mean("G07"), wanted[LABELS == "G07"].mean(0), atol=1e-5)
    if expected:
        assert any(f"--{name.replace('_', '-')} {value}" in found.pitfalls[0] for name, value in expected.items())
        with pytest.raises(DataError) as caught:
            read_cells(adata)
        assert all(f"--{name.replace('_', '-')} {value}" in str(caught.value) for name, value in expected.items())


def test_a_declaration_is_taken_at_its_word(counts: Floats) -> None:
    log2 = screen(np.log2(1 + cp10k(counts)))
    kept = read_cells(log2, values="log1p")
    np.testing.assert_allclose(kept.X.toarray(), log2.X.toarray())
    anew = read_cells(log2, values="log2", target_sum=500)
    np.testing.assert_allclose(anew.X.toarray(), np.log1p(cp10k(counts) / 20), atol=1e-5)
    assert (anew.scale.values, anew.scale.target_sum) == ("log2", 500)
    with pytest.raises(DataError, match="log10 values of at most 9: .* leave values"):
        read_cells(log2, values="log10")
    with pytest.raises(DataError, match="expected one of log1p, log2"):
        read_cells(log2, values="ln")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="give target_sum too"):
        read_cells(log2, values="linear")


def test_counts_with_fractions_are_normalised_as_counts_and_told(counts: Floats) -> None:
    rng = np.random.default_rng(1)
    cleaned = np.maximum(counts - rng.uniform(0, 0.8, counts.shape), 0)
    adata = screen(cleaned, dtype=np.float64)
    assert options(inspect(adata).line) == {"target_sum": 10000}
    with pytest.raises(DataError, match=r"at most 20: pass target_sum \(--target-sum 10000\)"):
        read_cells(adata)
    cells = read_cells(adata, target_sum=10000)
    np.testing.assert_allclose(cells.mean("G03"), np.log1p(cp10k(cleaned))[LABELS == "G03"].mean(0), atol=1e-5)
    assert any("fractions: taken for corrected or normalised counts" in note for note in cells.notes)
    shallow = screen(np.minimum(cleaned, 15))
    with pytest.raises(DataError, match="leave target_sum .* out if these are log1p .* declare values='linear'"):
        read_cells(shallow, target_sum=10000)
    assert read_cells(shallow, target_sum=10000, values="linear").scale.target_sum == 10000


def test_log1p_values_are_not_normalised_a_second_time_unasked(counts: Floats) -> None:
    adata = screen(np.log1p(cp10k(counts)))
    with pytest.raises(DataError, match="holds log1p values .* leave target_sum .--target-sum. out"):
        read_cells(adata, target_sum=10000)
    again = read_cells(adata, target_sum=10000, values="log1p")
    np.testing.assert_allclose(again.X.toarray(), adata.X.toarray(), atol=1e-5)


def test_scaled_values_are_refused_and_what_else_the_file_holds_is_named(counts: Floats) -> None:
    log = np.log1p(cp10k(counts))
    scaled = (log - log.mean(0)) / log.std(0)
    adata = screen(scaled)
    assert inspect(adata).line is None
    with pytest.raises(DataError, match="no negative value: give counts or log1p values from before"):
        read_cells(adata)
    adata.layers["raw_counts"] = sp.csr_matrix(counts)
    with pytest.raises(DataError, match="'raw_counts' holds counts: --layer raw_counts --target-sum 10000"):
        read_cells(adata)
    assert options(inspect(adata).line) == {"layer": "raw_counts", "target_sum": 10000}
    uncentred = screen(log / log.std(0))
    assert recognise(uncentred.X).kind == "scaled"
    with pytest.raises(DataError, match="looks like scaled"):
        read_cells(uncentred)


def test_counts_in_raw_are_read_with_their_own_genes(counts: Floats, tmp_path: Path) -> None:
    log = np.log1p(cp10k(counts))
    adata = screen(log)
    adata.raw = screen(counts)
    adata.X = (log - log.mean(0)) / log.std(0)
    adata = adata[:, :25].copy()
    adata.write_h5ad(tmp_path / "f.h5ad")
    for source in (adata, tmp_path / "f.h5ad"):
        found = inspect(source)
        assert options(found.line) == {"layer": "raw", "target_sum": 10000}
        assert found.n_genes == 40
        cells = read_cells(source, layer="raw", target_sum=1e4)
        assert cells.genes.tolist() == GENES
        np.testing.assert_allclose(cells.X.toarray(), log, atol=1e-5)
    adata.X = log[:, :25]
    found = inspect(adata)
    assert options(found.line) == {}
    assert any("counts of 40 genes, more than the 25 of X: --layer raw --target-sum 10000" in p for p in found.pitfalls)


def test_intensities_of_arrays_are_told() -> None:
    intensities = np.random.default_rng(2).normal(8, 2, (len(LABELS), 40)).clip(3.5, 15)
    adata = screen(intensities)
    found = inspect(adata)
    assert options(found.line) == {"values": "log2"}
    assert "intensities of an array" in found.pitfalls[0]
    with pytest.raises(DataError, match="intensities of an array.* declare values='log2'"):
        read_cells(adata)
    cells = read_cells(adata, values="log2")
    np.testing.assert_allclose(cells.mean("G03"), intensities[LABELS == "G03"].mean(0) * np.log(2), rtol=1e-5)


def test_empty_cells_are_told_and_left_out_where_asked(counts: Floats, tmp_path: Path) -> None:
    holed = counts.copy()
    holed[5::30] = 0  # one of each condition
    adata = screen(holed)
    found = inspect(adata)
    assert options(found.line) == {"target_sum": 10000, "min_genes": 1}
    cells = read_cells(adata, target_sum=1e4)
    assert [note for note in cells.notes if "7 cells have no gene above 0 (first: cell 'c5')" in note]
    adata.write_h5ad(tmp_path / "f.h5ad")
    wanted = np.log1p(cp10k(holed[holed.sum(1) > 0])).reshape(7, 29, 40).mean(1)
    for backed in (False, True):
        left = read_cells(tmp_path / "f.h5ad", target_sum=1e4, min_genes=1, backed=backed)
        assert left.n == len(LABELS) - 7
        np.testing.assert_allclose(left.mean("G03"), wanted[1], atol=1e-5)
        assert not left.notes
    with pytest.raises(DataError, match="no cell has 41 genes"):
        read_cells(adata, target_sum=1e4, min_genes=41)


def test_a_declared_file_is_fitted_and_read_again_as_it_was(counts: Floats) -> None:
    cells = read_cells(screen(np.log2(1 + cp10k(counts))), values="log2")
    assert cells.scale.to_dict() == {
        "transform": "log1p", "target_sum": None, "declared": "log1p", "layer": None, "values": "log2",
    }  # fmt: skip


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.poisson(rng.gamma(0.5, 3, 200) * rng.lognormal(0, 0.5, (80, 1)))


def logged(drawn: np.ndarray, base: float = np.e, total: float = 1e4) -> np.ndarray:
    return (np.log1p(drawn / drawn.sum(1, keepdims=True) * total) / np.log(base)).astype(np.float32)


def two_conditions(X: np.ndarray) -> ad.AnnData:
    obs = pd.DataFrame({"perturbation": ["control", "A"] * (len(X) // 2)}, index=[f"c{i}" for i in range(len(X))])
    return ad.AnnData(sp.csr_matrix(X), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(X.shape[1])]))


def test_the_factor_of_each_cell_gives_its_counts_back(drawn):
    X = sp.csr_matrix(logged(drawn))
    factors = size_factors(X)
    np.testing.assert_allclose(factors, 1e4 / drawn.sum(1), rtol=1e-4)
    np.testing.assert_array_equal(np.rint(np.expm1(X.toarray()) / factors[:, None]), drawn)


def test_values_that_are_no_logarithms_of_counts_have_no_factor(drawn):
    X = logged(drawn)
    noisy = X * (1 + 0.01 * np.random.default_rng(1).normal(size=X.shape).astype(np.float32))
    assert np.isnan(size_factors(sp.csr_matrix(noisy))).all()
    assert base_of(sp.csr_matrix(noisy)) == ""


@pytest.mark.parametrize(("base", "name"), [(np.e, "e"), (2, "2"), (10, "10")])
def test_another_base_is_recognised_and_refused(drawn, base, name):
    X = logged(drawn, base)
    assert base_of(sp.csr_matrix(X)) == name
    if name == "e":
        read_cells(two_conditions(X))
        return
    with pytest.raises(DataError, match=rf"AnnData: X looks like .* log{name}\(1 \+ x\)"):
        read_cells(two_conditions(X))
    found = read_cells(two_conditions(X), values=f"log{name}")
    np.testing.assert_allclose(found.X.toarray(), logged(drawn), rtol=1e-5)


def test_a_real_file_is_in_natural_logarithms(shared):
    found = ad.read_h5ad(shared / "data" / "perturbench_devel.h5ad")
    assert base_of(sp.csr_matrix(found.X)) == "e"


def test_what_brings_cells_to_another_scale(drawn):
    X, shares = sp.csr_matrix(logged(drawn)), np.full(len(drawn), 1 / len(drawn))
    assert rescaling(logged(drawn[::2]).mean(0), X, shares) is None
    assert rescaling(logged(drawn, total=3e4).mean(0), X, shares).factor == pytest.approx(3, rel=0.05)
    for base in (2, 10):
        found = rescaling(logged(drawn[::2], base).mean(0), X, shares)
        assert found.factor is None
        assert f"log{base}" in found.words
