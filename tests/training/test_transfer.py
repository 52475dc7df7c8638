"""A fit that starts from a run: what is carried over, by name; what an earlier screen is worth; what is refused."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import scdfm
from scdfm.data import targets
from scdfm.data.simulate import simulate_cell_types
from scdfm.errors import ConfigError, DataError, RunError
from scdfm.training.transfer import SLOWER

OPTIONS = {
    "panel": {"n_genes": 80}, "graph": {"k": 5}, "model": {"width": 16, "heads": 2, "gene_heads": 2, "layers": 1},
    "flow": {"genes_per_step": 24}, "split": {"kind": "none", "validation_fraction": 0.1},
    "training": {"max_steps": 4, "warmup_steps": 1, "validate_every": 2, "conditions_per_batch": 2,
                 "cells_per_condition": 4, "validation_cells": 4, "accelerator": "cpu", "keep": "last", "ema_decay": 0.0},
    "sampling": {"steps": 2, "cells": 20},
}  # fmt: skip
INSTANT = {**OPTIONS, "training": {**OPTIONS["training"], "max_steps": 0}}  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def screens() -> tuple[ad.AnnData, ad.AnnData]:
    """Two draws of one screen of eight targets: all their singles and 60 of 80 genes; three of the singles, all of the
    pairs and 60 genes, of which 40 are those of the first."""
    adata = scdfm.simulate(n_genes=80, n_targets=8, cells_per_condition=40, n_controls=160, seed=4)
    labels = adata.obs["perturbation"].astype(str)
    singles = sorted({name for name in labels if name != "control" and "+" not in name})
    named = set(singles)
    genes = adata.var_names
    shared = [gene for gene in genes if gene in named] + [gene for gene in genes if gene not in named]
    half = np.arange(adata.n_obs) % 2 == 0
    first = adata[half & labels.isin([*singles, "control"]).to_numpy(), shared[:60]].copy()
    kept = [name for name in set(labels) if name in singles[:3] or "+" in name or name == "control"]
    second = adata[~half & labels.isin(kept).to_numpy(), shared[:40] + shared[60:]].copy()
    return first, second


@pytest.fixture(scope="module")
def parent(screens, tmp_path_factory) -> scdfm.Run:
    config = scdfm.Config().updated(OPTIONS)
    out = tmp_path_factory.mktemp("parent") / "run"
    return scdfm.fit(scdfm.read_cells(screens[0]), config=config, out=out, progress=False)


def split_of(cells: scdfm.CellTable) -> scdfm.Split:
    """Three singles train; every pair is the test."""
    names = [name for name in cells.conditions if name != "control"]
    pairs = tuple(name for name in names if "+" in name)
    return scdfm.Split("named", 0, tuple(name for name in names if name not in pairs), (), pairs)


def error(run: scdfm.Run, cells: scdfm.CellTable, names: tuple[str, ...]) -> float:
    """Mean squared distance of the prior's expected shifts from measured ones."""
    columns = cells.columns(run.genes)
    real = cells.means(names).to_numpy()[:, columns] - cells.mean("control")[columns]
    return float(((run.knowing(names).predict(names) - real) ** 2).sum(1).mean())


def test_the_prior_learns_from_both_screens(parent, screens, tmp_path) -> None:
    """Pairs of targets that only the earlier screen perturbed alone are expected better, and the manifest tells why."""
    cells = scdfm.read_cells(screens[1])
    split, config = split_of(cells), scdfm.Config().updated(INSTANT)
    fresh = scdfm.fit(cells, split, config, out=tmp_path / "fresh", progress=False)
    both = scdfm.fit(cells, split, config, out=tmp_path / "both", progress=False, start_from=parent)
    again = scdfm.fit(cells, split, config, out=tmp_path / "both", progress=False, start_from=parent, resume=True)
    assert again.manifest == both.manifest
    assert both.genes == fresh.genes
    assert error(both, cells, split.test) < 0.85 * error(fresh, cells, split.test)
    (said,) = both.manifest.lineage
    assert (said.path, said.n_genes) == (str(parent.path), 40)
    assert said.worth > 0
    assert said.error < said.fresh_error
    assert both.manifest.targets == parent.manifest.targets
    new = sorted(set(parent.manifest.targets) - set(fresh.manifest.targets))[0]
    assert not fresh.knows(new)
    told = both.predict([new], n_cells=4).uns["scdfm"]["extrapolated_because"]
    assert f"'{new}' was perturbed in an earlier screen alone, that of {parent.path}" in told[0]


def test_an_earlier_screen_of_other_effects_takes_no_part(screens, tmp_path) -> None:
    """Its labels are exchanged: left-out conditions are expected worse with it, and the prior is that of a fresh fit."""
    first = screens[0].copy()
    labels = first.obs["perturbation"].astype(str)
    names = sorted(set(labels) - {"control"})
    first.obs["perturbation"] = labels.replace(dict(zip(names, [*names[4:], *names[:4]], strict=True)))
    X = first.X.toarray()
    moved = (labels != "control").to_numpy()
    X[moved] = X[moved][:, ::-1]
    first.X = X
    config = scdfm.Config().updated(INSTANT)
    other = scdfm.fit(scdfm.read_cells(first), config=config, out=tmp_path / "other", progress=False)
    cells = scdfm.read_cells(screens[1])
    split = split_of(cells)
    fresh = scdfm.fit(cells, split, config, out=tmp_path / "fresh", progress=False)
    both = scdfm.fit(cells, split, config, out=tmp_path / "both", progress=False, start_from=other)
    assert both.manifest.lineage[0].worth == 0
    np.testing.assert_array_equal(both.prior.dual, fresh.prior.dual)


def test_an_earlier_screen_that_validation_speaks_against_takes_no_part(screens, tmp_path) -> None:
    """It is right on what the new screen trains and wrong on all else: only validation conditions can tell."""
    first = screens[0].copy()
    cells = scdfm.read_cells(screens[1])
    split = split_of(cells)
    wrong = ~first.obs["perturbation"].isin([*split.train, "control"]).to_numpy()
    X = first.X.toarray()
    X[wrong] = X[wrong][:, ::-1]
    first.X = X
    config = scdfm.Config().updated(INSTANT)
    other = scdfm.fit(scdfm.read_cells(first), config=config, out=tmp_path / "other", progress=False)
    judged = split.test[::2]
    validated = scdfm.Split("named", 0, split.train, judged, tuple(sorted(set(split.test) - set(judged))))
    worth = {
        name: scdfm.fit(cells, one, config, out=tmp_path / name, progress=False, start_from=other).manifest.lineage[0].worth
        for name, one in (("unseen", split), ("validated", validated))
    }  # fmt: skip
    assert worth["validated"] == 0 < worth["unseen"]


def test_weights_are_carried_by_name(parent, screens, tmp_path) -> None:
    """Tokens of both have the run's rows; a gene it does not know starts at the mean of its known neighbours."""
    cells = scdfm.read_cells(screens[1])
    still = {"learning_rate": 1e-12, "min_learning_rate": 1e-12, "weight_decay": 0.0, "max_steps": 1, "warmup_steps": 0}
    config = scdfm.Config().updated(OPTIONS).updated({"training": still})
    run = scdfm.fit(cells, split_of(cells), config, out=tmp_path / "run", progress=False, start_from=parent)
    before, after = (one.field.state_dict() for one in (parent, run))
    for name, value in after.items():
        if name != "gene_encoder.table.weight":
            torch.testing.assert_close(value, before[name], rtol=0, atol=1e-9)
    old, new = before["gene_encoder.table.weight"], after["gene_encoder.table.weight"]
    known = [name for name in run.vocabulary.tokens if name in parent.vocabulary]
    assert len(known) == 4 + 40
    rows = [run.vocabulary.index(name) for name in known]
    torch.testing.assert_close(new[rows], old[[parent.vocabulary.index(name) for name in known]], rtol=0, atol=1e-9)
    graph = run.field.gene_encoder.graph
    checked = 0
    for at, name in enumerate(run.vocabulary.tokens):
        near = [row for row in rows if graph[at, row]]
        if at not in rows and near:
            torch.testing.assert_close(new[at], new[near].mean(0), rtol=1e-5, atol=1e-6, msg=name)
            checked += 1
    assert checked > 5


def test_a_run_is_trained_for_longer_on_its_own_screen(call, parent, screens, tmp_path) -> None:
    """By the command: its options, a smaller learning rate, its weights; a chain of three in the manifest."""
    screens[0].write_h5ad(tmp_path / "s.h5ad")
    code, said, err = call("fit", tmp_path / "s.h5ad", "--from", parent.path, "--out", tmp_path / "a", "--quiet")
    assert code == 0, err
    run = scdfm.Run.load(tmp_path / "a")
    assert run.config.model == parent.config.model
    assert run.config.training.learning_rate == pytest.approx(SLOWER * parent.config.training.learning_rate)
    assert run.config.training.learning_rate < parent.config.training.learning_rate
    assert run.manifest.lineage[0].worth is None  # its own means count once
    np.testing.assert_array_equal(run.prior.dual, parent.prior.dual)
    assert "take no part" not in said
    code, _, err = call(
        "fit", tmp_path / "s.h5ad", "--from", tmp_path / "a", "--out", tmp_path / "b", "--max-steps", 0, "--quiet"
    )
    assert code == 0, err
    last = scdfm.Run.load(tmp_path / "b")
    assert [Path(one.path).name for one in last.manifest.lineage] == ["a", "run"]
    assert [one.weights for one in last.manifest.lineage] == [
        one.manifest.digests["weights.safetensors"] for one in (run, parent)
    ]
    code, _, err = call("fit", tmp_path / "s.h5ad", "--from", parent.path, "--preset", "tiny", "--out", tmp_path / "c")
    assert (code, "both give the options" in err) == (2, True)
    longer = run.config.updated({"training": {"max_steps": 9}})
    cells = scdfm.read_cells(tmp_path / "s.h5ad")
    with pytest.raises(RunError, match=rf"a finished run is trained for longer by --from {tmp_path / 'a'}"):
        scdfm.fit(cells, config=longer, out=tmp_path / "a", resume=True, progress=False, start_from=parent)


def test_values_of_covariates_are_carried_by_name(tmp_path) -> None:
    adata = simulate_cell_types(n_genes=40, n_targets=4, n_types=3, cells_per_condition=12, n_controls=30, seed=3)
    kinds = adata.obs["cell_type"].astype(str)
    first = scdfm.read_cells(adata[(kinds != "type2").to_numpy()].copy(), covariates=["cell_type"])
    config = scdfm.Config().updated({**OPTIONS, "panel": {"n_genes": 40}})
    parent = scdfm.fit(first, config=config, out=tmp_path / "a", progress=False)
    second = scdfm.read_cells(adata[(kinds != "type1").to_numpy()].copy(), covariates=["cell_type"])
    run = scdfm.fit(
        second, config=config.updated({"training": {"learning_rate": 1e-12, "min_learning_rate": 1e-12, "max_steps": 1,
        "weight_decay": 0.0, "warmup_steps": 0}}), out=tmp_path / "b", progress=False, start_from=parent,
    )  # fmt: skip
    old, new = (one.field.conditioning.covariates.weight.detach() for one in (parent, run))
    assert run.manifest.conditions.covariates["cell_type"] == ("type2", "type3")
    torch.testing.assert_close(new[1], old[1], rtol=0, atol=1e-9)
    torch.testing.assert_close(new[0], old[1], rtol=0, atol=1e-9)  # the mean of those known here
    assert run.manifest.lineage[0].worth is not None


def test_what_a_run_cannot_be_carried_to_is_refused(parent, screens, tmp_path) -> None:
    second = screens[1]

    def refused(kind, words, adata=second, options=None, **reading) -> None:
        cells = scdfm.read_cells(adata, **reading)
        config = None if options is None else scdfm.Config().updated(OPTIONS).updated(options)
        with pytest.raises(kind, match=words):
            scdfm.fit(cells, split_of(cells), config, out=tmp_path / "no", progress=False, start_from=parent)
        assert not (tmp_path / "no").exists()

    renamed = second.copy()
    renamed.var_names = [f"other{place}" for place in range(second.n_vars)]
    refused(DataError, r"none of the run's 60 genes is measured here .*--gene-column", renamed)
    refused(DataError, "the run was fitted at log1p values of no declared total, these cells are log1p of counts per 500",
            second, layer="counts", target_sum=500)  # fmt: skip
    lined = second.copy()
    lined.obs["line"] = "x"
    refused(DataError, r"the run has the covariates none, these cells line; .*--covariates", lined, covariates=["line"])
    drugs = second.copy()
    drugs.obs["perturbation"] = [
        "control" if name == "control" else "+".join(f"drug{one}" for one in targets(name))
        for name in second.obs["perturbation"].astype(str)
    ]
    refused(DataError, "none of the 8 targets of these cells .*another kind of perturbation", drugs)
    refused(ConfigError, r"model.width is 32, but the run was fitted with 16", options={"model": {"width": 32}})


def test_a_run_is_overwritten_only_where_it_is_asked_and_by_what_can_be_fitted(screens, tmp_path) -> None:
    cells, out = scdfm.read_cells(screens[0]), tmp_path / "run"
    config = scdfm.Config().updated(INSTANT)
    first = scdfm.fit(cells, config=config, out=out, progress=False)
    with pytest.raises(DataError, match="is not empty"):
        scdfm.fit(cells, config=config, out=out, progress=False)
    impossible = config.updated({"panel": {"include": ("nowhere",)}})
    with pytest.raises(DataError, match="nowhere"):
        scdfm.fit(cells, config=impossible, out=out, progress=False, overwrite=True)
    assert scdfm.Run.load(out).manifest == first.manifest  # still there
    with pytest.raises(ConfigError, match="--resume and --overwrite contradict each other"):
        scdfm.fit(cells, config=config, out=out, progress=False, overwrite=True, resume=True)
    with pytest.raises(ConfigError, match="is the run to start from and cannot be overwritten"):
        scdfm.fit(cells, config=config, out=out, progress=False, overwrite=True, start_from=out)
    second = scdfm.fit(cells, config=config.updated({"seed": 1}), out=out, progress=False, overwrite=True)
    assert second.manifest.seed == 1
    with pytest.raises(RunError, match="is another file than when this run was loaded"):
        first.predict([first.split.train[0]], n_cells=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("thesis", encoding="utf-8")
    with pytest.raises(DataError, match=r"--overwrite replaces a folder of the same kind alone, with manifest.json"):
        scdfm.fit(cells, config=config, out=tmp_path / "mine", progress=False, overwrite=True)
    assert (tmp_path / "mine" / "notes.txt").is_file()
