"""Control cells of a file, read as the cells of a run were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import pandas as pd

from scdfm.data.cells import CellTable
from scdfm.data.conditions import CONTROL, COVARIATE_SIGN, SEPARATOR, near
from scdfm.data.design import Design, column_of, texts
from scdfm.data.labels import listed
from scdfm.data.naming import Naming, looks_like_control
from scdfm.data.reading import cells_of
from scdfm.data.source import Source, open_source
from scdfm.errors import ConditionError, DataError
from scdfm.run.manifest import Manifest


def read_controls(
    cells: Any,
    manifest: Manifest,
    reading: Mapping[str, Any] | None = None,
    backed: bool | None = None,
    context: Mapping[str, str] | None = None,
) -> CellTable:
    """Control cells of a file or an AnnData, read as the run's were but for the options of `read_cells` in `reading`.

    A file without the column of labels, and without any other that names control cells, is one of control cells alone.
    context: covariates of all the cells that are read, `{"cell_line": "A549"}`: those with these values, where the file has
    the columns. Where it lacks a column that controls are matched by, they are matched by the covariates alone.
    """
    context = checked_context(manifest, context or {})
    options = manifest.control_reading | dict(reading or {})
    naming = Naming(**{field.name: options[field.name] for field in fields(Naming)})
    with open_source(cells) as source:
        layer = options["layer"] or manifest.layer_in(source.readable)
        source = _of_context(_labelled(source, options["perturbation_key"]), context)
        match = options["match_controls"]
        if context and not set(match or ()) <= set(source.obs.columns):
            match = None
        _require_covariates(source, options["covariates"], options["perturbation_key"])
        design = Design(options["covariates"], None, None, match, options["control_fallback"])
        table = cells_of(
            source, options["perturbation_key"], naming, options["target_sum"], layer,
            {**(options.get("subset") or {}), **context}, design=design, backed=backed, strict=False,
            values=options["values"], min_genes=options.get("min_genes", 0),
        )  # fmt: skip
        return table.with_groups(manifest.groups) if match and manifest.groups else table


def checked_context(manifest: Manifest, context: Mapping[str, str]) -> dict[str, str]:
    """A context as somebody names it, in covariates of the run; ConditionError for any other."""
    covariates = manifest.conditions.covariates
    for key, value in context.items():
        if key not in covariates:
            way = (
                f"expected one of {', '.join(covariates)}{near(key, covariates)}"
                if covariates
                else "the run has none: give the control cells alone (--controls, controls=...)"
            )
            raise ConditionError(f"context {key}={value}: '{key}' is no covariate of the run; {way}")
        if not value.strip() or COVARIATE_SIGN in value:
            raise ConditionError(
                f"context {key}='{value}': expected a value that is not blank and holds no '{COVARIATE_SIGN}'; rename it"
            )
    return {key: value.strip() for key, value in context.items()}


def _of_context(source: Source, context: Mapping[str, str]) -> Source:
    """`source` with the columns of a context that it lacks; DataError where it has one without the value."""
    obs = source.obs
    for key, value in context.items():
        if key not in obs.columns:
            obs = obs.assign(**{key: value})
            continue
        values = texts(column_of(obs, key, "covariate column", source.name))
        if value not in values.categories:
            raise DataError(
                f"{source.name}: no cell has '{value}' in obs column '{key}', as the context {key}={value} says; its "
                f"values are {listed(list(map(str, values.categories)))}: name one of them, or remove the column"
            )
    return replace(source, obs=obs)


def _require_covariates(source: Source, covariates: Sequence[str], key: str) -> None:
    """Raise DataError where neither a column nor a label tells a covariate of the cells."""
    labels: list[str] = []
    if key in source.obs.columns:
        labels = source.obs[key].astype(str).unique().tolist()
    for column in covariates:
        if column not in source.obs.columns and not any(f"|{column}=" in label for label in labels):
            raise DataError(
                f"{source.name}: obs has no column '{column}', the run's covariate; expected one, or one context for all "
                f"of its cells: --context {column}=VALUE (context={{'{column}': ...}})"
            )


def _labelled(source: Source, key: str) -> Source:
    """`source` with all cells labelled as control, where it has no labels."""
    obs = source.obs
    texts = [obs.iloc[:, at] for at, kind in enumerate(obs.dtypes) if not pd.api.types.is_numeric_dtype(kind)]
    named = any(looks_like_control(str(label)) for values in texts for label in pd.unique(values.dropna()))
    if key in obs.columns or SEPARATOR in key or named:
        return source
    note = f"there is no column '{key}', and none that names control cells: all {len(obs)} cells are taken for control"
    return replace(source, obs=obs.assign(**{key: CONTROL}), notes=(*source.notes, note))
