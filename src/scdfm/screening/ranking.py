"""The table of a screen, one row a condition, and what it is ranked by.

The table comes from the shards alone, so that it can be made again at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from scdfm.data.conditions import CONTROL, near
from scdfm.errors import ConfigError, DataError
from scdfm.evaluation.populations import squared_distances
from scdfm.evaluation.pseudobulk import Floats
from scdfm.files import read_names
from scdfm.screening.effect import Untreated
from scdfm.screening.ensemble import Calibration, Ensemble, read_observed
from scdfm.screening.interaction import COLUMNS, informative_genes, of_shifts
from scdfm.screening.space import members
from scdfm.screening.store import Shard, Store

COLUMN_OF: Final = {"effect": "energy", "interaction": "departure", "uncertainty": "uncertainty"}
TOWARD, SIGNATURE = "toward:", "signature:"


@dataclass(frozen=True)
class Ranking:
    """A rule: a column of the table, or a score of predicted means.

    column: the table's column that is the score, empty for the two rules on means.
    toward: mean [g] that the conditions should bring control cells to, at the genes `places`.
    weights: [G] of a signature's genes.
    """

    column: str = ""
    toward: Floats | None = None
    places: np.ndarray | None = None
    weights: Floats | None = None

    @classmethod
    def of(cls, text: str, ensemble: Ensemble) -> Ranking:
        """The rule `effect`, `interaction`, `uncertainty`, `toward:CELLS.h5ad` or `signature:UP.txt,DOWN.txt`."""
        if text in COLUMN_OF:
            return cls(column=COLUMN_OF[text])
        if text.startswith(TOWARD) and text != TOWARD:
            observed = read_observed(Path(text.removeprefix(TOWARD)), ensemble, where="toward")
            return cls(toward=observed.mean, places=observed.places)
        if text.startswith(SIGNATURE) and text != SIGNATURE:
            up, _, down = text.removeprefix(SIGNATURE).partition(",")
            return cls(weights=signature(up, down, ensemble.genes))
        raise ConfigError(
            f"--rank-by {text}: expected effect, interaction, uncertainty, toward:CELLS.h5ad or signature:UP.txt,DOWN.txt"
        )

    def score(self, means: Floats, control: Floats, rows: pd.DataFrame) -> Floats:
        """The score [k] of conditions with predicted `means` and `control` means [k, G], and table `rows`; NaN ranks last.

        toward: 1 − ‖mean − target‖ / ‖control − target‖, the share of the way there (1 arrives, 0 stays, below 0
        leads away). signature: mean shift of the genes to go up, minus that of the genes to go down.
        """
        if self.toward is not None:
            start = np.linalg.norm(control[:, self.places] - self.toward, axis=1)
            left = np.linalg.norm(means[:, self.places] - self.toward, axis=1)
            return np.asarray(1 - left / np.maximum(start, 1e-12))
        if self.weights is not None:
            return np.asarray((means - control) @ self.weights)
        return rows[self.column].to_numpy(np.float64)


def signature(up: str, down: str, genes: Sequence[str]) -> Floats:
    """Weights [G]: 1/n for each of the n genes in the file `up`, −1/m for the m in `down`; either may be empty.

    Genes that the run does not model are left out; DataError where none of a file's is left, or one is in both.
    """
    weights = np.zeros(len(genes))
    place = {gene: at for at, gene in enumerate(genes)}
    for file, sign in ((up.strip(), 1.0), (down.strip(), -1.0)):
        if not file:
            continue
        names = list(dict.fromkeys(read_names(Path(file), "signature")))
        places = [place[name] for name in names if name in place]
        if not places:
            raise DataError(
                f"signature {file}: none of its {len(names)} genes is among the run's {len(genes)} (first: '{names[0]}'); "
                f"expected names as in the training data{near(names[0], genes)}"
            )
        if np.any(weights[places]):
            both = next(genes[at] for at in places if weights[at])
            raise DataError(f"signature {file}: gene '{both}' is to go up and down; keep it in one file")
        weights[places] = sign / len(places)
    return weights


MEASURED: Final = tuple(f"measured_{name}" for name in COLUMNS)


@dataclass(frozen=True)
class Tabulator:
    """Makes the rows of `asked` conditions out of a complete store, each against its `untreated` cells."""

    store: Store
    ensemble: Ensemble
    untreated: Untreated
    asked: frozenset[str]
    calibration: Calibration

    def table(self, ranking: Ranking) -> pd.DataFrame:
        """Every asked condition, best first by `ranking`; equal scores and undefined ones in the order of the store."""
        parts, scores = [], []
        for shard in self.store.shards():
            mask = np.array([name in self.asked for name in shard.names])
            if not mask.any():
                continue
            rows = self._rows(shard).iloc[np.flatnonzero(mask)]
            parts.append(rows)
            control = self.untreated.means(list(rows.index))
            scores.append(ranking.score(shard.means[mask], control, rows))
        table = pd.concat(parts)
        table.insert(0, "score", np.concatenate(scores))
        table = table.iloc[np.argsort(-table["score"].to_numpy(np.float64), kind="stable")]
        table.insert(0, "rank", np.arange(1, len(table) + 1))
        return table.reset_index()

    def _rows(self, shard: Shard) -> pd.DataFrame:
        rows = shard.rows.copy()
        rows.index.name = "condition"
        names = list(shard.names)
        rows.insert(0, "order", [len(members(name)) for name in names])
        seen = np.array([self.ensemble.targets_seen(name) for name in names])
        rows.insert(1, "targets_seen", seen)
        because = self.ensemble.extrapolated(names)
        rows.insert(2, "extrapolated", [name in because for name in names])
        rows.insert(3, "part", [self.ensemble.part(name) for name in names])
        rows.insert(4, "measured", rows["part"] != "")
        rows["because"] = [because.get(name, "") for name in names]
        rows["uncertainty"] = self._uncertainty(names, rows["spread"].to_numpy(np.float64), seen)
        rows["novelty"], rows["nearest"] = self._novelty(shard)
        shifts = pd.DataFrame(shard.means - self.untreated.means(names), index=names, columns=list(self.store.genes))
        pairs = [name for name in names if len(members(name)) == 2]
        parts = {single for name in pairs for single in members(name)}
        singles = self._singles.loc[[single for single in self._singles.index if single in parts - set(names)]]
        shifts = pd.concat([singles, shifts])[self.interaction_genes]
        predicted = of_shifts(shifts, pairs)
        measured = self._measured_interactions.reindex(names)
        measured.columns = pd.Index(MEASURED)
        return pd.concat([rows, _typed(predicted.reindex(names)), _typed(measured)], axis=1)

    def _uncertainty(self, names: list[str], spread: Floats, seen: Floats) -> Floats:
        """The error to be expected [k]: calibrated, and of targets never perturbed at least what the priors say.

        Those that calibrate were measured: they tell nothing of such a target.
        """
        errors = self.calibration.expected_error(spread)
        new = np.flatnonzero(seen < [len(members(name)) for name in names])
        if len(new):
            errors[new] = np.fmax(errors[new], self.ensemble.doubt([names[row] for row in new], self.untreated.table))
        return errors

    def _novelty(self, shard: Shard) -> tuple[Floats, list[str]]:
        """Distance of each predicted mean to the nearest measured mean of another condition, and its name."""
        measured = self.ensemble.measured
        if not len(measured):
            return np.full(len(shard.names), np.nan), [""] * len(shard.names)
        values = measured.to_numpy(np.float64)
        # Distances of shifts, whose squares do not drown in those of the means.
        centre = self.untreated.whole.mean
        squared = squared_distances(shard.means - centre, values - centre)
        names = np.array(measured.index.astype(str), dtype=object)
        squared[np.array(shard.names, dtype=object)[:, None] == names[None, :]] = np.inf
        nearest = squared.argmin(axis=1)
        return np.sqrt(squared[np.arange(len(nearest)), nearest]), [str(name) for name in names[nearest]]

    @cached_property
    def _singles(self) -> pd.DataFrame:
        """Predicted shifts of the singles, which many shards need."""
        singles = [name for name in self.store.names if len(members(name)) == 1]
        means = self.store.means(singles)
        return means - self.untreated.means(list(means.index)) if len(means) else means

    @cached_property
    def interaction_genes(self) -> list[str]:
        """The genes that interactions are scored on: those the measured singles move most, else the predicted ones."""
        shifts = self._measured_shifts
        singles = shifts.loc[[name for name in shifts.index if len(members(name)) == 1]]
        return informative_genes(singles if len(singles) else self._singles)

    @cached_property
    def _measured_shifts(self) -> pd.DataFrame:
        """Measured shifts: from the mean of all control cells, or of a covariate's own where the screen has some."""
        means = self.ensemble.measured
        names = [str(name) for name in means.index if members(str(name))]
        if CONTROL not in means.index or not names:
            return pd.DataFrame(columns=list(self.store.genes), dtype=np.float64)
        own = (
            self.untreated.means(names)
            if self.untreated.table.design.match
            else means.loc[CONTROL].to_numpy(np.float64)
        )
        return means.loc[names] - own

    @cached_property
    def _measured_interactions(self) -> pd.DataFrame:
        shifts = self._measured_shifts
        pairs = [name for name in shifts.index if name in self.asked and len(members(name)) == 2]
        return of_shifts(shifts[self.interaction_genes], pairs)


def _typed(rows: pd.DataFrame) -> pd.DataFrame:
    """The columns of an interaction as numbers and text, whatever is missing."""
    *numbers, kind = rows.columns
    typed = rows[numbers].astype(np.float64)
    typed[kind] = rows[kind].astype(object).where(rows[kind].notna(), "").astype(str)
    return typed
