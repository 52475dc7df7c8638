"""A trained model as a value: what a run folder holds, opened. What is done with it stands in the modules above."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch

from scdfm.config import Config
from scdfm.data import CellTable, Split, Vocabulary
from scdfm.data.conditions import canonical, control_of, parse
from scdfm.data.encoding import ConditionEncoder
from scdfm.data.features import FeatureTable, Standardiser
from scdfm.data.naming import Naming
from scdfm.data.split import UNKNOWN
from scdfm.errors import RunError, ScdfmError
from scdfm.files import file_digest
from scdfm.model import VelocityField
from scdfm.prior import EffectPrior, Spread
from scdfm.prior.kernel import every_target
from scdfm.run import folder
from scdfm.run.controls import read_controls
from scdfm.run.counts import CountLaw
from scdfm.run.manifest import Manifest
from scdfm.seeds import derive


class Trained:
    """A trained model as a value: weights, encoder, prior, provenance; each read from the run folder when it is used."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.contexts: dict[str, str] = {}
        """Settings of the covariates that training never had, and how far each lies from those it had, in words."""

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open the run folder `path`; RunError when it is incomplete, damaged or of a newer version."""
        path = Path(path).absolute()  # the working folder may change before a file is read
        if not path.is_dir():
            raise RunError(f"run folder {path} does not exist; give the --out folder of a fit")
        manifest = Manifest.load(path)
        if not manifest.digests:
            raise RunError(f"run {path} is not finished; continue it with fit --resume")
        needed = {folder.WEIGHTS, folder.GRAPH} if manifest.config.graph.enabled else {folder.WEIGHTS}
        needed |= set() if manifest.features is None else {folder.FEATURES}
        needed |= {folder.PRIOR, folder.SPREAD} if manifest.config.flow.source == "prior" else set()
        if lacking := sorted(needed - manifest.digests.keys()):
            raise RunError(f"run {path} is incomplete: the manifest does not list {lacking[0]}; {folder.REMEDY}")
        for name, digest in manifest.digests.items():
            if name not in folder.FILES:
                raise RunError(f"run {path}: the manifest names an unknown file '{name}'; restore it or fit again")
            if file_digest(folder.own_file(path, name)) != digest:
                raise RunError(
                    f"run {path}: {name} is not the file of this run (digest differs); restore it or fit again"
                )
        return cls(path, manifest)

    @property
    def config(self) -> Config:
        """Every option of the fit."""
        return self.manifest.config

    @property
    def genes(self) -> list[str]:
        """Names of the G modelled genes, the columns of every prediction."""
        return self.manifest.panel

    @functools.cached_property
    def split(self) -> Split:
        """The conditions trained on, validated on, and kept for the test."""
        return Split.from_dict(self.manifest.split)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """Tokens of genes and targets."""
        return Vocabulary(tuple(self.manifest.vocabulary))

    @functools.cached_property
    def encoder(self) -> ConditionEncoder:
        """What turns names of conditions into tensors, and knows which names the run can predict."""
        if self.features is None:
            return encoder_of(self.manifest, None)
        table, standardise = self.features
        return encoder_of(self.manifest, standardise(table))

    @functools.cached_property
    def features(self) -> tuple[FeatureTable, Standardiser] | None:
        """The features of perturbations as they were given, and what brings them to one scale; None without."""
        if self.manifest.features is None:
            return None
        return folder.read_features(self._file(folder.FEATURES), self.manifest)

    @functools.cached_property
    def means(self) -> pd.DataFrame:
        """Mean log1p expression, condition × G, of control, training and validation conditions, never of test ones; and
        of the control cells of each of their covariates, as `control|cell_type=B`. NaN of genes that were not measured."""
        if folder.MEANS not in self.manifest.digests:
            raise RunError(f"run {self.path} stores no means: it was converted without the data it was trained on")
        path = self._file(folder.MEANS)
        return folder.means_of(folder.read_means(path), self.genes, path, bool(self.manifest.unmeasured))

    @functools.cached_property
    def rates(self) -> torch.Tensor:
        """[G] rates of the Poisson source."""
        return source_rates(self.means)

    @functools.cached_property
    def prior(self) -> EffectPrior:
        """What the measured conditions let expect of others: mean shifts in closed form, and how sure they are."""
        if folder.PRIOR not in self.manifest.digests:
            raise RunError(f"run {self.path} has no prior: it was not fitted with flow.source = 'prior'; fit again")
        return self._prior(folder.PRIOR)

    @functools.cached_property
    def training_prior(self) -> EffectPrior:
        """What the training conditions alone let expect (of older runs, which do not keep it: `prior`)."""
        return self._prior(folder.TRAINING_PRIOR) if folder.TRAINING_PRIOR in self.manifest.digests else self.prior

    def _prior(self, name: str) -> EffectPrior:
        prior = EffectPrior.load(self._file(name))
        if list(prior.genes) != self.genes:
            raise RunError(
                f"{self.path / name}: its genes are not the {len(self.genes)} genes of the run; {folder.REMEDY}"
            )
        return prior

    @property
    def known(self) -> tuple[str, ...]:
        """Conditions whose own cells tell what is predicted of them: training's, and validation's if there is no test."""
        blind = self.split.test or self.config.flow.source != "prior"
        return self.split.train if blind else self.split.train + self.split.validation

    def knowing(self, conditions: Sequence[str], controls: CellTable | None = None, blind: bool = True) -> EffectPrior:
        """The prior with places for the targets of `conditions`, described by the run's features, and for settings of
        the covariates that training did not have, by their cells among `controls` (default: those stored).

        blind: with a validation condition among them it is that of training alone: what a prior has learned from is
            predicted too well to tell how wrong predictions are.
        """
        validated = blind and not set(map(canonical, conditions)).isdisjoint(self.split.validation)
        prior = self.training_prior if validated else self.prior
        prior_settings = prior.kernel.settings
        new = {
            control_of(name): name for name in conditions if prior_settings and control_of(name) not in prior_settings
        }
        settings = {}
        if new:
            table = self.controls if controls is None else controls
            columns = table.columns(self.genes)
            settings = {setting: table.control_mean(name)[columns] for setting, name in new.items()}
        return prior.knowing(every_target(conditions), self.encoder.descriptions, settings)

    @functools.cached_property
    def spread(self) -> Spread:
        """How training cells differ around the mean of their condition."""
        return Spread.load(self._file(folder.SPREAD), len(self.genes))

    @functools.cached_property
    def count_law(self) -> CountLaw | None:
        """How the training cells' counts spread; None where the run does not know."""
        if folder.COUNTS not in self.manifest.digests:
            return None
        path = self._file(folder.COUNTS)
        return CountLaw.of_tensors(folder.read_tensors(path), len(self.genes), path)

    @property
    def log(self) -> pd.DataFrame:
        """Training curves: one row for each logged step."""
        if not (self.path / folder.LOG).is_file():
            return pd.DataFrame()
        return folder.read_table(folder.own_file(self.path, folder.LOG))

    @functools.cached_property
    def field(self) -> VelocityField:
        """The velocity field with the weights kept, in evaluation mode."""
        enabled = self.config.graph.enabled
        graph = folder.read_graph(self._file(folder.GRAPH), len(self.vocabulary.tokens)) if enabled else None
        with torch.device("meta"):
            blank = build_field(self.config, self.encoder)
        path = self._file(folder.WEIGHTS)
        weights = folder.fitting(folder.read_tensors(path), blank, path)
        field = build_field(self.config, self.encoder, graph)
        field.load_state_dict(weights)
        return field.eval()

    @functools.cached_property
    def controls(self) -> CellTable:
        """The control cells stored with the run, on the panel's genes; `filled` are those that not all of them measured."""
        if folder.CONTROLS not in self.manifest.digests:
            raise RunError(f"run {self.path} stores no control cells; give some with --controls (controls=...)")
        stored = {**Naming().to_dict(), "target_sum": None, "values": "log1p", "min_genes": 0}
        table = read_controls(self._file(folder.CONTROLS), self.manifest, stored)
        lacking = {gene for genes in self.manifest.unmeasured.values() for gene in genes}
        return replace(table, filled=tuple(gene for gene in self.genes if gene in lacking)) if lacking else table

    def untrained(self) -> Self | None:
        """This run at step 0: a field that corrects nothing, so that `predict` gives what the prior expects, in closed
        form. None where the flow starts from noise, which predicts nothing before it is trained.
        """
        if self.config.flow.source != "prior":
            return None
        run = copy.copy(self)  # with all that was read already
        digests = self.manifest.digests | {folder.WEIGHTS: "none, step 0"}
        run.manifest = self.manifest.model_copy(update={"result": {"step": 0}, "shrinkage": None, "digests": digests})
        # The graph is left out: nobody asks a field that corrects nothing.
        run.field = build_field(self.config, self.encoder).eval()
        return run

    def knows(self, name: str) -> bool:
        """Whether every target and every covariate of the condition `name` is one that the run was trained on or has
        features of."""
        manifest = self.manifest
        try:
            condition = parse(manifest.naming.canonical(name))
        except ScdfmError:
            return False
        targets = {*manifest.targets, *(manifest.features.names if manifest.features else ())}
        values = manifest.conditions.covariates
        return (
            bool(condition.perturbations)
            and all(one.target in targets for one in condition.perturbations)
            and all(value in values.get(key, ()) for key, value in condition.covariates)
        )

    def _file(self, name: str) -> Path:
        """A file of this run, which must still be the one that was there when it was loaded."""
        path = folder.own_file(self.path, name)
        if file_digest(path) != self.manifest.digests.get(name):
            raise RunError(
                f"run {self.path}: {name} is another file than when this run was loaded; load the folder anew "
                "(Run.load), or fit into a folder of its own"
            )
        return path

    def __repr__(self) -> str:
        said = f"{len(self.genes)} genes, {len(self.split.train)} training conditions"
        return f"{type(self).__name__}({str(self.path)!r}, {said})"


def build_field(config: Config, encoder: ConditionEncoder, graph: torch.Tensor | None = None) -> VelocityField:
    """The velocity field of `config` that reads what `encoder` writes; weights from the config's seed, global generator
    untouched. graph: bool [V, V] over the encoder's vocabulary.
    """
    shape = encoder.shape(null=config.training.condition_dropout > 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "weights"))
        expects = config.flow.source == "prior"
        return VelocityField(config.model, graph, len(encoder.vocabulary.tokens), shape=shape, expects=expects)


def encoder_of(manifest: Manifest, features: FeatureTable | None) -> ConditionEncoder:
    """The encoder of a run; `features` are standardised.

    Training makes a target's own vector mean something; the gene encoder, which reads a gene's neighbours, does so
    for genes of the panel too. Of a run of unknown training conditions every token is taken to be known.
    """
    trained_tokens: set[str] | None = None
    if manifest.split["kind"] != UNKNOWN:
        genes = manifest.panel if manifest.config.model.perturbation == "genes" else []
        trained_tokens = {*manifest.targets, *genes}
    return ConditionEncoder(Vocabulary(tuple(manifest.vocabulary)), manifest.conditions, trained_tokens, features)


def source_rates(means: pd.DataFrame) -> torch.Tensor:
    """[G] expected counts per gene of the Poisson source: the training conditions' average, off the log scale."""
    values = means.to_numpy(np.float64)
    mean = np.nanmean(values, axis=0) if np.isnan(values).any() else values.mean(0)
    return torch.from_numpy(np.expm1(mean).astype(np.float32))
