"""Tables of protocol vcc2026: who stands in them, what is left out and said."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scdfm.errors import ConditionError, ConfigError, DataError
from scdfm.evaluation import evaluate, read_counts, scaled, summarise
from scdfm.evaluation.metrics import ERROR, JACCARD, PDS, VCC_METRICS
from scdfm.evaluation.vcc2026.metrics import side_of
from scdfm.evaluation.vcc2026.score import anchors, halves, replicates

TEST = ["G003", "G004", "G005", "G006"]


@pytest.fixture(scope="module")
def table(real, predicted):
    return evaluate(predicted, real, protocol="vcc2026", conditions=TEST, seed=3)


def test_the_table_is_long_and_the_ratio_stands_in_one_row(table):
    assert list(table.columns) == ["model", "condition", "metric", "value", "n_cells"]
    own = table[table["model"] == "model"]
    assert own.loc[own["metric"] == ERROR, ["condition", "n_cells"]].to_numpy().tolist() == [["all", 240]]
    assert own.groupby("metric")["condition"].apply(list).drop(ERROR).map(lambda found: found == TEST).all()
    assert set(own["metric"]) == set(VCC_METRICS)
    assert table.loc[table["model"] == "replicate", "condition"].unique().tolist() == ["all"]
    assert table.attrs["protocol"] == "vcc2026"
    assert any("4 of 7 measured conditions are scored" in note for note in table.attrs["notes"])


def test_scored_conditions_are_the_panel(real, predicted, table):
    """Scoring some conditions is scoring the screen that holds no others."""
    kept = real[real.obs["perturbation"].isin([*TEST, "control"])]
    alone = evaluate(predicted[predicted.obs["perturbation"].isin(TEST)], kept.copy(), protocol="vcc2026", seed=3)
    names = ["model", "mean response", "no change", "replicate"]
    for one, two in zip(*(t[t["model"].isin(names)].sort_values(["model", "metric", "condition"])["value"]
                          for t in (table, alone)), strict=True):  # fmt: skip
        assert one == two or (np.isnan(one) and np.isnan(two))


def test_rules_take_the_conditions_that_are_not_scored(real, predicted, table):
    assert table.attrs["training_conditions"] == []  # the others were predicted, so nobody may train on them
    assert set(table["model"]) == {"model", "mean response", "no change", "replicate"}
    fewer = predicted[predicted.obs["perturbation"].isin(TEST)].copy()
    other = evaluate(fewer, real, protocol="vcc2026", seed=3)
    assert other.attrs["training_conditions"] == ["G007", "G008", "G009"]
    mean = other[(other["model"] == "training mean") & (other["metric"] == PDS)]
    assert mean["value"].notna().all()
    given = evaluate(None, real, protocol="vcc2026", conditions=TEST, training=pd.DataFrame(index=["G008"]))
    assert given.attrs["training_conditions"] == ["G008"]
    assert "model" not in set(given["model"])


def test_same_seed_same_bits(real, predicted, table):
    again = evaluate(predicted, real, protocol="vcc2026", conditions=TEST, seed=3)
    assert again.equals(table)
    other = evaluate(predicted, real, protocol="vcc2026", conditions=TEST, seed=4)
    own = [t.loc[t["model"] == "model", "value"].to_numpy() for t in (table, other)]
    np.testing.assert_array_equal(*own)
    assert not other.equals(table)


def test_order_of_genes_and_further_genes(real, predicted):
    shuffled = predicted[:, ::-1].copy()
    one, two = (evaluate(p, real, protocol="vcc2026", references=False) for p in (predicted, shuffled))
    np.testing.assert_allclose(one["value"], two["value"], rtol=1e-12)
    fewer = evaluate(predicted[:, :80].copy(), real, protocol="vcc2026", references=False)
    assert any("80 genes that both have" in note for note in fewer.attrs["notes"])
    with pytest.raises(DataError, match="share 1 gene names"):
        evaluate(predicted[:, :1].copy(), real, protocol="vcc2026")


def test_what_cannot_be_is_refused(real, predicted, table):
    with pytest.raises(ConditionError, match="condition 'G030' is not measured"):
        evaluate(predicted, real, protocol="vcc2026", conditions=["G030"])
    with pytest.raises(ConfigError, match="metric 'pds': expected some of"):
        evaluate(predicted, real, protocol="vcc2026", metrics=["pds"])
    with pytest.raises(ConfigError, match="is that of a reference"):
        evaluate(predicted, real, protocol="vcc2026", name="replicate")
    with pytest.raises(ConfigError, match="subset and layer go with a file"):
        evaluate(predicted, read_counts(real), protocol="vcc2026", layer="counts")
    from_file = table.copy()
    from_file.attrs = {}
    with pytest.raises(DataError, match="expected one of protocol vcc2026"):
        scaled(from_file)


def test_thin_and_empty_conditions_do_not_end_it(real, predicted):
    cells = predicted.copy()
    X = cells.X.toarray()
    X[(cells.obs["perturbation"] == "G005").to_numpy()] = 0
    cells.X = X
    keep = np.flatnonzero(cells.obs["perturbation"] != "G006").tolist()
    keep.append(int(np.flatnonzero(cells.obs["perturbation"] == "G006")[0]))
    found = evaluate(cells[keep].copy(), real, protocol="vcc2026", references=False)
    own = found[found["metric"] == PDS].set_index("condition")["value"]
    assert own.notna().all()
    further = np.flatnonzero(real.obs["perturbation"] == "control")[1:]
    one = real[np.setdiff1d(np.arange(real.n_obs), further)].copy()
    lonely = evaluate(predicted, one, protocol="vcc2026")
    assert any("no replicate" in note for note in lonely.attrs["notes"])
    assert scaled(lonely)["scaled"].isna().all()


def test_summary_is_the_aggregate(table):
    mean = summarise(table).set_index(["model", "metric"])["mean"]
    own = table[table["model"] == "model"].groupby("metric")["value"].mean()
    for metric in VCC_METRICS:
        assert mean["model", metric] == pytest.approx(own[metric], rel=1e-12)


def test_halves_are_disjoint_and_of_one_size(real):
    counts = read_counts(real)
    rows = {**counts.rows, "G003": counts.rows["G003"][:7], "G004": counts.rows["G004"][:1]}
    a, b = halves(rows, counts.order, 3)
    assert len(a["G003"]) == len(b["G003"]) == 3
    assert not {"G004"} & {*a, *b}
    for name in a:
        assert not set(a[name]) & set(b[name])
        assert set(a[name]) | set(b[name]) <= set(rows[name])
    again, _ = halves(rows, counts.order, 3)
    other, _ = halves(rows, counts.order, 4)
    assert all(np.array_equal(a[name], again[name]) for name in a)
    assert not np.array_equal(a["control"], other["control"])


def test_the_anchor_depends_on_the_seed_alone(real):
    counts = read_counts(real)
    side = side_of(counts, counts.rows, counts.conditions)
    one, two, three = (anchors(replicates(counts, side, seed, splits=2)) for seed in (0, 0, 1))
    assert one.equals(two)
    assert not one.equals(three)
    found = one.set_index("metric").loc[JACCARD]
    assert found["replicate_min"] <= found["replicate"] <= found["replicate_max"]
    assert 0.2 < found["replicate"] < 1
