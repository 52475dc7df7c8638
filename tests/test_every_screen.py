"""Covariates, doses, drugs and triples: a few steps on real cells, and on simulated screens that the prior learns."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

import scdfm
from scdfm.data.conditions import covariates, targets

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
FEW = {
    "panel": {"n_genes": 60}, "graph": {"k": 5},
    "model": {"width": 16, "layers": 1, "gene_heads": 2, "perturbation": "drugs"},
    "flow": {"genes_per_step": 40},
    "training": {
        "max_steps": 3, "validate_every": 3, "validation_cells": 2, "cells_per_condition": 2, "accelerator": "cpu",
        "warmup_steps": 0,
    },
    "sampling": {"steps": 1},
}  # fmt: skip
BRIEF = {"learning_rate": 5e-3, "ema_decay": 0.97, "max_steps": 30, "validate_every": 30}
"""The prior has learned these screens before the first step: after 30 and after 400 steps its weights are kept."""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    """A script of benchmarks/ as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return __import__(name)

    return load


def fitted(cells: scdfm.CellTable, split: scdfm.Split, out: Path, **options: object) -> scdfm.Run:
    """A run of three steps, loaded anew."""
    config = scdfm.Config().updated(FEW).updated(options)
    return scdfm.Run.load(scdfm.fit(cells, split, config, out=out, progress=False).path)


def defined(table: pd.DataFrame, model: str, metric: str) -> float:
    """The mean of a model's scores, none of which is undefined."""
    values = table[(table["model"] == model) & (table["metric"] == metric)]["value"]
    assert len(values)
    assert np.isfinite(values).all()
    return float(values.mean())


def test_the_stimulated_cells_of_an_unseen_cell_type(benchmark, shared, tmp_path) -> None:
    cells = benchmark("kang").read(shared / "data" / "kang_pbmc.h5ad")
    assert len(cells.conditions) == 1 + 5
    split = scdfm.make_split(
        cells,
        scdfm.Config().updated({"split": {"kind": "covariate", "covariate": "cluster_id", "value": "B cells"}}).split,
    )
    assert split.test == ("stim|cluster_id=B cells",)
    run = fitted(cells, split, tmp_path / "run")
    predicted = run.predict(n_cells=12, seed=1)
    # Every population starts from control cells of its own type.
    sources = cells.obs.loc[predicted.obs["source_control"], "cluster_id"]
    assert set(sources.astype(str)) == {"B cells"}
    table = scdfm.evaluate(predicted, cells, training=run, metrics=["l2", "mse", "pearson_delta", "energy"])
    assert defined(table, "ceiling", "l2") < defined(table, "training mean", "l2") < defined(table, "no change", "l2")
    assert defined(table, "model", "l2") > 0
    # The other types' answer moved by this type's own controls: the simple rules use the matching ones.
    own = cells.control_mean("stim|cluster_id=B cells") - cells.mean("control")
    assert np.linalg.norm(own) > 1


def test_pairs_of_line_and_gene(benchmark, shared, tmp_path) -> None:
    cells = benchmark("mcfaline").read(shared / "data" / "perturbench_devel.h5ad")
    assert len(cells.conditions) == 1 + 3 * 9
    split = scdfm.make_split(
        cells, scdfm.Config().updated({"split": {"kind": "covariate", "covariate": "cell_type"}}).split
    )
    assert len(split.test) == 8
    trained = {(covariates(name)["cell_type"], targets(name)) for name in split.train}
    assert {line for line, _ in trained} == {"A172", "T98G", "U87MG"}
    assert {genes for _, genes in trained} >= {targets(name) for name in split.test}
    run = fitted(cells, split, tmp_path / "run", model={"perturbation": "genes"})
    predicted = run.predict(n_cells=6, seed=1)
    assert sorted(predicted.obs["perturbation"].unique()) == sorted(split.test)
    table = scdfm.evaluate(predicted, cells, training=run, metrics=["l2", "pearson_delta", "ds"])
    for model in ("model", "no change", "training mean", "additive", "ridge", "ceiling"):
        defined(table, model, "l2")
    # Nine weak knock-downs: the line is nearly everything, and what is left is hard to tell from no change.
    assert defined(table, "no change", "l2") < 2


def test_drugs_that_only_their_fingerprints_describe(benchmark, shared, tmp_path) -> None:
    sciplex = benchmark("sciplex")
    cells = sciplex.read(shared / "data" / "sciplex3.h5ad")
    some = sorted({drug for name in cells.conditions for drug in targets(name)})[:30]
    cells = cells.select(name for name in cells.conditions if set(targets(name)) <= set(some))
    features = sciplex.smiles(shared / "data" / "sciplex_drug_smiles.csv", tmp_path)
    config = scdfm.Config().updated(FEW).updated(
        {"model": {"features": [str(features)]}, "training": {"min_cells": 1}}
    )  # fmt: skip
    table = sciplex.one_seed(cells, config, 5, 0, tmp_path)
    run = scdfm.Run.load(tmp_path / "run0")
    held = {drug for name in run.split.test for drug in targets(name)}
    assert len(held) == 5
    assert held.isdisjoint(drug for name in run.split.train for drug in targets(name))
    assert set(table["condition"]) == held
    for model in ("scdfm", "prior", "no change", "training mean"):
        defined(table, model, "l2")
    # Doses and lines of the predictions are those of the drug's measured conditions.
    predicted = run.predict(run.split.test[:3], n_cells=2, seed=0)
    assert list(predicted.obs["product_name"].unique()) == list(run.split.test[:3])
    assert set(predicted.uns["scdfm"]["extrapolated"]) == set(run.split.test[:3])


def test_what_the_labels_of_sciplex_tell(benchmark, shared) -> None:
    """As the file is shipped its columns do not belong together: drugs explain no more than permuted labels do."""
    sciplex = benchmark("sciplex")
    told, permuted, highest = sciplex.told_by_labels(sciplex.read(shared / "data" / "sciplex3.h5ad"), draws=4)
    assert abs(told - permuted) < 0.005
    assert told < 1.1 * highest


def learned(every: ModuleType, part: str, folder: Path) -> pd.DataFrame:
    """Mean scores of every model and rule on the small simulated screen of a part, model × metric."""
    case = every.PARTS[part][1](0, True)
    config = scdfm.Config().updated(every.SMALL_OPTIONS).updated({"training": BRIEF})
    table = every.score_case(case, 0, folder, config.model_dump(exclude={"seed", "split"}))
    return table.pivot_table(index="model", columns="metric", values="value")


def test_triples_are_predicted_from_singles_and_doubles(benchmark, tmp_path) -> None:
    scores = learned(benchmark("every_screen"), "triples", tmp_path)["l2"]
    assert scores["scdfm"] < 0.9 * scores["additive"]
    assert scores["scdfm"] < 0.6 * scores["no change"]
    assert scores["prior (scdfm)"] < 0.6 * scores["no change"]


def test_doses_between_measured_ones_are_predicted(benchmark, tmp_path) -> None:
    scores = learned(benchmark("every_screen"), "doses", tmp_path)["l2"]
    assert scores["scdfm"] < scores["nearest dose"]
    assert scores["scdfm"] < 0.6 * scores["training mean"]


def test_unseen_drugs_are_predicted_from_features_that_tell_and_not_from_shuffled_ones(benchmark, tmp_path) -> None:
    scores = learned(benchmark("every_screen"), "drugs", tmp_path)["l2"]
    assert scores["scdfm"] < 0.75 * scores["training mean"]
    assert scores["scdfm, shuffled features"] > 0.95 * scores["training mean"]


def test_rules_between_doses(benchmark) -> None:
    every = benchmark("every_screen")
    split = scdfm.Split("by hand", 0, ("d@1", "d@100", "e@10"), ("d@0.01",), ("d@10", "d@2"))
    means = pd.DataFrame({"G": [0.0, 2.0, 4.0, 9.0]}, index=["d@0.01", "d@1", "d@100", "e@10"])
    assert every.interpolated("d@10", split, means)["G"] == pytest.approx(3.0)
    assert every.nearest_dose("d@2", split, means)["G"] == 2.0


def test_pages_hold_the_command_and_every_paired_difference(benchmark, tmp_path, monkeypatch, capsys) -> None:
    screens = benchmark("screens")
    rows = [
        (model, name, "l2", value + offset)
        for model, offset in (("no change", 3.0), ("scdfm", 1.0), ("ceiling", 0.0))
        for name, value in zip("ABCDEFGHIJ", range(1, 11), strict=True)
    ]
    table = pd.DataFrame(rows, columns=["model", "condition", "metric", "value"]).assign(seed=0, beside="", n_cells=1)
    summary, paired = screens.pooled([table], ["scdfm"])
    assert paired[["model", "against", "improvement"]].to_numpy().tolist() == [["scdfm", "no change", 2.0]]
    monkeypatch.setattr(sys, "argv", ["benchmarks/kang.py", "screen.h5ad", "--size", "small"])
    args = screens.parser("", "kang").parse_args(["screen.h5ad", "--size", "small", "--results", str(tmp_path)])
    path = screens.write_page(args, "kang", "Title", "text", summary, paired)
    assert path.name == "kang_small.md"
    page = path.read_text()
    assert "`python benchmarks/kang.py screen.h5ad --size small`" in page
    assert "| scdfm | no change | 2 (2 to 2) |" in page
    assert capsys.readouterr().out.strip() == page.strip()
