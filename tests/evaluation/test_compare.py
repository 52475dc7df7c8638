"""Two predictions beside each other: the same conditions, the same genes, references once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scdfm.errors import ConditionError, ConfigError
from scdfm.evaluation import differences, evaluate, evaluate_against, summarise

METRICS = ("l2", "pearson_delta", "energy")


@pytest.fixture(scope="module")
def worse(screen, held_out, cells_as):
    """Control cells under the names of all test conditions but one, without the first ten genes."""
    rows = np.concatenate([screen.rows("control")[:30] for _ in held_out[1:]])
    return cells_as(screen, rows, list(np.repeat(held_out[1:], 30)))[:, 10:].copy()


@pytest.fixture(scope="module")
def table(screen, noisy, worse):
    return evaluate_against(noisy, worse, screen, name="a", against_name="b", metrics=METRICS)


def test_both_are_scored_on_what_both_hold(table, screen, noisy, worse, held_out):
    own = table[table["model"].isin(["a", "b"])]
    for model in ("a", "b"):
        assert set(own.loc[own["model"] == model, "condition"]) == set(held_out[1:])
    genes = screen.genes[10:].tolist()
    alone = evaluate(
        noisy[:, genes].copy(), screen, conditions=held_out[1:], name="a", metrics=METRICS,
        training=screen.means([c for c in screen.conditions if c not in held_out]),
    )  # fmt: skip
    pd.testing.assert_frame_equal(table[table["model"] != "b"].reset_index(drop=True), alone)
    assert not table.duplicated(["model", "condition", "metric"]).any()
    assert any(f"{len(held_out) - 1} conditions and 110 genes" in note for note in table.attrs["notes"])


def test_the_difference_is_paired_and_has_a_sign(table):
    found = differences(table, against="b").set_index(["model", "metric"])
    means = summarise(table).set_index(["model", "metric"])["mean"]
    assert found.loc[("a", "l2"), "improvement"] == pytest.approx(means["b", "l2"] - means["a", "l2"])
    assert found.loc[("a", "l2"), "low"] > 0
    back = differences(table, against="a").set_index(["model", "metric"])
    assert back.loc[("b", "l2"), "improvement"] == -found.loc[("a", "l2"), "improvement"]


def test_what_cannot_be_compared_is_refused(screen, noisy, cells_as, held_out):
    with pytest.raises(ConfigError, match="name 'model' is that of both"):
        evaluate_against(noisy, noisy, screen, against_name="model")
    with pytest.raises(ConfigError, match="vcc2026 compares no two predictions at once"):
        evaluate_against(noisy, noisy, screen, protocol="vcc2026")
    other = next(c for c in screen.conditions if "+" in c and c not in held_out)
    elsewhere = cells_as(screen, screen.rows(other), [other] * screen.n_cells(other))
    with pytest.raises(ConditionError, match="model and other share no measured condition"):
        evaluate_against(noisy, elsewhere, screen)


def test_both_may_name_their_conditions_in_another_column(screen, noisy, worse, table):
    moved = []
    for cells in (noisy, worse):
        cells = cells.copy()
        cells.obs = cells.obs.rename(columns={screen.perturbation_key: "treatment"})
        moved.append(cells)
    found = evaluate_against(*moved, screen, name="a", against_name="b", metrics=METRICS, predicted_key="treatment")
    pd.testing.assert_frame_equal(found, table)
