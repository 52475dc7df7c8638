"""One model beside one other row of a table, metric by metric: the paired gain, its interval, and what that says."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import pandas as pd

Outcome = Literal["better", "unclear", "worse", "undefined"]
OUTCOMES: Final[dict[Outcome, str]] = {
    "better": "better",
    "unclear": "not told apart",
    "worse": "worse",
    "undefined": "no interval",
}
"""What an interval can say, as readers are told it."""


@dataclass(frozen=True)
class Comparison:
    """Mean paired gain of `model` over the row `baseline` on one metric, with its 95 % interval, over `n` conditions.

    A gain is positive where the model is better, whatever the metric's direction.
    """

    model: str
    metric: str
    baseline: str
    gain: float
    low: float
    high: float
    n: int

    @property
    def outcome(self) -> Outcome:
        """Better or worse only where the whole interval says so."""
        if math.isnan(self.low) or math.isnan(self.high):
            return "undefined"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "unclear"

    @property
    def none(self) -> bool:
        """Whether nothing differs on any condition."""
        return self.gain == self.low == self.high == 0


def comparisons(differences: pd.DataFrame) -> list[Comparison]:
    """The rows of `scdfm.differences`, or of a benchmark's table of differences, in their order."""
    return [
        Comparison(
            str(row["model"]), str(row["metric"]), str(row["baseline"]), float(row["improvement"]),
            float(row["low"]), float(row["high"]), int(row["n"]),
        )
        for row in differences.to_dict("records")
    ]  # fmt: skip


def by_outcome(found: Iterable[Comparison]) -> dict[Outcome, list[str]]:
    """The metrics of each outcome that there is, in the order of OUTCOMES."""
    metrics: dict[Outcome, list[str]] = {outcome: [] for outcome in OUTCOMES}
    for one in found:
        metrics[one.outcome].append(one.metric)
    return {outcome: names for outcome, names in metrics.items() if names}
