"""A simulated screen whose truth is known: genes in programs, single and double perturbations, counts of cells.

A target shifts the activity of a few programs that it shares with other targets, and its own expression. What
two targets do together follows from their program activities alone, so that unseen pairs can be predicted from
singles and other pairs, though not by adding up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from scdfm.data.conditions import CONTROL, canonical, targets
from scdfm.errors import DataError
from scdfm.seeds import numpy_rng

if TYPE_CHECKING:
    from anndata import AnnData

TARGET_SUM: Final = 10_000.0
INTERACTIONS: Final = {"none": 0.0, "strong": 1.0}
_OWN_EFFECT: Final = 1.5  # log fold change of a target's own expression (activation)
_BACKGROUND: Final = 0.25  # spread of program activity between untreated cells
_DISPERSION: Final = 0.2  # extra-Poisson variance: var = mean + 0.2 · mean²

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Options:
    """The options of `simulate`, refused where they cannot be."""

    n_genes: int
    n_targets: int
    n_doubles: int
    cells_per_condition: int
    n_controls: int
    interaction: float
    responders: float
    depth: float
    dropout: float
    n_programs: int
    truth_cells: int
    seed: int

    def __post_init__(self) -> None:
        pairs = math.comb(max(self.n_targets, 0), 2)
        bounds = {
            "n_targets": (2, math.inf), "n_genes": (self.n_targets, math.inf), "n_doubles": (0, pairs),
            "cells_per_condition": (1, math.inf), "n_controls": (1, math.inf), "interaction": (0, 10),
            "responders": (0, 1), "depth": (1, math.inf), "dropout": (0, 1), "n_programs": (5, math.inf),
            "truth_cells": (1, math.inf), "seed": (0, math.inf),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                top = "" if high == math.inf else f" and at most {high:g}"
                raise DataError(f"simulate: {name} is {getattr(self, name)}; expected at least {low:g}{top}")


@dataclass(frozen=True)
class _Truth:
    """Parameters of one simulated screen; R programs, K targets, G genes."""

    programs: Float  # [R, G] log fold change of a gene per unit of activity
    activity: Float  # [K, R] of each target alone
    place: dict[str, int]  # target -> its row in `activity`
    column: dict[str, int]  # target -> its gene
    base: Float  # [G] log rate of a gene in an untreated cell
    options: _Options

    def joint_activity(self, condition: str) -> Float:
        """Program activity [R] of a condition of any number of targets.

        With interaction κ, for each pair with activities a and b: programs that both drive the same way are
        shared, not added (−κ·min, redundancy); the first two programs work together on the last, which no
        target drives alone (+κ·(a₀b₁ + a₁b₀), synergy); and drive of program 2 masks the partner's drive of
        program 3 (·(1 − κ·min(1, |b₂|)), epistasis).
        """
        members = self.activity[[self.place[name] for name in targets(condition)]].copy()
        alone = members.copy()
        kappa = self.options.interaction
        for i, j in ((i, j) for i in range(len(alone)) for j in range(len(alone)) if i != j):
            members[i, 3] *= max(0.0, 1.0 - kappa * min(1.0, abs(alone[j, 2])))
        total = members.sum(axis=0)
        for i, j in combinations(range(len(alone)), 2):
            a, b = members[i], members[j]
            total -= kappa * np.where(a * b > 0, np.sign(a) * np.minimum(abs(a), abs(b)), 0.0)
            total[-1] += kappa * (alone[i, 0] * alone[j, 1] + alone[i, 1] * alone[j, 0])
        return np.asarray(total)

    def counts(self, condition: str, n: int, rng: np.random.Generator) -> tuple[Float, npt.NDArray[np.bool_]]:
        """Counts [n, G] of cells of a condition, and which of them responded [n]."""
        responds = (rng.random(n) < self.options.responders) & (condition != CONTROL)
        strength = np.where(responds, rng.beta(6, 2, n) / 0.75, 0.0)
        shift = np.zeros(len(self.base))
        if condition != CONTROL:
            shift = self.joint_activity(condition) @ self.programs
            shift[[self.column[name] for name in targets(condition)]] += _OWN_EFFECT
        background = _BACKGROUND * rng.standard_normal((n, len(self.programs))) @ self.programs
        rate = np.exp(self.base + background + strength[:, None] * shift)
        library = self.options.depth * rng.lognormal(0.0, 0.3, (n, 1))
        mean = rate / rate.sum(axis=1, keepdims=True) * library
        counts = rng.poisson(mean * rng.gamma(1 / _DISPERSION, _DISPERSION, mean.shape))
        # Weakly expressed genes are missed more often than Poisson noise has it.
        counts[rng.random(mean.shape) < self.options.dropout / (1.0 + mean)] = 0
        return counts.astype(np.float64), responds


def simulate(
    n_genes: int = 200,
    n_targets: int = 12,
    n_doubles: int | None = None,
    cells_per_condition: int = 100,
    n_controls: int = 400,
    interaction: Literal["strong", "none"] | float = "strong",
    responders: float = 0.8,
    depth: float = 1000.0,
    dropout: float = 0.3,
    n_programs: int = 5,
    truth_cells: int = 1000,
    seed: int = 0,
) -> AnnData:
    """Simulate a screen of every single and of `n_doubles` pairs (default: 60% of them), with controls.

    interaction: strength of non-additivity, "none" (log fold changes of a pair add up) or "strong", or a number.
    responders: share of perturbed cells that respond, each with a strength of its own; the others are as control.
    depth: median counts of a cell. dropout: share of zeros added where expression is weak.

    Counts are negative binomial given the cell's rates and library size. Returned: X log1p counts per 10,000
    (float32 CSR), layers["counts"], obs["perturbation"] and obs["responder"], var["program"] and
    var["target"], uns["true_means"] (condition × gene: mean of X over `truth_cells` further cells of each
    condition), uns["true_activity"] (condition × program) and uns["simulation"] (these options). Each
    condition's cells come from a stream of their own. Same arguments, same bits.
    """
    if n_doubles is None and n_targets > 1:
        n_doubles = round(0.6 * math.comb(n_targets, 2))
    kappa = INTERACTIONS.get(interaction) if isinstance(interaction, str) else float(interaction)
    if kappa is None:
        raise DataError(
            f"simulate: interaction is '{interaction}'; expected 'none', 'strong' or a number from 0"
        )
    options = _Options(
        n_genes, n_targets, n_doubles or 0, cells_per_condition, n_controls,
        kappa, responders, depth, dropout, n_programs, truth_cells, seed,
    )  # fmt: skip
    names, target_names, conditions = _design(options)
    truth = _truth(names, target_names, options)
    labels = np.repeat(conditions, [n_controls, *[cells_per_condition] * (len(conditions) - 1)])
    drawn = [
        truth.counts(name, int((labels == name).sum()), numpy_rng(seed, "simulate", "cells", name))
        for name in conditions
    ]
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical(labels),
            "responder": np.concatenate([responds for _, responds in drawn]),
        },
        index=[f"cell{row}" for row in range(len(labels))],
    )
    adata = _adata(
        sp.csr_matrix(sp.vstack([sp.csr_matrix(counts) for counts, _ in drawn])), obs, names, truth
    )
    means = [_true_mean(truth, name, truth_cells, seed) for name in conditions]
    adata.uns["true_means"] = pd.DataFrame(means, index=list(conditions), columns=names)
    adata.uns["true_activity"] = pd.DataFrame(
        [truth.joint_activity(name) for name in conditions],
        index=list(conditions),
        columns=[f"program{number}" for number in range(n_programs)],
    )
    adata.uns["simulation"] = asdict(options)
    return adata


def _design(options: _Options) -> tuple[list[str], list[str], list[str]]:
    """Gene names, those that are targets, and the measured conditions, control first."""
    width = max(3, len(str(options.n_genes)))
    names = [f"G{number:0{width}d}" for number in range(1, options.n_genes + 1)]
    rng = numpy_rng(options.seed, "simulate", "design")
    chosen = sorted(names[place] for place in rng.choice(options.n_genes, options.n_targets, replace=False))
    pairs = [canonical(f"{a}+{b}") for a, b in combinations(chosen, 2)]
    doubles = sorted(pairs[place] for place in rng.choice(len(pairs), options.n_doubles, replace=False))
    return names, chosen, [CONTROL, *chosen, *doubles]


def _truth(names: Sequence[str], target_names: Sequence[str], options: _Options) -> _Truth:
    rng = numpy_rng(options.seed, "simulate", "truth")
    n_programs, n_genes, n_targets = options.n_programs, options.n_genes, options.n_targets
    # Each gene belongs to one program, and hangs weakly on another.
    programs = np.zeros((n_programs, n_genes))
    genes = np.arange(n_genes)
    for low, high in ((0.4, 1.2), (0.0, 0.3)):
        members = rng.integers(n_programs, size=n_genes)
        programs[members, genes] += rng.uniform(low, high, n_genes) * rng.choice(
            [-1, 1], n_genes, p=[0.35, 0.65]
        )
    # Each target drives two of the programs but the last, which only synergy reaches.
    activity = np.zeros((n_targets, n_programs))
    for row in activity:
        driven = rng.choice(n_programs - 1, 2, replace=False)
        row[driven] = rng.uniform(0.6, 1.4, 2) * rng.choice([-1, 1], 2, p=[0.2, 0.8])
    return _Truth(
        programs=programs,
        activity=activity,
        place={name: row for row, name in enumerate(target_names)},
        column={name: list(names).index(name) for name in target_names},
        base=rng.normal(0.0, 1.3, n_genes),
        options=options,
    )


def _normalised(counts: Float) -> Float:
    """log1p of counts per 10,000."""
    totals = counts.sum(axis=1, keepdims=True)
    return np.asarray(np.log1p(counts * (TARGET_SUM / np.maximum(totals, 1.0))))


def _true_mean(truth: _Truth, condition: str, n: int, seed: int) -> Float:
    counts, _ = truth.counts(condition, n, numpy_rng(seed, "simulate", "true mean", condition))
    return np.asarray(_normalised(counts).mean(axis=0))


def _adata(counts: sp.csr_matrix, obs: pd.DataFrame, names: Sequence[str], truth: _Truth) -> AnnData:
    from anndata import AnnData

    totals = np.asarray(counts.sum(axis=1)).ravel()
    normalised = counts.copy()
    normalised.data = np.log1p(
        normalised.data * np.repeat(TARGET_SUM / np.maximum(totals, 1), np.diff(counts.indptr))
    )
    var = pd.DataFrame(
        {"program": np.abs(truth.programs).argmax(axis=0), "target": np.isin(names, list(truth.place))},
        index=list(names),
    )
    return AnnData(
        X=normalised.astype(np.float32), obs=obs, var=var, layers={"counts": counts.astype(np.float32)}
    )
