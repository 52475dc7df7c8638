"""From the scores of all folds and seeds to one table with intervals, paired differences, and what each model cost.

Values are averaged over seeds, then over the conditions of a fold, then over folds. A condition may be tested
in several folds; its values hang together, so intervals are over conditions (clusters), not over rows.

What a model predicts before training stands in the tables as `prior`, or as `prior (MODEL)` beside other models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from scdfm.benchmarking.pieces import NO_SEED, Scored
from scdfm.data.conditions import targets
from scdfm.evaluation import BASELINES, CEILING, DUPLICATE, LOWER_IS_BETTER, PRIOR, interval
from scdfm.evaluation.metrics import NEUTRAL, RANGES
from scdfm.evaluation.pseudobulk import Floats
from scdfm.evaluation.summary import ANYWHERE, REFERENCES, gains, order_of
from scdfm.report.labels import count
from scdfm.report.tables import piped

ALL, BEST = "all", "best baseline"
COSTS: Final = (
    "budget", "seconds", "cpu", "peak_mib", "environment_mib", "steps", "parameters", "populations", "asked", "predicted",
    "below_zero", "failed",
)  # fmt: skip
"""Of a model in a fold: seconds allowed, of clock, of CPU; peak resident memory, and size of its environment, MiB; training
steps; parameters; what its cells are; conditions asked for and predicted; share of values cut at 0; why it failed."""


@dataclass(frozen=True)
class Tables:
    """What a benchmark says.

    `scores`: long, one row per model, fold, seed, condition and metric (`pieces.COLUMNS`).
    `summary`: part, model, metric, mean, median, low, high, n, n_undefined, n_conditions, n_folds, n_seeds, seed_sd.
    `differences`: part, model, metric, baseline, improvement, low, high, n, n_conditions: to the best baseline, then to
    the model's own prior where it has one.
    `part` is `all`, or single, double, ... where a test holds several kinds.
    """

    scores: pd.DataFrame
    summary: pd.DataFrame
    differences: pd.DataFrame


def aggregate(scored: Sequence[Scored], n_bootstrap: int = 1000, seed: int = 0) -> Tables:
    """The tables of finished pieces."""
    scores = _priors_named(pd.concat([piece.table for piece in scored], ignore_index=True))
    own = scores[scores["beside"] == ""]
    summaries, gaps = [], []
    for part in parts(scores["condition"]):
        in_part = [part in (ALL, kind(str(name))) for name in scores["condition"]]
        summaries.append(summarise(own[np.array(in_part)[own.index]], n_bootstrap, seed).assign(part=part))
        tables = [differences(scores[in_part], n_bootstrap, seed, against=name) for name in (BEST, PRIOR)]
        gaps.append(pd.concat([table for table in tables if len(table)] or tables[:1]).assign(part=part))
    return Tables(scores, *(_first(pd.concat(group, ignore_index=True)) for group in (summaries, gaps)))


def _priors_named(scores: pd.DataFrame) -> pd.DataFrame:
    """`scores` with priors under names that tell whose they are, where there are several models."""
    mine = scores["model"] == PRIOR
    if len(_contenders(scores["model"])) > 1:
        scores = scores.assign(model=scores["model"].where(~mine, PRIOR + " (" + scores["beside"] + ")"))
    return scores.assign(beside=scores["beside"].where(~mine, ""))


def is_prior(name: str) -> bool:
    """Whether a row is what a model predicts before training; no model may be called so (`plan.Contender`)."""
    return name == PRIOR or name.startswith(f"{PRIOR} (")


def _first(table: pd.DataFrame) -> pd.DataFrame:
    return table[["part", *table.columns.drop("part")]]


def kind(condition: str) -> str:
    """single, double, triple, 4 targets, ..."""
    return order_of(targets(condition))


def parts(conditions: pd.Series[str]) -> list[str]:
    """`all`, and the kinds of condition where there are several."""
    kinds = {len(targets(str(name))): kind(str(name)) for name in conditions.unique()}
    return [ALL, *(kinds[n] for n in sorted(kinds))] if len(kinds) > 1 else [ALL]


def summarise(scores: pd.DataFrame, n_bootstrap: int = 1000, seed: int = 0) -> pd.DataFrame:
    """One row per model and metric; columns as the `summary` of Tables, without `part`.

    mean: over folds of the mean over conditions of the mean over seeds; low, high: its 95% interval over
    conditions; median: over the conditions of all folds; n, n_undefined: conditions of all folds with and
    without a value; seed_sd: standard deviation of the mean over seeds, NaN with fewer than two.
    """
    rows = []
    for (model, metric), part in scores.groupby(["model", "metric"], sort=False):
        values = _over_seeds(part)
        defined = values.dropna(subset="value")
        mean, spread = clustered(defined)
        low, high = interval(spread, n_bootstrap, seed, within=RANGES.get(str(metric), ANYWHERE))
        seeds = [clustered(run.dropna(subset="value"))[0] for _, run in part.groupby("seed")]
        rows.append({
            "model": model, "metric": metric, "mean": mean, "median": defined["value"].median(), "low": low,
            "high": high, "n": len(defined), "n_undefined": len(values) - len(defined), "n_conditions": len(spread),
            "n_folds": defined["fold"].nunique(), "n_seeds": int((part["seed"].unique() != NO_SEED).sum()),
            "seed_sd": float(np.std(seeds, ddof=1)) if len(seeds) > 1 else np.nan,
        })  # fmt: skip
    order = {name: place for place, name in enumerate(_ranked(scores["model"]))}
    return pd.DataFrame(rows).sort_values("model", key=lambda names: names.map(order), kind="stable")


def _ranked(models: pd.Series[str]) -> list[str]:
    """Baselines, priors, contenders as they were named, duplicate, ceiling."""
    names = [str(name) for name in models.unique()]
    priors = [name for name in names if is_prior(name)]
    return [name for name in (*BASELINES, *priors, *_contenders(models), DUPLICATE, CEILING) if name in names]


def _contenders(models: pd.Series[str]) -> list[str]:
    return [str(name) for name in models.unique() if name not in REFERENCES and not is_prior(str(name))]


def _over_seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """fold, condition, value: the mean over the seeds that have one."""
    return scores.groupby(["fold", "condition"], sort=False)["value"].mean().reset_index()


def clustered(values: pd.DataFrame) -> tuple[float, Floats]:
    """The mean over folds of the means over conditions of `values` (fold, condition, value, none NaN), and its spread.

    The mean is Σ w·v with w = 1 / (folds · conditions of the fold). The spread has one number per condition,
    mean + K·Σ w·(v − mean) over its folds (K conditions): their average is the mean, and their standard
    error that of a ratio estimator clustered by condition (Cochran 1977, ch. 9A). With one fold they are the values.
    """
    if values.empty:
        return float("nan"), np.empty(0)
    sizes = values.groupby("fold")["value"].transform("size").to_numpy(np.float64)
    weights = 1 / (sizes * values["fold"].nunique())
    mean = float((weights * values["value"]).sum())
    by_condition = (weights * (values["value"] - mean)).groupby(values["condition"], sort=False).sum()
    return mean, mean + len(by_condition) * by_condition.to_numpy(np.float64)


def differences(scores: pd.DataFrame, n_bootstrap: int = 1000, seed: int = 0, *, against: str = BEST) -> pd.DataFrame:
    """Each contender against its best baseline, as `evaluation.differences`, over folds and seeds.

    Values are paired by fold and condition. A file that lacks conditions of a fold is paired with references
    scored on those it holds. `improvement` is positive where the model is better, whatever the metric's direction.
    against: `prior` takes each contender's own prior instead; contenders without one are left out.
    """
    rows = []
    for model in _contenders(scores["model"]):
        rivals = BASELINES if against == BEST else (PRIOR, f"{PRIOR} ({model})")
        for metric, wide in _paired(scores, model):
            sign = -1 if metric in LOWER_IS_BETTER else 1
            candidates = []
            for baseline in [name for name in rivals if name in wide]:
                gap = (sign * (wide[model] - wide[baseline])).dropna().rename("value").reset_index()
                if len(gap) and (against != BEST or 2 * len(gap) >= wide[model].notna().sum()):
                    candidates.append((*clustered(gap), baseline, len(gap)))
            if candidates:
                mean, spread, best, n = min(candidates, key=lambda entry: entry[0])
                ends = interval(spread, n_bootstrap, seed, within=gains(metric))
                rows.append((model, metric, best, mean, *ends, n, len(spread)))
    columns = ["model", "metric", "baseline", "improvement", "low", "high", "n", "n_conditions"]
    return pd.DataFrame(rows, columns=columns)


def _paired(scores: pd.DataFrame, model: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Per metric with a direction, fold and condition × model, its prior and baselines, each a mean over seeds."""
    again = scores[scores["beside"] == model]
    common = (scores["beside"] == "") & ~scores["fold"].isin(again["fold"]) & scores["model"].isin(BASELINES)
    own = scores[scores["model"].isin([model, PRIOR, f"{PRIOR} ({model})"])]
    table = pd.concat([own, again[again["model"] != CEILING], scores[common]])
    for metric, part in table.groupby("metric", sort=False):
        if metric not in NEUTRAL:
            means = part.groupby(["fold", "condition", "model"])["value"].mean()
            yield str(metric), means.unstack()  # noqa: PD010


def costs(scored: Sequence[Scored]) -> pd.DataFrame:
    """model, fold, seed and COSTS of every piece that is a model's own."""
    rows = [
        {"model": done.piece.name, "fold": done.piece.fold, "seed": done.piece.seed} | dict(done.cost)
        for done in scored
        if done.cost
    ]
    return pd.DataFrame(rows, columns=["model", "fold", "seed", *COSTS])


def cost_rows(table: pd.DataFrame) -> list[list[str]]:
    """`costs` for readers, a row for each model after one of headings; no row where no command competes.

    Means over folds and seeds, of memory the largest; times of fits are in it where commands stand beside them.
    """
    if table["budget"].isna().all():
        return []
    rows = [["model", "conditions", "CPU s", "clock s", "budget s", "peak MiB", "environment MiB", "steps", "parameters",
             "cut at 0", "populations"]]  # fmt: skip
    for model, part in table.groupby("model", sort=False):
        failures = part["failed"].notna().sum()
        asked, predicted = part["asked"].sum(), part["predicted"].sum()
        said = f"{predicted:.0f} of {asked:.0f}" if asked else "all"
        if failures:
            said += f", {count(int(failures), 'failure')}"
        numbers = [
            part[name].astype(float).agg("max" if "mib" in name else "mean")
            for name in ("cpu", "seconds", "budget", "peak_mib", "environment_mib", "steps", "parameters")
        ]
        cut = part["below_zero"].astype(float).mean()
        kinds = [str(kind) for kind in part["populations"].dropna().unique()]
        rows.append([str(model), said, *(_whole(one) for one in numbers), "" if pd.isna(cut) else f"{cut:.1%}",
                     ", ".join(kinds)])  # fmt: skip
    return rows


def _whole(number: float) -> str:
    return "" if pd.isna(number) else f"{number:,.0f}"


def cost_markdown(table: pd.DataFrame) -> str:
    """`cost_rows` as Markdown; empty where there are none."""
    rows = cost_rows(table)
    return piped(rows, "|---|---|" + "---:|" * (len(rows[0]) - 3) + "---|") if rows else ""


def cost_text(table: pd.DataFrame) -> str:
    """`cost_rows` for a terminal; empty where there are none."""
    rows = cost_rows(table)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )
