"""The search backwards: an oracle's run is searched right, chances are honest, and refusals name the remedy."""

from __future__ import annotations

import math

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdfm
import small
from scdfm.errors import ConditionError, ConfigError, DataError, RunError
from scdfm.screening import identify
from scdfm.screening.ensemble import Ensemble
from scdfm.screening.identification import Candidates, Search, Temperature, fitted_temperature, softmin


@pytest.fixture
def oracle(run, cells, monkeypatch):
    """The run, but every measured condition is predicted by drawing among one half of its real cells."""

    def predict(self, conditions, controls=None, *, n_cells, genes=None, seed=0, **_):
        columns = cells.columns(self.genes)
        blocks = []
        for name in conditions:
            rows = cells.rows(name)[::2]
            drawn = scdfm.seeds.numpy_rng(seed, name).choice(rows, n_cells)
            blocks.append(cells.X[drawn][:, columns].toarray())
        obs = pd.DataFrame({"perturbation": np.repeat(list(conditions), n_cells)})
        obs.index = obs.index.astype(str)
        import scipy.sparse as sp

        return ad.AnnData(sp.csr_matrix(np.concatenate(blocks)), obs=obs, var=pd.DataFrame(index=self.genes))

    monkeypatch.setattr(scdfm.Run, "predict", predict)
    return run


def other_half(cells, name: str) -> ad.AnnData:
    """The real cells that the oracle never shows."""
    return cells.take(cells.rows(name)[1::2]).to_adata()


def test_an_oracle_finds_what_was_done(oracle, cells):
    names = [name for name in cells.conditions if name != "control"]
    places = []
    for name in names:
        found = scdfm.identify(oracle, other_half(cells, name), conditions=names, cells=20, shortlist=6, seed=2)
        places.append(int(found.table.set_index("condition").loc[name, "rank"]))
        assert found.chance == pytest.approx(1 / len(names))
        assert found.table["probability"].sum() == pytest.approx(1)
    assert np.mean(np.array(places) == 1) > 5 / len(names)  # six cells each; chance is 1 / 13
    assert np.mean(np.array(places) <= 3) > 0.6


def test_the_table_is_ordered_by_energy_then_by_mean(oracle, cells):
    name = oracle.split.train[-1]
    names = [other for other in cells.conditions if other != "control"]
    found = identify(oracle, other_half(cells, name), conditions=names, cells=10, shortlist=5)
    table = found.table
    assert table["energy"].head(5).is_monotonic_increasing
    assert table["energy"].iloc[5:].isna().all()
    assert table["mean_distance"].iloc[5:].is_monotonic_increasing
    assert table["mean_distance"].iloc[5:].min() >= table["mean_distance"].head(5).max()
    assert table["probability"].head(5).is_monotonic_decreasing
    assert f"{len(names)} candidates: chance puts the answer first in" in str(found)


def test_candidates_serve_many_searches_and_are_predicted_once(run, cells, monkeypatch):
    names, doubles = list(run.split.train)[:4], [name for name in run.split.conditions if "+" in name][:2]
    alone = [scdfm.identify(run, cells.select([name]), conditions=names, cells=4, calibrate=2) for name in doubles]
    among = Candidates.of(run, conditions=names, cells=4)
    first = among.identify(cells.select([doubles[0]]), calibrate=2)
    monkeypatch.setattr(scdfm.Run, "predict", None)  # nothing is left to predict
    second = among.identify(cells.select([doubles[1]]), calibrate=2)
    for found, expected in zip((first, second), alone, strict=True):
        pd.testing.assert_frame_equal(found.table, expected.table)


def test_a_screen_spares_the_predictions_and_gives_the_same_answer(run, cells, finished, monkeypatch):
    name = run.split.test[0]
    monkeypatch.setattr("scdfm.screening.identification.FEW_CELLS", 6)  # as many as the screen has
    slow = scdfm.identify(run, cells, condition=name, cells=6, shortlist=3, seed=1, calibrate=0)
    asked = []
    predict = scdfm.Run.predict

    def counting(self, conditions, *args, **kwargs):
        asked.extend(conditions)
        return predict(self, conditions, *args, **kwargs)

    monkeypatch.setattr(scdfm.Run, "predict", counting)
    quick = scdfm.identify(run, cells, condition=name, cells=6, shortlist=3, seed=1, calibrate=0, screen=finished.path)
    assert asked == []  # its means and its cells were kept
    both = slow.table.merge(quick.table, on="condition", suffixes=("_slow", "_quick")).dropna(subset="energy_quick")
    both = both.dropna(subset="energy_slow")
    np.testing.assert_allclose(both["energy_slow"], both["energy_quick"], rtol=1e-3)
    assert len(both) == 3
    assert quick.table["probability"].isna().all()  # nothing calibrated it


def test_a_desired_population_without_labels_on_half_of_the_genes(run, cells, tmp_path):
    desired = cells.select([run.split.train[0]]).to_adata()[:, run.genes[: len(run.genes) // 2 + 1]].copy()
    desired.obs = desired.obs[[]]
    desired.write_h5ad(tmp_path / "desired.h5ad")
    found = scdfm.identify(run, tmp_path / "desired.h5ad", order=1, cells=4, shortlist=2, calibrate=2)
    assert len(found.table) == 5
    assert np.isfinite(found.control_energy)
    few = desired[:, :5].copy()
    with pytest.raises(DataError, match=r"5 of the run's \d+ genes are measured"):
        scdfm.identify(run, few, order=1)
    with pytest.raises(DataError, match="1 cell, expected at least 2"):
        scdfm.identify(run, desired[:1].copy(), order=1)
    with pytest.raises(DataError, match="does not exist; expected an .h5ad file or a .zarr store"):
        scdfm.identify(run, tmp_path / "nowhere.h5ad")
    (tmp_path / "text.h5ad").write_text("no cells")
    with pytest.raises(DataError, match="is not an h5ad"):
        scdfm.identify(run, tmp_path / "text.h5ad")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cells": 1}, ConfigError, "identify: cells 1"),
        ({"condition": "nobody"}, ConditionError, "'nobody' is not measured"),
        ({"targets": ["nobody", "no one"]}, ConditionError, "target 'no"),
        ({"order": 5}, ConditionError, "order 5"),
        ({"shortlist": 0}, ConfigError, "identify: shortlist 0, calibrate 8"),
    ],
)
def test_refusals(run, cells, options, error, message):
    with pytest.raises(error, match=message):
        scdfm.identify(run, cells, **options)


def test_a_screen_of_other_runs_is_refused(runs, cells, finished):
    with pytest.raises(RunError, match="was made by other runs"):
        scdfm.identify(runs[1], cells, screen=finished)


def test_temperature_follows_the_likelihood():
    rng = np.random.default_rng(0)
    truth = 0.3  # energies whose answers are drawn at this temperature: the fit finds it again
    energies = [rng.random(10) for _ in range(4000)]
    answers = [int(rng.choice(10, p=softmin(energy, 1 / truth))) for energy in energies]
    found = fitted_temperature(energies, answers, "validation")
    assert found.value == pytest.approx(truth, rel=0.1)
    picked = np.array([found.probabilities(energy)[answer] for energy, answer in zip(energies, answers, strict=True)])
    expected = np.array([np.square(found.probabilities(energy)).sum() for energy in energies])
    assert picked.mean() == pytest.approx(expected.mean(), rel=0.05)  # calibrated: as right as it says


def test_few_or_no_known_answers_stay_modest():
    sure = fitted_temperature([np.array([0.0, 5.0, 6.0])] * 2, [0, 0], "validation")
    assert (sure.first, sure.shortlisted) == (2, 2)
    assert sure.elsewhere == pytest.approx(0.5 / 3)
    assert sure.probabilities(np.array([0.0, 5.0, 6.0])).max() < 0.95
    wrong = fitted_temperature([np.array([0.0, 5.0, 6.0])] * 6, [2, 2, None, 1, 2, None], "validation")
    chances = wrong.probabilities(np.array([0.0, 5.0, 6.0]))
    assert np.ptp(chances) < 0.05
    missed = fitted_temperature([np.array([0.0, 1.0])], [None], "validation")
    assert missed.probabilities(np.array([0.0, 1.0])) == pytest.approx([0.125, 0.125])
    none = Temperature(math.inf, 0, 0, 0, "none")
    assert np.isnan(none.probabilities(np.array([0.0, 1.0]))).all()


def test_whitening_takes_out_the_errors_that_the_run_is_known_for(run, cells):
    """Predictions off along one gene alone: that direction stops counting, the others keep their length."""
    ensemble = Ensemble.of(run)
    names = tuple(name for name in ensemble.measured.index if name != "control")
    candidates = Candidates(ensemble, run.controls, names, 4, 0, None, False)
    rng = np.random.default_rng(0)
    reference = Search(candidates, np.arange(len(run.genes)), 3).reference
    axis = reference.axes.components[0].astype(float)
    off = ensemble.measured.loc[list(names)].to_numpy() + 5 * rng.standard_normal((len(names), 1)) * axis
    candidates.__dict__["means"] = off
    search = Search(candidates, np.arange(len(run.genes)), 3)
    shrunk = search.whitening()
    first = np.eye(len(shrunk))[0]
    assert np.linalg.norm(first @ shrunk) < 0.2
    rest = np.eye(len(shrunk))[1:] @ shrunk
    np.testing.assert_allclose(np.linalg.norm(rest, axis=1), 1, atol=0.02)
    for name in names:  # so that each is found in spite of its error, which alone would hide most
        rows, _ = search.nearest(ensemble.measured.loc[name].to_numpy(), search.whitening(without=name))
        assert names[rows[0]] == name
    few = Candidates(ensemble, run.controls, names[:3], 4, 0, None, False)
    np.testing.assert_array_equal(Search(few, np.arange(len(run.genes)), 3).whitening(), np.eye(len(shrunk)))


@pytest.fixture(scope="module")
def of_two_lines(tmp_path_factory) -> tuple[scdfm.Run, ad.AnnData]:
    """A run of two lines, and its screen."""
    screen = small.screen(cells_per_condition=12)
    screen.obs["line"] = np.where(np.arange(screen.n_obs) % 2 == 0, "A", "B")
    out = tmp_path_factory.mktemp("lines") / "run"
    cells = scdfm.read_cells(screen, covariates=["line"])
    return small.run(out, cells, training={"max_steps": 0}), screen


def test_candidates_have_the_setting_of_the_condition_that_is_asked_about(of_two_lines):
    run, screen = of_two_lines
    target = run.manifest.targets[0]
    asked = {"order": 1, "cells": 4, "calibrate": 0}
    found = identify(run, screen, condition=f"{target}|line=B", **asked)
    assert set(found.table["condition"]) == {f"{name}|line=B" for name in run.manifest.targets}
    given = identify(run, screen, condition=f"{target}|line=B", setting="line=A", **asked)
    assert set(given.table["condition"]) == {f"{name}|line=A" for name in run.manifest.targets}


def test_a_setting_without_a_covariate_is_told(of_two_lines, tmp_path):
    run, screen = of_two_lines
    says = r"setting '' has no covariate 'line', .*; expected one of 'A', 'B': --setting 'line=A'"
    some = screen[(screen.obs["perturbation"] == run.manifest.targets[0]).to_numpy()].copy()
    with pytest.raises(ConditionError, match=says):
        identify(run, some)
    with pytest.raises(ConditionError, match=says):
        scdfm.screen(run, out=tmp_path / "screen", order=1)
