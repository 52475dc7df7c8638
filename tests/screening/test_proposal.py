"""Choosing experiments: the criterion beside every choice written out, and what a run's own prior says of its errors."""

from __future__ import annotations

import numpy as np
import pytest

from scdfm.prior import EffectPrior
from scdfm.prior.learn import learn_prior
from scdfm.screening import proposal
from scdfm.screening.proposal import MeanErrors, PriorErrors, median_distance, most_informative

FAR = np.array([[0.0, 0], [0.1, 0], [10, 0], [10.1, 0], [0, 10]])


def by_means(points, doubt=None):
    """Errors of conditions whose predicted means are `points`."""
    points = np.asarray(points, dtype=float)
    return MeanErrors(
        points, np.ones(len(points)) if doubt is None else np.asarray(doubt, float), median_distance(points)
    )


def left(covariance: np.ndarray, noise: float, measured: list[int]) -> np.ndarray:
    """Covariance of all errors once those at `measured` are measured with `noise`."""
    known = covariance[np.ix_(measured, measured)] + noise * np.eye(len(measured))
    across = covariance[:, measured]
    return covariance - across @ np.linalg.solve(known, across.T)


def written_out(errors, candidates: int, known: int, n: int) -> list[int]:
    """The greedy choice of `most_informative`: for each candidate the variance that would be left of all of them."""
    covariance = errors.covariance(range(candidates + known))
    given, picked = list(range(candidates, candidates + known)), []
    for _ in range(n):
        after = {
            at: np.trace(left(covariance, errors.noise, [*given, *picked, at])[:candidates, :candidates])
            for at in range(candidates)
            if at not in picked
        }
        picked.append(min(after, key=after.get))
    return picked


def test_one_of_each_cluster_before_a_second():
    assert {at // 2 for at in most_informative(by_means(FAR), 5, 0, 3)} == {0, 1, 2}


def test_what_is_measured_is_not_asked_again():
    measured = np.concatenate([FAR, FAR[[2, 4]]])
    assert most_informative(by_means(measured), 5, 2, 1)[0] in (0, 1)


def test_two_that_tell_of_each_other_come_before_one_of_larger_variance_that_tells_of_none():
    assert most_informative(by_means(FAR, [1, 1, 0.1, 0.1, 1.2]), 5, 0, 2)[0] in (0, 1)
    assert most_informative(by_means(FAR, [1, 1, 0.1, 0.1, 1.9]), 5, 0, 2)[0] == 4


@pytest.mark.parametrize("known", [0, 4])
def test_it_leaves_least_variance_of_all_candidates(known: int):
    rng = np.random.default_rng(known)
    errors = by_means(rng.standard_normal((12 + known, 3)), rng.uniform(0.5, 1.5, 12 + known))
    assert most_informative(errors, 12, known, 5) == written_out(errors, 12, known, 5)


def test_all_alike_is_no_error():
    assert sorted(most_informative(by_means(np.zeros((3, 2))), 3, 0, 3)) == [0, 1, 2]
    assert most_informative(by_means(np.zeros((2, 2)), np.zeros(2)), 1, 1, 1) == [0]


def test_a_sample_stands_for_a_large_screen(monkeypatch):
    """Nine clusters of ever more conditions: with every fifth condition as a stand-in the large ones still come first."""
    sizes = np.arange(1, 10) * 5
    points = np.repeat(np.arange(9) * 10.0, sizes)[:, None] + np.zeros((1, 2))
    errors = MeanErrors(points, np.ones(len(points)), 1.0)
    whole = most_informative(errors, len(points), 0, 4)
    monkeypatch.setattr(proposal, "SAMPLE", len(points) // 5)
    sampled = most_informative(errors, len(points), 0, 4)
    assert (points[whole] == points[sampled]).all()
    assert points[whole][:, 0].tolist() == [80, 70, 60, 50]


TARGETS = tuple(f"T{i:02d}" for i in range(16))
PAIRS = tuple(f"{a}+{b}" for i, a in enumerate(TARGETS) for b in TARGETS[i + 1 :])


def shifts_of(seed: int) -> dict[str, np.ndarray]:
    """Measured shifts of all singles and pairs, which add up but for an interaction that like pairs share."""
    rng = np.random.default_rng(seed)
    latent, loadings, bent = rng.normal(size=(16, 3)), rng.normal(size=(3, 60)), rng.normal(size=(3, 60))
    shifts = dict(zip(TARGETS, latent @ loadings, strict=True))
    for name in PAIRS:
        (i, a), (j, b) = ((TARGETS.index(target), target) for target in name.split("+"))
        shifts[name] = shifts[a] + shifts[b] + 0.5 * (latent[i] * latent[j]) @ bent
    return {name: shift + 0.1 * rng.normal(size=60) for name, shift in shifts.items()}


def learned(shifts: dict[str, np.ndarray], pairs: list[str]) -> EffectPrior:
    """The prior of all singles and `pairs`."""
    names = [*TARGETS, *pairs]
    genes = [f"G{i}" for i in range(60)]
    return learn_prior(names, np.array([shifts[name] for name in names]), [100] * len(names), np.ones(60), genes).prior


def test_pairs_that_are_chosen_teach_more_of_the_others_than_random_ones():
    gains = []
    for seed in range(4):
        shifts, rng = shifts_of(seed), np.random.default_rng(seed)
        order = rng.permutation(PAIRS).tolist()
        known, free = order[:8], order[8:]
        chosen = [
            free[at] for at in most_informative(PriorErrors(learned(shifts, known), tuple(free)), len(free), 0, 8)
        ]
        for drawn in (rng.permutation(free)[:8].tolist() for _ in range(2)):
            others = [name for name in free if name not in {*chosen, *drawn}]
            real = np.array([shifts[name] for name in others])
            errors = [
                np.linalg.norm(learned(shifts, [*known, *more]).predict(others) - real, axis=1).mean()
                for more in (chosen, drawn)
            ]
            gains.append(1 - errors[0] / errors[1])
    assert np.mean(gains) > 3 * np.std(gains, ddof=1) / len(gains) ** 0.5
    assert np.mean(gains) > 0.1


def test_a_prior_chooses_what_leaves_it_least_unsure():
    prior = learned(shifts_of(0), list(PAIRS[:4]))
    errors = PriorErrors(prior, PAIRS[4:40])
    assert errors.noise == prior.measurement_noise > 0
    assert most_informative(errors, 36, 0, 4) == written_out(errors, 36, 0, 4)
    # What was measured and not learned from counts as measured.
    assert most_informative(errors, 30, 6, 4) == written_out(errors, 30, 6, 4)
