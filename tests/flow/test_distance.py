"""The distance of marginals: by scipy, blind to the order of cells, moved by means and by spreads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from scdfm.errors import DataError
from scdfm.flow import median_bandwidths, mmd2, squared_distances, wasserstein
from scdfm.model import reference


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


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_bandwidths_are_the_lower_median(n: int) -> None:
    y = normal(n, 6)
    torch.testing.assert_close(median_bandwidths(y), reference.median_bandwidths(y))
    torch.testing.assert_close(median_bandwidths(y, scales=(3.0,)), reference.median_bandwidths(y, scales=(3.0,)))


def test_equal_cells_still_have_a_kernel() -> None:
    widths = median_bandwidths(torch.ones(5, 3))
    torch.testing.assert_close(widths, torch.tensor([0.5, 1.0, 2.0, 4.0]).mul(1e-12).sqrt())
    assert mmd2(torch.ones(5, 3), torch.ones(5, 3), widths) == 0


@pytest.mark.parametrize(("n", "m"), [(2, 2), (9, 6), (16, 16)])
def test_value_and_gradient_equal_all_pairs(n: int, m: int) -> None:
    y = normal(m, 8, seed=1) + 0.5
    widths = reference.median_bandwidths(y)
    ours, plain = normal(n, 8).requires_grad_(), normal(n, 8).requires_grad_()
    value, expected = mmd2(ours, y, widths), reference.mmd2(plain, y, widths)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    value.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-7)


def test_leading_axes_are_separate_comparisons() -> None:
    x, y = normal(3, 5, 4), normal(3, 6, 4, seed=1)
    widths = median_bandwidths(y)
    assert widths.shape == (3, 4)
    alone = torch.stack([mmd2(a, b, median_bandwidths(b)) for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(mmd2(x, y, widths), alone)
    shared = torch.stack([mmd2(a, b, widths[0]) for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(mmd2(x, y, widths[0]), shared)


def test_arrays_are_read() -> None:
    x, y = normal(5, 4), normal(6, 4, seed=1)
    torch.testing.assert_close(
        mmd2(x.numpy(), y.numpy(), np.asarray(median_bandwidths(y.numpy()))), mmd2(x, y, median_bandwidths(y))
    )


def test_a_common_shift_costs_no_digits() -> None:
    x, y = normal(20, 50).double(), normal(20, 50, seed=1).double()
    exact = reference.mmd2(x, y, reference.median_bandwidths(y))
    far_x, far_y = x.float() + 1000, y.float() + 1000
    value = mmd2(far_x, far_y, reference.median_bandwidths(y).float())
    # 1000 + x has lost digits of x itself; the product form must lose no more.
    assert abs(value.double() - exact) < 1e-4


def test_distances_are_never_negative() -> None:
    x = normal(30, 4) * 1e3
    distances = squared_distances(x, x)
    assert (distances >= 0).all()
    torch.testing.assert_close(distances, (x[:, None] - x[None]).square().sum(-1), rtol=1e-4, atol=2.0)


def test_equal_distributions_have_mmd_zero_within_its_standard_error() -> None:
    """Unbiased: the mean over many draws is 0; a biased V-statistic would stand at 2/n · (1 − E k) > 0."""
    x, y = normal(2000, 10, 5), normal(2000, 10, 5, seed=1)
    values = mmd2(x, y, [1.0, 2.0, 4.0])
    error = values.std() / math.sqrt(len(values))
    assert values.mean().abs() < 3 * error
    assert (values < 0).any()
    shifted = mmd2(x + 0.5, y, [1.0, 2.0, 4.0])
    assert shifted.mean() > 20 * error


def test_closed_form_of_two_points() -> None:
    """Two pairs of equal cells at distance r: within 1, between exp(−r²/2σ²)."""
    x, y = torch.zeros(2, 3), torch.tensor([[3.0, 4.0, 0.0]] * 2)
    expected = sum(2 - 2 * math.exp(-25 / (2 * s**2)) for s in (2.0, 5.0)) / 2
    assert mmd2(x, y, [2.0, 5.0]).item() == pytest.approx(expected, rel=1e-6)


def test_autocast_does_not_lower_the_precision() -> None:
    x, y = normal(12, 40), normal(12, 40, seed=1)
    widths = median_bandwidths(y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(median_bandwidths(y), widths)
        value = mmd2(x, y, widths)
    assert torch.equal(value, mmd2(x, y, widths))
    assert mmd2(x.bfloat16(), y, widths).dtype == torch.float32


def test_what_cannot_be_compared_is_told() -> None:
    for shape in ((1, 4), (4,)):
        with pytest.raises(DataError, match="expected at least 2 cells in x"):
            mmd2(torch.zeros(shape), normal(3, 4), [1.0])
    with pytest.raises(DataError, match="expected at least 2 cells in y"):
        median_bandwidths(normal(1, 4))
    with pytest.raises(DataError, match="x has 4 genes and y 5"):
        mmd2(normal(3, 4), normal(3, 5), [1.0])
