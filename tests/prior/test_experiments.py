"""The conditions that tell most: against the posterior covariance written out, and on a screen with the answer known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from scdfm.prior import EffectPrior, learn_prior, telling
from scdfm.prior import experiments as module

TARGETS = [f"T{i:02}" for i in range(8)]
SINGLES = TARGETS
PAIRS = ["+".join(pair) for pair in itertools.combinations(TARGETS, 2)]


@pytest.fixture(scope="module")
def prior() -> EffectPrior:
    rng = np.random.default_rng(0)
    effects = dict(zip(TARGETS, rng.normal(size=(8, 30)), strict=True))
    names = [*SINGLES, *PAIRS[:6]]
    shifts = np.array([sum(effects[target] for target in name.split("+")) for name in names])
    shifts += 0.3 * rng.normal(size=shifts.shape)
    genes = [f"gene{i}" for i in range(30)]
    return learn_prior(names, shifts, [50] * len(names), np.full(30, 0.09 * 50), genes).prior


def posterior(prior: EffectPrior, names: list[str], noise: float) -> np.ndarray:
    kernel = prior.knowing(TARGETS).kernel
    asked, measured = kernel.encode(names), kernel.encode(prior.conditions)
    across = kernel.matrix(asked, measured, prior.weights)
    within = kernel.matrix(measured, measured, prior.weights) + noise * np.eye(len(prior.conditions))
    return kernel.matrix(asked, asked, prior.weights) - across @ np.linalg.solve(within, across.T)


def test_it_takes_most_off_the_summed_variance(prior: EffectPrior) -> None:
    """Equal cells, so W is 1: every choice is the one that the covariance, conditioned step by step, names."""
    noise, left = float(np.median(prior.noise[:10])), PAIRS[6:]
    covariance, expected = posterior(prior, left, noise), []
    for _ in range(5):
        after = [
            np.trace(covariance - np.outer(row, row) / (row[at] + noise)) for at, row in enumerate(covariance)
        ]
        order = [at for at in np.argsort(after, kind="stable") if at not in expected]
        expected.append(int(order[0]))
        row = covariance[expected[-1]]
        covariance = covariance - np.outer(row, row) / (row[expected[-1]] + noise)
    assert telling(prior, left, 5) == expected


def test_blocks_and_references_change_nothing_that_fits(
    prior: EffectPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = telling(prior, PAIRS[6:], 4)
    monkeypatch.setattr(module, "BLOCK", 5)
    assert telling(prior, PAIRS[6:], 4) == whole
    monkeypatch.setattr(module, "REFERENCES", 3)
    assert len(set(telling(prior, PAIRS[6:], 22))) == 22


def test_a_target_of_which_little_is_known_comes_first(prior: EffectPrior) -> None:
    """Targets measured alone leave less doubt than one that was not measured at all."""
    knowing = prior.knowing(["T99"])
    names = ["T00+T05", "T01+T06", "T99", "T00+T99", "T01+T99"]
    assert "T99" in names[telling(knowing, names, 1)[0]]
