"""What a fit prepares: from which cells and conditions each part comes, and which a resumed fit refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import scdfm
from scdfm.config import Config
from scdfm.data import Split
from scdfm.data.simulate import simulate_cell_types
from scdfm.errors import RunError
from scdfm.run import folder
from scdfm.run.manifest import FeatureSource
from scdfm.training.inputs import control_populations, prepare, require_same_run
from scdfm.training.prepared import Prepared, kept_controls


@pytest.fixture(scope="module")
def screen() -> Any:
    return scdfm.simulate(n_genes=30, n_targets=4, cells_per_condition=12, n_controls=30, truth_cells=2, seed=3)


@pytest.fixture(scope="module")
def split(screen: Any) -> Split:
    """One target is in the test alone."""
    names = [name for name in screen.obs["perturbation"].unique() if name != "control"]
    held = sorted({target for name in names for target in name.split("+")})[0]
    kept = [name for name in names if held not in name.split("+")]
    test = [name for name in names if name not in kept]
    return Split("named", 0, tuple(kept[1:]), tuple(kept[:1]), tuple(test))


CONFIG = Config().updated({"panel": {"n_genes": 25}, "graph": {"k": 4}})


def files(adata: Any, split: Split, out: Path) -> dict[str, bytes]:
    """What a fit leaves before its first step, by name."""
    cells = scdfm.read_cells(adata)
    out.mkdir()
    Prepared.load_or_make(cells, split, prepare(cells, split, CONFIG, None), out)
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def test_test_conditions_are_no_part_of_it(screen: Any, split: Split, tmp_path: Path) -> None:
    """Their cells change nothing, their targets count as unseen, and their means are not stored."""
    other = screen.copy()
    other.X = other.X.toarray()
    rows = other.obs["perturbation"].isin(split.test).to_numpy()
    other.X[rows] = other.X[rows][:, ::-1]
    found = files(screen, split, tmp_path / "one")
    assert found == files(other, split, tmp_path / "other")
    assert {folder.GRAPH, folder.MEANS, folder.CONTROLS} <= found.keys()
    means = folder.read_means(tmp_path / "one" / folder.MEANS)
    assert set(means.index) == {"control", *split.train, *split.validation}
    trained = {target for name in split.train for target in name.split("+")}
    manifest = prepare(scdfm.read_cells(screen), split, CONFIG, None).manifest
    assert set(manifest.targets) == trained
    assert not trained >= {target for name in split.test for target in name.split("+")}


def test_what_was_made_is_what_is_read(screen: Any, split: Split, tmp_path: Path) -> None:
    """A resumed fit, and the other processes of one, go on with the same bits as the process that prepared it."""
    cells = scdfm.read_cells(screen)
    inputs = prepare(cells, split, CONFIG, None)
    made, found = (Prepared.load_or_make(cells, split, inputs, tmp_path) for _ in range(2))
    assert made.graph is not None
    assert made.graph.equal(found.graph)
    pd.testing.assert_frame_equal(made.means, found.means, check_exact=True, check_names=False)
    assert made.start is not None
    assert found.start is not None
    assert made.start.names == found.start.names
    for name in ("expected", "doubt"):
        assert getattr(made.start, name).equal(getattr(found.start, name)), name
    one, other = made.start.spread, found.start.spread
    assert one.settings == other.settings
    assert one.size == other.size
    for name in ("deviation", "donors"):
        assert getattr(one, name).equal(getattr(other, name)), name


def test_training_cells_choose_the_graph(screen: Any, split: Split, tmp_path: Path) -> None:
    other = screen.copy()
    other.X = other.X.toarray()
    rows = other.obs["perturbation"].isin(split.train).to_numpy()
    other.X[rows] = np.random.default_rng(0).permutation(other.X[rows].ravel()).reshape(rows.sum(), -1)
    found = files(screen, split, tmp_path / "one"), files(other, split, tmp_path / "other")
    assert found[0][folder.GRAPH] != found[1][folder.GRAPH]


def test_features_are_brought_to_the_scale_of_trained_targets(screen: Any, split: Split) -> None:
    cells = scdfm.read_cells(screen)
    targets = sorted({target for name in split.conditions for target in name.split("+")})
    given = pd.DataFrame(np.random.default_rng(0).normal(3, 2, (len(targets), 2)), index=targets)
    trained = prepare(cells, split, CONFIG, None).manifest.targets
    inputs = prepare(cells, split, CONFIG, given)
    assert inputs.features is not None
    assert inputs.standardise is not None
    scaled = inputs.standardise(inputs.features)
    rows = [scaled.names.index(name) for name in trained]
    np.testing.assert_allclose(scaled.values[rows].mean(0), 0, atol=1e-6)


@pytest.fixture(scope="module")
def typed() -> scdfm.CellTable:
    adata = simulate_cell_types(
        n_genes=30, n_targets=3, n_types=3, cells_per_condition=8, n_controls=20, truth_cells=2, seed=1
    )
    types = adata.obs["cell_type"].astype(str)
    controls = np.flatnonzero((adata.obs["perturbation"] == "control").to_numpy())
    of = {kind: controls[(types.iloc[controls] == kind).to_numpy()] for kind in sorted(types.unique())}
    few = [rows[:n] for rows, n in zip(of.values(), (20, 3, 1), strict=True)]
    treated = np.flatnonzero((adata.obs["perturbation"] != "control").to_numpy())
    return scdfm.read_cells(adata[np.sort(np.concatenate([treated, *few]))].copy(), covariates=["cell_type"])


def test_control_populations_have_enough_cells(typed: scdfm.CellTable) -> None:
    perturbed = tuple(name for name in typed.conditions if name != "control")
    split = Split("named", 0, perturbed[1:], perturbed[:1], ())
    for least, n in ((1, 3), (2, 2), (3, 2), (4, 1)):
        found = control_populations(typed, split, CONFIG.updated({"training": {"min_cells": max(least, 1)}}))
        assert len(found) == n, (least, found)
    assert control_populations(typed, split, CONFIG.updated({"training": {"control_populations": "never"}})) == ()


def test_controls_are_kept_evenly_over_groups(typed: scdfm.CellTable) -> None:
    kept = kept_controls(typed, 8, seed=0)
    assert len(kept) == 8
    types = typed.obs["cell_type"].astype(str).to_numpy()[kept]
    assert sorted(np.unique(types, return_counts=True)[1]) == [1, 3, 4]


CHANGES: dict[str, Any] = {
    "config": lambda manifest: manifest.config.updated({"seed": 1}),
    "panel": lambda manifest: manifest.panel[::-1],
    "vocabulary": lambda manifest: manifest.vocabulary[::-1],
    "split": lambda manifest: manifest.split | {"fold": 1},
    "scale": lambda manifest: manifest.scale | {"declared": "other"},
    "control_populations": lambda manifest: ["control|cell_type=B"],
    "features": lambda manifest: FeatureSource(kind="table", names=["a"], digest="0" * 64),
    "data": lambda manifest: manifest.data | {"digest": "0" * 64},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_of_anything_else_is_not_resumed(screen: Any, split: Split, tmp_path: Path, name: str) -> None:
    manifest = prepare(scdfm.read_cells(screen), split, CONFIG, None).manifest
    require_same_run(manifest, manifest, tmp_path)
    other = manifest.model_copy(update={name: CHANGES[name](manifest)})
    with pytest.raises(RunError, match=f"other {name};"):
        require_same_run(other, manifest, tmp_path)
