"""Shifts, responders and coordinates are those of the cells."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from scdfm.data import CellTable
from scdfm.evaluation import evaluate
from scdfm.evaluation.alignment import align
from scdfm.report import figures
from scdfm.report.figures import Populations


@pytest.fixture(scope="module")
def populations(screen: tuple[CellTable, anndata.AnnData]) -> Populations:
    real, predicted = screen
    return Populations.of(align(predicted, real))


def test_shifts_are_differences_of_means(screen: tuple[CellTable, anndata.AnnData], populations: Populations) -> None:
    real, predicted = screen
    control = real.X[real.rows("control")].toarray().mean(axis=0, dtype=float)
    for name in populations.conditions:
        mean = real.X[real.rows(name)].toarray().mean(axis=0, dtype=float)
        np.testing.assert_allclose(populations.real_shifts.loc[name], mean - control, atol=1e-12)
        claimed = predicted[predicted.obs["perturbation"] == name].X.mean(axis=0, dtype=float)
        np.testing.assert_allclose(populations.predicted_shifts.loc[name], claimed - control, atol=1e-12)


def test_responders_have_the_smallest_p_values(
    screen: tuple[CellTable, anndata.AnnData], populations: Populations
) -> None:
    real, condition = screen[0], populations.conditions[0]
    treated, control = (real.X[real.rows(name)].toarray() for name in (condition, "control"))
    p_value = mannwhitneyu(treated, control, method="asymptotic").pvalue
    assert populations.responders([condition], 3)[condition] == [real.genes[at] for at in np.argsort(p_value)[:3]]


def test_plane_keeps_its_cells_and_its_seed(populations: Populations) -> None:
    condition = populations.conditions[0]
    first, again = populations.plane(1), populations.plane(1)
    points = first.points(condition)
    assert {name: len(cells) for name, cells in points.items()} == {"control": 40, "real": 40, "predicted": 30}
    for name, cells in again.points(condition).items():
        np.testing.assert_array_equal(cells, points[name])
    (left, right), (low, high) = first.limits
    inside = (points["real"][:, 0] > left) & (points["real"][:, 0] < right)
    assert inside.mean() > 0.9
    assert low < high


def test_heat_map_stays_small_and_says_so(populations: Populations, monkeypatch: pytest.MonkeyPatch) -> None:
    order = list(populations.conditions)
    assert "evenly" not in figures.heat(populations, order).caption
    monkeypatch.setattr(figures, "MOST_ROWS", 3)
    illustration = figures.heat(populations, order)
    assert "3 conditions of 6, evenly from best to worst" in illustration.caption
    shown = {label.get_text() for label in illustration.figure.axes[0].get_yticklabels()}
    assert shown == {order[0], order[2], order[5]}


def test_the_tests_of_an_evaluation_serve_the_page(
    screen: tuple[CellTable, anndata.AnnData], populations: Populations
) -> None:
    real, predicted = screen
    seen: list[Populations] = []
    evaluate(predicted, real, metrics=["de_spearman"], on_cells=lambda *found: seen.append(Populations.of(*found)))
    assert seen[0].tests is not None
    chosen = populations.conditions[1::2]
    assert seen[0].responders(chosen, 5) == populations.responders(chosen, 5)
