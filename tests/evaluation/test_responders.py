"""Responders of the predicted cells."""

from __future__ import annotations

import numpy as np
import pytest

from scdfm.evaluation import METRICS, evaluate
from scdfm.evaluation.expression import RankTests
from scdfm.evaluation.responders import agreement

NAMES = ["de_recall", "de_precision", "de_direction"]


def ranked(fdr: list[list[float]], z: list[list[float]]) -> RankTests:
    return RankTests(np.array(fdr), np.array(fdr), np.array(z))


def test_shares_by_hand():
    real = ranked([[0.01, 0.01, 0.01, 0.9, 0.01]] * 2, [[3, -3, 3, 0, 9]] * 2)
    claim = ranked([[0.01, 0.02, 0.3, 0.01, 0.01], [1] * 5], [[3, 3, 0, 1, 9]] * 2)
    own = np.zeros((2, 5), dtype=bool)
    own[:, 4] = True
    found = agreement(claim, real, own)
    np.testing.assert_allclose(found["de_recall"], [2 / 3, 0])
    np.testing.assert_allclose(found["de_precision"], [2 / 3, np.nan])
    np.testing.assert_allclose(found["de_direction"], [1 / 2, np.nan])
    own[:, 4] = False  # the control: the target's own gene would have counted
    assert agreement(claim, real, own)["de_recall"][0] == 3 / 4


def test_real_cells_find_what_control_cells_do_not(screen, held_out, cells_as):
    """Only when asked for; other cells of a condition find its responders, control cells under its name do not."""
    rng = np.random.default_rng(0)
    conditions = held_out[:4]
    good = np.concatenate([rng.choice(screen.rows(c), 40, replace=False) for c in conditions])
    bad = np.concatenate([rng.choice(screen.rows("control"), 40, replace=False) for _ in conditions])
    labels = list(np.repeat(conditions, 40))
    tables = [
        evaluate(cells_as(screen, rows, labels), screen, metrics=["l2", *NAMES], conditions=conditions)
        for rows in (good, bad)
    ]
    means = [t.groupby(["model", "metric"])["value"].mean() for t in tables]
    assert means[0]["model", "de_recall"] > 0.5 > 0.1 > means[1]["model", "de_recall"]
    assert means[0]["model", "de_direction"] == pytest.approx(1, abs=0.02)
    assert 0.2 < means[0]["ceiling", "de_recall"] < 1
    assert means[0]["ceiling", "de_direction"] > 0.95
    assert means[0]["ceiling"].drop("l2").equals(means[1]["ceiling"].drop("l2"))
    assert not set(NAMES) & set(METRICS)
    assert set(tables[0].loc[tables[0]["metric"] == "de_recall", "model"]) == {"model", "ceiling"}
