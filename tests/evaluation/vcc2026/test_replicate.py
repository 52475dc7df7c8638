"""The repeat of the experiment."""

from __future__ import annotations

import numpy as np

from scdfm.evaluation import read_counts
from scdfm.evaluation.registry import JACCARD
from scdfm.evaluation.vcc2026.anchors import anchors, halves, replicates
from scdfm.evaluation.vcc2026.side import side_of


def test_halves_are_disjoint_and_of_one_size(real):
    counts = read_counts(real)
    rows = {**counts.rows, "G003": counts.rows["G003"][:7], "G004": counts.rows["G004"][:1]}
    a, b = halves(rows, counts.order, 3)
    assert len(a["G003"]) == len(b["G003"]) == 3
    assert not {"G004"} & {*a, *b}
    for name in a:
        assert not set(a[name]) & set(b[name])
        assert set(a[name]) | set(b[name]) <= set(rows[name])
    again, _ = halves(rows, counts.order, 3)
    other, _ = halves(rows, counts.order, 4)
    assert all(np.array_equal(a[name], again[name]) for name in a)
    assert not np.array_equal(a["control"], other["control"])


def test_the_anchor_depends_on_the_seed_alone(real):
    counts = read_counts(real)
    side = side_of(counts, counts.rows, counts.conditions)
    one, two, three = (anchors(replicates(counts, side, seed, splits=2)) for seed in (0, 0, 1))
    assert one.equals(two)
    assert not one.equals(three)
    found = one.set_index("metric").loc[JACCARD]
    assert found["replicate_min"] <= found["replicate"] <= found["replicate_max"]
    assert 0.2 < found["replicate"] < 1
