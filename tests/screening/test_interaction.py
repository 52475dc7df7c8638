"""Interactions: coefficients that were put in come out, every class is reached, the authors' own agree."""

from __future__ import annotations

import csv
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from scdfm.errors import DataError
from scdfm.screening.interaction import (
    ADDITIVE,
    CLASSES,
    EPISTASIS,
    NEOMORPHISM,
    REDUNDANCY,
    SUPPRESSION,
    SYNERGY,
    classified,
    informative_genes,
    interaction,
    interactions,
)  # fmt: skip

RNG = np.random.default_rng(0)
A, B = RNG.standard_normal((2, 200))
OTHER = RNG.standard_normal(200)


def test_coefficients_and_scores_of_a_known_mixture():
    found = interaction(A, B, 0.5 * A + 1.5 * B)
    assert (found.c1, found.c2) == (pytest.approx(0.5), pytest.approx(1.5))
    assert found.magnitude == pytest.approx(math.hypot(0.5, 1.5))
    assert found.dominance == pytest.approx(math.log10(3))
    assert found.dcor_fit == pytest.approx(1)
    assert found.departure == pytest.approx(np.linalg.norm(0.5 * B - 0.5 * A))


def test_a_residual_orthogonal_to_the_singles_leaves_the_coefficients():
    singles = np.column_stack([A, B])
    rest = OTHER - singles @ np.linalg.lstsq(singles, OTHER, rcond=None)[0]
    found = interaction(A, B, A + B + rest)
    assert (found.c1, found.c2) == (pytest.approx(1), pytest.approx(1))
    assert found.dcor_fit < 0.9
    assert found.departure == pytest.approx(np.linalg.norm(rest))


@pytest.mark.parametrize(
    ("double", "second", "kind"),
    [
        (A + B, B, ADDITIVE),
        (1.4 * (A + B), B, SYNERGY),
        (0.3 * (A + B), B, SUPPRESSION),
        (0.5 * (A + A + 0.2 * B), A + 0.2 * B, REDUNDANCY),
        (A + 0.1 * B, B, EPISTASIS),
        (OTHER, B, NEOMORPHISM),
    ],
)
def test_every_class_is_reached(double, second, kind):
    assert interaction(A, second, double).kind == kind
    assert kind in CLASSES


def test_undefined_scores_are_no_additive_pair():
    assert classified(math.sqrt(2), 0, 0.1, math.nan) == NEOMORPHISM
    assert classified(math.sqrt(2), math.nan, 0.1, 0.9) == EPISTASIS


def test_the_table_scores_pairs_whose_singles_are_there():
    control = np.full(200, 2.0)
    means = pd.DataFrame(
        [control, control + A, control + B, control + A + B, control + OTHER],
        index=["control", "A", "B", "A+B", "A+C"], columns=[f"g{at}" for at in range(200)],
    )  # fmt: skip
    found = interactions(means)
    assert list(found.index) == ["A+B"]
    assert found.loc["A+B", "c1"] == pytest.approx(1)
    assert found.loc["A+B", "departure"] == pytest.approx(0, abs=1e-9)
    few = interactions(means, genes=["g3", "g5", "g9", "g11"])
    assert few.loc["A+B", "kind"] == ADDITIVE
    with pytest.raises(DataError, match="no row 'control'"):
        interactions(means.drop(index="control"))


def test_informative_genes_are_those_that_move():
    shifts = pd.DataFrame([[0, 3, 0.1, -2], [0, 0, 0.1, -2]], columns=list("abcd"), dtype=float)
    assert informative_genes(shifts, 2) == ["b", "d"]


def test_agrees_with_the_authors_of_the_screen(shared):
    """Norman et al. fit other genes (their own choice, robust regression); ranks must still agree."""
    effects = np.load(shared / "data" / "norman_effects.npz", allow_pickle=False)
    labels = [*map(str, effects["sing_labels"]), *map(str, effects["doub_labels"]), "control"]
    shifts = np.vstack([effects["lfc_s"], effects["lfc_d"], np.zeros((1, effects["lfc_s"].shape[1]))])
    ours = interactions(pd.DataFrame(shifts.astype(float), index=labels, columns=effects["genes_hvg"].astype(str)))
    with (shared / "data" / "norman_double_regression.csv").open() as handle:
        theirs = {tuple(row["name"].split("_")): row for row in csv.DictReader(handle)}
    pairs = []
    for name in ours.index:
        a, b = name.split("+")
        if (row := theirs.get((a, b))) is not None:
            pairs.append((ours.loc[name], row, "first", "second"))
        elif (row := theirs.get((b, a))) is not None:
            pairs.append((ours.loc[name], row, "second", "first"))
    assert len(pairs) >= 115

    def agreement(mine: str, column) -> float:
        return spearmanr([pair[0][mine] for pair in pairs], [float(column(*pair[1:])) for pair in pairs]).statistic

    assert agreement("c1", lambda row, first, _: row[f"ts_coef_{first}"]) > 0.65
    assert agreement("c2", lambda row, _, second: row[f"ts_coef_{second}"]) > 0.65
    assert agreement("magnitude", lambda row, *_: row["ts_norm2"]) > 0.8
    assert agreement("dcor_singles", lambda row, *_: row["dcor_singles"]) > 0.55
    assert agreement("dcor_double", lambda row, *_: row["dcor"]) > 0.5
    assert agreement("dcor_fit", lambda row, *_: row["ts_linear_dcor"]) > 0.5
