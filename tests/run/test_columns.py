"""Predicted cells carry the columns of the user's own file, and are read back by them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import scdfm
import small
from scdfm.evaluation.alignment import predicted_names
from scdfm.run import columns

OPTIONS = small.options(
    panel={"n_genes": 20},
    model={"width": 8, "perturbation": "drugs"},
    flow={"genes_per_step": 20},
    training={"max_steps": 1, "warmup_steps": 0, "validate_every": 1},
    sampling={"cells": 3},
)


@pytest.fixture(scope="module")
def cells() -> scdfm.CellTable:
    """Two drugs and their pair, two doses, two times, a line, two batches."""
    screen = scdfm.simulate(n_genes=25, n_targets=3, n_doubles=1, cells_per_condition=24, n_controls=40, seed=1)
    rng = np.random.default_rng(0)
    treated = (screen.obs["perturbation"] != "control").to_numpy()
    screen.obs["uM"] = np.where(treated, rng.choice([0.1, 1.0], screen.n_obs), 0.0)
    screen.obs["hours"] = np.where(treated, rng.choice([6, 24], screen.n_obs), 24)
    screen.obs["line"], screen.obs["plate"] = "K562", rng.choice(["p1", "p2"], screen.n_obs)
    screen.obs = screen.obs.rename(columns={"perturbation": "drug"})
    return scdfm.read_cells(
        screen, "drug", dose_key="uM", time_key="hours", covariates=["line"], match_controls=["line", "plate"]
    )


@pytest.fixture(scope="module")
def run(cells, tmp_path_factory) -> scdfm.Run:
    rest = [c for c in cells.conditions if c != "control"]
    split = scdfm.Split("by hand", 0, tuple(rest[:-2]), (), tuple(rest[-2:]))
    out = tmp_path_factory.mktemp("columns") / "run"
    return scdfm.fit(cells, split, scdfm.Config().updated(OPTIONS), out=out, progress=False)


def test_columns_are_those_of_the_file(run, cells):
    single = next(c for c in run.split.train if "+" not in c)
    pair = next(c for c in cells.conditions if "+" in c)
    predicted = run.predict([single], n_cells=4)
    first = predicted.obs.iloc[0]
    source = cells.obs.loc[first["source_control"]]
    said = scdfm.data.conditions.parse(single)
    assert first["drug"] == single
    assert first["targets"] == said.perturbations[0].target
    assert (first["uM"], first["hours"], first["line"]) == (said.perturbations[0].dose, said.time, "K562")
    assert first["plate"] == source["plate"]
    assert predicted.obs["plate"].nunique() == 2
    both = run.predict([pair], n_cells=2).obs.iloc[0]
    doses = [p.dose for p in scdfm.data.conditions.parse(pair).perturbations]
    assert doses[0] == doses[1] == both["uM"]  # as the file says it: one number for all targets of the label


def test_a_prediction_is_read_back_by_its_columns(run, cells):
    """By its label and columns alone, and where a condition has no dose."""
    names = [*run.split.test, run.split.train[0].split("@")[0] + "|line=K562"]
    obs = run.predict(names, n_cells=2).obs
    expected = np.repeat(names, 2).tolist()
    assert predicted_names(obs, "drug", cells.naming, cells, "p").tolist() == expected
    assert predicted_names(obs.assign(drug=obs["targets"]), "drug", cells.naming, cells, "p").tolist() == expected


def test_shards_join_numbers_and_texts(run, cells, tmp_path):
    import anndata as ad

    singles = [c for c in run.split.train if "+" not in c][:2]
    run.predict_to(tmp_path / "p.h5ad", singles, n_cells=3000)
    back = ad.read_h5ad(tmp_path / "p.h5ad")
    assert back.obs["uM"].dtype == np.float64
    assert back.obs["plate"].dtype == "category"
    assert back.uns["scdfm"]["cells_per_condition"] == 3000
    mixed = columns.joined([pd.DataFrame({"uM": [0.5, np.nan]}), pd.DataFrame({"uM": pd.Categorical(["1+2"])})])
    assert mixed["uM"].astype(object).where(mixed["uM"].notna(), None).tolist() == ["0.5", None, "1+2"]


def test_a_condition_without_its_time_is_told(run):
    name = run.split.train[0].replace("|time=24", "").replace("|time=6", "")
    why = list(run.predict([name], n_cells=2).uns["scdfm"]["extrapolated_because"])
    assert any("no time: taken as the usual one of the screen" in said for said in why)


def test_a_measured_condition_starts_from_the_controls_of_its_own_batches(tmp_path) -> None:
    """Batches that differ: of a test condition of one batch nothing but the batch is known, and its cells start there. A
    condition that nobody measured starts from all."""
    screen = scdfm.simulate(n_genes=25, n_targets=4, n_doubles=4, cells_per_condition=24, n_controls=120, seed=1)
    names = sorted(set(screen.obs["perturbation"]) - {"control"})
    of = {name: f"p{at % 2}" for at, name in enumerate(names)}
    plates = [of.get(name, f"p{at % 2}") for at, name in enumerate(screen.obs["perturbation"])]
    screen.obs["plate"] = plates
    screen.X = screen.X.toarray() if hasattr(screen.X, "toarray") else screen.X
    screen.X[:, :10] += 1.5 * (np.array(plates) == "p1")[:, None]
    cells = scdfm.read_cells(screen, match_controls=["plate"])
    test = tuple(name for name in names if "+" in name)[:2]
    split = scdfm.Split("by hand", 0, tuple(name for name in names if name not in test), (), test)
    config = scdfm.Config.preset("instant").updated({"panel": {"n_genes": 25}, "sampling": {"cells": 200}})
    run = scdfm.fit(cells, split, config, out=tmp_path / "run", progress=False)
    new = next(f"{a}+{b}" for a in names for b in names if "+" not in a + b and a < b and f"{a}+{b}" not in names)
    predicted = run.predict([*test, new])
    plates_of = predicted.obs.groupby("perturbation", observed=True)["plate"].unique()
    assert [set(plates_of[name]) for name in test] == [{of[name]} for name in test]
    assert set(plates_of[new]) == {"p0", "p1"}
    untold = run.predict(test, replace(run.controls, elsewhere={}))
    columns_ = cells.columns(run.genes)
    for name in test:
        rows = (predicted.obs["perturbation"] == name).to_numpy()
        mean = predicted.X[rows].mean(0)
        expected = cells.control_mean(name)[columns_] + run.knowing([name]).predict([name])[0]
        assert np.abs(mean - np.maximum(expected, 0)).max() < 0.15
        # Without, half of the batches' difference of 1.5 stands between the ten genes and those of the other start.
        other = untold.X[(untold.obs["perturbation"] == name).to_numpy()].mean(0)
        assert np.abs(np.abs(mean - other)[0, [run.genes.index(gene) for gene in cells.genes[:10]]].mean() - 0.75) < 0.2
