"""How large the response to an unseen target is: learned from those of measured targets, and covered by the uncertainty."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from scdfm.prior import EffectPrior, learn_prior
from scdfm.prior.sizes import EXPRESSION, Sizes, fitted

GENES = [f"G{i}" for i in range(60)]
TARGETS = [f"T{i:02d}" for i in range(40)]


def few_respond(seed: int) -> np.ndarray:
    """Shifts [40, 60] along one direction, of which a quarter is large and the rest next to nothing."""
    rng = np.random.default_rng(seed)
    sizes = np.where(rng.permutation(40) < 10, 4.0, 0.2)
    return sizes[:, None] * (rng.normal(size=60) / 60**0.5 + 0.05 * rng.normal(size=(40, 60)))


def learned(shifts: np.ndarray, n: int = 30) -> EffectPrior:
    return learn_prior(TARGETS[:n], shifts[:n], [200] * n, np.full(60, 0.02), GENES).prior


def test_where_most_do_little_an_unseen_target_is_expected_to_do_less_than_their_mean() -> None:
    errors = []
    for seed in range(8):
        shifts = few_respond(seed)
        prior = learned(shifts)
        assert prior.sizes.typical < 1
        plain = replace(prior, sizes=Sizes())
        new = TARGETS[30:]
        errors.append(
            [np.linalg.norm(one.predict(new) - shifts[30:], axis=1).mean() for one in (prior, plain)]
        )
        np.testing.assert_allclose(prior.predict(new), prior.sizes.typical * plain.predict(new))
        np.testing.assert_array_equal(prior.uncertainty(new), plain.uncertainty(new))
        known = [*TARGETS[:5], "T00+T01", "T00+T35"]  # what was measured, and combinations, stay as they are
        np.testing.assert_array_equal(prior.predict(known), plain.predict(known))
    gain = np.diff(np.array(errors), axis=1)[:, 0]
    assert gain.mean() > 2 * gain.std(ddof=1) / len(gain) ** 0.5


def test_where_all_do_alike_nothing_is_taken_off() -> None:
    rng = np.random.default_rng(0)
    shifts = rng.normal(size=60) + 0.3 * rng.normal(size=(40, 60))
    assert learned(shifts).sizes == Sizes()


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


def test_expression_tells_sizes() -> None:
    """Knocking down what is not expressed does nothing."""
    rng = np.random.default_rng(2)
    control = np.concatenate([np.full(20, 0.0), np.full(20, 2.0), np.ones(20)])
    names = [f"G{i}" for i in rng.permutation(40)]
    shifts = np.array([0.1 + control[int(name[1:])] for name in names])[:, None] * rng.normal(size=60)
    shifts += 0.02 * rng.normal(size=(40, 60))
    prior = learn_prior(
        names[:32], shifts[:32], [200] * 32, np.full(60, 0.02), GENES, controls=np.tile(control, (32, 1))
    ).prior
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
    one = np.ones((3, 2))
    assert fitted(TARGETS[:3], np.ones(3), {"a": np.eye(3)}, one, 2 * one) == Sizes()


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
