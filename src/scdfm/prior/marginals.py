"""What values a gene takes at a given mean: a share of zeros and the rest, both moved by one rate.

Of each gene two things are known from training cells: the share π of zeros, and the quantile function q of its values
above 0. Multiplying the rate of expression by e^θ moves both. Zeros follow the Poisson law, P(0) = e^−λ to e^−λρ:

    π(θ) = π^(e^θ),    x(u, θ) = log1p( expm1(q(u)) · e^(θ·(1 − π)) )

A gene that is seldom seen is seen in more cells, each time with little more; one that is always seen has larger values.
The mean grows with θ, so a mean decides θ, and θ decides the whole distribution of the gene.

A value has a score, the standard normal number at the same place of the distribution. A zero stands for any score of the
lowest share π(θ). Scores are the space in which flows from the prior run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from scdfm.prior.kernel import Floats

N_KNOTS = 41
"""Places of the quantile function, dense at both ends."""
N_RATES = 97
LARGEST_RATE = 6.0
"""Range of θ: expression e⁶ = 400 times as high or low as in training."""
LARGEST_SCORE = 4.5
SMALLEST_SHARE = 1e-6
SMALLEST_PLACE = 1e-4
MOST_LEVELS = 8
LEVEL_CELLS = 200
"""Cells that a level needs: its quantiles and shares of zeros are theirs."""
DIFFER = 0.01
"""How seldom chance would part the means of a gene that has levels."""
BLOCK = 1024
"""Genes that are sorted at once."""


@dataclass(frozen=True, eq=False)
class Marginals:
    """The distribution of G genes at any mean (log1p). `values` rise along the knots."""

    zeros: Float[Tensor, " G"]
    """π: share of cells in which the gene is 0."""
    values: Float[Tensor, "G knots"]
    """q: quantiles of the values above 0."""

    @classmethod
    def fitted(cls, cells: Floats) -> Marginals:
        """From cells [n, G] (log1p, at least 0; NaN: not measured). A gene seen in none takes the values of all others."""
        zeros, values, seen = _quantiles(cells, np.zeros(cells.shape, dtype=np.int64), 1)
        if not seen.all():
            above = cells[cells > 0]
            values[~seen] = np.quantile(above, _knots().numpy()) if len(above) else np.log(2.0)
        return cls(_tensor(zeros[0]), _tensor(values[0]))

    def on(self, genes: Tensor | slice) -> Marginals:
        """The marginals of some genes."""
        return replace(self, zeros=self.zeros[genes], values=self.values[genes])

    def to(self, device: torch.device | str) -> Marginals:
        """The marginals on another device."""
        return replace(self, zeros=self.zeros.to(device), values=self.values.to(device))

    def at_rates(self, rates: Float[Tensor, " G"]) -> Marginals:
        """The marginals at the rates θ, as if they had been found there."""
        values = torch.log1p(torch.expm1(self.values) * torch.exp(rates * (1 - self.zeros)).unsqueeze(1))
        return Marginals(self.share_of_zeros(rates).clamp(max=1 - SMALLEST_SHARE), values)

    @property
    def means(self) -> Float[Tensor, " G"]:
        """The mean (log1p) of each gene at rate 0."""
        return self._means[:, N_RATES // 2].float()

    def rates(self, means: Float[Tensor, "C G"]) -> Float[Tensor, "C G"]:
        """θ at which each gene has the mean (log1p), within ± LARGEST_RATE."""
        table, grid = self._means, _grid()
        place = torch.searchsorted(table, means.double().T.contiguous()).clamp(1, len(grid) - 1)
        low, high = table.gather(1, place - 1), table.gather(1, place)
        share = ((means.double().T - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        return torch.lerp(grid[place - 1], grid[place], share).T.float().contiguous()

    @cached_property
    def _means(self) -> Tensor:
        """Means [G, N_RATES] at the rates of the grid, strictly rising but for rounding."""
        knots = _knots()
        gaps = knots.diff()
        weights = torch.zeros_like(knots)
        weights[:-1] += gaps / 2
        weights[1:] += gaps / 2
        zeros, raw = self.zeros.double(), torch.expm1(self.values.double())
        columns = []
        for rate in _grid():
            above = torch.log1p(raw * torch.exp(rate * (1 - zeros)).unsqueeze(1)) @ weights
            columns.append((1 - zeros ** torch.exp(rate)) * above)
        return torch.stack(columns, dim=1).cummax(dim=1).values

    def expression(self, scores: Float[Tensor, "B G"], rates: Float[Tensor, "B G"]) -> Float[Tensor, "B G"]:
        """Values (log1p) of standard normal scores at the rates θ."""
        seen = (1 - self.share_of_zeros(rates)).clamp(min=SMALLEST_SHARE)
        # Shares of the upper end keep their digits where the gene is highest.
        place = 1 - torch.special.ndtr(-scores) / seen
        knots = _knots().to(scores.device, scores.dtype)
        right = torch.searchsorted(knots, place.clamp(0, 1).contiguous()).clamp(1, N_KNOTS - 1)
        genes = torch.arange(scores.shape[1], device=scores.device).expand_as(right)
        low, high = self.values[genes, right - 1], self.values[genes, right]
        share = (place.clamp(0, 1) - knots[right - 1]) / (knots[right] - knots[right - 1])
        value = torch.lerp(low, high, share)
        moved = torch.log1p(torch.expm1(value) * torch.exp(rates * (1 - self.zeros)))
        return torch.where(place > 0, moved, 0.0)

    def scores(
        self, cells: Float[Tensor, "B G"], rates: Float[Tensor, "B G"], uniform: Float[Tensor, "B G"]
    ) -> Float[Tensor, "B G"]:
        """Scores of values (log1p) at the rates θ; `uniform` draws in [0, 1) choose those of zeros and of equal values."""
        zeros = self.share_of_zeros(rates)
        value = torch.log1p(torch.expm1(cells) * torch.exp(-rates * (1 - self.zeros)))
        # At the very end a rounding would make a zero of the lowest value.
        place = self._place(value, uniform).clamp(min=SMALLEST_PLACE)
        above = -torch.special.ndtri((1 - zeros) * (1 - place))
        behind = torch.special.ndtri(zeros * uniform)
        scores = torch.where(cells > 0, above, behind)
        return torch.nan_to_num(scores, nan=0.0).clamp(-LARGEST_SCORE, LARGEST_SCORE)

    def _place(self, value: Tensor, uniform: Tensor) -> Tensor:
        """The share of a gene's values above 0 that lies below `value`; a draw where several knots have this value."""
        knots = _knots().to(value.device, value.dtype)
        by_gene = value.T.contiguous()
        left = torch.searchsorted(self.values, by_gene)
        last = torch.searchsorted(self.values, by_gene, right=True) - 1
        right = left.clamp(1, N_KNOTS - 1)
        low, high = self.values.gather(1, right - 1), self.values.gather(1, right)
        share = ((by_gene - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
        between = torch.lerp(knots[right - 1], knots[right], share)
        first, last = left.clamp(max=N_KNOTS - 1), last.clamp(min=0)
        equal = torch.lerp(knots[first], knots[last], uniform.T)
        return torch.where(last > left, equal, between).T

    def share_of_zeros(self, rates: Tensor) -> Tensor:
        """π(θ), the share of zeros at the rates θ."""
        return self.zeros ** torch.exp(rates)


@dataclass(frozen=True, eq=False)
class Levels:
    """The marginals of G genes at L levels of their mean, lowest first.

    What cells of a condition have in a gene depends on how far the condition moved it: where a gene stays, cells are as
    alike as control cells, and where some cells answer and others do not, they are not. So a gene at some mean has the law
    of the training conditions whose means of this gene are nearest.
    """

    means: Float[Tensor, "L G"]
    zeros: Float[Tensor, "L G"]
    values: Float[Tensor, "L G knots"]

    @classmethod
    def fitted(
        cls, cells: Floats, conditions: npt.NDArray[np.int64], means: Floats, n_levels: int | None = None
    ) -> Levels:
        """From cells [n, G] (log1p; NaN: not measured), cell i of condition `conditions[i]`; means [C, G] of conditions.

        Of each gene conditions are ranked by its mean, and levels hold equal shares of the cells, as far as conditions
        can be divided; a level without cells is as the nearest that has some. A gene whose means differ by no more than
        chance (`_differ`) has one law. n_levels: None for one to MOST_LEVELS, of LEVEL_CELLS at least.
        """
        n = n_levels or int(np.clip(len(cells) // LEVEL_CELLS, 1, min(MOST_LEVELS, len(means))))
        law, counts = Marginals.fitted(cells), np.bincount(conditions, minlength=len(means))
        one = cls.single(law).repeated(n)
        if n == 1:
            return one
        parts = []
        for first in range(0, cells.shape[1], BLOCK):
            genes = slice(first, first + BLOCK)
            own, level = cells[:, genes], _levels(counts, means[:, genes], n)
            zeros, values, seen = _quantiles(own, level[conditions], n)
            # A gene that is never seen at a level has the values that it has elsewhere.
            values = np.where(seen[:, :, None], values, one.values[:, genes].numpy())
            centre, there = _level_means(counts, means[:, genes], level, n)
            found = cls(_tensor(centre), _tensor(zeros), _tensor(values))._filled(there)
            parts.append(found.where(torch.from_numpy(_differ(own, conditions, len(means))), one.on(genes)))
        return cls(*(torch.cat(part, dim=1) for part in zip(*(part.tensors().values() for part in parts), strict=True)))

    @classmethod
    def single(cls, law: Marginals) -> Levels:
        """One law, whatever the mean."""
        return cls(torch.zeros((1, len(law.zeros))), law.zeros[None], law.values[None])

    def _filled(self, there: npt.NDArray[np.bool_]) -> Levels:
        """Levels that hold no cells of a gene [L, G] take the nearest that does."""
        places = np.arange(len(there))
        distance = np.abs(places[:, None, None] - places[None, :, None]) + np.where(there, 0, len(there))[None]
        nearest, genes = torch.from_numpy(distance.argmin(1)), torch.arange(there.shape[1])
        return Levels(*(tensor[nearest, genes] for tensor in self.tensors().values()))

    def where(self, genes: Bool[Tensor, " G"], other: Levels) -> Levels:
        """These levels of some genes, and of the rest those of `other`."""
        n = max(len(self.means), len(other.means))
        pairs = zip(self.repeated(n).tensors().values(), other.repeated(n).tensors().values(), strict=True)
        return Levels(*(torch.where(genes if a.ndim == 2 else genes.unsqueeze(1), a, b) for a, b in pairs))

    def towards(self, other: Levels, share: float) -> Levels:
        """Laws `share` of the way, in zeros and values, from these to those that `other` has at the same mean.

        There is one at the mean of each level of `other`, and of as many of these as make MOST_LEVELS together. Where a
        law cannot be brought to that mean, the other one counts alone.
        """
        n = min(len(self.means), MOST_LEVELS - len(other.means))
        some = [self._laws[place] for place in torch.linspace(0, len(self.means) - 1, n).round().int().tolist()]
        means = torch.stack([law.means for law in (*some, *other._laws)]).sort(dim=0).values
        zeros, values = [], []
        for mean in means:
            (one, one_there), (two, two_there) = self.moved(mean), other.moved(mean)
            weight = torch.full_like(mean, share)
            weight[~one_there] = 1.0
            weight[~two_there] = 0.0
            zeros.append(torch.lerp(one.zeros, two.zeros, weight))
            values.append(torch.lerp(one.values, two.values, weight.unsqueeze(1)))
        # A last digit may fall where values were equal.
        return Levels(means, torch.stack(zeros), torch.stack(values).cummax(dim=2).values)

    def moved(self, mean: Float[Tensor, " G"]) -> tuple[Marginals, Bool[Tensor, " G"]]:
        """The marginals of genes at `mean` (log1p) as if they had been found there, and whether a rate leads there."""
        level, genes, laws = self.nearest(mean.unsqueeze(0))[0], torch.arange(len(mean)), self._laws
        rates = self.rates(mean.unsqueeze(0))[0]
        found = [law.at_rates(rates) for law in laws]
        zeros, values = torch.stack([law.zeros for law in found]), torch.stack([law.values for law in found])
        return Marginals(zeros[level, genes], values[level, genes]), rates.abs() < LARGEST_RATE

    def ordered(self, mean: Float[Tensor, " G"], n: int) -> Float[Tensor, "n G"]:
        """What n cells with this mean (log1p) are expected to hold of each gene, lowest value first."""
        places = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        scores = torch.special.ndtri(places).float().unsqueeze(1).expand(-1, len(mean))
        rates = self.rates(mean.unsqueeze(0)).expand(n, -1)
        return self.at(mean).expression(scores, rates)

    @classmethod
    def loaded(cls, tensors: Mapping[str, Tensor]) -> Levels:
        """From `tensors()`, or the one law of a run of scdfm 0.1.0."""
        zeros, values = tensors["zeros"], tensors["values"]
        return cls(tensors["means"], zeros, values) if "means" in tensors else cls.single(Marginals(zeros, values))

    def tensors(self) -> dict[str, Tensor]:
        """What a file keeps."""
        return {"means": self.means, "zeros": self.zeros, "values": self.values}

    def repeated(self, n: int) -> Levels:
        """As n levels, of which the last are alike."""
        places = torch.arange(n).clamp(max=len(self.means) - 1)
        return Levels(*(tensor[places] for tensor in self.tensors().values()))

    def on(self, genes: Tensor | slice) -> Levels:
        """The levels of some genes."""
        return Levels(*(tensor[:, genes] for tensor in self.tensors().values()))

    def to(self, device: torch.device | str) -> Levels:
        """The levels on another device."""
        return Levels(*(tensor.to(device) for tensor in self.tensors().values()))

    def nearest(self, means: Float[Tensor, "C G"]) -> Int[Tensor, "C G"]:
        """The level whose mean is nearest to each of `means` (log1p)."""
        middles = ((self.means[1:] + self.means[:-1]) / 2).T.contiguous()
        return torch.searchsorted(middles, means.to(middles.dtype).T.contiguous()).T

    def at(self, mean: Float[Tensor, " G"]) -> Marginals:
        """The marginals of genes whose means are `mean` (log1p)."""
        if len(self.means) == 1:
            return Marginals(self.zeros[0], self.values[0])
        level, genes = self.nearest(mean.unsqueeze(0))[0], torch.arange(len(mean), device=mean.device)
        return Marginals(self.zeros[level, genes], self.values[level, genes])

    def rates(self, means: Float[Tensor, "C G"], near: Float[Tensor, "C G"] | None = None) -> Float[Tensor, "C G"]:
        """θ at which each gene has the mean (log1p), by the level nearest to it, or to the means `near`."""
        level, rates = self.nearest(means if near is None else near), torch.zeros(means.shape)
        for place, law in enumerate(self._laws):
            rates = torch.where(level == place, law.rates(means), rates)
        return rates

    def scores(
        self,
        cells: Float[Tensor, "n G"],
        means: Float[Tensor, "C G"],
        conditions: npt.NDArray[np.int64],
        uniform: Tensor,
    ) -> Float[Tensor, "n G"]:
        """Scores of cells around the means of their conditions; `uniform` as of `Marginals.scores`."""
        scores, rates = torch.empty_like(cells), self.rates(means)
        for place in np.unique(conditions).tolist():
            rows = torch.from_numpy(np.flatnonzero(conditions == place))
            law = self.at(means[place])
            scores[rows] = law.scores(cells[rows], rates[place].expand(len(rows), -1), uniform[rows])
        return scores

    @cached_property
    def _laws(self) -> tuple[Marginals, ...]:
        return tuple(Marginals(zeros, values) for zeros, values in zip(self.zeros, self.values, strict=True))


def _levels(counts: npt.NDArray[np.int64], means: Floats, n_levels: int) -> npt.NDArray[np.int64]:
    """The level [C, G] of each condition: by rank of its mean, NaN last, equal shares of the cells."""
    order = np.argsort(means, axis=0, kind="stable")
    before = np.cumsum(counts[order], axis=0) - counts[order] / 2
    ranked = np.minimum((n_levels * before / counts.sum()).astype(np.int64), n_levels - 1)
    level: npt.NDArray[np.int64] = np.empty_like(ranked)
    np.put_along_axis(level, order, ranked, axis=0)
    return level


def _level_means(
    counts: npt.NDArray[np.int64], means: Floats, level: npt.NDArray[np.int64], n_levels: int
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Means [L, G] of the cells of each level, and whether there are any that measured the gene."""
    weights = np.where(np.isnan(means), 0, counts[:, None])
    at = [level == place for place in range(n_levels)]
    n = np.stack([(weights * mine).sum(0) for mine in at])
    sums = np.stack([(weights * mine * np.nan_to_num(means)).sum(0) for mine in at])
    return sums / np.maximum(n, 1), n > 0


def _quantiles(
    cells: Floats, level: npt.NDArray[np.int64], n_levels: int
) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Shares of zeros [L, G], quantiles of the values above 0 [L, G, knots], and whether there are any [L, G].

    level [n, G] of each value of `cells` [n, G]; values are sorted once, level after level.
    """
    measured = ~np.isnan(cells)
    step = 1.0 + (float(cells[measured].max()) if measured.any() else 0.0)
    keys = np.sort(np.where(measured, cells + level * step, n_levels * step), axis=0)
    shares, values, seen, first = [], [], [], np.zeros(cells.shape[1], dtype=np.int64)
    for place in range(n_levels):
        mine = measured & (level == place)
        n, n_zeros = mine.sum(0), (mine & (cells <= 0)).sum(0)
        # Positions in the sorted column: the first value above 0 is at 0, the highest at 1.
        at = first + n_zeros + np.outer(_knots().numpy(), np.maximum(n - 1 - n_zeros, 0))
        last = np.clip(first + n - 1, 0, len(keys) - 1)
        low = np.minimum(np.floor(at).astype(np.int64), last)
        below, above = (np.take_along_axis(keys, rows, axis=0) for rows in (low, np.minimum(low + 1, last)))
        values.append((below - place * step + (at - low) * (above - below)).T)
        shares.append(np.where(n > n_zeros, n_zeros, n - 0.5) / np.maximum(n, 1))
        seen.append(n > n_zeros)
        first = first + n
    return np.stack(shares).clip(min=0), np.stack(values), np.stack(seen)


def _differ(cells: Floats, conditions: npt.NDArray[np.int64], n_conditions: int) -> npt.NDArray[np.bool_]:
    """Genes [G] whose means differ between conditions by more than chance: the F test of one-way ANOVA, below DIFFER."""
    measured = ~np.isnan(cells)
    rows = np.arange(len(cells))
    groups = sp.csr_matrix((np.ones(len(cells)), (conditions, rows)), shape=(n_conditions, len(cells)))
    counts, sums = groups @ measured.astype(np.float64), groups @ np.nan_to_num(cells)
    own, centre = sums / np.maximum(counts, 1), sums.sum(0) / np.maximum(counts.sum(0), 1)
    n_between = (counts > 0).sum(0) - 1
    n_within = counts.sum(0) - n_between - 1
    between, within = (counts * (own - centre) ** 2).sum(0), np.nansum((cells - own[conditions]) ** 2, axis=0)
    tested = (n_between > 0) & (n_within > 0) & (within > 0)
    ratio = np.divide(between * n_within, within * n_between, out=np.zeros(len(within)), where=tested)
    return np.asarray(tested & (stats.f.sf(ratio, np.maximum(n_between, 1), np.maximum(n_within, 1)) < DIFFER))


def _knots() -> Tensor:
    """Shares of the values above 0 at which quantiles are kept, from 0 to 1."""
    return (1 - torch.cos(torch.linspace(0, torch.pi, N_KNOTS, dtype=torch.float64))) / 2


def _grid() -> Tensor:
    return torch.linspace(-LARGEST_RATE, LARGEST_RATE, N_RATES, dtype=torch.float64)


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
