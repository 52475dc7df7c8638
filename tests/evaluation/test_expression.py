"""Differential expression on sparse cells, against scipy gene by gene."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats

from scdfm.evaluation import METRICS, evaluate
from scdfm.evaluation.expression import RankTests, against_control, agreement, fold_change
from scdfm.evaluation.metrics import de_spearman
from scdfm.evaluation.pseudobulk import Population


def population(seed: int = 0, sizes: tuple[int, ...] = (80, 40, 25), genes: int = 30) -> Population:
    """Sparse log1p cells of control, A and B, shuffled; gene 0 is silent, gene 1 only speaks in A."""
    rng = np.random.default_rng(seed)
    rate = rng.gamma(0.6, 2.0, genes)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rates = rate * np.exp(labels[:, None] * rng.normal(0, 0.4, genes))
    counts = rng.poisson(rates).astype(np.float32)
    counts[:, 0] = 0
    counts[labels != 1, 1] = 0
    counts[labels == 1, 1] = 3
    order = rng.permutation(len(labels))
    labels, counts = labels[order], counts[order]
    names = ("control", "A", "B")[: len(sizes)]
    rows = {name: np.flatnonzero(labels == i) for i, name in enumerate(names)}
    return Population(sparse.csr_matrix(np.log1p(counts)), np.array([f"g{i}" for i in range(genes)]), rows)


def scipys(cells: Population, condition: str) -> np.ndarray:
    x, y = (cells.X[cells.rows[c]].toarray().astype(np.float64) for c in (condition, "control"))
    return np.array([stats.mannwhitneyu(x[:, g], y[:, g]).pvalue for g in range(x.shape[1])])


def test_p_values_and_fdr_are_scipys():
    cells = population()
    tests = against_control(cells, ["A", "B"], "control")
    for k, condition in enumerate(["A", "B"]):
        expected = scipys(cells, condition)
        expected[0] = 1.0  # a silent gene: all values tie; scipy divides by zero
        np.testing.assert_allclose(tests.p_value[k], expected, rtol=1e-8, atol=1e-300)
        np.testing.assert_allclose(tests.fdr[k], stats.false_discovery_control(expected), rtol=1e-8)
    assert tests.z[0, 1] > 5  # up where only A speaks


def test_a_part_of_the_conditions_gives_the_same():
    cells = population()
    both = against_control(cells, ["A", "B"], "control")
    alone = against_control(cells, ["B"], "control")
    np.testing.assert_array_equal(alone.p_value[0], both.p_value[1])


def test_unsorted_indices_give_the_same():
    cells = population()
    mixed = cells.X.copy()
    for start, end in zip(mixed.indptr, mixed.indptr[1:], strict=False):
        mixed.indices[start:end] = mixed.indices[start:end][::-1]
        mixed.data[start:end] = mixed.data[start:end][::-1]
    mixed.has_sorted_indices = False
    tests = against_control(Population(mixed, cells.genes, cells.rows), ["A"], "control")
    np.testing.assert_array_equal(tests.p_value, against_control(cells, ["A"], "control").p_value)


def test_small_samples_without_ties_are_exact():
    rng = np.random.default_rng(3)
    values = rng.random((30, 4)).astype(np.float32)
    values[:, 3] = np.round(values[:, 3])  # ties: asymptotic
    rows = {"control": np.arange(24), "A": np.arange(24, 30)}
    cells = Population(sparse.csr_matrix(values), np.array(list("wxyz")), rows)
    found = against_control(cells, ["A"], "control").p_value[0]
    np.testing.assert_allclose(found, scipys(cells, "A"), rtol=1e-6)
    exact = stats.mannwhitneyu(values[24:, :3], values[:24, :3], method="exact").pvalue
    np.testing.assert_allclose(found[:3], exact, rtol=1e-12)


def test_it_stays_silent(capfd):
    against_control(population(), ["A"], "control")
    assert capfd.readouterr() == ("", "")


def test_fold_changes_of_silent_genes_are_ranked_by_their_mean():
    ratio = fold_change(np.array([0.0, 0.1, 0.2, np.log(3)]), np.array([0.0, 0.0, 0.0, np.log(2)]))
    assert ratio[0] == 1
    assert ratio[2] > ratio[1] > ratio[3]
    assert ratio[3] == pytest.approx(2.0)


def test_de_spearman_by_hand():
    control = np.full(6, 0.5)
    real = np.array([[1.0, 0.9, 0.8, 0.2, 0.3, 0.5]])
    predicted = np.array([[0.9, 0.95, 0.6, 0.3, 0.2, 3.0]])
    significant = np.array([[True] * 5 + [False]])
    expected = stats.spearmanr(real[0, :5], predicted[0, :5]).statistic  # expm1 keeps the order
    assert de_spearman(predicted, real, control, significant)[0] == pytest.approx(expected)
    assert np.isnan(de_spearman(predicted, real, control, significant & (np.arange(6) < 2)))[0]
    assert np.isnan(de_spearman(np.tile(control, (1, 1)), real, control, significant))[0]


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
