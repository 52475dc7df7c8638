"""The row `prior`: what a run predicts before training, scored exactly as its prediction is; nothing else moves."""

from __future__ import annotations

import errno
import os
import re
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scdfm
import scdfm.report
import small
from scdfm.data.source import open_source
from scdfm.data.stored import StoredMatrix
from scdfm.errors import ConditionError, ConfigError, RunError
from scdfm.evaluation import METRICS, PRIOR, evaluate, populations
from scdfm.evaluation.alignment import align
from scdfm.evaluation.prior import prior_population

OPTIONS = small.options(
    panel={"n_genes": 40},
    training=small.SIX_STEPS | {"cells_per_condition": 6, "validation_cells": 6},
    sampling={"steps": 2},
)
N_CELLS, SEED = 7, 5
"""Of the prediction; neither is a default, nor the seed of the evaluation."""


@pytest.fixture(scope="module")
def cells() -> scdfm.CellTable:
    return scdfm.read_cells(small.screen(n_targets=8))


@pytest.fixture(scope="module")
def run(cells, tmp_path_factory) -> scdfm.Run:
    """Trained, with weights that correct something."""
    out = tmp_path_factory.mktemp("prior") / "run"
    found = scdfm.fit(cells, config=scdfm.Config().updated(OPTIONS), out=out, progress=False)
    assert not found.field.is_zero
    return found


@pytest.fixture(scope="module")
def predicted(run) -> ad.AnnData:
    return run.predict(n_cells=N_CELLS, seed=SEED)


@pytest.fixture(scope="module")
def table(run, predicted, cells) -> pd.DataFrame:
    return evaluate(predicted, cells, training=run)


def row(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """condition, metric, value, n_cells of one model."""
    found = table[table["model"] == model].drop(columns="model").reset_index(drop=True)
    assert len(found)
    return found


def by_hand(run, cells, seed: int = SEED, n_cells: int = N_CELLS, **options) -> pd.DataFrame:
    before = run.untrained().predict(run.split.test, n_cells=n_cells, seed=seed)
    return row(evaluate(before, cells, training=run.means, name="by hand", check_scale=False, **options), "by hand")


@pytest.mark.parametrize("protocol", ["scdfm", "paper"])
def test_the_row_is_the_score_of_the_untrained_run(run, predicted, cells, protocol):
    found = row(evaluate(predicted, cells, protocol=protocol, training=run), PRIOR)
    pd.testing.assert_frame_equal(found, by_hand(run, cells, protocol=protocol), check_exact=True)
    assert set(METRICS) <= set(found["metric"])
    assert ("discrimination_score_l1" in set(found["metric"])) == (protocol == "paper")


def test_it_has_the_cells_and_the_seed_of_the_prediction(run, table, cells):
    found = row(table, PRIOR)
    assert found["value"].notna().mean() > 0.9
    for other in ({"seed": 0}, {"n_cells": 12}):
        assert not found.equals(by_hand(run, cells, **other)), other


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_the_seed_of_a_file_is_read_from_it(run, predicted, table, cells, tmp_path, suffix):
    run.predict_to(tmp_path / f"p{suffix}", n_cells=N_CELLS, seed=SEED)
    found = evaluate(tmp_path / f"p{suffix}", cells, training=run)
    pd.testing.assert_frame_equal(found, table, check_exact=True)


@pytest.mark.parametrize(
    "uns",
    [{}, {"scdfm": "text"}, {"scdfm": {}}, {"scdfm": {"seed": "5"}}, {"scdfm": {"seed": -5}}, {"scdfm": {"seed": [5]}}],
)
def test_what_is_no_seed_is_none(predicted, uns, tmp_path):
    other = ad.AnnData(predicted.X, obs=predicted.obs, var=predicted.var, uns=uns)
    other.write_h5ad(tmp_path / "other.h5ad")
    for source in (other, tmp_path / "other.h5ad"):
        with open_source(source) as opened:
            assert opened.seed is None


@pytest.mark.parametrize("suffix", ["", ".h5ad", ".zarr"])
def test_evenly_drawn_cells_are_told(run, cells, tmp_path, suffix):
    def notes(noise: str, metrics=("energy", "mmd")) -> list[str]:
        config = run.config.updated({"sampling": {"noise": noise}})
        other = scdfm.Run(run.path, run.manifest.model_copy(update={"config": config}))
        made = tmp_path / f"{noise}{suffix}"
        if not suffix:
            made = other.predict(n_cells=N_CELLS, seed=SEED)
        elif not made.exists():
            other.predict_to(made, n_cells=N_CELLS, seed=SEED)
        found = evaluate(made, cells, training=run.means, metrics=metrics, references=False)
        return [note for note in found.attrs["notes"] if "drawn evenly" in note]

    (note,) = notes("stratified")
    assert f"energy, mmd of {N_CELLS} cells come out too small" in note
    assert not notes("stratified", ["l2"])
    assert not notes("independent")


def test_what_does_not_say_how_it_was_drawn_is_not_called_even(predicted):
    for uns in ({}, {"scdfm": {"sampling": "text"}}, {"scdfm": {"sampling": "[1]"}}, {"scdfm": {"sampling": 5}}):
        other = ad.AnnData(predicted.X, obs=predicted.obs, var=predicted.var, uns=uns)
        with open_source(other) as opened:
            assert not opened.drawn_evenly
    with open_source(predicted) as opened:
        assert opened.drawn_evenly


def test_a_network_that_is_zero_is_the_prior_to_the_bit(run, table, cells, monkeypatch):
    zero = scdfm.Run.load(run.path)
    for last in (zero.field.decoder.out, zero.field.response.out):
        for parameter in last.parameters():
            torch.nn.init.zeros_(parameter)
    silent = evaluate(zero.predict(n_cells=N_CELLS, seed=SEED), cells, training=run)
    pd.testing.assert_frame_equal(row(silent, "model"), row(silent, PRIOR), check_exact=True)
    pd.testing.assert_frame_equal(row(silent, PRIOR), row(table, PRIOR), check_exact=True)
    monkeypatch.setattr(populations, "CELLS", 4)  # fewer than there are: which of them take part is drawn
    few = evaluate(zero.predict(n_cells=N_CELLS, seed=SEED), cells, training=run, metrics=["energy"])
    pd.testing.assert_frame_equal(row(few, "model"), row(few, PRIOR), check_exact=True)
    whole = row(table, PRIOR).query("metric == 'energy'")["value"]
    assert (row(few, PRIOR)["value"].to_numpy() != whole.to_numpy()).any()
    assert not row(table, "model").equals(row(table, PRIOR))


def test_the_trained_run_is_left_as_it_was(run, predicted):
    before = run.untrained()
    assert (before.manifest.shrinkage, before.manifest.result) == (None, {"step": 0})
    said = before.predict(n_cells=2).uns["scdfm"]
    assert said["weights"] != predicted.uns["scdfm"]["weights"]
    again = run.predict(n_cells=N_CELLS, seed=SEED)
    assert (again.X != predicted.X).nnz == 0


def test_no_other_row_moves(run, predicted, table, cells):
    plain = evaluate(predicted, cells, training=run.means)
    assert list(table["model"].unique()) == ["model", PRIOR, *plain["model"].unique()[1:]]
    rest = table[table["model"] != PRIOR].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, plain, check_exact=True)
    assert table.attrs["notes"] == plain.attrs["notes"]


def test_without_references_it_comes_only_when_it_is_given(run, predicted, table, cells):
    alone = evaluate(predicted, cells, training=run, references=False)
    assert set(alone["model"]) == {"model"}
    given = evaluate(predicted, cells, training=run.means, references=False, prior=run.untrained())
    assert set(given["model"]) == {"model", PRIOR}
    pd.testing.assert_frame_equal(row(given, PRIOR), row(table, PRIOR), check_exact=True)


def test_a_run_from_noise_has_no_row_and_says_so_once(run, predicted, cells):
    config = run.config.updated({"flow": {"source": "gaussian"}})
    noisy = scdfm.Run(run.path, run.manifest.model_copy(update={"config": config}))
    assert noisy.untrained() is None
    found = evaluate(predicted, cells, training=noisy, metrics=["l2"])
    assert PRIOR not in set(found["model"])
    assert [note for note in found.attrs["notes"] if "no row 'prior'" in note] == [
        "no row 'prior': the flow of this run starts from noise, which predicts nothing before training"
    ]


def test_without_a_run_the_missing_row_is_told(predicted, cells):
    found = evaluate(predicted, cells, metrics=["l2"])
    assert found.attrs["notes"].count("no row 'prior': that of the run; give it (--run RUN, training=run)") == 1
    alone = evaluate(predicted, cells, metrics=["l2"], references=False)
    assert not any("no row 'prior'" in note for note in alone.attrs["notes"])


class Stand:
    """Predicts all conditions but `unknown`, and keeps what it was asked."""

    def __init__(self, unknown=()):
        self.unknown, self.asked = set(unknown), []

    def predict(self, conditions, *, n_cells, genes, seed):
        self.asked += [(name, n_cells, seed) for name in conditions]
        for name in conditions:
            if name in self.unknown:
                raise ConditionError(f"condition '{name}': unknown")
        return ad.AnnData(np.ones((len(conditions) * n_cells, len(genes)), dtype=np.float32))


def test_a_condition_that_the_run_cannot_predict_is_undefined(run, predicted, cells):
    first, *rest = run.split.test
    found = evaluate(predicted, cells, training=run.means, prior=Stand([first]), protocol="paper")
    values = row(found, PRIOR).set_index(["condition", "metric"])["value"]
    assert values[first].isna().all()
    assert values[rest[0]][["l2", "energy"]].notna().all()
    assert (
        found.attrs["notes"].count(
            f"prior: undefined for 1 conditions that this run cannot predict (first: {first}: condition '{first}': unknown)"
        )
        == 1
    )
    nothing = evaluate(predicted, cells, training=run.means, prior=Stand(run.split.test), metrics=["l2"])
    assert PRIOR not in set(nothing["model"])
    assert any(note.startswith("no row 'prior': condition") for note in nothing.attrs["notes"])


def test_a_disk_that_fails_is_no_condition_that_cannot_be_predicted(run, predicted, cells, monkeypatch):
    def broken(*given, **options):
        try:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        except OSError as error:
            raise RunError("controls.h5ad cannot be read") from error

    stand = Stand()
    monkeypatch.setattr(stand, "predict", broken)
    with pytest.raises(RunError, match="controls.h5ad cannot be read"):
        evaluate(predicted, cells, training=run.means, prior=stand, metrics=["l2"])


def test_each_condition_has_as_many_cells_as_are_predicted(run, predicted, cells):
    names = list(run.split.test)
    fewer = predicted[(predicted.obs["perturbation"] != names[0]) | (np.arange(predicted.n_obs) % 2 == 0)]
    stand = Stand()
    evaluate(fewer.copy(), cells, training=run.means, prior=stand, metrics=["l2"])
    sizes = fewer.obs["perturbation"].value_counts()
    assert sorted(stand.asked) == sorted((name, int(sizes[name]), SEED) for name in names)
    assert len(set(sizes)) == 2


def test_beside_cells_on_disk_it_stays_on_disk(run, predicted, table, cells, tmp_path):
    predicted.write_h5ad(tmp_path / "p.h5ad")
    cells.to_adata().write_h5ad(tmp_path / "real.h5ad")
    pair = align(tmp_path / "p.h5ad", cells, backed=True)
    found, _ = prior_population(run.untrained(), tmp_path / "p.h5ad", pair, 0)
    assert isinstance(found.X, StoredMatrix)
    disk = evaluate(tmp_path / "p.h5ad", tmp_path / "real.h5ad", training=run, backed=True)
    pd.testing.assert_frame_equal(disk, table, check_exact=True)


def test_what_is_no_run_is_refused(predicted, cells):
    with pytest.raises(ConfigError, match="training: expected None, a Run or a table of means"):
        evaluate(predicted, cells, training=SimpleNamespace(means=cells.means()))


def test_the_terminal_says_what_training_added(run, predicted, cells, tmp_path):
    found = scdfm.report.evaluate_files(predicted, cells, tmp_path, training=run, metrics=["l2", "energy"])
    assert "\nprior " in found.text
    said = " ".join(found.text.split())
    assert re.search(r"Beside the prior alone: gain .* What training added to it, over 2 metrics: ", said)
    assert "gain over the prior alone" in found.path.read_text(encoding="utf-8")
    assert PRIOR in set(pd.read_csv(tmp_path / "summary.csv")["model"])
