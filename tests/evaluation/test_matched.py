"""Screens of several cell types: each is scored against its own control cells."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scdfm.data import CONTROL, CellTable, read_cells
from scdfm.errors import DataError
from scdfm.evaluation import evaluate, summarise
from scdfm.evaluation.expression import against_control

TYPES = ("B cells", "T cells")
NAMES = ("P1", "P2", "P1+P2", "P3")
KEY = {"covariates": ["type"]}


def cells_of(kind: str, labels: list[str], seed: int, noise: float = 0.4) -> ad.AnnData:
    """Cells of a type whose own level is far from the other's, with the labels' effects on top."""
    rng = np.random.default_rng(seed)
    genes = 30
    level = np.random.default_rng(TYPES.index(kind)).uniform(1, 4, genes)
    effect = {name: np.random.default_rng(10 + i).normal(0, 0.6, genes) for i, name in enumerate(("P1", "P2", "P3"))}
    shift = np.array([sum((effect[t] for t in label.split("+") if t in effect), np.zeros(genes)) for label in labels])
    x = np.maximum(level + shift + rng.normal(0, noise, shift.shape), 0).astype(np.float32)
    obs = pd.DataFrame({"perturbation": labels, "type": kind}, index=[f"{kind}{seed}-{i}" for i in range(len(labels))])
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(genes)]))


@pytest.fixture(scope="module")
def real() -> ad.AnnData:
    labels = [name for name in (CONTROL, *NAMES) for _ in range(25)]
    return ad.concat([cells_of(kind, labels, seed) for seed, kind in enumerate(TYPES)])


@pytest.fixture(scope="module")
def predicted() -> ad.AnnData:
    """Predictions of two conditions in each type, labelled as users label them."""
    labels = [name for name in ("P1+P2", "P3") for _ in range(12)]
    return ad.concat([cells_of(kind, labels, 7 + seed, noise=0.8) for seed, kind in enumerate(TYPES)])


@pytest.fixture(scope="module")
def table(real: ad.AnnData) -> CellTable:
    return read_cells(real, **KEY)


@pytest.fixture(scope="module")
def scores(predicted: ad.AnnData, table: CellTable) -> pd.DataFrame:
    return evaluate(predicted, table)


def values(table: pd.DataFrame, model: str, metric: str) -> dict[str, float]:
    part = table[(table["model"] == model) & (table["metric"] == metric)]
    return dict(zip(part["condition"], part["value"], strict=True))


@pytest.mark.parametrize("model", ["model", "no change"])
@pytest.mark.parametrize(
    "metric", ["l2", "mae", "pearson_delta", "ds", "ds_signed", "de_spearman", "wasserstein", "variance_error"]
)
def test_each_type_scores_as_it_does_alone(
    scores: pd.DataFrame, real: ad.AnnData, predicted: ad.AnnData, model: str, metric: str
) -> None:
    both = values(scores, model, metric)
    assert len(both) == 4
    for kind in TYPES:
        alone = evaluate(
            predicted[predicted.obs["type"] == kind].copy(), read_cells(real, subset={"type": kind}), metrics=[metric]
        )
        for name, value in values(alone, model, metric).items():
            assert both[f"{name}|type={kind}"] == pytest.approx(value, rel=1e-9, nan_ok=True)


def test_pooled_controls_would_say_something_else(
    scores: pd.DataFrame, real: ad.AnnData, predicted: ad.AnnData
) -> None:
    pooled = evaluate(predicted, read_cells(real, **KEY, match_controls=[]), metrics=["l2"])
    for name, value in values(scores, "no change", "l2").items():
        assert value < 0.8 * values(pooled, "no change", "l2")[name]
    assert values(pooled, "model", "l2") == values(scores, "model", "l2")


def test_the_origin_is_said_and_baselines_start_from_it(scores: pd.DataFrame) -> None:
    assert "control cells are those of the same type" in scores.attrs["notes"]
    additive = values(scores, "additive", "l2")
    for name, value in values(scores, "no change", "l2").items():
        if name.startswith("P1+P2"):
            assert additive[name] < 0.6 * value
        else:
            assert np.isnan(additive[name])
    assert scores.attrs["effect_size"] == pytest.approx(values(scores, "no change", "l2"))


def test_tests_are_against_own_controls(table: CellTable) -> None:
    from scdfm.evaluation.alignment import align

    pair = align(None, table)
    names = pair.conditions
    together = against_control(pair.real, names, CONTROL)
    for kind in TYPES:
        own = [name for name in names if name.endswith(kind)]
        alone = align(None, table.take(np.flatnonzero((table.obs["type"] == kind).to_numpy())))
        expected = against_control(alone.real, own, CONTROL)
        places = [names.index(name) for name in own]
        np.testing.assert_array_equal(together.p_value[places], expected.p_value)
        np.testing.assert_array_equal(together.z[places], expected.z)


def test_labels_may_hold_the_covariates_themselves(
    predicted: ad.AnnData, table: CellTable, scores: pd.DataFrame
) -> None:
    named = predicted.copy()
    named.obs["perturbation"] = [
        f"{p}|type={t}" for p, t in zip(named.obs["perturbation"], named.obs["type"], strict=True)
    ]
    del named.obs["type"]
    pd.testing.assert_frame_equal(evaluate(named, table), scores)
    del (bare := predicted.copy()).obs["type"]
    with pytest.raises(DataError, match="prediction AnnData: covariate column 'type' is not in obs"):
        evaluate(bare, table)


def test_training_means_find_their_controls(predicted: ad.AnnData, table: CellTable, scores: pd.DataFrame) -> None:
    names = [name for name in table.conditions if not name.startswith(("P1+P2", "P3"))]
    given = evaluate(predicted, table, training=table.means(names))
    for rule in ("training mean", "additive", "ridge"):
        assert values(given, rule, "l2") == pytest.approx(values(scores, rule, "l2"), nan_ok=True)
    # A type that the real cells lack: its own control row makes the shift; without one all controls stand in.
    means = table.means(names)
    means.loc["control|type=B cells"] = table.control_mean("control|type=B cells")
    only = table.take(np.flatnonzero((table.obs["type"] == "T cells").to_numpy()))
    part = evaluate(predicted[predicted.obs["type"] == "T cells"].copy(), only, training=means)
    expected = {name: value for name, value in values(given, "additive", "l2").items() if name.endswith("T cells")}
    assert values(part, "additive", "l2") == pytest.approx(expected, nan_ok=True)
    lost = evaluate(
        predicted[predicted.obs["type"] == "T cells"].copy(), only, training=means.drop("control|type=B cells")
    )
    assert any("2 training conditions have no control cells of their own" in note for note in lost.attrs["notes"])


def test_the_published_protocol_takes_a_screen_of_types(predicted: ad.AnnData, table: CellTable) -> None:
    paper = evaluate(predicted, table, protocol="paper")
    assert paper["value"].notna().any()
    assert set(values(paper, "model", "l2")) == {f"{p}|type={t}" for p in ("P1+P2", "P3") for t in TYPES}


def test_one_cell_of_each_condition(shared: Path) -> None:
    """Real drugs, doses and lines with one cell each: what needs more cells is undefined, and counted."""
    cells = read_cells(
        shared / "data" / "sciplex3.h5ad",
        "product_name",
        dose_key="dose",
        covariates=["cell_type"],
        control_fallback="all",
    )
    single = [name for name in cells.conditions[1:] if cells.n_cells(name) == 1][:12]
    rng = np.random.default_rng(0)
    rows = rng.choice(cells.rows(CONTROL), 5 * len(single))
    obs = pd.DataFrame({"product_name": np.repeat(single, 5)}, index=[f"p{i}" for i in range(len(rows))])
    scores = evaluate(ad.AnnData(cells.X[rows], obs=obs, var=pd.DataFrame(index=cells.genes.astype(object))), cells)
    summary = summarise(scores).set_index(["model", "metric"])
    assert summary.loc[("model", "l2"), "n"] == 12
    assert summary.loc[("additive", "l2"), "n"] > 0
    for model, metric in (
        ("model", "energy"),
        ("model", "variance_error"),
        ("ceiling", "l2"),
        ("ridge", "wasserstein"),
    ):
        assert summary.loc[(model, metric), ["n", "n_undefined"]].tolist() == [0, 12]
