"""What a method wrote is brought to the genes asked for, or refused in a line; every repair is told."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scdfm
from scdfm.errors import DataError
from scdfm.peers import Task, read_answer

ASKED = ("A+B", "B+C")
GENES = ("g0", "g1", "g2")


@pytest.fixture(scope="module")
def task() -> Task:
    adata = ad.AnnData(
        np.full((6, 3), 0.5, dtype=np.float32),
        obs=pd.DataFrame({"perturbation": ["control", "control", "A", "A", "B", "B"]}, index=list("uvwxyz")),
        var=pd.DataFrame(index=list(GENES)),
    )
    return Task(scdfm.read_cells(adata), ASKED, GENES, 0, 10.0, 2)


def wrote(folder, X=None, labels=("A+B", "A+B", "B+C", "B+C"), genes=GENES):
    X = np.arange(len(labels) * len(genes), dtype=np.float32).reshape(len(labels), -1) if X is None else X
    obs = pd.DataFrame({"perturbation": list(labels)}, index=[str(i) for i in range(len(labels))])
    ad.AnnData(X, obs=obs, var=pd.DataFrame(index=list(genes))).write_h5ad(folder / "predicted.h5ad")


def test_genes_come_in_the_order_asked_for_and_foreign_ones_go(task, tmp_path):
    wrote(tmp_path, genes=("g2", "other", "g0", "g1"))
    answer = read_answer(tmp_path, task)
    np.testing.assert_array_equal(answer.cells.X.toarray()[0], [2, 3, 0])
    assert list(answer.cells.var_names) == list(GENES)
    assert answer.notes == ("1 genes were not asked for and are not scored (other)",)


def test_values_below_0_are_cut_and_their_share_is_told(task, tmp_path):
    X = np.ones((4, 3), dtype=np.float32)
    X[1, 2], X[3, 0] = -0.25, -1e-8
    wrote(tmp_path, X)
    answer = read_answer(tmp_path, task)
    assert answer.below_zero == pytest.approx(2 / 12)
    assert answer.cells.X.min() == 0
    assert answer.notes == ("16.67% of its values were below 0 (lowest -0.25), cut at 0",)


def test_conditions_asked_for_are_kept_however_they_are_spelled(task, tmp_path):
    wrote(tmp_path, labels=("B+A", "B+A", "A+C", "control"))
    answer = read_answer(tmp_path, task)
    assert answer.conditions == ("A+B",)
    assert set(answer.cells.obs["perturbation"]) == {"A+B"}
    assert answer.notes == (
        "1 conditions were not asked for and are not scored (A+C)",
        "scored on 1 of 2 test conditions; not predicted: B+C",
    )


def test_what_cannot_be_scored_is_refused_in_a_line(task, tmp_path):
    with pytest.raises(DataError, match=r"it wrote no predicted.h5ad"):
        read_answer(tmp_path, task)
    (tmp_path / "predicted.h5ad").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"predicted.h5ad cannot be read"):
        read_answer(tmp_path, task)
    wrote(tmp_path, genes=("g0", "x", "y"))
    with pytest.raises(DataError, match=r"lacks 2 of the 3 genes asked for \(g1, g2\)"):
        read_answer(tmp_path, task)
    wrote(tmp_path, labels=("A", "B"))
    with pytest.raises(DataError, match="holds none of the 2 conditions asked for"):
        read_answer(tmp_path, task)
    X = np.ones((4, 3), dtype=np.float32)
    X[2, 1] = np.nan
    wrote(tmp_path, X)
    with pytest.raises(DataError, match=r"1 values .* are not finite \(first: condition 'B\+C'\)"):
        read_answer(tmp_path, task)


@pytest.mark.parametrize(
    ("text", "note"),
    [("{", "facts.json cannot be read"), ("[1]", "facts.json is no JSON object"), ('{"steps": 3}', "")],
)
def test_facts_may_be_wrong_or_missing(task, tmp_path, text, note):
    wrote(tmp_path)
    (tmp_path / "facts.json").write_text(text)
    answer = read_answer(tmp_path, task)
    assert answer.facts == ({} if note else {"steps": 3})
    assert [one.startswith(note) for one in answer.notes] == [True] * bool(note)
