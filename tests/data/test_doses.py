"""Doses in different units are one scale, and units that stand beside them are not passed over."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scdfm.data import read_cells
from scdfm.data.doses import number_of, parts_of, units_of
from scdfm.data.inspection import inspect
from scdfm.errors import DataError


def screen(**columns: list[object]) -> ad.AnnData:
    """120 cells of vehicle, then 30 cells of each further value of the columns."""
    obs = pd.DataFrame({name: np.repeat(values, [120, *[30] * (len(values) - 1)]) for name, values in columns.items()})
    obs.index = obs.index.astype(str)
    X = np.random.default_rng(0).poisson(3.0, (len(obs), 12)).astype(np.float32)
    return ad.AnnData(sp.csr_matrix(X), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(12)]))


DRUGS = ["DMSO", "a", "a", "a", "b", "b", "b"]
DOSED = ("control", "a@0.1", "a@1", "a@10", "b@0.1", "b@1", "b@10")
OPTIONS = {"perturbation_key": "drug", "control": "DMSO", "target_sum": 1e4}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("10 nM", "0.01"), ("1e+3 nM", "1"), ("0.1uM", "0.1"), ("5 µM", "5"), ("5 μM", "5"), ("2 mM", "2000"), ("3um", "3"),
        ("10 ng/mL", "0.01"), ("1 mg/L", "1"), ("1 umol/L", "1"), ("5", "5"), ("low", "low"), ("1 m", "1 m"),
    ],
)  # fmt: skip
def test_amounts_become_numbers_in_one_unit(text: str, number: str) -> None:
    assert number_of(text) == number
    assert bool(units_of([text])) == (number != text)


def test_amounts_are_joined_by_plus() -> None:
    assert parts_of("10 nM+1 uM") == ["10 nM", "1 uM"]
    assert parts_of("1e+3 nM") == ["1e+3 nM"]


def test_doses_with_their_units() -> None:
    adata = screen(drug=DRUGS, dose=["0", "100 nM", "1 uM", "0.01 mM", "100 nM", "1 uM", "10 uM"])
    found = inspect(adata)
    assert "--dose-key dose" in str(found.line)
    assert found.dose is not None
    assert found.dose.reason == "3 values from 0.1 to 10 uM; written in mM, nM, uM, read in uM"
    cells = read_cells(adata, dose_key="dose", **OPTIONS)
    assert cells.conditions == DOSED
    assert "doses written in mM, nM, uM are read in uM" in cells.notes


def test_units_in_a_column_of_their_own() -> None:
    adata = screen(drug=DRUGS, dose=[0, 100, 1, 10, 100, 1, 10], dose_unit=["", "nM", *["uM"] * 2, "nM", *["uM"] * 2])
    assert "--dose-key dose --dose-unit-key dose_unit" in str(inspect(adata).line)
    assert read_cells(adata, dose_key="dose", dose_unit_key="dose_unit", **OPTIONS).conditions == DOSED
    with pytest.raises(DataError, match=r"nM, uM in 'dose_unit'.*--dose-unit-key dose_unit"):
        read_cells(adata, dose_key="dose", **OPTIONS)
    adata.obs["dose_unit"] = "nM"  # of one unit the numbers are what they are
    assert "a@100" in read_cells(adata, dose_key="dose", **OPTIONS).conditions


def test_units_that_cannot_be_compared_are_refused() -> None:
    adata = screen(drug=DRUGS, dose=["0", "1 uM", "2 ng/ml", "3 uM", "1 uM", "2 uM", "3 uM"])
    with pytest.raises(DataError, match="'a' has doses in uM and in ug/ml"):
        read_cells(adata, dose_key="dose", **OPTIONS)
    adata = screen(drug=DRUGS, dose=["0", "1 uM", "2", "3 uM", "1 uM", "2 uM", "3 uM"])
    with pytest.raises(DataError, match="dose '2' has no known unit"):
        read_cells(adata, dose_key="dose", **OPTIONS)
    adata = screen(drug=DRUGS, dose=[0, 1, 2, 3, 1, 2, 3], unit=["", *["tablets"] * 6])
    with pytest.raises(DataError, match="unit 'tablets' is not known"):
        read_cells(adata, dose_key="dose", dose_unit_key="unit", **OPTIONS)
    with pytest.raises(DataError, match="name that of the doses too"):
        read_cells(adata, dose_unit_key="unit", **OPTIONS)
