"""The whole evaluation: what comes out, that it is right at its ends, and that it can be repeated."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from scdfm.data.reading import read_cells
from scdfm.errors import ConfigError, DataError
from scdfm.evaluation import BASELINES, CEILING, DUPLICATE, LOWER_IS_BETTER, METRICS, evaluate, summarise

MEANS = ("l2", "mse", "mae", "pearson_delta", "ds", "pearson_delta_hat", "pearson_delta_hat_20")


def values(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """Condition × metric."""
    part = table[table["model"] == model]
    return part.set_index(["condition", "metric"])["value"].unstack()[  # noqa: PD010
        [m for m in METRICS if m in set(part["metric"])]
    ]


@pytest.fixture(scope="session")
def table(noisy, screen):
    return evaluate(noisy, screen)


def test_long_table(table, screen, held_out):
    assert list(table.columns) == ["model", "condition", "metric", "value", "n_cells"]
    rules = [name for name in BASELINES if name != "covariance"]  # which is of unseen targets
    assert list(table["model"].unique()) == ["model", *rules, CEILING, DUPLICATE]
    assert set(table["condition"]) == set(held_out)
    assert not table.duplicated(["model", "condition", "metric"]).any()
    assert set(table.loc[table["model"] == "model", "metric"]) == set(METRICS)
    assert (table["n_cells"] == [screen.n_cells(c) for c in table["condition"]]).all()
    assert table.attrs["protocol"] == "scdfm"
    assert "training not given" in table.attrs["notes"][0]
    expected = set(screen.conditions) - {"control", *held_out}
    assert set(table.attrs["training_conditions"]) == expected


def test_pointwise_values_by_hand(table, noisy, screen, held_out):
    condition = held_out[1]
    predicted = np.asarray(noisy[noisy.obs["perturbation"] == condition].X.toarray(), dtype=float).mean(0)
    real, control = screen.mean(condition), screen.mean("control")
    centre = screen.means(table.attrs["training_conditions"]).to_numpy().mean(0)
    found = values(table, "model").loc[condition]
    assert found["l2"] == pytest.approx(np.linalg.norm(predicted - real))
    assert found["pearson_delta"] == pytest.approx(stats.pearsonr(predicted - control, real - control).statistic)
    assert found["pearson_delta_hat"] == pytest.approx(stats.pearsonr(predicted - centre, real - centre).statistic)
    cells, controls = (screen.X[screen.rows(c)].toarray() for c in (condition, "control"))
    top = np.argsort([stats.mannwhitneyu(*pair).pvalue for pair in zip(cells.T, controls.T, strict=True)])[:20]
    expected = stats.pearsonr((predicted - centre)[top], (real - centre)[top]).statistic
    assert found["pearson_delta_hat_20"] == pytest.approx(expected)


def test_truth_as_prediction_reaches_the_ceiling(screen, held_out):
    truth = screen.select(held_out)
    table = evaluate(truth, screen)
    model, ceiling = (
        summarise(table[table["model"] == name]).set_index("metric")["mean"] for name in ("model", CEILING)
    )
    for metric in METRICS:
        if metric in LOWER_IS_BETTER:
            assert model[metric] <= ceiling[metric], metric
        else:
            assert model[metric] >= ceiling[metric], metric
    np.testing.assert_allclose(model[["l2", "wasserstein", "variance_error", "zero_fraction_error"]], 0, atol=1e-6)
    np.testing.assert_allclose(model[["pearson_delta", "ds", "ds_signed", "de_spearman", "pearson_delta_hat"]], 1)


def test_a_half_of_the_truth_scores_as_the_ceiling(screen, held_out):
    """Other cells of the same population stand where the ceiling stands, within what halves differ by."""
    rng = np.random.default_rng(5)
    first, second = [], list(screen.rows("control"))
    for condition in held_out:
        rows = rng.permutation(screen.rows(condition))
        first += list(rows[:30])
        second += list(rows[30:])
    table = evaluate(screen.take(np.sort(first)), screen.take(np.sort(second)), training=screen.means())
    whole = evaluate(screen.select(held_out), screen, training=screen.means())
    for metric in ("l2", "pearson_delta", "energy", "wasserstein"):
        model, ceiling = values(table, "model")[metric], values(whole, CEILING)[metric]
        error = np.sqrt(model.var() / len(model) + ceiling.var() / len(ceiling))
        assert abs(model.mean() - ceiling.mean()) < 4 * error, metric


def test_no_signal_is_undefined_not_zero(screen, cells_as):
    """Conditions that are control cells, predicted to be control cells: no gene responds, nothing correlates."""
    rng = np.random.default_rng(0)
    labels = ["control"] * 150 + list(rng.permutation(["A", "B", "C"] * 50))
    real = read_cells(cells_as(screen, np.tile(screen.rows("control"), 2), labels))
    table = evaluate(None, real, training=real.means([]), conditions=["A", "B", "C"])
    found = values(table, "no change")
    assert found[["pearson_delta", "de_spearman", "pearson_delta_hat", "pearson_delta_hat_20"]].isna().all(axis=None)
    assert found["l2"].notna().all()
    summary = summarise(table).set_index(["model", "metric"])
    assert summary.loc[("no change", "pearson_delta"), "n_undefined"] == 3
    assert np.isnan(summary.loc[("no change", "pearson_delta"), "mean"])
    assert values(table, CEILING)["de_spearman"].isna().all()  # no gene is significant


def test_shuffled_labels_fall_to_chance(screen, held_out):
    rng = np.random.default_rng(1)
    scores = []
    for _ in range(8):
        predicted = screen.select(held_out).to_adata()
        new = dict(zip(held_out, rng.permutation(held_out), strict=True))
        predicted.obs["perturbation"] = [new[c] for c in predicted.obs["perturbation"]]
        table = evaluate(predicted, screen, metrics=["ds", "ds_signed"], references=False)
        scores.append(values(table, "model").mean())
    k = len(held_out)
    mean = np.mean(scores, axis=0)
    assert (abs(mean - (k + 1) / (2 * k)) < 4 * np.sqrt(1 / 12 / k / 8)).all()


def test_same_seed_same_bits_and_order_does_not_matter(table, noisy, screen):
    shuffled = noisy[np.random.default_rng(9).permutation(noisy.n_obs)].copy()
    shuffled = shuffled[np.argsort(shuffled.obs_names.str[1:].astype(int))].copy()
    pd.testing.assert_frame_equal(evaluate(shuffled, screen), table)
    other = evaluate(noisy, screen, seed=1)
    assert not values(other, CEILING).equals(values(table, CEILING))


def test_baseline_distributions_come_from_shifted_controls(screen, held_out):
    """Where a baseline predicts no shift, its stand-in is real control cells."""
    table = evaluate(None, screen, conditions=held_out[:3], metrics=["variance_error", "zero_fraction_error"])
    control, condition = screen.rows("control"), held_out[0]
    # 60 of 150 control cells are drawn: compare with all of them within sampling error
    real = screen.X[screen.rows(condition)].toarray()
    all_controls = screen.X[control].toarray()
    expected = np.abs((all_controls == 0).mean(0) - (real == 0).mean(0)).mean()
    assert values(table, "no change").loc[condition, "zero_fraction_error"] == pytest.approx(expected, rel=0.15)


def test_training_as_a_run_or_a_table(noisy, screen, held_out):
    train = [c for c in screen.conditions if c not in held_out]
    means = screen.means(train)
    plain = evaluate(noisy, screen, metrics=MEANS)
    for training in (means, SimpleNamespace(means=means, untrained=lambda: None), means[means.columns[::-1]]):
        table = evaluate(noisy, screen, metrics=MEANS, training=training)
        pd.testing.assert_frame_equal(table, plain)
    leaky = evaluate(noisy, screen, metrics=MEANS, training=screen.means())
    pd.testing.assert_frame_equal(leaky, plain)
    assert "left out of the training means (no score of a model that learned" in leaky.attrs["notes"][0]
    assert (plain.attrs["scored_in_training"], set(leaky.attrs["scored_in_training"])) == ([], set(held_out))


def test_training_errors(noisy, screen):
    with pytest.raises(ConfigError, match="training: expected None, a Run or a table of means"):
        evaluate(noisy, screen, training=7)
    with pytest.raises(DataError, match=r"training: 5 of the 120 scored genes are not among its columns \(first: "):
        evaluate(noisy, screen, training=screen.means().iloc[:, 5:])


def test_no_training_leaves_baselines_undefined(screen, held_out):
    everything = screen.select(c for c in screen.conditions if c != "control")
    table = evaluate(everything, screen, metrics=["l2", "pearson_delta_hat"])
    assert "no training conditions" in table.attrs["notes"][-1]
    for name in ("training mean", "additive", "ridge", "low-rank linear", DUPLICATE):
        assert values(table, name).isna().all(axis=None), name
    assert values(table, "model")["pearson_delta_hat"].isna().all()
    assert values(table, "model")["l2"].notna().all()


def test_options(noisy, screen, held_out):
    table = evaluate(noisy, screen, metrics="l2", name="mine", conditions=[held_out[2]], references=False)
    assert len(table) == 1
    assert table.loc[0, "model"] == "mine"
    names = list(screen.genes[[5, 3, 8]])
    few = evaluate(noisy, screen, metrics=["mse"], genes=names, references=False)
    condition = few.loc[0, "condition"]
    predicted = noisy[noisy.obs["perturbation"] == condition, names].X.toarray().mean(0)
    expected = np.mean((predicted - screen.means([condition])[names].to_numpy()[0]) ** 2)
    assert few.loc[0, "value"] == pytest.approx(expected, rel=1e-5)
    variable = evaluate(noisy, screen, metrics=["mse"], genes=10, references=False)
    assert "10 genes of largest variance" in variable.attrs["notes"][-1]
    assert variable.attrs["provenance"]["n_scored_genes"] == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["l1"]}, "metric 'l1': expected some of l2, mse"),
        ({"metrics": []}, "metrics is empty"),
        ({"metrics": ["pr_auc"]}, "metric 'pr_auc': expected some of"),
        ({"protocol": "published"}, "protocol 'published': expected scdfm, paper or vcc2026"),
        ({"protocol": "paper", "release": "0.6"}, "release '0.6': expected one of 0.5.42, 0.8.2"),
        ({"name": "ridge"}, "name 'ridge' is that of a reference"),
        ({"name": "prior"}, "name 'prior' is that of a reference"),
        ({"genes": 1}, "genes 1: expected at least 2"),
        ({"genes": ["nope", "G001"]}, "genes: .* are not in both tables"),
    ],
)
def test_option_errors(noisy, screen, options, message):
    with pytest.raises((ConfigError, DataError), match=message):
        evaluate(noisy, screen, **options)


def test_metrics_of_cells_need_a_prediction(screen):
    with pytest.raises(ConfigError, match="metrics pr_auc need predicted cells"):
        evaluate(None, screen, protocol="paper", metrics=["pr_auc"])


def test_a_condition_with_one_cell_has_no_halves(screen, held_out):
    rows = np.sort([*screen.rows("control"), *screen.rows(held_out[0])[:1], *screen.rows(held_out[1])])
    table = evaluate(None, screen.take(rows), training=screen.means(), conditions=held_out[:2])
    for name in (CEILING, DUPLICATE):
        assert values(table, name).loc[held_out[0]].isna().all()
        ranks = ["ds_cosine", "centroid_accuracy", "transpose_rank"]  # no other condition to be told from
        assert values(table, name).loc[held_out[1]].drop(ranks).notna().all()
    assert np.isnan(values(table, "no change").loc[held_out[0], "energy"])
    assert np.isfinite(values(table, "no change").loc[held_out[0], "l2"])


def test_dense_and_reordered_predictions_score_the_same(table, noisy, screen):
    other = noisy[:, ::-1].copy()
    other.X = np.asarray(other.X.toarray(), dtype=np.float64)
    pd.testing.assert_frame_equal(evaluate(other, screen), table, rtol=1e-6)
    assert sparse.issparse(noisy.X)
