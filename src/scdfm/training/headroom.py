"""What training can gain over the prior: known before the first step.

A flow from the prior hardly moves means. What it learns is which values of the genes go together in a cell. Real cells
show how much there is to learn: half of the cells of a condition put the values of the prior's population in order, gene
by gene, the smallest where the gene is smallest (Clark et al. 2004). That is the best that a flow can do which keeps the
prior's means and values. Cells of other conditions, which is what the prior begins with, put the same values in their
order. The other half judges both by their energy distance (log1p units).

Where only one of two hidden states answers, this is most of the prior's distance, and training gains much of it. Where it
is near 0, no fit that was measured gained anything (benchmarks/results/headroom.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scdfm.config import Config
from scdfm.data import CellTable, GenePanel, Split
from scdfm.data.conditions import control_of
from scdfm.flow import energy
from scdfm.prior import PriorStart
from scdfm.prior.spread import normal_scores
from scdfm.prior.start import reordered
from scdfm.run.manifest import Headroom
from scdfm.seeds import numpy_rng, torch_rng
from scdfm.training.steps import genes_to_judge
from scdfm.training.validation import Gain

CONDITIONS = 24
"""Conditions that are looked at, at most, drawn by the seed."""
CELLS = 128
"""Cells of either half, at most."""
FEWEST = 8
"""Cells that either half needs."""
DRAWS = 4
"""Populations of independent cells that tell the prior's own distance."""
TIES = 1e-9
"""Less than what two values of single precision differ by: equal ones, as zeros are, come in any order."""
WORTH = 0.1
"""Share of that distance below which a gain is not worth the hours."""


def headroom(start: PriorStart, cells: CellTable, split: Split, panel: GenePanel, config: Config) -> Headroom | None:
    """What another order of each gene's values takes off the energy distance of the prior's populations.

    start: of training conditions, each at the mean that the others let expect. Test conditions take no part. None where
    fewer than two training conditions have cells for two halves.
    """
    names = [name for name in split.train if cells.n_cells(name) >= 2 * FEWEST]
    if len(names) < 2:
        return None
    order = numpy_rng(config.seed, "headroom").permutation(len(names))[:CONDITIONS]
    places = torch.from_numpy(genes_to_judge(cells, panel, config.training, config.seed))
    columns = cells.columns([panel.genes[place] for place in places])
    drawn = {names[at]: _drawn(cells, names[at], columns, config.seed) for at in np.sort(order)}
    scores = {name: _scores(real, torch_rng(config.seed, "headroom ties", name)) for name, real in drawn.items()}
    here = start.on(places)
    found = torch.stack([_distances(here.of([name]), real, scores, config.seed) for name, real in drawn.items()])
    before, after, independent = found.double().unbind(1)
    gain = Gain.of(before - after)
    return Headroom(
        gain=gain.mean, low=gain.low, high=gain.high, energy=independent.mean().item(), conditions=len(found)
    )


def _drawn(cells: CellTable, name: str, columns: npt.NDArray[np.int64], seed: int) -> Tensor:
    """Expression [2n, g] of two halves of a condition's cells."""
    rows = numpy_rng(seed, "headroom", name).permutation(cells.rows(name))[: 2 * CELLS]
    return torch.from_numpy(cells.X[rows[: len(rows) // 2 * 2]][:, columns].toarray())


def _distances(start: PriorStart, real: Tensor, scores: Mapping[str, Tensor], seed: int) -> Tensor:
    """Energy distances [3] of populations of the condition of `start` to the second half of its `real` cells.

    The prior's values in the order of cells of other conditions, which is what the prior has; the same values in the order
    of the first half, by the `scores` of every condition's cells; and the prior's independent cells. The prior's own donors
    may be the very cells that judge, so cells of other conditions stand for them.
    """
    (name,), n = start.names, len(real) // 2
    alike, rng = torch.zeros(n, dtype=torch.long), torch_rng(seed, "headroom", name)

    def distance(x: Tensor) -> Tensor:
        return energy(start.cells(x, x, alike), real[n:])

    values = start.population(alike, rng, stratified=True)
    lent = torch.cat([scores[lender] for lender in _lenders(list(scores), name)])
    turns = [torch.randperm(len(lent), generator=rng) for _ in range(-(-n // len(lent)))]
    orders = (lent[torch.cat(turns)[:n]], scores[name][:n])
    draws = [distance(start.population(alike, rng, stratified=False)) for _ in range(DRAWS)]
    return torch.stack([*(distance(reordered(values, order)) for order in orders), torch.stack(draws).mean()])


def _lenders(names: Sequence[str], name: str) -> list[str]:
    """Other conditions, of the same setting of the covariates where there are any."""
    others = [other for other in names if other != name]
    return [other for other in others if control_of(other) == control_of(name)] or others


def _scores(cells: Tensor, rng: torch.Generator) -> Tensor:
    """Places of cells [n, g] of one condition as standard normal numbers, gene by gene; equal values in any order."""
    return normal_scores(cells.double() + TIES * torch.rand(cells.shape, generator=rng))


def told(found: Headroom | None) -> str | None:
    """The headroom in one sentence, and what follows from it; none where it is not known."""
    if found is None:
        return None
    clear = "clear" if found.low > 0 else "not clear"
    return (
        f"headroom of training, {found.conditions} training conditions: {found.gain:.2g} ({found.low:.2g} to "
        f"{found.high:.2g}, {clear}) of the prior's energy distance of {found.energy:.2g}; {_advice(found)}"
    )


def _advice(found: Headroom) -> str:
    worth = WORTH * max(found.energy, 0)
    if found.low > 0 and found.gain > worth:
        return "training pays"
    if found.high < worth:
        return "the preset instant is enough"
    return "whether training pays, validation says"
