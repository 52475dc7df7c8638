"""The probability path: where a flow starts, and the straight way from there to cells (Lipman et al. 2023; paper §3).

x_t = (1 − t)·x₀ + t·x₁ with velocity u = x₁ − x₀ and t ~ U(0, 1). The paper starts at x₀ ~ N(0, I) in expression:
that is `Noise`. What else a flow may start from satisfies `Start`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from scdfm.errors import ConfigError
from scdfm.flow.distance import squared_distances

Output = Callable[[Tensor, Tensor], Tensor]
"""What the network says at (t [], x [B, T]): a velocity, or the correction to one that is known."""
Integrate = Callable[[Output, Tensor], Tensor]
"""The end at t = 1 of dx/dt = velocity(t, x) from x₀."""


@runtime_checkable
class Start(Protocol):
    """Where the flow of C conditions starts, over G genes, and the space that it flows in.

    `condition` says for each of B cells which of the C conditions it is of.
    """

    @property
    def unit(self) -> float:
        """log1p expression that one unit of flow space is: the widths of the MMD's kernels are given in log1p."""

    def at(self, conditions: Int[Tensor, " c"]) -> Start:
        """The start of some conditions."""

    def on(self, genes: Tensor | slice) -> Start:
        """The start of some genes."""

    def to(self, device: torch.device | str) -> Start:
        """The start on another device."""

    def draw(self, n: int, rng: torch.Generator) -> Float[Tensor, "n w"]:
        """Random numbers behind the starts of n cells, on the CPU: a row a cell."""

    def source(self, drawn: Float[Tensor, "B w"], condition: Int[Tensor, " B"]) -> Float[Tensor, "B G"]:
        """x₀ of cells whose random numbers were drawn."""

    def population(self, condition: Int[Tensor, " M"], rng: torch.Generator, stratified: bool) -> Float[Tensor, "M G"]:
        """x₀ of whole populations, on the CPU; `stratified`: spread evenly within each, so that means vary less."""

    def to_flow(
        self, cells: Float[Tensor, "B G"], condition: Int[Tensor, " B"], uniform: Float[Tensor, "B G"]
    ) -> Float[Tensor, "B G"]:
        """x₁ of real cells (log1p); `uniform` draws in [0, 1) stand for what a zero hides."""

    def cells(
        self, end: Float[Tensor, "M G"], begin: Float[Tensor, "M G"], condition: Int[Tensor, " M"]
    ) -> Float[Tensor, "M G"]:
        """Expression (log1p) of whole populations at the `end` of flows that began at x₀ = `begin`."""

    def inputs(self) -> dict[str, Tensor]:
        """What the network is told of the start, by the names of its arguments."""

    def velocity(self, output: Output, x_t: Float[Tensor, "B G"], t: Float[Tensor, " B"]) -> Tensor:
        """The velocity at (x_t, t) of the flow whose network is `output`."""

    def solve(self, output: Output, begin: Float[Tensor, "M G"], integrate: Integrate) -> Tensor:
        """The end of the flow whose network is `output`, from x₀ = `begin`."""


@dataclass(frozen=True)
class Noise:
    """The paper's start: x₀ ~ N(0, I) in expression (log1p), the same for every condition; nothing is known before.

    With `rates` [G], x₀ is log1p of Poisson counts of these means instead.
    """

    n_genes: int
    kind: Literal["gaussian", "poisson"] = "gaussian"
    rates: Float[Tensor, " G"] | None = None

    def __post_init__(self) -> None:
        if self.kind == "poisson" and self.rates is None:
            raise ConfigError("flow.source 'poisson' needs the mean count of each gene (rates); none were given")

    @property
    def unit(self) -> float:
        """Flow space is expression itself."""
        return 1.0

    def at(self, conditions: Int[Tensor, " c"]) -> Noise:
        """Itself: every condition starts alike."""
        return self

    def on(self, genes: Tensor | slice) -> Noise:
        """The noise of some genes."""
        n = len(torch.arange(self.n_genes)[genes.cpu() if isinstance(genes, Tensor) else genes])
        if self.rates is None:
            return replace(self, n_genes=n)
        return replace(self, n_genes=n, rates=self.rates[genes])

    def to(self, device: torch.device | str) -> Noise:
        """Itself: draws are made on the CPU."""
        return self

    def draw(self, n: int, rng: torch.Generator) -> Float[Tensor, "n G"]:
        """x₀ itself."""
        return self._drawn(n, rng, None)

    def source(self, drawn: Float[Tensor, "B G"], condition: Int[Tensor, " B"]) -> Float[Tensor, "B G"]:
        """The draws."""
        return drawn.to(condition.device)

    def population(self, condition: Int[Tensor, " M"], rng: torch.Generator, stratified: bool) -> Float[Tensor, "M G"]:
        """x₀ of whole populations; Gaussian ones a Latin hypercube within each condition where `stratified`."""
        return self._drawn(len(condition), rng, condition if stratified else None)

    def _drawn(self, n: int, rng: torch.Generator, strata: Tensor | None) -> Tensor:
        if self.rates is None:
            return sample_normal((n, self.n_genes), rng, strata)
        return torch.poisson(self.rates.float().cpu().expand(n, -1), generator=rng).log1p()

    def to_flow(
        self, cells: Float[Tensor, "B G"], condition: Int[Tensor, " B"], uniform: Float[Tensor, "B G"]
    ) -> Float[Tensor, "B G"]:
        """The cells themselves."""
        return cells

    def cells(
        self, end: Float[Tensor, "M G"], begin: Float[Tensor, "M G"], condition: Int[Tensor, " M"]
    ) -> Float[Tensor, "M G"]:
        """The end itself."""
        return end

    def inputs(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def velocity(self, output: Output, x_t: Float[Tensor, "B G"], t: Float[Tensor, " B"]) -> Tensor:
        """What the network says."""
        return output(t, x_t)

    def solve(self, output: Output, begin: Float[Tensor, "M G"], integrate: Integrate) -> Tensor:
        """The integral of what the network says."""
        return integrate(output, begin)


def interpolate(
    source: Float[Tensor, "B T"], target: Float[Tensor, "B T"], t: Float[Tensor, " B"]
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """The point x_t = (1 − t)·x₀ + t·x₁ of each cell's straight path, and its velocity u = x₁ − x₀."""
    velocity = target - source
    return torch.addcmul(source, t.unsqueeze(-1), velocity), velocity


def paired(source: Float[Tensor, "B T"], target: Float[Tensor, "B T"], n_conditions: int) -> Float[Tensor, "B T"]:
    """The rows of `source`, each beside the row of `target` that it goes to: Σ|x₀ − x₁|² is least within each condition.

    Optimal transport between the n = B/C cells that each of the C conditions has on either side, which lie together
    (Tong et al. 2024). Cells then keep their state on the way, and paths cross less, so the velocity at x_t says more.
    """
    # In double precision, so that no pair hangs on the last digits of another processor.
    ends = (cells.double().view(n_conditions, -1, cells.shape[-1]) for cells in (target, source))
    costs = squared_distances(*ends).cpu().numpy()
    n = costs.shape[-1]
    chosen = [place * n + linear_sum_assignment(cost)[1] for place, cost in enumerate(costs)]
    return source[torch.as_tensor(np.concatenate(chosen), device=source.device)]


def sample_time(n: int, rng: torch.Generator, stratified: bool = False) -> Float[Tensor, " n"]:
    """`n` times in [0, 1): uniform, or one in each of n equal pieces in random order (each still uniform)."""
    uniform = torch.rand(n, generator=rng)
    if not stratified:
        return uniform
    # The division can round up to 1, where the path has ended.
    largest = 1 - torch.finfo(uniform.dtype).eps / 2
    return ((torch.randperm(n, generator=rng) + uniform) / n).clamp(max=largest)


def sample_normal(
    shape: tuple[int, ...], rng: torch.Generator, strata: Int[Tensor, " B"] | None = None
) -> Float[Tensor, "B G"]:
    """Standard normal draws [B, G]; with `strata`, a Latin hypercube within each of them.

    The n rows of one stratum then hold, in every column and in random order, one draw from each of n equally likely
    pieces of the normal law: each entry is N(0, 1), and means over rows vary far less (McKay et al. 1979).
    """
    if strata is None:
        return torch.randn(shape, generator=rng)
    drawn, strata = torch.empty(shape), strata.cpu()
    for stratum in torch.unique(strata):
        rows = torch.nonzero(strata == stratum).flatten()
        order = torch.rand((len(rows), shape[1]), generator=rng).argsort(dim=0)
        inside = torch.rand((len(rows), shape[1]), generator=rng, dtype=torch.float64)
        share = ((order + inside) / len(rows)).clamp(min=1e-9, max=1 - 1e-9)
        drawn[rows] = torch.special.ndtri(share).float()
    return drawn
