"""Cells of another scale are refused wherever cells are given to a run; cells of fewer counts are not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import scdfm
import small
from scdfm.errors import DataError
from scdfm.screening.ensemble import Ensemble, read_observed
from scdfm.screening.ranking import Ranking

OPTIONS = small.options(
    panel={"n_genes": 80}, model={"width": 8}, training={"max_steps": 1, "warmup_steps": 0, "validate_every": 1}
)


@pytest.fixture(scope="module")
def screen():
    return scdfm.simulate(n_genes=100, n_targets=4, cells_per_condition=20, n_controls=80, seed=3)


@pytest.fixture(scope="module")
def run(screen, tmp_path_factory) -> scdfm.Run:
    out = tmp_path_factory.mktemp("scale") / "run"
    return scdfm.fit(scdfm.read_cells(screen), config=scdfm.Config().updated(OPTIONS), out=out, progress=False)


def given(screen, change):
    """Cells of the screen, their values changed."""
    cells = screen.copy()
    cells.X = change(np.asarray(cells.X.todense() if hasattr(cells.X, "todense") else cells.X)).astype(np.float32)
    return cells


CHANGES = {
    "another total": (lambda X: np.log1p(3 * np.expm1(X)), "counts multiplied by about 0.3"),
    "base 2, corrected": (
        lambda X: X * np.linspace(0.95, 1.05, len(X))[:, None] / np.log(2),
        r"values taken as log2\(1 \+ x\)",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_controls_and_observed_cells_of_another_scale_are_refused(run, screen, tmp_path, name):
    change, words = CHANGES[name]
    cells = given(screen, change)
    with pytest.raises(DataError, match=r"controls: cells in another scale than the run's .*"):
        run.predict([run.manifest.targets[0]], controls=cells)
    observed = cells[(cells.obs["perturbation"] != "control").to_numpy()].copy()
    with pytest.raises(DataError, match="observed: cells in another scale"):
        scdfm.identify(run, observed)
    observed.write_h5ad(tmp_path / "toward.h5ad")
    with pytest.raises(DataError, match="toward: cells in another scale"):
        Ranking.of(f"toward:{tmp_path / 'toward.h5ad'}", Ensemble.of(run))
    with pytest.raises(DataError, match=words):
        run.read_controls(cells)


def test_strong_perturbations_are_on_the_scale(run, screen):
    for condition in run.split.train[:3]:
        observed = screen[(screen.obs["perturbation"] == condition).to_numpy()].copy()
        read_observed(observed, Ensemble.of(run))
        with pytest.raises(DataError, match="multiplied by about 0.[234]"):
            read_observed(given(observed, lambda X: np.log1p(3 * np.expm1(X))), Ensemble.of(run))


def of_a_strong_perturbation(X):
    """The nine genes of twenty that are expressed most at eight times their counts; the median gene as it was."""
    linear = np.expm1(X)
    most = linear.mean(axis=0) > np.quantile(linear.mean(axis=0), 0.55)
    return np.log1p(np.where(most, 8, 1) * linear)


def of_another_line(X):
    """Two genes of three at a fifth, the others up, so that the total of all cells stays."""
    linear, low = np.expm1(X), np.random.default_rng(2).random(X.shape[1]) < 2 / 3
    kept = (linear.sum() - 0.2 * linear[:, low].sum()) / linear[:, ~low].sum()
    return np.log1p(np.where(low, 0.2, kept) * linear)


@pytest.mark.parametrize(("change", "factor"), [(of_a_strong_perturbation, 4), (of_another_line, 0.1)])
def test_cells_whose_total_alone_or_whose_median_gene_alone_is_off_are_on_the_scale(run, screen, change, factor):
    """Over the genes that respond most, totals of many of Norman's conditions are several times the controls'."""
    observed = screen[(screen.obs["perturbation"] == run.split.train[0]).to_numpy()].copy()
    read_observed(given(observed, change), Ensemble.of(run))
    with pytest.raises(DataError, match="another scale"):
        read_observed(given(observed, lambda X: np.log1p(factor * np.expm1(change(X)))), Ensemble.of(run))


def test_cells_of_fewer_counts_are_on_the_scale(run, screen):
    """A third of the counts of each cell, normalised as before: means of logarithms fall, totals do not."""
    counts = np.asarray(screen.layers["counts"].todense(), dtype=int)
    thinned = np.random.default_rng(0).binomial(counts, 0.3)
    cells = given(screen, lambda X: np.log1p(thinned / np.maximum(thinned.sum(1, keepdims=True), 1) * 1e4))
    assert run.read_controls(cells).n == 80


def test_a_file_of_controls_may_have_labels_of_its_own(run, screen):
    controls = screen[(screen.obs["perturbation"] == "control").to_numpy()].copy()
    other = controls.copy()
    other.obs = pd.DataFrame({"guide": "safe"}, index=controls.obs.index)
    expected = run.predict([run.manifest.targets[0]], controls=controls)
    for about in ({"perturbation_key": "guide", "control": "safe"}, {}):
        table = run.read_controls(other, **about)
        found = run.predict(list(expected.obs["perturbation"].cat.categories), controls=table)
        np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    raw = controls.copy()
    raw.X = raw.layers["counts"]
    assert run.read_controls(raw, target_sum=10_000).n == controls.n_obs
    with pytest.raises(DataError, match="look like raw counts"):
        run.read_controls(raw)
