"""How a model stands on each metric: best baseline, paired gain, gain over its prior, place below the ceiling, harm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from scdfm.evaluation import PRIOR, calibration, differences, harm, position
from scdfm.evaluation.summary import RIVALS
from scdfm.report.table import decimals
from scdfm.report.words import number

Outcome = Literal["better", "worse", "unclear", "undefined"]
HEADLINES = ("l2", "mse", "mae", "pearson_delta")
"""Metrics that a verdict speaks of: the first of these that is defined, else the first that is."""


def outcome(low: float, high: float) -> Outcome:
    """Better or worse only where a whole interval of gains says so."""
    if math.isnan(low) or math.isnan(high):
        return "undefined"
    return "better" if low > 0 else "worse" if high < 0 else "unclear"


@dataclass(frozen=True)
class Gain:
    """Mean paired difference to one row, positive where the model is better, with its 95 % interval."""

    gain: float
    low: float
    high: float

    @property
    def outcome(self) -> Outcome:
        """What the interval says."""
        return outcome(self.low, self.high)

    @property
    def none(self) -> bool:
        """Whether nothing differs on any condition."""
        return self.gain == self.low == self.high == 0


@dataclass(frozen=True)
class Standing:
    """How the model stands on one metric.

    `baseline`: the best one, None where the table has none; `own`, `other`: means of the model and of that
    baseline over the `n` conditions where both are defined; `gain` with its 95 % interval `low`, `high`:
    mean paired difference, positive where the model is better; `position`: 0 worst acceptable, 1 ceiling;
    `harmed`: share of conditions where the model is worse than no change; `alone`: no other baseline has a value;
    `prior`: the gain over what the same run predicts before training, None where the table has no such row.
    `resolved`: share of the metric's range that its positive control goes; `mute`: why the metric cannot tell here.
    `chosen`: `baseline` is another model that the reader named.
    """

    metric: str
    decimals: int
    baseline: str | None = None
    own: float = math.nan
    other: float = math.nan
    gain: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    position: float = math.nan
    harmed: float = math.nan
    alone: bool = False
    prior: Gain | None = None
    resolved: float = math.nan
    mute: str = ""
    chosen: bool = False

    @property
    def outcome(self) -> Outcome:
        """Better or worse only where the whole interval says so."""
        return "undefined" if self.baseline is None else outcome(self.low, self.high)

    def written(self, value: float) -> str:
        """`value` with this metric's decimals."""
        return number(value, self.decimals)


def standings(table: pd.DataFrame, model: str, seed: int = 0, rival: str | None = None) -> list[Standing]:
    """The standing of `model` on every metric of a long table of scores, in the table's order.

    rival: another model of the table that stands in place of the best baseline.
    """
    against = differences(table, seed=seed, against=rival)
    against = against[against["model"] == model].set_index("metric")
    harms = harm(table)
    shares = harms[harms["model"] == model].set_index("metric")["share"]
    placed = positions(table)
    ways = placed[placed["model"] == model].set_index("metric")["position"]
    trained = {} if rival is not None else _over_prior(table, model, seed)
    calibrated = calibration(table, seed=seed).set_index("metric")
    stands = []
    for metric in table.loc[table["model"] == model, "metric"].unique():
        wide = table[table["metric"] == metric].pivot_table(
            index="condition", columns="model", values="value", sort=False, dropna=False
        )
        places = decimals(wide.mean())
        tells: dict[str, Any] = {}
        if metric in calibrated.index:
            found = calibrated.loc[metric]
            tells = {"resolved": float(found["resolved"]), "mute": str(found["reason"])}
        if metric not in against.index:
            own = wide[model].dropna()
            stands.append(
                Standing(
                    metric, places, own=float(own.mean()), n=len(own), prior=trained.get(metric), **tells
                )
            )
            continue
        row = against.loc[metric]
        common = wide[[model, row["baseline"]]].dropna()
        stands.append(
            Standing(
                metric=metric, decimals=places, baseline=str(row["baseline"]), own=float(common[model].mean()),
                other=float(common[row["baseline"]].mean()), gain=float(row["improvement"]), low=float(row["low"]),
                high=float(row["high"]), n=int(row["n"]), position=float(ways.get(metric, math.nan)),
                harmed=float(shares.get(metric, math.nan)), alone=_rivals(wide) == 1,
                prior=trained.get(metric),
                chosen=rival is not None,
                **tells,
            )
        )  # fmt: skip
    return stands


def _over_prior(table: pd.DataFrame, model: str, seed: int) -> dict[str, Gain]:
    """What training gained by metric; nothing where the table has no prior."""
    if PRIOR not in set(table["model"]):
        return {}
    found = differences(table, seed=seed, against=PRIOR)
    return {
        str(row["metric"]): Gain(float(row["improvement"]), float(row["low"]), float(row["high"]))
        for row in found[found["model"] == model].to_dict("records")
    }


def _rivals(wide: pd.DataFrame) -> int:
    """Baselines with a value on some condition, the mean response of protocol vcc2026 among them."""
    return sum(bool(wide[name].notna().any()) for name in RIVALS if name in wide)


def positions(table: pd.DataFrame) -> pd.DataFrame:
    """Columns model, metric, position: 0 at the worst acceptable score, 1 at the ceiling."""
    placed = position(table)
    return placed.assign(position=placed["percent"] / 100)[["model", "metric", "position"]]


def headline(stands: Sequence[Standing]) -> Standing | None:
    """The standing that the verdict speaks of; None where nothing is defined."""
    known = {standing.metric: standing for standing in stands if not math.isnan(standing.own)}
    for metric in HEADLINES:
        if metric in known:
            return known[metric]
    return next(iter(known.values()), None)
