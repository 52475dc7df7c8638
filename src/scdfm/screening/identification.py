"""The search backwards: which perturbation made this population, or would bring control cells to it.

Every candidate is predicted. Those whose predicted means lie nearest to the observed mean are compared cell by cell, by
the energy distance. Both distances count little where the run is known to err: they are taken on principal axes, whitened
by the second moment of its errors on measured conditions (as Mahalanobis'). A temperature, fitted on conditions whose
answer is known, turns distances into probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from tqdm.auto import tqdm

from scdfm.data.conditions import setting_of
from scdfm.errors import ConfigError, RunError
from scdfm.evaluation.pseudobulk import Floats
from scdfm.screening.effect import Reference, energy_distance, mean_distance
from scdfm.screening.ensemble import Ensemble, Observed, calibrating, read_observed
from scdfm.screening.job import untreated
from scdfm.screening.space import combined, members
from scdfm.screening.store import Screen
from scdfm.seeds import derive, numpy_rng

if TYPE_CHECKING:
    from anndata import AnnData

    from scdfm.data import CellTable
    from scdfm.run import Run

SHORTLIST: Final = 20
"""Candidates compared cell by cell."""
CALIBRATING: Final = 8
"""Conditions with a known answer that fit the temperature, at most."""
FEW_CELLS: Final = 32
"""Cells of each candidate where only its mean is asked for."""
_BATCH: Final = 32
_OBSERVED_CELLS: Final = 500


def identify(
    runs: Run | Sequence[Run],
    observed: str | Path | AnnData | CellTable,
    *,
    condition: str | None = None,
    shortlist: int = SHORTLIST,
    calibrate: int = CALIBRATING,
    **options: Any,
) -> Identification:
    """Which perturbation made the cells of `observed`, or would make such cells out of control cells?

    observed: path, AnnData or CellTable of one population; with `condition` only the cells labelled so.
    shortlist: candidates compared cell by cell, the nearest by mean. calibrate: conditions with a known answer that fit the
        temperature; 0 leaves probabilities undefined.
    options: which candidates there are and how they are predicted, see `Candidates.of`, which serves many populations.
        Without a `setting` candidates have that of `condition`.
    """
    ensemble = Ensemble.of(runs)
    if condition is not None and not options.get("setting") and ensemble.first.encoder.schema.covariates:
        options["setting"] = setting_of(condition)
    among = Candidates.of(ensemble.runs, **options)
    return among.identify(observed, condition=condition, shortlist=shortlist, calibrate=calibrate)


def _fitting(cache: Screen | None, ensemble: Ensemble) -> Screen | None:
    """The screen, refused where other runs made it."""
    if cache is None:
        return None
    weights = [run.manifest.digests["weights.safetensors"] for run in ensemble.runs]
    if cache.record["runs"] != weights or cache.genes != list(ensemble.genes):
        raise RunError(f"screen {cache.path} was made by other runs; screen again, or do without")
    if cache.store.missing():
        raise RunError(f"screen {cache.path} is not complete; finish it with scdfm screen --resume")
    return cache


@dataclass(frozen=True)
class Candidates:
    """The conditions that may be the answer, with their predicted means and cells."""

    ensemble: Ensemble
    table: CellTable
    names: tuple[str, ...]
    n_cells: int
    seed: int
    cache: Screen | None
    progress: bool
    _cells: dict[tuple[str, int], Floats] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        runs: Run | Sequence[Run],
        *,
        targets: Sequence[str] | None = None,
        order: int = 2,
        conditions: Sequence[str] | None = None,
        setting: str = "",
        screen: Screen | str | Path | None = None,
        cells: int = 128,
        controls: CellTable | AnnData | str | Path | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> Candidates:
        """Candidates for any number of searches, each predicted once.

        targets, order, conditions: every combination of up to `order` of the `targets` (None: all that the run was trained
            on) in `setting` (its covariates, "cell_line=K562"), or exactly `conditions`.
        screen: a finished screen of the same runs, whose means (and cells, where it kept them) spare predicting the
            candidates; without it each is predicted with FEW_CELLS cells.
        cells: cells predicted for each candidate of a shortlist.
        """
        if cells < 2:
            raise ConfigError(f"identify: cells {cells}, expected at least 2")
        ensemble = Ensemble.of(runs)
        if conditions is None:
            names = combined(ensemble.first, targets, order, setting)
        else:
            names = list(dict.fromkeys(ensemble.first.manifest.naming.canonical(name) for name in conditions))
        ensemble.check(names)
        table = ensemble.control_table(controls)
        cache = Screen.load(screen) if isinstance(screen, (str, Path)) else screen
        return cls(ensemble, table, tuple(names), cells, seed, _fitting(cache, ensemble), progress)

    def identify(
        self,
        observed: str | Path | AnnData | CellTable,
        *,
        condition: str | None = None,
        shortlist: int = SHORTLIST,
        calibrate: int = CALIBRATING,
    ) -> Identification:
        """Which of the candidates made the cells of `observed`; the options are those of `identify`."""
        if shortlist < 1 or calibrate < 0:
            raise ConfigError(f"identify: shortlist {shortlist}, calibrate {calibrate}; expected at least 1 and 0")
        population = read_observed(observed, self.ensemble, condition)
        return _answer(Search(self, population.places, min(shortlist, len(self.names))), population, calibrate)

    @cached_property
    def means(self) -> Floats:
        """Predicted means [N, G] of the candidates."""
        means = np.full((len(self.names), len(self.ensemble.genes)), np.nan)
        stored_names = set(self.cache.store.names) if self.cache is not None else set()
        rows = [row for row, name in enumerate(self.names) if name in stored_names]
        if self.cache is not None and rows:
            means[rows] = self.cache.means([self.names[row] for row in rows]).to_numpy()
        left = [row for row, name in enumerate(self.names) if name not in stored_names]
        with tqdm(total=len(left), desc="candidates", unit="condition", disable=not self.progress) as bar:
            for start in range(0, len(left), _BATCH):
                batch = left[start : start + _BATCH]
                predictions = self.ensemble.populations(
                    [self.names[row] for row in batch], FEW_CELLS, self.seed, self.table
                )
                for row, (_, populations) in zip(batch, predictions, strict=True):
                    means[row] = np.mean([cells.mean(axis=0, dtype=np.float64) for cells in populations], axis=0)
                bar.update(len(batch))
        return means

    def cells(self, names: Sequence[str], seed: int | None = None) -> list[Floats]:
        """Predicted cells [M, G] of each of `names`, of all runs together; those of the screen where it kept them."""
        seed = self.seed if seed is None else seed
        cached = self.cache is not None and self.cache.record["keep_cells"] and seed == self.seed
        left = []
        for name in dict.fromkeys(names):
            if (name, seed) in self._cells:
                continue
            if cached and self.cache is not None and name in self.cache.store.names:
                self._cells[name, seed] = np.asarray(self.cache.cells(name).X.toarray(), dtype=np.float32)
            else:
                left.append(name)
        if left:
            for name, populations in self.ensemble.populations(left, self.n_cells, seed, self.table):
                self._cells[name, seed] = np.concatenate(populations)
        return [self._cells[name, seed] for name in names]


ENOUGH: Final = 5
"""Measured candidates that it takes to learn where the run errs; with fewer all axes count alike."""


@dataclass(frozen=True)
class Search:
    """Distances of candidates to a population, over the genes at `places` [g]."""

    candidates: Candidates
    places: np.ndarray
    shortlist: int

    @cached_property
    def reference(self) -> Reference:
        """Control cells on the search's genes, and the axes that energy distances are taken on."""
        ensemble = self.candidates.ensemble
        genes = [ensemble.genes[place] for place in self.places]
        return untreated(ensemble, self.candidates.table, self.candidates.seed, genes).whole

    @cached_property
    def places_of_means(self) -> Floats:
        """Where the candidates' predicted means lie on the axes, [N, D]."""
        return self.reference.project(self.candidates.means[:, self.places])

    def whitening(self, without: str | None = None) -> Floats:
        """The map W [D, D] of the axes that takes the run's known errors out, `without` those on one condition.

        Errors e are measured minus predicted means of the candidates that are measured (train and validation), C their
        uncentred second moment plus the sampling variance s² of a mean of FEW_CELLS cells. W = s·C^(-½): axes without
        errors keep their length, others shrink.
        """
        measured, size = self.candidates.ensemble.measured, len(self.reference.axes.components)
        rows = [row for row, name in enumerate(self.candidates.names) if name in measured.index and name != without]
        if len(rows) < ENOUGH:
            return np.eye(size)
        truth = measured.loc[[self.candidates.names[row] for row in rows]].to_numpy(np.float64)
        errors = self.reference.project(truth[:, self.places]) - self.places_of_means[rows]
        floor = max(float(self.reference.coordinates.var(axis=0).mean()) / FEW_CELLS, 1e-12)
        values, axes = np.linalg.eigh(errors.T @ errors / len(rows) + floor * np.eye(size))
        return np.asarray((axes * np.sqrt(floor / values)) @ axes.T)

    def nearest(self, mean: Floats, whitening: Floats) -> tuple[np.ndarray, Floats]:
        """The shortlist's rows, nearest first, and the distance [N] of every candidate's mean to `mean` [g]."""
        gap = (self.places_of_means - self.reference.project(mean[None, :])) @ whitening
        distance = np.linalg.norm(gap, axis=1)
        return np.argsort(distance, kind="stable")[: self.shortlist], distance

    def energies(self, rows: np.ndarray, cells: Floats, whitening: Floats) -> Floats:
        """Energy distance of the candidates at `rows` to the population `cells` [M, g]."""
        points = self.reference.project(cells) @ whitening
        spread = mean_distance(points)
        populations = self.candidates.cells([self.candidates.names[row] for row in rows])
        on_axes = [self.reference.project(of[:, self.places]) @ whitening for of in populations]
        return np.array([energy_distance(of, points, spread) for of in on_axes])


@dataclass(frozen=True)
class Temperature:
    """p(candidate) ∝ exp(−energy / value) over a shortlist, learned from `n` conditions whose answer is known.

    `first` of them had the answer at the top, `shortlisted` had it in the shortlist at all; `conditions` says what they
    are to the run ("validation", or "validation and training", which is optimistic).
    """

    value: float
    n: int
    first: int
    shortlisted: int
    conditions: str

    @property
    def elsewhere(self) -> float:
        """Probability that the answer is not in the shortlist: the share seen, with half a miss and half a hit added."""
        return (self.n - self.shortlisted + 0.5) / (self.n + 1)

    def probabilities(self, energies: Floats) -> Floats:
        """Probability [k] of each candidate of a shortlist; NaN without any known answer."""
        if self.n == 0:
            return np.full(len(energies), np.nan)
        return (1 - self.elsewhere) * softmin(energies, 1 / self.value)


def softmin(energies: Floats, sharpness: float) -> Floats:
    """exp(−sharpness · energy), normalised."""
    weights = np.exp(-sharpness * (energies - energies.min()))
    return np.asarray(weights / weights.sum())


def fitted_temperature(energies: Sequence[Floats], answers: Sequence[int | None], conditions: str) -> Temperature:
    """The temperature of the largest likelihood, given each known condition's shortlist and the answer's place in it.

    One more answer, drawn at random from each shortlist, takes part with the weight of one condition altogether, so
    that a few lucky conditions do not make the search certain. The likelihood is concave in 1 / temperature.
    """
    there = [(energy, answer) for energy, answer in zip(energies, answers, strict=True) if answer is not None]
    n, first = len(answers), sum(answer == int(energy.argmin()) for energy, answer in there)
    if not there:
        return Temperature(np.inf, n, 0, 0, conditions)
    doubt = 1 / (len(there) + 1)

    def loss(log_sharpness: float) -> float:
        total = 0.0
        for energy, answer in there:
            chances = np.log(np.maximum(softmin(energy, np.exp(log_sharpness)), 1e-300))
            total -= (1 - doubt) * chances[answer] + doubt * chances.mean()
        return total

    scale = np.log(max(float(np.median([np.ptp(energy) for energy, _ in there])), 1e-9))
    best = minimize_scalar(loss, bounds=(-6 - scale, 8 - scale), method="bounded")
    return Temperature(float(np.exp(-best.x)), n, int(first), len(there), conditions)


@dataclass(frozen=True)
class Identification:
    """The answer: every candidate in `table`, best first, and what an honest reader needs beside it."""

    table: pd.DataFrame
    """condition, energy (shortlist only), mean_distance, probability, order, targets_seen, part."""
    control_energy: float
    """Energy distance of untreated cells to the population: a candidate above it explains nothing."""
    temperature: Temperature
    shortlist: int

    @property
    def chance(self) -> float:
        """Probability that a candidate drawn at random is the answer."""
        return 1 / len(self.table)

    def __str__(self) -> str:
        temperature = self.temperature
        text = (
            f"{len(self.table):,} candidates: chance puts the answer first in {100 * self.chance:.3g} % of searches; "
            f"untreated cells are at energy {self.control_energy:.3g}"
        )
        if temperature.n:
            text += (
                f"; of {temperature.n} known conditions ({temperature.conditions}) {temperature.first} came first "
                f"and {temperature.shortlisted} into the {self.shortlist} compared cell by cell"
            )
        return text


def _answer(search: Search, observed: Observed, calibrate: int) -> Identification:
    candidates = search.candidates
    rng = numpy_rng(candidates.seed, "identify", "cells")
    some = observed.cells
    if some.shape[0] > _OBSERVED_CELLS:
        some = some[np.sort(rng.choice(some.shape[0], _OBSERVED_CELLS, replace=False))]
    cells = np.asarray(some.toarray(), dtype=np.float64)
    whitening = search.whitening()
    rows, distance = search.nearest(observed.mean, whitening)
    energies = search.energies(rows, cells, whitening)
    temperature = calibrated(search, calibrate)
    chances = temperature.probabilities(energies)
    left = len(candidates.names) - len(rows)
    probability = np.full(len(candidates.names), temperature.elsewhere / max(left, 1) if temperature.n else np.nan)
    probability[rows] = chances if left else chances / max(1 - temperature.elsewhere, 1e-12)
    energy = np.full(len(candidates.names), np.nan)
    energy[rows] = energies
    table = pd.DataFrame(
        {
            "condition": candidates.names, "energy": energy, "mean_distance": distance, "probability": probability,
            "order": [len(members(name)) for name in candidates.names],
            "targets_seen": [candidates.ensemble.targets_seen(name) for name in candidates.names],
            "part": [candidates.ensemble.part(name) for name in candidates.names],
        }
    )  # fmt: skip
    table = table.sort_values(["energy", "mean_distance"], kind="stable", na_position="last").reset_index(drop=True)
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    still, points = search.reference.coordinates @ whitening, search.reference.project(cells) @ whitening
    return Identification(table, energy_distance(still, points), temperature, search.shortlist)


def calibrated(search: Search, most: int) -> Temperature:
    """The temperature, from measured conditions among the candidates.

    Of these a run keeps means, not cells. Cells predicted with another seed, moved to the measured mean and cut at 0,
    stand in for the cells of each.
    """
    candidates = search.candidates
    among = set(candidates.names)
    names, kind = calibrating(candidates.ensemble, candidates.seed, most, among) if most else ([], "none")
    energies: list[Floats] = []
    answers: list[int | None] = []
    other = derive(candidates.seed, "identify", "stand-in")
    for name in tqdm(names, desc="calibrate", unit="condition", disable=not candidates.progress):
        measured = candidates.ensemble.measured.loc[name].to_numpy(np.float64)
        cells = candidates.cells([name], other)[0]
        moved = np.maximum(cells + (measured - cells.mean(axis=0, dtype=np.float64)), 0)[:, search.places]
        whitening = search.whitening(without=name)  # its own error is not known when it is searched
        rows, _ = search.nearest(measured[search.places], whitening)
        energies.append(search.energies(rows, moved, whitening))
        place = np.flatnonzero(rows == candidates.names.index(name))
        answers.append(int(place[0]) if len(place) else None)
    return fitted_temperature(energies, answers, kind)
