"""Control cells in halves, and what they take off a correlation; noise taken off an error."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scdfm.data.reading import read_cells
from scdfm.evaluation import evaluate
from scdfm.evaluation.pseudobulk import Population, control_means, halved_controls

GENES = [f"G{i:02d}" for i in range(80)]


def screen(shifts: dict[str, np.ndarray], sizes: dict[str, int], seed: int) -> AnnData:
    rng = np.random.default_rng(seed)
    labels = np.repeat(list(sizes), list(sizes.values()))
    X = np.stack([rng.normal(3 + shifts[label], 0.5) for label in labels])
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{seed}-{i}" for i in range(len(X))])
    return AnnData(np.maximum(X, 0).astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))


def test_halves_are_disjoint_and_those_of_a_group_its_own():
    rows = {"control": np.arange(11), "A": np.arange(11, 14), "B": np.arange(14, 17)}
    cells = read_cells(screen({c: np.zeros(80) for c in rows}, {"control": 11, "A": 3, "B": 3}, 0))
    matched = {"A": np.arange(5), "B": np.arange(5, 11)}
    population = Population(cells.X, cells.genes, rows, matched)
    one, two = halved_controls(population, 3)
    assert sorted([*one.rows["control"], *two.rows["control"]]) == list(range(11))
    for name in matched:
        assert sorted([*one.control_rows(name), *two.control_rows(name)]) == matched[name].tolist()
    assert control_means(one, ["A", "B"]).shape == (2, 80)
    again, _ = halved_controls(population, 3)
    assert np.array_equal(again.rows["control"], one.rows["control"])
    single = Population(cells.X, cells.genes, {**rows, "control": np.arange(1)})
    assert np.isnan(control_means(halved_controls(single, 0)[0], ["A"])).all()


def test_shared_controls_lift_a_correlation_and_split_ones_do_not():
    """Prediction and truth have no effect at all: what correlates is the noise of the controls they subtract."""
    nothing = {c: np.zeros(80) for c in ("control", *(f"T{k}" for k in range(12)))}
    sizes = {c: 60 if c != "control" else 8 for c in nothing}
    shared, split, rule = [], [], []
    for seed in range(6):
        real = read_cells(screen(nothing, sizes, seed))
        predicted = screen(nothing, {c: 60 for c in nothing if c != "control"}, 100 + seed)
        table = evaluate(predicted, real, metrics=["pearson_delta", "pearson_delta_split"], seed=seed,
                         training=real.means(["T0", "T1"]), conditions=[f"T{k}" for k in range(2, 12)])  # fmt: skip
        mean = table.groupby(["model", "metric"])["value"].mean()
        shared.append(mean["model", "pearson_delta"])
        split.append(mean["model", "pearson_delta_split"])
        rule.append(mean["training mean", "pearson_delta_split"])
    assert min(shared) > 0.6
    for found in (split, rule):
        assert abs(np.mean(found)) < 4 * np.std(found, ddof=1) / np.sqrt(len(found)) + 0.02


def test_noise_is_taken_off_an_error():
    """Other cells of the same population have no error but noise; a wrong mean keeps its error, scattered or not."""
    rng = np.random.default_rng(0)
    shifts = {"control": np.zeros(80), **{f"T{k}": rng.normal(0, 0.3, 80) for k in range(10)}}
    named = [c for c in shifts if c != "control"]
    real = read_cells(screen(shifts, dict.fromkeys(shifts, 20), 1))
    found = []
    for seed in range(5):
        predicted = screen(shifts, dict.fromkeys(named, 20), 10 + seed)
        table = evaluate(predicted, real, metrics=["mse", "mse_corrected"], references=False)
        found.append(table.groupby("metric")["value"].mean())
    plain, corrected = (np.array([one[name] for one in found]) for name in ("mse", "mse_corrected"))
    assert plain.min() > 0.02
    assert abs(corrected.mean()) < 0.1 * plain.mean()
    wrong = {c: shift + 0.4 for c, shift in shifts.items()}
    table = evaluate(screen(wrong, dict.fromkeys(named, 3), 5), real, metrics=["mse_corrected"], references=False)
    assert table["value"].mean() > 0.16 - 0.03  # three cells claim no more noise than the real twenty have
    assert table["value"].mean() == pytest.approx(0.16 + 0.25 / 3 - 0.25 / 20, abs=0.03)
