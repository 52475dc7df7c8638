"""Condition names and the vocabulary."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdfm.data.conditions import CONTROL, Vocabulary, canonical, near, targets
from scdfm.errors import ConditionError, DataError

GENES = st.text(st.characters(exclude_characters="+", exclude_categories=("Z", "C")), min_size=1).filter(
    lambda name: name not in ("ctrl", "control")
)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("B+A", "A+B"),
        ("A+B", "A+B"),
        ("A+ctrl", "A"),
        ("ctrl+A", "A"),
        ("control+A", "A"),
        ("A+NT", "A"),
        ("C+A+B", "A+B+C"),
        ("C+ctrl+B", "B+C"),
        (" A + B ", "A+B"),
        ("A_B", "A_B"),
        ("HLA-A/B (x)", "HLA-A/B (x)"),
        ("NT", CONTROL),
        ("ctrl", CONTROL),
        ("control", CONTROL),
        ("ctrl+ctrl", CONTROL),
        ("control+control", CONTROL),
        ("ctrl+NT", CONTROL),
        ("ControlX", "ControlX"),
    ],
)
def test_canonical(label: str, name: str) -> None:
    assert canonical(label, control="NT") == name


def test_a_control_label_may_hold_the_separator() -> None:
    assert canonical("DMSO+0", control="DMSO+0") == CONTROL
    assert canonical("DMSO+A", control="DMSO+0") == "A+DMSO"


@given(st.lists(GENES, min_size=1, max_size=4, unique=True), st.randoms())
def test_canonical_forgets_order_and_control_and_is_idempotent(names: list[str], random: object) -> None:
    name = canonical("+".join(names))
    assert targets(name) == tuple(sorted(names))
    assert canonical(name) == name
    shuffled = [*names, "ctrl"]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert canonical("+".join(shuffled)) == name


@pytest.mark.parametrize("label", ["", " ", "A+", "+A", "A++B", "+"])
def test_an_empty_target_is_refused(label: str) -> None:
    with pytest.raises(ConditionError, match="empty one; rename it"):
        canonical(label)


@pytest.mark.parametrize("label", ["A+A", "B+A+B"])
def test_a_target_named_twice_is_refused(label: str) -> None:
    with pytest.raises(
        ConditionError, match=rf"condition '{label.replace('+', '.')}' names target '[AB]' twice"
    ):
        canonical(label)


def test_targets() -> None:
    assert targets(CONTROL) == ()
    assert targets("A") == ("A",)
    assert targets("A+B+C") == ("A", "B", "C")


def test_near_finds_other_cases_and_misspellings() -> None:
    assert near("klf1", ["KLF1", "TP53"]) == "; did you mean 'KLF1'?"
    assert near("MAPK3", ["MAPK1", "FOXA1"]) == "; did you mean 'MAPK1'?"
    assert near("xyz", ["KLF1"]) == ""


def test_vocabulary_order_is_the_official_one() -> None:
    vocabulary = Vocabulary.build(["G2", "G10", "B"], ["OUTSIDE", "B"])
    assert vocabulary.tokens == ("<pad>", "<cls>", "<mask>", "control", "B", "G10", "G2", "OUTSIDE")
    assert (Vocabulary.PAD, Vocabulary.CLS, Vocabulary.MASK, Vocabulary.CONTROL) == (0, 1, 2, 3)
    assert len(vocabulary) == 8
    assert vocabulary.index("control") == vocabulary.CONTROL
    ids = vocabulary.gene_ids(["G2", "B"])
    assert ids.tolist() == [6, 4]
    assert ids.dtype == np.int64
    assert vocabulary.gene_ids([]).shape == (0,)
    assert "G2" in vocabulary
    assert "G3" not in vocabulary


def test_encoding_fills_two_slots_with_control_and_further_ones_with_pad() -> None:
    vocabulary = Vocabulary.build(["A", "B", "C"])
    a, b, c = (vocabulary.index(name) for name in "ABC")
    two = vocabulary.encode(["A", "A+B", CONTROL])
    assert two.tolist() == [[a, 3], [a, b], [3, 3]]
    assert two.dtype == np.int64
    grown = vocabulary.encode(["A", "A+B", "A+B+C"], slots=None)
    assert grown.tolist() == [[a, 3, 0], [a, b, 0], [a, b, c]]
    assert vocabulary.encode(["A"], slots=4).tolist() == [[a, 3, 0, 0]]
    assert vocabulary.encode(["A"], slots=None).shape == (1, 2)
    assert vocabulary.encode([], slots=None).shape == (0, 2)


def test_the_code_of_a_condition_does_not_depend_on_its_batch() -> None:
    vocabulary = Vocabulary.build("ABCD")
    conditions = [CONTROL, "A", "A+B", "A+B+C", "A+B+C+D"]
    whole = vocabulary.encode(conditions, slots=None)
    for condition, row in zip(conditions, whole, strict=True):
        alone = vocabulary.encode([condition], slots=None)[0]
        np.testing.assert_array_equal(row[: len(alone)], alone)
        assert (row[len(alone) :] == Vocabulary.PAD).all()
    for first, second in itertools.combinations(whole.tolist(), 2):
        assert first != second


def test_too_few_slots_are_told() -> None:
    with pytest.raises(
        ConditionError, match=r"'A\+B\+C' has 3 targets, expected at most 2; ask for more slots"
    ):
        Vocabulary.build("ABC").encode(["A", "A+B+C"])


def test_an_unknown_target_is_named_with_what_would_help() -> None:
    vocabulary = Vocabulary.build(["KLF1", "BAK1"])
    with pytest.raises(ConditionError) as caught:
        vocabulary.encode(["BAK1+KLF2"])
    message = str(caught.value)
    assert message.startswith("target 'KLF2' of condition 'BAK1+KLF2' is unknown")
    assert "after a fit on data that measure or perturb it; did you mean 'KLF1'?" in message
    with pytest.raises(ConditionError, match="'KLF2' is unknown: expected a gene of the panel"):
        vocabulary.index("KLF2")
    with pytest.raises(ConditionError, match="'KLF2' is unknown"):
        vocabulary.gene_ids(["KLF1", "KLF2"])


@pytest.mark.parametrize("name", ["control", "<pad>"])
def test_a_gene_may_not_be_called_like_a_special_token(name: str) -> None:
    with pytest.raises(DataError, match=f"'{name}' has the name of a special token; rename it"):
        Vocabulary.build(["A", name])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [(("A", "B"), "starts with"), ((*Vocabulary.SPECIAL, "A", "A"), "holds a name twice")],
)
def test_edited_tokens_are_refused(tokens: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Vocabulary(tokens)
