"""Does a prediction resemble its own condition more than the others?"""

from __future__ import annotations

import numpy as np

from scdfm.evaluation.metrics import centroid_accuracy, ds_cosine, transpose_rank

REAL = np.array([[0.0, 0], [4, 0], [0, 4]])


def test_centroid_accuracy_and_its_transpose_see_different_faults():
    np.testing.assert_array_equal(centroid_accuracy(REAL, REAL), [1, 1, 1])
    np.testing.assert_array_equal(transpose_rank(REAL, REAL), [1, 1, 1])
    shared = np.full((3, 2), 1.0)
    assert centroid_accuracy(shared, REAL).mean() == 0.5 == transpose_rank(shared, REAL).mean()
    # Each prediction is nearest to its own real mean, yet one of them is nearer to another's than that one's own is.
    drawn = np.array([[0.0, 0], [2.1, 0], [1.9, 2.2]])
    np.testing.assert_array_equal(centroid_accuracy(drawn, REAL), [1, 1, 1])
    far = np.array([[0.0, 0], [9.0, 0], [0, 4]])
    np.testing.assert_array_equal(centroid_accuracy(far, REAL), [1, 1, 1])
    assert transpose_rank(far, REAL)[1] < 1


def test_equal_distances_count_half_and_unpredicted_ones_not():
    predicted = np.array([[2.0, 0], [np.nan, np.nan], [0, 4]])
    found = centroid_accuracy(predicted, REAL)
    np.testing.assert_array_equal(found, [0.75, np.nan, 1])
    np.testing.assert_array_equal(transpose_rank(predicted, REAL), [1, np.nan, 1])
    assert np.isnan(centroid_accuracy(REAL[:1], REAL[:1]))


def test_groups_are_told_apart_among_themselves():
    predicted = REAL[[1, 0, 2]]
    np.testing.assert_array_equal(centroid_accuracy(predicted, REAL, [[0, 1], [2]]), [0, 0, np.nan])


def test_cosine_takes_no_size():
    shifts = np.array([[1.0, 0, 0], [0, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(ds_cosine(7 * shifts, shifts), [1, 1, 1])
    nowhere = ds_cosine(0 * shifts, shifts)
    np.testing.assert_array_equal(nowhere, [0.5, 0.5, 0.5])
    assert np.isnan(ds_cosine(shifts[:, :0], shifts[:, :0])).all()
