"""Simple rules, against closed forms and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse as sp

from scdfm.evaluation import baselines
from scdfm.evaluation.baselines import PENALTIES, Training, leave_one_out_penalty
from scdfm.evaluation.prior import linked
from scdfm.evaluation.pseudobulk import Population

GENES = ("A", "B", "C", "D", "x", "y")
rng = np.random.default_rng(0)
CONTROL = rng.gamma(2, 1, len(GENES))
EFFECT = {name: rng.normal(size=len(GENES)) for name in "ABCD"}


def training(names: list[str], extra: float = 0.0) -> Training:
    means = [CONTROL + sum(EFFECT[t] for t in name.split("+")) + extra * ("+" in name) for name in names]
    return Training(tuple(names), np.array(means).reshape(len(names), len(GENES)), CONTROL, GENES)


def test_no_change_and_training_mean():
    table = training(["A", "B", "A+B"])
    np.testing.assert_array_equal(baselines.no_change(table, ["A+C"]), CONTROL[None])
    np.testing.assert_allclose(baselines.training_mean(table, ["A+C"])[0], table.mean.mean(axis=0))


def test_additive_adds_measured_singles_and_is_undefined_otherwise():
    table = training(["A", "B", "A+C"])
    predicted = baselines.additive(table, ["A+B", "A+C", "C"])
    np.testing.assert_allclose(predicted[0], CONTROL + EFFECT["A"] + EFFECT["B"])
    assert np.isnan(predicted[1:]).all()


def test_ridge_finds_additive_effects_and_the_constant_of_combinations():
    table = training(["A", "B", "C", "D", "A+B", "C+D", "A+C"], extra=0.7)
    predicted = baselines.ridge(table, ["B+D"], penalty=1e-9)
    np.testing.assert_allclose(predicted[0], CONTROL + EFFECT["B"] + EFFECT["D"] + 0.7, rtol=1e-6)


def test_ridge_needs_one_seen_target():
    table = training(["A", "B", "A+B"])
    predicted = baselines.ridge(table, ["A+D", "D", "C+D"], penalty=0.1)
    assert np.isfinite(predicted[0]).all()
    assert np.isnan(predicted[1:]).all()


@pytest.mark.parametrize(("n_targets", "n_genes"), [(5, 3), (5, 30), (20, 3), (20, 30)])
def test_leave_one_out_is_brute_force(n_targets, n_genes):
    design = rng.integers(0, 2, (14, n_targets)).astype(float)
    response = design @ rng.normal(size=(n_targets, n_genes)) + rng.normal(size=(14, n_genes))

    def error(penalty: float) -> float:
        total = 0.0
        for i in range(len(design)):
            kept = np.delete(np.arange(len(design)), i)
            x, y = design[kept], response[kept]
            weights = np.linalg.solve(x.T @ x + penalty * np.eye(n_targets), x.T @ y)
            total += float(((response[i] - design[i] @ weights) ** 2).sum())
        return total

    errors = [error(penalty) for penalty in PENALTIES]
    assert leave_one_out_penalty(design, response) == PENALTIES[int(np.argmin(errors))]
    assert 0 < int(np.argmin(errors)) < len(PENALTIES) - 1  # a choice within the range, not at its end


def test_conditions_that_share_no_target_choose_the_smallest_penalty():
    """Left out, each is predicted by 0 whatever the penalty: rounding must not choose."""
    for seed in range(5):
        response = np.random.default_rng(seed).normal(size=(30, 50))
        assert leave_one_out_penalty(np.eye(31)[:30], response) == PENALTIES[0]


def test_low_rank_is_the_same_from_either_covariance():
    """55 conditions of 10 genes; 50 silent genes more turn the smaller side round, and change no score."""
    genes = tuple(f"t{i}" for i in range(10))
    names = (*genes, *(f"{a}+{b}" for a, b in itertools.combinations(genes, 2)))
    shift = np.random.default_rng(0).normal(size=(55, 10))
    few = Training(names, shift, np.zeros(10), genes)
    silent = tuple(f"u{i}" for i in range(50))
    many = Training(names, np.hstack([shift, np.zeros((55, 50))]), np.zeros(60), (*genes, *silent))
    found = [baselines.low_rank(table, ["t0+t1+t2", "t3"], rank=4)[:, :10] for table in (few, many)]
    np.testing.assert_allclose(*found, rtol=1e-9)


def test_low_rank_recovers_a_bilinear_truth_for_an_unseen_target():
    """Shifts that really are G W Pᵀ with P rows of G: an unseen target's response follows from its own gene row."""
    n_genes, rank = 40, 2
    names = tuple(f"t{i}" for i in range(n_genes))
    seen, unseen = names[:35], names[35:]
    embedding = rng.normal(size=(n_genes, rank))
    embedding[:35] -= embedding[:35].mean(axis=0)  # so that the mean training shift b is 0
    w = np.array([[1.0, 0.4], [-0.3, 0.8]])
    shift = embedding @ w @ embedding.T  # gene × target
    table = Training(seen, shift[:, :35].T + 5, np.full(n_genes, 5.0), names)
    predicted = baselines.low_rank(table, unseen, rank=rank, penalty=1e-8) - 5
    np.testing.assert_allclose(predicted, shift[:, 35:].T, atol=1e-4 * np.abs(shift).max())


def test_low_rank_is_undefined_for_targets_that_are_not_genes():
    names = [f"t{i}" for i in range(10)]
    table = Training(tuple(names), rng.normal(size=(10, 12)), np.zeros(12), (*names, "u", "v"))
    predicted = baselines.low_rank(table, ["u", "t1+v", "drug"])
    assert np.isfinite(predicted[:2]).all()
    assert np.isnan(predicted[2]).all()


def test_nothing_trained_leaves_only_no_change():
    empty = training([])
    for name, predicted in baselines.predictions(empty, ["A", "A+B"]).items():
        assert np.isnan(predicted).all() == (name != "no change"), name


@pytest.mark.parametrize("penalty", [0.1, 10.0])
def test_ridge_is_the_normal_equations(penalty):
    table = training(["A", "B", "A+B", "C"], extra=0.3)
    design = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 1], [0, 0, 1, 0]], dtype=float)
    weights = np.linalg.solve(design.T @ design + penalty * np.eye(4), design.T @ (table.mean - CONTROL))
    expected = CONTROL + np.array([0, 1, 1, 1]) @ weights
    np.testing.assert_allclose(baselines.ridge(table, ["B+C"], penalty)[0], expected, rtol=1e-10)


def linked_screen(sign: float) -> tuple[Population, dict[str, np.ndarray]]:
    """Control cells whose genes vary in two modules, and targets that move their own module by `sign` deviations."""
    draw = np.random.default_rng(1)
    loadings = np.array([[1, 0.8, 0.6, 0, 0, 0], [0, 0, 0, 1, 0.7, 0.5]])
    cells = 4 + draw.normal(size=(3000, 2)) @ loadings + 0.3 * draw.normal(size=(3000, 6))
    covariance = np.cov(cells.T, bias=True)
    shifts = {gene: sign * covariance[:, at] / covariance[at, at] ** 0.5 for at, gene in enumerate(GENES)}
    return Population(sp.csr_matrix(cells), np.array(GENES), {"control": np.arange(3000)}), shifts


@pytest.mark.parametrize("sign", [-1.5, 1.0])
def test_covariance_moves_the_neighbours_of_an_unseen_target(sign: float) -> None:
    real, shifts = linked_screen(sign)
    control = np.full(6, 4.0)
    links = linked(real, ["A", "C", "no gene"], ["D", "A+D", "other"])
    table = Training(("A", "C"), control + np.array([shifts["A"], shifts["C"]]), control, GENES, linked=links)
    found = baselines.covariance(table, ["D", "A+D", "other"])
    np.testing.assert_allclose(found[0] - control, shifts["D"], atol=0.1)  # 2,000 of the cells are looked at
    np.testing.assert_allclose(found[1] - control, shifts["A"] + shifts["D"], atol=0.2)
    assert np.isnan(found[2]).all()
    assert "covariance" in baselines.predictions(table, ["D"])


def test_covariance_is_asked_for_unseen_targets_alone() -> None:
    real, _ = linked_screen(1.0)
    assert not linked(real, ["A", "B"], ["A+B"])
    assert not linked(real, ["A"], ["no gene", "A"])
    assert "covariance" not in baselines.predictions(training(["A", "B", "A+B"]), ["A+B"])
