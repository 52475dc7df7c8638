"""The simulated screen: counts, truth, interactions, and that what it hides can be learned."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from scdfm.data import additive_split, read_cells, simulate, targets
from scdfm.errors import DataError

SMALL = {"n_genes": 60, "n_targets": 6, "cells_per_condition": 30, "n_controls": 60, "truth_cells": 20}


@pytest.fixture(scope="module")
def screen() -> ad.AnnData:
    return simulate(seed=3)


def test_values_are_log1p_of_the_counts_per_10000(screen: ad.AnnData) -> None:
    counts = screen.layers["counts"]
    assert (np.rint(counts.data) == counts.data).all()
    from_counts = read_cells(screen, layer="counts", target_sum=1e4)
    as_given = read_cells(screen)
    assert (from_counts.X != as_given.X).nnz == 0
    assert from_counts.conditions == as_given.conditions
    assert screen.X.dtype == np.float32


def test_conditions_are_singles_some_doubles_and_control(screen: ad.AnnData) -> None:
    cells = read_cells(screen)
    names = screen.var_names[screen.var["target"]]
    assert len(names) == 12
    assert {target for name in cells.conditions for target in targets(name)} == set(names) <= set(cells.genes)
    doubles = [name for name in cells.conditions if len(targets(name)) == 2]
    assert set(names) < set(cells.conditions)
    assert len(doubles) == 40 < 66
    assert cells.n_cells("control") == 400
    assert {cells.n_cells(name) for name in doubles} == {100}
    fewer = read_cells(simulate(**SMALL, n_doubles=2))
    assert len(fewer.conditions) == 1 + 6 + 2


def test_the_file_round_trips(screen: ad.AnnData, tmp_path: Path) -> None:
    screen.write_h5ad(tmp_path / "screen.h5ad")
    again = ad.read_h5ad(tmp_path / "screen.h5ad")
    pd.testing.assert_frame_equal(again.uns["true_means"], screen.uns["true_means"])
    assert dict(again.uns["simulation"]) == screen.uns["simulation"]
    assert read_cells(tmp_path / "screen.h5ad").digest() == read_cells(screen).digest()


def test_same_arguments_same_bits_and_conditions_have_their_own_streams() -> None:
    first, again, other = simulate(**SMALL), simulate(**SMALL), simulate(**SMALL, seed=1)
    assert read_cells(first).digest() == read_cells(again).digest() != read_cells(other).digest()
    np.testing.assert_array_equal(first.uns["true_means"], again.uns["true_means"])
    # Fewer doubles leave the cells of the others as they are.
    few, many = read_cells(simulate(**SMALL, n_doubles=0)), read_cells(first)
    for name in few.conditions:
        assert (few.X[few.rows(name)] != many.X[many.rows(name)]).nnz == 0


def test_sparsity_follows_depth_and_dropout(screen: ad.AnnData) -> None:
    def zeros(**options: float) -> float:
        x = simulate(**SMALL, **options).X  # type: ignore[arg-type]
        return 1 - x.nnz / np.prod(x.shape)

    assert zeros(depth=50) > zeros(depth=1000) + 0.2
    assert zeros(dropout=0.8) > zeros(dropout=0) + 0.05
    assert 0.3 < 1 - screen.X.nnz / np.prod(screen.shape) < 0.6


def test_counts_are_overdispersed(screen: ad.AnnData) -> None:
    counts = screen[screen.obs["perturbation"] == "control"].layers["counts"].toarray()
    mean, variance = counts.mean(axis=0), counts.var(axis=0)
    loud = mean > 5
    assert (variance[loud] > 1.5 * mean[loud]).mean() > 0.9


def test_some_cells_respond_and_the_others_are_as_controls(screen: ad.AnnData) -> None:
    obs = screen.obs
    perturbed = (obs["perturbation"] != "control").to_numpy()
    responder = obs["responder"].to_numpy()
    assert not responder[~perturbed].any()
    assert abs(responder[perturbed].mean() - 0.8) < 0.02
    control = screen.uns["true_means"].loc["control"].to_numpy()
    x = screen.X.toarray()
    bystanders = x[perturbed & ~responder]
    error = bystanders.std(axis=0) / np.sqrt(len(bystanders)) + x[~perturbed].std(axis=0) / np.sqrt(1000)
    assert (np.abs(bystanders.mean(axis=0) - control) < 4 * error + 0.02).all()
    assert np.linalg.norm(x[perturbed & responder].mean(axis=0) - control) > 2
    assert not simulate(**SMALL, responders=0).obs["responder"].any()


def test_the_truth_is_the_mean_of_the_cells(screen: ad.AnnData) -> None:
    cells = read_cells(screen)
    truth = screen.uns["true_means"]
    assert list(truth.columns) == list(cells.genes)
    assert set(truth.index) == set(cells.conditions)
    for name in ("control", cells.conditions[1], cells.conditions[-1]):
        x = cells.X[cells.rows(name)].toarray()
        error = x.std(axis=0, ddof=1) * np.sqrt(1 / len(x) + 1 / screen.uns["simulation"]["truth_cells"])
        z = (x.mean(axis=0) - truth.loc[name].to_numpy()) / error
        assert 0.8 < np.sqrt((z**2).mean()) < 1.2


def activity(screen: ad.AnnData) -> tuple[dict[str, npt.NDArray[np.float64]], list[str]]:
    table = screen.uns["true_activity"]
    return {name: table.loc[name].to_numpy() for name in table.index}, [n for n in table.index if "+" in n]


def test_without_interaction_activities_add_up_and_with_it_they_do_not(screen: ad.AnnData) -> None:
    additive, doubles = activity(simulate(**SMALL, interaction="none"))
    for name in doubles:
        np.testing.assert_allclose(additive[name], sum(additive[t] for t in targets(name)), atol=1e-12)
    strong, doubles = activity(screen)
    gap = {name: strong[name] - sum(strong[t] for t in targets(name)) for name in doubles}
    assert np.mean([np.abs(value).max() > 0.5 for value in gap.values()]) > 0.7
    # Synergy: the last program, which no single reaches, moves in some doubles.
    assert not any(strong[name][-1] for name in strong if "+" not in name)
    assert np.mean([abs(strong[name][-1]) > 0.3 for name in doubles]) > 0.1


def test_interaction_scales_and_changes_no_single() -> None:
    half, _ = activity(simulate(**SMALL, interaction=0.5))
    strong, doubles = activity(simulate(**SMALL, interaction="strong"))
    none, _ = activity(simulate(**SMALL, interaction=0.0))
    for name in strong:
        if name not in doubles:
            np.testing.assert_array_equal(strong[name], none[name])
    distance = [sum(np.abs(a[name] - none[name]).sum() for name in doubles) for a in (none, half, strong)]
    assert distance[0] == 0 < distance[1] < distance[2]


def length(errors: list[npt.NDArray[np.float64]]) -> float:
    return float(np.mean([np.linalg.norm(error) for error in errors]))


def pair_features(scores: dict[str, npt.NDArray[np.float64]], name: str) -> npt.NDArray[np.float64]:
    """What two singles' program scores say of a pair: products, shared part, sum."""
    a, b = (scores[target] for target in targets(name))
    products = np.outer(a, b) + np.outer(b, a)
    shared = np.where(a * b > 0, np.sign(a) * np.minimum(abs(a), abs(b)), 0)
    return np.concatenate([products[np.triu_indices(len(a))], shared, a + b, [1.0]])


@pytest.mark.parametrize("seed", [0, 1])
def test_unseen_doubles_do_not_add_up_but_can_be_learned(seed: int) -> None:
    """From the measured singles and training doubles alone, scored on the true means of the test."""
    screen = simulate(seed=seed)
    cells, truth = read_cells(screen), screen.uns["true_means"]
    split = additive_split(cells, validation_fraction=0)
    means = cells.means()
    shift = (means - means.loc["control"]).drop(index="control")
    real = (truth - truth.loc["control"]).drop(index="control")
    singles = shift.loc[[name for name in split.train if "+" not in name]]
    doubles = [name for name in split.train if "+" in name]
    programs = np.linalg.svd(singles.to_numpy(), full_matrices=False)[2][:4]
    scores = {name: programs @ singles.loc[name].to_numpy() for name in singles.index}
    unit = np.sqrt(np.mean([score**2 for score in scores.values()]))
    scores = {name: score / unit for name, score in scores.items()}

    def added(name: str) -> npt.NDArray[np.float64]:
        return np.asarray(singles.loc[list(targets(name))].sum().to_numpy())

    a = np.array([pair_features(scores, name) for name in doubles])
    residual = np.array([shift.loc[name].to_numpy() - added(name) for name in doubles])
    weights = np.linalg.solve(a.T @ a + np.eye(a.shape[1]), a.T @ residual)

    def errors(predict: object) -> float:
        return length([predict(name) - real.loc[name].to_numpy() for name in split.test])  # type: ignore[operator]

    nothing = errors(lambda name: np.zeros(len(cells.genes)))
    mean = errors(lambda name: shift.loc[list(split.train)].mean().to_numpy())
    additive = errors(added)
    learned = errors(lambda name: added(name) + pair_features(scores, name) @ weights)
    assert learned < 0.7 * additive
    assert learned < 0.7 * mean < 0.7 * nothing
    assert additive > 0.5 * nothing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_targets": 1}, "n_targets is 1; expected at least 2"),
        ({"n_genes": 5}, "n_genes is 5; expected at least 12"),
        ({"n_doubles": 67}, "n_doubles is 67; expected at least 0 and at most 66"),
        ({"n_doubles": -1}, "n_doubles is -1"),
        ({"responders": 1.5}, "responders is 1.5; expected at least 0 and at most 1"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"depth": 0}, "depth is 0"),
        ({"n_programs": 4}, "n_programs is 4; expected at least 5"),
        ({"cells_per_condition": 0}, "cells_per_condition is 0"),
        ({"n_controls": 0}, "n_controls is 0"),
        ({"truth_cells": 0}, "truth_cells is 0"),
        ({"interaction": "weak"}, "interaction is 'weak'; expected 'none', 'strong' or a number"),
        ({"interaction": -1}, "interaction is -1"),
        ({"interaction": float("nan")}, "interaction is nan"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_refusals(options: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        simulate(**options)  # type: ignore[arg-type]
