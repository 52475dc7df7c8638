"""The layouts of public screens: the line that `inspect` prints runs, and its numbers are those that numpy finds."""

from __future__ import annotations

import shlex

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdfm
from layouts.files import LAYOUTS

FILE = "a screen"
FEW_STEPS = [
    "--set", "training.max_steps=2", "--set", "training.validate_every=2", "--set", "training.validation_cells=2",
    "--set", "panel.n_genes=40", "--set", "graph.k=5", "--set", "model.width=16", "--set", "model.layers=1",
    "--set", "training.cells_per_condition=2", "--set", "training.accelerator=cpu", "--set", "sampling.steps=1",
    "--quiet",
]  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_from_inspection_to_scores(call, tmp_path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    # Pictures take most of the time, and have tests of their own.
    monkeypatch.setattr("scdfm.report.evaluation.write", lambda folder, *_, **__: folder)
    screen = LAYOUTS[name]()
    screen.write(FILE)
    code, said, _ = call("inspect", FILE)
    assert code == 0
    line = said.splitlines()[-1]
    for words in screen.words:
        assert words in line
    assert ("--target-sum" in line) != screen.log1p
    fit = shlex.split(line)[1:]
    code, _, error = call(*fit, *FEW_STEPS)
    assert code == 0, error
    run = scdfm.Run.load("run")
    # Every condition is read, under its name, and nothing else.
    known = {condition for condition in screen.conditions if condition is not None}
    assert set(run.split.conditions) == known - {"control"}
    assert list(run.means.columns) == [gene for gene in screen.genes if gene in set(run.means.columns)]
    columns = [screen.genes.index(gene) for gene in run.means.columns]
    for condition in known & set(run.means.index):
        np.testing.assert_allclose(run.means.loc[condition], screen.mean(condition)[columns], rtol=1e-5, atol=1e-6)
    assert call("predict", "run", "--test", "--cells", 5, "--out", "predicted.h5ad", "--quiet")[0] == 0
    # The run knows how its file is read.
    asked = ("--run", "run", "--metrics", "l2,pearson_delta", "--quiet")
    code, _, error = call("evaluate", "predicted.h5ad", FILE, "--out", "scores", *asked)
    assert code == 0, error
    scored(screen, columns)


def scored(screen, columns: list[int]) -> None:
    """The distance between means in scores.csv is that of numpy's means."""
    predicted = ad.read_h5ad("predicted.h5ad")
    table = pd.read_csv("scores/scores.csv")
    rows = table[(table["model"] == "model") & (table["metric"] == "l2")].set_index("condition")["value"]
    key = next(column for column in predicted.obs if set(rows.index) <= set(predicted.obs[column].astype(str)))
    assert len(rows)
    for condition, value in rows.items():
        mean = np.asarray(predicted[predicted.obs[key] == condition].X.mean(0), dtype=np.float64).ravel()
        expected = np.linalg.norm(mean - screen.mean(str(condition))[columns])
        assert value == pytest.approx(expected, rel=1e-4)
