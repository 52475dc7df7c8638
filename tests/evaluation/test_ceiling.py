"""Halves of the real cells, and the norman-like table that is defined by them."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from scdfm.data.reading import read_cells
from scdfm.data.splits import additive_split
from scdfm.evaluation import evaluate
from scdfm.evaluation.ceiling import disjoint_halves, half_against_all, interpolated_duplicate
from scdfm.evaluation.pseudobulk import Moments, Population

ROWS = ("no change", "training mean", "additive", "ridge", "ceiling")
COLUMNS = ("l2", "mse", "mae", "pearson_delta", "ds", "pearson_delta_hat", "pearson_delta_hat_20")


def population(screen) -> Population:
    return Population(screen.X, screen.genes, {c: screen.rows(c) for c in screen.conditions})


def test_disjoint_halves(screen, held_out):
    cells = population(screen)
    halves = disjoint_halves(cells, held_out, seed=0)
    for condition in held_out:
        both = np.concatenate([halves.predicting[condition], halves.compared[condition]])
        np.testing.assert_array_equal(np.sort(both), screen.rows(condition))
        assert len(halves.predicting[condition]) == len(both) // 2
    alone = disjoint_halves(cells, held_out[:1], seed=0)
    np.testing.assert_array_equal(alone.predicting[held_out[0]], halves.predicting[held_out[0]])
    other = disjoint_halves(cells, held_out[:1], seed=1)
    assert not np.array_equal(other.predicting[held_out[0]], halves.predicting[held_out[0]])
    half, _ = halves.moments(cells, held_out)
    expected = screen.X[halves.predicting[held_out[2]]].toarray().astype(float)
    np.testing.assert_allclose(half.mean[2], expected.mean(0), rtol=1e-9)
    np.testing.assert_allclose(half.variance[2], expected.var(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(half.zero[2], (expected == 0).mean(0), rtol=1e-9)


def test_half_against_all(screen, held_out):
    halves = half_against_all(population(screen), held_out, seed=4)
    rng = np.random.default_rng(4)
    for condition in held_out:
        rows = screen.rows(condition)
        expected = np.sort(rows[rng.permutation(len(rows))[: len(rows) // 2]])
        np.testing.assert_array_equal(halves.predicting[condition], expected)
        np.testing.assert_array_equal(halves.compared[condition], rows)


def test_interpolated_duplicate_trusts_genes_that_respond():
    """Gene by gene, with scipy's Welch test on the cells."""
    rng = np.random.default_rng(0)
    shift = np.array([3.0, 0.0, 0.3, 0.1])
    half, control = rng.normal(size=(12, 4)) + shift, rng.normal(size=(40, 4))
    half[:, 1] = control[:, 1] = 0.0  # silent in both
    q = np.ones(4)
    p = stats.ttest_ind(half[:, [0, 2, 3]], control[:, [0, 2, 3]], equal_var=False).pvalue
    q = stats.false_discovery_control([p[0], 1.0, p[1], p[2]])

    def moments(cells):
        return Moments(cells.mean(0)[None], cells.var(0)[None], (cells == 0).mean(0)[None])

    found = interpolated_duplicate(moments(half), np.array([12]), moments(control), 40, np.full(4, 0.5))
    np.testing.assert_allclose(found[0], (1 - q) * half.mean(0) + q * 0.5, rtol=1e-9)
    assert found[0, 1] == 0.5


def test_duplicate_beats_the_raw_half_where_little_responds(screen):
    """A positive control: it is closer to the other half than the first half is where effects are weak."""
    singles = [c for c in screen.conditions if "+" not in c and c != "control"]
    table = evaluate(None, screen, training=screen.means().drop(singles), conditions=singles, metrics=["mse"])
    mean = table.groupby("model")["value"].mean()
    assert mean["duplicate"] < min(mean["no change"], mean["training mean"])


@pytest.fixture(scope="module")
def small_screen(shared, tmp_path_factory):
    """The benchmark screen with few cells, and what the tool that defines the table prints of it."""
    path = tmp_path_factory.mktemp("norman") / "screen.h5ad"
    make, table = shared / "tools" / "make_norman_like.py", shared / "tools" / "norman_like_table.py"
    quiet = os.environ | {"PYTHONWARNINGS": "ignore"}
    run = {"check": True, "capture_output": True, "text": True, "env": quiet}
    subprocess.run([sys.executable, make, path, "--cells", "20", "--controls", "200"], **run)
    printed = subprocess.run([sys.executable, table, path], **run).stdout.splitlines()[1:]
    rows = [line[18:].split() for line in printed]
    return path, dict(zip(ROWS, (np.array(row, dtype=float) for row in rows), strict=True))


def test_norman_like_table(small_screen):
    path, printed = small_screen
    cells = read_cells(path)
    means = cells.means()
    folds = []
    for fold in range(5):
        split = additive_split(cells.conditions, fold=fold, validation_fraction=0)
        measured = [c for c in split.test if all(target in means.index for target in c.split("+"))]
        doubles = np.array(sorted(c for c in cells.conditions if "+" in c))
        np.random.RandomState(42 + fold).shuffle(doubles)
        ordered = [c for c in doubles if c in set(measured)]  # the ceiling's draws follow this order
        table = evaluate(
            None,
            cells,
            protocol="paper",
            training=means.loc[list(split.train)],
            conditions=ordered,
            metrics=COLUMNS,
            seed=fold,
        )
        folds.append(table.groupby(["model", "metric"])["value"].mean())
    ours = sum(folds) / 5
    for row in ROWS:
        found = np.array([ours[row, column] for column in COLUMNS])
        np.testing.assert_allclose(found, printed[row], atol=5.1e-5, err_msg=row)  # four printed decimals
