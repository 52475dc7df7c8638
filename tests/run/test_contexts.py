"""A context that training never had, known by its control cells: as the same context held out, and said for what it is."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import scdfm
from scdfm.data import covariate_split
from scdfm.data.simulate import simulate_cell_types
from scdfm.errors import ConditionError, DataError

NEW = "type3"
OPTIONS = {
    "panel": {"n_genes": 60}, "graph": {"k": 5}, "model": {"width": 16, "heads": 2, "gene_heads": 2, "layers": 1},
    "flow": {"genes_per_step": 24},
    "training": {"max_steps": 4, "warmup_steps": 1, "validate_every": 2, "conditions_per_batch": 2,
                 "cells_per_condition": 4, "validation_cells": 4, "accelerator": "cpu", "keep": "last",
                 "learning_rate": 0.02, "ema_decay": 0.0},
    "sampling": {"steps": 2, "cells": 6, "shrink": False},  # nothing validates: else means are the prior's
}  # fmt: skip


@pytest.fixture(scope="module")
def screen() -> ad.AnnData:
    return simulate_cell_types(n_genes=60, n_targets=5, n_types=4, cells_per_condition=12, n_controls=30, seed=3)


def read(adata: ad.AnnData) -> scdfm.CellTable:
    return scdfm.read_cells(adata, covariates=["cell_type"])


@pytest.fixture(scope="module")
def controls(screen: ad.AnnData) -> ad.AnnData:
    """The control cells of the new type, in a file that says neither label nor type."""
    cells = screen[(screen.obs["cell_type"] == NEW) & (screen.obs["perturbation"] == "control")].copy()
    cells.obs = cells.obs[[]]
    return cells


@pytest.fixture(scope="module")
def runs(screen: ad.AnnData, tmp_path_factory) -> dict[str, scdfm.Run]:
    """`held`: the new type's controls were in the file of the fit; `new`: nothing of the type was; `trained` likewise."""
    folder = tmp_path_factory.mktemp("contexts")
    without = screen[(screen.obs["cell_type"] != NEW).to_numpy()].copy()
    names = [name for name in read(without).conditions if name != "control"]
    split = scdfm.Split("named", 0, tuple(sorted(names)), (), ())
    instant = scdfm.Config.preset("instant").updated(
        {"panel": {"n_genes": 60}, "graph": {"k": 5}, "sampling": {"cells": 6}}
    )
    held = covariate_split(read(screen), "cell_type", NEW, validation_fraction=0)
    return {
        "held": scdfm.fit(read(screen), held, instant, out=folder / "held", progress=False),
        "new": scdfm.fit(read(without), split, instant, out=folder / "new", progress=False),
        "trained": scdfm.fit(
            read(without), split, scdfm.Config().updated(OPTIONS), out=folder / "trained", progress=False
        ),
    }


def cells_of(predicted: ad.AnnData) -> np.ndarray:
    return np.asarray(predicted.X.toarray())


def test_a_context_from_a_file_is_the_same_context_held_out(runs, controls) -> None:
    """To the bit, whether the control cells were in the file of the fit, or come in one of their own."""
    held, new = runs["held"], runs["new"]
    asked, context = list(held.split.test), {"cell_type": NEW}
    assert asked
    assert not any(NEW in name for name in new.manifest.conditions.covariates["cell_type"])
    expected = held.predict(asked, seed=1)
    for run in (held, new):
        found = run.predict([name.split("|")[0] for name in asked], controls=controls, context=context, seed=1)
        assert list(found.obs["perturbation"]) == list(expected.obs["perturbation"])
        np.testing.assert_array_equal(cells_of(found), cells_of(expected))
    other = new.predict(["G001|cell_type=type1"] if "G001" in asked[0] else [asked[0].replace(NEW, "type1")], seed=1)
    assert np.abs(cells_of(other).mean(0) - cells_of(expected)[:6].mean(0)).max() > 0.1


def test_rules_know_the_controls_of_training_contexts_that_the_real_file_lacks(runs, screen) -> None:
    """A run keeps the means of its contexts' control cells: the same scores as with a file that holds them."""
    run = runs["held"]
    predicted = run.predict(n_cells=20, seed=1)
    whole = read(screen)
    own = read(screen[(screen.obs["cell_type"] == NEW).to_numpy()].copy())
    rules = ["no change", "training mean", "additive", "ridge"]
    tables = [
        scdfm.evaluate(predicted, real, training=run, metrics=["l2"]).set_index(["model", "condition"])["value"][rules]
        for real in (whole, own)
    ]  # fmt: skip
    np.testing.assert_allclose(tables[1], tables[0].loc[tables[1].index], rtol=1e-6)
    assert len(tables[0]) == 4 * 5
    bare = run.means[[name.count("|") == 0 or "control" not in name for name in run.means.index]]
    table = scdfm.evaluate(predicted, own, training=bare, metrics=["l2"])
    assert "15 training conditions have no control cells of their own" in " ".join(table.attrs["notes"])
    assert "`control|cell_type=" in " ".join(table.attrs["notes"])


def test_a_new_context_is_said_to_be_one(call, runs, controls, tmp_path) -> None:
    """By the command, and in the file: an extrapolation, and how far from the trained contexts."""
    controls.write_h5ad(tmp_path / "c.h5ad")
    run = runs["new"]
    given = ("--controls", tmp_path / "c.h5ad", "--context", f"cell_type={NEW}")
    code, _, error = call("predict", run.path, "--all", *given, "--out", tmp_path / "p.h5ad", "--quiet")
    assert code == 0, error
    assert "5 conditions are extrapolations" in error
    assert "context known by its control cells alone; nearest trained: cell_type type" in error
    found = ad.read_h5ad(tmp_path / "p.h5ad")
    assert set(found.obs["cell_type"]) == {NEW}
    assert found.obs["perturbation"].nunique() == len({name.split("|")[0] for name in run.split.train}) == 5
    (told,) = found.uns["scdfm"]["contexts"]
    means = {
        name: run.controls.control_mean(name)[run.controls.columns(run.genes)]
        for name in run.controls.control_conditions
    }
    own = np.asarray(controls[:, run.genes].X.mean(0)).ravel()
    distance = min(np.linalg.norm(own - mean) for mean in means.values())
    rows = list(means.values())
    typical = np.median([np.linalg.norm(a - b) for at, a in enumerate(rows) for b in rows[:at]])
    assert f"{distance:.3g} away, {distance / typical:.2g} times" in told
    assert run.contexts == {}  # the run itself is as it was
    assert not run.predict(["G001"] if run.knows("G001") else [run.split.train[0]], n_cells=2).uns["scdfm"]["contexts"]


def test_the_network_reads_the_mean_of_the_trained_contexts_by_their_likeness(runs, screen, controls) -> None:
    run = runs["trained"]
    table = run.read_controls(controls, context={"cell_type": NEW})
    from scdfm.run.contexts import in_contexts

    made = in_contexts(run, table)
    assert made.manifest.conditions.covariates["cell_type"] == ("type1", "type2", "type4", NEW)
    own = table.control_mean(f"control|cell_type={NEW}")[table.columns(run.genes)]
    kernel = run.prior.kernel
    far = np.array([((own - mean) ** 2).sum() for mean in kernel.controls])
    weights = np.exp(-(far - far.min()) / kernel.controls_length2)
    weights /= weights.sum()
    assert weights.min() > 1e-4
    vectors = [field.conditioning.covariates.weight.detach().numpy() for field in (run.field, made.field)]
    np.testing.assert_array_equal(vectors[1][:3], vectors[0])
    np.testing.assert_allclose(vectors[1][3], weights @ vectors[0], rtol=1e-4, atol=1e-6)
    name = run.split.train[0].split("|")[0]
    one, two = (
        r.predict([name], controls=controls, context={"cell_type": NEW}, n_cells=8) for r in (run, run.untrained())
    )
    assert np.abs(cells_of(one) - cells_of(two)).max() > 0.1  # the network takes part


def test_a_file_of_several_types_gives_the_cells_of_the_context(runs, screen, controls) -> None:
    run, name = runs["new"], runs["new"].split.train[0].split("|")[0]
    whole = screen[screen.obs["perturbation"] == "control"].copy()
    alone = run.predict([name], controls=controls, context={"cell_type": NEW}, seed=2)
    for given in (whole, read(screen)):
        found = run.predict([name], controls=given, context={"cell_type": NEW}, seed=2)
        np.testing.assert_array_equal(cells_of(found), cells_of(alone))
    named = run.predict([f"{name}|cell_type={NEW}"], controls=whole, seed=2)  # the column says it
    np.testing.assert_array_equal(cells_of(named), cells_of(alone))


def test_missing_genes_are_filled_in_from_stored_cells_and_marked(runs, controls) -> None:
    run, name = runs["new"], runs["new"].split.train[0].split("|")[0]
    on = np.asarray(controls.X.mean(0)).ravel() > 0.5
    lost = controls.var_names[on][:4]
    fewer = controls[:, ~controls.var_names.isin(lost)].copy()
    context = {"cell_type": NEW}
    with pytest.raises(DataError, match=r"controls: 4 of the run's 60 genes are missing .*--fill-genes"):
        run.predict([name], controls=fewer, context=context)
    found = run.predict([name], controls=fewer, context=context, fill_genes=True, n_cells=20)
    assert set(found.var_names[found.var["filled"]]) == set(lost)
    assert list(found.var_names) == run.genes
    assert (np.asarray(found[:, lost].X.mean(0)) > 0.1).all()
    from scdfm.run.contexts import filled

    stored, rest = run.controls, list(fewer.var_names)
    means = {one: stored.control_mean(one)[stored.columns(rest)] for one in stored.control_conditions}
    own = np.asarray(fewer.X.mean(0)).ravel()
    nearest = min(means, key=lambda one: np.linalg.norm(means[one] - own))
    source = stored.X[stored.control_rows(nearest)][:, stored.columns(lost)].toarray()
    new = filled(run, run.read_controls(fewer, context=context), 0)
    drawn = new.X[:, new.columns(lost)].toarray()
    assert len(means) == 3
    assert {tuple(row) for row in drawn} <= {tuple(row) for row in source}
    with pytest.raises(DataError, match=r"4 genes are filled in from other cells, so no cell's library size is known"):
        run.predict([name], controls=fewer, context=context, fill_genes=True, counts=True)
    with pytest.raises(DataError, match=r"20 of the run's 60 genes are measured .*expected at least 50%"):
        run.predict([name], controls=controls[:, :20].copy(), context=context, fill_genes=True)


@pytest.mark.parametrize(
    ("context", "error", "words"),
    [
        (
            {"line": NEW},
            ConditionError,
            r"context line=type3: 'line' is no covariate of the run; expected one of cell_type",
        ),
        ({"cell_type": " "}, ConditionError, "expected a value that is not blank"),
        ({"cell_type": "a|b"}, ConditionError, r"holds no '\|'"),
        ({}, DataError, r"obs has no column 'cell_type', the run's covariate; .*--context cell_type=VALUE"),
    ],
)
def test_what_is_no_context(runs, controls, context, error, words) -> None:
    with pytest.raises(error, match=words):
        runs["new"].predict(["G001"], controls=controls, context=context)


def test_what_does_not_fit_a_context_is_refused(runs, screen, controls) -> None:
    run, name = runs["new"], runs["new"].split.train[0].split("|")[0]
    typed = screen[screen.obs["perturbation"] == "control"].copy()
    with pytest.raises(DataError, match=r"no cell has 'typo' in obs column 'cell_type', .*its values are 'type1'"):
        run.predict([name], controls=typed, context={"cell_type": "typo"})
    with pytest.raises(DataError, match="give them"):
        run.predict([name], context={"cell_type": NEW})
    with pytest.raises(ConditionError, match=f"is not of the context cell_type={NEW}"):
        run.predict([f"{name}|cell_type=type1"], controls=controls, context={"cell_type": NEW})
    with pytest.raises(ConditionError, match=r"'typo' is no known value .*--controls FILE --context 'cell_type=typo'"):
        run.predict([f"{name}|cell_type=typo"])
    million = controls.copy()
    million.X = controls.X.copy()
    million.X.data = np.log1p(100 * np.expm1(million.X.data))
    with pytest.raises(DataError, match="cells in another scale"):
        run.predict([name], controls=million, context={"cell_type": NEW})
    with pytest.raises(DataError, match="device 'tpu': expected auto, cpu or cuda"):
        run.predict([name], controls=controls, context={"cell_type": NEW}, device="tpu")
