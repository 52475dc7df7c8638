"""The distance of marginals: by scipy, blind to the order of cells, moved by means and by spreads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from scdfm.flow import wasserstein


def test_against_scipy() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 7)), 0.5 + 2 * rng.normal(size=(30, 7))
    expected = np.mean([wasserstein_distance(x[:, gene], y[:, gene]) for gene in range(7)])
    assert float(wasserstein(torch.from_numpy(x), torch.from_numpy(y))) == pytest.approx(expected)


def test_as_many_cells_of_each() -> None:
    x, y = torch.randn((20, 3)), torch.randn((8, 3))
    assert float(wasserstein(x, y)) == float(wasserstein(x[:8], y)) == float(wasserstein(y, x))


def test_means_and_spreads_count() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn((2000, 5), generator=rng)
    order = torch.randperm(2000, generator=rng)
    assert float(wasserstein(x, x[order])) == 0
    assert float(wasserstein(x, x + 0.3)) == pytest.approx(0.3, abs=1e-5)
    assert float(wasserstein(x, 2 * x)) == pytest.approx(np.sqrt(2 / np.pi), abs=0.05)
