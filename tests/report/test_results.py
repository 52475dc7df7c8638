"""The verdict says what the numbers say, and flatters nobody."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from scdfm.evaluation.comparison import Comparison
from scdfm.report.results import MetricResult, headline, verdict


def result(
    gain: float, low: float, high: float, metric: str = "l2", position: float = 0.62, n: int = 37
) -> MetricResult:
    beside = Comparison("scdfm", metric, "ridge", gain, low, high, n)
    return MetricResult(metric, 3, beside, own=1.7, other=1.9, n=n, position=position)


def over_prior(gain: float, low: float, high: float, metric: str = "l2") -> Comparison:
    return Comparison("scdfm", metric, "prior", gain, low, high, 37)


def test_better() -> None:
    found = verdict([result(0.2, 0.1, 0.3)], "scdfm")
    assert found.outcome == "better"
    assert found.sentence == (
        "On 37 conditions scdfm is better than the best baseline (ridge): mean L2 1.700 against 1.900 (paired gain 0.200, "
        "95 % interval 0.100 to 0.300); scdfm is 62 % of the way from the worst acceptable score to the ceiling."
    )


def test_worse_says_what_to_use() -> None:
    found = verdict([result(-0.2, -0.3, -0.1)], "scdfm")
    assert found.outcome == "worse"
    assert "scdfm is worse than the best baseline (ridge), which should be used instead" in found.sentence
    assert "paired gain −0.200, 95 % interval −0.300 to −0.100" in found.sentence


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.3), (0.0, 0.3), (-0.3, 0.0)])
def test_an_interval_that_touches_zero_decides_nothing(low: float, high: float) -> None:
    found = verdict([result(0.1, low, high)], "scdfm")
    assert found.outcome == "unclear"
    assert "cannot be told apart from the best baseline (ridge)" in found.sentence


def test_no_interval_no_judgement() -> None:
    found = verdict([result(0.1, math.nan, math.nan, n=1)], "scdfm")
    assert found.outcome == "undefined"
    assert found.sentence.startswith("On 1 condition scdfm cannot be compared")
    assert "interval" not in found.sentence


def test_without_a_baseline_the_sentence_says_so() -> None:
    found = verdict([MetricResult("l2", 3, own=1.7, n=5)], "scdfm")
    assert found.sentence == "On 5 conditions scdfm has a mean L2 of 1.700, with no baseline to judge it by."
    assert found.tally == ""


def test_nothing_defined() -> None:
    assert (
        verdict([MetricResult("l2", 3)], "scdfm").sentence
        == "No metric is defined for scdfm: nothing can be said of it."
    )


@pytest.mark.parametrize(
    ("position", "words"), [(-0.4, "below the worst acceptable"), (1.02, "reaches the ceiling"), (math.nan, "0.300).")]
)
def test_way_to_the_ceiling(position: float, words: str) -> None:
    assert words in verdict([result(0.2, 0.1, 0.3, position=position)], "scdfm").sentence


def test_tally_counts_every_metric() -> None:
    others = [result(0.2, 0.1, 0.3), result(-0.2, -0.3, -0.1, "ds"), result(0, -1, 1, "mae"), MetricResult("energy", 3)]
    assert verdict(others, "scdfm").tally == (
        "Against the best baseline of each of 3 metrics: better on 1 (L2); not told apart on 1 (MAE); worse on 1 (DS)."
    )


def test_headline_is_the_first_defined_of_the_known() -> None:
    pair = [result(0, -1, 1, "ds"), result(0, -1, 1, "mse")]
    assert headline(pair) == pair[1]
    assert headline(pair[:1]) == pair[0]
    assert headline([MetricResult("l2", 3)]) is None


def test_a_lone_baseline_is_not_called_the_best_of_many() -> None:
    lone = MetricResult("l2", 3, Comparison("scdfm", "l2", "no change", 0.2, 0.1, 0.3, 37), 1.7, 1.9, n=37, alone=True)
    assert "scdfm is better than no change, the only baseline there is: mean L2" in verdict([lone], "scdfm").sentence


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (over_prior(0.02, 0.01, 0.03), "gain 0.020 (95 % interval 0.010 to 0.030), clear."),
        (over_prior(0.02, -0.01, 0.03), "gain 0.020 (95 % interval −0.010 to 0.030), not clear."),
        (
            over_prior(-0.02, -0.03, -0.01),
            "gain −0.020 (95 % interval −0.030 to −0.010), clear: the prior alone is better.",
        ),
        (over_prior(0.02, math.nan, math.nan), "gain 0.020, too few conditions to tell."),
        (over_prior(-1e-5, -2e-5, 1e-5), "gain 0.000 (95 % interval 0.000 to 0.000), not clear."),
        (over_prior(0.0, 0.0, 0.0), "no difference."),
    ],
)
def test_what_training_added_is_told_beside_the_best_baseline(gain: Comparison, words: str) -> None:
    alone = result(0.2, 0.1, 0.3)
    found = verdict([replace(alone, prior=gain)], "scdfm")
    assert found.sentence == f"{verdict([alone], 'scdfm').sentence} Beside the prior alone: {words}"
    assert found.outcome == "better"  # that is of the best baseline


def test_tally_counts_what_training_added_apart() -> None:
    stands = [
        replace(result(0.2, 0.1, 0.3), prior=over_prior(0.1, -0.1, 0.2)),
        replace(result(0.2, 0.1, 0.3, "energy"), prior=over_prior(0.1, 0.05, 0.2, "energy")),
        # Not counted: it allows cells that scatter more.
        replace(result(0.2, 0.1, 0.3, "mse_corrected"), prior=over_prior(0.1, 0.05, 0.2, "mse_corrected")),
        result(0.2, 0.1, 0.3, "ds"),
    ]
    found = verdict(stands, "scdfm")
    assert found.tally == (
        "Against the best baseline of each of 4 metrics: better on 4 (L2, energy distance, MSE less noise, DS)."
    )
    assert found.trained == (
        "What training added to it, over 2 metrics: better on 1 (energy distance); not told apart on 1 (L2)."
    )
    assert verdict(stands[3:], "scdfm").trained == ""
