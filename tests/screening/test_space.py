"""The conditions of a screen: every combination once, bounds, and what a condition's singles are."""

from __future__ import annotations

import pytest

from scdfm.errors import ConditionError
from scdfm.files import read_names
from scdfm.screening.space import chosen, combinations, members


def test_every_combination_once_singles_first():
    assert combinations(["B", "A", " C", "A"], 2) == ["A", "B", "C", "A+B", "A+C", "B+C"]
    assert combinations("ABC", 3)[-1] == "A+B+C"
    assert len(combinations(map(str, range(104)), 2)) == 104 + 5356


@pytest.mark.parametrize(
    ("targets", "order", "message"),
    [
        ("ABC", 4, "order 4: expected 1"),
        ("A", 2, "needs at least 2 targets, found 1"),
        (map(str, range(2000)), 3, "conditions, expected at most 1,000,000; name fewer targets"),
    ],
)
def test_refusals(targets, order, message):
    with pytest.raises(ConditionError, match=message):
        combinations(targets, order)


def test_singles_keep_doses_and_covariates():
    assert members("A+B") == ("A", "B")
    assert members("JQ1@0.5+A|cell_line=K562|time=24") == ("A|cell_line=K562|time=24", "JQ1@0.5|cell_line=K562|time=24")
    assert members("control") == () == members("control|cell_line=K562")


def test_named_conditions_bring_their_singles(run):
    a, b, c = run.manifest.targets[:3]
    assert chosen(run, None, 2, [f"{b}+{a}", c]) == [a, b, c, f"{a}+{b}"]
    with pytest.raises(ConditionError, match="expected perturbed ones"):
        chosen(run, None, 2, ["control"])


def test_names_of_a_file(tmp_path):
    (tmp_path / "up.txt").write_text("A\n\n B \n")
    assert read_names(tmp_path / "up.txt", "signature") == ["A", "B"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ConditionError, match="holds no name"):
        read_names(tmp_path / "empty.txt", "signature")
    with pytest.raises(ConditionError, match=r"nowhere.txt cannot be read"):
        read_names(tmp_path / "nowhere.txt", "signature")
