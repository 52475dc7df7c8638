"""What all simulated screens share: gene programs, populations of cells, their counts, and the table they end in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from scdfm.data.conditions import CONTROL, perturbation_of
from scdfm.errors import DataError
from scdfm.seeds import numpy_rng

if TYPE_CHECKING:
    from anndata import AnnData

TARGET_SUM: Final = 10_000.0
_BACKGROUND: Final = 0.25  # spread of program activity between untreated cells
_DISPERSION: Final = 0.2  # extra-Poisson variance: var = mean + 0.2 · mean²
FEWEST_PROGRAMS: Final = 5

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measurement:
    """How cells are made and measured, the same for every population of a screen."""

    programs: Float  # [R, G] log fold change of a gene per unit of activity
    responders: float  # share of perturbed cells that respond
    depth: float  # median counts of a cell
    dropout: float  # share of zeros added where expression is weak
    seed: int

    def counts(self, population: Population, n: int, rng: np.random.Generator) -> tuple[Float, npt.NDArray[np.bool_]]:
        """Counts [n, G] of cells of a population, and which of them responded [n]."""
        responds = (rng.random(n) < self.responders) & population.perturbed
        strength = np.where(responds, rng.beta(6, 2, n) / 0.75, 0.0)
        background = _BACKGROUND * rng.standard_normal((n, len(self.programs))) @ self.programs
        rate = np.exp(population.base + background + strength[:, None] * population.shift)
        library = self.depth * rng.lognormal(0.0, 0.3, (n, 1))
        mean = rate / rate.sum(axis=1, keepdims=True) * library
        counts = rng.poisson(mean * rng.gamma(1 / _DISPERSION, _DISPERSION, mean.shape))
        # Weakly expressed genes are missed more often than Poisson noise has it.
        counts[rng.random(mean.shape) < self.dropout / (1.0 + mean)] = 0
        return counts.astype(np.float64), responds


@dataclass(frozen=True)
class Population:
    """The cells of one condition: its canonical name, their columns of obs, and their log rates."""

    name: str
    columns: Mapping[str, str | float]
    n: int
    base: Float  # [G] log rate of a gene in an untreated cell
    shift: Float  # [G] log fold change in a cell that responds with strength 1

    @property
    def perturbed(self) -> bool:
        """Whether these are treated cells."""
        return perturbation_of(self.name) != CONTROL


def measured(populations: Sequence[Population], how: Measurement, genes: Sequence[str], truth_cells: int) -> AnnData:
    """The screen of `populations`: X log1p counts per 10,000 (float32 CSR), layers["counts"], obs["responder"]
    beside their columns, var["program"], and uns["true_means"] (population × gene: mean of X over `truth_cells`
    further cells of each). Each population's cells come from a stream of their own, named by it.
    """
    drawn = [how.counts(part, part.n, numpy_rng(how.seed, "simulate", "cells", part.name)) for part in populations]
    sizes = [part.n for part in populations]
    obs = pd.DataFrame(
        {column: np.repeat([part.columns[column] for part in populations], sizes) for column in populations[0].columns}
    )
    obs = obs.astype({column: "category" for column in obs.columns if not pd.api.types.is_numeric_dtype(obs[column])})
    obs["responder"] = np.concatenate([responds for _, responds in drawn])
    obs.index = pd.Index([f"cell{row}" for row in range(len(obs))])
    adata = _adata(sp.csr_matrix(sp.vstack([sp.csr_matrix(counts) for counts, _ in drawn])), obs, genes, how)
    means = [_true_mean(part, how, truth_cells) for part in populations]
    names = [part.name for part in populations]
    adata.uns["true_means"] = pd.DataFrame(means, index=names, columns=list(genes))
    return adata


def _true_mean(population: Population, how: Measurement, n: int) -> Float:
    counts, _ = how.counts(population, n, numpy_rng(how.seed, "simulate", "true mean", population.name))
    totals = counts.sum(axis=1, keepdims=True)
    return np.asarray(np.log1p(counts * (TARGET_SUM / np.maximum(totals, 1.0))).mean(axis=0))


def _adata(counts: sp.csr_matrix, obs: pd.DataFrame, genes: Sequence[str], how: Measurement) -> AnnData:
    from anndata import AnnData

    totals = np.asarray(counts.sum(axis=1)).ravel()
    normalised = counts.copy()
    normalised.data = np.log1p(normalised.data * np.repeat(TARGET_SUM / np.maximum(totals, 1), np.diff(counts.indptr)))
    var = pd.DataFrame({"program": np.abs(how.programs).argmax(axis=0)}, index=list(genes))
    return AnnData(X=normalised.astype(np.float32), obs=obs, var=var, layers={"counts": counts.astype(np.float32)})


def gene_names(n: int) -> list[str]:
    """G001, G002, ..."""
    width = max(3, len(str(n)))
    return [f"G{number:0{width}d}" for number in range(1, n + 1)]


def gene_programs(rng: np.random.Generator, n_programs: int, n_genes: int) -> Float:
    """Log fold changes [R, G]: each gene belongs to one program, and hangs weakly on another."""
    programs = np.zeros((n_programs, n_genes))
    genes = np.arange(n_genes)
    for low, high in ((0.4, 1.2), (0.0, 0.3)):
        members = rng.integers(n_programs, size=n_genes)
        programs[members, genes] += rng.uniform(low, high, n_genes) * rng.choice([-1, 1], n_genes, p=[0.35, 0.65])
    return programs


def base_rates(rng: np.random.Generator, n_genes: int) -> Float:
    """Log rates [G] of untreated cells."""
    return rng.normal(0.0, 1.3, n_genes)


def require(values: Mapping[str, float], bounds: Mapping[str, tuple[float, float]]) -> None:
    """Raise DataError for the first option that is not within its bounds."""
    for name, (low, high) in bounds.items():
        if not low <= values[name] <= high:
            top = "" if high == math.inf else f" and at most {high:g}"
            raise DataError(f"simulate: {name} is {values[name]}; expected at least {low:g}{top}")


def common_bounds() -> dict[str, tuple[float, float]]:
    """What the options that every simulator has may be."""
    return {
        "n_genes": (2, math.inf), "cells_per_condition": (1, math.inf), "n_controls": (1, math.inf),
        "responders": (0, 1), "depth": (1, math.inf), "dropout": (0, 1), "n_programs": (FEWEST_PROGRAMS, math.inf),
        "truth_cells": (1, math.inf), "seed": (0, math.inf),
    }  # fmt: skip
