"""Predictions carry names and provenance, repeat to the bit, and refuse what the run does not know."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import scipy.sparse as sp

import scdfm
import small
from scdfm.errors import ConditionError, DataError, RunError
from scdfm.prior import Shrinkage
from scdfm.run.predict import _shared

OPTIONS = small.options(
    panel={"n_genes": 40},
    training=small.SIX_STEPS | {"cells_per_condition": 6, "validation_cells": 6, "keep_controls": 20},
    sampling={"steps": 2},
)


@pytest.fixture(scope="module")
def screen():
    return small.screen()


@pytest.fixture(scope="module")
def run(screen, tmp_path_factory) -> scdfm.Run:
    out = tmp_path_factory.mktemp("predict") / "run"
    return scdfm.fit(scdfm.read_cells(screen), config=scdfm.Config().updated(OPTIONS), out=out, progress=False)


def test_predictions_open_with_names_labels_and_provenance(run, tmp_path):
    predicted = run.predict(n_cells=7, seed=1)
    assert list(predicted.var_names) == run.genes
    assert list(predicted.obs["perturbation"].cat.categories) == list(run.split.test)
    assert (predicted.obs["perturbation"].value_counts() == 7).all()
    assert set(predicted.obs["source_control"]) <= set(run.controls.obs.index)
    assert predicted.obs_names.is_unique
    assert predicted.X.min() >= 0
    assert np.isfinite(predicted.X.data).all()
    said = predicted.uns["scdfm"]
    assert (said["split"], said["seed"]) == (run.split.digest, 1)
    assert said["data"] == run.manifest.data["digest"]
    predicted.write_h5ad(tmp_path / "p.h5ad")
    import anndata as ad

    back = ad.read_h5ad(tmp_path / "p.h5ad")
    assert back.uns["scdfm"]["weights"] == said["weights"]


def test_same_seed_same_bits_and_a_population_of_its_own(run):
    both = run.predict(run.split.test, seed=4)
    again = scdfm.Run.load(run.path).predict(run.split.test, seed=4)
    assert (both.X != again.X).nnz == 0
    alone = run.predict([run.split.test[-1]], seed=4)
    kept = (both.obs["perturbation"] == run.split.test[-1]).to_numpy()
    assert (both[kept].X != alone.X).nnz == 0  # what else is asked for changes nothing
    other = run.predict([run.split.test[-1]], seed=5)
    assert (other.X != alone.X).nnz > 0


def test_means_lie_between_prior_and_flow_as_far_as_the_manifest_says(run):
    """Moved alike, cell by cell, so that shapes stay; `sampling.shrink` says whether at all."""

    def means(shrinkage, **sampling):
        other = scdfm.Run.load(run.path)
        config = other.config.updated({"sampling": sampling}) if sampling else other.config
        other.manifest = other.manifest.model_copy(update={"shrinkage": shrinkage, "config": config})
        cells = other.predict(run.split.test, n_cells=40, seed=1)
        label = cells.obs["perturbation"].to_numpy()
        return np.stack([cells.X.toarray()[label == name].mean(0) for name in run.split.test])

    assert isinstance(run.manifest.shrinkage, Shrinkage)  # a fit that validates finds it, whatever weights it keeps
    flow = means(None)
    prior = means(Shrinkage(follows=0, errs=1, missed=1))
    assert np.abs(flow - prior).max() > 1e-3
    doubt = run.knowing(run.split.test).doubt(run.split.test)
    third = means(Shrinkage(follows=1, errs=float(doubt[0] * 2), missed=1))[0]
    gaps = np.abs(third - (2 * prior[0] + flow[0]) / 3)
    # A cell that comes on jumps to the lowest value of its gene: means of few cells have steps.
    assert np.median(gaps) < 1e-4
    assert gaps.max() < 0.1
    np.testing.assert_array_equal(means(Shrinkage(follows=0, errs=1, missed=1), shrink=False), flow)


def test_the_network_is_asked_for_the_condition_and_its_control_cells(run, monkeypatch):
    """Which conditions, genes and control cells it is shown, chunk by chunk."""
    asked = []
    context = run.field.context

    def told(control, genes, perturbation, condition, **start):
        asked.append((control, genes, perturbation.tokens[condition]))
        return context(control, genes, perturbation, condition, **start)

    monkeypatch.setattr(run.field, "context", told)
    name, other = run.split.test[0], run.split.train[0]
    predicted = run.predict([name, other], n_cells=12, seed=3)
    places = {int(token): place for place, token in enumerate(run.vocabulary.gene_ids(run.genes))}
    stored = run.controls.to_adata().to_df()[run.genes]
    seen = {condition: np.zeros(len(run.genes), dtype=bool) for condition in (name, other)}
    for control, genes, tokens in asked:
        row = next(place for place in (name, other) if (tokens == run.encoder.encode([place]).tokens).all())
        sources = predicted.obs["source_control"][predicted.obs["perturbation"] == row]
        columns = [places[int(gene)] for gene in genes]
        np.testing.assert_allclose(control.numpy(), stored.loc[sources].to_numpy()[:, columns], rtol=1e-6)
        seen[row][columns] = True
    assert all(genes.all() for genes in seen.values())


def test_conditions_draw_noise_of_their_own(run):
    """Cells in the same place of two conditions have nothing in common."""
    names = [run.split.test[0], run.split.train[0]]
    predicted = run.predict(names, n_cells=200, seed=3)
    one, other = (predicted[predicted.obs["perturbation"] == name].X.toarray() for name in names)
    on = ((one > 0).mean(0) > 0.5) & ((other > 0).mean(0) > 0.5)
    assert on.sum() > 4
    same = [np.corrcoef(one[:, gene], other[:, gene])[0, 1] for gene in np.flatnonzero(on)]
    assert abs(np.mean(same)) < 0.15


def test_names_in_any_order_are_one_condition(run):
    a, b = run.split.test[0].split("+")
    assert list(run.predict([f"{b}+{a}", f"{a}+{b}"]).obs["perturbation"].cat.categories) == [run.split.test[0]]


def test_given_controls_equal_the_stored_ones(run, screen):
    stored = run.controls.to_adata()
    full = screen[np.isin(screen.obs_names, stored.obs_names)].copy()
    given = run.predict(seed=2, controls=full[stored.obs_names][:, run.genes])
    assert (run.predict(seed=2).X != given.X).nnz == 0
    assert given.uns["scdfm"]["controls"] == "given"


def test_without_training_means_are_those_of_the_controls_plus_the_expected_shift(run):
    """Genes whose shift is clear move as far as the prior expects."""
    name = run.split.test[0]
    shift = run.knowing([name]).predict([name])[0]
    stored = run.controls.to_adata()[:, run.genes]
    moved = (
        run.untrained().predict([name], n_cells=400, seed=1).X.toarray().mean(0)
        - run.means.loc["control", run.genes].to_numpy()
    )
    clear = np.abs(shift) > 0.1
    assert clear.sum() > 4
    assert stored.n_obs == 20
    assert np.polyfit(shift[clear], moved[clear], 1)[0] == pytest.approx(1, abs=0.1)


def test_predictions_follow_the_mean_of_the_controls(run):
    """The prior expects a shift from the controls at hand: where theirs is higher, so is the prediction."""
    stored = run.controls.to_adata()
    means = np.asarray(stored.X.mean(0)).ravel()
    gene = int(means.argmax())
    higher = stored.copy()
    higher.X = stored.X.toarray()
    higher.X[:, gene] += 0.5
    change = run.predict(seed=2, controls=higher).X - run.predict(seed=2, controls=stored).X
    assert float(change[:, gene].mean()) == pytest.approx(0.5, abs=0.1)


def test_more_cells_than_controls_reuses_each_evenly(run):
    sources = run.predict([run.split.test[0]], n_cells=45).obs["source_control"].value_counts()
    assert len(sources) == 20
    assert set(sources) == {2, 3}


def test_unknown_targets_and_empty_requests_are_refused(run):
    with pytest.raises(ConditionError, match="target 'NOPE1' of condition 'NOPE1' is unknown"):
        run.predict(["NOPE1"])
    with pytest.raises(ConditionError, match="nothing to predict; ask for perturbed conditions only"):
        run.predict(["control"])
    with pytest.raises(ConditionError, match="no condition to predict"):
        run.predict([])
    with pytest.raises(DataError, match="expected at least 1, found 0"):
        run.predict(n_cells=0)


def test_a_gene_never_perturbed_is_told_as_extrapolation(run):
    gene = next(g for g in run.genes if g not in run.manifest.targets)
    known = run.split.train[0]
    predicted = run.predict([gene, known])
    assert list(predicted.uns["scdfm"]["extrapolated"]) == [gene]


def test_controls_that_lack_genes_are_refused(run, screen):
    with pytest.raises(
        DataError, match=r"controls: 1 of the run's \d+ genes are missing \(first: .*\); give control cells"
    ):
        run.predict(controls=screen[:, screen.var_names != run.genes[0]].copy())


def test_controls_in_counts_are_refused(run, screen):
    counts = screen.copy()
    counts.X = counts.layers["counts"]
    with pytest.raises(DataError, match="raw counts"):
        run.predict(controls=counts)


@pytest.mark.parametrize("name", ["weights.safetensors", "graph.safetensors", "means.csv", "controls.h5ad"])
def test_an_incomplete_or_changed_run_is_refused(run, tmp_path, name):
    copy = shutil.copytree(run.path, tmp_path / "copy")
    (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    with pytest.raises(RunError, match=f"{name} is not the file of this run"):
        scdfm.Run.load(copy)
    (copy / name).unlink()
    with pytest.raises(RunError, match=f"is incomplete: {name} is missing"):
        scdfm.Run.load(copy)


def edited(run, tmp_path, change):
    copy = shutil.copytree(run.path, tmp_path / "copy")
    values = json.loads((copy / "manifest.json").read_text())
    change(values)
    (copy / "manifest.json").write_text(json.dumps(values))
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=99), r"made by a newer scdfm \(format 99, this one reads up to 1\); upgrade"),
        (lambda m: m.pop("panel"), "damaged at panel"),
        (lambda m: m.update(extra=1), "damaged at extra"),
        (lambda m: m["config"]["model"].update(width=-4), "damaged at config.model.width"),
        (lambda m: m["digests"].update({"../../etc/passwd": "0"}), "names an unknown file"),
    ],
)
def test_an_edited_manifest_is_refused(run, tmp_path, change, message):
    with pytest.raises(RunError, match=message):
        scdfm.Run.load(edited(run, tmp_path, change))


def test_weights_of_another_model_are_refused(run, tmp_path):
    copy = edited(run, tmp_path, lambda m: m["config"]["model"].update(width=32))
    with pytest.raises(RunError, match="does not fit the manifest's model"):
        _ = scdfm.Run.load(copy).field


def test_folders_that_are_no_run_are_refused(tmp_path):
    with pytest.raises(RunError, match="does not exist; give the --out folder of a fit"):
        scdfm.Run.load(tmp_path / "none")
    with pytest.raises(RunError, match=r"is not a run folder: manifest.json is missing"):
        scdfm.Run.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read as JSON"):
        scdfm.Run.load(tmp_path)


def test_without_stored_controls_some_must_be_given(screen, tmp_path):
    config = scdfm.Config().updated(OPTIONS).updated({"training": {"keep_controls": 0, "max_steps": 1}})
    bare = scdfm.fit(scdfm.read_cells(screen), config=config, out=tmp_path / "run", progress=False)
    with pytest.raises(RunError, match="stores no control cells; give some with --controls"):
        bare.predict()
    assert sp.issparse(bare.predict(controls=screen).X)


def test_a_learned_table_refuses_what_it_was_not_trained_on(screen, tmp_path):
    config = scdfm.Config().updated(OPTIONS).updated({"model": {"perturbation": "drugs"}, "training": {"max_steps": 2}})
    run = scdfm.fit(scdfm.read_cells(screen), config=config, out=tmp_path / "run", progress=False)
    gene = next(g for g in run.genes if g not in run.manifest.targets)
    with pytest.raises(ConditionError, match=f"nothing is known of '{gene}'"):
        run.predict([gene])
    assert run.predict([run.split.train[0]]).n_obs == 5


def test_some_genes_are_cut_out_of_chunks_and_solved_together_when_joint(run, tmp_path):
    wanted = [run.genes[7], run.genes[2], run.genes[20]]
    whole, some = run.predict(seed=3), run.predict(seed=3, genes=wanted)
    assert list(some.var_names) == wanted
    assert (whole[:, wanted].X != some.X).nnz == 0
    copy = edited(run, tmp_path, lambda m: m["config"]["sampling"].update(genes="joint"))
    joint = scdfm.Run.load(copy)
    alone = joint.predict(seed=3, genes=wanted)
    assert list(alone.var_names) == wanted
    # attention sees other genes
    assert not np.allclose(joint.predict(seed=3)[:, wanted].X.toarray(), alone.X.toarray())
    with pytest.raises(DataError, match=r"genes: 1 of the 2 asked for are not in the run's panel of \d+ \(first: NO"):
        run.predict(genes=[run.genes[0], "NO"])
    with pytest.raises(DataError, match="genes: none asked for"):
        run.predict(genes=[])


def test_names_are_also_in_columns_of_their_own(tmp_path):
    adata = scdfm.data.simulate_doses(n_genes=30, n_drugs=3, n_doses=3, cells_per_condition=12, n_controls=30)
    cells = scdfm.read_cells(adata, "drug", dose_key="dose", target_sum=None)
    run = scdfm.fit(
        cells,
        scdfm.Split("by hand", 0, ("drug1@0.01", "drug1@10", "drug2@0.01", "drug3@10"), (), ("drug2@10",)),
        scdfm.Config().updated(OPTIONS | {"model": {**OPTIONS["model"], "perturbation": "drugs"}}),
        out=tmp_path / "run", progress=False,
    )  # fmt: skip
    names = ["drug2@10", "drug1@0.01", "drug1@0.01+drug2@10"]
    predicted = run.predict(names, n_cells=2)
    assert list(predicted.obs["targets"][::2]) == ["drug2", "drug1", "drug1+drug2"]
    assert list(predicted.obs["dose"][::2]) == ["10", "0.01", "0.01+10"]
    assert run.predict(names[:2], n_cells=2).obs["dose"].tolist() == [10, 10, 0.01, 0.01]
    written = run.predict_to(tmp_path / "p.h5ad", names[:2], n_cells=2)
    table = scdfm.evaluate(written.path, cells, training=run, references=False)
    assert set(table["condition"]) == set(names[:2])


def test_a_run_whose_folder_was_fitted_anew_is_refused(screen, tmp_path):
    def fit(seed: int) -> scdfm.Run:
        config = scdfm.Config().updated(OPTIONS | {"seed": seed})
        return scdfm.fit(scdfm.read_cells(screen), config=config, out=tmp_path / "run", progress=False)

    old = fit(0)
    shutil.rmtree(tmp_path / "run")
    fit(1)
    with pytest.raises(RunError, match="is another file than when this run was loaded; load the folder anew"):
        old.predict(n_cells=2)
    assert scdfm.Run.load(tmp_path / "run").predict(n_cells=2).n_obs


def test_the_working_folder_may_change_after_a_run_is_loaded(run, monkeypatch, tmp_path):
    monkeypatch.chdir(run.path.parent)
    loaded = scdfm.Run.load(run.path.name)
    monkeypatch.chdir(tmp_path)
    assert loaded.predict(n_cells=2, seed=1).n_obs
    written = loaded.predict_to("p.h5ad", n_cells=2)
    monkeypatch.chdir(run.path.parent)
    assert written.path.is_file()


def test_other_files_are_read_from_the_layer_of_the_run(tmp_path):
    screen = small.screen()
    screen.X = screen.X.toarray() - 1  # scaled values, as many files have them, with the counts in a layer
    cells = scdfm.read_cells(screen, layer="counts", target_sum=10_000)
    run = scdfm.fit(cells, config=scdfm.Config.preset("instant"), out=tmp_path / "run", progress=False)
    np.testing.assert_array_equal(
        run.predict(controls=screen, n_cells=3).X.toarray(), run.predict(controls=cells, n_cells=3).X.toarray()
    )
    name = run.split.test[0]
    some = scdfm.identify(run, screen, condition=name, order=1).table
    assert some.equals(scdfm.identify(run, cells, condition=name, order=1).table)
    alone = screen[screen.obs["perturbation"] == name].copy()
    assert some.equals(scdfm.identify(run, alone, order=1).table)
    screen.X = screen.layers.pop("counts")  # a file without the layer has the counts as X
    assert some.equals(scdfm.identify(run, screen, condition=name, order=1).table)


def test_controls_without_labels_are_taken_for_what_they_are(run, screen):
    control = screen[(screen.obs["perturbation"] == "control").to_numpy()].copy()
    del control.obs["perturbation"]
    bare = run.predict(controls=control, n_cells=3)
    np.testing.assert_array_equal(
        bare.X.toarray(), run.predict(controls=scdfm.read_cells(screen), n_cells=3).X.toarray()
    )
    control.obs["guide"] = "non-targeting"
    with pytest.raises(DataError, match=r"'perturbation' is not in obs; .*--perturbation-key"):
        run.predict(controls=control, n_cells=3)


@pytest.mark.parametrize("kind", ["none", "additive"])
def test_validation_conditions_are_known_where_there_is_no_test(tmp_path, kind):
    """Who keeps nothing for a test wants to know everything; elsewhere they judge predictions, and are not known."""
    cells = scdfm.read_cells(small.screen(cells_per_condition=60, n_controls=200))
    config = scdfm.Config.preset("instant").updated({"panel": {"n_genes": 40}, "split": {"kind": kind}})
    run = scdfm.fit(cells, config=config, out=tmp_path / "run", progress=False)
    for name in run.split.validation:
        shift = run.predict([name], n_cells=200, seed=0).X.toarray().mean(0) - run.means.loc["control"].to_numpy()
        known, blind = (run.knowing([name], blind=blind).predict([name])[0] for blind in (False, True))
        off = [np.linalg.norm(shift - expected) for expected in (known, blind)]
        assert (off[0] < off[1]) == (kind == "none")
    assert (set(run.known) == set(run.split.train)) == (kind == "additive")


@pytest.mark.parametrize(("kind", "beyond"), [("none", False), ("file", True)])
def test_a_dose_that_validates_is_within_what_a_run_without_a_test_knows(tmp_path, kind, beyond):
    """Doses up to it are too, wherever the prior has learned from it; it is itself beyond, where it is not known."""
    adata = scdfm.data.simulate_doses(n_genes=30, n_drugs=3, n_doses=3, cells_per_condition=10, n_controls=40, seed=0)
    cells = scdfm.read_cells(adata, perturbation_key="drug", dose_key="dose")
    drug = scdfm.data.targets(cells.conditions[1])[0]
    *others, last = [name for name in cells.conditions if name.startswith(f"{drug}@")]
    rest = [name for name in cells.conditions[1:] if name not in (*others, last)]
    test = () if kind == "none" else (rest.pop(),)
    split = scdfm.Split(kind, 0, (*others, *rest), (last,), test)
    run = scdfm.fit(cells, split, scdfm.Config.preset("instant"), out=tmp_path / "run", progress=False)
    between = f"{drug}@{float(last.split('@')[1]) * 0.99:g}"
    predicted = run.predict([last, between], n_cells=2)
    assert list(predicted.uns["scdfm"]["extrapolated"]) == ([last] if beyond else [])


@pytest.mark.parametrize("n_cells", [8, 400])
def test_control_cells_are_drawn_by_their_shares(n_cells: int) -> None:
    """A condition of two batches starts from the controls of each as its cells lie in them, to one cell."""
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    drawn = np.bincount(_shared(shares, n_cells, np.random.default_rng(0)), minlength=4)
    assert drawn.sum() == n_cells
    assert (np.abs(drawn - n_cells * shares) <= 1).all()
