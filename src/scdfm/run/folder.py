"""A run: the folder a fit leaves behind, and the model it holds.

    manifest.json         config, vocabulary, panel, split, scale, versions, seed
    weights.safetensors   the weights that predict
    graph.safetensors     edges of the co-expression graph over the vocabulary
    means.csv             mean log1p expression of control and of each training and validation condition
    prior.safetensors     what measured conditions let expect of others, where the flow starts from that
    training_prior.safetensors  likewise, what training conditions alone do, where there are validation conditions
    spread.safetensors    how cells differ around the mean of their condition, likewise
    controls.h5ad         control cells, so that the run predicts alone (unless training.keep_controls is 0)
    counts.safetensors    the dispersion of training cells' counts, where their values are those of counts
    features.safetensors  features of perturbations, where the fit had some
    log.csv               the training curves
    checkpoints/          last and best, for --resume
Nothing in it is unpickled.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scdfm.config import Config
from scdfm.data import CellTable, Split, Vocabulary
from scdfm.data.conditions import canonical, control_of, parse
from scdfm.data.encoding import ConditionEncoder
from scdfm.data.features import FeatureTable, Standardiser
from scdfm.data.naming import Naming
from scdfm.data.split import UNKNOWN
from scdfm.encoded import ConditionShape
from scdfm.errors import RunError, ScdfmError
from scdfm.files import written_whole
from scdfm.model import VelocityField
from scdfm.prior import EffectPrior, Spread
from scdfm.prior.kernel import every_target
from scdfm.run import checks
from scdfm.run.controls import read_controls
from scdfm.run.manifest import Manifest

if TYPE_CHECKING:
    from anndata import AnnData

    from scdfm.run.counts import CountLaw
    from scdfm.run.shards import PredictedFile
    from scdfm.screening import Identification, Screen

WEIGHTS, GRAPH, MEANS, PRIOR, TRAINING_PRIOR, SPREAD, CONTROLS, COUNTS, FEATURES, LOG = (
    "weights.safetensors",
    "graph.safetensors",
    "means.csv",
    "prior.safetensors",
    "training_prior.safetensors",
    "spread.safetensors",
    "controls.h5ad",
    "counts.safetensors",
    "features.safetensors",
    "log.csv",
)
FILES = (WEIGHTS, GRAPH, MEANS, PRIOR, TRAINING_PRIOR, SPREAD, CONTROLS, COUNTS, FEATURES)
"""What the manifest keeps digests of."""


class Run:
    """A trained model with its provenance, read from a run folder by `Run.load(path)`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Open the run folder `path`; RunError when it is incomplete, damaged or of a newer version."""
        path = Path(path).absolute()  # the working folder may change before a file is read
        if not path.is_dir():
            raise RunError(f"run folder {path} does not exist; give the --out folder of a fit")
        manifest = Manifest.load(path)
        if not manifest.digests:
            raise RunError(f"run {path} is not finished; continue it with fit --resume")
        needed = {WEIGHTS, GRAPH} if manifest.config.graph.enabled else {WEIGHTS}
        needed |= set() if manifest.features is None else {FEATURES}
        needed |= {PRIOR, SPREAD} if manifest.config.flow.source == "prior" else set()
        if lacking := sorted(needed - manifest.digests.keys()):
            raise RunError(
                f"run {path} is incomplete: the manifest does not list {lacking[0]}; {checks.REMEDY}"
            )
        for name, digest in manifest.digests.items():
            if name not in FILES:
                raise RunError(
                    f"run {path}: the manifest names an unknown file '{name}'; restore it or fit again"
                )
            if file_digest(checks.own_file(path, name)) != digest:
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
        features = None
        if self.manifest.features is not None:
            table, standardise = read_features(self._file(FEATURES), self.manifest)
            features = standardise(table)
        return encoder_of(self.manifest, features)

    @functools.cached_property
    def means(self) -> pd.DataFrame:
        """Mean log1p expression, condition × G, of control, training and validation conditions; never of test ones."""
        if MEANS not in self.manifest.digests:
            raise RunError(
                f"run {self.path} stores no means: it was converted without the data it was trained on"
            )
        path = self._file(MEANS)
        return checks.means_of(read_means(path), self.genes, path)

    @functools.cached_property
    def rates(self) -> torch.Tensor:
        """[G] rates of the Poisson source."""
        return source_rates(self.means)

    @functools.cached_property
    def prior(self) -> EffectPrior:
        """What the measured conditions let expect of others: mean shifts in closed form, and how sure they are."""
        if PRIOR not in self.manifest.digests:
            raise RunError(
                f"run {self.path} has no prior: it was not fitted with flow.source = 'prior'; fit again"
            )
        return self._prior(PRIOR)

    @functools.cached_property
    def training_prior(self) -> EffectPrior:
        """What the training conditions alone let expect (of older runs, which do not keep it: `prior`)."""
        return self._prior(TRAINING_PRIOR) if TRAINING_PRIOR in self.manifest.digests else self.prior

    def _prior(self, name: str) -> EffectPrior:
        prior = EffectPrior.load(self._file(name))
        if list(prior.genes) != self.genes:
            raise RunError(
                f"{self.path / name}: its genes are not the {len(self.genes)} genes of the run; {checks.REMEDY}"
            )
        return prior

    def knowing(self, conditions: Sequence[str], controls: CellTable | None = None) -> EffectPrior:
        """The prior with places for the targets of `conditions`, described by the run's features, and for settings of
        the covariates that training did not have, by their cells among `controls` (default: those stored).

        With a validation condition among them it is that of training alone: what a prior has learned from is predicted
        too well to tell how wrong predictions are.
        """
        validated = not set(map(canonical, conditions)).isdisjoint(self.split.validation)
        prior = self.training_prior if validated else self.prior
        known = prior.kernel.settings
        new = {control_of(name): name for name in conditions if known and control_of(name) not in known}
        settings = {}
        if new:
            table = self.controls if controls is None else controls
            columns = table.columns(self.genes)
            settings = {setting: table.control_mean(name)[columns] for setting, name in new.items()}
        return prior.knowing(every_target(conditions), self.encoder.descriptions, settings)

    @functools.cached_property
    def spread(self) -> Spread:
        """How training cells differ around the mean of their condition."""
        return Spread.load(self._file(SPREAD), len(self.genes))

    @functools.cached_property
    def count_law(self) -> CountLaw | None:
        """How the training cells' counts spread; None where the run does not know."""
        from scdfm.run.counts import CountLaw

        if COUNTS not in self.manifest.digests:
            return None
        path = self._file(COUNTS)
        return CountLaw.of_tensors(read_tensors(path), len(self.genes), path)

    @property
    def log(self) -> pd.DataFrame:
        """Training curves: one row for each logged step."""
        if not (self.path / LOG).is_file():
            return pd.DataFrame()
        return _table(checks.own_file(self.path, LOG))

    @functools.cached_property
    def field(self) -> VelocityField:
        """The velocity field with the weights kept, in evaluation mode."""
        enabled = self.config.graph.enabled
        graph = read_graph(self._file(GRAPH), len(self.vocabulary.tokens)) if enabled else None
        shape = self.encoder.shape(null=self.config.training.condition_dropout > 0)
        with torch.device("meta"):
            blank = build_field(self.config, self.vocabulary, None, shape)
        path = self._file(WEIGHTS)
        weights = checks.fitting(read_tensors(path), blank, path)
        field = build_field(self.config, self.vocabulary, graph, shape)
        field.load_state_dict(weights)
        return field.eval()

    @functools.cached_property
    def controls(self) -> CellTable:
        """The control cells stored with the run, on the panel's genes."""
        if CONTROLS not in self.manifest.digests:
            raise RunError(
                f"run {self.path} stores no control cells; give some with --controls (controls=...)"
            )
        stored = {**Naming().to_dict(), "target_sum": None, "values": "log1p"}
        return read_controls(self._file(CONTROLS), self.manifest, stored)

    def untrained(self) -> Run | None:
        """This run at step 0: a field that corrects nothing, so that `predict` gives what the prior expects, in closed
        form. None where the flow starts from noise, which predicts nothing before it is trained.
        """
        if self.config.flow.source != "prior":
            return None
        run = copy.copy(self)  # with all that was read already
        digests = self.manifest.digests | {WEIGHTS: "none, step 0"}
        run.manifest = self.manifest.model_copy(
            update={"result": {"step": 0}, "shrinkage": None, "digests": digests}
        )
        shape = self.encoder.shape(null=self.config.training.condition_dropout > 0)
        # The graph is left out: nobody asks a field that corrects nothing.
        run.field = build_field(self.config, self.vocabulary, None, shape).eval()
        return run

    def read_controls(self, controls: AnnData | str | Path, **options: Any) -> CellTable:
        """Control cells of a file, to be given to `predict`.

        options: those of `read_cells` (perturbation_key, control, target_sum, ...) where the file was not written as the
        one that was trained on. Raises DataError where its cells are not on the run's scale.
        """
        from scdfm.run.predict import control_table

        return control_table(self, read_controls(controls, self.manifest, options))

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
        path = checks.own_file(self.path, name)
        if file_digest(path) != self.manifest.digests.get(name):
            raise RunError(
                f"run {self.path}: {name} is another file than when this run was loaded; load the folder anew "
                "(Run.load), or fit into a folder of its own"
            )
        return path

    def predict(
        self,
        conditions: Sequence[str] | None = None,
        controls: CellTable | AnnData | str | Path | None = None,
        n_cells: int | None = None,
        genes: Sequence[str] | None = None,
        seed: int = 0,
        progress: bool = False,
        counts: bool = False,
    ) -> AnnData:
        """Generate a population for each of `conditions` (None: the test conditions of the run's split).

        Returns AnnData of the panel's genes (or of `genes`) in log1p at the run's scale, or whole counts; see
        `scdfm.run.predict.predict`.
        """
        from scdfm.run.predict import predict

        return predict(
            self,
            conditions,
            controls,
            n_cells=n_cells,
            genes=genes,
            counts=counts,
            seed=seed,
            progress=progress,
        )

    def screen(
        self,
        *,
        out: str | Path,
        targets: Sequence[str] | None = None,
        order: int = 2,
        cells: int = 128,
        rank_by: str = "effect",
        **options: Any,
    ) -> Screen:
        """Predict every combination of up to `order` of `targets` (None: all trained on), ranked, into the folder `out`.

        The further options, and ensembles of several runs: `scdfm.screening.screen`.
        """
        from scdfm.screening import screen

        return screen(self, out=out, targets=targets, order=order, cells=cells, rank_by=rank_by, **options)

    def predict_to(
        self,
        out: str | Path,
        conditions: Sequence[str] | None = None,
        controls: CellTable | AnnData | str | Path | None = None,
        n_cells: int | None = None,
        genes: Sequence[str] | None = None,
        seed: int = 0,
        resume: bool = False,
        overwrite: bool = False,
        progress: bool = False,
        counts: bool = False,
    ) -> PredictedFile:
        """Write the populations of `predict` to `out` (.h5ad or .zarr) as they come, so that thousands of conditions fit
        in memory and an interrupted prediction goes on with `resume`; see `scdfm.run.shards.predict_to`.
        """
        from scdfm.run.shards import predict_to

        return predict_to(
            self, out, conditions, controls, n_cells=n_cells, genes=genes, seed=seed, resume=resume,
            overwrite=overwrite, progress=progress, counts=counts,
        )  # fmt: skip

    def identify(
        self, observed: str | Path | AnnData | CellTable, *, order: int = 2, **options: Any
    ) -> Identification:
        """Which perturbation of up to `order` targets made the population `observed`, or would make it of control cells.

        The further options, and ensembles of several runs: `scdfm.screening.identify`.
        """
        from scdfm.screening import identify

        return identify(self, observed, order=order, **options)

    def __repr__(self) -> str:
        return (
            f"Run({str(self.path)!r}, {len(self.genes)} genes, {len(self.split.train)} training conditions)"
        )


def build_field(
    config: Config, vocabulary: Vocabulary, graph: torch.Tensor | None, shape: ConditionShape
) -> VelocityField:
    """A velocity field of `config` over `vocabulary`; weights from the config's seed, global generator untouched."""
    from scdfm.seeds import derive

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "weights"))
        expects = config.flow.source == "prior"
        return VelocityField(config.model, graph, len(vocabulary.tokens), shape=shape, expects=expects)


def encoder_of(manifest: Manifest, features: FeatureTable | None) -> ConditionEncoder:
    """The encoder of a run; `features` are standardised.

    Training makes a target's own vector mean something; the gene encoder, which reads a gene's neighbours, does so
    for genes of the panel too. Of a run of unknown training conditions every token is taken to be known.
    """
    known: set[str] | None = None
    if manifest.split["kind"] != UNKNOWN:
        genes = manifest.panel if manifest.config.model.perturbation == "genes" else []
        known = {*manifest.targets, *genes}
    return ConditionEncoder(Vocabulary(tuple(manifest.vocabulary)), manifest.conditions, known, features)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write named tensors as safetensors, whole or not at all."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with written_whole(path, sum(value.nbytes for value in tensors.values())) as temporary:
        save_file(tensors, temporary)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Named tensors of a safetensors file."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read as safetensors ({error}); restore it or fit again") from error


def write_graph(path: Path, graph: np.ndarray) -> None:
    """Store a graph bool [V, V] (True = may attend) as its edges, int32 [2, E]."""
    write_tensors(path, {"edges": torch.from_numpy(np.stack(np.nonzero(graph)).astype(np.int32))})


def read_graph(path: Path, n_tokens: int) -> torch.Tensor:
    """The graph bool [V, V] of `write_graph`."""
    edges = checks.edges_of(read_tensors(path), n_tokens, path)
    graph = torch.zeros(n_tokens, n_tokens, dtype=torch.bool)
    graph[edges[0], edges[1]] = True
    return graph


def write_features(path: Path, features: FeatureTable, standardise: Standardiser) -> None:
    """Store features as they were given, and what brings them to one scale."""
    tensors = {"values": features.values, "centre": standardise.centre, "factor": standardise.factor}
    write_tensors(path, {name: torch.from_numpy(value) for name, value in tensors.items()})


def read_features(path: Path, manifest: Manifest) -> tuple[FeatureTable, Standardiser]:
    """The features of `write_features`, under the names of the manifest."""
    assert manifest.features is not None
    source = manifest.features
    values, centre, factor = checks.described_by(read_tensors(path), len(source.names), path)
    return FeatureTable(tuple(source.names), values, source.kind), Standardiser(centre, factor)


def read_means(path: Path) -> pd.DataFrame:
    """The means of `write_table`, names kept as text."""
    # A converter keeps names such as 007 or NA as they are.
    return _table(path, index_col=0, converters={0: str}, float_precision="round_trip", keep_default_na=False)


def _table(path: Path, **options: Any) -> pd.DataFrame:
    try:
        table: pd.DataFrame = pd.read_csv(path, **options)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise RunError(f"{path} cannot be read as a table ({error}); {checks.REMEDY}") from error
    return table


def source_rates(means: pd.DataFrame) -> torch.Tensor:
    """[G] expected counts per gene of the Poisson source: the training conditions' average, off the log scale."""
    return torch.from_numpy(np.expm1(means.to_numpy(np.float64).mean(0)).astype(np.float32))


def write_cells(path: Path, cells: CellTable, rows: np.ndarray, columns: np.ndarray) -> None:
    """Store some cells on the panel's genes as .h5ad, whole or not at all, with the columns of their design."""
    import anndata as ad

    kept = dict.fromkeys((cells.perturbation_key, *cells.covariates, *cells.design.match))
    obs = cells.obs[list(kept)].iloc[rows].copy()
    obs[cells.perturbation_key] = obs[cells.perturbation_key].astype(str)
    genes = pd.Index(cells.genes[columns].astype(object), name="gene")
    adata = ad.AnnData(cells.X[rows][:, columns], obs=obs, var=pd.DataFrame(index=genes))
    with written_whole(path) as temporary:
        adata.write_h5ad(temporary, compression="gzip")


def write_table(path: Path, table: pd.DataFrame, **options: Any) -> None:
    """Write a table as CSV with every digit, whole or not at all."""
    with written_whole(path) as temporary:
        table.to_csv(temporary, **options)


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
