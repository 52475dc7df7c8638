"""A prediction's counts scored by the rules of the challenge, beside the two ends of its scale and simple rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any, Final

import numpy as np
import pandas as pd
import scipy.sparse as sp
from tqdm.auto import tqdm

from scdfm.data.conditions import CONTROL, canonical
from scdfm.errors import ConditionError, DataError
from scdfm.evaluation import baselines
from scdfm.evaluation.alignment import chosen, shared_genes
from scdfm.evaluation.baselines import Training
from scdfm.evaluation.metrics import ERROR, FOLD_ERROR, VCC_METRICS, VCC_SCORED, checked
from scdfm.evaluation.prior import given_means
from scdfm.evaluation.pseudobulk import Floats, Rows, own_genes
from scdfm.evaluation.vcc2026.counts import Counts
from scdfm.evaluation.vcc2026.metrics import Side, compared, fold_errors, profiles, ratio, side_of
from scdfm.seeds import numpy_rng

ALL: Final = "all"
"""What stands for a condition where a metric is one number for all of them."""
MEAN_RESPONSE: Final = "mean response"
REPLICATE: Final = "replicate"
AVERAGE: Final = "avg_score"
RESERVED: Final = (MEAN_RESPONSE, REPLICATE)
"""Models that stand for the ends of the scale: 0, the mean of the real conditions, and 1, a repeat of the experiment."""
SPLITS: Final = 5
"""Random halvings of the real cells that make the 1."""


def score(
    predicted: Counts | None,
    real: Counts,
    *,
    name: str,
    training: Any = None,
    metrics: Iterable[str] | None = None,
    conditions: Sequence[str] | None = None,
    references: bool = True,
    ridge_penalty: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """The long table of `evaluate` by protocol vcc2026; the options are those of `evaluate`.

    Models: `name`; with `references` also `mean response`, `replicate` (in the one row `all` of each metric) and
    simple rules that have training conditions. `attrs["replicate"]` holds the anchor's spread over the splits.
    """
    metric_names = checked(metrics, VCC_METRICS)
    predicted, real, notes = _same_genes(predicted, real)
    scored, more = _scored(predicted, real, conditions)
    notes += more
    trained = _training(training, predicted, real, scored)
    labels = {CONTROL, *scored}
    panel = replace(real, rows={c: real.rows[c] for c in labels}, order=tuple(c for c in real.order if c in labels))
    if not own_genes(scored, real.genes).any():
        notes.append("no scored condition is named after a gene of the table: no target gene is left out")
    side = side_of(panel, panel.rows, scored)
    values: dict[str, dict[str, Floats]] = {}
    if predicted is not None:
        values[name] = _submission(predicted, panel, side, scored)
    spread: dict[str, dict[str, float]] = {}
    if references or predicted is None:
        values[MEAN_RESPONSE] = _submission(mean_response(panel, seed), panel, side, scored)
        values |= _rules(real, panel, side, trained, ridge_penalty, seed)
        if splittable(panel):
            anchor_table = anchors(replicates(panel, side, seed, progress)).set_index("metric")
            spread = anchor_table.to_dict(orient="index")  # type: ignore[assignment]
        else:
            notes.append("no replicate: control and some condition need two cells to be halved")
    table = _table(values, spread, metric_names, panel, scored)
    table.attrs = {
        "protocol": "vcc2026",
        "notes": notes,
        "training_conditions": list(trained),
        "effect_size": dict(zip(scored, np.linalg.norm(side.shift, axis=1).tolist(), strict=True)),
        "replicate": spread,
        "provenance": {
            "n_genes": len(real.genes),
            "n_tested_genes": int(side.tests.kept.sum()),
            "seed": seed,
            "splits": SPLITS,
            "release": "definitions of cell-eval2 0.20.0, preset vcc2026",
            "versions": {library: version(library) for library in ("numpy", "scipy", "illico")},
        },
    }
    return table


def _same_genes(predicted: Counts | None, real: Counts) -> tuple[Counts | None, Counts, list[str]]:
    """Both over the genes they share, in the order of the real ones, and what was left out."""
    if predicted is None:
        return None, real, []
    common, theirs = shared_genes(predicted.genes, real.genes), len(predicted.genes)
    notes = []
    if len(common) < max(theirs, len(real.genes)):
        notes.append(
            f"scored on the {len(common)} genes that both have ({theirs} predicted, {len(real.genes)} real): "
            "depth and counts per million are those of these genes; the challenge itself wants the same genes in both"
        )
    return predicted.restricted(common), real.restricted(common), notes


def _scored(
    predicted: Counts | None, real: Counts, conditions: Sequence[str] | None
) -> tuple[tuple[str, ...], list[str]]:
    measured = real.conditions
    claimed = measured if predicted is None else predicted.conditions
    real_conditions = set(measured)
    scored = tuple(c for c in claimed if c in real_conditions)
    if not scored:
        raise ConditionError(
            f"prediction and real cells share no condition (prediction: {', '.join(claimed[:5]) or 'none'}; real: "
            f"{', '.join(measured[:5]) or 'none'}); expected the same names: check perturbation_key and control"
        )
    if conditions is not None:
        scored = tuple(sorted(chosen(conditions, scored, measured)))
    notes = []
    unmeasured = len(claimed) - len(set(claimed) & set(measured))
    if unmeasured:
        notes.append(f"{unmeasured} predicted conditions are not measured and not scored")
    if len(scored) < len(measured) and predicted is not None:
        notes.append(
            f"{len(scored)} of {len(measured)} measured conditions are scored: a prediction is told apart from these alone"
        )
    return scored, notes


def _training(training: Any, predicted: Counts | None, real: Counts, scored: Sequence[str]) -> tuple[str, ...]:
    """Conditions whose real counts simple rules may use: those of `training`, or those not predicted."""
    if (table := given_means(training)) is None:
        taken = set(scored) | (set(predicted.conditions) if predicted else set())
        return tuple(c for c in real.conditions if c not in taken)
    names = {canonical(str(label)) for label in table.index} - set(scored)
    return tuple(c for c in real.conditions if c in names)


def _submission(predicted: Counts, panel: Counts, real: Side, scored: Sequence[str]) -> dict[str, Floats]:
    """Values [K] over `scored` of every metric, NaN for conditions that are not predicted; of the ratio [1]."""
    names = [c for c in scored if c in predicted.rows]
    side = side_of(predicted, predicted.rows, names, (panel, panel.rows[CONTROL]))
    scores = compared(side, real, panel.genes)
    at = [list(scored).index(c) for c in names]
    values: dict[str, Floats] = {ERROR: np.array([ratio(scores)])}
    for metric, value in scores.items():
        values[metric] = np.full(len(scored), np.nan)
        values[metric][at] = value
    return values


def _rules(
    counts: Counts, panel: Counts, real: Side, trained: Sequence[str], penalty: float | None, seed: int
) -> dict[str, dict[str, Floats]]:
    """Values of the simple rules, which predict profiles, each emitted as cells (`emitted`)."""
    sums = np.array([counts.sums(counts.rows[c])[0] for c in trained]).reshape(len(trained), len(counts.genes))
    training = Training(tuple(trained), profiles(sums), real.control_profile, tuple(counts.genes.tolist()))
    values = {}
    for rule, means in baselines.predictions(training, real.conditions, penalty).items():
        pairs = zip(real.conditions, means, strict=True)
        profile = {condition: mean for condition, mean in pairs if np.isfinite(mean).all()}
        if profile:
            values[rule] = _submission(emitted(panel, real, profile, seed), panel, real, real.conditions)
    return values


def _table(
    values: Mapping[str, Mapping[str, Floats]],
    spread: Mapping[str, Mapping[str, float]],
    metrics: Sequence[str],
    panel: Counts,
    scored: Sequence[str],
) -> pd.DataFrame:
    cells = [len(panel.rows[c]) for c in scored]
    rows = []
    for model, scores in values.items():
        for metric in metrics:
            if metric == ERROR:
                rows.append((model, ALL, metric, float(scores[metric][0]), sum(cells)))
            else:
                rows += [
                    (model, c, metric, float(value), n)
                    for c, value, n in zip(scored, scores[metric], cells, strict=True)
                ]
    rows += [
        (REPLICATE, ALL, metric, float(spread[metric]["replicate"]), sum(cells))
        for metric in metrics
        if metric in spread
    ]
    return pd.DataFrame(rows, columns=["model", "condition", "metric", "value", "n_cells"])


def scaled(table: pd.DataFrame) -> pd.DataFrame:
    """The scaled scores of a table of protocol vcc2026: 0 is the mean response, 1 a repeat of the experiment.

    Columns model, metric, value (mean over conditions), n (conditions with a value), baseline, replicate, scaled. A
    row `avg_score` of each model holds the mean of the six. The expression error is cut to 0 to 1 and the error of
    fold changes at −6, as in the challenge. NaN where the replicate is no better than the mean response.
    """
    if table.attrs.get("protocol") != "vcc2026":
        raise DataError(
            "table of scores: expected one of protocol vcc2026; give what evaluate(..., protocol='vcc2026') returned"
        )
    values = table.groupby(["model", "metric"], sort=False)["value"]
    mean, count = values.mean(), values.count()
    rows = []
    for model in dict.fromkeys(table["model"]):
        if model == REPLICATE:
            continue
        parts = []
        for metric in VCC_SCORED:
            ends = [mean.get((end, metric), np.nan) for end in (MEAN_RESPONSE, REPLICATE)]
            value = mean.get((model, metric), np.nan)
            parts.append(_on_scale(metric, float(value), float(ends[0]), float(ends[1])))
            rows.append((model, metric, value, int(count.get((model, metric), 0)), *ends, parts[-1]))
        rows.append((model, AVERAGE, np.nan, len(parts), np.nan, np.nan, float(np.mean(parts))))
    columns = ["model", "metric", "value", "n", "baseline", "replicate", "scaled"]
    return pd.DataFrame(rows, columns=columns)


def _on_scale(metric: str, value: float, baseline: float, replicate: float) -> float:
    lower = metric in (ERROR, FOLD_ERROR)
    room = (baseline - replicate) if lower else (replicate - baseline)
    if not room > 0:
        return float("nan")
    position = ((baseline - value) if lower else (value - baseline)) / room
    if metric == ERROR:
        return float(np.clip(position, 0, 1))
    return max(position, -6.0) if metric == FOLD_ERROR else position


def mean_response(counts: Counts, seed: int) -> Counts:
    """The zero of the scale: the mean count profile of the real conditions themselves, the same for all of them.

    A gene's mean leaves out the conditions that target it. The draws are those of cell-eval2's baseline of this seed.
    """
    names = sorted(counts.conditions, key=lambda name: counts.spelling[name])
    means = np.array([counts.sums(counts.rows[name])[0] / len(counts.rows[name]) for name in names])
    kept = ~own_genes(names, counts.genes)
    n = kept.sum(axis=0)
    left_out = np.where(n > 0, (means * kept).sum(axis=0) / np.maximum(n, 1), means.mean(axis=0))
    control = counts.sums(counts.rows[CONTROL])[0] / len(counts.rows[CONTROL])
    scale = np.divide(left_out, control, out=np.zeros_like(control), where=control > 0)
    rng = np.random.default_rng(seed)
    return _drawn(counts, ((name, scale, rng) for name in names))


def emitted(counts: Counts, real: Side, profile: Mapping[str, Floats], seed: int) -> Counts:
    """As many cells of each condition as there are real ones, whose expected profile is `profile` [A].

    `profile` is log1p of counts brought to 50,000, as `Side.profile`; a gene without control counts stays at 0. The
    control cells drawn depend on the seed and the condition, not on the predictor.
    """
    control = np.expm1(real.control_profile)
    linear = {name: np.expm1(np.maximum(log_profile, 0)) for name, log_profile in profile.items()}
    scale = {
        name: np.divide(values, control, out=np.zeros_like(control), where=control > 0)
        for name, values in linear.items()
    }
    return _drawn(counts, ((name, scale[name], numpy_rng(seed, "emission", name)) for name in profile))


def _drawn(counts: Counts, scales: Iterable[tuple[str, Floats, np.random.Generator]]) -> Counts:
    """For each condition as many control cells as it has cells, drawn with replacement, their counts times its scale [A];
    rounded to float32, as published."""
    control, parts, rows, start = counts.rows[CONTROL], [], {}, 0
    for name, scale, rng in scales:
        size = len(counts.rows[name])
        cells = counts.X[control[rng.integers(0, len(control), size=size)]]
        cells.data = (cells.data * scale[cells.indices]).astype(np.float32).astype(np.float64)
        cells.eliminate_zeros()
        parts.append(cells)
        rows[name] = np.arange(start, start + size)
        start += size
    return replace(counts, X=sp.csr_matrix(sp.vstack(parts, format="csr")), rows=rows)


def replicates(counts: Counts, real: Side, seed: int, progress: bool = False, splits: int = SPLITS) -> pd.DataFrame:
    """Columns split, metric, value, n: aggregates of `splits` random splits, and the conditions that have a value.

    Each condition of two cells or more is split into halves of equal size. The error of fold changes keeps the
    genes and the scale of `real`, the side of all cells, and compares the fold changes of the halves.
    """
    seeds = np.random.SeedSequence(seed).generate_state(splits)
    rows = []
    for i in tqdm(range(splits), "halves", unit="split", disable=not progress):
        values = _split(counts, real, int(seeds[i]))
        error = values.pop(ERROR)
        for name in VCC_METRICS:
            if name == ERROR:
                rows.append((i, name, float(error[0]), 0))
                continue
            defined = values[name][np.isfinite(values[name])]
            rows.append((i, name, float(defined.mean()) if len(defined) else np.nan, len(defined)))
    return pd.DataFrame(rows, columns=["split", "metric", "value", "n"])


def _split(counts: Counts, real: Side, seed: int) -> dict[str, Floats]:
    a, b = halves(counts.rows, counts.order, seed)
    names = [name for name in real.conditions if name in a]
    first, second = side_of(counts, a, names), side_of(counts, b, names)
    values = compared(second, first, counts.genes)
    at = np.array([real.conditions.index(name) for name in names])
    own = own_genes(names, counts.genes)
    true = real.tests.significant[at] & ~own
    values[FOLD_ERROR] = fold_errors(first.tests.fold, second.tests.fold, real.tests.fold[at], true)
    values[ERROR] = np.array([ratio(values)])
    return values


def halves(rows: Mapping[str, Rows], order: Sequence[str], seed: int) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """Two disjoint halves of ⌊n/2⌋ rows of every condition and of control, drawn in `order`; without those of one cell."""
    rng = np.random.default_rng(seed)
    first: dict[str, Rows] = {}
    second: dict[str, Rows] = {}
    for name in order:
        drawn = rng.permutation(rows[name])
        half = len(drawn) // 2
        if half:
            first[name], second[name] = np.sort(drawn[:half]), np.sort(drawn[half : 2 * half])
    return first, second


def anchors(table: pd.DataFrame) -> pd.DataFrame:
    """Columns metric, replicate, replicate_sd, replicate_min, replicate_max over the splits (sd divided by n)."""
    values = table.groupby("metric", sort=False)["value"]
    return pd.DataFrame(
        {
            "replicate": values.mean(),
            "replicate_sd": values.std(ddof=0),
            "replicate_min": values.min(),
            "replicate_max": values.max(),
        }
    ).reset_index()


def splittable(counts: Counts) -> bool:
    """Whether the control cells can be halved, and some condition."""
    big = [name for name, rows in counts.rows.items() if len(rows) > 1]
    return CONTROL in big and len(big) > 1
