"""Whether conditions that share a target start each other: what goes together in their cells may be alike.

A population starts with real cells moved to its mean (`scdfm.prior.start`). What the cells of one perturbation have in
common beside their mean, such as that one of two states responds, is another's only where both perturb the same target.
So cells of conditions that share a target may be the better donors. They are fewer, though: each stands for more of the
population. Training conditions decide, each started by others at its own mean, as an unseen condition is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

from scdfm.data.conditions import control_of
from scdfm.flow import energy
from scdfm.prior.kernel import Floats
from scdfm.prior.spread import Spread

MOST_JUDGED = 24
"""Training conditions that are asked, at most; drawn at random."""
FEWEST_JUDGED = 5
"""Conditions below which nothing is clear."""
LEVEL = 0.95
LEAST_CELLS = 10
"""Cells that a condition needs to judge."""


def with_lenders(
    spread: Spread, cells: Floats, conditions: npt.NDArray[np.int64], means: Floats, rng: torch.Generator
) -> Spread:
    """The spread of `fit_spread` with its `lenders` where cells [n, G] are clearly nearer to populations that they start.

    Arguments as of `fit_spread`. Clear: by the interval of paired differences of energy distance, over conditions that
    share a target with enough others. Cells are drawn with repetition, so that few donors count as few.
    """
    counts = np.bincount(conditions, minlength=len(spread.lenders))
    asked = [
        place for place, name in enumerate(spread.lenders) if counts[place] >= LEAST_CELLS and len(spread.sharing(name))
    ]
    order = torch.randperm(len(asked), generator=rng).tolist()[:MOST_JUDGED]
    gains = [_gain(spread, asked[place], cells[conditions == asked[place]], means, rng) for place in sorted(order)]
    return spread if _clear(gains) else replace(spread, lenders=(), lender=None)


def _clear(gains: Sequence[float]) -> bool:
    if len(gains) < FEWEST_JUDGED or np.std(gains) == 0:
        return False
    return bool(stats.ttest_1samp(gains, 0).confidence_interval(LEVEL).low > 0)


def _gain(spread: Spread, place: int, cells: Floats, means: Floats, rng: torch.Generator) -> float:
    """How much nearer (energy distance, log1p) the cells [n, G] of a condition are to a population that conditions sharing
    a target start than to one that all others of its setting start, both at the condition's mean."""
    assert spread.lender is not None
    name = spread.lenders[place]
    measured = torch.from_numpy(~np.isnan(cells).any(0))
    first, count = spread.donors_of(control_of(name))
    every = torch.arange(first, first + count)
    others = every[spread.lender[every] != place]
    real = torch.from_numpy(cells.astype(np.float32))[:, measured]
    # The same numbers choose the donors of both.
    drawn = torch.rand(len(cells), generator=rng)
    mean = torch.from_numpy(np.nan_to_num(means[place]).astype(np.float32)).clamp(min=0)
    near, far = (
        _moved(spread, name, donors[(drawn * len(donors)).long()], mean) for donors in (spread.sharing(name), others)
    )
    return (energy(far[:, measured], real) - energy(near[:, measured], real)).item()


def _moved(spread: Spread, name: str, donors: Tensor, mean: Tensor) -> Tensor:
    """Expression [n, G] of donors at a mean [G]."""
    levels = spread.marginals_of(control_of(name))
    rates = levels.rates(mean[None]).expand(len(donors), -1)
    return levels.at(mean).expression(spread.donors[donors].float(), rates)
