"""Simulated triples, dose–response, drugs with features and cell types: each screen hides the truth it states."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from scdfm.data import features, read_cells, simulate, simulate_cell_types, simulate_doses, simulate_drugs, targets
from scdfm.data.conditions import canonical
from scdfm.data.simulate import hill
from scdfm.errors import DataError

FEW = {"n_genes": 30, "cells_per_condition": 8, "n_controls": 20, "truth_cells": 10}
SIMULATORS = [simulate_doses, simulate_drugs, simulate_cell_types]


def shifts(screen: ad.AnnData) -> npt.NDArray[np.float64]:
    """True shifts of the means from control, all but control's."""
    means = screen.uns["true_means"]
    return (means - means.loc["control"]).drop(index="control").to_numpy()


def test_triples_are_combinations_of_measured_targets_and_leave_the_rest_as_it_was() -> None:
    without, with_triples = (simulate(**FEW, n_targets=5, seed=2), simulate(**FEW, n_targets=5, n_triples=4, seed=2))
    few, many = read_cells(without), read_cells(with_triples)
    triples = sorted(set(many.conditions) - set(few.conditions))
    assert [len(targets(name)) for name in triples] == [3] * 4
    assert {target for name in triples for target in targets(name)} <= set(few.conditions)
    assert many.select(few.conditions).digest() == few.digest()
    activity = simulate(**FEW, n_targets=5, n_triples=4, seed=2, interaction="none").uns["true_activity"]
    for name in triples:
        np.testing.assert_allclose(activity.loc[name], activity.loc[list(targets(name))].sum(), atol=1e-12)


def test_hill() -> None:
    np.testing.assert_allclose(hill(np.array([0, 0.5, 2, 1e9]), 2.0, 1.0), [0, 0.2, 0.5, 1], atol=1e-8)
    np.testing.assert_allclose(hill(4.0, 2.0, 3.0), 8 / 9)


def test_the_response_to_a_dose_follows_the_stated_curve() -> None:
    """The mean of log1p values is no linear function of log rates, so direction and order are compared."""
    screen = simulate_doses(n_drugs=3, seed=1, truth_cells=4000, dropout=0)
    means = screen.uns["true_means"]
    for drug, (ec50, slope) in screen.uns["true_curves"].iterrows():
        effect = screen.uns["true_effects"].loc[drug].to_numpy()
        doses = sorted(screen.obs.loc[screen.obs["drug"] == drug, "dose"].unique())
        assert len(doses) == 7
        moved = np.array([(means.loc[canonical(f"{drug}@{dose:g}")] - means.loc["control"]) @ effect for dose in doses])
        share = hill(np.array(doses), ec50, slope)
        assert np.corrcoef(moved, share)[0, 1] > 0.98
        assert moved[-1] > 3 * abs(moved[0])


def test_the_effect_is_a_smooth_function_of_the_features_and_of_shuffled_ones_it_is_not() -> None:
    screen, shuffled = (simulate_drugs(seed=4, truth_cells=400, shuffled=flag) for flag in (False, True))
    assert read_cells(screen, "drug").digest() == read_cells(shuffled, "drug").digest()
    table, other = screen.uns["features"], shuffled.uns["features"]
    np.testing.assert_array_equal(np.sort(table, axis=0), np.sort(other, axis=0))
    assert not (table == other).to_numpy().any()

    def explained(frame: pd.DataFrame) -> float:
        """Share of the variance of left-out drugs' shifts that ridge on tanh features explains."""
        z = np.column_stack([frame, np.tanh(frame), np.ones(len(frame))])
        y = shifts(screen)
        y = y - y.mean(axis=0)
        hat = z @ np.linalg.solve(z.T @ z + 0.3 * np.eye(z.shape[1]), z.T)
        left_out = (y - hat @ y) / (1 - np.diag(hat))[:, None]
        return float(1 - (left_out**2).sum() / (y**2).sum())

    assert explained(table) > 0.5
    assert explained(other) < 0.1
    assert features.table(table).names == tuple(table.index)


@pytest.mark.parametrize(("shared", "low", "high"), [(1.0, 0.999, 1.001), (0.0, -0.6, 0.6)])
def test_cell_types_share_as_much_of_an_effect_as_asked(shared: float, low: float, high: float) -> None:
    screen = simulate_cell_types(**FEW, n_types=2, shared=shared, seed=3)
    effects = screen.uns["true_effects"]
    names = [name for name in effects.index if name.endswith("|cell_type=type1") and "control" not in name]
    assert len(names) == 8
    twin = [name.replace("type1", "type2") for name in names]
    first, second = effects.loc[names].to_numpy().ravel(), effects.loc[twin].to_numpy().ravel()
    assert low <= np.corrcoef(first, second)[0, 1] <= high


def test_cell_types_have_controls_and_expression_of_their_own() -> None:
    screen = simulate_cell_types(**FEW, n_types=3)
    controls = screen.obs[screen.obs["perturbation"] == "control"]
    assert controls["cell_type"].value_counts().to_dict() == {"type1": 20, "type2": 20, "type3": 20}
    means = screen.uns["true_means"]
    assert np.linalg.norm(means.loc["control|cell_type=type1"] - means.loc["control|cell_type=type2"]) > 1
    assert {canonical(name) for name in means.index} == set(means.index)


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_same_arguments_same_bits_and_the_file_round_trips(simulator, tmp_path: Path) -> None:
    first, again, other = simulator(**FEW), simulator(**FEW), simulator(**FEW, seed=1)
    assert (first.X != again.X).nnz == 0 < (first.X != other.X).nnz
    first.write_h5ad(tmp_path / "screen.h5ad")
    read = ad.read_h5ad(tmp_path / "screen.h5ad")
    pd.testing.assert_frame_equal(read.uns["true_means"], first.uns["true_means"])
    assert dict(read.uns["simulation"]) == first.uns["simulation"]


@pytest.mark.parametrize("simulator", SIMULATORS)
def test_options_of_all_are_checked(simulator) -> None:
    for name, value in (("n_genes", 1), ("responders", 1.5), ("n_controls", 0), ("n_programs", 4), ("seed", -1)):
        with pytest.raises(DataError, match=f"{name} is {value}"):
            simulator(**FEW | {name: value})


@pytest.mark.parametrize(
    ("simulator", "options", "message"),
    [
        (simulate, {"n_triples": 221}, "n_triples is 221; expected at least 0 and at most 220"),
        (simulate_doses, {"n_doses": 1}, "n_doses is 1; expected at least 2"),
        (simulate_doses, {"n_drugs": 0}, "n_drugs is 0"),
        (simulate_drugs, {"n_drugs": 1}, "n_drugs is 1"),
        (simulate_drugs, {"n_features": 0}, "n_features is 0"),
        (simulate_cell_types, {"shared": 1.1}, "shared is 1.1; expected at least 0 and at most 1"),
        (simulate_cell_types, {"n_targets": 101}, "n_targets is 101; expected at least 1 and at most 100"),
        (simulate_cell_types, {"n_types": 0}, "n_types is 0"),
    ],
)
def test_refusals(simulator, options: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        simulator(**options)
