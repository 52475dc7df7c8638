"""Features of perturbations: fingerprints, tables, their scale, and every refusal."""

from __future__ import annotations

import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdfm
from scdfm.data import features
from scdfm.data.features import FeatureTable, combine, morgan, read, table
from scdfm.errors import ConditionError, DataError

ETHANOL, PHENOL, ASPIRIN = "CCO", "Oc1ccccc1", "CC(=O)Oc1ccccc1C(=O)O"


@pytest.fixture
def embedding() -> pd.DataFrame:
    return pd.DataFrame({"a": [0.0, 2.0, 4.0], "b": [1, 1, 1], "c": [0, 1, 1]}, index=["X", "Y", "Z"])


def test_the_module_is_public() -> None:
    assert scdfm.features is features


def test_equal_molecules_have_equal_fingerprints_and_alike_ones_share_bits() -> None:
    found = morgan({"ethanol": ETHANOL, "again": "OCC", "phenol": PHENOL, "aspirin": ASPIRIN}, bits=2048)
    assert found.names == ("ethanol", "again", "phenol", "aspirin")
    assert found.values.shape == (4, 2048)
    assert found.kind == "morgan"
    assert set(np.unique(found.values)) == {0.0, 1.0}
    same, other, phenol, aspirin = found.values
    np.testing.assert_array_equal(same, other)
    assert phenol @ aspirin > phenol @ same  # both are aromatic
    # Radius 0 sees atoms alone: ethanol has three kinds of them (CH3, CH2, OH).
    assert morgan({"ethanol": ETHANOL}, radius=0).values.sum() == 3


@pytest.mark.parametrize("column", ["smiles", "SMILES", "Smiles"])
def test_molecules_come_from_mappings_frames_and_files(column: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"drug": ["e", "p"], column: [ETHANOL, PHENOL], "class": ["x", "y"]})
    frame.to_csv(tmp_path / "drugs.csv", index=False)
    expected = morgan({"e": ETHANOL, "p": PHENOL}, bits=128)
    for source in (frame, frame.set_index("drug")[[column]], tmp_path / "drugs.csv"):
        found = morgan(source, bits=128)
        assert found.names == ("e", "p")
        np.testing.assert_array_equal(found.values, expected.values)
    assert read(tmp_path / "drugs.csv").n_features == 1024


def test_tables_of_every_format_are_the_same(embedding: pd.DataFrame, tmp_path: Path) -> None:
    embedding.to_csv(tmp_path / "e.csv")
    embedding.to_csv(tmp_path / "e.tsv", sep="\t")
    embedding.to_parquet(tmp_path / "e.parquet")
    embedding.reset_index().to_parquet(tmp_path / "column.parquet")
    ad.AnnData(embedding.to_numpy(), obs=embedding[[]]).write_h5ad(tmp_path / "e.h5ad")
    ad.AnnData(embedding.to_numpy().T, var=embedding[[]]).write_h5ad(tmp_path / "genes.h5ad")
    names = ["e.csv", "e.tsv", "e.parquet", "column.parquet", "e.h5ad", "genes.h5ad:var"]
    for source in (embedding, *(str(tmp_path / name) for name in names)):
        found = table(source) if isinstance(source, pd.DataFrame) else read(source)
        assert found.names == ("X", "Y", "Z")
        np.testing.assert_array_equal(found.values, embedding.to_numpy(dtype=np.float32))


def test_standardising_centres_by_the_reference_and_drops_what_it_cannot_teach() -> None:
    given = FeatureTable(("p", "q", "new"), np.array([[0, 1, 5, 0], [2, 0, 5, 0], [9, 1, 7, 1]]))
    scale = given.standardiser(["p", "q"])
    found = scale(given)
    np.testing.assert_allclose(found.values[:2, 0], [-1, 1])  # deviation 1
    np.testing.assert_allclose(found.values[:, 1], [1, -1, 1])  # a bit: (1 - ½) / ½
    np.testing.assert_array_equal(found.values[:, 2:], 0)  # constant in the reference, whatever `new` has
    np.testing.assert_allclose(found.values[2, 0], 8)
    assert found.names == given.names
    with pytest.raises(DataError, match="2 of each perturbation, expected 4"):
        scale(FeatureTable(("a",), np.zeros((1, 2))))


def test_rare_bits_do_not_drown_the_others() -> None:
    bits = np.zeros((100, 2), dtype=np.float32)
    bits[:50, 0], bits[0, 1] = 1, 1
    found = (given := FeatureTable(tuple(map(str, range(100))), bits)).standardiser()(given)
    np.testing.assert_allclose(np.abs(found.values).max(axis=0), [1, 1.98])


def test_tables_combine_side_by_side_with_the_mean_where_a_name_is_missing() -> None:
    one = FeatureTable(("b", "a"), np.array([[2.0], [4.0]]), "one")
    two = FeatureTable(("c", "a"), np.array([[1.0, 0.0], [3.0, 8.0]]), "two")
    found = combine([one, two])
    assert (found.names, found.kind) == (("a", "b", "c"), "one + two")
    np.testing.assert_array_equal(found.values, [[4, 3, 8], [2, 2, 4], [3, 1, 0]])
    assert combine([one]) is one
    assert found.parts == (("one", 1, False), ("two", 2, False))
    scaled = found.standardiser()(found)
    np.testing.assert_array_equal(scaled.values[[1, 2], [1, 0]], 0)  # nothing is known from what lacks a name
    assert {kind: sorted(rows) for kind, rows in scaled.rows_of().items()} == {"one": ["a", "b"], "two": ["a", "c"]}
    np.testing.assert_array_equal(scaled.rows_of()["two"]["c"], scaled.values[2, 1:])
    again = combine([found, one])
    assert [part.kind for part in again.parts] == ["one", "two", "one no. 2"]
    np.testing.assert_array_equal(again.restricted(["c"]).known, [[False, True, False]])


def test_columns_of_one_scale_keep_their_sizes_beside_each_other() -> None:
    values = np.array([[3.0, 0.1], [-3.0, -0.1], [0.0, 0.0]])
    given = FeatureTable(("a", "b", "c"), values, parts=(features.Part("map", 2, scaled=True),))
    found = given.standardiser()(given).values
    np.testing.assert_allclose(found[:, 0], 30 * found[:, 1], rtol=1e-5)
    assert np.square(found).mean() == pytest.approx(1)


def test_rows_are_restricted_by_name() -> None:
    given = FeatureTable(("JQ1", "Belinostat"), np.array([[1.0], [2.0]]))
    assert given.restricted(["Belinostat"]).values.tolist() == [[2.0]]
    assert "JQ1" in given
    with pytest.raises(ConditionError, match=r"1 of 2 .*first: 'Belinostatt'.*did you mean 'Belinostat'"):
        given.restricted(["JQ1", "Belinostatt"])


def test_smiles_come_from_the_cells_of_a_screen() -> None:
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical(["control", "e", "e", "p", "e+p"]),
            "SMILES": pd.Categorical(["CS(C)=O", ETHANOL, ETHANOL, PHENOL, "CCO.Oc1ccccc1"]),
        }
    )
    found = read("smiles:SMILES", obs)
    assert found.names == ("e", "p")
    np.testing.assert_array_equal(found.values, morgan({"e": ETHANOL, "p": PHENOL}).values)
    with pytest.raises(DataError, match="'smiles' is not in obs; its columns are perturbation, SMILES"):
        read("smiles:smiles", obs)
    with pytest.raises(DataError, match="expected a screen"):
        read("smiles:SMILES")
    obs["SMILES"] = [None, ETHANOL, PHENOL, PHENOL, None]
    with pytest.raises(DataError, match=f"'e' has the SMILES '{ETHANOL}' and '{PHENOL}'"):
        read("smiles:SMILES", obs)


def test_several_spellings_are_combined(embedding: pd.DataFrame, tmp_path: Path) -> None:
    embedding.to_csv(tmp_path / "e.csv")
    (tmp_path / "d.csv").write_text(f"name,smiles\nX,{ETHANOL}\n")
    assert read([tmp_path / "e.csv", str(tmp_path / "d.csv")]).values.shape == (3, 3 + 1024)


@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        ({"bad": "C1CC"}, "SMILES of 'bad' is 'C1CC', which rdkit cannot read"),
        ({"e": ETHANOL, "none": None}, "SMILES of 'none' is None"),
        ({"empty": " "}, "SMILES of 'empty' is ' '"),
        ({}, "0 names"),
        (pd.DataFrame({"drug": ["e"], "structure": ["CCO"]}), "no column 'smiles'; .* columns drug, structure"),
        (pd.DataFrame({"drug": ["e", "e", "e"], "smiles": ["CCO", "CCO", "CO"]}), "'e' stands in more than one row"),
    ],
)
def test_molecules_that_are_refused(smiles, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=message):
        morgan(smiles)
    assert not capfd.readouterr().err  # rdkit's own complaint does not reach the terminal


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,x\nA,1\nA,2\n", "'A' stands in more than one row"),
        ("name,x\nA,1\nB,\n", "nan for 'B' in feature 0 .1 such values."),
        ("name,x,y\nA,1,high\n", "column 'y' is not of numbers .first value 'high'."),
        ("aspirin,CCO\ncaffeine,CCN\n", "column 'CCO' .* a .csv of molecules has the columns name and smiles"),
        ("name,x\n,1\nB,2\n", "a row has no name"),
        ("name,x\nA,1e300\n", "inf for 'A'"),
        ("name\nA\n", "1 names and values of shape"),
        ("name,x\n", "0 names and values of shape"),
        ("", "cannot be read as a table"),
        ("a,b\nX,1\nY,1,2,3\n", "cannot be read as a table"),
    ],
)
def test_tables_that_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "t.csv")


def test_other_refusals(tmp_path: Path, embedding: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="at least 1 bit"):
        morgan({"e": ETHANOL}, bits=0)
    with pytest.raises(DataError, match="ends in .csv, .tsv, .parquet or .h5ad"):
        table("features.npy")
    with pytest.raises(DataError, match="does not exist"):
        table(tmp_path / "gone.h5ad")
    with pytest.raises(DataError, match=r"gone.csv cannot be read"):
        read(tmp_path / "gone.csv")
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        table(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="no table to combine"):
        combine([])
    with pytest.raises(DataError, match="2 names and values of shape"):
        FeatureTable(("a", "b"), np.zeros((3, 1)))
    ad.AnnData(embedding.to_numpy(), obs=embedding[[]]).write_h5ad(tmp_path / "e.h5ad")
    with pytest.raises(DataError, match="axis is 'rows'"):
        table(tmp_path / "e.h5ad", axis="rows")  # type: ignore[arg-type]


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    monkeypatch.setitem(sys.modules, "rdkit.Chem", None)
    with pytest.raises(DataError, match=r"rdkit, which is not installed: pip install 'scdfm\[drugs\]'"):
        morgan({"e": ETHANOL})


def test_the_drugs_of_sciplex_have_fingerprints(shared: Path) -> None:
    frame = pd.read_csv(shared / "data" / "sciplex_drug_smiles.csv", names=["drug", "smiles", "class"])
    found = morgan(frame)
    assert len(found.names) == frame["drug"].nunique() == 188  # the line of `control` stands there twice
    assert len(np.unique(found.values, axis=0)) > 0.97 * len(found.names)
