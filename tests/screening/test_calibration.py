"""From spread to error: what was put in comes out, and little data stays modest."""

from __future__ import annotations

import numpy as np
import pytest

from scdfm.screening.ensemble import Calibration, Ensemble, calibrating
from scdfm.screening.page import calibration_note


def test_a_known_law_is_found_again():
    spread = np.linspace(0.5, 3, 20)
    found = Calibration.fitted(spread, np.sqrt(1.5**2 + (2 * spread) ** 2), "validation")
    assert (found.floor, found.factor) == (pytest.approx(1.5), pytest.approx(2))
    assert found.rank_agreement == pytest.approx(1)
    assert found.expected_error(np.array([1.0])) == pytest.approx(np.sqrt(1.5**2 + 4))


def test_a_spread_that_says_nothing_leaves_a_floor():
    found = Calibration.fitted(np.linspace(1, 2, 10), np.linspace(4, 3, 10), "validation")
    assert found.factor == 0
    assert found.floor == pytest.approx(np.sqrt(np.mean(np.linspace(4, 3, 10) ** 2)))
    assert found.rank_agreement == pytest.approx(-1)
    assert "the same for all" in calibration_note(found)


def test_few_conditions_scale_and_none_pass_on():
    few = Calibration.fitted(np.array([1.0, 2.0]), np.array([3.0, 6.0]), "validation")
    assert (few.floor, few.factor) == (0, pytest.approx(3))
    assert "the same for all" not in calibration_note(few)
    none = Calibration.fitted(np.array([]), np.array([]), "none")
    assert none.expected_error(np.array([0.7])) == pytest.approx([0.7])
    assert "bare spread" in calibration_note(none)


def test_the_root_mean_square_is_right_on_average():
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.5, 2, 400)
    error = np.abs(rng.standard_normal(400)) * np.sqrt(0.3 + 4 * spread**2)
    found = Calibration.fitted(spread, error, "validation")
    assert np.mean((error / found.expected_error(spread)) ** 2) == pytest.approx(1, abs=0.1)


def test_held_out_conditions_come_first(run, runs):
    names, kind = calibrating(Ensemble.of(run), 0)
    assert set(run.split.validation) <= set(names)
    assert set(names) <= {*run.split.validation, *run.split.train}
    assert kind == "validation and training"
    assert "optimistic" in calibration_note(Calibration.fitted(np.ones(5), np.ones(5), kind))
    both = Ensemble.of(runs)
    assert set(both.held_out) == set(runs[0].split.validation + runs[1].split.validation) - set(
        runs[0].split.train + runs[1].split.train
    )


def test_conditions_that_no_run_can_predict_calibrate_nothing(run, monkeypatch):
    ensemble = Ensemble.of(run)
    left = run.split.train[0]
    monkeypatch.setattr(Ensemble, "extrapolated", lambda self, names: {name: "" for name in names if name != left})
    assert calibrating(ensemble, 0) == ([left], "validation and training")
