"""Score anybody's predictions of perturbed populations, beside simple rules and the data's own ceiling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdfm.data.conditions import CONTROL, control_of
from scdfm.errors import ConfigError, DataError
from scdfm.evaluation import baselines, protocols
from scdfm.evaluation.alignment import Cells, Pair, align
from scdfm.evaluation.baselines import Training
from scdfm.evaluation.ceiling import (
    CEILING,
    DUPLICATE,
    Halves,
    disjoint_halves,
    half_against_all,
    interpolated_duplicate,
)
from scdfm.evaluation.expression import FDR, RankTests, against_control, score_responders
from scdfm.evaluation.metrics import (
    METRICS,
    RESPONDERS,
    WEIGHTED,
    Standard,
    checked,
    effect_weights,
    score_means,
    top_genes,
)
from scdfm.evaluation.populations import score_populations
from scdfm.evaluation.prior import (
    PRIOR,
    Fitted,
    Predictor,
    notes_of_even_cells,
    prior_of,
    prior_population,
    training_control_of,
    training_means,
)
from scdfm.evaluation.pseudobulk import (
    Floats,
    Moments,
    Population,
    control_means,
    control_moments,
    halved_controls,
    moments,
    own_genes,
    row_means,
)
from scdfm.evaluation.vcc2026.counts import Counts, counted, log1p_cells, refuse_options
from scdfm.evaluation.vcc2026.score import RESERVED, score

Protocol = Literal["scdfm", "paper", "vcc2026"]
PAPER_GENES = 1000
PAPER_RIDGE = 0.1


@dataclass(frozen=True)
class Setting:
    """Everything the scores of one evaluation rest on; see `evaluate` for the options."""

    pair: Pair
    training: Training
    training_apart: Training
    standard: Standard
    protocol: Protocol
    metrics: tuple[str, ...]
    seed: int
    tests: RankTests | None = None


def evaluate(
    predicted: Cells | Counts | None,
    real: Cells | Counts,
    control: str = CONTROL,
    protocol: Protocol = "scdfm",
    training: Fitted | pd.DataFrame | None = None,
    metrics: Iterable[str] | None = None,
    *,
    perturbation_key: str | None = None,
    predicted_key: str | None = None,
    name: str = "model",
    subset: Mapping[str, str] | None = None,
    conditions: Sequence[str] | None = None,
    genes: int | Sequence[str] | None = None,
    references: bool = True,
    release: protocols.Release = "0.5.42",
    ridge_penalty: float | None = None,
    check_scale: bool = True,
    layer: str | None = None,
    backed: bool | None = None,
    seed: int = 0,
    progress: bool = False,
    prior: Predictor | None = None,
    on_cells: Callable[[Pair, RankTests | None], object] | None = None,
) -> pd.DataFrame:
    """Score predicted cells against real cells, condition by condition.

    predicted, real: paths (`.h5ad`, `.zarr`), AnnData or CellTables of log1p values with a condition column
        (`perturbation_key`, else `perturbation`). Real cells of a path that holds counts, covariates, doses or times are
        read first: `real=read_cells(path, covariates=["cell_type"])`. Genes are aligned by name. `predicted` None
        scores the simple rules alone. The prediction needs no control cells: the real ones are the control of every score.
        Values of it below 0 are scored as they are, and told in the notes.
    predicted_key: the prediction's condition column; without it `perturbation_key`, or the only one whose labels are
        conditions of the real cells.
    control: the label of control cells. subset: obs columns and values that choose cells.
    protocol: `scdfm`, or `paper`, the published one (docs/evaluation.md tells them apart); `release` is the
        release of cell-eval whose names and definitions `paper` follows. Or `vcc2026`, the Virtual Cell Challenge
        2026: raw counts on both sides (paths, AnnData or `read_counts`; `layer` names where the real ones stand, the
        predicted ones are in X), scaled by `scdfm.scaled`; genes, release, check_scale and backed are not its options.
    training: what the model was trained on, for the simple rules: a Run (its `means`), a table of means
        (conditions × genes), or None: the real conditions that are not predicted. A Run whose flow starts from its prior
        adds the row `prior`: what the same run predicts before training, as many cells with the same seed.
    metrics: names, default all of the protocol but those of predicted cells' differential expression (`de_recall`,
        `de_precision`, `de_direction`), which take as long as the rest.
    conditions: those scored, default all predicted and measured.
    genes: the genes of the pointwise metrics: names, or a number (those of largest variance over the
        scored and control real cells); default all common genes (`paper`: 1,000).
    references: False scores the model alone. ridge_penalty: λ of ridge; default chosen by leave-one-out
        (`paper`: 0.1). check_scale: False scores a prediction that looks to be in another scale.
    backed: keeps cells of files on disk while they are scored, as in `read_cells`. progress: bars with the time left.
    prior: what predicts the row `prior` instead, with `references` or without.
    on_cells: is handed the aligned cells that were scored, and their rank tests where there are some, once they are.
        Not called where `predicted` is None.

    Returns a long table: model, condition, metric, value (NaN = undefined), n_cells (real cells). `model` is
    `name`, a baseline, `prior`, `ceiling` or `duplicate`. `table.attrs` holds protocol, notes, provenance, the training
    conditions and each condition's effect size. Raises DataError, ConditionError or ConfigError, one line each.
    """
    _check_options(protocol, release, name)
    if protocol == "vcc2026":
        foreign = {
            "genes": genes is not None, "release": release != "0.5.42", "check_scale": not check_scale,
            "backed": backed is True,
            "prior": prior is not None,
        }  # fmt: skip
        refuse_options(foreign, "vcc2026")
        pred, truth = counted(predicted, real, control, perturbation_key, subset, layer)
        return score(
            pred, truth, name=name, training=training, metrics=metrics, conditions=conditions, references=references,
            ridge_penalty=ridge_penalty, seed=seed, progress=progress,
        )  # fmt: skip
    refuse_options({"layer": layer is not None}, protocol)
    predicted, real = log1p_cells(predicted), log1p_cells(real)
    assert real is not None
    usual = METRICS if protocol == "scdfm" else (*METRICS, *protocols.NAMES)
    metric_names = usual if metrics is None else checked(metrics, (*usual, *RESPONDERS))
    pair = align(
        predicted,
        real,
        control=control,
        perturbation_key=perturbation_key,
        subset=subset,
        conditions=conditions,
        check_scale=check_scale,
        predicted_key=predicted_key,
        training_control=training_control_of(training),
        backed=backed,
    )
    setting, notes = _setting(pair, training, protocol, metric_names, genes, seed, progress)
    generated, more = _generated(pair, predicted, name, prior, training, references, seed, progress)
    notes += [*more, *notes_of_even_cells(predicted, pair, metric_names)]
    values = {model: _score_cells(setting, cells, release) for model, cells in generated.items()}
    means, halves = {}, None
    if references or predicted is None:
        penalty = PAPER_RIDGE if ridge_penalty is None and protocol == "paper" else ridge_penalty
        means = baselines.predictions(setting.training, pair.conditions, penalty)
        apart = baselines.predictions(setting.training_apart, pair.conditions, penalty)
        values |= {
            rule: score_means(mean, setting.standard, metric_names, apart=apart[rule]) for rule, mean in means.items()
        }
        halves = disjoint_halves(pair.real, pair.conditions, seed)
        paper = half_against_all(pair.real, pair.conditions, seed) if protocol == "paper" else None
        del apart  # conditions × genes for each rule: the populations need the memory
        values |= _score_halves(setting, paper or halves)
    for model, scores in score_populations(pair, generated, means, halves, metric_names, seed, progress).items():
        values[model] |= scores
    if set(RESPONDERS) & set(metric_names):
        for model, scores in score_responders(pair, name, halves, seed, progress).items():
            values[model] |= scores
    table = _table(values, setting)
    table.attrs |= _attributes(setting, notes, release)
    if on_cells is not None and pair.predicted is not None:
        on_cells(pair, setting.tests)
    return table


def _check_options(protocol: str, release: str, name: str) -> None:
    if protocol not in ("scdfm", "paper", "vcc2026"):
        raise ConfigError(f"protocol '{protocol}': expected scdfm, paper or vcc2026")
    if release not in protocols.RELEASES:
        raise ConfigError(f"release '{release}': expected one of {', '.join(protocols.RELEASES)}")
    if name in (*baselines.BASELINES, PRIOR, CEILING, DUPLICATE, *RESERVED):
        raise ConfigError(f"name '{name}' is that of a reference; choose another for the model")


def _generated(
    pair: Pair,
    predicted: Cells | None,
    name: str,
    prior: Predictor | None,
    training: Fitted | pd.DataFrame | None,
    references: bool,
    seed: int,
    progress: bool,
) -> tuple[dict[str, Population], list[str]]:
    """What is scored by its own cells: the prediction under its `name`, and its prior, if there is one; and notes."""
    if predicted is None or pair.predicted is None:
        return {}, []
    generated = {name: pair.predicted}
    before, notes = prior_of(training) if prior is None and references else (prior, [])
    if before is not None:
        cells, notes = prior_population(before, predicted, pair, seed, progress)
        generated |= {} if cells is None else {PRIOR: cells}
    return generated, notes


def _setting(
    pair: Pair,
    training: Fitted | pd.DataFrame | None,
    protocol: Protocol,
    metrics: tuple[str, ...],
    genes: int | Sequence[str] | None,
    seed: int,
    progress: bool,
) -> tuple[Setting, list[str]]:
    notes = list(pair.notes)
    real = moments(pair.real, [CONTROL, *pair.conditions])
    controls = control_moments(pair.real, pair.conditions).mean
    trained, more = training_means(training, pair, real.mean[0])
    notes += more
    scored, more = _scored_genes(genes, protocol, pair, real)
    notes += more
    tests = None
    tested = {"de_spearman", *WEIGHTED, *(["pearson_delta_hat_20"] if protocol == "scdfm" else [])}
    if tested & set(metrics):
        tests = against_control(pair.real, pair.conditions, CONTROL, progress)
    control = controls if pair.real.matched else controls[0]
    shift = real.mean[1:] - control
    halves = halved_controls(pair.real, seed)
    apart = tuple(control_means(half, pair.conditions) for half in halves)
    n_cells = np.array([pair.real.n_cells(c) for c in pair.conditions])
    prominence = np.abs(shift if protocol == "paper" or tests is None else tests.z)[:, scored]
    standard = Standard(
        real=real.mean[1:],
        control=control,
        centre=trained.centre(pair.conditions),
        scored=scored,
        top=top_genes(prominence),
        significant=(np.zeros_like(prominence, dtype=bool) if tests is None else tests.fdr[:, scored] < FDR),
        noise=real.select(np.arange(len(n_cells) + 1) > 0).error(n_cells, scored),
        weight=effect_weights(np.ones_like(prominence) if tests is None else tests.z[:, scored]),
        targeted=np.asarray(own_genes(pair.conditions, pair.real.genes).any(axis=0)),
        apart=(apart[0], apart[1]),
        groups=_by_covariates(pair.conditions) if pair.real.matched else None,
    )
    first = replace(pair, real=halves[0])
    trained_apart = training_means(training, first, control_means(replace(halves[0], matched={}), []))[0]
    return Setting(pair, trained, trained_apart, standard, protocol, metrics, seed, tests), notes


def _by_covariates(conditions: Sequence[str]) -> tuple[list[int], ...]:
    """Places of the conditions with the same covariates."""
    groups: dict[str, list[int]] = {}
    for place, condition in enumerate(conditions):
        groups.setdefault(control_of(condition), []).append(place)
    return tuple(groups.values())


def _scored_genes(
    genes: int | Sequence[str] | None, protocol: Protocol, pair: Pair, real: Moments
) -> tuple[NDArray[np.int64], list[str]]:
    names = pair.real.genes.tolist()
    if genes is None and protocol == "paper":
        genes = PAPER_GENES
    if genes is None:
        return np.arange(len(names)), []
    if isinstance(genes, int):
        if genes < 2:
            raise ConfigError(f"genes {genes}: expected at least 2, or a list of names")
        if genes >= len(names):
            return np.arange(len(names)), []
        cells = np.array([pair.real.n_cells(c) for c in (CONTROL, *pair.conditions)], dtype=float)
        mean = np.average(real.mean, axis=0, weights=cells)
        variance = np.average(real.variance + real.mean**2, axis=0, weights=cells) - mean**2
        note = f"pointwise metrics on the {genes} genes of largest variance over scored and control real cells"
        return np.argsort(-variance)[:genes], [note]
    place = {gene: i for i, gene in enumerate(names)}
    unknown = [gene for gene in genes if gene not in place]
    if unknown:
        raise DataError(
            f"genes: {len(unknown)} of the {len(genes)} asked for are not in both tables (first: {unknown[0]}); "
            "leave them out"
        )
    return np.array([place[gene] for gene in genes], dtype=np.int64), [f"pointwise metrics on {len(genes)} given genes"]


def _score_cells(setting: Setting, cells: Population, release: protocols.Release) -> dict[str, Floats]:
    """Pointwise metrics of generated cells' means, and cell-eval's of the cells; these know no condition without any."""
    pair = replace(setting.pair, predicted=cells)
    stats, n_cells = moments(cells, pair.conditions), np.array([cells.n_cells(c) for c in pair.conditions])
    empty = n_cells == 0
    stats.mean[empty] = np.nan
    own = None
    if setting.protocol == "paper" and CONTROL in cells.rows and not pair.real.matched:
        own = row_means(cells.X, cells.rows[CONTROL])
    # Of one cell no noise can be told, and none is taken off.
    noise = np.nan_to_num(stats.error(n_cells, setting.standard.scored))
    values = score_means(stats.mean, setting.standard, setting.metrics, own, noise=noise)
    names = [name for name in setting.metrics if name in protocols.NAMES and not empty.any()]
    return values | protocols.cell_eval(pair, setting.standard.scored, names, release)


def _score_halves(setting: Setting, halves: Halves) -> dict[str, dict[str, Floats]]:
    """Pointwise metrics of the ceiling and of the interpolated duplicate."""
    real, conditions = setting.pair.real, setting.pair.conditions
    half, compared = halves.moments(real, conditions)
    n_compared = np.array([len(halves.compared[condition]) for condition in conditions])
    scored = setting.standard.scored
    against = replace(setting.standard, real=compared.mean, noise=compared.error(n_compared, scored))
    control = control_moments(real, conditions)
    n_control = np.array([real.control_number(c) for c in conditions])
    n = np.array([len(halves.predicting[condition]) for condition in conditions])
    duplicate = np.full_like(half.mean, np.nan)
    tested = (n > 1) & (n_control > 1) & bool(setting.training.conditions)
    if tested.any():
        names = [name for name, kept in zip(conditions, tested, strict=True) if kept]
        part = half.select(tested)
        own = control.select(tested) if real.matched else control
        typical = setting.training.centre(names)
        duplicate[tested] = interpolated_duplicate(part, n[tested], own, n_control[tested][:, None], typical)
    return {
        CEILING: score_means(half.mean, against, setting.metrics, noise=half.error(n, scored)),
        DUPLICATE: score_means(duplicate, against, setting.metrics),
    }


def _table(values: dict[str, dict[str, Floats]], setting: Setting) -> pd.DataFrame:
    conditions = setting.pair.conditions
    cells = [setting.pair.real.n_cells(condition) for condition in conditions]
    parts = [
        pd.DataFrame(
            {"model": model, "condition": conditions, "metric": metric, "value": scores[metric], "n_cells": cells}
        )
        for model, scores in values.items()
        for metric in setting.metrics
        if metric in scores
    ]
    if not parts:
        raise ConfigError(f"metrics {', '.join(setting.metrics)} need predicted cells; give a prediction")
    return pd.concat(parts, ignore_index=True)


def _attributes(setting: Setting, notes: list[str], release: str) -> dict[str, Any]:
    from importlib.metadata import version

    standard = setting.standard
    shift = (standard.real - standard.control)[:, standard.scored]
    if not setting.training.conditions:
        notes = [*notes, "no training conditions: baselines other than no change are undefined"]
    return {
        "protocol": setting.protocol,
        "notes": notes,
        "training_conditions": list(setting.training.conditions),
        "scored_in_training": list(setting.training.scored),
        "effect_size": dict(zip(setting.pair.conditions, np.linalg.norm(shift, axis=1).tolist(), strict=True)),
        "provenance": {
            "n_genes": len(setting.pair.real.genes),
            "n_scored_genes": len(standard.scored),
            "seed": setting.seed,
            "release": release if setting.protocol == "paper" else None,
            "versions": {name: version(name) for name in ("numpy", "scipy", "illico")},
        },
    }
