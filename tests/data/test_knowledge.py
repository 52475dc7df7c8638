"""Features from standard files: GO with its parents, gene sets, networks, and genes by any of their names."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from scdfm.data.features import FeatureTable, read
from scdfm.data.gene_names import GeneIds
from scdfm.errors import DataError

OBO = """format-version: 1.2

[Term]
id: GO:0000001
name: root

[Term]
id: GO:0000002
is_a: GO:0000001 ! root

[Term]
id: GO:0000003
relationship: part_of GO:0000002 ! a
alt_id: GO:0000009

[Term]
id: GO:0000004
relationship: regulates GO:0000002 ! a

[Typedef]
id: part_of
"""


def gaf(rows: Sequence[tuple[str, str, str, str, str]]) -> str:
    """Lines of symbol, qualifier, term, evidence, synonyms."""
    lines = [
        "\t".join(["DB", f"P{at}", symbol, how, term, "REF", code, "", "P", "name", synonyms, "protein", "taxon:9606",
                   "20260101", "DB", "", ""])
        for at, (symbol, how, term, code, synonyms) in enumerate(rows)
    ]  # fmt: skip
    return "!gaf-version: 2.2\n" + "\n".join(lines) + "\n"


def likeness(found: FeatureTable, one: str, other: str) -> float:
    rows = found.restricted([one, other]).values
    return float(rows[0] @ rows[1] / np.linalg.norm(rows[0]) / np.linalg.norm(rows[1]))


@pytest.fixture
def go(tmp_path: Path) -> tuple[Path, Path]:
    """A and B share a term, C has a child of it, D and E others; F is said not to have it."""
    term = "GO:000000{}".format
    rows = [
        ("A", "involved_in", term(2), "IDA", "alpha|ALF"), ("B", "involved_in", term(2), "IDA", "beta"),
        ("C", "involved_in", term(9), "IDA", ""), ("D", "involved_in", term(4), "IDA", ""),
        ("E", "involved_in", term(4), "IDA", ""), ("F", "NOT|involved_in", term(2), "IDA", ""),
        ("F", "involved_in", term(4), "IDA", ""), ("G", "involved_in", term(2), "ND", ""),
    ]  # fmt: skip
    # Genes of other kinds, so that a term of three genes is a rare one.
    rows += [(f"X{at}", "involved_in", f"GO:00001{at % 9:02d}", "IEA", "") for at in range(54)]
    with gzip.open(tmp_path / "goa.gaf.gz", "wt") as file:
        file.write(gaf(rows))
    (tmp_path / "go.obo").write_text(OBO)
    return tmp_path / "goa.gaf.gz", tmp_path / "go.obo"


def test_terms_are_passed_on_to_parents_by_is_a_and_part_of(go: tuple[Path, Path]) -> None:
    """C has what a part of A's term has (under a former id); D regulates it, which is something else."""
    found = read(f"go:{go[0]},{go[1]}")
    assert found.kind == "go goa.gaf.gz"
    assert found.parts[0].scaled
    assert likeness(found, "A", "B") == pytest.approx(1, abs=1e-5)
    assert likeness(found, "A", "C") > 0.9
    assert abs(likeness(found, "A", "D")) < 1e-5
    assert likeness(found, "D", "F") == pytest.approx(1, abs=1e-5)  # what it is said not to have is left out
    assert "G" not in found  # no data is no annotation
    assert "C" not in read(f"go:{go[0]}")  # a term of one gene, without its parents


def test_genes_are_known_by_synonyms_and_tables_of_names(go: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "names.tsv").write_text("name\tsymbol\nENSG00000000001\tA\nboth\tA\nboth\tB\nB\tA\n")
    (tmp_path / "hgnc.txt").write_text(
        'hgnc_id\tsymbol\talias_symbol\tprev_symbol\tensembl_gene_id\n1\tA\t"ALF|alfa"\told\tENSG00000000001\n'
    )
    screen = ["ENSG00000000001.7", "ALF", "B", "C", "both", "unheard"]
    for names in ("names.tsv", "hgnc.txt"):
        found = read(f"go:{go[0]},{go[1]},{tmp_path / names}", names=screen)
        assert "both" not in found  # the name of two genes is that of none
        assert "unheard" not in found
        assert "A" not in found  # it goes by the names of the screen
        assert likeness(found, "ENSG00000000001.7", "ALF") == pytest.approx(1, abs=1e-5)
        assert abs(likeness(found, "B", "ALF")) > 0.99  # a symbol stays what it is, whatever a table says


def test_gene_sets_and_networks(tmp_path: Path) -> None:
    others = "".join(f"set{at}\t-\tX{at}\tY{at}\tZ{at}\n" for at in range(20))
    (tmp_path / "sets.gmt").write_text(f"one\thttp\tA\tB\tC\ntwo\t\tD\tE\tF\n{others}")
    found = read(f"gmt:{tmp_path / 'sets.gmt'}", names=["A", "B", "D"])
    assert likeness(found, "A", "B") == pytest.approx(1, abs=1e-5)
    assert abs(likeness(found, "A", "D")) < 1e-5
    edges = "".join(f"9606.X{at} 9606.Y{at} 500\n" for at in range(40))
    (tmp_path / "links.txt").write_text(
        "protein1 protein2 combined_score\n9606.A 9606.B 900\n9606.A 9606.C 900\n9606.B 9606.C 900\n9606.D 9606.E 900\n"
        + edges
    )
    (tmp_path / "info.tsv").write_text(
        "#string_protein_id\tpreferred_name\n" + "".join(f"9606.{name}\t{name}\n" for name in "ABCDE")
    )
    found = read(f"edges:{tmp_path / 'links.txt'},{tmp_path / 'info.tsv'}", names=["A", "B", "C"])
    assert likeness(found, "A", "B") > 0.9
    assert "D" not in found  # nobody but two
    (tmp_path / "pairs.csv").write_text("A,B\nA,C\nB,C\n" + "".join(f"X{at},Y{at}\n" for at in range(40)))
    plain = read(f"edges:{tmp_path / 'pairs.csv'}", names=["A", "B", "C"])
    assert likeness(plain, "A", "C") == pytest.approx(1, abs=1e-5)


def test_genes_of_one_rare_set_are_more_alike_than_those_of_a_common_one(tmp_path: Path) -> None:
    """A has a rare set with B and a common one with C; neither has anything else with A."""
    common = "\t".join(f"C{at}" for at in range(9))
    others = "".join(f"set{at}\t-\tX{at}\tY{at}\tZ{at}\n" for at in range(40))
    (tmp_path / "s.gmt").write_text(f"rare\t\tA\tB\tR\ncommon\t\tA\tC\t{common}\nb\t\tB\tP\tQ\nc\t\tC\tS\tT\n{others}")
    found = read(f"gmt:{tmp_path / 's.gmt'}", names=["A", "B", "C"])
    assert likeness(found, "A", "B") > likeness(found, "A", "C") + 0.1


def test_same_bits(go: tuple[Path, Path]) -> None:
    one, other = (read(f"go:{go[0]},{go[1]}", names=["A", "B", "X1", "X2"]) for _ in range(2))
    np.testing.assert_array_equal(one.values, other.values)
    assert one.names == other.names


@pytest.mark.parametrize(
    ("spec", "text", "message"),
    [
        ("go:{}", "A B C\n", "'A B C' is no line of a GAF file"),
        ("go:{}", "", "'' is no line of a GAF file"),
        ("gmt:{}", "one set\n", "'one set' is no gene set"),
        ("edges:{}", "A\n", "'A' is no edge"),
        ("edges:{}", "A B C\nA B high\n", "'A B high' is no edge"),
        ("gmt:{}", "s\t-\tP\tQ\tR\n", "none of the 1 names of the screen is among its 3 genes"),
        ("gmt:{}", "s\t-\tA\tQ\n", "no term, set or neighbour is shared by 3 genes"),
        ("gmt:{},{}", "s\t-\tA\tQ\tR\n", "expected a table of names"),
        ("go:", "", "expected go:FILE"),
        ("gmt:{}.gone", "", "cannot be read"),
        ("gmt:{}.gz", "", "cannot be read"),
    ],
)
def test_files_that_are_refused(spec: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    (tmp_path / "file.gz").write_text("not packed")
    with pytest.raises(DataError, match=message):
        read(spec.format(path, path), names=["A"])


def test_ids_of_several_symbols_stand_for_none() -> None:
    ids = GeneIds().with_pairs([("x", "A"), ("x", "B"), ("y", "A"), ("ENSG00000000002", "B")])
    assert [ids.symbol(name) for name in ("x", "y", "A", "ENSG00000000002.3")] == ["x", "A", "A", "B"]
    assert ids.spelled(["y", "A", "x"]) == {"A": ("A", "y"), "x": ("x",)}


def test_go_of_a_real_screen(shared: Path) -> None:
    """Receptors of one ligand are more alike than a receptor and a factor of the cell cycle."""
    folder = shared / "data"
    files = [folder / f"{name}.tsv.gz" for name in ("go_human_annotations", "go_parents", "human_gene_names")]
    screen = ["IFNGR1", "IFNGR2", "JAK2", "CDK1", "CCNB1", "ENSG00000115415"]  # the last is STAT1
    found = read(f"go:{','.join(map(str, files))}", names=screen)
    assert likeness(found, "IFNGR1", "IFNGR2") > likeness(found, "IFNGR1", "CCNB1") + 0.2
    assert likeness(found, "IFNGR1", "ENSG00000115415") > likeness(found, "IFNGR1", "CDK1")
