"""What a fit prepares before its first step: genes, tokens, features, and the files that prediction needs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from scdfm.config import Config
from scdfm.data import CONTROL, CellTable, GenePanel, Split, Vocabulary, select_genes, targets
from scdfm.data.conditions import SCREEN, covariates
from scdfm.data.encoding import ConditionEncoder, ConditionSchema
from scdfm.data.features import COEXPRESSION, FeatureTable, Standardiser, combine, read, table
from scdfm.data.graph import coexpression_axes
from scdfm.data.joining import FEWEST_GENES
from scdfm.data.stored import subset
from scdfm.errors import ConfigError, DataError, RunError
from scdfm.run.manifest import FORMAT, FeatureSource, Manifest, versions
from scdfm.run.trained import Trained, encoder_of
from scdfm.training.transfer import ancestors, carried_features, carried_panel, carried_schema

Features = FeatureTable | pd.DataFrame | str | Path
"""Features as a user gives them: a table made, or what one is read from."""


@dataclass(frozen=True)
class Inputs:
    """All that a fit of some cells starts from."""

    manifest: Manifest
    panel: GenePanel
    vocabulary: Vocabulary
    encoder: ConditionEncoder
    features: FeatureTable | None
    """As given, and what brings them to one scale."""
    standardise: Standardiser | None
    parent: Trained | None = None
    """The run that the fit starts from."""

    def without(self, silent: Collection[str]) -> Inputs:
        """These, where the network reads nothing from the `silent` descriptions of targets."""
        if self.features is None or self.standardise is None or not silent:
            return self
        standardise = self.standardise.without(silent, self.features.parts)
        encoder = encoder_of(self.manifest, standardise(self.features))
        return replace(self, standardise=standardise, encoder=encoder)


def prepare(
    cells: CellTable,
    split: Split,
    config: Config,
    features: Features | Sequence[Features] | None,
    parent: Trained | None = None,
) -> Inputs:
    """Choose the genes, name the tokens, read the features, and say all of it in a manifest.

    What `parent` knows is carried over (`scdfm.training.transfer`): its genes that are measured here, its targets, its
    features, and its units of dose and time.
    """
    _require_screens(config, split)
    panel = select_genes(cells, split, carried_panel(parent, cells, config.panel) if parent else config.panel)
    every_target = {target for condition in cells.conditions for target in targets(condition)}
    seen = {target for condition in split.train for target in targets(condition)}
    if parent:
        every_target, seen = every_target.union(parent.manifest.targets), seen.union(parent.manifest.targets)
    vocabulary = Vocabulary.build(panel.genes, every_target)
    trained = sorted(seen)
    given, standardise = _features(cells, config, features, panel.genes), None
    if parent:
        given, standardise = carried_features(parent, given)
    controls = control_populations(cells, split, config)
    schema = ConditionSchema.of((*split.train, *controls))
    manifest = Manifest(
        format=FORMAT,
        seed=config.seed,
        config=config,
        vocabulary=list(vocabulary.tokens),
        panel=list(panel.genes),
        targets=trained,
        split=split.to_dict(),
        scale=cells.scale.to_dict(),
        perturbation_key=cells.perturbation_key,
        control=cells.control,
        names=cells.naming.to_dict(),
        design=cells.design.to_dict(),
        conditions=carried_schema(parent, schema) if parent else schema,
        control_populations=list(controls),
        features=None if given is None else _source(given),
        data={
            "path": None if cells.source is None else str(cells.source),
            "digest": cells.digest(),
            "n_cells": cells.n,
            "n_genes": len(cells.genes),
        },
        subset=cells.subset,
        min_genes=cells.min_genes,
        n_cells={name: cells.n_cells(name) for name in (CONTROL, *split.train, *split.validation)},
        unmeasured=_unmeasured(cells, split, panel),
        groups=cells.groups(),
        lineage=ancestors(parent, cells) if parent else [],
        versions=versions(),
    )
    if given is not None and standardise is None:
        standardise = _standardiser(given, trained)
    scaled = None if given is None or standardise is None else standardise(given)
    encoder = encoder_of(manifest, scaled)
    encoder.slots((*split.train, *controls))  # refuses what training could not learn before anything is written
    return Inputs(manifest, panel, vocabulary, encoder, given, standardise, parent)


def _require_screens(config: Config, split: Split) -> None:
    """Refuse weights of screens that no training condition is of."""
    screens = sorted({covariates(name).get(SCREEN, "") for name in split.train} - {""})
    if strange := sorted(set(config.training.screen_weights) - set(screens)):
        raise ConfigError(
            f"training.screen_weights: no training condition is of a screen '{strange[0]}' (screens of training: "
            f"{', '.join(screens) or 'none'}); expected their names: leave it out, or join the screens"
        )


def _unmeasured(cells: CellTable, split: Split, panel: GenePanel) -> dict[str, list[str]]:
    """By screen, the genes of the panel that it did not measure; DataError where training could not learn them."""
    if not cells.measured:
        return {}
    columns = cells.columns(panel.genes)
    common = int(np.logical_and.reduce(list(cells.measured.values()))[columns].sum())
    if common < FEWEST_GENES:
        raise DataError(
            f"panel: {common} of its {len(columns)} genes are measured by all screens, expected at least {FEWEST_GENES}; "
            "raise panel.n_genes, or name some in panel.include"
        )
    measured = np.any([cells.measures(name) for name in split.train], axis=0)[columns]
    if not measured.all():
        gene = panel.genes[int(np.argmin(measured))]
        raise DataError(
            f"panel: no training condition is of a screen that measured '{gene}'; give that screen training conditions, or "
            "join on the genes of all (genes='intersection')"
        )
    return {
        name: [gene for gene, there in zip(panel.genes, own[columns], strict=True) if not there]
        for name, own in cells.measured.items()
    }


def control_populations(cells: CellTable, split: Split, config: Config) -> tuple[str, ...]:
    """The control populations that train as conditions, of every setting of the covariates that has enough cells."""
    option = config.training.control_populations
    schema = ConditionSchema.of(split.train)
    if option == "never" or (option == "auto" and schema == ConditionSchema()):
        return ()
    enough = config.training.min_cells
    return tuple(name for name in cells.control_conditions if len(cells.population(name)) >= enough)


def require_same_run(manifest: Manifest, expected: Manifest, out: Path) -> None:
    """Refuse to resume a run of other options, data, conditions or features."""
    names = (
        "format",
        "panel",
        "vocabulary",
        "split",
        "scale",
        "conditions",
        "control_populations",
        "features",
        "unmeasured",
        "lineage",
    )
    manifest = manifest.model_copy(update={"lineage": [one.as_given() for one in manifest.lineage]})
    expected = expected.model_copy(update={"lineage": [one.as_given() for one in expected.lineage]})
    differing = [name for name in names if getattr(manifest, name) != getattr(expected, name)]
    if manifest.comparable_config != expected.comparable_config:
        differing.insert(0, "config")
    if manifest.data["digest"] != expected.data["digest"]:
        differing.append("data")
    if differing:
        raise RunError(
            f"--resume {out}: this run was started with other {' and '.join(differing)}; repeat the options and data of "
            f"its start, or choose another --out; a finished run is trained for longer by --from {out} into another --out"
        )


def _features(
    cells: CellTable, config: Config, given: Features | Sequence[Features] | None, genes: Sequence[str]
) -> FeatureTable | None:
    """The features of the argument and of `model.features`, side by side; co-expression is that of the panel's `genes`."""
    named: list[Features] = [given] if isinstance(given, Features) else list(given or ())
    named += config.model.features
    tables = []
    for source in named:
        if isinstance(source, FeatureTable):
            tables.append(source)
        elif isinstance(source, pd.DataFrame):
            tables.append(table(source))
        elif source == COEXPRESSION:
            rows, columns = cells.rows(CONTROL), cells.columns(genes)
            parts = cells.measured_alike(rows, columns)
            tables.append(coexpression_axes(subset(cells.X, rows, columns), genes, parts))
        else:
            names = {target for condition in cells.conditions for target in targets(condition)}
            tables.append(read(source, cells.obs, cells.perturbation_key, names.union(cells.genes.tolist())))
    return combine(tables) if tables else None


def _standardiser(features: FeatureTable, trained: Sequence[str]) -> Standardiser:
    described = [target for target in trained if target in features]
    if not described and features.kind == COEXPRESSION:
        raise DataError(
            f"features '{COEXPRESSION}': none of the {len(trained)} training targets is a gene of the panel (first: "
            f"'{trained[0]}'); name them in panel.include if the screen measures them, or leave '{COEXPRESSION}' out"
        )
    if not described:
        raise DataError(
            f"features ({features.kind}): none of the {len(trained)} training targets has a row (first: '{trained[0]}'; "
            f"first row: '{features.names[0]}'); expected the names of the screen: rename the rows"
        )
    return features.standardiser(described)


def _source(features: FeatureTable) -> FeatureSource:
    # Co-expression is made of the cells, whose digest the manifest has; its last bits depend on the number of threads.
    given = np.repeat([part.kind != COEXPRESSION for part in features.parts], [part.width for part in features.parts])
    values = np.where(given, features.values, np.float32(0))
    digest = hashlib.sha256("\n".join(features.names).encode() + b"\0" + values.tobytes())
    names, parts = list(features.names), features.parts
    return FeatureSource(kind=features.kind, names=names, digest=digest.hexdigest(), parts=parts)
