"""Real Norman cells from the command line: five composed doubles held out, every baseline in the table."""

from __future__ import annotations

import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdfm
from scdfm import cli

DOUBLES = ["MAP2K3+MAP2K6", "KLF1+MAP2K6", "KLF1+TGFBR2", "MAPK1+TGFBR2", "MAP2K3+SLC38A2"]
FEW_STEPS = [
    "--max-steps", "8", "--set", "flow.genes_per_step=64", "--set", "training.validate_every=4",
    "--set", "training.validation_cells=4", "--set", "sampling.steps=2", "--set", "sampling.solver=euler", "--quiet",
]  # fmt: skip


def scdfm_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["scdfm", *map(str, arguments)])
    cli.main()  # SystemExit on a failure alone


@pytest.fixture(scope="module")
def scored(shared, tmp_path_factory):
    """The folder of a whole pass: split.toml, run, predicted.h5ad, score."""
    folder = tmp_path_factory.mktemp("norman")
    data = shared / "data" / "perturbench_devel.h5ad"
    (folder / "split.toml").write_text(f"test = {DOUBLES}\n")
    subset = ("--subset", "dataset=norman19")
    with pytest.MonkeyPatch.context() as patch:
        scdfm_command(
            patch, "fit", data, *subset, "--split", folder / "split.toml", "--out", folder / "run", *FEW_STEPS
        )
    with pytest.MonkeyPatch.context() as patch:
        out = folder / "predicted.h5ad"
        scdfm_command(patch, "predict", folder / "run", "--test", "--out", out, "--cells", 20, "--quiet")
    with pytest.MonkeyPatch.context() as patch:
        scdfm_command(patch, "evaluate", out, data, *subset, "--run", folder / "run", "--out", folder / "score")
    return folder


def test_the_five_doubles_are_held_out_and_predicted_by_name(scored):
    run = scdfm.Run.load(scored / "run")
    assert sorted(run.split.test) == sorted(DOUBLES)
    assert len(run.split.train) + len(run.split.validation) == 18 + 15 - 5
    predicted = ad.read_h5ad(scored / "predicted.h5ad")
    assert predicted.obs["perturbation"].value_counts().to_dict() == dict.fromkeys(DOUBLES, 20)
    assert {"MAP2K3", "KLF1", "TGFBR2"} <= {*run.genes, *run.manifest.targets}
    assert set(run.means.index).isdisjoint(DOUBLES)


def test_the_table_holds_every_baseline_and_metric(scored):
    scores = pd.read_csv(scored / "score" / "scores.csv")
    models = {"model", "no change", "training mean", "additive", "ridge", "low-rank linear", "ceiling"}
    assert models <= set(scores["model"])
    table = scores.groupby(["model", "metric"])["value"].mean().unstack()  # noqa: PD010
    metrics = [
        "l2",
        "mse",
        "mae",
        "pearson_delta",
        "ds",
        "ds_signed",
        "pearson_delta_hat",
        "pearson_delta_hat_20",
        "energy",
    ]
    assert np.isfinite(table.loc["additive", metrics].to_numpy()).all()
    # On real cells composition tells more than nothing, and half of the cells tell most.
    assert table.loc["additive", "l2"] < table.loc["no change", "l2"]
    assert table.loc["ceiling", "pearson_delta"] > table.loc["additive", "pearson_delta"]
    assert (scored / "score" / "report.html").stat().st_size > 100_000


def test_the_same_evaluation_gives_the_same_bits(scored, shared):
    data, subset = shared / "data" / "perturbench_devel.h5ad", {"dataset": "norman19"}
    run = scdfm.Run.load(scored / "run")
    again = scdfm.evaluate(scored / "predicted.h5ad", data, training=run, subset=subset)
    written = pd.read_csv(scored / "score" / "scores.csv", float_precision="round_trip")
    pd.testing.assert_frame_equal(again.reset_index(drop=True), written, check_dtype=False, check_exact=True)
