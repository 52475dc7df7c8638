"""Distance correlation against closed forms and the definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from scdfm.screening.interaction import Distances, distance_correlation


def dcor(x, y) -> float:
    return distance_correlation(Distances.of(x), Distances.of(y))


def test_a_line_has_distance_correlation_one():
    x = np.random.default_rng(0).standard_normal(50)
    assert dcor(x, 3 - 2 * x) == pytest.approx(1, abs=1e-12)
    plane = np.random.default_rng(1).standard_normal((50, 2))
    turn = np.array([[0, 2], [-2, 0]])
    assert dcor(plane, plane @ turn + 1) == pytest.approx(1, abs=1e-12)


def test_a_full_grid_is_independent():
    x, y = np.array(list(itertools.product([0.0, 1.0, 5.0], [2.0, 3.0, 7.0, 8.0]))).T
    assert dcor(x, y) == pytest.approx(0, abs=1e-7)


def test_v_shape_in_closed_form():
    # x = -1, 0, 1 and y = |x|. With row means removed by hand: <A, B> = 4/3·... worked out below from the definition.
    x, y = np.array([-1.0, 0.0, 1.0]), np.array([1.0, 0.0, 1.0])
    # distances: x (0 1 2 / 1 0 1 / 2 1 0), y (0 1 0 / 1 0 1 / 0 1 0); means of rows 1, 2/3, 1 and 1/3, 2/3, 1/3
    # centred x: (-10/9 2/9 8/9 / 2/9 -4/9 2/9 / 8/9 2/9 -10/9), y: (-2/9 4/9 -2/9 / 4/9 -8/9 4/9 / -2/9 4/9 -2/9)
    product = (2 * 20 + 4 * 8 - 2 * 16 + 32) / 81
    of_x, of_y = (2 * 100 + 4 * 4 + 2 * 64 + 16) / 81, (4 * 4 + 4 * 16 + 64) / 81
    assert dcor(x, y) == pytest.approx(math.sqrt(product / math.sqrt(of_x * of_y)), abs=1e-12)
    assert np.corrcoef(x, y)[0, 1] == 0  # which correlation does not see


def test_normal_variables_follow_the_law():
    # Székely, Rizzo and Bakirov 2007, theorem 7: for a bivariate normal of correlation ρ,
    # dCor² = (ρ asin ρ + √(1−ρ²) − ρ asin(ρ/2) − √(4−ρ²) + 1) / (1 + π/3 − √3).
    rho, rng = 0.6, np.random.default_rng(2)
    x = rng.standard_normal(1500)
    y = rho * x + math.sqrt(1 - rho**2) * rng.standard_normal(1500)
    law = rho * math.asin(rho) + math.sqrt(1 - rho**2) - rho * math.asin(rho / 2) - math.sqrt(4 - rho**2) + 1
    assert dcor(x, y) == pytest.approx(math.sqrt(law / (1 + math.pi / 3 - math.sqrt(3))), abs=0.04)


def test_a_constant_has_none():
    assert math.isnan(dcor(np.zeros(5), np.arange(5.0)))


def test_it_is_symmetric_and_free_of_scale():
    x, y = np.random.default_rng(3).standard_normal((2, 40, 3))
    assert dcor(x, y) == pytest.approx(dcor(y * 7 - 2, x), abs=1e-12)
