"""Ranks of distances: those of scipy's distances to the last tie, however many conditions there are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from scdfm.evaluation import ranks
from scdfm.evaluation.ranks import standing


def populations(n: int = 320, n_genes: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Means that are equal, nearly equal, without length or undefined, beside plain ones."""
    rng = np.random.default_rng(0)
    real = rng.random((n, n_genes))
    real[40:160] = real[40] * (1 + 1e-14 * rng.integers(-3, 4, (120, 1)))  # told apart in double precision alone
    predicted = real + 0.5 * rng.standard_normal((n, n_genes))
    predicted[40:100] = predicted[40]
    predicted[200:230] = real[200:230]
    predicted[230:240] = real[240:245] = 0
    predicted[250:255] = real[253:258] = np.nan
    return predicted, real


def written_out(distance: np.ndarray) -> np.ndarray:
    """closer, level and farther [3, K] from all distances [K, K]."""
    own = np.diag(distance)[:, None]
    closer, level, farther = ((test(distance, own)).sum(axis=1) for test in (np.less, np.equal, np.greater))
    return np.where(np.isnan(own[:, 0]), 0, [closer, level - 1, farther])


@pytest.mark.parametrize("distance", ["cityblock", "euclidean", "cosine"])
@pytest.mark.parametrize("fast", [False, True])
def test_ranks_are_those_of_all_distances_written_out(distance, fast, monkeypatch):
    predicted, real = populations()
    monkeypatch.setattr(ranks, "FEW", 0 if fast else 10**9)
    every = cdist(predicted, real, distance)
    if distance == "cosine":
        every[np.isnan(every)] = 1.0  # without length, at 1 from all
        every[np.isnan(predicted).any(axis=1)] = every[:, np.isnan(real).any(axis=1)] = np.nan
    found = standing(predicted, real, distance)
    np.testing.assert_array_equal([found.closer, found.level, found.farther], written_out(every))
    np.testing.assert_array_equal(found.ranked, ~np.isnan(np.diag(every)))
    if fast:  # left to the rounding of fast distances, ranks are others
        monkeypatch.setattr(ranks, "_settle", lambda *_: None)
        rounded = standing(predicted, real, distance)
        assert (np.array([rounded.closer, rounded.level]) != [found.closer, found.level]).any()


def test_one_answer_for_all_is_level_with_every_other():
    _, real = populations()
    real = real[:240]
    same = np.repeat(real[:1], len(real), axis=0)
    found = standing(real, same, "euclidean")
    np.testing.assert_array_equal(found.level, len(real) - 1)
    np.testing.assert_array_equal(found.closer + found.farther, 0)
