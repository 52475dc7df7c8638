"""Choosing experiments: the criterion, step by step, on points where the answer is known."""

from __future__ import annotations

import numpy as np

from scdfm.screening.ranking import diverse

FAR = np.array([[0.0, 0], [0.1, 0], [10, 0], [10.1, 0], [0, 10]])


def test_one_of_each_cluster_before_a_second():
    picked = diverse(FAR, np.ones(5), FAR[:0], 3)
    assert {at // 2 for at in picked} == {0, 1, 2}


def test_doubt_decides_within_a_cluster_and_what_is_measured_is_not_asked_again():
    doubt = np.array([1.0, 1.1, 1.0, 1.2, 1.0])
    assert diverse(FAR, doubt, FAR[:0], 3) == [3, 4, 1]
    assert diverse(FAR, doubt, FAR[[2, 4]], 1) == [1]
    assert 4 in diverse(FAR, np.array([1, 1, 1, 1, 0.8]), FAR[[0, 2]], 1)


def test_it_is_the_greedy_maximum_of_the_determinant():
    rng = np.random.default_rng(0)
    points, doubt = rng.standard_normal((12, 3)), rng.uniform(0.5, 1.5, 12)
    gaps = np.linalg.norm(points[:, None] - points[None], axis=2)
    length = np.median(gaps[np.triu_indices(12, 1)])
    kernel = np.outer(doubt, doubt) * np.exp(-(gaps**2) / (2 * length**2)) + 0.01 * np.mean(doubt**2) * np.eye(12)
    picked: list[int] = []
    for _ in range(5):
        value = {
            at: np.linalg.slogdet(kernel[np.ix_([*picked, at], [*picked, at])])[1]
            for at in range(12)
            if at not in picked
        }
        picked.append(max(value, key=value.get))
    assert diverse(points, doubt, points[:0], 5) == picked


def test_all_alike_is_no_error():
    assert sorted(diverse(np.zeros((3, 2)), np.ones(3), np.zeros((0, 2)), 3)) == [0, 1, 2]
    assert diverse(np.zeros((1, 2)), np.zeros(1), np.zeros((1, 2)), 1) == [0]
