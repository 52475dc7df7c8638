"""What `inspect` says of a file: columns, scale, sizes, pitfalls, and the line it proposes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scdfm.data import simulate, simulate_cell_types, simulate_doses, simulate_drugs
from scdfm.data.inspection import Inspection, inspect
from scdfm.data.inspection.columns import control_label, decides
from scdfm.data.inspection.inspection import text
from scdfm.errors import DataError

SMALL = {"n_genes": 25, "cells_per_condition": 40, "n_controls": 120, "truth_cells": 2}


def screen(labels: Sequence[str], n: int = 40, genes: Sequence[str] = ("A", "B", "C"), **columns: object) -> ad.AnnData:
    """`n` cells of each label, log1p values, further columns with one value per label or per cell."""
    obs = pd.DataFrame({"perturbation": np.repeat(labels, n)})
    for name, values in columns.items():
        obs[name] = np.repeat(values, n) if len(values) == len(labels) else values  # type: ignore[arg-type,call-overload]
    obs.index = obs.index.astype(str)
    x = np.log1p(np.random.default_rng(0).poisson(2.0, (len(obs), len(genes))) * 1.5).astype(np.float32)
    return ad.AnnData(sp.csr_matrix(x), obs=obs, var=pd.DataFrame(index=list(genes)))


def one(found: Inspection, words: str) -> str:
    """The only pitfall that holds `words`."""
    fits = [pitfall for pitfall in found.pitfalls if words in pitfall]
    assert len(fits) == 1, found.pitfalls
    return fits[0]


def test_combinations() -> None:
    found = inspect(simulate(**SMALL, n_targets=6, n_doubles=9, n_triples=2))
    assert found.perturbation is not None
    assert (found.perturbation.column, found.perturbation.value) == ("perturbation", "control")
    assert (found.n_conditions, found.targets) == (17, {1: 6, 2: 9, 3: 2})
    assert (found.n_controls, found.cells_per_condition) == (120, (40, 40.0))
    assert found.matrix is not None
    assert (found.matrix.layer, found.matrix.kind) == (None, "log1p")
    assert "every cell adds up to 1e+04" in found.matrix.evidence
    assert not found.pitfalls
    assert found.command == ("scdfm", "fit", "DATA.h5ad", "--out", "run", "--preset", "instant", "--split", "additive")


def test_counts_in_a_layer_are_found_where_x_is_scaled() -> None:
    adata = simulate(**SMALL, n_targets=4, n_doubles=5)
    adata.X = (adata.X.toarray() - 1).astype(np.float32)
    adata.layers["weights"] = sp.csr_matrix(adata.shape)
    found = inspect(adata)
    assert {matrix.name: matrix.kind for matrix in found.matrices} == {
        "X": "scaled", "layer 'counts'": "counts", "layer 'weights'": "empty",
    }  # fmt: skip
    assert found.line is not None
    assert "--layer counts --target-sum 10000" in found.line
    del adata.layers["counts"], adata.layers["weights"]
    one(refused := inspect(adata), "no matrix holds counts or anything that log1p values can be made of")
    assert refused.command is None
    adata.X = np.expm1(adata.X + 1) * 10
    assert inspect(adata).matrices[0].kind == "normalised"
    adata.X[0, 0] = np.nan
    assert inspect(adata).matrices[0].kind == "unreadable"


def test_doses_of_drugs() -> None:
    found = inspect(simulate_doses(**SMALL, n_drugs=3, n_doses=4))
    assert found.perturbation is not None
    assert found.dose is not None
    assert (found.perturbation.column, found.dose.column) == ("drug", "dose")
    assert found.dose.reason == "4 values from 0.01 to 10"
    assert found.n_conditions == 12
    assert found.drugs
    assert found.command is not None
    assert found.command[-1] == 'split.test=["drug1@1", "drug2@1"]'


def test_drugs_without_features_leave_nothing_to_hold_out() -> None:
    found = inspect(simulate_drugs(**SMALL, n_drugs=15))
    assert found.command is None
    assert "--features FILE.csv" in one(found, "nothing can be held out")


def test_smiles_are_proposed_as_features() -> None:
    found = inspect(screen(["DMSO", "e", "p", "m"], SMILES=["", "CCO", "CCCO", "CO"]))
    assert found.smiles is not None
    assert found.command is not None
    assert found.command[-6:] == (
        "--features", "smiles:SMILES", "--split", "holdout", "--set", "split.held_out_targets=1",
    )  # fmt: skip
    assert found.command[7:9] == ("--control", "DMSO")
    mixed = inspect(screen(["DMSO", "e", "p"], n=2, SMILES=["", "", "CCO", "CO", "CCO", "CO"]))
    assert mixed.smiles is None
    assert "do not belong together" in one(mixed, "2 different SMILES for 'e'")
    one(inspect(screen(["DMSO", "e"], SMILES=["", None])), "has no SMILES for 'e'")
    one(inspect(screen(["DMSO", "e"], SMILES=["CCO", " "])), "has no SMILES for 'e'")


def test_cell_types_become_a_covariate_and_what_they_decide_does_not() -> None:
    adata = simulate_cell_types(**SMALL, n_targets=3, n_types=2)
    adata.obs["tissue"] = adata.obs["cell_type"].map({"type1": "blood", "type2": "skin"})
    adata.obs["batch"] = np.where(np.arange(adata.n_obs) % 2, "x", "y")
    found = inspect(adata)
    assert [guess.column for guess in found.covariates] == ["cell_type"]
    assert found.n_conditions == 6
    assert any("obs['tissue'] is decided by 'cell_type'" in note for note in found.notes)
    assert any("obs['batch'] has controls in every value" in note for note in found.notes)
    assert found.command is not None
    assert found.command[7:] == ("--covariates", "cell_type", "--split", "covariate:cell_type")
    alone = inspect(adata[adata.obs["perturbation"].isin(["control", sorted(adata.obs["perturbation"])[0]])].copy())
    assert alone.command is not None
    assert alone.command[-1] == "covariate:cell_type=type1"  # one target: nothing but whole types can be held out


def test_a_group_without_controls_is_named() -> None:
    labels = ["control", "A", "B", "C"]
    found = inspect(screen(labels, cell_type=["x", "x", "y", "x"]))
    assert "1 of 2 values have no control cells (first: 'y')" in one(found, "obs['cell_type']")
    assert not found.covariates


def test_the_control_label_is_found_in_its_usual_spellings() -> None:
    for label in (
        "ctrl",
        "Control",
        "non-targeting",
        "NT",
        "DMSO_",
        "vehicle",
        "Untreated",
        "mock",
        "negative control",
    ):
        expected = None if label == "DMSO_" else label
        assert control_label(["A", label]) == expected
    assert control_label(["NT", "control"]) == "control"
    assert control_label(["NTRK1", "CTRL1", "nothing"]) is None


def test_alternatives_stand_behind_the_likeliest_column() -> None:
    labels = ["ctrl", "A", "B"]
    adata = screen(labels, target=["Vehicle", "x", "x"], n_counts=[1, 2, 3], treatment=["none"] * 3)
    found = inspect(adata)
    assert found.perturbation is not None
    assert found.perturbation.column == "perturbation"
    assert [(other.column, other.value) for other in found.alternatives] == [("target", "Vehicle")]
    assert "--control" not in (found.command or ())  # ctrl and control stand for each other


def test_a_file_without_a_control_label_is_explained() -> None:
    found = inspect(screen(["A", "B"]))
    assert found.perturbation is None
    assert found.command is None
    assert "columns: perturbation" in one(found, "no column of obs has a label of untreated cells")
    assert "no fit line can be proposed" in text(found)


@pytest.mark.parametrize(
    ("labels", "genes", "words"),
    [
        (["control", "HLA-A", "A-B", "A"], ("A", "B", "HLA-A"), "combinations joined by '-' (first: 'A-B')"),
        (["control", "A|x"], ("A",), "1 labels hold '|' (first: 'A|x')"),
        (["control", "A@x"], ("A",), "1 labels hold '@' (first: 'A@x')"),
        (["control", "(+)-A"], ("A",), "'(+)-A': the '+' within brackets"),
        (["control", "A", "A+B"], ("A", "B"), "never perturbed alone: 1 (first: 'B')"),
        (["control", "A", "C5orf1"], ("A", "C5ORF1"), "1 of 2 (first: 'C5orf1'; did you mean 'C5ORF1'?)"),
        (["control", "A+"], ("A",), "the labels cannot be read as they are: condition 'A+'"),
    ],
)
def test_labels_that_may_mean_something_else(labels: list[str], genes: tuple[str, ...], words: str) -> None:
    one(inspect(screen(labels, n=150, genes=genes)), words)


def test_few_cells_are_counted() -> None:
    found = inspect(screen(["control", "A", "B", "C"], n=1))
    one(found, "only 1 control cells")
    one(found, "3 of 3 conditions have fewer than 30 cells (fewest: 1)")
    assert "--set training.min_cells=1" in str(found.line)
    adata = screen(["control", "A", "B", "C", "A+B", "A+C", "B+C", "D"], genes=("A", "B", "C", "D"))
    mostly = inspect(adata[: 7 * 40 + 1].copy())
    assert "--min-cells 2" in str(mostly.line)


def test_repeated_genes_and_huge_files_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = screen(["control", "A", "B", "C"])
    adata.var_names = ["A", "A", "B"]
    found = inspect(adata)
    assert "1 repeats" in one(found, "gene 'A' stands more than once")
    assert found.command is None
    monkeypatch.setattr("scdfm.data.inspection.advice.HUGE_GB", 1e-9)
    one(inspect(adata), "GB as sparse rows")


def test_doses_that_cannot_be_used_are_noted() -> None:
    labels = ["control", "A", "A+B", "A+C", "B+C", "A+D"]
    for doses, words in (
        (["0", "1", "1+1", "1+1", "1+1", "1+1"], "is 1 for every target: not needed"),
        (["0", "low", "high", "low", "low", "low"], "holds texts that are no numbers ('high', 'low')"),
    ):
        found = inspect(screen(labels, dose=doses))
        assert found.dose is None
        assert [note for note in found.notes if words in note]
    found = inspect(screen(labels, dose=["0", "1", "1+2", "1+2", "1+1", "1+1"], timepoint=[0, 6, 6, 24, 24, 24]))
    assert found.dose is not None
    assert found.time is not None
    assert "--dose-key dose --time-key timepoint" in str(found.line)


def test_columns_of_a_split_hold_one_part_for_each_condition() -> None:
    parts = ["train", "train", "test", "train"]
    found = inspect(screen(["control", "A", "B", "C"], n=2, mine=parts, random=["train", "test"] * 4))
    assert found.split_columns == ("mine",)
    assert "--split obs:mine" in text(found)


def test_decides() -> None:
    one, other = pd.Series(["a", "a", "b", "c"]), pd.Series(["x", "x", "y", "y"])
    assert decides(one, other)
    assert not decides(other, one)


def test_the_inspection_is_json() -> None:
    found = inspect(simulate(**SMALL, n_targets=4, n_doubles=5))
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert again["line"] == found.line
    assert again["perturbation"]["column"] == "perturbation"
    assert again["command"] == list(found.command or ())


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        inspect(tmp_path / "gone.h5ad")
    with pytest.raises(DataError, match="0 cells × 2 genes"):
        inspect(ad.AnnData(np.zeros((0, 2), dtype=np.float32)))


def test_files_of_every_kind_of_source_are_read_in_part(shared: Path) -> None:
    kang = inspect(shared / "data" / "kang_pbmc.h5ad")
    assert kang.perturbation is not None
    assert (kang.perturbation.column, kang.perturbation.value) == ("group_id", "ctrl")
    assert [guess.column for guess in kang.covariates] == ["cluster_id"]
    assert kang.matrix is not None
    assert kang.matrix.kind == "counts"
    assert "2 of 4 values have no control cells" in one(kang, "obs['sample_id']")
    mixed = inspect(shared / "data" / "perturbench_devel.h5ad")
    assert mixed.targets == {1: 45, 2: 15}
    assert [guess.column for guess in mixed.covariates] == ["cell_type"]
    drugs = inspect(shared / "data" / "sciplex3.h5ad")
    assert drugs.perturbation is not None
    assert (drugs.perturbation.column, drugs.perturbation.value) == ("product_name", "control")
    one(drugs, "do not belong together")
    one(drugs, "only 3 control cells")
    one(drugs, "'(+)-JQ1': the '+' within brackets")
