"""Predictions that do not fit the real cells are told in one line; those that do are brought together."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from scdfm.data.reading import read_cells
from scdfm.data.simulate import simulate
from scdfm.errors import ConditionError, ConfigError, DataError
from scdfm.evaluation import evaluate
from scdfm.evaluation.alignment import align


def test_genes_are_aligned_by_name_and_differences_told(noisy, screen):
    part = noisy[:, ::-1][:, :100].copy()
    part.var_names = [f"other{i}" if i < 3 else name for i, name in enumerate(part.var_names)]
    pair = align(part, screen)
    expected = [gene for gene in screen.genes if gene in set(part.var_names)]
    assert pair.real.genes.tolist() == pair.predicted.genes.tolist() == expected
    assert len(expected) == 97
    assert pair.notes == (
        "3 predicted genes are not in the real cells and not scored: other0, other1, other2",
        "23 real genes are not predicted and not scored",
    )
    row = pair.predicted.rows[pair.conditions[0]][0]
    np.testing.assert_array_equal(pair.predicted.X[row].toarray()[0], part[row, expected].X.toarray()[0])


def test_conditions_are_matched_by_canonical_name(noisy, screen, held_out):
    renamed = noisy.copy()
    renamed.obs["perturbation"] = [
        "nobody" if name == held_out[0] else "+".join(reversed(name.split("+"))) + "+ctrl"
        for name in noisy.obs["perturbation"]
    ]
    pair = align(renamed, screen)
    assert set(pair.conditions) == set(held_out[1:])
    assert pair.notes == ("1 predicted conditions are not measured and not scored: nobody",)


def test_nothing_in_common(noisy, screen):
    other = noisy.copy()
    other.var_names = [f"ENSG{i}" for i in range(other.n_vars)]
    with pytest.raises(DataError, match=r"share 0 gene names, expected at least 2 \(prediction: ENSG0, .*use the same"):
        align(other, screen)
    other = noisy.copy()
    other.obs["perturbation"] = "X+Y"
    with pytest.raises(ConditionError, match=r"share no condition \(prediction: X\+Y; real: .*check perturbation_key"):
        align(other, screen)


def test_column_and_labels_are_asked_for(noisy, screen):
    with pytest.raises(
        DataError, match="label column 'guide' is not in obs; its columns are .*perturbation.*--predicted-key"
    ):
        align(noisy, screen, perturbation_key="guide")
    unlabelled = noisy.copy()
    unlabelled.obs["perturbation"] = unlabelled.obs["perturbation"].astype(object)
    unlabelled.obs.iloc[0, unlabelled.obs.columns.get_loc("perturbation")] = None
    with pytest.raises(DataError, match="1 cells have no label in obs column 'perturbation'"):
        align(unlabelled, screen)
    with pytest.raises(DataError, match=r"nowhere\.h5ad does not exist"):
        align("nowhere.h5ad", screen)
    repeated = noisy.copy()
    repeated.var_names = ["same", "same", *repeated.var_names[2:]]
    with pytest.raises(DataError, match="gene names repeat"):
        align(repeated, screen)


def test_a_table_lends_its_column_and_control_label(noisy, screen):
    adata = screen.to_adata()
    adata.obs["guide"] = adata.obs.pop("perturbation").astype(str).replace({"control": "NT"})
    real = read_cells(adata, "guide", control="NT")
    predicted = noisy.copy()
    predicted.obs["guide"] = [f"{name}+NT" for name in predicted.obs.pop("perturbation")]
    assert align(predicted, real).conditions == align(noisy, screen).conditions


def test_asked_conditions_must_be_predicted_and_measured(noisy, screen, held_out):
    single = next(c for c in screen.conditions if c != "control" and "+" not in c)
    with pytest.raises(ConditionError, match=f"condition '{single}' is not predicted"):
        align(noisy, screen, conditions=[single])
    with pytest.raises(ConditionError, match="condition 'Z9' is not measured"):
        align(noisy, screen, conditions=["Z9"])
    with pytest.raises(ConditionError, match="conditions is empty"):
        align(noisy, screen, conditions=[])
    assert align(noisy, screen, conditions=held_out[3:1:-1]).conditions == tuple(held_out[3:1:-1])


def test_real_cells_need_control_and_a_table_takes_no_subset(noisy, screen, held_out):
    with pytest.raises(DataError, match="no control cells"):
        align(noisy, screen.select(held_out))
    with pytest.raises(ConfigError, match="subset goes with a file or an AnnData"):
        align(noisy, screen, subset={"line": "K562"})


def test_subset_chooses_real_cells_and_predictions_that_have_the_column(noisy, screen, held_out):
    real = screen.to_adata()
    real.obs["line"] = np.where(np.arange(real.n_obs) % 2 == 0, "one", "two")
    predicted = noisy.copy()
    predicted.obs["line"] = ["one", "two", "two"] * (noisy.n_obs // 3)
    pair = align(predicted, real, subset={"line": "two"})
    assert pair.real.n_cells("control") == 75
    assert pair.predicted.n_cells(held_out[0]) == 20
    assert align(noisy, real, subset={"line": "two"}).predicted.n_cells(held_out[0]) == 30


def test_values_of_a_prediction_are_checked(noisy, screen):
    for value, message in (
        (50, "50 for gene .*bring the prediction to log1p of counts per the total of the real cells"),
        (np.nan, "nan for gene .*a finite number"),
    ):
        bad = noisy.copy()
        bad.X = bad.X.toarray()
        bad.X[3, 4] = value
        with pytest.raises(DataError, match=message):
            align(bad, screen)


@pytest.mark.parametrize("backed", [False, True])
def test_values_below_zero_are_scored_as_they_are_and_told(noisy, screen, backed, tmp_path):
    lowered = noisy.copy()
    lowered.X = lowered.X.toarray() - 0.3
    lowered.write_h5ad(tmp_path / "p.h5ad")
    pair = align(tmp_path / "p.h5ad", screen, backed=backed)
    assert [note for note in pair.notes if "predicted values are below 0 (lowest -0.3" in note]
    name = pair.conditions[0]
    wanted = noisy[(noisy.obs["perturbation"] == name).to_numpy()].X.toarray().mean(0) - 0.3
    got = np.asarray(pair.predicted.X[pair.predicted.rows[name]].mean(0)).ravel()
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_ranks_do_not_ask_where_zero_is(noisy, screen):
    """All values of a gene lowered alike leave every rank, and so every significant gene, as it was."""
    options = {"protocol": "paper", "metrics": ["de_sig_genes_recall", "de_nsig_counts_pred"], "references": False}
    cells = noisy.to_memory() if hasattr(noisy, "to_memory") else noisy
    control = screen.select(["control"]).to_adata()
    both = ad.concat([cells[:, control.var_names], control], merge="same")
    lowered = both.copy()
    lowered.X = lowered.X.toarray() - 0.4
    plain, low = (
        evaluate(one, screen, check_scale=False, **options).set_index(["condition", "metric"])["value"]
        for one in (both, lowered)
    )
    np.testing.assert_allclose(low, plain)


def test_the_column_of_a_prediction_may_be_another(noisy, screen):
    other = noisy.copy()
    other.obs = other.obs.rename(columns={"perturbation": "condition"})
    pair = align(other, screen)
    assert pair.conditions == align(noisy, screen).conditions
    assert "conditions of the prediction are read from its column 'condition'" in pair.notes
    other.obs["again"] = other.obs["condition"]
    with pytest.raises(
        DataError, match=r"2 of its columns hold measured conditions \(condition, again\).*--predicted-key"
    ):
        align(other, screen)
    assert align(other, screen, predicted_key="again").conditions == pair.conditions


@pytest.fixture(scope="module")
def counted():
    return simulate(n_genes=150, n_targets=6, cells_per_condition=50, n_controls=100, truth_cells=1, seed=1)


def test_counts_are_refused(counted):
    predicted = counted.copy()
    predicted.X = predicted.layers["counts"]
    with pytest.raises(DataError, match=r"whole numbers, .* look like counts; .*read_cells\(\.\.\., target_sum="):
        evaluate(predicted, read_cells(counted))


@pytest.mark.parametrize("target_sum", ["median", 1_000, 1_000_000])
def test_another_normalisation_total_is_refused(counted, target_sum):
    real = read_cells(counted)  # counts per 10,000
    other = read_cells(counted, target_sum=target_sum, layer="counts")
    for predicted in (other, other.select(c for c in other.conditions if c != "control")):
        with pytest.raises(DataError, match=r"another scale .*counts multiplied by about .*target_sum"):
            evaluate(predicted.to_adata(), real, metrics=["l2"])
    table = evaluate(other.to_adata(), real, metrics=["l2"], references=False, check_scale=False)
    assert (table["value"] > 0).all()
    declared = read_cells(counted, target_sum=10_000, layer="counts")
    with pytest.raises(DataError, match="prediction is normalised to .* counts per cell, the real cells to 10000"):
        evaluate(other, declared)


def test_the_training_control_tells_the_scale_of_a_model(counted):
    """A model that is wrong in a way that looks like a scale is scored when its own controls say it is none."""
    real = read_cells(counted)
    conditions = [c for c in real.conditions if "+" in c]
    cells = real.select(conditions).to_adata()
    cells.X = np.maximum(cells.X.toarray() - 0.7, 0)
    with pytest.raises(DataError, match="another scale .*multiplied by about 0.48"):
        evaluate(cells, real, metrics=["l2"])
    table = evaluate(cells, real, metrics=["l2"], training=real.means(), references=False)
    assert (table["value"] > 0).all()
    other = read_cells(counted, target_sum=3_000, layer="counts")
    with pytest.raises(DataError, match="another scale .*multiplied by about 0.3"):
        evaluate(cells, real, metrics=["l2"], training=other.means())


def test_wrong_models_in_the_right_scale_are_scored_not_refused(counted, cells_as):
    """No change, populations of other conditions and means without spread pass the test of scale."""
    real = read_cells(counted)
    conditions = [c for c in real.conditions if "+" in c]
    cells = real.select(conditions).to_adata()
    swapped = cells.copy()
    following = dict(zip(conditions, conditions[1:] + conditions[:1], strict=True))
    swapped.obs["perturbation"] = [following[c] for c in cells.obs["perturbation"]]
    flat = cells.copy()
    flat.X = np.asarray(real.means([str(c) for c in cells.obs["perturbation"]]).to_numpy(), dtype=np.float32)
    nothing = cells_as(real, np.resize(real.rows("control"), cells.n_obs), list(cells.obs["perturbation"]))
    for predicted in (swapped, flat, nothing):
        assert evaluate(predicted, real, metrics=["l2"], references=False)["value"].notna().all()
