"""How far a flow's own means are believed, beside those that the prior expects.

For condition c let r be what the prior's mean misses of the true one, and d what the flow adds to the prior's mean; both
[G]. With E|r|² = κ·u_c², u_c² the squared error that the prior expects of itself, and d = λ·r + ε, ε independent of r with
E|ε|² = σ², the part of d that is nearest to r (least squares) is w·d with

    w_c = λ·κ·u_c² / (λ²·κ·u_c² + σ²)

cut to [0, 1]: a flow is followed where the prior knows little, and little where the prior is sure. λ, κ and σ² come from
validation conditions, and w is 0 unless it makes conditions that were left out of them clearly better. Populations are
moved in flow space, all cells alike, so that their shapes stay those of the flow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

FEWEST = 3
"""Validation conditions that are needed before a flow's means count at all."""
CLEAR = 2.0
"""Standard errors by which left-out conditions must be better."""
REACH = 16.0
BISECTIONS = 20
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]


class Shrinkage(BaseModel):
    """λ, σ² and κ above; squared lengths in log1p of counts per `target_sum`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    follows: NotNegative
    """λ: of what the prior misses, the share that the flow adds."""
    errs: NotNegative
    """σ²: squared length of what it adds beside."""
    missed: NotNegative
    """κ: squared length of what the prior misses, over what it expects to miss."""
    values: Annotated[float, Field(strict=True, ge=0, le=1)] = 1.0
    """How far a gene's values are the flow's, moved to the mean: at 0 they are the prior's, in the order of the flow's."""

    @classmethod
    def fitted(
        cls,
        expected: Float[Tensor, "C G"],
        flowed: Float[Tensor, "C G"],
        real: Float[Tensor, "C G"],
        sampling: Float[Tensor, " C"],
        doubt: Float[Tensor, " C"],
    ) -> Shrinkage:
        """From C validation conditions: means before and after the flow, and of real cells.

        sampling: squared error of each real mean, that of having so many cells. doubt: u_c². The flow is followed only
        where that pays on conditions left out, by CLEAR standard errors; of fewer than FEWEST conditions, never.
        """
        parts = (expected, flowed, real, sampling, doubt)
        if len(real) < FEWEST:
            return NOT_FOLLOWED
        every, gains = torch.arange(len(real)), []
        for out in range(len(real)):
            others = cls._from(*(part[every != out] for part in parts))
            missed, added = (real - expected)[out].double(), (flowed - expected)[out].double()
            weight = others.weights(doubt[out : out + 1]).double()
            gains.append(missed.square().sum() - (missed - weight * added).square().sum())
        gain = torch.stack(gains)
        clear = gain.mean() > CLEAR * gain.std() / len(gain) ** 0.5
        return cls._from(*parts) if clear else NOT_FOLLOWED

    @classmethod
    def _from(cls, expected: Tensor, flowed: Tensor, real: Tensor, sampling: Tensor, doubt: Tensor) -> Shrinkage:
        """λ, σ² and κ by moments."""
        missed, added = (real - expected).double(), (flowed - expected).double()
        length = (missed.square().sum(1) - sampling).clamp(min=0).sum()
        if length == 0 or doubt.sum() == 0:
            return NOT_FOLLOWED
        follows = ((missed * added).sum() / length).clamp(min=0)
        errs = (added.square().sum() - follows**2 * length).clamp(min=0) / len(real)
        return cls(follows=follows.item(), errs=errs.item(), missed=(length / doubt.sum()).item())

    def weights(self, doubt: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
        """w of conditions with `doubt` u²."""
        useful = self.follows * self.missed * doubt
        whole = self.follows * useful + self.errs
        return torch.where(whole > 0, useful / whole.clamp(min=1e-30), 0.0).clamp(0, 1)


NOT_FOLLOWED = Shrinkage(follows=0.0, errs=0.0, missed=0.0)
REORDERED = Shrinkage(follows=0.0, errs=0.0, missed=0.0, values=0.0)


def share_of_values(
    prior: Sequence[Float[Tensor, "n G"]], flow: Sequence[Float[Tensor, "n G"]], real: Sequence[Float[Tensor, "m G"]]
) -> float:
    """`Shrinkage.values` by least squares over the validation conditions, whose populations are given.

    With p, s and r the sorted values of a gene, of the prior, of the flow at its means and of real cells, the share w
    that makes Σ(r − p − w·(s − p))² smallest, cut to [0, 1]. A sample of cells varies where the prior's values are drawn
    evenly, so of a flow that says nothing new w is small.
    """
    along, length = 0.0, 0.0
    for populations in zip(prior, flow, real, strict=True):
        n = min(map(len, populations))
        p, s, r = (cells[:n].double().sort(dim=0).values for cells in populations)
        along += ((r - p) * (s - p)).sum().item()
        length += (s - p).square().sum().item()
    return min(max(along / length, 0.0), 1.0) if length else 0.0


def moved_to(
    cells: Float[Tensor, "n G"],
    mean: Float[Tensor, " G"],
    goal: Float[Tensor, " G"],
    deviation: Float[Tensor, " G"],
    expression: Callable[[Tensor], Tensor],
) -> Float[Tensor, "n G"]:
    """Expression of the cells in flow space, each gene moved by one number so that its mean is `goal`.

    deviation: of each gene in flow space, by which its move is limited. `expression` rises with a cell's place in flow
    space; its means over `cells` are `mean`. A gene whose mean is its goal already, but for rounding, stays as it is.
    Regula falsi would need fewer steps; bisection needs no care.
    """
    still = torch.isclose(goal, mean)
    # A shift of REACH deviations empties a gene, or brings every cell to its highest value.
    low, high = -REACH * deviation, REACH * deviation
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        below = expression(cells + middle).mean(0) < goal
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    # Where a cell leaves 0 the mean jumps across its goal: the nearer side, not that on which rounding ends.
    under, over = (expression(cells + torch.where(still, 0.0, end)) for end in (low, high))
    return torch.where(goal - under.mean(0) <= over.mean(0) - goal, under, over)
