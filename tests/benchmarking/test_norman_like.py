"""The closed-form rows of the norman-like table, against the script that defines them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import scdfm

ROWS = {
    "no change": "no change", "training mean": "training mean", "additive": "additive", "ridge": "ridge",
    "half of the cells": "ceiling",
}  # fmt: skip
COLUMNS = ["l2", "mse", "mae", "pearson_delta", "ds", "pearson_delta_hat", "pearson_delta_hat_20"]


def script(*arguments: object) -> str:
    return subprocess.run([sys.executable, *map(str, arguments)], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def screen(shared, tmp_path_factory):
    """30 singles and 35 doubles of the measured effects (some with a target never measured alone), 1,200 genes."""
    bundle = np.load(shared / "data" / "norman_effects.npz", allow_pickle=False)
    folder = tmp_path_factory.mktemp("norman-like")
    singles, doubles = bundle["sing_labels"].astype(str), bundle["doub_labels"].astype(str)
    some = np.arange(0, len(singles), 3)[:30]
    touching = [i for i, name in enumerate(doubles) if set(name.split("+")) & set(singles[some])][:35]
    alone = np.union1d(some, np.flatnonzero(np.isin(singles, "+".join(doubles[touching[:25]]).split("+"))))
    np.savez(
        folder / "effects.npz", genes_hvg=bundle["genes_hvg"][:1200], sing_labels=singles[alone],
        doub_labels=doubles[touching], lfc_s=bundle["lfc_s"][alone, :1200], lfc_d=bundle["lfc_d"][touching, :1200],
    )  # fmt: skip
    maker = shared / "tools" / "make_norman_like.py"
    script(maker, folder / "screen.h5ad", "--effects", folder / "effects.npz", "--cells", 40, "--controls", 150)
    return folder / "screen.h5ad"


def test_benchmark_reproduces_the_table(screen, shared, tmp_path):
    printed = script(shared / "tools" / "norman_like_table.py", screen).splitlines()[1:]
    expected = {line[:18].strip(): [float(value) for value in line[18:].split()] for line in printed}
    found = scdfm.benchmark(
        screen, "additive", out=tmp_path / "out", models="baselines", protocol="paper", metrics=COLUMNS, progress=False
    )  # fmt: skip
    table = found.summary.pivot_table(index="model", columns="metric", values="mean", dropna=False)
    ours = table.loc[list(ROWS.values()), COLUMNS].to_numpy()
    theirs = np.array([expected[name] for name in ROWS])
    # the script gives a number to what has no answer: correlations with the centre itself
    theirs[np.isnan(ours)] = np.nan
    assert np.isnan(ours).sum() == 3  # no change: no shift; training mean: no difference from the centre, twice
    np.testing.assert_allclose(ours, theirs, atol=5.001e-5, rtol=0)
    measured = {name for name in scdfm.read_cells(screen).conditions if "+" in name}
    assert found.scores["condition"].nunique() < len(measured)  # some doubles lack a single and are not scored
