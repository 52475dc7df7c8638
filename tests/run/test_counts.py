"""Counts: their law is that of training cells, their logarithms those predicted, their library sizes those of controls."""

from __future__ import annotations

import json
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import scdfm
import small
from scdfm.data.simulate import simulate_cell_types
from scdfm.errors import ConditionError, DataError, RunError
from scdfm.run.counts import CountLaw, counts_of, law_of, library_factors
from scdfm.run.submission import require_submission, submission

OPTIONS = small.options(
    panel={"n_genes": 40},
    model={"width": 8},
    flow={"genes_per_step": 40},
    training={"max_steps": 1, "warmup_steps": 0, "validate_every": 1},
)


def drawn(mean: np.ndarray, dispersion: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Negative binomial counts of `mean` [n, G]."""
    return rng.poisson(mean * rng.gamma(1 / dispersion, dispersion, mean.shape))


@pytest.fixture(scope="module")
def real():
    """Counts of 400 cells, their library factors, their log1p values, and the dispersion they were drawn with."""
    rng = np.random.default_rng(0)
    size, dispersion = rng.lognormal(0, 0.4, 400), rng.uniform(0.1, 1.5, 60)
    counts = drawn(size[:, None] * rng.gamma(0.7, 3, 60), dispersion, rng)
    factor = 2.0 / size
    return counts, factor, np.log1p(factor[:, None] * counts), dispersion


def test_the_law_of_counts_is_learned_from_their_logarithms(real):
    counts, _, x, dispersion = real
    law = law_of(sp.csr_matrix(x.astype(np.float32)), [np.arange(400)], np.arange(60))
    assert law is not None
    often = counts.mean(axis=0) > 2
    assert np.median(np.abs(np.log(law.dispersion[often] / dispersion[often]))) < 0.25
    assert np.corrcoef(law.dispersion[often], dispersion[often])[0, 1] > 0.8
    smooth = x + 0.01 * np.random.default_rng(1).random(x.shape) * (x > 0)
    assert law_of(sp.csr_matrix(smooth), [np.arange(400)], np.arange(60)) is None


def test_counts_have_the_mean_that_was_predicted_and_the_spread_of_the_law(real):
    """From predicted cells without sampling noise: rounding them would have far too few zeros and too little spread."""
    counts, factor, x, dispersion = real
    rng = np.random.default_rng(3)
    smooth = np.maximum(x.mean(axis=0) + 0.1 * rng.normal(size=x.shape), 0)
    found = counts_of(smooth, factor, dispersion, rng)
    again = np.log1p(factor[:, None] * found)
    assert np.linalg.norm(again.mean(axis=0) - smooth.mean(axis=0)) < 0.02 * np.linalg.norm(smooth.mean(axis=0))
    assert found.sum(axis=1).mean() == pytest.approx(counts.sum(axis=1).mean(), rel=0.05)
    assert np.corrcoef(found.sum(axis=1), 1 / factor)[0, 1] > 0.6
    np.testing.assert_allclose((found == 0).mean(axis=0), (counts == 0).mean(axis=0), atol=0.08)
    often = counts.mean(axis=0) > 1
    ratio = np.log(found.var(axis=0) / counts.var(axis=0))[often]
    assert abs(np.median(ratio)) < 0.15
    rounded = np.rint(np.expm1(smooth) / factor[:, None])
    assert np.median((rounded.var(axis=0) / counts.var(axis=0))[often]) < 0.6


def test_genes_that_rise_together_still_do(real):
    _, factor, x, _ = real
    rng = np.random.default_rng(5)
    tied = x.copy()
    tied[:, 1] = tied[:, 0]
    found = counts_of(tied, factor, np.full(60, 0.5), rng)
    size = 1 / factor
    ranks = (found / size[:, None]).argsort(axis=0).argsort(axis=0)
    assert np.corrcoef(ranks[:, 0], ranks[:, 1])[0, 1] > 0.9
    assert abs(np.corrcoef(ranks[:, 0], ranks[:, 2])[0, 1]) < 0.3


def test_silent_genes_stay_silent_and_one_cell_is_enough(real):
    _, factor, x, dispersion = real
    quiet = x[:1].copy()
    quiet[:, :5] = 0
    found = counts_of(quiet, factor[:1], dispersion, np.random.default_rng(0))
    assert not found[:, :5].any()
    assert (found >= 0).all()


def test_values_that_are_no_counts():
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="no value is 0 and none is a whole count"):
        library_factors(sp.csr_matrix(rng.normal(8, 1, (5, 30))), "controls")
    factor, known = library_factors(
        sp.csr_matrix(rng.normal(2, 0.3, (5, 30)) * (rng.random((5, 30)) < 0.5)), "controls"
    )
    assert not known
    assert np.isfinite(factor).all()


@pytest.fixture(scope="module")
def screen():
    return scdfm.simulate(n_genes=60, n_targets=4, cells_per_condition=20, n_controls=60, depth=3000, seed=3)


@pytest.fixture(scope="module")
def run(screen, tmp_path_factory) -> scdfm.Run:
    out = tmp_path_factory.mktemp("counts") / "run"
    return scdfm.fit(scdfm.read_cells(screen), config=scdfm.Config().updated(OPTIONS), out=out, progress=False)


def test_a_run_predicts_counts(run, screen, tmp_path):
    logged, found = (run.predict(n_cells=40, seed=2, counts=counts) for counts in (False, True))
    values = found.X.toarray()
    assert (values == np.rint(values)).all()
    assert found.uns["scdfm"]["counts"].endswith("dispersion is that of the training cells' counts")
    controls = screen[run.controls.obs.index]
    totals = dict(zip(controls.obs_names, np.asarray(controls.layers["counts"].sum(axis=1)).ravel(), strict=True))
    np.testing.assert_allclose(found.obs["library_size"], [totals[c] for c in found.obs["source_control"]], rtol=1e-3)
    back = np.log1p(values * found.obs["size_factor"].to_numpy()[:, None])
    gap = np.linalg.norm(back.mean(axis=0) - logged.X.toarray().mean(axis=0))
    assert gap < 0.1 * np.linalg.norm(logged.X.toarray().mean(axis=0))
    again = run.predict([run.split.test[-1]], n_cells=40, seed=2, counts=True)
    rows = (found.obs["perturbation"] == run.split.test[-1]).to_numpy()
    assert (again.X != found[rows].X).nnz == 0  # what else is asked for changes nothing
    written = run.predict_to(tmp_path / "p.h5ad", n_cells=40, seed=2, counts=True)
    stored = ad.read_h5ad(tmp_path / "p.h5ad")
    assert (stored.X != found.X).nnz == 0
    np.testing.assert_array_equal(stored.obs["library_size"], found.obs["library_size"])
    assert stored.uns["scdfm"]["counts"] == found.uns["scdfm"]["counts"]
    assert written.counts == found.uns["scdfm"]["counts"]


def test_the_law_is_the_same_from_counts_and_from_log1p(run, screen, tmp_path):
    cells = scdfm.read_cells(screen, target_sum=10_000, layer="counts")
    other = scdfm.fit(cells, config=scdfm.Config().updated(OPTIONS), out=tmp_path / "run", progress=False)
    np.testing.assert_allclose(other.count_law.dispersion, run.count_law.dispersion, rtol=1e-3)
    assert run.count_law.total == pytest.approx(10_000, rel=1e-3)


def test_a_damaged_law_is_refused(run):
    for tensors in (
        {"dispersion": torch.ones(3), "total": torch.tensor(1.0)},
        {"dispersion": -torch.ones(len(run.genes)), "total": torch.tensor(1.0)},
        {"total": torch.tensor(1.0)},
    ):
        with pytest.raises(RunError, match="expected the tensors 'dispersion'"):
            CountLaw.of_tensors(tensors, len(run.genes), run.path / "counts.safetensors")


def test_a_submission_keeps_the_rules(run, screen, tmp_path, call):
    """The rules of cell-eval2 0.20.0 on a pair of files, written out: genes, labels, control, whole counts, totals."""
    genes = tmp_path / "genes.txt"
    genes.write_text("\n".join(screen.var_names) + "\n", encoding="utf-8")
    raw = screen[screen.obs["perturbation"] == "control"].copy()
    raw.X = raw.layers["counts"].copy()
    raw.write_h5ad(tmp_path / "controls.h5ad")
    code, out, err = call(
        "predict", run.path, "--test", "--cells", 10, "--controls", tmp_path / "controls.h5ad", "--target-sum", 10_000,
        "--format", "vcc", "--gene-axis", genes, "--out", tmp_path / "s.h5ad", "--quiet",
    )  # fmt: skip
    assert code == 0, err
    assert f"{10 * len(run.split.test)} predicted and 60 control cells × 60 genes" in out
    found = ad.read_h5ad(tmp_path / "s.h5ad")
    assert list(found.var_names) == list(screen.var_names)
    assert set(found.obs["target"].astype(str)) == {*run.split.test, "non-targeting"}
    X = found.X.toarray()
    assert np.isfinite(X).all()
    assert (X >= 0).all()
    assert (np.rint(X) == X).all()
    assert X.sum(axis=1).max() <= 1e6
    control = (found.obs["target"] == "non-targeting").to_numpy()
    np.testing.assert_array_equal(X[control], raw.X.toarray())
    outside = [gene not in run.genes for gene in screen.var_names]
    counted = dict(zip(raw.obs_names, raw.X.toarray(), strict=True))
    source = run.predict(n_cells=10, controls=run.read_controls(raw, target_sum=10_000)).obs["source_control"]
    np.testing.assert_array_equal(X[~control][:, outside], np.array([counted[c] for c in source])[:, outside])


def test_submissions_that_cannot_be(run, screen):
    found = submission(run, n_cells=2)
    assert list(found.var_names) == run.genes
    bad = found.copy()
    bad.X = bad.X * 0.5
    with pytest.raises(DataError, match="values that are no counts"):
        require_submission(bad)
    bad.X = found.X * 1e6
    with pytest.raises(DataError, match=r"counts; expected at most 1,000,000 a cell"):
        require_submission(bad)
    with pytest.raises(DataError, match="no cell is labelled 'non-targeting'"):
        require_submission(found[found.obs["target"] != "non-targeting"].copy())
    with pytest.raises(DataError, match="no obs column 'target'"):
        require_submission(ad.AnnData(found.X))
    with pytest.raises(DataError, match=r"1 of 2 genes are not in the data \(first: 'NONE'\)"):
        submission(run, n_cells=2, gene_axis=[run.genes[0], "NONE"])
    with pytest.raises(ConditionError, match="has a dose|targets alone"):
        submission(run, [f"{run.manifest.targets[0]}@0.5"], n_cells=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "csv"], "--format csv: expected scdfm or vcc"),
        (["--gene-axis", "g.txt"], "--gene-axis belongs to a submission"),
        (["--format", "vcc", "--resume"], "a submission is written at once"),
        (["--target-sum", "10000"], "go with --controls FILE here"),
        (["--format", "vcc"], "expected a name that ends in .h5ad"),
    ],
)
def test_options_that_do_not_go_together(run, tmp_path, call, options, message):
    out = tmp_path / ("p.zarr" if options == ["--format", "vcc"] else "p.h5ad")
    code, _, err = call("predict", run.path, "--test", "--out", out, "--quiet", *options)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not out.exists()


def test_the_manifest_knows_the_law(run):
    assert "counts.safetensors" in json.loads((run.path / "manifest.json").read_text())["digests"]


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """A run of two cell lines, and a folder with the raw control cells of a third, in batches."""
    folder = tmp_path_factory.mktemp("lines")
    adata = simulate_cell_types(n_genes=50, n_targets=4, n_types=3, cells_per_condition=12, n_controls=30, seed=3)
    adata.X = adata.layers["counts"].copy()
    third = (adata.obs["cell_type"] == "type3").to_numpy()
    config = scdfm.Config.preset("instant").updated(
        {"panel": {"n_genes": 30}, "graph": {"k": 5}, "split": {"kind": "none"}}
    )
    cells = scdfm.read_cells(adata[~third].copy(), covariates=["cell_type"], target_sum=10_000)
    run = scdfm.fit(cells, config=config, out=folder / "run", progress=False)
    controls = adata[third & (adata.obs["perturbation"] == "control").to_numpy()].copy()
    controls.obs = pd.DataFrame({"batch": np.arange(30) % 2}, index=controls.obs_names)
    controls.write_h5ad(folder / "controls.h5ad")
    return run, controls, folder


def test_a_challenge_file_in_one_go(lines, call):
    """A line of control cells alone: cells by condition from a table, all genes of the input, batches of source cells."""
    run, controls, folder = lines
    one, two = sorted(run.manifest.targets)[:2]
    (folder / "cells.csv").write_text(f"target,n_cells\n{one},7\n{two},3\n", encoding="utf-8")
    asked = (
        "predict", run.path, "--controls", folder / "controls.h5ad", "--context", "cell_type=type3", "--format", "vcc",
        "--cells-table", folder / "cells.csv", "--quiet",
    )  # fmt: skip
    code, out, err = call(*asked, "--copy", "batch", "--out", folder / "s.h5ad")
    assert code == 0, err
    assert "10 predicted and 30 control cells × 50 genes" in out
    found = ad.read_h5ad(folder / "s.h5ad")
    assert found.obs["target"].value_counts().to_dict() == {one: 7, two: 3, "non-targeting": 30}
    assert list(found.var_names) == list(controls.var_names)
    assert set(found.obs["cell_type"]) == {"type3"}
    table = run.read_controls(controls, {"cell_type": "type3"})
    batch = dict(zip(table.obs.index, table.obs["batch"], strict=True))
    for name, n in ((one, 7), (two, 3)):
        sources = run.predict([f"{name}|cell_type=type3"], table, n_cells=n).obs["source_control"]
        rows = found.obs["target"] == name
        assert [str(value) for value in found.obs["batch"][rows]] == [str(batch[source]) for source in sources]
    outside = [gene not in run.genes for gene in controls.var_names]
    assert any(outside)
    own = (found.obs["target"] == "non-targeting").to_numpy()
    np.testing.assert_array_equal(found.X.toarray()[own], controls.X.toarray())
    for options, words in (
        (("--copy", "plate"), "'plate' is no column of the control cells that can be copied .*batch"),
        (("--cells", 4), "--cells and --cells-table both say how many cells"),
        (("--conditions", sorted(run.manifest.targets)[2]), "expected a number of at least 1, found no number"),
    ):
        code, _, err = call(*asked, *options, "--out", folder / "no.h5ad")
        assert (code, bool(re.search(words, err))) == (2, True), err
    code, _, err = call("predict", run.path, "--all", "--copy", "batch", "--out", folder / "no.h5ad")
    assert (code, "--copy belongs to a submission" in err) == (2, True)
    (folder / "bad.csv").write_text(f"{one},7\n{one},x\n", encoding="utf-8")
    code, _, err = call(*asked[:-2], folder / "bad.csv", "--out", folder / "no.h5ad")
    assert (code, f"line '{one},x'; expected a condition, once" in err) == (2, True)
