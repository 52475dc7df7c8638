"""Condition names and the vocabulary."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scdfm.data.conditions import (
    CONTROL,
    Condition,
    Perturbation,
    Vocabulary,
    canonical,
    control_of,
    covariates,
    doses,
    near,
    number_text,
    parse,
    perturbation_of,
    targets,
)
from scdfm.data.encoding import ConditionEncoder, ConditionSchema
from scdfm.errors import ConditionError, DataError

VISIBLE = st.characters(exclude_characters="+@|()", exclude_categories=("Z", "C"))
GENES = st.text(VISIBLE, min_size=1).filter(lambda name: name not in ("ctrl", "control"))
NUMBERS = st.floats(min_value=0, allow_infinity=False, allow_nan=False)
KEYS = st.from_regex(r"[A-Za-z_](?:[\w .-]{0,6}[\w.-])?", fullmatch=True).filter(lambda key: key != "time")
VALUES = st.text(st.characters(exclude_characters="|", exclude_categories=("Z", "C")), min_size=1)
CONDITIONS = st.builds(
    Condition,
    st.lists(
        st.builds(Perturbation, GENES, st.none() | NUMBERS),
        max_size=4,
        unique_by=lambda perturbation: perturbation.target,
    ).map(tuple),
    st.dictionaries(KEYS, VALUES, max_size=3).map(lambda pairs: tuple(pairs.items())),
    st.none() | NUMBERS,
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
    with pytest.raises(ConditionError, match=rf"condition '{label.replace('+', '.')}' names target '[AB]' twice"):
        canonical(label)


@pytest.mark.parametrize(
    ("label", "names"),
    [
        ("(+)-JQ1", ("(+)-JQ1",)),
        ("Zileuton + (+)-JQ1@10", ("(+)-JQ1", "Zileuton")),
        ("A(B+(C+D))+E", ("A(B+(C+D))", "E")),
        ("A)", ("A)",)),
    ],
)
def test_a_plus_within_brackets_belongs_to_the_name(label: str, names: tuple[str, ...]) -> None:
    assert targets(canonical(label)) == names


@pytest.mark.parametrize("label", ["A(+B", "A)+(B", "(A+B"])
def test_a_plus_beside_brackets_that_do_not_pair_is_refused(label: str) -> None:
    with pytest.raises(ConditionError, match="brackets that do not pair"):
        canonical(label)


def test_targets() -> None:
    assert targets(CONTROL) == ()
    assert targets("A") == ("A",)
    assert targets("A+B+C") == ("A", "B", "C")
    assert targets("(+)-JQ1+B") == ("(+)-JQ1", "B")


@given(CONDITIONS)
def test_a_name_reads_back_as_its_condition(condition: Condition) -> None:
    name = str(condition)
    assert parse(name) == condition
    assert canonical(name) == name
    assert targets(name) == tuple(sorted(perturbation.target for perturbation in condition.perturbations))
    assert doses(name) == tuple(perturbation.dose for perturbation in condition.perturbations)
    assert covariates(name) == dict(condition.covariates)
    assert parse(perturbation_of(name)) == Condition(condition.perturbations)
    assert parse(control_of(name)) == Condition((), condition.covariates)


@given(CONDITIONS, st.randoms())
def test_canonical_forgets_the_order_of_targets_and_keys(condition: Condition, random: object) -> None:
    parts = [*map(str, condition.perturbations), "ctrl"]
    pairs = [f"| {key} = {value} " for key, value in condition.covariates]
    if condition.time is not None:
        pairs.append(f"|time={number_text(condition.time)}")
    for listed in (parts, pairs):
        random.shuffle(listed)  # type: ignore[attr-defined]
    assert canonical(" + ".join(parts) + "".join(pairs)) == str(condition)


@given(st.text(st.sampled_from("Az1.e-+@|= k_()"), max_size=14))
def test_any_text_is_refused_or_has_one_name(text: str) -> None:
    try:
        name = canonical(text)
    except ConditionError:
        return
    assert canonical(name) == name
    assert str(parse(name)) == name


@given(NUMBERS)
def test_numbers_read_back_and_hold_no_separator(value: float) -> None:
    assert float(number_text(value)) == value
    assert "+" not in number_text(value)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("JQ1@0.50", "JQ1@0.5"),
        ("JQ1@10.0", "JQ1@10"),
        ("JQ1 @ 1e3", "JQ1@1000"),
        ("B@2+A@1e-7", "A@1e-07+B@2"),
        ("B+A@1", "A@1+B"),
        ("A-2+A@1", "A@1+A-2"),
        ("JQ1@1|time=24.0|cell_line=K562", "JQ1@1|cell_line=K562|time=24"),
        ("stim | cell type = CD14+ Monocytes", "stim|cell type=CD14+ Monocytes"),
        ("A|b=x=1", "A|b=x=1"),
        ("NT|cell_line=K562", "control|cell_line=K562"),
        ("NT@0|cell_line=K562", "control|cell_line=K562"),
        ("A+NT@0", "A"),
        ("A@0", "A@0"),
        ("A|time=late", "A|time=late"),
        ("(+)-JQ1@1", "(+)-JQ1@1"),
        ("B+(+)-JQ1+(+/-)-A", "(+)-JQ1+(+/-)-A+B"),
        ("B(x)+A", "A+B(x)"),
        # What is no dose or covariate belongs to the name, as ever.
        ("TRA@", "TRA@"),
        ("@5", "@5"),
        ("A@nan", "A@nan"),
        ("A@inf", "A@inf"),
        ("A@-1", "A@-1"),
        ("A@1_0", "A@1_0"),
        ("A@1e999", "A@1e999"),
        ("A@B", "A@B"),
        ("A|B", "A|B"),
        ("A|1x=2", "A|1x=2"),
        ("A|x=", "A|x="),
        ("A|x=1|B", "A|x=1|B"),
        ("|x=1", "|x=1"),
    ],
)
def test_doses_and_covariates(label: str, name: str) -> None:
    assert canonical(label, control="NT") == name
    assert canonical(name) == name


def test_parts_of_a_name() -> None:
    name = "B@10+A|cell_line=A549|time=24"
    assert targets(name) == ("A", "B")
    assert doses(name) == (None, 10.0)
    assert covariates(name) == {"cell_line": "A549"}
    assert parse(name).time == 24
    assert perturbation_of(name) == "A+B@10"
    assert control_of(name) == "control|cell_line=A549"
    assert (targets("control|x=1"), doses("control|x=1")) == ((), ())
    assert covariates("A|time=late") == {"time": "late"}
    assert parse("A|B@1") == Condition((Perturbation("A|B", 1.0),))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("A@1+A@2", "names target 'A' twice"),
        ("A|x=1|x=2", "gives covariate 'x' twice, expected it once; leave one out"),
        ("A+|x=1", "expected targets joined by"),
        ("Z|k=5+A|", r"would read as others \('A.\+Z.k=5'\); rename those that hold"),
    ],
)
def test_a_name_that_cannot_be_is_refused(label: str, message: str) -> None:
    with pytest.raises(ConditionError, match=message):
        canonical(label)


def test_near_finds_other_cases_and_misspellings() -> None:
    assert near("klf1", ["KLF1", "TP53"]) == "; did you mean 'KLF1'?"
    assert near("MAPK3", ["MAPK1", "FOXA1"]) == "; did you mean 'MAPK1'?"
    assert near("xyz", ["KLF1"]) == ""
    assert near("trametinib", ["Trametinib (GSK1120212)", "JQ1"]) == "; did you mean 'Trametinib (GSK1120212)'?"


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


def tokens(
    vocabulary: Vocabulary, names: list[str], slots: int | None = None, schema: ConditionSchema | None = None
) -> np.ndarray:
    return ConditionEncoder(vocabulary, schema).encode(names, slots).tokens.numpy()


def test_encoding_fills_two_slots_with_control_and_further_ones_with_pad() -> None:
    vocabulary = Vocabulary.build(["A", "B", "C"])
    a, b, c = (vocabulary.index(name) for name in "ABC")
    two = tokens(vocabulary, ["A", "A+B", CONTROL])
    assert two.tolist() == [[a, 3], [a, b], [3, 3]]
    assert two.dtype == np.int64
    grown = tokens(vocabulary, ["A", "A+B", "A+B+C"])
    assert grown.tolist() == [[a, 3, 0], [a, b, 0], [a, b, c]]
    assert tokens(vocabulary, ["A"], slots=4).tolist() == [[a, 3, 0, 0]]
    assert tokens(vocabulary, ["A"]).shape == (1, 2)
    assert tokens(vocabulary, []).shape == (0, 2)


def test_the_code_of_a_condition_does_not_depend_on_its_batch() -> None:
    vocabulary = Vocabulary.build("ABCD")
    conditions = [CONTROL, "A", "A+B", "A+B+C", "A+B+C+D"]
    whole = tokens(vocabulary, conditions)
    for condition, row in zip(conditions, whole, strict=True):
        alone = tokens(vocabulary, [condition])[0]
        np.testing.assert_array_equal(row[: len(alone)], alone)
        assert (row[len(alone) :] == Vocabulary.PAD).all()
    for first, second in itertools.combinations(whole.tolist(), 2):
        assert first != second


def test_doses_and_covariates_do_not_change_the_tokens_of_targets() -> None:
    vocabulary = Vocabulary.build("ABC")
    plain = tokens(vocabulary, ["A", "A+B+C", CONTROL])
    schema = ConditionSchema(covariates={"x": ("1",)}, dose_reference=1, time_reference=1)
    dosed = tokens(vocabulary, ["A@0.5|x=1", "C+B@3+A@1|x=1|time=4", "control|x=1"], schema=schema)
    np.testing.assert_array_equal(plain, dosed)


def test_too_few_slots_are_told() -> None:
    with pytest.raises(ConditionError, match=r"'A\+B\+C' has 3 targets, expected at most 2; ask for more slots"):
        tokens(Vocabulary.build("ABC"), ["A", "A+B+C"], slots=2)


def test_an_unknown_target_is_named_with_what_would_help() -> None:
    vocabulary = Vocabulary.build(["KLF1", "BAK1"])
    with pytest.raises(ConditionError) as caught:
        tokens(vocabulary, ["BAK1+KLF2"])
    message = str(caught.value)
    assert message.startswith("target 'KLF2' of condition 'BAK1+KLF2' is unknown")
    assert "fit with it in the panel if the data measure it" in message
    assert message.endswith("; did you mean 'KLF1'?")
    with pytest.raises(ConditionError, match="'KLF2' is unknown: it is not in the panel"):
        vocabulary.index("KLF2")
    with pytest.raises(ConditionError, match="'KLF2' is unknown"):
        vocabulary.gene_ids(["KLF1", "KLF2"])


@pytest.mark.parametrize("name", ["control", "<pad>"])
def test_a_gene_may_not_be_called_like_a_special_token(name: str) -> None:
    with pytest.raises(DataError, match=f"'{name}' has the name of a special token; rename it"):
        Vocabulary.build(["A", name])


@pytest.mark.parametrize(
    ("tokens", "message"), [(("A", "B"), "starts with"), ((*Vocabulary.SPECIAL, "A", "A"), "holds a name twice")]
)
def test_edited_tokens_are_refused(tokens: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Vocabulary(tokens)
