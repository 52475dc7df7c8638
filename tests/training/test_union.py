"""Two screens of different genes in one fit: a gene is learned for the conditions of a screen that never measured it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import scdfm
from scdfm.errors import ConfigError, DataError, RunError
from scdfm.seeds import numpy_rng
from scdfm.training.inputs import prepare
from scdfm.training.steps import StepData

OPTIONS = {"panel": {"n_genes": 80}, "graph": {"k": 5}, "sampling": {"cells": 60}}


class Halves:
    """One simulated screen in two files: `a` measured 55 of 70 genes, `b` 40; pairs of `b` are the test."""

    def __init__(self) -> None:
        adata = scdfm.simulate(n_genes=70, n_targets=8, cells_per_condition=40, n_controls=160, seed=4)
        targets = set(adata.obs["perturbation"].astype(str)) & set(adata.var_names)
        genes = sorted(adata.var_names, key=lambda gene: (gene not in targets, gene))
        first = np.arange(adata.n_obs) % 2 == 0
        self.files = {"a": adata[first, genes[:55]].copy(), "b": adata[~first, [*genes[:25], *genes[55:]]].copy()}
        self.lacking = genes[25:55]
        self.truth = scdfm.read_cells(adata[~first].copy())
        self.cells = scdfm.join_screens(
            {name: scdfm.read_cells(one) for name, one in self.files.items()}, genes="union"
        )
        pairs = [name for name in self.cells.conditions if "+" in name and name.endswith("=b")]
        self.test = tuple(pairs[::3])
        rest = [name for name in self.cells.conditions if name not in self.test and name != "control"]
        self.split = scdfm.Split("named", 0, tuple(rest), (), self.test)

    def errors(self, run: scdfm.Run) -> dict[str, float]:
        """Squared error of means on the genes that `b` lacks, over its test pairs."""
        predicted = run.predict(list(self.test))
        labels = predicted.obs[run.manifest.perturbation_key].astype(str).to_numpy()
        columns = self.truth.columns(self.lacking)
        control, found = self.truth.mean("control")[columns], pd.DataFrame(predicted.to_df()[self.lacking])
        trained = [name.split("|")[0] for name in self.split.train if name.endswith("=b")]
        typical = np.mean([self.truth.mean(name)[columns] for name in trained], axis=0)
        total = dict.fromkeys(("model", "no change", "mean", "zeros"), 0.0)
        for name in self.test:
            real = self.truth.mean(name.split("|")[0])[columns]
            told = {"model": found[labels == name].mean().to_numpy(), "no change": control, "mean": typical, "zeros": 0}
            for model, mean in told.items():
                total[model] += float(((mean - real) ** 2).sum())
        return total


@pytest.fixture(scope="module")
def halves() -> Halves:
    return Halves()


@pytest.fixture(scope="module")
def run(halves: Halves, tmp_path_factory: pytest.TempPathFactory) -> scdfm.Run:
    config = scdfm.Config.preset("instant").updated(OPTIONS)
    return scdfm.fit(halves.cells, halves.split, config, out=tmp_path_factory.mktemp("union") / "r", progress=False)


def test_a_gene_is_predicted_where_another_screen_measured_it(halves: Halves, run: scdfm.Run, tmp_path: Path) -> None:
    """Better than no change, and than the true mean of that screen; filled with zeros it is worse than either."""
    error = halves.errors(run)
    assert error["model"] < 0.8 * error["mean"] < 0.8 * error["no change"]
    filled = replace(halves.cells, measured={})
    config = scdfm.Config.preset("instant").updated(OPTIONS)
    zeros = halves.errors(scdfm.fit(filled, halves.split, config, out=tmp_path / "z", progress=False))
    assert zeros["model"] > 2 * error["no change"]


def test_a_prediction_says_who_did_not_measure_a_gene(halves: Halves, run: scdfm.Run) -> None:
    assert run.manifest.unmeasured["b"] == sorted(halves.lacking, key=run.genes.index)
    assert run.means.loc[halves.split.train[-1], halves.lacking].isna().all()
    predicted = run.predict([halves.test[0]])
    assert set(predicted.var_names[predicted.var["unmeasured_in"] == "b"]) == set(halves.lacking)
    assert (predicted.var["unmeasured_in"] == "a").sum() == 15
    assert predicted.var["filled"].sum() == 45
    # Control cells take these genes from real control cells that have them: none is silently 0.
    lent = run.controls.select(["control"])
    own = lent.X[:, lent.columns(halves.lacking)].toarray()[(lent.obs["screen"] == "b").to_numpy()]
    real = halves.files["a"][halves.files["a"].obs["perturbation"] == "control", halves.lacking].X
    assert set(map(tuple, own)) <= set(map(tuple, np.asarray(real.todense())))
    with pytest.raises(DataError, match="45 genes are filled in from other cells.*without --counts"):
        run.predict([halves.test[0]], counts=True)


def test_training_validates_and_can_be_continued(halves: Halves, tmp_path: Path) -> None:
    train = halves.split.train
    split = scdfm.Split("named", 0, train[3:], train[:3], halves.test)
    config = scdfm.Config.preset("tiny").updated(OPTIONS | {"training": {"max_steps": 2}})
    first = scdfm.fit(halves.cells, split, config, out=tmp_path / "r", progress=False)
    assert np.isfinite(list(first.manifest.result.values())[1])
    again = scdfm.fit(halves.cells, split, config, out=tmp_path / "r", resume=True, progress=False)
    assert again.manifest.digests == first.manifest.digests
    noise = config.updated({"flow": {"source": "gaussian"}})
    found = scdfm.fit(halves.cells, split, noise, out=tmp_path / "n", progress=False).predict([halves.test[0]])
    assert np.isfinite(found.X.toarray()).all()


def test_by_the_command(halves: Halves, call, tmp_path: Path) -> None:
    """Each screen's own file evaluates its conditions, on the genes that it has, and is told by its name."""
    for name, one in halves.files.items():
        one.write_h5ad(tmp_path / f"{name}.h5ad")
    files, how = [tmp_path / f"{name}.h5ad" for name in "ab"], ("--set", "panel.n_genes=80", "--quiet")
    code, _, error = call("fit", *files, "--genes", "union", "--preset", "instant", "--out", tmp_path / "r", *how)
    assert code == 0, error
    assert "joined on the 70 genes that any has, 25 of which all have" in error
    assert call("predict", tmp_path / "r", "--test", "--cells", 9, "--out", tmp_path / "p.h5ad", "--quiet")[0] == 0
    scored = ("--run", tmp_path / "r", "--metrics", "l2,pearson_delta", "--quiet")
    for file, n in zip(files, (55, 40), strict=True):
        code, _, error = call("evaluate", tmp_path / "p.h5ad", file, "--out", tmp_path / file.stem, *scored)
        assert code == 0, error
        table = pd.read_csv(tmp_path / file.stem / "scores.csv")
        assert table["condition"].str.endswith(f"|screen={file.stem}").all()
        assert table.loc[table["model"] == "ridge", "value"].notna().any()
        assert f"<b>{n}</b> genes" in (tmp_path / file.stem / "report.html").read_text()
    files[0].rename(tmp_path / "c.h5ad")
    code, _, error = call("evaluate", tmp_path / "p.h5ad", tmp_path / "c.h5ad", "--out", tmp_path / "c", *scored)
    assert code == 2
    assert (
        "obs has no column 'screen', and 'c' is none of the run's screens (a, b); name the file as its screen" in error
    )


def test_what_a_union_cannot_do_is_refused(halves: Halves, run: scdfm.Run, tmp_path: Path) -> None:
    config = scdfm.Config.preset("instant").updated(OPTIONS)
    with pytest.raises(DataError, match="--from: these screens are joined on genes that not all of them measured"):
        scdfm.fit(halves.cells, halves.split, config, out=tmp_path / "f", start_from=run)
    with pytest.raises(RunError, match="fitted on screens of different genes, whose measured means cannot"):
        scdfm.screen([run], out=tmp_path / "s")
    alone = tuple(name for name in halves.split.train if name.endswith("=a"))
    split = scdfm.Split("named", 0, alone, (), halves.test)
    with pytest.raises(DataError, match="no training condition is of a screen that measured '.*'; give that screen"):
        scdfm.fit(halves.cells, split, config, out=tmp_path / "f")
    few = config.updated({"panel": {"n_genes": 2}})
    with pytest.raises((DataError, ConfigError), match="genes are measured by all screens, expected at least 10"):
        scdfm.fit(halves.cells, halves.split, few, out=tmp_path / "f")


def test_training_draws_screens_by_their_weights(halves: Halves) -> None:
    config = scdfm.Config.preset("tiny").updated(OPTIONS | {"training": {"screen_weights": {"a": 0.01}}})
    data = StepData(halves.cells, halves.split, prepare(halves.cells, halves.split, config, None), 0)
    drawn = [data.sampler.sample(numpy_rng(0, "weights", step)).conditions for step in range(40)]
    assert np.mean([name.endswith("=b") for names in drawn for name in names]) > 0.9
