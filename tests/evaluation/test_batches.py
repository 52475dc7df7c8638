"""Controls matched by batch: each cell counts with the controls of its own batch."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import mannwhitneyu

from scdfm.data import CellTable, read_cells
from scdfm.evaluation import evaluate
from scdfm.evaluation.alignment import align
from scdfm.evaluation.expression import _beside_control, against_control
from scdfm.evaluation.pseudobulk import control_moments, halved_controls

GENES = 60
SIZES = {
    ("control", "A"): 150,
    ("control", "B"): 150,
    ("NULL", "A"): 100,
    ("NULL", "B"): 20,
    ("T", "A"): 30,
    ("T", "B"): 30,
}


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """Two batches far apart; NULL does nothing and stands mostly in A, T raises ten genes and stands in both alike."""
    rng = np.random.default_rng(0)
    base, batch = rng.gamma(2, 1, GENES) + 0.5, rng.normal(0, 0.5, GENES)
    effect = np.r_[np.full(10, 0.8), np.zeros(GENES - 10)]
    X, labels = [], []
    for (label, name), n in SIZES.items():
        rate = 3 * base * np.exp(batch * (name == "B") + effect * (label == "T"))
        X.append(np.log1p(rng.poisson(rate, (n, GENES))).astype(np.float32))
        labels += [(label, name)] * n
    obs = pd.DataFrame(labels, columns=["perturbation", "batch"], index=[f"c{i}" for i in range(len(labels))])
    return ad.AnnData(sp.csr_matrix(np.vstack(X)), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(GENES)]))


@pytest.fixture(scope="module")
def matched(cells: ad.AnnData) -> CellTable:
    return read_cells(cells, match_controls=["batch"])


def mean(cells: ad.AnnData, label: str, batch: str) -> np.ndarray:
    chosen = (cells.obs["perturbation"] == label) & (cells.obs["batch"] == batch)
    return np.asarray(cells[chosen.to_numpy()].X.mean(axis=0), dtype=np.float64).ravel()


def test_control_means_are_weighted_by_the_condition_s_cells(cells: ad.AnnData, matched: CellTable) -> None:
    expected = (100 * mean(cells, "control", "A") + 20 * mean(cells, "control", "B")) / 120
    np.testing.assert_allclose(matched.control_mean("NULL"), expected, rtol=1e-6)
    rows, shares = matched.control_rows("NULL"), matched.control_shares("NULL")
    np.testing.assert_allclose(shares @ matched.X[rows].toarray(), expected, rtol=1e-6)
    real = align(None, matched).real
    found = control_moments(real, ["NULL", "T"])
    np.testing.assert_allclose(found.mean[0], expected, rtol=1e-6)
    X = matched.X[rows].toarray().astype(np.float64)
    np.testing.assert_allclose(found.variance[0], shares @ (X - expected) ** 2, rtol=1e-4)
    np.testing.assert_allclose(found.zero[0], shares @ (X == 0), atol=1e-9)


def test_a_perturbation_without_effect_has_a_shift_of_sampling_noise(cells: ad.AnnData, matched: CellTable) -> None:
    """Its shift is as long as the noise of two means; without matching it is the batch effect."""
    X = cells.X.toarray()
    spread = (
        X[(cells.obs["batch"] == "A").to_numpy() & (cells.obs["perturbation"] == "control").to_numpy()]
        .var(axis=0)
        .sum()
    )
    noise = np.sqrt(spread * (1 / 120 + (100 / 120) ** 2 / 150 + (20 / 120) ** 2 / 150))
    tables = {"batch": matched, "none": read_cells(cells)}
    length = {
        name: evaluate(None, table, metrics=["l2"])
        .query("model == 'no change' and condition == 'NULL'")["value"]
        .item()
        for name, table in tables.items()
    }
    assert length["batch"] < 1.3 * noise
    assert length["none"] > 3 * noise


def test_rank_tests_stay_within_batches(cells: ad.AnnData, matched: CellTable) -> None:
    names = ["NULL", "T"]
    within = against_control(align(None, matched).real, names, "control")
    pooled = against_control(align(None, read_cells(cells)).real, names, "control")
    assert (within.fdr[0] < 0.05).sum() == 0
    assert (pooled.fdr[0] < 0.05).sum() > 10  # the batches' own difference
    assert (within.fdr[1, :10] < 0.05).all()
    assert (within.fdr[1, 10:] < 0.05).sum() <= 2
    X, obs = cells.X.toarray()[:, 0], cells.obs
    z, square = 0.0, 0.0
    for batch in "AB":
        x, y = (X[((obs["perturbation"] == label) & (obs["batch"] == batch)).to_numpy()] for label in ("T", "control"))
        test = mannwhitneyu(x, y, method="asymptotic")
        weight = len(x) * len(y) / (len(x) + len(y) + 1)
        from scipy.stats import norm

        z += np.sqrt(weight) * norm.isf(test.pvalue / 2) * np.sign(test.statistic - len(x) * len(y) / 2)
        square += weight
    assert within.z[1, 0] == pytest.approx(z / np.sqrt(square), rel=1e-5)


def test_conditions_of_several_batches_are_still_ranked_among_each_other(matched: CellTable) -> None:
    scores = evaluate(None, matched, metrics=["ds"])
    assert scores.loc[scores["model"] == "ceiling", "value"].notna().all()


def test_batches_without_controls_take_all_of_them(cells: ad.AnnData) -> None:
    some = cells[~((cells.obs["perturbation"] == "control") & (cells.obs["batch"] == "B")).to_numpy()].copy()
    table = read_cells(some, match_controls=["batch"], control_fallback="all")
    np.testing.assert_allclose(table.control_mean("NULL"), mean(cells, "control", "A"), rtol=1e-6)
    assert table.control_shares("NULL").sum() == pytest.approx(1)


def test_halves_of_control_cells_keep_the_shares_of_batches(matched: CellTable) -> None:
    real = align(None, matched).real
    batch = matched.obs["batch"].to_numpy()
    first, second = halved_controls(real, 0)
    assert not set(first.control_rows("NULL")) & set(second.control_rows("NULL"))
    for half in (first, second):
        rows, shares = half.control_rows("NULL"), half.shares["NULL"]
        assert shares[batch[rows] == "A"].sum() == pytest.approx(100 / 120)
        assert [len(one.controls) for one in half.strata["NULL"]] == [75, 75]
    assert len(set(first.control_rows("NULL")) | set(second.control_rows("NULL"))) == 300


def test_cells_without_an_effect_show_no_responders(cells: ad.AnnData, matched: CellTable) -> None:
    """Predicted cells in the batches of the real ones, and their halves: neither takes a batch for an effect."""
    predicted = cells[(cells.obs["perturbation"] != "control").to_numpy()].copy()
    pair = align(predicted, matched)
    claim = against_control(_beside_control(pair, 0), pair.conditions, "control")
    found = dict(zip(pair.conditions, (claim.fdr < 0.05).sum(axis=1), strict=True))
    assert found["NULL"] <= 2
    assert found["T"] >= 8
    scores = evaluate(predicted, matched, metrics=("de_recall", "de_precision", "pearson_delta_split"))
    scores = scores.set_index(["model", "condition", "metric"])["value"]
    assert scores["model", "T", "de_recall"] > 0.8
    assert scores["ceiling", "T", "de_recall"] > 0.5
    assert scores["model", "T", "pearson_delta_split"] > 0.8
