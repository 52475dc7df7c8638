"""Genetic interactions of pairs, as Norman et al. (Science 2019) measure them on mean shifts.

A double's shift is fitted by those of its singles, ab ≈ c₁·a + c₂·b (least squares over genes, no intercept). Two
perturbations that do not interact have c₁ = c₂ = 1. Shifts are mean log1p expression minus the control mean, over the
genes that the singles move most.

One number of them is the distance correlation of Székely, Rizzo and Bakirov (Annals of Statistics 2007), the V-statistic.
dCov²(x, y) is the mean product of the two doubly centred matrices of distances between observations;
dCor² = dCov²(x, y) / √(dCov²(x, x) · dCov²(y, y)). It is 0 for independent variables only, and 1 for y = a + b·x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from scdfm.data.conditions import CONTROL
from scdfm.errors import DataError
from scdfm.evaluation.pseudobulk import Floats
from scdfm.screening.space import members


@dataclass(frozen=True)
class Distances:
    """Distances [n, n] between the observations of one variable, centred by row and by column, and dCov²(x, x)."""

    centred: Floats
    variance: float

    @classmethod
    def of(cls, x: npt.ArrayLike) -> Distances:
        """The distances of `x`: n numbers, or n vectors [n, d] with Euclidean distance."""
        values = np.asarray(x, dtype=np.float64)
        columns = values[:, None] if values.ndim == 1 else values
        if columns.shape[1] == 1:
            distances = np.abs(columns - columns.T)
        else:
            distances = np.sqrt(sum((column[:, None] - column[None, :]) ** 2 for column in columns.T))
        means = distances.mean(axis=0)
        distances -= means[:, None]
        distances -= means[None, :] - means.mean()
        return cls(distances, float(np.vdot(distances, distances)) / len(values) ** 2)


def distance_correlation(x: Distances, y: Distances) -> float:
    """dCor(x, y) in [0, 1]; NaN where x or y is constant."""
    scale = np.sqrt(x.variance) * np.sqrt(y.variance)
    if scale == 0:
        return float("nan")
    covariance = float(np.vdot(x.centred, y.centred)) / len(x.centred) ** 2
    return float(np.sqrt(min(1.0, max(0.0, covariance / scale))))


GENES: Final = 500
"""Genes that take part: those with the largest sum of squared shifts over the singles."""
ADDITIVE, SYNERGY, SUPPRESSION, REDUNDANCY, EPISTASIS, NEOMORPHISM = CLASSES = (
    "additive", "synergy", "suppression", "redundancy", "epistasis", "neomorphism",
)  # fmt: skip
NEOMORPHIC_FIT: Final = 0.6
"""Below this distance correlation of fit and double, the singles do not explain the double: neomorphism."""
EPISTATIC_DOMINANCE: Final = math.log10(4)
"""From this |log₁₀(c₁/c₂)| on one single speaks for the pair: epistasis."""
REDUNDANT_SIMILARITY: Final = 0.6
"""From this distance correlation of the singles on, a pair below the additive magnitude is redundancy."""
SYNERGISTIC_MAGNITUDE: Final = 1.2 * math.sqrt(2)
"""√(c₁² + c₂²) is √2 for an additive pair; 1.2 times as much and more is synergy."""
SUPPRESSIVE_MAGNITUDE: Final = 0.5 * math.sqrt(2)
"""Half of the additive magnitude and less is suppression."""
REDUNDANT_MAGNITUDE: Final = 0.85 * math.sqrt(2)
"""Similar singles that reach less than this together are redundancy."""
_KEPT_MATRICES: Final = 128


@dataclass(frozen=True)
class Interaction:
    """How the shift of a pair comes from those of its singles a and b (in the order of the condition's name)."""

    c1: float
    """c₁ of ab ≈ c₁·a + c₂·b."""
    c2: float
    """c₂ of the same fit."""
    magnitude: float
    """√(c₁² + c₂²); √2 for an additive pair."""
    dominance: float
    """|log₁₀ |c₁/c₂||; 0 where both count alike."""
    dcor_singles: float
    """Distance correlation of a and b: how similar the singles are."""
    dcor_double: float
    """Distance correlation of (a, b) and ab: how similar the double is to its singles."""
    dcor_fit: float
    """Distance correlation of the fit and ab: how well two coefficients explain the double."""
    dcor_residual: float
    """Distance correlation of (a, b) and what the fit leaves: what the singles still say of it, not linearly."""
    departure: float
    """‖ab − (a + b)‖ over the genes: how far the double is from additive, in log1p units."""
    kind: str
    """One of CLASSES."""


COLUMNS: Final = tuple(field.name for field in fields(Interaction))
NUMBERS: Final = COLUMNS[:-1]


def classified(magnitude: float, dominance: float, dcor_singles: float, dcor_fit: float) -> str:
    """The class of an interaction: the first of these rules that holds (thresholds: the constants above).

    neomorphism: the fit fails. epistasis: one coefficient is at least four times the other. redundancy: similar
    singles that reach less together than their sum. synergy, suppression: more, or less than half, of the additive
    magnitude. additive: the rest.
    """
    if not dcor_fit >= NEOMORPHIC_FIT:
        return NEOMORPHISM
    if not dominance < EPISTATIC_DOMINANCE:
        return EPISTASIS
    if dcor_singles >= REDUNDANT_SIMILARITY and magnitude < REDUNDANT_MAGNITUDE:
        return REDUNDANCY
    if magnitude >= SYNERGISTIC_MAGNITUDE:
        return SYNERGY
    return SUPPRESSION if magnitude <= SUPPRESSIVE_MAGNITUDE else ADDITIVE


def interaction(
    a: Floats, b: Floats, ab: Floats, of_a: Distances | None = None, of_b: Distances | None = None
) -> Interaction:
    """The interaction of singles' shifts `a`, `b` and their double's `ab`, each [G] (at least 3 genes).

    `of_a` and `of_b` are the singles' distances where they are at hand: they belong to many pairs.
    """
    singles = np.column_stack([a, b])
    (c1, c2), *_ = np.linalg.lstsq(singles, ab, rcond=None)
    fit = singles @ np.array([c1, c2])
    first, second = of_a or Distances.of(a), of_b or Distances.of(b)
    both, double = Distances.of(singles), Distances.of(ab)
    magnitude, similar = float(np.hypot(c1, c2)), distance_correlation(first, second)
    dominance, explained = _dominance(c1, c2), distance_correlation(Distances.of(fit), double)
    return Interaction(
        c1=float(c1), c2=float(c2), magnitude=magnitude, dominance=dominance, dcor_singles=similar,
        dcor_double=distance_correlation(both, double), dcor_fit=explained,
        dcor_residual=distance_correlation(both, Distances.of(ab - fit)),
        departure=float(np.linalg.norm(ab - a - b)),
        kind=classified(magnitude, dominance, similar, explained),
    )  # fmt: skip


def _dominance(c1: float, c2: float) -> float:
    if c1 == 0 or c2 == 0:
        return math.nan if c1 == c2 else math.inf
    return abs(math.log10(abs(c1 / c2)))


def informative_genes(shifts: pd.DataFrame, n: int = GENES) -> list[str]:
    """The `n` genes whose squared shifts, summed over the rows of `shifts` (singles × genes), are the largest."""
    strength = np.square(shifts.to_numpy(np.float64)).sum(axis=0)
    places = np.sort(np.argsort(-strength, kind="stable")[:n])
    return [str(gene) for gene in shifts.columns[places]]


def interactions(
    means: pd.DataFrame,
    control: pd.Series | None = None,
    pairs: Sequence[str] | None = None,
    genes: Sequence[str] | None = None,
) -> pd.DataFrame:
    """The interaction of every pair of `means` whose two singles are there as well: pair × COLUMNS.

    means: mean log1p expression, conditions × genes, of predicted or of measured populations. control: the control
    mean by gene; None takes the row `control` of `means`. pairs: those to score, None for all. genes: those that
    take part; None chooses GENES of them by the singles (`informative_genes`).
    """
    if control is None:
        if CONTROL not in means.index:
            raise DataError("interactions: the means hold no row 'control'; add it, or give the control mean")
        control = pd.Series(means.loc[CONTROL].to_numpy(np.float64), index=means.columns)
    shifts = means.drop(index=CONTROL, errors="ignore") - control
    singles = shifts.loc[[name for name in shifts.index if len(members(name)) == 1]]
    shifts = shifts[list(informative_genes(singles) if genes is None else genes)]
    return of_shifts(shifts, [str(name) for name in shifts.index] if pairs is None else pairs)


def of_shifts(shifts: pd.DataFrame, pairs: Sequence[str]) -> pd.DataFrame:
    """The interaction of those of `pairs` whose singles are in `shifts` (conditions × genes) as well: pair × COLUMNS."""
    there = set(map(str, shifts.index))
    scored = [name for name in pairs if len(members(name)) == 2 and {name, *members(name)} <= there]
    values = {str(name): row for name, row in zip(shifts.index, shifts.to_numpy(np.float64), strict=True)}
    rows = _scored(values, scored)
    return pd.DataFrame(rows, index=pd.Index(scored, name="condition", dtype=object), columns=list(COLUMNS))


def _scored(shifts: dict[str, Floats], pairs: Sequence[str]) -> list[dict[str, float | str]]:
    @lru_cache(maxsize=_KEPT_MATRICES)
    def distances(name: str) -> Distances:
        return Distances.of(shifts[name])

    rows = []
    for name in pairs:
        a, b = members(name)
        rows.append(asdict(interaction(shifts[a], shifts[b], shifts[name], distances(a), distances(b))))
    return rows
