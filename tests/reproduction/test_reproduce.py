"""The four experiments run whole on made-up files in the published formats, and stop where the protocol differs."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from scdfm.benchmarking import Plan
from scdfm.data import CellTable
from scdfm.datasets import norman, published
from scdfm.datasets.generated import generated_norman
from scdfm.datasets.screens import PUBLISHED_METRICS
from scdfm.errors import ConfigError, DataError, RunError
from scdfm.processes import openmp_threads_kept
from scdfm.reproduction import EXPERIMENTS, VARIANTS, Reproduction, reproduce
from scdfm.reproduction.experiments import experiment_named
from scdfm.reproduction.reproduce import PublishedFolds, control_check
from scdfm.run import Run
from scdfm.training.module import FlowModule

MODELS = {
    "norman-additive": ["scdfm paper"],
    "norman-holdout": ["scdfm paper"],
    "combosciplex": ["scdfm paper"],
    "ablation": list(VARIANTS),
}


class TrainedError(Exception):
    pass


def forbid_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any training step raises TrainedError."""

    def step(*_: object) -> None:
        raise TrainedError

    monkeypatch.setattr(FlowModule, "training_step", step)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reproduction]:
    """Experiments already run in this module."""
    return {}


def smoke(done: dict[str, Reproduction], name: str, tmp_path_factory: pytest.TempPathFactory) -> Reproduction:
    if name not in done:
        done[name] = reproduce(name, out=tmp_path_factory.mktemp(name) / "out", smoke=True, progress=False)
    return done[name]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_whole_chain_runs_and_stands_beside_the_published_rows(
    done: dict[str, Reproduction], name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    result = smoke(done, name, tmp_path_factory)
    experiment = EXPERIMENTS[name]
    table = result.table
    assert list(table["part"].unique()) == list(experiment.parts)
    facts = table[table["source"] == "published"]
    assert len(facts) == len(published(*experiment.published)) * len(PUBLISHED_METRICS)
    for part in experiment.parts:
        ours = table[(table["part"] == part) & (table["source"] == "here")]
        for model in [*MODELS[name], "no change", "ridge", "ceiling"]:
            found = ours[ours["model"] == model].set_index("metric")["value"]
            assert np.isfinite(found[["l2", "mse", "mae", "ds"]]).all()
            assert list(found.index) == list(PUBLISHED_METRICS)
        ceiling, model = (ours[(ours["model"] == m) & (ours["metric"] == "l2")]["value"].item()
                          for m in ("ceiling", MODELS[name][0]))  # fmt: skip
        assert ceiling < model  # three steps of a tiny model
    assert {"table.md", "table.csv", "check.csv", "experiment.json"} <= {file.name for file in result.path.iterdir()}
    written = (result.path / "table.md").read_text()
    assert written.rstrip() == result.text.rstrip()
    assert "figures mean nothing" in written
    assert f"| published | scDFM | {facts.loc[facts['model'] == 'scDFM', 'value'].iloc[0]:.4f} |" in written


def test_holdout_ranks_singles_and_doubles_among_themselves(
    done: dict[str, Reproduction], tmp_path_factory: pytest.TempPathFactory
) -> None:
    scores = smoke(done, "norman-holdout", tmp_path_factory).tables.scores
    ds = scores[(scores["model"] == "no change") & (scores["metric"] == "ds")]
    for double in (True, False):
        group = ds[ds["condition"].str.contains("+", regex=False) == double]["value"].to_numpy()
        k = len(group)
        # no change is as near to every condition as that is strong: ranks are a permutation
        np.testing.assert_allclose(np.sort(group), 1 - np.arange(k)[::-1] / k)


def test_the_scored_genes_are_scanpys_most_variable_of_test_and_control_cells(
    done: dict[str, Reproduction], tmp_path_factory: pytest.TempPathFactory
) -> None:
    result = smoke(done, "norman-additive", tmp_path_factory)
    predicted = ad.read_h5ad(result.path / "fold0" / "scdfm_paper-seed0" / "predicted.h5ad")
    cells = norman(result.path / "norman.h5ad")
    run = Run.load(result.path / "fold0" / "scdfm_paper-seed0" / "run")
    seen = cells.select(["control", *run.split.test]).to_adata()[:, sorted(run.genes, key=list(cells.genes).index)]
    seen = seen.copy()
    with openmp_threads_kept():
        sc.pp.highly_variable_genes(seen, n_top_genes=30)
    assert set(predicted.var_names) == set(seen.var_names[seen.var["highly_variable"]])
    assert (predicted.obs["perturbation"].value_counts() == 6).all()
    assert run.config.sampling.dropout
    assert run.config.panel.cells == "all"


def test_a_reproduction_resumes_to_the_same_table_without_another_fit(
    done: dict[str, Reproduction], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = smoke(done, "norman-additive", tmp_path_factory)
    out = shutil.copytree(whole.path, tmp_path / "out")
    (out / "table.md").unlink()
    (out / "fold0" / "scdfm_paper-seed0" / "piece.json").unlink()  # killed before its scores were kept
    forbid_training(monkeypatch)
    again = reproduce("norman-additive", out=out, smoke=True, resume=True, progress=False)
    assert again.text == whole.text
    pd.testing.assert_frame_equal(again.table, whole.table)
    with pytest.raises(RunError, match="was started with other experiment.*; repeat the options"):
        reproduce("ablation", out=out, smoke=True, resume=True, progress=False)
    with pytest.raises(DataError, match="exists and is not empty"):
        reproduce("norman-additive", out=out, smoke=True, progress=False)


@pytest.fixture(scope="module")
def cells() -> CellTable:
    return norman(generated_norman())


def folds_of(cells: CellTable, numbers: tuple[int, ...] = (0, 1)) -> PublishedFolds:
    experiment = EXPERIMENTS["norman-additive"]
    plan = Plan(experiment.split, numbers, (0,), experiment.contenders("paper", smoke=True), "paper")
    return PublishedFolds(plan, cells, 30, apart=False)


def test_the_control_row_is_the_distance_of_the_control_mean(cells: CellTable) -> None:
    folds = folds_of(cells, (0,))
    check = control_check(EXPERIMENTS["norman-additive"], folds)
    fold = folds.fold(0)
    means = cells.means(["control", *fold.conditions])[fold.genes].to_numpy()
    shift = means[1:] - means[0]
    row = check.rows.set_index("metric")["fold 0"]
    np.testing.assert_allclose(row["l2"], np.linalg.norm(shift, axis=1).mean(), rtol=1e-6)
    np.testing.assert_allclose(row["mae"], np.abs(shift).mean(), rtol=1e-6)


def test_the_check_passes_within_three_percent_of_a_fold_or_of_their_mean(
    cells: CellTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = EXPERIMENTS["norman-additive"]
    folds = folds_of(cells)
    rows = control_check(experiment, folds).rows.set_index("metric")
    for candidate in ("fold 0", "fold 1", "mean of folds"):
        for factor, passes in ((1.0, True), (1.025, True), (1.06, False), (0.5, False)):
            fact = pd.DataFrame({"part": ["double"], "model": ["Control"]}).assign(
                l2=rows[candidate]["l2"] * factor, mse=rows[candidate]["mse"] * factor**2,
                mae=rows[candidate]["mae"] * factor, ds=rows[candidate]["ds"],
            )  # fmt: skip
            # The package has a function of this module's name.
            module = importlib.import_module("scdfm.reproduction.reproduce")
            monkeypatch.setattr(module, "published", lambda *_, fact=fact: fact)
            check = control_check(experiment, folds)
            if passes or factor == 0.5:
                assert check.passed == passes
            if factor == 1.0:
                assert check.deviation < 1e-12
                assert check.nearest == candidate
                check.require()
    with pytest.raises(
        DataError, match=r"protocol check not passed: .* 3% allowed; double l2 .* \(published .*--no-check"
    ):
        check.require()


def test_another_protocol_stops_before_anything_is_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(EXPERIMENTS["norman-additive"], folds=(0,))
    monkeypatch.setitem(EXPERIMENTS, "norman-additive", small)
    generated_norman().write_h5ad(tmp_path / "norman.h5ad")
    forbid_training(monkeypatch)
    with pytest.raises(DataError, match="protocol check not passed: the Control row") as caught:
        reproduce("norman-additive", tmp_path / "norman.h5ad", out=tmp_path / "out", progress=False)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out" / "check.csv").is_file()
    assert not (tmp_path / "out" / "fold0").exists()
    with pytest.raises(TrainedError):  # goes on to the fit
        reproduce(
            "norman-additive", tmp_path / "norman.h5ad", out=tmp_path / "other", check=False, progress=False,
            settings=["panel.n_genes=40", "model.width=16", "model.layers=1", "training.accelerator=cpu"],
        )  # fmt: skip


def test_what_cannot_be_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="experiment 'norman': expected one of norman-additive, norman-holdout"):
        reproduce("norman", out=tmp_path / "out")
    with pytest.raises(ConfigError, match="fold 7: norman-additive has folds 0, 1, 2, 3, 4"):
        reproduce("norman-additive", out=tmp_path / "out", folds=[0, 7])
    with pytest.raises(ConfigError, match="preset 'best'"):
        reproduce("norman-additive", out=tmp_path / "out", preset="best")
    with pytest.raises(ConfigError, match="--unseen goes with norman-holdout"):
        reproduce("combosciplex", out=tmp_path / "out", unseen=True)
    assert not (tmp_path / "out").exists()


def test_unseen_holds_targets_out_altogether() -> None:
    plain, unseen = experiment_named("norman-holdout"), experiment_named("norman-holdout", unseen=True)
    assert plain.split.kind == "combinations"
    assert unseen.split.kind == "holdout"


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_every_experiment_fits_a_panel_from_which_the_published_genes_are_chosen(preset: str) -> None:
    for experiment in EXPERIMENTS.values():
        for contender in experiment.contenders(preset, smoke=False):
            assert contender.config is not None
            assert contender.config.panel.n_genes == 5000
    full, no_mmd, no_graph, softmax = (c.config for c in EXPERIMENTS["ablation"].contenders(preset, smoke=False))
    assert full is not None
    assert no_mmd == full.updated({"mmd": {"weight": 0.0}})
    assert no_graph == full.updated({"graph": {"enabled": False}})
    assert softmax == full.updated({"model": {"attention": "softmax"}})
