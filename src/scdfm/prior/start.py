"""Where a flow from the prior starts: real training cells, moved gene by gene to the mean that is expected.

Flow space is d ⊙ s: the scores s of a gene's value in its marginal distribution at the expected mean
(`scdfm.prior.marginals`), times the gene's deviation d, so that genes weigh what they weigh in expression. x₀ are the
scores of donors (`scdfm.prior.spread`). Scores are standard normal gene by gene, at the start as at the end. Between
two populations of one centred Gaussian law the velocity of a gene along x_t = (1 − t)x₀ + t·x₁ is known,
v = (2t − 1)(1 − ρ) / (t² + (1 − t)² + 2ρt(1 − t)) · x_t, ρ the correlation of x₀ and x₁ (0 unless like goes to like:
`flow.pairing`). The network learns what real cells have beyond it; one that is 0 leaves the donors as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scdfm.data.conditions import control_of
from scdfm.errors import ConditionError
from scdfm.flow import Integrate, Output, paired
from scdfm.prior.kernel import Floats
from scdfm.prior.marginals import Levels, Marginals
from scdfm.prior.shrink import Shrinkage, moved_to
from scdfm.prior.spread import Spread, normal_scores

Read = Callable[[Marginals, Tensor], Tensor]
"""What is made of some cells, given by their places, whose condition has these marginals."""
BY_GENE = ("expected", "rates", "control_rates")
SEEN, PAIRS = 24, 512
"""Draws of each gene, and pairs of cells in these, that its correlation is learned from."""
MOST_CORRELATED = 0.99
N_PLACES = 15
"""Places of a gene's distribution over which a shift is averaged."""


@dataclass(frozen=True, eq=False)
class PriorStart:
    """The start of the C conditions `names`, over the G genes of `spread`.

    expected: means (log1p) that the prior expects; rates: θ of the marginals there, `control_rates` at the means of the
    control cells; donors: first and number of the donors of each condition; doubt: u², the squared length of the error
    expected of the means, over all genes of the run. With `shrinkage` the means of populations lie between those
    expected and the flow's.
    """

    names: tuple[str, ...]
    spread: Spread
    expected: Float[Tensor, "C G"]
    rates: Float[Tensor, "C G"]
    control_rates: Float[Tensor, "C G"]
    donors: Int[Tensor, "C 2"]
    doubt: Float[Tensor, " C"]
    shrinkage: Shrinkage | None = None

    @classmethod
    def around(
        cls,
        spread: Spread,
        names: Sequence[str],
        expected: Floats | Tensor,
        controls: Floats | Tensor,
        doubt: Floats | Tensor,
    ) -> PriorStart:
        """The start of conditions at their `expected` means [C, G] (log1p; nothing below 0), with their `doubt` [C].

        controls: means [C, G] of their control cells, from where the response is reckoned.
        """
        means = torch.as_tensor(expected).float().clamp(min=0)
        donors = torch.tensor([spread.donors_of(control_of(name)) for name in names])
        before = torch.as_tensor(controls).float().clamp(min=0)
        own, control = torch.empty_like(means), torch.empty_like(means)
        for levels, rows in _by_levels([spread.marginals_of(control_of(name)) for name in names]):
            own[rows], control[rows] = levels.rates(means[rows]), levels.rates(before[rows], near=means[rows])
        return cls(tuple(names), spread, means, own, control, donors, torch.as_tensor(doubt).float())

    @property
    def unit(self) -> float:
        """Root mean square deviation of expression (log1p)."""
        return self.spread.size

    def of(self, conditions: Sequence[str]) -> PriorStart:
        """The start of some conditions by their names, in this order."""
        places = {name: place for place, name in enumerate(self.names)}
        if missing := [name for name in conditions if name not in places]:
            raise ConditionError(
                f"condition '{missing[0]}' has no expected mean; expected one of the {len(places)} conditions of the fit"
            )
        return self.at(torch.tensor([places[name] for name in conditions]))

    def at(self, conditions: Int[Tensor, " c"]) -> PriorStart:
        """The start of some conditions."""
        rows = conditions.to(self.expected.device)
        names = tuple(self.names[place] for place in conditions.tolist())
        spread = self.spread.of(map(control_of, names))
        return replace(self._changed(lambda tensor: tensor[rows]), names=names, spread=spread)

    def on(self, genes: Tensor | slice) -> PriorStart:
        """The start of some genes."""
        parts = {name: getattr(self, name)[:, genes] for name in BY_GENE}
        return replace(self, spread=self.spread.on(genes), **parts)

    def to(self, device: torch.device | str) -> PriorStart:
        """The start on another device."""
        if self.expected.device == torch.device(device):
            return self
        return replace(self._changed(lambda tensor: tensor.to(device)), spread=self.spread.to(device))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> PriorStart:
        names = (*BY_GENE, "donors", "doubt")
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return replace(self, **changed)

    def draw(self, n: int, rng: torch.Generator) -> Float[Tensor, "n 1"]:
        """A number in [0, 1) for each of n cells, which says its donor."""
        return torch.rand((n, 1), generator=rng)

    def source(self, drawn: Float[Tensor, "B 1"], condition: Int[Tensor, " B"]) -> Float[Tensor, "B G"]:
        """d ⊙ s of the donors drawn, one cell for each entry of `condition`."""
        return self._scores(drawn, condition) * self.spread.deviation

    def _scores(self, drawn: Tensor, condition: Tensor) -> Tensor:
        first, count = self.donors[condition].unbind(1)
        place = (drawn[:, 0].to(first.device) * count).long().clamp(max=count - 1)
        return self.spread.donors[first + place].float()

    def population(self, condition: Int[Tensor, " M"], rng: torch.Generator, stratified: bool) -> Float[Tensor, "M G"]:
        """x₀ of whole populations, on the CPU.

        `stratified`: donors without repetition as far as they go, and each gene's scores, in the donors' order, one from
        each of n equal pieces of the normal law: a Latin hypercube with the donors' dependence (Stein 1987).
        """
        start = self.to("cpu")
        if not stratified:
            return start.source(start.draw(len(condition), rng), condition)
        scores = torch.empty((len(condition), self.expected.shape[1]))
        for place in torch.unique(condition).tolist():
            rows = torch.nonzero(condition == place).flatten()
            n = len(rows)
            drawn = (torch.randperm(n, generator=rng) + torch.rand(n, generator=rng)) / n
            donors = start._scores(drawn.unsqueeze(1), condition[rows])
            scores[rows] = normal_scores(donors, torch.rand(donors.shape, generator=rng))
        return scores * start.spread.deviation

    def to_flow(
        self, cells: Float[Tensor, "B G"], condition: Int[Tensor, " B"], uniform: Float[Tensor, "B G"]
    ) -> Float[Tensor, "B G"]:
        """d ⊙ s of expression (log1p); `uniform` draws in [0, 1) choose the scores of zeros."""
        rates = self.rates[condition]
        scores = self._read(condition, lambda law, rows: law.scores(cells[rows], rates[rows], uniform[rows]))
        return scores * self.spread.deviation

    def cells(
        self, end: Float[Tensor, "M G"], begin: Float[Tensor, "M G"], condition: Int[Tensor, " M"]
    ) -> Float[Tensor, "M G"]:
        """Expression (log1p) of whole populations. With `shrinkage` means and values of a gene lie between those of the
        start and the flow's; which values go together in a cell is the flow's."""
        if self.shrinkage is None:
            return self._expression(end, condition)
        weights = self.shrinkage.weights(self.doubt)
        made = torch.empty_like(end)
        for place in torch.unique(condition).tolist():
            rows = condition == place
            made[rows] = self._between(end[rows], begin[rows], place, weights[place], self.shrinkage.values)
        return made

    def _between(self, end: Tensor, begin: Tensor, place: int, weight: Tensor, share: float) -> Tensor:
        """Cells of one condition in the order of the flow: their mean `weight` of the way from that of their start to the
        flow's, their values `share` of the way."""
        condition = torch.full((len(end),), place)

        def expression(x: Tensor) -> Tensor:
            return self._expression(x, condition)

        expected, own = expression(begin).mean(0), expression(end).mean(0)
        goal = torch.lerp(expected, own, weight)
        values = end if share == 1 else torch.lerp(reordered(begin, end), end, share)
        return moved_to(values, expression(values).mean(0), goal, self.spread.deviation, expression)

    def _expression(self, x: Tensor, condition: Tensor) -> Tensor:
        scores, rates = x / self.spread.deviation, self.rates[condition]
        return self._read(condition, lambda law, rows: law.expression(scores[rows], rates[rows]))

    def _read(self, condition: Tensor, read: Read) -> Tensor:
        """What `read` makes of cells [B] by the marginals of their conditions."""
        parts, order = [], []
        for place in torch.unique(condition).tolist():
            rows = torch.nonzero(condition == place).flatten()
            order.append(rows)
            parts.append(read(self._levels(place).at(self.expected[place]), rows))
        return torch.cat(parts)[torch.argsort(torch.cat(order))]

    def _levels(self, place: int) -> Levels:
        return self.spread.marginals_of(control_of(self.names[place]))

    def inputs(self) -> dict[str, Tensor]:
        """The expected means, which the network reads beside the control, and the shift from there in scores."""
        return {"expected": self.expected, "shift": self.shift()}

    def shift(self) -> Float[Tensor, "C G"]:
        """How far the expected response moves a cell, in scores of its condition: the mean over a gene's places.

        A cell at place s among the control cells, left as it is, lies at s − shift among those that answer.
        """
        n_genes = self.expected.shape[1]
        grid = torch.special.ndtri((torch.arange(N_PLACES, device=self.rates.device) + 0.5) / N_PLACES)
        condition = torch.arange(len(self.rates), device=grid.device).repeat_interleave(N_PLACES)
        places = grid.repeat(len(self.rates)).unsqueeze(1).expand(-1, n_genes)
        control, moved = self.control_rates[condition], self.rates[condition]

        def lost(law: Marginals, rows: Tensor) -> Tensor:
            cells = law.expression(places[rows], control[rows])
            # A zero keeps its place among zeros.
            among_zeros = torch.special.ndtr(places[rows]) / law.share_of_zeros(control[rows])
            within = torch.where(cells > 0, 0.5, among_zeros.clamp(max=1.0))
            return law.scores(cells, control[rows], within) - law.scores(cells, moved[rows], within)

        shift: Tensor = self._read(condition, lost).view(-1, N_PLACES, n_genes).mean(1)
        return shift

    def velocity(self, output: Output, x_t: Float[Tensor, "B G"], t: Float[Tensor, " B"]) -> Tensor:
        """The velocity of one Gaussian law, and the correction that the network makes in standard deviations."""
        return self._correction(output, t, x_t) + gaussian_velocity(x_t, t, self.spread.correlation)

    def solve(self, output: Output, begin: Float[Tensor, "M G"], integrate: Integrate) -> Tensor:
        """The end of the flow; the Gaussian part is solved exactly."""
        return integrate(straightened(lambda t, x: self._correction(output, t, x), self.spread.correlation), begin)

    def _correction(self, output: Output, t: Tensor, x: Tensor) -> Tensor:
        return output(t, x / self.spread.deviation) * self.spread.deviation


def _by_levels(levels: Sequence[Levels]) -> Iterator[tuple[Levels, Int[Tensor, " c"]]]:
    """Each of `levels` once, with its places there."""
    for one in dict.fromkeys(levels):
        yield one, torch.tensor([place for place, other in enumerate(levels) if other is one])


def reordered(values: Float[Tensor, "n G"], order: Float[Tensor, "n G"]) -> Float[Tensor, "n G"]:
    """Each column of `values` in the order of that of `order`: its smallest where that is smallest (Clark et al. 2004)."""
    places = order.T.contiguous().argsort(dim=1, stable=True)
    sorted_values = values.T.contiguous().sort(dim=1).values
    return torch.empty_like(sorted_values).scatter_(1, places, sorted_values).T.contiguous()


def gaussian_velocity(
    x_t: Float[Tensor, "B T"], t: Float[Tensor, " B"], correlation: Float[Tensor, " T"] | None = None
) -> Float[Tensor, "B T"]:
    """(2t − 1)(1 − ρ) / a² · x_t, a² = t² + (1 − t)² + 2ρt(1 − t): the velocity of a gene between two populations of one
    centred Gaussian law whose cells are paired with correlation ρ; without it at random."""
    t, rho = t.unsqueeze(-1), 0.0 if correlation is None else correlation
    return x_t * ((2 * t - 1) * (1 - rho) / _squared_scale(t, rho))


def straightened(
    correction: Callable[[Tensor, Tensor], Tensor], correlation: Float[Tensor, " T"] | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The velocity of u = x / a(t), a as in `gaussian_velocity`, where x moves by that and `correction`.

    The Gaussian part is solved exactly, since it only rescales x by a; u and x agree at t = 0 and t = 1.
    """
    rho = 0.0 if correlation is None else correlation

    def velocity(t: Tensor, u: Tensor) -> Tensor:
        a = _squared_scale(t, rho).sqrt()
        return correction(t, a * u) / a

    return velocity


def _squared_scale(t: Tensor, rho: Tensor | float) -> Tensor:
    """a²: variance of (1 − t)·x₀ + t·x₁ over that of either."""
    return t**2 + (1 - t) ** 2 + 2 * rho * t * (1 - t)


def correlation_of_pairs(spread: Spread, n_cells: int, n_genes: int, rng: torch.Generator) -> Float[Tensor, " G"]:
    """Correlation of a gene's scores at both ends of a path, where n_cells donors are paired with as many others.

    As in a step that draws n_genes genes: each gene is drawn SEEN times or more, until PAIRS pairs are seen. Donors of one
    setting are paired.
    """
    total = len(spread.deviation)
    n_genes = min(n_genes, total)
    products, squares = torch.zeros(total), torch.zeros(total)
    for _ in range(-(-max(SEEN, PAIRS // n_cells) * total // n_genes)):
        genes = torch.randperm(total, generator=rng)[:n_genes]
        any_donor = int(torch.randint(len(spread.donors), (), generator=rng))
        of = (name for name, (first, count) in spread.settings.items() if first <= any_donor < first + count)
        first, count = spread.donors_of(next(of, ""))
        drawn = first + torch.randint(count, (2 * n_cells,), generator=rng)
        deviation = spread.deviation[genes]
        start, end = (spread.donors[drawn][:, genes].float() * deviation).chunk(2)
        start = paired(start, end, 1)
        products[genes] += (start * end / deviation**2).sum(0)
        squares[genes] += ((start**2 + end**2) / deviation**2).sum(0) / 2
    return (products / squares.clamp(min=1e-12)).clamp(-MOST_CORRELATED, MOST_CORRELATED)
