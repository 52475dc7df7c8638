"""What a screen is ranked by: one number for each condition, the largest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from scdfm.data.conditions import near
from scdfm.errors import ConfigError, DataError
from scdfm.screening.correlation import Floats
from scdfm.screening.ensemble import Ensemble
from scdfm.screening.observed import read_observed
from scdfm.screening.space import read_names

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
        found = [place[name] for name in names if name in place]
        if not found:
            raise DataError(
                f"signature {file}: none of its {len(names)} genes is among the run's {len(genes)} (first: '{names[0]}'); "
                f"expected names as in the training data{near(names[0], genes)}"
            )
        if np.any(weights[found]):
            both = next(genes[at] for at in found if weights[at])
            raise DataError(f"signature {file}: gene '{both}' is to go up and down; keep it in one file")
        weights[found] = sign / len(found)
    return weights
