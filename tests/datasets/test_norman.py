"""Every known copy of the Norman screen gives one table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scdfm.data import CONTROL, CellTable, additive_split, canonical
from scdfm.datasets import norman
from scdfm.datasets.generated import generated_norman
from scdfm.datasets.screens import gene_label
from scdfm.errors import ConditionError, DataError


@pytest.fixture(scope="module")
def published() -> ad.AnnData:
    return generated_norman()


@pytest.fixture(scope="module")
def table(published: ad.AnnData) -> CellTable:
    return norman(published)


def members(label: str) -> list[str]:
    return [name for name in label.split("+") if name != "ctrl"]


def relabelled(adata: ad.AnnData, column: str, spell: Callable[[list[str]], str]) -> ad.AnnData:
    """The screen with its conditions in another column and spelling, and no other column."""
    labels = adata.obs["condition"].astype(str)
    copy = adata.copy()
    copy.obs = pd.DataFrame({column: [spell(members(label)) for label in labels]}, index=adata.obs_names)
    return copy


def guides(names: list[str]) -> str:
    first = "_".join([*names, "NegCtrl0", "NegCtrl10"][:2])
    return f"{first}__{first}"


COPIES = {
    "GEARS": ("condition", lambda names: "+".join([*names, "ctrl"][:2]) if names else "ctrl"),
    "GEARS, control first": ("condition", lambda names: "+".join(["ctrl", *names][-2:]) if names else "ctrl"),
    "underscores": ("perturbation", lambda names: "_".join([*names, "ctrl"][:2]) if names else "ctrl"),
    "scPerturb": ("perturbation", lambda names: "_".join(names) or "control"),
    "pertpy": ("perturbation_name", lambda names: "+".join(names) or "control"),
    "guide identities": ("guide_identity", guides),
    "guide ids": ("guide_ids", lambda names: ",".join(names)),
}


@pytest.mark.parametrize("copy", COPIES)
def test_each_spelling_gives_the_same_table_and_the_published_split(
    published: ad.AnnData, table: CellTable, copy: str, tmp_path: Path
) -> None:
    relabelled(published, *COPIES[copy]).write_h5ad(tmp_path / "copy.h5ad")
    read = norman(tmp_path / "copy.h5ad")
    assert read.conditions == table.conditions
    np.testing.assert_array_equal(read.codes, table.codes)
    assert (read.X != table.X).nnz == 0
    assert additive_split(read, fold=2).digest == additive_split(table, fold=2).digest


def test_conditions_are_canonical_and_remember_the_order_of_the_file(published: ad.AnnData, table: CellTable) -> None:
    labels = set(published.obs["condition"])
    assert set(table.conditions) == {canonical(label) for label in labels}
    assert set(table.spelling.values()) == labels
    assert any(table.spelling[name] != name for name in table.conditions if "+" in name)
    assert table.n_cells(CONTROL) == (published.obs["control"] == 1).sum()
    assert (table.scale.declared, table.scale.target_sum) == ("log1p", None)


def test_a_copy_of_counts_is_normalised_to_ten_thousand(published: ad.AnnData) -> None:
    counts = relabelled(published, *COPIES["scPerturb"])
    counts.X = counts.X.expm1().rint()
    table = norman(counts)
    assert table.scale.target_sum == 1e4
    np.testing.assert_allclose(np.expm1(table.X.toarray()).sum(axis=1), 1e4, rtol=1e-4)


def test_ensembl_ids_give_way_to_symbols(published: ad.AnnData, table: CellTable) -> None:
    coded = published.copy()
    coded.var_names = [f"ENSG{number:011d}" for number in range(coded.n_vars)]
    assert norman(coded).genes.tolist() == table.genes.tolist()
    coded.var = coded.var.drop(columns="gene_name")
    with pytest.raises(DataError, match="named by Ensembl ids and var has no column of symbols"):
        norman(coded)


@pytest.mark.parametrize("fold", range(5))
def test_the_37_test_doubles_of_each_fold_are_those_of_the_published_algorithm(shared: Path, fold: int) -> None:
    """Norman's 125 doubles, spelled `A_B`: seed 42 + fold, shuffle the sorted names, the first 30% are tested."""
    listed = pd.read_csv(shared / "data" / "norman_double_regression.csv")["name"]
    doubles = [gene_label(name) for name in listed]
    assert len(doubles) == 125
    shuffled = np.array(sorted(doubles))
    np.random.RandomState(42 + fold).shuffle(shuffled)
    split = additive_split(doubles, fold, validation_fraction=0.0)
    assert set(split.test) == {canonical(str(name)) for name in shuffled[:37]}
    assert len(split.train) == 88


@pytest.mark.parametrize(
    ("label", "plus"),
    [
        ("ctrl", "ctrl"), ("control", "ctrl"), ("NegCtrl0_NegCtrl11__NegCtrl0_NegCtrl11", "ctrl"), ("", "ctrl"),
        ("AHR+ctrl", "AHR+ctrl"), ("ctrl+AHR", "AHR+ctrl"), ("AHR_ctrl", "AHR+ctrl"), ("AHR", "AHR+ctrl"),
        ("NegCtrl0_AHR__NegCtrl0_AHR", "AHR+ctrl"), ("FEV_AHR", "FEV+AHR"), ("FEV+AHR", "FEV+AHR"),
        ("FEV_AHR__FEV_AHR", "FEV+AHR"), ("FEV,AHR", "FEV+AHR"),
    ],
)  # fmt: skip
def test_labels(label: str, plus: str) -> None:
    assert gene_label(label) == plus


def test_what_is_no_norman_screen_is_told_in_one_line(published: ad.AnnData, tmp_path: Path) -> None:
    with pytest.raises(ConditionError, match=r"'A_B_C': expected at most two genes"):
        gene_label("A_B_C")
    with pytest.raises(ConditionError, match=r"'\*': expected at most two genes"):
        gene_label("*")
    with pytest.raises(DataError, match="obs has none of the condition columns condition, .*: use read_cells"):
        norman(relabelled(published, "target", lambda names: "+".join(names)))
    wrong = published.copy()
    wrong.obs.loc[wrong.obs_names[0], "control"] = 0
    with pytest.raises(DataError, match=r"1 cells disagree on being control \(first: 'cell0', condition 'ctrl'"):
        norman(wrong)
    empty = published.copy()
    empty.obs["condition"] = empty.obs["condition"].cat.set_categories(empty.obs["condition"].cat.categories[1:])
    with pytest.raises(DataError, match="cells have no label in obs column 'condition'"):
        norman(empty)
    with pytest.raises(DataError, match="does not exist"):
        norman(tmp_path / "nothing.h5ad")
