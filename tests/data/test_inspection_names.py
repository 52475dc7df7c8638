"""What `inspect` decides about the names of a file, and that the line it proposes reads it so."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scdfm.data.inspection import Inspection, inspect
from scdfm.data.inspection.labels import patterns, separator

GENES = ("AHR", "FEV", "HLA-A", "KLF1", "NT5E", "TP53", "STAT1", "GATA1")


def screen(labels: Sequence[object], n: int = 40, var: pd.DataFrame | None = None, key: str = "perturbation",
           **columns: Sequence[object]) -> ad.AnnData:  # fmt: skip
    """`n` cells of each label in counts, further columns with one value per label."""
    obs = pd.DataFrame(
        {name: np.repeat(np.array(values, dtype=object), n) for name, values in {key: labels, **columns}.items()}
    )
    obs.index = obs.index.astype(str)
    var = pd.DataFrame(index=list(GENES)) if var is None else var
    x = np.random.default_rng(0).poisson(3.0, (len(obs), len(var))).astype(np.float32)
    return ad.AnnData(sp.csr_matrix(x), obs=obs, var=var)


def options(found: Inspection) -> str:
    """What the line holds of names, between the file and its split."""
    assert found.command is not None, found.pitfalls
    words = list(found.command[7:])
    pairs = [(one, two) for one, two in zip(words[::2], words[1::2], strict=True)]
    kept = [
        pair
        for pair in pairs
        if pair[0] not in ("--split", "--set", "--target-sum", "--layer", "--min-cells", "--values")
    ]
    return " ".join(word for pair in kept for word in pair)


def said(found: Inspection, words: str) -> str:
    """The only decision that holds `words`."""
    (one,) = [text for text in found.decisions if words in text]
    return one


@pytest.mark.parametrize(
    ("labels", "expected", "targets"),
    [
        (["NT-1", "NT-2", "AHR", "FEV"], "--control NT-1 --control NT-2", {1: 2}),
        ([*(f"non-targeting_{i:05d}" for i in range(5)), "AHR", "FEV"], "--control non-targeting_*", {1: 2}),
        (["NT-1", "NT-2", "NT-3", "NT-4", "NT5E", "AHR"], "--control NT-*", {1: 2}),
        (["control", *(f"INTERGENIC{i}" for i in range(4)), "AHR", "FEV"],
         "--control INTERGENIC* --control control", {1: 2}),
        (["NegCtrl0+NegCtrl0", "AHR+NegCtrl0", "FEV+NegCtrl1", "AHR+FEV"],
         "--control NegCtrl0 --control NegCtrl1", {1: 2, 2: 1}),
        (["Negative", "NT", "AHR", "FEV"], "--control NT --exclude Negative", {1: 2}),
        (["None", "non-targeting", "AHR", "FEV"], "--control non-targeting --exclude None", {1: 2}),
        (["control", "nan", "multiple", "AHR", "FEV"], "--exclude nan --exclude multiple", {1: 2}),
        (["control", None, "AHR", "FEV"], "--exclude nan", {1: 2}),
        (["control", "AHR|FEV", "AHR", "HLA-A"], "--separator |", {1: 2, 2: 1}),
        (["ctrl", "AHR__ctrl", "ctrl__FEV", "AHR__FEV"], "--separator __", {1: 2, 2: 1}),
        (["control", "AHR_FEV", "AHR", "FEV"], "--separator _", {1: 2, 2: 1}),
        (["control", "AHR;FEV", "AHR", "FEV"], "--separator ;", {1: 2, 2: 1}),
        (["control", "AHR_sg1", "AHR_sg2", "FEV_sg1", "AHR_sg1_FEV_sg2"], "--separator _ --guides GENE_sg*", {1: 2, 2: 1}),
        (["NT_1", "AHR_1", "NT_2_FEV_1", "AHR_1_FEV_2"], "--control NT_1 --control NT --separator _ --guides GENE_*",
         {1: 2, 2: 1}),
        (["control", "AHR_sg1", "AHR_sg2", "HLA-A_sg1"], "--guides GENE_sg*", {1: 2}),
        (["NTg1", "NTg2", "STAT1g1", "STAT1g2", "AHRg1"], "--control NTg1 --control NTg2 --guides GENEg*", {1: 2}),
        (["sgNT-1", "sgAHR-1", "sgAHR-2", "sgHLA-A-1"], "--control sgNT-1 --guides sgGENE-*", {1: 2}),
        (["NT_1", "AHR_1", "AHR_2", "FEV_1"], "--control NT_1 --guides GENE_*", {1: 2}),
    ],
)  # fmt: skip
def test_labels_are_read_as_they_are_meant(labels: list[str], expected: str, targets: dict[int, int]) -> None:
    found = inspect(screen(labels))
    assert options(found) == expected
    assert found.targets == targets


def test_each_decision_is_said_in_one_sentence() -> None:
    found = inspect(screen(["NT-1", "NT-2", "unassigned", "AHR_sg1|FEV_sg2", "AHR_sg2", "FEV_sg1"]))
    assert options(found) == "--control NT-1 --control NT-2 --exclude unassigned --separator | --guides GENE_sg*"
    assert "80 labelled 'NT-1', 'NT-2'" in said(found, "control cells are")
    assert "40 cells labelled 'unassigned'" in said(found, "left out by --exclude")
    assert "1 labels look like combinations joined by '|' (first: 'AHR_sg1|FEV_sg2')" in said(found, "combinations")
    assert "3 of them are pooled to 2 genes" in said(found, "guides")
    assert found.n_controls == 80
    assert found.targets == {1: 2, 2: 1}


@pytest.mark.parametrize("name", ["gene_name", "feature_name", "gene_symbols", "gene_short_name", "symbol", "odd"])
@pytest.mark.parametrize("index", ["ENSG{:011d}", "ENSG{:011d}.4", "{}"])
def test_the_column_that_targets_are_spelled_in(name: str, index: str) -> None:
    var = pd.DataFrame({"chromosome": "1", name: GENES, "start": 1}, index=[index.format(i) for i in range(len(GENES))])
    found = inspect(screen(["control", "AHR", "FEV", "KLF1"], var=var))
    assert options(found) == f"--gene-column {name}"
    assert not found.drugs
    assert f"var['{name}'], where 3 of 3 targets are found, and not by the index, where 0 are" in said(found, "genes")


def test_targets_of_the_index_need_no_column() -> None:
    ids = [f"ENSG{i:011d}" for i in range(len(GENES))]
    found = inspect(screen(["control", *ids[:3]], var=pd.DataFrame({"gene_name": GENES}, index=ids)))
    assert options(found) == ""
    assert not found.decisions


def test_old_names_of_genes_are_told() -> None:
    var = pd.DataFrame({"alias": ["AH1|AH2", *["x"] * 7]}, index=list(GENES))
    found = inspect(screen(["control", "AH2", "FEV", "KLF1", "OLD"], var=var, gene_id=["c", "e", "f", "k", "STAT1"]))
    (told,) = [text for text in found.pitfalls if "by another name" in text]
    assert "AH2 is AHR, OLD is STAT1" in told


def test_features_that_are_no_genes_are_told() -> None:
    var = pd.DataFrame({"feature_types": ["Gene Expression"] * 7 + ["Antibody Capture"]}, index=list(GENES))
    assert "1 features are left out" in said(inspect(screen(["control", "AHR", "FEV"], var=var)), "Antibody Capture")


def test_the_column_that_says_most_is_the_perturbation() -> None:
    finer = inspect(screen(["PBS", "IFN-gamma", "IL-4"], key="cytokine", treatment=["PBS", "cytokine", "cytokine"]))
    assert finer.perturbation is not None
    assert finer.perturbation.column == "cytokine"
    assert "not obs['treatment'] (1 labels" in said(finer, "says most")
    genes = screen(["NTC", "AHR", "FEV"] * 2, key="gene_target", condition=["Control"] * 3 + ["IFNg"] * 3)
    found = inspect(genes)
    assert options(found) == "--perturbation-key gene_target --control NTC --covariates condition"
    assert found.n_conditions == 4
    guides = inspect(screen(["NT", "NT", "AHR", "FEV"], guide=["NT_1", "NT_2", "AHR_1", "FEV_2"]))
    assert options(guides) == "--control NT"


def test_two_columns_that_name_a_combination_are_joined() -> None:
    first = ["DMSO", "a", "b", "c", "d", "a", "a", "b", "b"]
    second = ["DMSO", "DMSO", "None", "None", "DMSO", "b", "c", "c", "d"]
    found = inspect(screen(first, key="Drug1", Drug2=second))
    assert options(found) == "--perturbation-key Drug1+Drug2 --control DMSO --control None"
    assert found.targets == {1: 4, 2: 4}
    named = ["DMSO", "a", "b", "c", "d", "a+b", "a+c", "b+c", "b+d"]
    assert options(inspect(screen(first, key="Drug1", Drug2=second, condition=named))) == (
        "--perturbation-key condition --control DMSO"
    )


def test_signs_within_genes_join_nothing() -> None:
    assert separator(["HLA-A", "AHR-FEV", "AHR"], GENES) is None
    assert separator(["AHR_FEV", "AHR_OLD1", "KLF1_FEV", "FEV_AHR", "KLF1_AHR", "GATA1_FEV"], GENES) == "_"
    assert separator(["drug_a", "drug_b"], GENES) is None


def test_patterns_take_no_other_label() -> None:
    assert patterns(["NT-1", "NT-2"], ["AHR"]) == ("NT-1", "NT-2")
    assert patterns(["NT1", "NT2", "NT3", "NT4"], ["AHR", "NT5E"]) == ("NT1", "NT2", "NT3", "NT4")
    assert patterns(["NT-1", "NT-2", "NT-3", "ctrl"], ["AHR", "NT5E"]) == ("NT-*", "ctrl")


def test_a_plus_that_joins_nothing() -> None:
    labels = ["DMSO", "Na+/K+-ATPase inhibitor", "Ca2+", "Digoxin", "Ouabain"]
    found = inspect(screen([*labels, *labels], key="drug", cell_line=["a"] * 5 + ["b"] * 5))
    assert options(found).startswith("--perturbation-key drug --control DMSO --separator none")
    assert "'Na+/K+-ATPase inhibitor'" in said(found, "no label joins targets")
    assert found.targets == {1: 8}


def test_ids_with_versions() -> None:
    ids = [f"ENSG{place:011d}" for place in range(8)]
    var = pd.DataFrame(index=[f"{name}.{place}" for place, name in enumerate(ids)])
    found = inspect(screen(["control", *ids[:6]], var=var))
    assert options(found) == "--gene-versions drop"
    assert "6 of 6 targets are genes of this file but for the version" in said(found, "version")
    assert not found.drugs


def test_labels_that_list_drugs_and_amounts() -> None:
    """They say more than a column of drugs alone, unless the amounts have a column too."""
    drugs = [
        ("DMSO_TF", 0.0),
        *((drug, dose) for drug in ("(+)-JQ1", "Bleomycin (sulfate)") for dose in (50.0, 500.0, 5e3)),
    ]
    lists = [f"[('{drug}', {dose}, 'nM')]" for drug, dose in drugs]
    names = [drug for drug, _ in drugs]
    found = inspect(screen(lists, drug=names, drugname_drugconc=lists, key="label2"))
    assert options(found).startswith("--perturbation-key")
    assert found.perturbation is not None
    assert found.perturbation.value == "DMSO_TF"
    assert found.n_conditions == 6
    assert "read as '(+)-JQ1@0.05'" in said(found, "list drugs and amounts")
    apart = inspect(screen(names, key="drug", drugname_drugconc=lists, dose=[dose for _, dose in drugs]))
    assert apart.perturbation is not None
    assert (apart.perturbation.column, apart.n_conditions) == ("drug", 6)
