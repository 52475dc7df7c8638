"""What a screen is ranked by, the largest first, and which conditions to measure next.

Proposed are those about which the model is least sure, and that say different things.
The error of a prediction is taken to be a Gaussian process over predicted effects: conditions c and d with predicted
means m_c, m_d (on the screen's principal axes) and uncertainties u_c, u_d covary by
k(c, d) = u_c · u_d · exp(−‖m_c − m_d‖² / 2ℓ²), ℓ the median distance between candidates. What is measured is conditioned on
first; then each proposal is the candidate of largest remaining variance, and is conditioned on in turn. That is the
greedy maximum of log det k, a determinantal point process over what is not known yet (Chen, Zhang and Zhou, NeurIPS 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from scdfm.data.conditions import near
from scdfm.errors import ConfigError, DataError
from scdfm.evaluation.populations import squared_distances
from scdfm.evaluation.pseudobulk import Floats
from scdfm.files import read_names
from scdfm.screening.effect import Reference
from scdfm.screening.ensemble import Ensemble
from scdfm.screening.observed import read_observed
from scdfm.screening.store import Store

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


NOISE: Final = 0.01
"""Variance of a measurement, as a share of the mean u²: a measured condition keeps this much doubt."""
_SAMPLE: Final = 500


def proposed(
    table: pd.DataFrame, store: Store, ensemble: Ensemble, reference: Reference, n: int
) -> list[str]:
    """The `n` conditions of the screen's `table` to measure next, first first; none that the runs' data hold already.

    DataError where fewer than `n` are left to choose from.
    """
    uncertainty = dict(zip(table["condition"], table["uncertainty"].astype(float), strict=True))
    free = set(table.loc[~table["measured"].astype(bool), "condition"])
    if n > len(free):
        raise DataError(
            f"propose {n}: {len(free)} of the screen's {len(table)} conditions are not measured yet; "
            "propose fewer, or screen more conditions"
        )
    names, places = [], []
    for shard in store.shards():
        rows = [row for row, name in enumerate(shard.names) if name in free]
        names += [shard.names[row] for row in rows]
        places.append(reference.project(shard.means[rows]))
    candidates = np.concatenate(places)
    measured = (
        reference.project(ensemble.measured.to_numpy(np.float64))
        if len(ensemble.measured)
        else candidates[:0]
    )
    doubt = np.array([uncertainty[name] for name in names])
    return [names[at] for at in diverse(candidates, doubt, measured, n)]


def diverse(candidates: Floats, uncertainty: Floats, measured: Floats, n: int) -> list[int]:
    """The places of `n` of the `candidates` [N, D] with `uncertainty` [N], given the points `measured` [C, D].

    Measured points have the candidates' mean uncertainty before they are measured.
    """
    points = np.concatenate([candidates, measured])
    u = np.concatenate([uncertainty, np.full(len(measured), uncertainty.mean())])
    length = _median_distance(candidates)
    noise = NOISE * float(np.square(uncertainty).mean())
    factor = np.zeros((len(points), len(measured) + n))
    variance = np.square(u)
    picked: list[int] = []
    for step in range(len(measured) + n):
        if step < len(measured):
            pivot = len(candidates) + step
        else:
            left = variance[: len(candidates)].copy()
            left[picked] = -np.inf
            pivot = int(left.argmax())
            picked.append(pivot)
        kernel = np.exp(-squared_distances(points, points[[pivot]])[:, 0] / (2 * length**2))
        column = u * u[pivot] * kernel - factor[:, :step] @ factor[pivot, :step]
        factor[:, step] = column / np.sqrt(max(variance[pivot], 0) + noise + 1e-300)
        variance = variance - np.square(factor[:, step])
    return picked


def _median_distance(points: Floats) -> float:
    """Median distance between some evenly drawn ones of `points`, 1 where they all coincide."""
    some = points[np.unique(np.linspace(0, len(points) - 1, min(_SAMPLE, len(points))).astype(int))]
    if len(some) < 2:
        return 1.0
    distances = np.sqrt(squared_distances(some, some))[np.triu_indices(len(some), 1)]
    return float(np.median(distances)) or 1.0
