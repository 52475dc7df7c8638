"""The verdict: one plain sentence that follows from the numbers, whatever they say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scdfm.report.standing import Outcome, Standing, headline
from scdfm.report.words import count, percent, title


@dataclass(frozen=True)
class Verdict:
    """`sentence` for the top of the page, `tally` over all metrics, and the `outcome` that colours them.

    Where the table has the row `prior`, the sentence says what training added to it, and `trained` on which metrics.
    """

    sentence: str
    tally: str
    outcome: Outcome
    trained: str = ""


def verdict(standings: Sequence[Standing], model: str) -> Verdict:
    """Judge `model` by its headline metric against the best baseline, and count the others."""
    chosen = headline(standings)
    if chosen is None:
        return Verdict(f"No metric is defined for {model}: nothing can be said of it.", "", "undefined")
    best = {standing.metric: standing.outcome for standing in standings}
    prior = {standing.metric: standing.prior.outcome for standing in standings if standing.prior is not None}
    return Verdict(
        " ".join(filter(None, [_sentence(chosen, model), _beside_prior(chosen)])),
        _tally(
            best, f"Against {chosen.baseline} on" if chosen.chosen else "Against the best baseline of each of"
        ),
        chosen.outcome,
        _tally(prior, "What training added to it, over"),
    )


def _sentence(standing: Standing, model: str) -> str:
    on = f"On {count(standing.n, 'condition')}"
    metric = title(standing.metric)
    if standing.baseline is None:
        return f"{on} {model} has a mean {metric} of {standing.written(standing.own)}, with no baseline to judge it by."
    values = f"{standing.written(standing.own)} against {standing.written(standing.other)}"
    best = (
        standing.baseline
        if standing.chosen
        else (
            f"{standing.baseline}, the only baseline there is"
            if standing.alone
            else f"the best baseline ({standing.baseline})"
        )
    )
    words = {
        "better": f"is better than {best}",
        "worse": f"is worse than {best}" + ("" if standing.chosen else ", which should be used instead"),
        "unclear": f"cannot be told apart from {best}",
        "undefined": f"cannot be compared with {best} on so few",
    }
    gain = f"paired gain {standing.written(standing.gain)}"
    if standing.outcome != "undefined":
        gain += f", 95 % interval {standing.written(standing.low)} to {standing.written(standing.high)}"
    return f"{on} {model} {words[standing.outcome]}: mean {metric} {values} ({gain}){_way(standing.position, model)}."


def _beside_prior(standing: Standing) -> str:
    """What training added on the headline metric, and whether that is clear."""
    found = standing.prior
    if found is None:
        return ""
    if found.none:
        return "Beside the prior alone: no difference."
    words = {
        "better": "clear",
        "worse": "clear: the prior alone is better",
        "unclear": "not clear",
        "undefined": "too few conditions to tell",
    }
    gain = f"gain {standing.written(found.gain)}"
    if found.outcome != "undefined":
        gain += f" (95 % interval {standing.written(found.low)} to {standing.written(found.high)})"
    return f"Beside the prior alone: {gain}, {words[found.outcome]}."


def _way(position: float, model: str) -> str:
    if math.isnan(position):
        return ""
    if position < 0:
        return f"; {model} lies below the worst acceptable score"
    if position >= 1:
        return f"; {model} reaches the ceiling"
    return f"; {model} is {percent(position)} of the way from the worst acceptable score to the ceiling"


def _tally(outcomes: Mapping[str, Outcome], start: str) -> str:
    """On which metrics a model is better, not told apart, or worse, as a sentence that begins with `start`."""
    judged = {metric: outcome for metric, outcome in outcomes.items() if outcome != "undefined"}
    if not judged:
        return ""
    parts = []
    for outcome, words in (
        ("better", "better on {}"),
        ("unclear", "not told apart on {}"),
        ("worse", "worse on {}"),
    ):
        names = [title(metric) for metric, found in judged.items() if found == outcome]
        if names:
            parts.append(words.format(len(names)) + f" ({', '.join(names)})")
    return f"{start} {count(len(judged), 'metric')}: {'; '.join(parts)}."
