"""Several runs of one screen, how far they disagree, and how far that tells their error; observed cells on their genes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.optimize import nnls

from scdfm.data.conditions import CONTROL, targets
from scdfm.data.naming import Naming
from scdfm.data.reading import cells_of, read_like
from scdfm.data.source import open_source
from scdfm.data.split import PARTS, UNKNOWN
from scdfm.data.stored import in_memory, subset
from scdfm.errors import DataError, RunError
from scdfm.evaluation.pseudobulk import Floats
from scdfm.run.extrapolation import extrapolated
from scdfm.run.predict import control_table
from scdfm.run.scale import require_scale
from scdfm.seeds import numpy_rng

if TYPE_CHECKING:
    from anndata import AnnData

    from scdfm.data import CellTable
    from scdfm.prior import EffectPrior
    from scdfm.run import Run


@dataclass(frozen=True)
class Ensemble:
    """Runs that predict the same conditions over `genes`, those that every run models, in the order of the first."""

    runs: tuple[Run, ...]
    genes: tuple[str, ...]

    @classmethod
    def of(cls, runs: Run | Sequence[Run]) -> Ensemble:
        """The ensemble of one run or several; RunError where two are one, or where their values do not compare."""
        several = tuple(runs) if isinstance(runs, (list, tuple)) else (runs,)
        if not several:
            raise RunError("screen: no run given; give the --out folder of a fit")
        weights = [run.manifest.digests["weights.safetensors"] for run in several]
        if len(set(weights)) < len(weights):
            twice = next(run for at, run in enumerate(several) if weights[at] in weights[:at])
            raise RunError(
                f"run {twice.path} has the weights of another run of the ensemble, which would agree with "
                "itself; give runs of different seeds"
            )
        first = several[0]
        for run in several:
            if run.manifest.unmeasured:
                raise RunError(
                    f"run {run.path} was fitted on screens of different genes, whose measured means cannot be compared; "
                    "fit them on the genes of all (--genes intersection)"
                )
        for run in several[1:]:
            if run.manifest.scale != first.manifest.scale:
                raise RunError(
                    f"run {run.path} was fitted at scale {run.manifest.scale}, run {first.path} at "
                    f"{first.manifest.scale}; give runs of one scale"
                )
        shared = set.intersection(*(set(run.genes) for run in several))
        genes = tuple(gene for gene in first.genes if gene in shared)
        if not genes:
            raise RunError(f"runs {first.path} and {several[1].path} share no gene; give runs of one screen")
        return cls(several, genes)

    @property
    def first(self) -> Run:
        """The run whose controls and measured means the screen compares with."""
        return self.runs[0]

    def check(self, conditions: Sequence[str]) -> None:
        """Raise ConditionError for a target that a run does not know, before any work is done."""
        for run in self.runs:
            run.encoder.encode(list(conditions))

    def populations(
        self, conditions: Sequence[str], n_cells: int, seed: int, controls: CellTable | None = None
    ) -> Iterator[tuple[str, list[Floats]]]:
        """Each condition with its predicted cells [n_cells, G] by every run."""
        shared = list(self.genes)
        predicted = [
            run.predict(
                conditions, _start_of(run, controls), n_cells=n_cells,
                genes=None if run.genes == shared else shared, seed=seed,
            )
            for run in self.runs
        ]  # fmt: skip
        keys = [run.manifest.perturbation_key for run in self.runs]
        labels = [adata.obs[key].astype(str).to_numpy() for adata, key in zip(predicted, keys, strict=True)]
        for name in conditions:
            yield (
                name,
                [
                    np.asarray(adata.X[of == name].toarray(), dtype=np.float32)
                    for adata, of in zip(predicted, labels, strict=True)
                ],
            )

    @cached_property
    def measured(self) -> pd.DataFrame:
        """Mean log1p expression, condition × G, of everything a run stores means of, control first; empty if none does."""
        means: dict[str, Floats] = {}
        for run in self.runs:
            if "means.csv" in run.manifest.digests:
                table = run.means[list(self.genes)]
                for name, row in zip(map(str, table.index), table.to_numpy(np.float64), strict=True):
                    if name == CONTROL or targets(name):
                        means.setdefault(name, row)
        return pd.DataFrame.from_dict(means, orient="index", columns=list(self.genes), dtype=np.float64)

    @cached_property
    def held_out(self) -> list[str]:
        """Measured conditions that no run trained on: validation conditions that calibrate. Sorted."""
        trained = {name for run in self.runs for name in run.split.train}
        return sorted(name for name in set(self.measured.index) - trained if targets(name))

    @cached_property
    def trained(self) -> list[str]:
        """Measured conditions that some run trained on, sorted."""
        return sorted(name for name in set(self.measured.index) - set(self.held_out) if targets(name))

    def part(self, condition: str) -> str:
        """What the data of the runs hold `condition` for: train (any run), validation, test; empty where unmeasured."""
        return self._parts.get(condition, "")

    @cached_property
    def _parts(self) -> dict[str, str]:
        # Written last to first: a condition that several parts hold, in several runs, is of the first part.
        held = [(part, name) for part in PARTS for run in self.runs for name in getattr(run.split, part)]
        return {name: part for part, name in reversed(held)}

    def targets_seen(self, condition: str) -> float:
        """How many targets of `condition` every run was trained on; NaN where nobody recorded the training."""
        if any(run.split.kind == UNKNOWN for run in self.runs):
            return float("nan")
        return float(sum(target in self._trained_targets for target in targets(condition)))

    @cached_property
    def _trained_targets(self) -> set[str]:
        """Targets that every run was trained on."""
        return set.intersection(*(set(run.manifest.targets) for run in self.runs))

    def doubt(self, conditions: Sequence[str], controls: CellTable) -> Floats:
        """Error [k] of the mean that the runs' priors expect (root mean square); NaN where none has a prior."""
        runs = [run for run in self.runs if run.config.flow.source == "prior"]
        if not runs:
            return np.full(len(conditions), np.nan)
        priors = [run.knowing(conditions, _start_of(run, controls)) for run in runs]
        errors = [self._on_shared(run, prior.uncertainty(conditions)) for run, prior in zip(runs, priors, strict=True)]
        return np.asarray(np.sqrt(np.mean([np.square(error).sum(axis=1) for error in errors], axis=0)))

    def prior(self, conditions: Sequence[str], controls: CellTable) -> EffectPrior:
        """What the first run knows in closed form, with places for the targets and settings of `conditions`."""
        return self.first.knowing(conditions, _start_of(self.first, controls), blind=False)

    def _on_shared(self, run: Run, values: Floats) -> Floats:
        """Columns of the genes that all runs model."""
        place = {gene: at for at, gene in enumerate(run.genes)}
        return values[:, [place[gene] for gene in self.genes]]

    def extrapolated(self, conditions: Sequence[str]) -> dict[str, str]:
        """Condition → why its prediction is an extrapolation of some run, of those that are."""
        reasons: dict[str, str] = {}
        for run in self.runs:
            reasons |= extrapolated(run, conditions)
        return reasons

    def control_table(self, controls: CellTable | AnnData | str | Path | None) -> CellTable:
        """The control cells to start from: `controls`, or those stored with the first run."""
        if controls is None:
            return self.first.controls
        table = control_table(self.first, controls)
        modelled = {gene for run in self.runs for gene in run.genes}
        missing = sorted(modelled - set(map(str, table.genes)))
        if missing:
            raise DataError(
                f"controls: {len(missing)} of the runs' {len(modelled)} genes are missing (first: '{missing[0]}'); "
                "give control cells measured on the genes of the training data"
            )
        return table


def _start_of(run: Run, controls: CellTable | None) -> CellTable | None:
    """`controls`, or the run's own: those stored with the first run have no other genes than that run models."""
    shared = controls is None or set(run.genes) <= set(map(str, controls.genes))
    return controls if shared else run.controls


MOST: Final = 16
"""Conditions that calibrate at most."""
ENOUGH: Final = 4
"""With fewer held-out conditions, training conditions take part too (and the calibration says so)."""


@dataclass(frozen=True)
class Calibration:
    """error² ≈ floor² + factor² · spread², both ≥ 0, by least squares over `n` measured conditions.

    The error is ‖predicted mean − measured mean‖. `conditions` says which ones: "validation" (no run trained on them),
    "validation and training" (optimistic) or "none" (the spread is passed on as it is). `rank_agreement` is the
    Spearman correlation of spread and error over these conditions (None below four).
    """

    floor: float
    factor: float
    n: int
    conditions: str
    rank_agreement: float | None = None

    @classmethod
    def fitted(cls, spread: Floats, error: Floats, conditions: str) -> Calibration:
        """The calibration of `spread` [n] by `error` [n]. Below ENOUGH conditions there is no floor."""
        from scipy.stats import spearmanr

        n = len(spread)
        if n == 0:
            return cls(0.0, 1.0, 0, "none")
        design = np.column_stack([np.ones(n), np.square(spread)])
        design[:, 0] *= n >= ENOUGH
        (floor, factor), _ = nnls(design, np.square(error))
        agreement = None
        if n >= ENOUGH and np.ptp(spread) > 0 and np.ptp(error) > 0:
            agreement = float(spearmanr(spread, error).statistic)
        return cls(float(np.sqrt(floor)), float(np.sqrt(factor)), n, conditions, agreement)

    def expected_error(self, spread: Floats) -> Floats:
        """The uncertainty [k] of conditions with this `spread` [k]: root mean square error to be expected."""
        return np.asarray(np.sqrt(self.floor**2 + np.square(self.factor * spread)))


def calibrating(
    ensemble: Ensemble, seed: int, most: int = MOST, among: Collection[str] | None = None
) -> tuple[list[str], str]:
    """Which measured conditions (`among` these, None: all) calibrate, at most `most`, and what they are to the runs."""
    beyond = ensemble.extrapolated([*ensemble.held_out, *ensemble.trained])  # of which nothing can be learned here
    usable = {name for name in ensemble.measured.index if name not in beyond and (among is None or name in among)}
    held_out = [name for name in ensemble.held_out if name in usable]
    trained = [name for name in ensemble.trained if name in usable]
    rng = numpy_rng(seed, "screen", "calibration")
    if len(held_out) > most:
        held_out = sorted(rng.choice(held_out, most, replace=False).tolist())
    if len(held_out) >= ENOUGH or not trained:
        return held_out, "validation" if held_out else "none"
    n_trained = min(len(trained), most - len(held_out))
    return sorted([*held_out, *rng.choice(trained, n_trained, replace=False).tolist()]), "validation and training"


FEWEST_GENES = 0.5
"""Share of the run's genes that an observed population must have measured."""


@dataclass(frozen=True)
class Observed:
    """Cells of one population: log1p expression `cells` [M, g] of the run's genes at `places` (ascending) [g]."""

    cells: sp.csr_matrix
    places: np.ndarray

    @property
    def mean(self) -> Floats:
        """Mean expression [g]."""
        return np.asarray(self.cells.mean(axis=0), dtype=np.float64).ravel()


def read_observed(
    source: str | Path | AnnData | CellTable, ensemble: Ensemble, condition: str | None = None, where: str = "observed"
) -> Observed:
    """The population in `source`: all its cells, or those of `condition` under the run's perturbation key.

    source: path (.h5ad, .zarr), AnnData or CellTable, as the screen that the run was fitted on was: its declaration
    (log1p, or counts with their target sum) holds for this file too, as does its layer, where the file has it.
    Raises DataError where values are not as declared, or where fewer than half of the run's genes are measured.
    """
    table = _table(source, ensemble, condition)
    columns = {str(gene): at for at, gene in enumerate(table.genes)}
    places = np.array([at for at, gene in enumerate(ensemble.genes) if gene in columns], dtype=np.int64)
    if len(places) < FEWEST_GENES * len(ensemble.genes):
        missing = next(gene for gene in ensemble.genes if gene not in columns)
        raise DataError(
            f"{where}: {len(places)} of the run's {len(ensemble.genes)} genes are measured (first missing: "
            f"'{missing}'), expected at least half; give cells measured on the genes of the training data"
        )
    if table.n < 2:
        raise DataError(f"{where}: 1 cell, expected at least 2; give a population")
    require_scale(ensemble.first, table.X, list(columns), where)
    measured = np.array([columns[ensemble.genes[at]] for at in places], dtype=np.int64)
    return Observed(in_memory(subset(table.X, None, measured)), places)


def _table(source: str | Path | AnnData | CellTable, ensemble: Ensemble, condition: str | None) -> CellTable:
    from scdfm.data import CellTable

    manifest = ensemble.first.manifest
    if isinstance(source, CellTable):
        return source if condition is None else source.select([manifest.naming.canonical(condition)])
    with open_source(source) as opened:
        layer = manifest.layer_in(opened.readable)
        if condition is not None:
            key = {"perturbation_key": manifest.perturbation_key, "layer": layer, "subset": manifest.subset}
            options = key | manifest.numbers | manifest.design | manifest.naming.to_dict()
            return read_like(source, options).select([manifest.naming.canonical(condition)])
        # Every cell is one population here; cells_of checks values and genes, and wants a label to begin with.
        one = pd.DataFrame({"population": "control"}, index=opened.obs.index.astype(str))
        naming = Naming(genes=manifest.naming.genes, gene_versions=manifest.naming.gene_versions)
        return cells_of(replace(opened, obs=one), "population", naming, layer=layer, strict=False, **manifest.numbers)
