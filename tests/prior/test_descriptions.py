"""Descriptions of targets: those that predict left-out targets count, those that say nothing do not."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from scdfm.prior import learn_prior
from scdfm.prior.descriptions import STEPS, borne_out, left_out

GENES = [f"G{i}" for i in range(60)]


def test_groups_are_missed_as_if_they_were_not_there() -> None:
    """The closed form equals solving again without the rows of a group."""
    rng = np.random.default_rng(0)
    root, levels, values = rng.normal(size=(9, 9)), np.array([0.5, 2.0]), rng.normal(size=(9, 2))
    covariance = root @ root.T
    powers, axes = np.linalg.eigh(covariance)
    inverse = 1 / (powers[:, None] + levels)
    dual = axes @ (inverse * (axes.T @ values))
    groups = [[0, 3], [2], [4, 5]]
    for rows, missed in zip(groups, left_out(axes, inverse, dual, groups), strict=True):
        others = [row for row in range(9) if row not in rows]
        for j, level in enumerate(levels):
            whole = covariance[np.ix_(others, others)] + level * np.eye(len(others))
            expected = covariance[np.ix_(rows, others)] @ np.linalg.solve(whole, values[others, j])
            np.testing.assert_allclose(missed[:, j], values[rows, j] - expected, rtol=1e-8)


def screen(seed: int, size: float = 1.0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Singles and doubles of 40 targets whose response is linear in 4 features, and partly their own; and the features."""
    rng = np.random.default_rng(seed)
    rows = {f"D{i:02d}": rng.normal(size=4) for i in range(40)}
    loadings = rng.normal(size=(4, 60))
    shifts = {
        name: size * row @ loadings + rng.normal(size=2) @ rng.normal(size=(2, 60))
        for name, row in rows.items()
    }
    for a, b in itertools.islice(itertools.combinations(rows, 2), 0, 300, 7):
        shifts[f"{a}+{b}"] = 0.85 * (shifts[a] + shifts[b])
    return {name: value + 0.05 * rng.normal(size=60) for name, value in shifts.items()}, rows


def learned(shifts: dict[str, np.ndarray], held: list[str], features: dict[str, Any] | None) -> Any:
    names = [name for name in shifts if not set(name.split("+")) & set(held)]
    values = np.array([shifts[name] for name in names])
    prior = learn_prior(names, values, [100] * len(names), np.full(60, 0.25), GENES, features).prior
    return prior.knowing(held, features)


def error(prior: Any, shifts: dict[str, np.ndarray], names: list[str]) -> float:
    return float(np.linalg.norm(prior.predict(names) - [shifts[name] for name in names], axis=1).mean())


def shuffled(features: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    order = np.random.default_rng(seed).permutation(len(features))
    return dict(zip(features, np.array(list(features.values()))[order], strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_true_features_count_and_shuffled_ones_do_not(seed: int) -> None:
    """Both given at once as each alone: the true ones lower the error of unseen targets, the others change no bit."""
    shifts, features = screen(seed)
    held = list(features)[-8:]
    told, noise = {"true": features}, {"shuffled": shuffled(features, seed)}
    without, true, false, both = (learned(shifts, held, given) for given in (None, told, noise, told | noise))
    assert error(true, shifts, held) < 0.9 * error(without, shifts, held)
    np.testing.assert_array_equal(false.predict(held), without.predict(held))
    np.testing.assert_array_equal(both.predict(held), true.predict(held))
    assert true.weights.terms["similar: true"] in STEPS


def test_doubles_with_an_unseen_target_gain_too() -> None:
    shifts, features = screen(5)
    held = list(features)[:3]
    doubles = [name for name in shifts if "+" in name and set(name.split("+")) & set(held)]
    without, true = learned(shifts, held, None), learned(shifts, held, {"true": features})
    assert len(doubles) > 10
    assert error(true, shifts, doubles) < error(without, shifts, doubles)


def test_two_true_descriptions_are_both_heeded() -> None:
    """Halves of the features in tables of their own: together they say what neither says alone."""
    shifts, features = screen(1, size=2.0)
    held = list(features)[-8:]
    halves = {
        name: {target: row[columns] for target, row in features.items()}
        for name, columns in (("first", slice(2)), ("second", slice(2, 4)))
    }
    one, two = learned(shifts, held, {"first": halves["first"]}), learned(shifts, held, halves)
    assert {"similar: first", "similar: second"} <= set(two.weights.terms)
    assert error(two, shifts, held) < error(one, shifts, held)


def test_few_targets_bear_nothing_out() -> None:
    known = {"few": np.arange(20) < 5, "gains": np.arange(20) < 12}

    def errors(weights: Any) -> np.ndarray:
        return 1 - 0.5 * np.clip(weights.get("gains", 0), 0, 0.3) * np.ones(20) - 0.5 * ("few" in weights)

    assert borne_out(known, errors) == {"gains": 0.3}


def test_an_unclear_gain_is_none() -> None:
    gains = np.tile([1.0, -0.9], 10)
    assert not borne_out({"a": np.full(20, True)}, lambda weights: -gains * weights.get("a", 0))
