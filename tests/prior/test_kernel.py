"""The covariance over conditions: symmetric, positive, blind to order, and 0 where nothing was done."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from scdfm.errors import ConditionError
from scdfm.prior.kernel import SIMILAR, TERMS, ConditionKernel, Weights, every_target

EVEN = Weights(dict.fromkeys(TERMS, 1.0), group=0.5, kept=0.8)


def kernel(
    names: tuple[str, ...] = ("A", "B", "C", "D"), covariates: tuple[str, ...] = (), settings: tuple[str, ...] = ()
) -> ConditionKernel:
    rng = np.random.default_rng(0)
    descriptors = rng.normal(size=(len(names), 5))
    return ConditionKernel(
        targets=names, covariates=covariates, profiles=rng.normal(size=(len(names), 3)),
        descriptors={SIMILAR: descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)},
        dose_reference=2.0, dose_onset=2.0, profile_length2=3.0,
        settings=settings, controls=np.arange(len(settings))[:, None] * np.ones((len(settings), 4)), controls_length2=8.0,
    )  # fmt: skip


CONDITIONS = (
    "A", "B", "A+B", "C+D", "A+B+C", "A@2", "A@0.5+C", "A|line=x", "A+B|line=y", "A|time=3", "D@7|line=x|time=24",
)  # fmt: skip


def test_a_covariance() -> None:
    """Symmetric and positive semi-definite, whatever conditions hold."""
    made = kernel(covariates=("line",))
    encoded = made.encode(CONDITIONS)
    matrix = made.matrix(encoded, encoded, EVEN)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    assert np.linalg.eigvalsh(matrix).min() > -1e-9
    np.testing.assert_allclose(made.variance(encoded, EVEN), np.diag(matrix))


def test_terms_by_hand() -> None:
    made = kernel()
    terms = made.terms(made.encode(["A+B"]), made.encode(["A+C", "A", "D"]))
    profile = {
        (i, j): np.exp(-((made.profiles[i] - made.profiles[j]) ** 2).sum() / 3.0)
        for i, j in itertools.product(range(4), repeat=2)
    }
    likeness = np.exp(-((made.descriptors[SIMILAR][:, None] - made.descriptors[SIMILAR][None]) ** 2).sum(-1))
    np.testing.assert_allclose(terms["same"], [[1, 1, 0]])
    np.testing.assert_allclose(terms["shared"], [[4, 2, 2]])
    np.testing.assert_allclose(terms["several"], [[1, 0, 0]])
    expected = 0.5 * (profile[0, 0] * profile[1, 2] + profile[0, 2] * profile[1, 0])
    np.testing.assert_allclose(terms["pair"], [[expected, 0, 0]])
    np.testing.assert_allclose(
        terms["similar"], [[likeness[:2][:, [0, 2]].sum(), likeness[:2, 0].sum(), likeness[:2, 3].sum()]]
    )


def test_each_further_target_leaves_less_of_the_sum() -> None:
    """All of its only target, κ of the sum of two, κ² of the sum of three; pairs depart by themselves."""
    made = kernel()
    alone, several = made.encode(["A", "B", "C"]), made.encode(["A", "A+B", "A+B+C"])
    found = made.matrix(several, alone, Weights({"same": 1.0}, kept=0.8)).sum(1)
    np.testing.assert_allclose(found, [1, 2 * 0.8, 3 * 0.8**2])
    pairs = [made.matrix(several, several, Weights({"pair": 1.0}, kept=kept)) for kept in (0.8, 1.0)]
    np.testing.assert_array_equal(*pairs)
    # A second target counts as far as its log dose (.5 and 0 of the first one's) comes near the first one's.
    doses = made.encode(["A@6+B@2", "A+B@0", "control"])
    np.testing.assert_allclose(made.further(doses, alone)[:, 0], [0.5, 0, 0])
    kept = made.matrix(doses, made.encode(["A"]), Weights({"same": 1.0}, kept=0.8))[1:, 0]
    np.testing.assert_allclose(kept, [1, 0])


def test_a_triple_interacts_by_its_pairs() -> None:
    made = kernel()
    pairs = made.terms(made.encode(["A+B", "A+C", "B+C"]), made.encode(["A+D"]))["pair"]
    triple = made.terms(made.encode(["A+B+C"]), made.encode(["A+D"]))["pair"]
    np.testing.assert_allclose(triple, pairs.sum(0, keepdims=True))


@pytest.mark.parametrize("name", ["A@0", "control", "A@0+B@0"])
def test_nothing_done_is_unlike_everything(name: str) -> None:
    """A dose of 0 is control, which has no shift: its covariance with every condition is 0."""
    made = kernel()
    assert not made.matrix(made.encode([name]), made.encode(CONDITIONS[:7]), Weights(dict.fromkeys(TERMS, 1.0))).any()


def test_log_dose() -> None:
    made = kernel()
    assert [made.log_dose(dose) for dose in (None, 0.0, 2.0, 6.0)] == pytest.approx([1, 0, 1, 2])
    low = replace(made, dose_onset=0.5)  # by 5 to the power of s − 1 from the reference
    assert [low.log_dose(dose) for dose in (None, 0.0, 2.0, 12.0)] == pytest.approx([1, 0, 1, 2])
    assert low.log_dose(0.5) == pytest.approx(np.log(2) / np.log(5))


def test_covariates_and_times_part_conditions() -> None:
    made = kernel(covariates=("line",))
    names = ["A|line=x", "A|line=y", "A|line=x|time=5"]
    encoded = made.encode(names)
    apart = made.matrix(encoded, encoded, Weights({"same": 1.0}, group=0.75))
    assert apart[0, 0] == pytest.approx(1)
    assert apart[0, 1] == pytest.approx(0.25)
    assert apart[0, 2] == pytest.approx(np.exp(-0.5 * np.log(6) ** 2))


def test_every_target() -> None:
    assert every_target(["B+A@3", "C|line=x", "control"]) == ("A", "B", "C")


SETTINGS = ("control|line=w", "control|line=x", "control|line=y")


def test_settings_are_alike_as_their_controls_are() -> None:
    """Control means stand 4, 4 and 16 apart (squared): likeness e^(-1/2) and e^(-2), 1 within a setting."""
    made = kernel(covariates=("line",), settings=SETTINGS)
    encoded = made.encode(["A|line=w", "A|line=x", "B|line=y", "A|line=y"])
    near, far = np.exp(-0.5), np.exp(-2)
    np.testing.assert_allclose(made.akin(encoded, encoded)[0], [1, near, far, far])
    np.testing.assert_allclose(made.akin(encoded, encoded)[2], [far, near, 1, 1])
    encoded = made.encode(CONDITIONS)
    assert np.linalg.eigvalsh(made.matrix(encoded, encoded, EVEN)).min() > -1e-9
    # Of a name without covariates no cells tell anything: it is alike itself, and shares what all do.
    anywhere = made.encode(["A", "B"])
    np.testing.assert_allclose(made.akin(anywhere, made.encode(["A", "A|line=x"])), [[1, 0], [1, 0]])


def test_without_own_controls_settings_share_what_is_equal() -> None:
    made = kernel(covariates=("line", "donor"))
    encoded = made.encode(["A|donor=1|line=x", "A|donor=1|line=y", "A|donor=2|line=y"])
    np.testing.assert_allclose(made.akin(encoded, encoded), [[1, 0.5, 0], [0.5, 1, 0.5], [0, 0.5, 1]])


def test_a_further_setting_finds_its_place() -> None:
    made = kernel(covariates=("line",), settings=SETTINGS).with_settings({"control|line=z": np.full(4, 1.0)})
    new, known = made.encode(["A|line=z"]), made.encode(["A|line=x", "A|line=y"])
    np.testing.assert_allclose(made.akin(new, known), [[1, np.exp(-0.5)]])
    with pytest.raises(ConditionError, match=r"nothing is known of the control cells 'control\|line=u'; .* give it"):
        made.encode(["A|line=u"])


def test_perturbations_of_one_setting_share_a_response() -> None:
    """Whatever their number and dose; but where nothing was done there is no shift."""
    made = kernel(covariates=("donor", "line"))
    left, right = (
        made.encode(["A+B|donor=1|line=x"]),
        made.encode(["C|donor=1|line=x", "C@9|donor=1|line=x", "C|donor=1|line=y", "C", "C@0|donor=1|line=x"]),
    )
    np.testing.assert_allclose(made.terms(left, right)["setting"], [[1, 1, 0, 0, 0]])
    without = kernel()
    assert not without.terms(without.encode(["A"]), without.encode(["A", "B"]))["setting"].any()
