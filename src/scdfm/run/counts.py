"""Counts out: whole numbers with the library sizes of control cells and the dispersion that training cells show.

A count of gene g in cell i is negative binomial with mean μ = p_g·L_i and variance μ + φ_g·μ². L_i is the library size of
the control cell that the predicted cell started from, φ_g the dispersion of training cells around their condition's mean.
p_g is what gives the counts the mean of log1p that was predicted. Which cell gets which count follows the predicted cells:
a gene's values are replaced by quantiles of the same rank, so that genes that rise together still do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from scipy.stats import nbinom

from scdfm.data import CONTROL
from scdfm.data.kinds import size_factors
from scdfm.errors import DataError, RunError
from scdfm.seeds import numpy_rng

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import anndata as ad

    from scdfm.data import CellTable, Split
    from scdfm.data.stored import Matrix

Floats = npt.NDArray[np.float64]

LAW_CELLS: Final = 10_000
"""Training cells that the dispersion is learned from, at most."""
FEWEST_KNOWN: Final = 0.5
"""Share of cells whose counts must come out whole, for the law to be that of counts."""
LEAST: Final = 1e-4
"""The smallest dispersion; below it the law is Poisson's to every digit that matters."""
ROUNDS, FEW = 8, 48
"""Steps that look for p_g, the first ones on FEW cells and the last two on all."""


@dataclass(frozen=True)
class CountLaw:
    """Dispersion φ [G] of a run's genes, and the `total` of normalised counts of a cell over all genes (NaN: unknown)."""

    dispersion: Floats
    total: float

    def tensors(self) -> dict[str, torch.Tensor]:
        """As the run folder keeps it."""
        return {
            "dispersion": torch.from_numpy(self.dispersion.astype(np.float32)),
            "total": torch.tensor(self.total, dtype=torch.float64),
        }

    @classmethod
    def of_tensors(cls, tensors: dict[str, torch.Tensor], n_genes: int, path: Path) -> CountLaw:
        """The law of `tensors`; RunError for anything else."""
        dispersion, total = tensors.get("dispersion"), tensors.get("total")
        right = (
            dispersion is not None
            and total is not None
            and list(dispersion.shape) == [n_genes]
            and total.ndim == 0
            and bool(dispersion.isfinite().all())
            and bool((dispersion >= 0).all())
            and not bool(total <= 0)
        )
        if not right or len(tensors) != 2:
            raise RunError(
                f"{path}: expected the tensors 'dispersion', a number of at least 0 for each of the {n_genes} genes of the "
                "run, and 'total', a positive number; restore it or fit again"
            )
        assert dispersion is not None
        assert total is not None
        return cls(dispersion.numpy().astype(np.float64), float(total))


def learned_law(cells: CellTable, split: Split, columns: npt.NDArray[np.int64], seed: int) -> CountLaw | None:
    """The law of the training cells' counts on the genes at `columns`; None where their values are none of counts.

    log1p values of counts give the counts back (`data.kinds.size_factors`), so it is the same whichever were read.
    """
    names = [CONTROL, *split.train]
    each = max(2, LAW_CELLS // len(names))
    rng = numpy_rng(seed, "count law")
    rows = [np.sort(rng.permutation(cells.rows(name))[:each]) for name in names]
    return law_of(cells.X, rows, columns)


def law_of(X: Matrix, groups: list[npt.NDArray[np.int64]], columns: npt.NDArray[np.int64]) -> CountLaw | None:
    """The law of the cells of `groups` (rows of each condition); None where less than half of them hold counts.

    φ_g = Σ [(k − μ)² − μ] / Σ μ² over all cells, by moments, drawn to the genes' typical φ as far as it is unsure.
    """
    excess, square, totals, n, n_counted = np.zeros(len(columns)), np.zeros(len(columns)), [], 0, 0
    for rows in groups:
        cells = X[rows]
        factor = size_factors(cells)
        there = np.isfinite(factor)
        n, n_counted = n + len(rows), n_counted + int(there.sum())
        totals.append(np.expm1(cells[there].data.astype(np.float64)).sum() / max(int(there.sum()), 1))
        if there.sum() < 2:
            continue
        size = 1 / factor[there]
        counts = np.rint(np.expm1(cells[there][:, columns].toarray().astype(np.float64)) * size[:, None])
        mean = size[:, None] * (counts.sum(axis=0) / size.sum())
        excess += ((counts - mean) ** 2 * (len(size) / (len(size) - 1)) - mean).sum(axis=0)
        square += (mean**2).sum(axis=0)
    if not n_counted or n_counted < FEWEST_KNOWN * n:
        return None
    return CountLaw(_steadied(excess, square), float(np.median([total for total in totals if total > 0])))


def _steadied(excess: Floats, square: Floats) -> Floats:
    """excess / square, genes of few counts (small `square`) drawn to the typical value; at least LEAST."""
    sure = np.maximum(square, 1e-12)
    raw = excess / sure
    typical = float(np.median(raw[square > np.median(square)])) if len(raw) > 1 else float(raw[0])
    noise = 2 / sure  # of the mean of (k − μ)²/μ² for few counts
    between = max(float(np.median((raw - typical) ** 2)), 1e-6)
    return np.maximum((raw / noise + typical / between) / (1 / noise + 1 / between), LEAST)


def library_factors(X: sp.csr_matrix, where: str) -> tuple[Floats, bool]:
    """The factor s [N] of each cell's counts (x = ln(1 + s·count)), and whether most came out of whole counts.

    A cell whose values are multiples of no one number is taken to hold a count of one as its smallest value.
    """
    factor = size_factors(X)
    known = np.isfinite(factor)
    lowest = np.full(len(factor), np.nan)
    for row in np.flatnonzero(~known):
        values = X.data[X.indptr[row] : X.indptr[row + 1]]
        lowest[row] = np.expm1(float(values[values > 0].min())) if (values > 0).any() else np.nan
    factor = np.where(known, factor, lowest)
    if not known.any() and X.nnz == X.shape[0] * X.shape[1]:
        raise DataError(
            f"{where}: no value is 0 and none is a whole count, so these are no logarithms of counts; expected cells of "
            "sequencing: predict log1p values, without counts"
        )
    if not np.isfinite(factor).any():
        raise DataError(f"{where}: cells hold only zeros, which tell no library size; give others")
    return np.where(np.isfinite(factor), factor, np.nanmedian(factor)), bool(known.mean() >= FEWEST_KNOWN)


def counts_of(
    expression: Floats, factor: Floats, dispersion: Floats, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Counts [M, G] of one predicted population, log1p `expression` [M, G].

    factor: s [M] of each cell, its library size is in proportion to 1 / s. dispersion: φ [G].
    The mean over cells of ln(1 + s·count) is that of `expression`, as nearly as whole numbers let it be.
    """
    n = len(expression)
    ranked = np.lexsort((rng.random(expression.shape), expression), axis=0)
    rank = np.empty_like(ranked)
    np.put_along_axis(rank, ranked, np.arange(n)[:, None], axis=0)
    level = (rank + rng.random(expression.shape)) / n
    target = expression.mean(axis=0)
    spoken = np.flatnonzero(target > 0)
    counts = np.zeros(expression.shape, dtype=np.int64)
    if len(spoken):
        law = _Quantiles(level[:, spoken], factor, np.maximum(dispersion[spoken], LEAST), target[spoken])
        counts[:, spoken] = law.fitted()
    return counts


@dataclass(frozen=True)
class _Quantiles:
    """Quantiles at `level` [M, g] of counts whose mean log1p is to be `target` [g]; `factor` [M], `dispersion` [g]."""

    level: Floats
    factor: Floats
    dispersion: Floats
    target: Floats

    def counts(self, rate: Floats, rows: npt.NDArray[np.int64]) -> Floats:
        """The quantiles of some cells where the expected normalised count is `rate` [g]."""
        mean = rate / self.factor[rows, None]
        size = 1 / self.dispersion
        return np.asarray(nbinom.ppf(self.level[rows], size, size / (size + mean)))

    def fitted(self) -> npt.NDArray[np.int64]:
        """The quantiles at the rate that gives `target`, sought between what is known to be too low and too high."""
        everything = np.arange(len(self.factor))
        some = np.unique(np.linspace(0, len(everything) - 1, FEW).astype(int))
        rate = np.expm1(self.target)
        low, high = np.zeros_like(rate), np.full_like(rate, np.inf)
        for turn in range(ROUNDS):
            rows = some if turn < ROUNDS - 2 else everything
            if turn == ROUNDS - 2:
                low, high = np.zeros_like(rate), np.full_like(rate, np.inf)
            counts = self.counts(rate, rows)
            mean = np.log1p(self.factor[rows, None] * counts).mean(axis=0)
            low, high = np.where(mean < self.target, rate, low), np.where(mean > self.target, rate, high)
            moved = rate * np.clip(self.target / np.maximum(mean, 1e-9), 0.2, 5.0)
            middle = np.where(np.isfinite(high), (low + high) / 2, moved)
            rate = np.where((moved > low) & (moved < high), moved, middle)
        return np.asarray(self.counts(rate, everything), dtype=np.int64)


@dataclass(frozen=True)
class Counter:
    """What turns a run's predicted cells into counts: its law on the genes asked for, and its control cells' factors [n].

    `told` says where both come from.
    """

    law: CountLaw
    factor: Floats
    told: str

    @classmethod
    def of(cls, run_law: CountLaw | None, run_genes: Sequence[str], table: CellTable, genes: Sequence[str]) -> Counter:
        """The counter of a run with the law `run_law` (None: it has none) on `run_genes`, that starts from the control
        cells `table`, for `genes`; DataError where these cells are none of counts."""
        if table.filled:
            raise DataError(
                f"controls: {len(table.filled)} genes are filled in from other cells, so no cell's library size is known; "
                "predict log1p values (without --counts), or give cells measured on all genes of the run"
            )
        factor, counted = library_factors(sp.csr_matrix(table.X[np.arange(table.n)]), "controls")
        said = ["library sizes are those of the control cells"]
        if not counted:
            said.append("taken from log1p values with the smallest value of each cell as one count")
        law = run_law
        if law is not None:
            said.append("dispersion is that of the training cells' counts")
        else:
            law = law_of(table.X, [np.arange(table.n)], table.columns(run_genes))
            said.append("dispersion is that of the control cells")
        if law is None:
            law = CountLaw(np.full(len(run_genes), LEAST), float("nan"))
            said[-1] = "counts are Poisson's, as no dispersion is known"
        place = {gene: at for at, gene in enumerate(run_genes)}
        dispersion = law.dispersion[[place[gene] for gene in genes]]
        return cls(CountLaw(dispersion, law.total), factor, "; ".join(said))

    def counts(
        self, population: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> npt.NDArray[np.float32]:
        """Counts of one predicted population [M, G], whose cells started from the control cells at `rows` [M].

        float32, which holds them exactly, so that a file has one type of values whatever was asked.
        """
        counts = counts_of(population.astype(np.float64), self.factor[rows], self.law.dispersion, rng)
        return counts.astype(np.float32)

    def describe(self, adata: ad.AnnData, rows: npt.NDArray[np.int64]) -> None:
        """Say in `adata` that its values are counts, and give each cell's library size, over all genes of the screen."""
        adata.obs["size_factor"] = self.factor[rows]
        if np.isfinite(self.law.total):
            adata.obs["library_size"] = np.rint(self.law.total / self.factor[rows])
        adata.uns["scdfm"]["counts"] = self.told
