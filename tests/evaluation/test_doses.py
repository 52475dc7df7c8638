"""What the simple rules make of doses, times and covariates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdfm.data.conditions import Perturbation, parse
from scdfm.evaluation.baselines import (
    DoseScale,
    Training,
    additive,
    indicators,
    low_rank,
    no_change,
    ridge,
    settings_of,
    single_shift,
    training_mean,
)

GENES = ("A", "B", "u", "v")
CONTROLS = {"control|x=1": np.array([1.0, 1, 1, 1]), "control|x=2": np.array([3.0, 3, 3, 3])}


def shift_of(name: str, wanted: str) -> list[float] | None:
    """The shift of the single target of `wanted` when the singles of `name`, in order, shift by 1, 2, 4, ..."""
    measured = [(parse(single), np.array([2.0**i])) for i, single in enumerate(name.split())]
    condition = parse(wanted)
    shift = single_shift(measured, condition.perturbations[0], condition)
    return None if shift is None else shift.ravel().tolist()


@pytest.mark.parametrize(
    ("measured", "wanted", "shift"),
    [
        ("A", "A", [1]),
        ("A@1 A@10 A@100", "A@10", [2]),
        ("A@1 A@10 A@100", "A@30", [2]),  # 30 is nearer to 10 than to 100 in log dose (31.6 would be level)
        ("A@1 A@10 A@100", "A@40", [4]),
        ("A@1 A@100", "A@10", [1.5]),
        ("A@1 A@10", "A", [1.5]),
        ("A", "A@7", [1]),
        ("A@1 A@10", "A@0", [0]),
        ("A@0 A@10", "A@0", [1]),
        ("A@0 A@10", "A@0.001", [2]),
        ("A|x=1 A|x=2", "A|x=2", [2]),
        ("A|x=1 A|x=2", "A|x=3", [1.5]),
        ("A@1|x=1 A@9|x=1 A@1|x=2", "A@9|x=2", [4]),
        ("A@1|x=1 A@9|x=1 A@1|x=2", "A@8|x=3", [3]),
        ("A@1|time=6 A@1|time=24 A@5|time=24", "A@1|time=20", [2]),
        ("A@1|time=6 A@1|time=24 A@5|time=24", "A@4|time=6", [4]),
        ("", "A", None),
        ("", "A@0", [0]),
    ],
)
def test_the_nearest_single(measured: str, wanted: str, shift: list[float] | None) -> None:
    assert shift_of(measured, wanted) == shift


@given(st.floats(1e-6, 1e6), st.floats(1e-3, 1e3))
def test_the_dose_scale_starts_at_control_rises_and_knows_no_unit(dose: float, unit: float) -> None:
    scale = DoseScale.of([f"A@{1 * unit}", f"A@{10 * unit}", "B", f"C@{5 * unit}"])
    assert scale(Perturbation("A", 0.0)) == 0
    assert scale(Perturbation("A", 10 * unit)) == pytest.approx(1)
    assert scale(Perturbation("C", 5 * unit)) == 1
    assert scale(Perturbation("A")) == scale(Perturbation("B")) == 1
    assert scale(Perturbation("A", dose)) < scale(Perturbation("A", 1.01 * dose))
    assert scale(Perturbation("A", dose)) == pytest.approx(
        DoseScale.of(["A@1", "A@10"])(Perturbation("A", dose / unit))
    )
    assert scale(Perturbation("NEW", 10 * unit)) == pytest.approx(1)


def test_settings_are_columns_only_where_they_vary() -> None:
    names = ["A|x=1|y=0", "B|x=2|y=0", "A|x=1|y=0"]
    assert settings_of(names) == [("x", "1"), ("x", "2")]
    assert settings_of(["A", "B"]) == []
    columns = indicators(["A|x=2|y=0", "A|x=3", "A"], settings_of(names))
    assert columns.tolist() == [[0, 1], [0, 0], [0, 0]]
    assert indicators(["A", "B"], []).shape == (2, 0)


@pytest.fixture
def training() -> Training:
    """Effects that differ between the settings; B is measured in one of them."""
    shift = {"A|x=1": [1, 0, 0, 1], "B|x=1": [0, 1, 2, 0], "A|x=2": [2, 0, 0, 2]}
    mean = [np.array(values) + CONTROLS[f"control{name[1:]}"] for name, values in shift.items()]
    return Training(tuple(shift), np.array(mean, float), np.full(4, 2.0), GENES, CONTROLS)


def test_matched_controls_are_the_origin_of_every_rule(training: Training) -> None:
    wanted = ["A+B|x=1", "A+B|x=2", "B|x=2", "A+C|x=2"]
    first, second = CONTROLS.values()
    np.testing.assert_array_equal(no_change(training, wanted), [first, second, second, second])
    mean = np.array([1, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(training_mean(training, wanted)[:2], [first + mean, second + mean])
    predicted = additive(training, wanted)
    shifts = np.array([[1, 1, 2, 1], [2, 1, 2, 2], [0, 1, 2, 0]])
    np.testing.assert_allclose(predicted[:3], np.array([first, second, second]) + shifts)
    assert np.isnan(predicted[3]).all()
    np.testing.assert_array_equal(training.controls(["Q|x=9"]), [training.control])
    for rule in (ridge, low_rank):
        twin = Training(training.conditions, training.shift, np.zeros(4), GENES)
        np.testing.assert_allclose(rule(training, wanted) - no_change(training, wanted), rule(twin, wanted), atol=1e-12)


def test_ridge_recovers_effects_of_doses_and_settings() -> None:
    rng = np.random.default_rng(0)
    effect, setting = rng.normal(size=(2, 4)), {"1": rng.normal(size=4), "2": rng.normal(size=4)}
    scale = DoseScale({"A": (1, 100), "B": (1, 100)}, (1, 100))

    def truth(name: str) -> np.ndarray:
        condition = parse(name)
        own = sum(scale(one) * effect["AB".index(one.target)] for one in condition.perturbations)
        return np.asarray(own + setting[dict(condition.covariates)["x"]])

    names = tuple(f"{t}@{d}|x={x}" for t in "AB" for d in (1, 10, 100) for x in (1, 2))
    training = Training(names, np.array([truth(name) for name in names]), np.zeros(4), GENES)
    wanted = ["A@30|x=1", "B@3|x=2", "A@100|x=2"]
    np.testing.assert_allclose(ridge(training, wanted, 1e-9), [truth(name) for name in wanted], atol=1e-5)
    assert np.isnan(ridge(training, ["C@1|x=1"], 1e-9)).all()


def test_low_rank_takes_doses_and_settings() -> None:
    rng = np.random.default_rng(1)
    genes = tuple("ABCDE") + tuple(f"g{i}" for i in range(10))
    names = tuple(f"{t}@{d}|x={x}" for t in "ABCD" for d in (1, 10) for x in (1, 2))
    training = Training(names, rng.normal(size=(len(names), 15)), np.zeros(15), genes)
    predicted = low_rank(training, ["E@1|x=1", "E@10|x=1", "E@10|x=2", "Q@1|x=1"])
    assert np.isfinite(predicted[:3]).all()
    assert np.isnan(predicted[3]).all()
    assert len(np.unique(predicted[:3], axis=0)) == 3
