"""What training can gain over the prior: known before the first step.

A flow from the prior hardly moves means. What it learns is which values of the genes go together in a cell. Real cells
show how much there is to learn: half of the cells of a condition put the values of the prior's population in order, gene
by gene, the smallest where the gene is smallest (Clark et al. 2004). That is the best that a flow can do which keeps the
prior's means and values. The prior has the order of training cells of any condition; cells of other conditions put the
same values in theirs. The other half of the cells judges both by energy distance (log1p units).

Where only one of two hidden states answers, this is most of the prior's distance to real cells, and training gains much
of it. Where it is near 0, fits gained 3% of the distance at most (benchmarks/results/headroom.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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
LENDERS = 4
"""Other conditions, at most, whose cells stand for the prior's order."""
DRAWS = 4
"""Populations of independent cells that tell the prior's own distance."""
TIES = 1e-9
"""Far less than what values of different counts differ by: equal ones, as zeros are, come in any order."""
WORTH = 0.1
"""Share of that distance below which a gain is not worth the hours."""


def headroom(start: PriorStart, cells: CellTable, split: Split, panel: GenePanel, config: Config) -> Headroom | None:
    """What another order of each gene's values takes off the energy distance of the prior's populations.

    start: of training conditions, by default each at the mean that the others let expect. Test and validation conditions
    take no part. None where fewer than two training conditions have cells for two halves and others to compare with.
    """
    drawn = _Drawn(cells, panel, config)
    names = [name for name in split.train if cells.n_cells(name) >= 2 * FEWEST]
    lenders = {name: _lenders(start, names, name, config.seed) for name in names}
    names = [name for name in names if lenders[name]]
    if len(names) < 2:
        return None
    order = numpy_rng(config.seed, "headroom").permutation(len(names))[:CONDITIONS]
    here, judged = start.on(drawn.places), [names[at] for at in np.sort(order)]
    found = torch.stack([_distances(here.of([name]), drawn, lenders[name], config.seed) for name in judged])
    before, after, independent = found.double().unbind(1)
    gain = Gain.of(before - after)
    return Headroom(
        gain=gain.mean, low=gain.low, high=gain.high, energy=independent.mean().item(), conditions=len(found)
    )


def _lenders(start: PriorStart, names: Sequence[str], name: str, seed: int) -> list[str]:
    """Some other conditions whose cells the prior of a condition may start from: of its setting, where that has donors
    enough, else any. None where the setting's only donors are the condition's own."""
    setting = control_of(name)
    alone = start.spread.donors_of(setting) == start.spread.settings.get(setting)
    pool = [other for other in names if other != name and not (alone and control_of(other) != setting)]
    return [pool[at] for at in numpy_rng(seed, "headroom lenders", name).permutation(len(pool))[:LENDERS]]


class _Drawn:
    """Cells of conditions over the genes that judge, and their scores; each condition is drawn once."""

    def __init__(self, cells: CellTable, panel: GenePanel, config: Config) -> None:
        self.cells, self.seed = cells, config.seed
        self.places = torch.from_numpy(genes_to_judge(cells, panel, config.training, config.seed))
        self.columns = cells.columns([panel.genes[place] for place in self.places])
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}

    def of(self, name: str) -> tuple[Tensor, Tensor]:
        """Expression [2n, g] of two halves of a condition's cells, and their scores."""
        if name not in self._kept:
            rows = numpy_rng(self.seed, "headroom", name).permutation(self.cells.rows(name))[: 2 * CELLS]
            real = torch.from_numpy(self.cells.X[rows[: len(rows) // 2 * 2]][:, self.columns].toarray())
            self._kept[name] = real, _scores(real, torch_rng(self.seed, "headroom ties", name))
        return self._kept[name]


def _distances(start: PriorStart, drawn: _Drawn, lenders: Sequence[str], seed: int) -> Tensor:
    """Energy distances [3] of populations of the condition of `start` to the second half of its cells.

    The prior's values in the order of cells of the `lenders`, which the prior has too; the same values in the order of the
    first half; and independent cells of the prior. Its own donors may be the very cells that judge, so cells of the lenders
    stand for them.
    """
    (name,) = start.names
    (real, scores), lent = drawn.of(name), torch.cat([drawn.of(lender)[1] for lender in lenders])
    half, rng = len(real) // 2, torch_rng(seed, "headroom", name)
    n = min(half, len(lent))
    alike = torch.zeros(n, dtype=torch.long)

    def distance(x: Tensor) -> Tensor:
        return energy(start.cells(x, x, alike), real[half:])

    def lent_cells() -> Tensor:
        return lent[torch.randperm(len(lent), generator=rng)[:n]]

    values = start.population(alike, rng, stratified=True)
    orders = (lent_cells(), scores[:n])
    draws = [distance(lent_cells() * start.spread.deviation) for _ in range(DRAWS)]
    return torch.stack([*(distance(reordered(values, order)) for order in orders), torch.stack(draws).mean()])


def _scores(cells: Tensor, rng: torch.Generator) -> Tensor:
    """Places of cells [n, g] of one condition as standard normal numbers, gene by gene; equal values in any order."""
    return normal_scores(cells.double() + TIES * torch.rand(cells.shape, generator=rng))


def told(found: Headroom | None) -> str | None:
    """The headroom in one sentence, and what follows from it; none where it is not known."""
    if found is None:
        return None
    clear = "clear" if found.low > 0 else "not clear"
    of = " of" if found.energy > found.gain else ", which few cells put at"
    return (
        f"headroom of training, {found.conditions} training conditions: {found.gain:.2g} ({found.low:.2g} to "
        f"{found.high:.2g}, {clear}) of the prior's energy distance to real cells{of} {found.energy:.2g}; {_advice(found)}"
    )


def _advice(found: Headroom) -> str:
    clear = found.low > 0
    # Few cells measure the distance; what an order gains of it is paired, and never more than there is.
    distance = max(found.energy, found.gain if clear else 0)
    if distance <= 0 or found.high <= WORTH * distance:
        return "the preset instant is enough"
    return "training can pay" if clear and found.gain > WORTH * distance else "whether training pays, validation says"
