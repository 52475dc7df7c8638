"""Score anybody's predictions of perturbed populations, beside simple rules and the data's own ceiling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scdfm.data.conditions import CONTROL, canonical, control_of, targets
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
from scdfm.evaluation.expression import against_control
from scdfm.evaluation.metrics import METRICS, Standard, checked, score_means
from scdfm.evaluation.pointwise import top_genes
from scdfm.evaluation.populations import score_populations
from scdfm.evaluation.prior import PRIOR, Fitted, Predictor, prior_of, prior_population
from scdfm.evaluation.pseudobulk import Floats, Moments, Population, control_moments, moments, row_means

Protocol = Literal["scdfm", "paper"]
PAPER_GENES = 1000
PAPER_RIDGE = 0.1


@dataclass(frozen=True)
class Setting:
    """Everything the scores of one evaluation rest on; see `evaluate` for the options."""

    pair: Pair
    training: Training
    standard: Standard
    protocol: Protocol
    metrics: tuple[str, ...]
    seed: int


def evaluate(
    predicted: Cells | None,
    real: Cells,
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
    backed: bool | None = None,
    seed: int = 0,
    progress: bool = False,
    prior: Predictor | None = None,
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
        release of cell-eval whose names and definitions `paper` follows.
    training: what the model was trained on, for the simple rules: a Run (its `means`), a table of means
        (conditions × genes), or None: the real conditions that are not predicted. A Run whose flow starts from its prior
        adds the row `prior`: what the same run predicts before training, as many cells with the same seed.
    metrics: names, default all of the protocol. conditions: those scored, default all predicted and measured.
    genes: the genes of the pointwise metrics: names, or a number (those of largest variance over the
        scored and control real cells); default all common genes (`paper`: 1,000).
    references: False scores the model alone. ridge_penalty: λ of ridge; default chosen by leave-one-out
        (`paper`: 0.1). check_scale: False scores a prediction that looks to be in another scale.
    backed: keeps cells of files on disk while they are scored, as in `read_cells`. progress: bars with the time left.
    prior: what predicts the row `prior` instead, with `references` or without.

    Returns a long table: model, condition, metric, value (NaN = undefined), n_cells (real cells). `model` is
    `name`, a baseline, `prior`, `ceiling` or `duplicate`. `table.attrs` holds protocol, notes, provenance, the training
    conditions and each condition's effect size. Raises DataError, ConditionError or ConfigError, one line each.
    """
    _check_options(protocol, release, name)
    known = METRICS if protocol == "scdfm" else (*METRICS, *protocols.NAMES)
    asked = checked(metrics, known)
    pair = align(
        predicted,
        real,
        control=control,
        perturbation_key=perturbation_key,
        subset=subset,
        conditions=conditions,
        check_scale=check_scale,
        predicted_key=predicted_key,
        training_control=_training_control(training),
        backed=backed,
    )
    setting, notes = _setting(pair, training, protocol, asked, genes, seed, progress)
    generated, more = _generated(
        pair, predicted, name, prior, training if references else None, seed, progress
    )
    notes += more
    values = {model: _score_cells(setting, cells, release) for model, cells in generated.items()}
    means, halves = {}, None
    if references or predicted is None:
        penalty = PAPER_RIDGE if ridge_penalty is None and protocol == "paper" else ridge_penalty
        means = baselines.predictions(setting.training, pair.conditions, penalty)
        values |= {rule: score_means(mean, setting.standard, asked) for rule, mean in means.items()}
        halves = disjoint_halves(pair.real, pair.conditions, seed)
        paper = half_against_all(pair.real, pair.conditions, seed) if protocol == "paper" else None
        values |= _score_halves(setting, paper or halves)
    for model, scores in score_populations(pair, generated, means, halves, asked, seed, progress).items():
        values[model] |= scores
    table = _table(values, setting)
    table.attrs |= _attributes(setting, notes, release)
    return table


def _check_options(protocol: str, release: str, name: str) -> None:
    if protocol not in ("scdfm", "paper"):
        raise ConfigError(f"protocol '{protocol}': expected scdfm or paper")
    if release not in protocols.RELEASES:
        raise ConfigError(f"release '{release}': expected one of {', '.join(protocols.RELEASES)}")
    if name in (*baselines.BASELINES, PRIOR, CEILING, DUPLICATE):
        raise ConfigError(f"name '{name}' is that of a reference; choose another for the model")


def _generated(
    pair: Pair,
    predicted: Cells | None,
    name: str,
    prior: Predictor | None,
    training: Fitted | pd.DataFrame | None,
    seed: int,
    progress: bool,
) -> tuple[dict[str, Population], list[str]]:
    """What is scored by its own cells: the prediction under its `name`, and its prior, if there is one; and notes."""
    if predicted is None or pair.predicted is None:
        return {}, []
    generated = {name: pair.predicted}
    before, notes = (prior, []) if prior is not None else prior_of(training)
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
    if "de_spearman" in metrics or ("pearson_delta_hat_20" in metrics and protocol == "scdfm"):
        tests = against_control(pair.real, pair.conditions, CONTROL, progress)
    control = controls if pair.real.matched else controls[0]
    shift = real.mean[1:] - control
    prominence = np.abs(shift if protocol == "paper" or tests is None else tests.z)[:, scored]
    standard = Standard(
        real=real.mean[1:],
        control=control,
        centre=trained.centre(pair.conditions),
        scored=scored,
        top=top_genes(prominence),
        significant=(np.zeros_like(prominence, dtype=bool) if tests is None else tests.fdr[:, scored] < 0.05),
        groups=tuple(pair.real.control_groups(pair.conditions).values()) if pair.real.matched else None,
    )
    return Setting(pair, trained, standard, protocol, metrics, seed), notes


def _given_means(training: Fitted | pd.DataFrame | None) -> pd.DataFrame | None:
    """The table of means that is given, or that a run holds; ConfigError for anything else."""
    if training is None or isinstance(training, pd.DataFrame):
        return training
    if isinstance(training, Fitted):
        return training.means
    raise ConfigError(
        f"training: expected None, a Run or a table of means (conditions × genes), found {type(training).__name__}"
    )


def _training_control(training: Fitted | pd.DataFrame | None) -> pd.Series[float] | None:
    """The control row of a table of training means, if there is one."""
    table = _given_means(training)
    if table is None or CONTROL not in table.index:
        return None
    return pd.Series(table.to_numpy()[table.index == CONTROL][0], index=table.columns)


def training_means(
    training: Fitted | pd.DataFrame | None, pair: Pair, control: Floats
) -> tuple[Training, list[str]]:
    """The training conditions' means over the aligned genes, and notes on where they come from."""
    genes, table = pair.real.genes.tolist(), _given_means(training)
    if table is None:
        predicted = set(pair.conditions) | (set(pair.predicted.rows) if pair.predicted else set())
        names = tuple(c for c in pair.measured if c not in predicted)
        note = f"training not given: taken as the {len(names)} real conditions that are not predicted"
        matched = _matched_means(pair, names, {})
        return Training(names, moments(pair.real, names).mean, control, tuple(genes), matched), [note]
    lacking = [gene for gene in genes if gene not in set(table.columns.astype(str))]
    if lacking:
        raise DataError(
            f"training: {len(lacking)} of the {len(genes)} scored genes are not among its columns (first: {lacking[0]}); "
            "give means over all predicted genes"
        )
    table = table.rename(index=lambda label: canonical(str(label)), columns=str)
    named = [str(c) for c in table.index if targets(str(c))]
    leaked = [c for c in named if c in set(pair.conditions)]
    kept = tuple(c for c in named if c not in set(leaked))
    notes = (
        [f"{len(leaked)} scored conditions were left out of the training means: {', '.join(leaked[:5])}"]
        if leaked
        else []
    )
    means = table.loc[list(kept), genes].to_numpy(dtype=np.float64)
    own = {str(c): table.loc[c, genes].to_numpy(dtype=np.float64) for c in table.index if not targets(str(c))}
    matched = _matched_means(pair, kept, own)
    astray = [c for c in kept if matched and c not in matched and control_of(c) not in matched]
    if astray:
        notes.append(
            f"{len(astray)} training conditions have no control cells of their own: all stand in for them"
        )
    return Training(kept, means, control, tuple(genes), matched), notes


def _matched_means(pair: Pair, names: Sequence[str], own: Mapping[str, Floats]) -> dict[str, Floats]:
    """Control means by condition, or by `control|key=value`, of the real cells; of groups that they lack, the
    training's `own`. Nothing where controls are not matched."""
    real = pair.real
    if not real.matched:
        return {}
    lacking = {control_of(name) for name in names if control_of(name) not in real.matched}
    found = {name: own[name] for name in lacking & set(own)}
    known = [*real.matched]
    for places in real.control_groups(known).values():
        mean = row_means(real.X, real.control_rows(known[places[0]]))
        found |= {known[k]: mean for k in places}
    return found


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
        note = (
            f"pointwise metrics on the {genes} genes of largest variance over scored and control real cells"
        )
        return np.argsort(-variance)[:genes], [note]
    place = {gene: i for i, gene in enumerate(names)}
    unknown = [gene for gene in genes if gene not in place]
    if unknown:
        raise DataError(
            f"genes: {len(unknown)} of the {len(genes)} asked for are not in both tables (first: {unknown[0]}); "
            "leave them out"
        )
    return np.array([place[gene] for gene in genes], dtype=np.int64), [
        f"pointwise metrics on {len(genes)} given genes"
    ]


def _score_cells(setting: Setting, cells: Population, release: protocols.Release) -> dict[str, Floats]:
    """Pointwise metrics of generated cells' means, and cell-eval's of the cells; these know no condition without any."""
    pair = replace(setting.pair, predicted=cells)
    means = moments(cells, pair.conditions).mean
    empty = np.array([not cells.n_cells(condition) for condition in pair.conditions], dtype=bool)
    means[empty] = np.nan
    own = None
    if setting.protocol == "paper" and CONTROL in cells.rows and not pair.real.matched:
        own = row_means(cells.X, cells.rows[CONTROL])
    values = score_means(means, setting.standard, setting.metrics, own)
    names = [name for name in setting.metrics if name in protocols.NAMES and not empty.any()]
    return values | protocols.cell_eval(pair, setting.standard.scored, names, release)


def _score_halves(setting: Setting, halves: Halves) -> dict[str, dict[str, Floats]]:
    """Pointwise metrics of the ceiling and of the interpolated duplicate."""
    real, conditions = setting.pair.real, setting.pair.conditions
    half, compared = halves.moments(real, conditions)
    against = replace(setting.standard, real=compared.mean)
    control = control_moments(real, conditions)
    n_control = np.array([len(real.control_rows(c)) for c in conditions])
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
        CEILING: score_means(half.mean, against, setting.metrics),
        DUPLICATE: score_means(duplicate, against, setting.metrics),
    }


def _table(values: dict[str, dict[str, Floats]], setting: Setting) -> pd.DataFrame:
    conditions = setting.pair.conditions
    cells = [setting.pair.real.n_cells(condition) for condition in conditions]
    parts = [
        pd.DataFrame(
            {
                "model": model,
                "condition": conditions,
                "metric": metric,
                "value": scores[metric],
                "n_cells": cells,
            }
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
        "effect_size": dict(
            zip(setting.pair.conditions, np.linalg.norm(shift, axis=1).tolist(), strict=True)
        ),
        "provenance": {
            "n_genes": len(setting.pair.real.genes),
            "n_scored_genes": len(standard.scored),
            "seed": setting.seed,
            "release": release if setting.protocol == "paper" else None,
            "versions": {name: version(name) for name in ("numpy", "scipy", "illico")},
        },
    }
