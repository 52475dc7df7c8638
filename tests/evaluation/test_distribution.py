"""Distances between populations, against brute force, scipy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from scdfm.evaluation.populations import Axes, Sample, Truth, energy_and_mmd, principal_axes, wasserstein
from scdfm.prior.spread import normal_scores

rng = np.random.default_rng(0)


def truth(coordinates: np.ndarray) -> Truth:
    empty = np.empty((0, 0))
    return Truth.of(Sample(empty, coordinates, empty, empty))


def brute_force(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    def pairs(a, b, same, f):
        return np.mean([f(p - q) for i, p in enumerate(a) for j, q in enumerate(b) if not (same and i == j)])

    squares = sorted(float((p - q) @ (p - q)) for i, p in enumerate(y) for j, q in enumerate(y) if i != j)
    median = squares[(len(squares) - 1) // 2]

    def kernel(d):
        return np.mean([np.exp(-(d @ d) / (2 * scale * median)) for scale in (0.5, 1, 2, 4)])

    def combined(f, sign):
        return sign * (pairs(x, x, True, f) + pairs(y, y, True, f) - 2 * pairs(x, y, False, f))

    return combined(np.linalg.norm, -1), combined(kernel, 1)


def test_energy_and_mmd_are_the_definition():
    x, y = rng.normal(size=(9, 4)), rng.normal(0.5, 1, size=(12, 4))
    np.testing.assert_allclose(energy_and_mmd(x, truth(y)), brute_force(x, y), rtol=1e-10)


def test_energy_and_mmd_of_evenly_drawn_cells_are_too_small():
    """Chance that is subtracted is not there: by much for few cells, by little for many."""

    def scores(n: int) -> np.ndarray:
        even = [normal_scores(torch.from_numpy(rng.normal(size=(n, 3)))).numpy() for _ in range(200)]
        return np.array([energy_and_mmd(x, truth(rng.normal(size=(25, 3)))) for x in even])

    few, many = scores(20), scores(200)
    assert (few.mean(0) < -3 * few.std(0) / len(few) ** 0.5).all()
    assert (few.mean(0) < 3 * many.mean(0)).all()


def test_energy_and_mmd_of_one_population_are_zero_on_average():
    draws = np.array([energy_and_mmd(rng.normal(size=(20, 3)), truth(rng.normal(size=(25, 3)))) for _ in range(400)])
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(axis=0)) < 4 * error).all()
    assert (draws < 0).any()  # unbiased: not forced to be positive


def test_energy_of_shifted_points_in_closed_form():
    x, y = np.zeros((5, 2)), np.tile([3.0, 4.0], (7, 1))
    energy, _ = energy_and_mmd(x, truth(y))
    assert energy == pytest.approx(10.0)  # 2 · 5 − 0 − 0


def test_too_few_cells_are_undefined():
    assert np.isnan(energy_and_mmd(np.zeros((1, 2)), truth(rng.normal(size=(5, 2))))).all()


@pytest.mark.parametrize(("n", "m"), [(10, 10), (10, 15), (7, 12), (1, 9), (40, 3)])
def test_wasserstein_is_scipys(n, m):
    x, y = rng.normal(size=(6, n)), rng.gamma(2, 1, size=(6, m))
    expected = np.mean([stats.wasserstein_distance(a, b) for a, b in zip(x, y, strict=True)])
    assert wasserstein(np.sort(x, axis=1), np.sort(y, axis=1)) == pytest.approx(expected, rel=1e-9)


def test_principal_axes_are_those_of_the_covariance():
    cells = (rng.normal(size=(300, 3)) * [5, 2, 0.5]) @ np.linalg.qr(rng.normal(size=(8, 8)))[0][:3] + 4
    axes = principal_axes(cells.astype(np.float32), 3, seed=1)
    values, vectors = np.linalg.eigh(np.cov(cells.T))
    for axis, vector in zip(axes.components, vectors[:, ::-1].T, strict=False):
        assert abs(axis @ vector) == pytest.approx(1, abs=1e-4)
    projected = axes.project(cells.T.astype(np.float32))
    np.testing.assert_allclose(projected.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(projected.var(axis=0, ddof=1), values[::-1][:3], rtol=1e-3)


def test_projection_keeps_distances_within_the_axes():
    axes = Axes(np.zeros(3, dtype=np.float32), np.eye(3, dtype=np.float32)[:2])
    cells = rng.normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_allclose(axes.project(cells), cells[:2].T, rtol=1e-6)
