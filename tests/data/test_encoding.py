"""Names become tensors: each part in its place, and every name that says too much or too little is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scdfm.condition_tensors import ConditionShape
from scdfm.data.conditions import Vocabulary
from scdfm.data.encoding import ConditionEncoder, ConditionSchema
from scdfm.data.features import FeatureTable
from scdfm.errors import ConditionError

VOCABULARY = Vocabulary.build(["A", "B", "C", "G"])
TRAINED = ("A@1|line=K562|time=24", "B@10|line=K562|time=24", "A@100+B@10|line=A549|time=6", "control|line=HEK")
SCHEMA = ConditionSchema.of(TRAINED)


def encoder(**options: object) -> ConditionEncoder:
    return ConditionEncoder(VOCABULARY, SCHEMA, **options)  # type: ignore[arg-type]


def test_a_schema_is_what_trained_names_hold() -> None:
    assert SCHEMA.covariates == {"line": ("A549", "HEK", "K562")}
    assert SCHEMA.dose_reference == 10.0
    assert SCHEMA.time_reference == 24.0
    assert ConditionSchema.of(["A", "A+B", "control"]) == ConditionSchema()
    assert ConditionSchema.of(["A@0"]).dose_reference is None
    assert ConditionSchema.model_validate_json(SCHEMA.model_dump_json()) == SCHEMA
    assert encoder().shape() == ConditionShape(dose=True, time=True, covariates=3)
    assert encoder().shape(null=True).null


def test_plain_names_give_the_published_tokens_and_nothing_else() -> None:
    names, (a, b, c) = ["A", "A+B", "control", "A+B+C"], map(VOCABULARY.index, "ABC")
    encoded = ConditionEncoder(VOCABULARY).encode(names)
    np.testing.assert_array_equal(encoded.tokens.numpy(), [[a, 3, 0], [a, b, 0], [3, 3, 0], [a, b, c]])
    assert all(
        getattr(encoded, name) is None
        for name in ("identified", "features", "described", "dose", "time", "covariates", "dropped")
    )
    assert len(encoded) == 4


def test_doses_times_and_covariates_stand_beside_their_targets() -> None:
    a, b = VOCABULARY.index("A"), VOCABULARY.index("B")
    encoded = encoder().encode(["A@100+B|line=K562|time=12", "control|line=A549", "B@1|line=HEK"], slots=3)
    assert encoded.tokens.tolist() == [[a, b, 0], [3, 3, 0], [b, 3, 0]]
    assert encoded.dose is not None
    np.testing.assert_allclose(encoded.dose, [[10, np.nan, np.nan], [np.nan] * 3, [0.1, np.nan, np.nan]])
    assert encoded.time is not None
    np.testing.assert_allclose(encoded.time, [0.5, np.nan, np.nan])
    assert encoded.covariates is not None
    assert encoded.covariates.tolist() == [[2], [0], [1]]


def test_covariates_of_several_columns_have_places_of_their_own() -> None:
    schema = ConditionSchema.of(["A|donor=1|line=x", "A|donor=2|line=y"])
    encoded = ConditionEncoder(VOCABULARY, schema).encode(["A|donor=1|line=y", "A|donor=2|line=x"])
    assert encoded.covariates is not None
    assert encoded.covariates.tolist() == [[0, 3], [1, 2]]


def test_a_target_at_dose_nought_is_absent() -> None:
    both = encoder().encode(["A@0|line=HEK", "control|line=HEK", "A@0+B@10|line=HEK", "B@10|line=HEK"])
    assert torch.equal(both.tokens[0], both.tokens[1])
    assert torch.equal(both.tokens[2], both.tokens[3])
    assert both.dose is not None
    np.testing.assert_array_equal(both.dose[0], both.dose[1])
    np.testing.assert_array_equal(both.dose[2], both.dose[3])


def test_features_stand_in_for_what_has_no_vector_of_its_own() -> None:
    table = FeatureTable(("A", "new"), np.array([[1.0, 2.0], [3.0, 4.0]]))
    encode = ConditionEncoder(VOCABULARY, identified={"A", "B"}, features=table)
    encoded = encode.encode(["A+B", "B+new", "new"])
    assert encoded.features is not None
    assert encoded.described is not None
    assert encoded.identified is not None
    assert encoded.features.tolist() == [[[1, 2], [0, 0]], [[0, 0], [3, 4]], [[3, 4], [0, 0]]]
    assert encoded.described.tolist() == [[True, False], [False, True], [True, False]]
    assert encoded.identified.tolist() == [[True, True], [True, False], [False, True]]
    special = {Vocabulary.PAD, Vocabulary.CONTROL}
    assert encoded.tokens[2, 0].item() not in special  # it counts as a target
    assert (encode.described("new"), encode.identified("new"), encode.identified("A")) == (True, False, True)
    assert encode.shape().features == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Z@1|line=HEK", "target 'Z' of condition 'Z@1|line=HEK' is unknown: .* or with a row for it in the features"),
        ("A@500nM|line=HEK", "dose '500nM' of condition .* is no number; expected one without a unit, .*: 'A@0.5'"),
        ("C|line=HEK", "nothing is known of 'C', which was in no training condition; expected features of it"),
        ("C@0|line=HEK", "nothing is known of 'C'"),
        ("A", r"has no covariate 'line', which the model was trained with; write 'A\|line=...' with one of 'A549', 'HEK'"),
        ("A|line=MCF7", "'MCF7' is no known value of covariate 'line'; expected one of 'A549', 'HEK', 'K562'"),
        ("A|line=k562", "did you mean 'K562'"),
        ("A|cell=K562|line=HEK", "covariate 'cell' is unknown; expected line, the covariates of the training data"),
    ],
)  # fmt: skip
def test_names_that_say_too_much_or_too_little_are_refused(name: str, message: str) -> None:
    encode = encoder(identified={"A", "B"})
    assert not encode.knows(name)
    with pytest.raises(ConditionError, match=message):
        encode.encode([name])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("A@3", "has a dose, but no training condition has one; ask for 'A'"),
        ("A|time=3", "has a time, but no training condition has one; leave it out"),
        ("A|line=x", "covariate 'line' is unknown; expected none"),
        ("A+B+C", "has 3 targets, expected at most 2; ask for more slots"),
    ],
)
def test_names_of_a_plain_screen_stay_plain(name: str, message: str) -> None:
    with pytest.raises(ConditionError, match=message):
        ConditionEncoder(VOCABULARY).encode([name], slots=2)
