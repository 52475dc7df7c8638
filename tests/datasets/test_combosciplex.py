"""Copies of ComboSciPlex give one table, of counts at their median total, and the published split."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from scdfm.data import CONTROL
from scdfm.datasets import combosciplex, combosciplex_split
from scdfm.datasets.generated import generated_combosciplex
from scdfm.datasets.screens import drug_label
from scdfm.errors import ConditionError, DataError


@pytest.fixture(scope="module")
def published() -> ad.AnnData:
    return generated_combosciplex()


def test_counts_are_brought_to_their_median_total(published: ad.AnnData, tmp_path: Path) -> None:
    published.write_h5ad(tmp_path / "combosciplex.h5ad")
    table = combosciplex(tmp_path / "combosciplex.h5ad")
    totals = np.asarray(published.layers["counts"].sum(axis=1)).ravel()
    assert table.scale.target_sum == np.median(totals)
    factor = np.median(totals) / totals[:, None]
    expected = np.log1p(published.layers["counts"].toarray() * factor)
    np.testing.assert_allclose(table.X.toarray(), expected, rtol=1e-5)
    assert table.n_cells(CONTROL) == (published.obs["condition"] == "control+control").sum()
    assert {"Panobinostat", "Alvespimycin+SRT2104", "Crizotinib+Panobinostat"} < set(table.conditions)


def test_drug_columns_other_controls_and_counts_in_x_are_read(published: ad.AnnData) -> None:
    table = combosciplex(published)
    drugs = published.copy()
    del drugs.obs["condition"]
    drugs.obs["Drug1"] = ["DMSO" if drug == "control" else drug for drug in drugs.obs["Drug1"]]
    drugs.X = drugs.layers["counts"].copy()
    del drugs.layers["counts"]
    read = combosciplex(drugs)
    assert read.conditions == table.conditions
    assert (read.X != table.X).nnz == 0


def test_without_counts_it_is_refused(published: ad.AnnData) -> None:
    shipped = published.copy()
    del shipped.layers["counts"]
    with pytest.raises(DataError, match="no layer 'counts' and X holds no counts; the published scale is counts"):
        combosciplex(shipped)


def test_the_published_split(published: ad.AnnData) -> None:
    table = combosciplex(published)
    split = combosciplex_split(table, validation_fraction=0.0)
    assert set(split.test) == {
        "Crizotinib+Panobinostat", "Curcumin+Panobinostat", "Panobinostat+SRT1720", "Panobinostat+Sorafenib",
        "Alvespimycin+SRT2104", "Alvespimycin", "Dacinostat",
    }  # fmt: skip
    assert set(split.train) == set(table.conditions) - set(split.test) - {CONTROL}
    drugs = [f"D{i}" for i in range(8)]
    pairs = [f"{a}+{b}" for place, a in enumerate(drugs) for b in drugs[place + 1 :]]
    assert len(combosciplex_split([*split.test, *drugs, *pairs]).validation) == 5  # as every split of a small screen
    with pytest.raises(ConditionError, match="combosciplex split: test condition 'Alvespimycin' is not measured"):
        combosciplex_split([name for name in table.conditions if name != "Alvespimycin"])


def test_labels() -> None:
    assert [drug_label(label) for label in ("control+control", "DMSO", "A+control", "control+A", "B+A")] == [
        "control", "control", "control+A", "control+A", "B+A",
    ]  # fmt: skip
