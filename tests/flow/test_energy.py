"""The energy distance: by hand, by scipy, unbiased."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist

from scdfm.flow import energy_distance


def test_two_points_each() -> None:
    """On a line, by hand: cross distances 3, 5, 1, 3, own ones 2 and 4 (mean over pairs)."""
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]])
    assert float(energy_distance(x, y)) == pytest.approx(2 * 3 - 2 - 2)


def test_against_scipy() -> None:
    """Also far from 0, where squared norms lose digits."""
    rng = np.random.default_rng(0)
    x, y = 100 + rng.normal(size=(30, 7)), 100.5 + rng.normal(size=(20, 7))
    expected = 2 * cdist(x, y).mean() - pdist(x).mean() - pdist(y).mean()
    found = energy_distance(torch.from_numpy(x).float(), torch.from_numpy(y).float())
    assert float(found) == pytest.approx(expected, abs=1e-4)


def test_unbiased_and_larger_for_other_means_and_other_spreads() -> None:
    rng = torch.Generator().manual_seed(0)
    same = [float(energy_distance(*torch.randn((2, 40, 5), generator=rng))) for _ in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200)
    x = torch.randn((300, 5), generator=rng)
    assert float(energy_distance(x + 1, torch.randn((300, 5), generator=rng))) > 0.3
    assert float(energy_distance(2 * x, torch.randn((300, 5), generator=rng))) > 0.3


def test_a_single_cell_has_no_spread() -> None:
    one = torch.zeros((1, 3))
    assert float(energy_distance(one, one)) == 0
