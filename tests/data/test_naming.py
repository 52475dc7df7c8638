"""How labels of files are read: controls, what is left out, what joins targets, guides, and columns that go together."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdfm
from scdfm.data import read_cells
from scdfm.data.naming import Naming, looks_like_control, looks_unassigned, may_be_control
from scdfm.errors import DataError

GENES = ("A", "B", "C", "D")


def screen(labels: Sequence[object], key: str = "perturbation", **columns: Sequence[object]) -> ad.AnnData:
    """One cell for each label, of log1p values that are all different."""
    values = np.log1p(np.arange(1, 4 * len(labels) + 1).reshape(-1, 4) / 7).astype(np.float32)
    obs = pd.DataFrame({key: labels, **columns}, index=[f"cell{i}" for i in range(len(labels))])
    return ad.AnnData(values, obs=obs, var=pd.DataFrame(index=list(GENES)))


def rows(cells: scdfm.CellTable) -> dict[str, list[str]]:
    """The cells of each condition."""
    return {name: cells.obs.index[cells.rows(name)].tolist() for name in cells.conditions}


@pytest.mark.parametrize(
    ("naming", "label", "plain"),
    [
        (Naming(), "ctrl+A", "control+A"),
        (Naming(("NT-*",)), "NT-12", "control"),
        (Naming(("NT-*",)), "A+NT-3", "A+control"),
        (Naming(("NT-1",)), "NT-2", "NT-2"),
        (Naming(separator="|"), "A|B", "A+B"),
        (Naming(separator="|"), "A|B|line=K562|time=24", "A+B|line=K562|time=24"),
        (Naming(separator="__"), "A_1__B", "A_1+B"),
        (Naming(("NegCtrl*",), separator="_"), "NegCtrl0_A", "control+A"),
        (Naming(("NegCtrl*",), separator="_"), "NegCtrl0_NegCtrl7", "control"),
        (Naming(("non-targeting_*",), separator="_"), "non-targeting_00001", "control"),
        (Naming(separator=","), "Fluorouracil (5-FU, 5-Fluoracil),A", "Fluorouracil (5-FU, 5-Fluoracil)+A"),
        (Naming(guides=("GENE_sg*",)), "HLA-A_sg12", "HLA-A"),
        (Naming(guides=("sgGENE-*",)), "sgHLA-A-2", "HLA-A"),
        (Naming(guides=("GENEg*",)), "STAT1g2", "STAT1"),
        (Naming(("NT_sg*",), guides=("GENE_sg*",)), "A_sg1+NT_sg2", "A+control"),
        (Naming(guides=("GENE_sg*",)), "A_sg1+A_sg2", "A"),
        (Naming(guides=("GENE_sg*",)), "A_sg1@0.5+B_sg1", "A@0.5+B"),
        (Naming(guides=("GENE_sg*", "GENE.*")), "A.7", "A"),
        (Naming(separator="_", guides=("GENE_sg*",)), "A_sg1_B_sg2", "A+B"),
        (Naming(separator="_", guides=("GENE_sg*",)), "A_sg1_A_sg2", "A"),
        (Naming(separator="_", guides=("GENE_*",)), "A_1_B_2", "A+B"),
        (Naming(separator="_", guides=("GENE_*",)), "A_B", "A+B"),
        (Naming(("NT",), separator="_", guides=("GENE_sg*",)), "NT_sg1_B_sg2", "control+B"),
        (Naming(("NT_sg*",), separator="_", guides=("GENE_sg*",)), "NT_sg1_NT_sg2", "control"),
        (Naming(separator="none"), "Na+/K+", "(Na+/K+)"),
        (Naming(separator="none"), "(+)-JQ1|line=A", "(+)-JQ1|line=A"),
        (Naming(gene_versions="drop"), "ENSG00000141510.18+ENSG00000012048.23", "ENSG00000141510+ENSG00000012048"),
        (Naming(), "ENSG00000141510.18", "ENSG00000141510.18"),
        (Naming(gene_versions="drop"), "RP11-34P13.7", "RP11-34P13.7"),
        (Naming(), "[('Bleomycin (sulfate)', 50.0, 'nM')]", "Bleomycin (sulfate)@0.05"),
        (Naming(("DMSO_TF",)), "[('DMSO_TF', 0.0, 'uM')]", "control"),
        (Naming(), "[('A', 1, 'uM'), ('Na+/K+', 0.5, 'mM')]", "A@1+(Na+/K+)@500"),
        (Naming(), "[('A', 'b')]", "[('A', 'b')]"),
    ],
)  # fmt: skip
def test_labels_in_words_of_scdfm(naming: Naming, label: str, plain: str) -> None:
    assert naming.plain(label) == plain


def test_a_name_that_is_asked_for_is_no_guide() -> None:
    naming = Naming(("NT",), separator="_", guides=("GENE-*",))
    assert naming.canonical("HLA-A") == "HLA-A"
    assert naming.canonical("B_A") == naming.canonical("A+B") == "A+B"
    assert naming.canonical("A_NT") == "A"


def test_a_name_with_a_plus_can_be_asked_for() -> None:
    """In the words of the file and in those of scdfm; two targets are still two."""
    naming = Naming(separator="none")
    assert naming.canonical("Na+/K+") == naming.canonical("(Na+/K+)") == "(Na+/K+)"
    assert naming.canonical("B+A") == "A+B"
    assert naming.canonical("(Na+/K+)+A") == "(Na+/K+)+A"
    cells = read_cells(screen(["control", "Na+/K+", "Na+/K+", "CD3+"]), separator="none")
    assert rows(cells) == {"control": ["cell0"], "(CD3+)": ["cell3"], "(Na+/K+)": ["cell1", "cell2"]}
    assert cells.spelling["(Na+/K+)"] == "Na+/K+"


def test_versions_of_ids_are_dropped_from_genes_and_targets() -> None:
    ids = [f"ENSG{place:011d}" for place in range(4)]
    adata = screen(["control", ids[0], f"{ids[1]}.7"])
    adata.var_names = [f"{name}.{place}" for place, name in enumerate(ids)]
    kept = read_cells(adata)
    assert any("--gene-versions drop" in note for note in kept.notes)
    cells = read_cells(adata, gene_versions="drop")
    assert list(cells.genes) == ids
    assert cells.conditions == ("control", *ids[:2])
    assert not cells.notes
    adata.var_names = [f"{ids[0]}.1", f"{ids[0]}.2", *ids[2:]]
    with pytest.raises(DataError, match="occurs more than once in var"):
        read_cells(adata, gene_versions="drop")


def test_several_controls_are_one() -> None:
    adata = screen(["NT-1", "NT-2", "A", "DMSO", "A+NT-2", "NT-1+NT-2"])
    expected = {"control": ["cell0", "cell1", "cell3", "cell5"], "A": ["cell2", "cell4"]}
    for control in (["NT-1", "NT-2", "DMSO"], ("NT-*", "DMSO"), "NT-1,NT-2,DMSO"):
        cells = read_cells(adata, control=control)
        assert rows(cells) == expected
        mean = adata.X[[0, 1, 3, 5]].astype(np.float64).mean(0)
        np.testing.assert_allclose(cells.mean("control"), mean, rtol=1e-6)
    one = read_cells(adata, control="DMSO")
    assert one.conditions == ("control", "A", "A+NT-2", "NT-1", "NT-1+NT-2", "NT-2")
    assert any("look like control cells" in note and "'NT-1'" in note for note in one.notes)


def test_a_control_label_is_taken_at_its_word() -> None:
    adata = screen(["control", "INTERGENIC1", "INTERGENIC2", "A"])
    with pytest.raises(DataError, match=r"1 cells .*labelled 'control', which is none of the control labels given"):
        read_cells(adata, control="INTERGENIC1")
    alone = read_cells(adata, control="INTERGENIC*", exclude=["control"])
    assert rows(alone) == {"control": ["cell1", "cell2"], "A": ["cell3"]}
    both = read_cells(adata, control=["INTERGENIC1", "INTERGENIC2", "control"])
    assert rows(both)["control"] == ["cell0", "cell1", "cell2"]
    with pytest.raises(DataError, match=r"no cell .*is labelled 'INTERGENIC3', which control cells .*did you mean"):
        read_cells(adata, control=["INTERGENIC1", "INTERGENIC3"], exclude=["control"])


def test_unassigned_cells_are_left_out_and_told() -> None:
    adata = screen(["control", "nan", None, "Negative", "A", "multiple"])
    with pytest.raises(DataError, match=r"1 cells have no label .*--exclude nan"):
        read_cells(adata)
    cells = read_cells(adata, exclude=["nan", "Negative", "multiple"])
    assert rows(cells) == {"control": ["cell0"], "A": ["cell4"]}
    assert cells.notes[0].startswith("4 cells left out by their label: 'nan'")
    some = read_cells(adata, exclude="nan")
    assert set(some.conditions) == {"control", "A", "Negative", "multiple"}
    assert any("without a known perturbation" in note and "'Negative', 'multiple'" in note for note in some.notes)
    with pytest.raises(DataError, match="no cell .*is labelled 'none', which cells to leave out are expected to be"):
        read_cells(adata, exclude=["nan", "none"])
    with pytest.raises(DataError, match="every cell .*is left out"):
        read_cells(screen(["control", "nan"]), exclude=["control", "nan"])


def test_a_separator_joins_targets() -> None:
    for sign in ("|", "__", "_", ";", ","):
        adata = screen(["ctrl", f"A{sign}B", f"B{sign}A", f"A{sign}ctrl", "C"])
        cells = read_cells(adata, separator=sign)
        assert rows(cells) == {"control": ["cell0"], "A": ["cell3"], "A+B": ["cell1", "cell2"], "C": ["cell4"]}
        assert cells.spelling["A+B"] == f"A{sign}B"


def test_guides_are_pooled_to_genes() -> None:
    adata = screen(["NT_sg1", "A_sg1", "A_sg2", "A_sg1+A_sg2", "A_sg1+B_sg3", "NT_sg2+B_sg1"])
    cells = read_cells(adata, control="NT_sg*", guides=["GENE_sg*"])
    assert rows(cells) == {
        "control": ["cell0"], "A": ["cell1", "cell2", "cell3"], "A+B": ["cell4"], "B": ["cell5"],
    }  # fmt: skip


def test_two_columns_name_a_combination() -> None:
    adata = screen(["DMSO", "A", "A", "B", "B"], key="Drug1", Drug2=["DMSO", "DMSO", "B", None, ""])
    cells = read_cells(adata, "Drug1+Drug2", "DMSO")
    assert rows(cells) == {"control": ["cell0"], "A": ["cell1"], "A+B": ["cell2"], "B": ["cell3", "cell4"]}
    assert cells.obs["Drug1+Drug2"].tolist() == ["control", "A", "A+B", "B", "B"]
    with pytest.raises(DataError, match="perturbation column 'Drug3' is not in obs"):
        read_cells(adata, "Drug1+Drug3", "DMSO")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"control": []}, "control: expected at least one label"),
        ({"control": " "}, "control ' ': expected labels that are not blank"),
        ({"separator": "x"}, "separator 'x': expected signs that join targets"),
        ({"separator": "="}, "separator '=': expected signs that join targets"),
        ({"guides": ["sg"]}, "guides 'sg': expected GENE once"),
        ({"guides": ["GENE"]}, "guides 'GENE': expected GENE once and what else"),
        ({"guides": ["GENE_+_*"]}, r"found '\+', which joins targets"),
    ],
)
def test_what_no_naming_can_be(options: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_cells(screen(["control", "A"]), **options)  # type: ignore[arg-type]


def test_usual_spellings_of_controls() -> None:
    for label in (
        "control", "Ctrl", "non-targeting", "NT-1", "NTg4", "NTC", "DMSO_TF", "0.1% DMSO", "Vehicle", "INTERGENIC393453",
        "NegCtrl0+NegCtrl0", "NegCtrl11__NegCtrl0", "non-targeting_00001", "sgNT-2", "control_sg3", "safe-targeting",
        "Non_Targeting_Human_0001", "PBS", "unstimulated", "negative control",
    ):  # fmt: skip
        assert looks_like_control(label), label
    for label in (
        "NT5E", "NTN1", "WT1", "CTRC", "CTRL1", "A_ctrl", "A+DMSO", "DMSO+A", "None", "Negative", "nan", "SCRIB", "CTLA4",
        "Trametinib (DMSO_TF solvate)", "IL-4",
    ):  # fmt: skip
        assert not looks_like_control(label), label
    assert may_be_control("None")
    assert not may_be_control("nan")


def test_usual_spellings_of_unassigned_cells() -> None:
    for label in (
        "nan", "NaN", "None", "NA", "N/A", "", "Negative", "multiple", "Multiplet", "unassigned", "Doublet", "no_guide",
        "unknown", "ambiguous",
    ):  # fmt: skip
        assert looks_unassigned(label), label
    for label in ("NANOG", "NAT1", "control", "NEGR1", "MULTI1"):
        assert not looks_unassigned(label), label


def test_a_table_says_how_its_file_is_read(call, tmp_path) -> None:
    screen(["NT_sg1", "A_sg1|B_sg2", "none called", "A_sg2"], "guides").write_h5ad(tmp_path / "x.h5ad")
    (tmp_path / "c.toml").write_text(
        '[data]\nperturbation_key = "guides"\ncontrol = "NT_*"\nexclude = ["none called"]\nseparator = "|"\n'
        'guides = ["GENE_sg*"]\n'
    )
    declared = scdfm.DataConfig.load(tmp_path / "c.toml")
    cells = read_cells(tmp_path / "x.h5ad", **declared.options())
    assert rows(cells) == {"control": ["cell0"], "A": ["cell3"], "A+B": ["cell1"]}
    several = scdfm.DataConfig().updated({"control": ["a", "b"]}, "test")
    assert several.options()["control"] == ("a", "b")
