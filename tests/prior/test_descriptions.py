"""Descriptions of targets: those that predict left-out targets count, those that say nothing do not."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from scdfm.prior import EffectPrior, learn_prior
from scdfm.prior.descriptions import EXPRESSION, STEPS, Missed, Sizes, borne_out, fitted_sizes, left_out

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
    for rows, missed, variances in zip(groups, *left_out(axes, inverse, dual, groups), strict=True):
        others = [row for row in range(9) if row not in rows]
        for j, level in enumerate(levels):
            whole = covariance[np.ix_(others, others)] + level * np.eye(len(others))
            expected = covariance[np.ix_(rows, others)] @ np.linalg.solve(whole, values[others, j])
            np.testing.assert_allclose(missed[:, j], values[rows, j] - expected, rtol=1e-8)
            known = covariance[np.ix_(rows, others)] @ np.linalg.solve(whole, covariance[np.ix_(others, rows)])
            left = np.diag(covariance[np.ix_(rows, rows)] - known) + level
            np.testing.assert_allclose(variances[:, j], left, rtol=1e-8)


def screen(seed: int, size: float = 1.0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Singles and doubles of 40 targets whose response is linear in 4 features, and partly their own; and the features."""
    rng = np.random.default_rng(seed)
    rows = {f"D{i:02d}": rng.normal(size=4) for i in range(40)}
    loadings = rng.normal(size=(4, 60))
    shifts = {name: size * row @ loadings + rng.normal(size=2) @ rng.normal(size=(2, 60)) for name, row in rows.items()}
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


GENES = [f"G{i}" for i in range(60)]
TARGETS = [f"T{i:02d}" for i in range(40)]


def few_respond(seed: int) -> np.ndarray:
    """Shifts [40, 60] along one direction, of which a quarter is large and the rest next to nothing."""
    rng = np.random.default_rng(seed)
    sizes = np.where(rng.permutation(40) < 10, 4.0, 0.2)
    return sizes[:, None] * (rng.normal(size=60) / 60**0.5 + 0.05 * rng.normal(size=(40, 60)))


def of_singles(shifts: np.ndarray, n: int = 30) -> EffectPrior:
    return learn_prior(TARGETS[:n], shifts[:n], [200] * n, np.full(60, 0.02), GENES).prior


def test_where_most_do_little_an_unseen_target_is_expected_to_do_less_than_their_mean() -> None:
    errors = []
    for seed in range(8):
        shifts = few_respond(seed)
        prior = of_singles(shifts)
        assert prior.sizes.typical < 1
        plain = replace(prior, sizes=Sizes())
        new = TARGETS[30:]
        errors.append([np.linalg.norm(one.predict(new) - shifts[30:], axis=1).mean() for one in (prior, plain)])
        np.testing.assert_allclose(prior.predict(new), prior.sizes.typical * plain.predict(new))
        np.testing.assert_allclose(prior.uncertainty(new), prior.sizes.calibration * plain.uncertainty(new))
        known = [*TARGETS[:5], "T00+T01", "T00+T35"]  # what was measured, and combinations, stay as they are
        np.testing.assert_array_equal(prior.predict(known), plain.predict(known))
    gain = np.diff(np.array(errors), axis=1)[:, 0]
    assert gain.mean() > 2 * gain.std(ddof=1) / len(gain) ** 0.5


def test_where_all_do_alike_nothing_is_taken_off() -> None:
    """And doubts are as large as what is missed, half of what they would be without `calibration`."""
    over = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        shifts = rng.normal(size=60) + 0.3 * rng.normal(size=(40, 60))
        prior = of_singles(shifts)
        assert replace(prior.sizes, calibration=1.0) == Sizes()
        new = prior.knowing(TARGETS[30:])
        missed = np.square(new.predict(TARGETS[30:]) - shifts[30:]).sum(1).mean()
        doubts = [replace(new, sizes=sizes).doubt(TARGETS[30:]).mean() for sizes in (prior.sizes, Sizes())]
        over.append([missed / doubt for doubt in doubts])
    told, untold = np.mean(over, axis=0)
    assert 0.85 < told < 1.15
    assert untold < 0.6


def described(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Features of targets, and shifts in ways of their own whose log sizes follow the first feature."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(40, 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    sizes = np.exp(1.5 * rows[:, 0])
    shifts = sizes[:, None] * (0.3 * rng.normal(size=(40, 60)) + rng.normal(size=60)) / 8
    return dict(zip(TARGETS, rows, strict=True)), shifts, sizes


@pytest.mark.parametrize("seed", range(3))
def test_a_description_tells_sizes_and_a_shuffled_one_does_not(seed: int) -> None:
    features, shifts, sizes = described(seed)
    order = np.random.default_rng(seed).permutation(40)
    shuffled = dict(zip(TARGETS, np.array([*features.values()])[order], strict=True))
    new = TARGETS[30:]
    for given, told in ((features, True), (shuffled, False)):
        table = {"table": given}
        prior = learn_prior(TARGETS[:30], shifts[:30], [200] * 30, np.full(60, 0.02), GENES, table).prior
        assert ("similar: table" in prior.sizes.shares) == told
        knowing = prior.knowing(new, table)
        expected = np.linalg.norm(knowing.predict(new), axis=1)
        if told:
            assert spearmanr(expected, sizes[30:]).statistic > 0.6
            assert spearmanr(knowing.doubt(new), sizes[30:]).statistic > 0.6
            missed = np.square(knowing.predict(new) - shifts[30:]).sum(1)
            assert 0.3 < np.median(missed / knowing.doubt(new)) < 3
        else:
            assert np.ptp(expected) < 0.3 * expected.mean()


def test_a_size_that_the_direction_told_is_not_told_twice() -> None:
    """Features that are alike where sizes are tell both: of an unseen target the doubt still takes its size."""
    errors, ratios = [], []
    for seed in range(6):
        features, shifts, _ = described(seed)
        table, new = {"table": features}, TARGETS[30:]
        prior = learn_prior(TARGETS[:30], shifts[:30], [200] * 30, np.full(60, 0.02), GENES, table).prior
        assert prior.sizes.shares
        assert prior.sizes.power < 1
        twice, once = (replace(prior, sizes=replace(prior.sizes, power=power)) for power in (1.0, prior.sizes.power))
        missed = [np.linalg.norm(one.knowing(new, table).predict(new) - shifts[30:], axis=1) for one in (twice, once)]
        errors.append([one.mean() for one in missed])
        ratios.append(np.median(missed[1] ** 2 / once.knowing(new, table).doubt(new)))
    gain = -np.diff(np.array(errors), axis=1)[:, 0]
    assert gain.mean() > 2 * gain.std(ddof=1) / len(gain) ** 0.5
    assert 0.3 < np.median(ratios) < 3


def by_expression(seed: int) -> tuple[EffectPrior, list[str], np.ndarray]:
    """40 targets among the genes, whose shifts [40, 60] are as large as they are expressed, and the prior of 32 of them."""
    rng = np.random.default_rng(seed)
    control = np.concatenate([np.full(20, 0.0), np.full(20, 2.0), np.ones(20)])
    names = [f"G{i}" for i in rng.permutation(40)]
    shifts = np.array([0.1 + control[int(name[1:])] for name in names])[:, None] * rng.normal(size=60)
    shifts += 0.02 * rng.normal(size=(40, 60))
    controls = np.tile(control, (32, 1))
    prior = learn_prior(names[:32], shifts[:32], [200] * 32, np.full(60, 0.02), GENES, controls=controls).prior
    return prior, names, shifts


def test_a_size_that_nothing_else_told_has_its_whole_power() -> None:
    """Expression is no description: the direction knows nothing of it, and sizes lower the error of left-out targets."""
    errors = []
    for seed in range(6):
        prior, names, shifts = by_expression(seed)
        assert prior.sizes.power == 1
        without = replace(prior, sizes=replace(prior.sizes, power=0.0))
        new = names[32:]
        both = [one.knowing(new).predict(new) for one in (without, prior)]
        errors.append([np.linalg.norm(one - shifts[32:], axis=1).mean() for one in both])
    assert all(whole < none for none, whole in errors)


def test_expression_tells_sizes() -> None:
    """Knocking down what is not expressed does nothing."""
    prior, names, _ = by_expression(2)
    assert EXPRESSION in prior.sizes.shares
    lengths = np.linalg.norm(prior.predict(names[32:]), axis=1)
    silent = np.array([int(name[1:]) < 20 for name in names[32:]])
    assert lengths[silent].max() < 0.3 * lengths[~silent].min()


def test_sizes_are_saved(tmp_path: Path) -> None:
    features, shifts, _ = described(0)
    table = {"table": features}
    prior = learn_prior(TARGETS[:30], shifts[:30], [200] * 30, np.full(60, 0.02), GENES, table).prior
    prior.save(tmp_path / "prior.safetensors")
    again = EffectPrior.load(tmp_path / "prior.safetensors")
    assert again.sizes == prior.sizes
    for one in ("predict", "uncertainty"):
        values = [getattr(which.knowing(TARGETS, table), one)(TARGETS) for which in (prior, again)]
        np.testing.assert_allclose(*values, rtol=1e-10)


def test_few_sizes_tell_nothing() -> None:
    one = Missed(np.ones((1, 2)), 2 * np.ones((1, 2)), np.ones(1), np.zeros(1))
    assert fitted_sizes(TARGETS[:3], np.ones(3), {"a": np.eye(3)}, [one] * 3) == Sizes()


def test_doubts_are_as_large_as_what_left_out_targets_are_missed_by() -> None:
    """Twice as far off as expected, beside noise that is known: the factor is 2; as expected: 1, to the bit."""
    likeness = {"a": np.eye(40)}
    for times in (1.0, 2.0):
        factors = []
        for seed in range(8):
            rng = np.random.default_rng(seed)
            doubts, noise = rng.uniform(0.5, 2, 40), 0.3
            errors = rng.normal(size=(40, 50)) * np.sqrt((times**2 * doubts + noise) / 50)[:, None]
            expected = rng.normal(size=50) * 10
            missed = [
                Missed((expected + error)[None], expected[None], np.array([doubt]), np.array([noise]))
                for error, doubt in zip(errors, doubts, strict=True)
            ]
            factors.append(fitted_sizes(TARGETS, np.ones(40), likeness, missed).calibration)
        assert abs(np.mean(factors) - times) < 0.1
        assert times != 1 or np.median(factors) == 1


def test_a_description_is_silent_that_tells_neither_direction_nor_size_of_enough_targets() -> None:
    features, shifts, _ = described(0)

    def learned_with(**tables: dict[str, np.ndarray]) -> EffectPrior:
        return learn_prior(TARGETS[:30], shifts[:30], [200] * 30, np.full(60, 0.02), GENES, tables).prior

    prior = learned_with(table=features)
    no_direction = replace(prior.weights, terms={"same": 1.0})
    assert replace(prior, weights=no_direction).silent == frozenset()
    assert replace(prior, sizes=Sizes()).silent == frozenset()
    assert replace(prior, weights=no_direction, sizes=Sizes()).silent == {"table"}
    few = learned_with(few={target: features[target] for target in TARGETS[:7]}, none={})
    assert few.silent == frozenset()
