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

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
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


@dataclass(frozen=True, eq=False)
class Marginals:
    """The distribution of G genes at any mean (log1p). `values` rise along the knots."""

    zeros: Float[Tensor, " G"]
    """π: share of cells in which the gene is 0."""
    values: Float[Tensor, "G knots"]
    """q: quantiles of the values above 0."""

    @classmethod
    def fitted(cls, cells: Floats) -> Marginals:
        """From cells [n, G] (log1p, at least 0). A gene seen in none of them takes the values of all others."""
        ordered = np.sort(cells, axis=0)
        n = len(ordered)
        n_zeros = (ordered <= 0).sum(0)
        never = n_zeros == n
        # Positions in the sorted column: the first value above 0 is at 0, the highest at 1.
        places = n_zeros + np.outer(_knots().numpy(), np.maximum(n - 1 - n_zeros, 0))
        low = np.minimum(np.floor(places).astype(np.int64), n - 1)
        high = np.minimum(low + 1, n - 1)
        below, above = (np.take_along_axis(ordered, at, axis=0) for at in (low, high))
        values = (below + (places - low) * (above - below)).T
        if never.any():
            seen = ordered[ordered > 0]
            values[never] = np.quantile(seen, _knots().numpy()) if len(seen) else np.log(2.0)
        zeros = np.where(never, 1 - 0.5 / n, n_zeros / n)
        return cls(_tensor(zeros), _tensor(values))

    def on(self, genes: Tensor | slice) -> Marginals:
        """The marginals of some genes."""
        return replace(self, zeros=self.zeros[genes], values=self.values[genes])

    def to(self, device: torch.device | str) -> Marginals:
        """The marginals on another device."""
        return replace(self, zeros=self.zeros.to(device), values=self.values.to(device))

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


def _knots() -> Tensor:
    """Shares of the values above 0 at which quantiles are kept, from 0 to 1."""
    return (1 - torch.cos(torch.linspace(0, torch.pi, N_KNOTS, dtype=torch.float64))) / 2


def _grid() -> Tensor:
    return torch.linspace(-LARGEST_RATE, LARGEST_RATE, N_RATES, dtype=torch.float64)


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
