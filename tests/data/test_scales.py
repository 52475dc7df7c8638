"""What values tell of their scale: factors of counts, bases of logarithms."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scdfm.data import read_cells
from scdfm.data.scales import base_of, rescaling, size_factors
from scdfm.errors import DataError


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.poisson(rng.gamma(0.5, 3, 200) * rng.lognormal(0, 0.5, (80, 1)))


def logged(counts: np.ndarray, base: float = np.e, total: float = 1e4) -> np.ndarray:
    return (np.log1p(counts / counts.sum(1, keepdims=True) * total) / np.log(base)).astype(np.float32)


def screen(X: np.ndarray) -> ad.AnnData:
    obs = pd.DataFrame(
        {"perturbation": ["control", "A"] * (len(X) // 2)}, index=[f"c{i}" for i in range(len(X))]
    )
    return ad.AnnData(sp.csr_matrix(X), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(X.shape[1])]))


def test_the_factor_of_each_cell_gives_its_counts_back(counts):
    X = sp.csr_matrix(logged(counts))
    factors = size_factors(X)
    np.testing.assert_allclose(factors, 1e4 / counts.sum(1), rtol=1e-4)
    np.testing.assert_array_equal(np.rint(np.expm1(X.toarray()) / factors[:, None]), counts)


def test_values_that_are_no_logarithms_of_counts_have_no_factor(counts):
    X = logged(counts)
    noisy = X * (1 + 0.01 * np.random.default_rng(1).normal(size=X.shape).astype(np.float32))
    assert np.isnan(size_factors(sp.csr_matrix(noisy))).all()
    assert base_of(sp.csr_matrix(noisy)) == ""


@pytest.mark.parametrize(("base", "name"), [(np.e, "e"), (2, "2"), (10, "10")])
def test_another_base_is_recognised_and_refused(counts, base, name):
    X = logged(counts, base)
    assert base_of(sp.csr_matrix(X)) == name
    if name == "e":
        read_cells(screen(X))
        return
    with pytest.raises(DataError, match=rf"AnnData: X looks like .* log{name}\(1 \+ x\)"):
        read_cells(screen(X))
    found = read_cells(screen(X), values=f"log{name}")
    np.testing.assert_allclose(found.X.toarray(), logged(counts), rtol=1e-5)


def test_a_real_file_is_in_natural_logarithms(shared):
    found = ad.read_h5ad(shared / "data" / "perturbench_devel.h5ad")
    assert base_of(sp.csr_matrix(found.X)) == "e"


def test_what_brings_cells_to_another_scale(counts):
    X, shares = sp.csr_matrix(logged(counts)), np.full(len(counts), 1 / len(counts))
    assert rescaling(logged(counts[::2]).mean(0), X, shares) is None
    assert rescaling(logged(counts, total=3e4).mean(0), X, shares).factor == pytest.approx(3, rel=0.05)
    for base in (2, 10):
        found = rescaling(logged(counts[::2], base).mean(0), X, shares)
        assert found.factor is None
        assert f"log{base}" in found.words
