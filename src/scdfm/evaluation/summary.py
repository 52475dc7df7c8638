"""What a table of scores says: averages with intervals, and the model's place among the references.

All functions take the long table of `evaluate` (columns model, condition, metric, value, n_cells; NaN undefined).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from scdfm.data.conditions import targets
from scdfm.errors import ConfigError, DataError
from scdfm.evaluation.baselines import BASELINES, NO_CHANGE, TRAINING_MEAN
from scdfm.evaluation.ceiling import CEILING, DUPLICATE
from scdfm.evaluation.metrics import LOWER_IS_BETTER, NEUTRAL, RANGES
from scdfm.evaluation.prior import PRIOR
from scdfm.evaluation.pseudobulk import Floats
from scdfm.evaluation.vcc2026.score import ALL, MEAN_RESPONSE, REPLICATE
from scdfm.seeds import numpy_rng

RIVALS = (*BASELINES, MEAN_RESPONSE)
"""References that a model is compared with."""
REFERENCES = (*RIVALS, PRIOR, CEILING, DUPLICATE, REPLICATE)
LEVEL = 0.95
FEWEST = 5
"""Values that an interval takes at least: of fewer, skewed ones, neither rule below keeps its level."""
FEWEST_EQUAL = 10
"""Values that it takes where all are equal: an interval without width claims certainty."""
DRAWS = 100_000
"""Values that are resampled at once: what stays in a processor's cache is drawn eight times as fast."""
ANYWHERE = (-np.inf, np.inf)
RESOLVED = 0.05
"""Share of a metric's range that its positive control must go for the metric to tell anything."""


def models_of(table: pd.DataFrame) -> list[str]:
    """The models of a table that are not references."""
    return [str(name) for name in table["model"].unique() if name not in REFERENCES]


def summarise(table: pd.DataFrame, n_bootstrap: int = 1000, seed: int = 0) -> pd.DataFrame:
    """One row per model and metric: mean, median, low, high, n, n_undefined.

    `low` and `high` bound the mean over conditions with 95% confidence (see `interval`), within the metric's range;
    they are NaN where there are too few conditions for that. Conditions without a value are left out and counted in
    `n_undefined`.
    """
    table = once(table)
    rows = []
    for (model, metric), part in table.groupby(["model", "metric"], sort=False, observed=True):
        values = part["value"].to_numpy(dtype=np.float64)
        defined = values[~np.isnan(values)]
        low, high = interval(defined, n_bootstrap, seed, within=RANGES.get(str(metric), ANYWHERE))
        mean, median = (float(np.mean(defined)), float(np.median(defined))) if len(defined) else (np.nan, np.nan)
        rows.append((model, metric, mean, median, low, high, len(defined), len(values) - len(defined)))
    return pd.DataFrame(rows, columns=["model", "metric", "mean", "median", "low", "high", "n", "n_undefined"])


def interval(
    values: Floats, n_bootstrap: int = 1000, seed: int = 0, level: float = LEVEL, within: tuple[float, float] = ANYWHERE
) -> tuple[float, float]:
    """Interval of the mean of `values`, the wider at each end of Student's t and the bootstrap-t; NaN below FEWEST.

    Student's t holds its level for symmetric values however few; the bootstrap-t for skewed ones. Each resample gives
    t* = (mean* − mean) / standard error*; that interval is mean − t*(1−α/2)·se to mean − t*(α/2)·se (Efron and
    Tibshirani 1993, ch. 12). Resamples without spread are left out. benchmarks/results/intervals.md shows how both
    hold, and their union, from 3 to 60 values. `within` is where the mean can lie: the interval ends there.
    """
    n = len(values)
    mean = float(values.mean()) if n else float("nan")
    error = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0
    if error <= 1e-12 * max(abs(mean), 1e-300):
        return (mean, mean) if n >= FEWEST_EQUAL else (float("nan"), float("nan"))
    if n < FEWEST:
        return float("nan"), float("nan")
    means, errors = _resampled(values, n_bootstrap, numpy_rng(seed, "bootstrap", n))
    spread = errors > 1e-9 * error
    resampled = (means[spread] - mean) / errors[spread]
    plain = float(student.ppf((1 + level) / 2, n - 1))
    quantiles = [(1 - level) / 2, (1 + level) / 2]
    lower, upper = np.quantile(resampled, quantiles) if len(resampled) else (-plain, plain)
    low, high = mean - error * max(upper, plain), mean - error * min(lower, -plain)
    return float(np.clip(low, *within)), float(np.clip(high, *within))


def _resampled(values: Floats, n_bootstrap: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Means and standard errors of `n_bootstrap` resamples, drawn a few at a time."""
    n = len(values)
    means, errors = np.empty((2, n_bootstrap))
    height = max(1, DRAWS // n)
    for start in range(0, n_bootstrap, height):
        draws = values[rng.integers(0, n, (min(height, n_bootstrap - start), n))]
        means[start : start + height] = draws.mean(axis=1)
        errors[start : start + height] = draws.std(axis=1, ddof=1) / np.sqrt(n)
    return means, errors


def position(table: pd.DataFrame) -> pd.DataFrame:
    """Where each model's mean lies between the worst acceptable (0%) and the ceiling (100%), per metric.

    Worst acceptable is the better of no change and the training mean. All three means are over the conditions
    where model, reference and ceiling have a value (n). NaN where the ceiling is not better than the worst
    acceptable: that metric tells nothing here. Columns: model, metric, value, worst, worst_value, ceiling,
    percent, n. The row of `duplicate` says how far a nearly perfect prediction gets.
    """
    table = once(table)
    rows = []
    for metric, wide in _wide(table):
        if CEILING not in wide:
            continue
        for model in wide.columns.drop([CEILING, NO_CHANGE, TRAINING_MEAN], errors="ignore"):
            positions = [
                _between(wide[[model, worst, CEILING]].dropna(), metric, worst)
                for worst in (NO_CHANGE, TRAINING_MEAN)
                if worst in wide
            ]
            positions = [row for row in positions if row[-1]]
            if positions:
                better = min if metric in LOWER_IS_BETTER else max
                rows.append((model, metric, *better(positions, key=lambda row: row[2])))
    columns = ["model", "metric", "value", "worst", "worst_value", "ceiling", "percent", "n"]
    return pd.DataFrame(rows, columns=columns)


def _between(common: pd.DataFrame, metric: str, worst: str) -> tuple[float, str, float, float, float, int]:
    if not len(common):
        return np.nan, worst, np.nan, np.nan, np.nan, 0
    value, bottom, top = (float(mean) for mean in common.mean())
    room = _sign(metric) * (top - bottom)
    percent = 100 * _sign(metric) * (value - bottom) / room if room > 0 else np.nan
    return value, worst, bottom, top, percent, len(common)


def calibration(table: pd.DataFrame, n_bootstrap: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Whether a metric can tell anything on this screen: one row per metric that has a positive control.

    The negative control is the better of no change and the training mean (of a correlation that neither has: 0), the
    positive one the duplicate, or the ceiling where the duplicate has no value. Over the conditions where both are
    defined (n): `resolved` is the share of the way from the negative control to a perfect score that the positive one
    goes, `separation` the share of conditions where it is better, `low` and `high` the 95% interval of its mean
    gain. `reason` says why the metric cannot tell, and is empty where it can: the interval lies above 0 and RESOLVED
    of the range is resolved. Columns: metric, negative, positive, resolved, separation, low, high, n, reason.
    """
    table = once(table)
    rows = []
    for metric, wide in _wide(table):
        positive = next((name for name in (DUPLICATE, CEILING) if name in wide and wide[name].notna().any()), None)
        if positive is None:
            continue
        sign, perfect = _sign(metric), 0.0 if metric in LOWER_IS_BETTER else 1.0
        negatives = {
            name: wide[name] for name in (NO_CHANGE, TRAINING_MEAN) if name in wide and wide[name].notna().any()
        }
        if not negatives and sign > 0:
            negatives["0"] = pd.Series(0.0, index=wide.index)
        if not negatives:
            continue
        negative = max(negatives, key=lambda name: sign * negatives[name].mean())
        both = pd.DataFrame({"negative": negatives[negative], "positive": wide[positive]}).dropna()
        gain = (sign * (both["positive"] - both["negative"])).to_numpy()
        room = float((sign * (perfect - both["negative"])).mean()) if len(both) else np.nan
        resolved = float(gain.mean()) / room if room > 0 else np.nan
        low, high = interval(gain, n_bootstrap, seed, within=gains(metric))
        separation = float((gain > 0).mean()) if len(gain) else np.nan
        reason = _mute(positive, negative, resolved, low, len(gain))
        rows.append((metric, negative, positive, resolved, separation, low, high, len(gain), reason))
    columns = ["metric", "negative", "positive", "resolved", "separation", "low", "high", "n", "reason"]
    return pd.DataFrame(rows, columns=columns)


def _mute(positive: str, negative: str, resolved: float, low: float, n: int) -> str:
    if np.isnan(low):
        return f"{n} conditions are too few to say whether it tells {positive} from {negative}"
    if low <= 0:
        return f"it does not tell {positive} from {negative}"
    if not resolved >= RESOLVED:
        return f"{positive} is only {resolved:.0%} of the way from {negative} to a perfect score"
    return ""


def differences(
    table: pd.DataFrame, n_bootstrap: int = 1000, seed: int = 0, *, against: str | None = None
) -> pd.DataFrame:
    """Each model against its best baseline, paired by condition: model, metric, baseline, improvement, low, high, n.

    `improvement` is the mean over conditions of how much better the model is (positive = better, whatever the
    metric's direction), `low` and `high` its 95% interval (`interval`). The best baseline is the one with the
    least improvement over it, among those with a value at half of the model's conditions or more.
    against: the row of this name, such as `prior` or another model, instead of the best baseline; ConfigError where
        there is none.
    """
    table = once(table)
    if against is not None and against not in set(table["model"]):
        raise ConfigError(f"against '{against}': expected a model of the table ({', '.join(table['model'].unique())})")
    rows = []
    rivals = RIVALS if against is None else (against,)
    for metric, wide in _wide(table):
        for model in [name for name in wide.columns if name not in (*REFERENCES, against)]:
            candidates = []
            for baseline in [name for name in rivals if name in wide]:
                gap = (_sign(metric) * (wide[model] - wide[baseline])).dropna().to_numpy()
                if len(gap) and (against or 2 * len(gap) >= wide[model].notna().sum()):
                    candidates.append((float(gap.mean()), baseline, gap))
            if candidates:
                mean, best, gap = min(candidates, key=lambda entry: entry[0])
                ends = interval(gap, n_bootstrap, seed, within=gains(metric))
                rows.append((model, metric, best, mean, *ends, len(gap)))
    return pd.DataFrame(rows, columns=["model", "metric", "baseline", "improvement", "low", "high", "n"])


def harm(table: pd.DataFrame) -> pd.DataFrame:
    """Share of conditions where a model is worse than no change: model, metric, share, n.

    Where no change has no value (a correlation of shifts), a model harms where its own value is below 0:
    it points the wrong way.
    """
    table = once(table)
    rows = []
    for metric, wide in _wide(table):
        for model in [name for name in wide.columns if name not in REFERENCES]:
            reference = wide[NO_CHANGE] if NO_CHANGE in wide else pd.Series(np.nan, index=wide.index)
            if metric not in LOWER_IS_BETTER:
                reference = reference.fillna(0.0)
            worse = (_sign(metric) * (wide[model] - reference)).dropna() < 0
            rows.append((model, metric, float(worse.mean()) if len(worse) else np.nan, len(worse)))
    return pd.DataFrame(rows, columns=["model", "metric", "share", "n"])


def stratified(table: pd.DataFrame, by: str, n_bootstrap: int = 1000, seed: int = 0) -> pd.DataFrame:
    """`summarise` within strata, with the stratum in a first column.

    by: `targets` (single, double, ... and how many of its targets occur in a training condition), `effect`
    (thirds of the norm of the real shift), or `cells` (thirds of the number of real cells).
    """
    attrs, table = table.attrs, once(table)
    table = table[table["condition"] != ALL]
    strata = _strata(table, attrs, by)
    parts = []
    for stratum in dict.fromkeys(strata[c] for c in sorted(strata, key=lambda c: strata[c])):
        part = table[table["condition"].map(strata) == stratum]
        parts.append(summarise(part, n_bootstrap, seed).assign(stratum=stratum))
    whole = pd.concat(parts, ignore_index=True)
    return whole[["stratum", *whole.columns.drop("stratum")]]


def _strata(table: pd.DataFrame, attrs: Mapping[Hashable, Any], by: str) -> dict[str, str]:
    conditions = [str(name) for name in table["condition"].unique()]
    if by == "targets":
        known = [*_attribute(attrs, "training_conditions"), *attrs.get("scored_in_training", [])]
        seen = {target for name in known for target in targets(name)}
        return {c: _kind(targets(c), seen) for c in conditions}
    if by == "effect":
        size = _attribute(attrs, "effect_size")
        return _thirds({c: float(size[c]) for c in conditions}, "effect")
    if by == "cells":
        cells = table.groupby("condition", observed=True)["n_cells"].first()
        return _thirds({c: float(cells[c]) for c in conditions}, "cells")
    raise ConfigError(f"strata by '{by}': expected targets, effect or cells")


def order_of(names: tuple[str, ...]) -> str:
    """single, double, triple, 4 targets, ..."""
    return {1: "single", 2: "double", 3: "triple"}.get(len(names), f"{len(names)} targets")


def _kind(names: tuple[str, ...], seen: set[str]) -> str:
    return f"{order_of(names)}, {sum(name in seen for name in names)} of {len(names)} seen"


def _thirds(values: dict[str, float], what: str) -> dict[str, str]:
    """Low, middle and high third by rank; ties are split by name so that the thirds are equal."""
    ordered = sorted(values, key=lambda c: (values[c], c))
    names = (f"1 low {what}", f"2 middle {what}", f"3 high {what}")
    return {c: names[min(3 * i // len(ordered), 2)] for i, c in enumerate(ordered)}


def _attribute(attrs: Mapping[Hashable, Any], name: str) -> Any:
    if name not in attrs:
        raise DataError(f"table of scores: its attrs lack '{name}'; give the table as evaluate returned it")
    return attrs[name]


def _wide(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Per metric with a direction, conditions × models."""
    for metric, part in table.groupby("metric", sort=False, observed=True):
        if metric not in NEUTRAL:
            yield str(metric), part.set_index(["condition", "model"])["value"].unstack()  # noqa: PD010


def gains(metric: str) -> tuple[float, float]:
    """Where the difference of two values of a metric can lie."""
    low, high = RANGES.get(metric, ANYWHERE)
    return low - high, high - low


def _sign(metric: str) -> int:
    return -1 if metric in LOWER_IS_BETTER else 1


def once(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with one row for each model, condition and metric, as tables put together repeat the references.

    It comes without the table's attrs: pandas would copy what they say of each condition at every step.
    Raises DataError where it is no table of `evaluate`, or where repeated rows disagree: their settings differed.
    """
    lacking = [c for c in ("model", "condition", "metric", "value", "n_cells") if c not in table.columns]
    if lacking:
        raise DataError(f"table of scores: column '{lacking[0]}' is missing; expected the long table of evaluate")
    if table.empty:
        raise DataError("table of scores: no rows; expected the long table of evaluate")
    key = ["model", "condition", "metric"]
    repeated = table.duplicated(key)
    if not repeated.any():
        scores = table.copy(deep=False)
        scores.attrs = {}
        return scores
    first_values = table.loc[~repeated].set_index(key)["value"]
    again = table.loc[repeated].set_index(key)["value"]
    agree = np.isclose(again, first_values.loc[again.index], rtol=1e-9, atol=1e-12, equal_nan=True)
    if not agree.all():
        model, condition, metric = again.index[int(np.argmin(agree))]
        raise DataError(
            f"table of scores: model '{model}' has two values of {metric} for condition '{condition}'; expected one: "
            "put together evaluations of the same conditions, genes, training and seed, under different names"
        )
    scores = table.loc[~repeated]
    scores.attrs = {}
    return scores
