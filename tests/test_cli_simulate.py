"""`scdfm simulate`: every kind of screen, and options that do not belong to a kind."""

from __future__ import annotations

import anndata as ad
import pandas as pd
import pytest

SMALL = ("--genes", 20, "--targets", 3, "--cells", 5, "--controls", 8)


@pytest.mark.parametrize(
    ("kind", "options", "conditions", "columns"),
    [
        ("combinations", ("--triples", 1), 1 + 3 + 2 + 1, {"perturbation"}),
        ("doses", ("--doses", 4), 1 + 3 * 4, {"drug", "dose"}),
        ("drugs", ("--shuffled",), 1 + 3, {"drug"}),
        ("cell-types", ("--types", 2, "--shared", 0.5), 2 * (1 + 3), {"perturbation", "cell_type"}),
    ],
)
def test_every_kind_is_written(call, tmp_path, kind, options, conditions, columns) -> None:
    path = tmp_path / "screen.h5ad"
    code, out, error = call("simulate", path, "--kind", kind, *SMALL, *options, "--seed", 3)
    assert (code, error) == (0, "")
    screen = ad.read_h5ad(path)
    assert len(screen.uns["true_means"]) == conditions
    assert f"20 genes, {conditions} conditions" in out
    assert set(screen.obs.columns) == columns | {"responder"}
    written = {found.name for found in tmp_path.iterdir()}
    if kind == "drugs":
        assert written == {"screen.h5ad", "screen.features.csv"}
        table = pd.read_csv(tmp_path / "screen.features.csv", index_col="name", float_precision="round_trip")
        assert table.to_numpy().tolist() == screen.uns["features"].to_numpy().tolist()
    else:
        assert written == {"screen.h5ad"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kind", "time"), "--kind time: expected one of combinations, doses, drugs, cell-types"),
        (("--doses", 4), "--doses goes with --kind doses, found --kind combinations; leave it out"),
        (("--kind", "doses", "--shared", 1), "--shared goes with --kind cell-types, found --kind doses"),
        (("--kind", "drugs", "--targets", 1), "n_drugs is 1; expected at least 2"),
    ],
)
def test_refusals(call, tmp_path, options, message) -> None:
    code, _, error = call("simulate", tmp_path / "screen.h5ad", *options)
    assert code == 2
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_features_are_not_written_over(call, tmp_path) -> None:
    (tmp_path / "screen.features.csv").touch()
    code, _, error = call("simulate", tmp_path / "screen.h5ad", "--kind", "drugs", *SMALL)
    assert (code, "screen.features.csv exists" in error) == (2, True)
    assert not (tmp_path / "screen.h5ad").exists()
