"""Where a flow starts when something is known before: around the expected mean, with the spread of real cells.

A cell of condition c is written as its residual r = (x − m_c) / size, m_c the mean that the prior expects. The source
of the flow is the Gaussian r₀ = σ ⊙ (Λf + ψ ⊙ ε) + τ · η · shift_c / size with f, ε, η ~ N(0, I): the deviations σ,
common factors Λ and varying strength τ of the training cells' residuals. Between two populations of that one
Gaussian the velocity along x_t = (1 − t)x₀ + t·x₁ is known, v = (2t − 1) / (t² + (1 − t)²) · r; a velocity field
then learns what real cells have beyond it, and one that is 0 generates the Gaussian around the expected mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """Size and shape of residuals, genes along G; fitted by `scdfm.prior.fit_frame`."""

    size: float
    """Root mean square of a residual in log1p, so that residuals are of order 1."""
    deviation: Float[Tensor, " G"]
    """σ, of root mean square 1."""
    loadings: Float[Tensor, "G k"]
    """Λ: Λ Λᵀ + diag(ψ²) has a diagonal of 1."""
    unique: Float[Tensor, " G"]
    """ψ"""
    spread: float
    """τ, the standard deviation of the strength of response between cells, relative to the mean."""

    def of(self, genes: Tensor | slice) -> Frame:
        """The frame of some genes."""
        return replace(
            self, deviation=self.deviation[genes], loadings=self.loadings[genes], unique=self.unique[genes]
        )

    def to(self, device: torch.device | str) -> Frame:
        """The frame on another device."""
        return self._moved(lambda tensor: tensor.to(device))

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Frame:
        names = ("deviation", "loadings", "unique")
        changed: dict[str, Any] = {name: move(getattr(self, name)) for name in names}
        return replace(self, **changed)


@dataclass(frozen=True)
class Origin:
    """The start of C conditions: a frame, their expected means `centre` and mean `shift` from their controls, log1p."""

    frame: Frame
    centre: Float[Tensor, "C G"]
    shift: Float[Tensor, "C G"]

    def of(self, genes: Tensor | slice) -> Origin:
        """The origin of some genes."""
        return Origin(self.frame.of(genes), self.centre[:, genes], self.shift[:, genes])

    def among(self, conditions: Tensor) -> Origin:
        """The origin of some conditions."""
        return Origin(self.frame, self.centre[conditions], self.shift[conditions])

    def to(self, device: torch.device | str) -> Origin:
        """The origin on another device."""
        return Origin(self.frame.to(device), self.centre.to(device), self.shift.to(device))

    def inward(self, cells: Float[Tensor, "B G"], condition: Int[Tensor, " B"]) -> Float[Tensor, "B G"]:
        """Residuals of log1p expression."""
        return (cells - self.centre[condition]) / self.frame.size

    def outward(self, residuals: Float[Tensor, "B G"], condition: Int[Tensor, " B"]) -> Float[Tensor, "B G"]:
        """log1p expression of residuals."""
        return torch.addcmul(self.centre[condition], residuals, residuals.new_tensor(self.frame.size))

    @property
    def width(self) -> int:
        """Standard normal numbers behind the residuals of one cell: factors, genes, and the strength."""
        return self.frame.loadings.shape[1] + len(self.frame.unique) + 1

    def noise(self, drawn: Float[Tensor, "B width"], condition: Int[Tensor, " B"]) -> Float[Tensor, "B G"]:
        """r₀ of one cell for each entry of `condition`, made of standard normal draws."""
        frame = self.frame
        widths = [frame.loadings.shape[1], len(frame.unique), 1]
        factors, unique, strength = torch.split(drawn.to(frame.unique.device), widths, dim=1)
        residuals = frame.deviation * (factors @ frame.loadings.T + unique * frame.unique)
        return torch.addcmul(residuals, strength * (frame.spread / frame.size), self.shift[condition])


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


def gaussian_velocity(residuals: Float[Tensor, "B T"], t: Float[Tensor, " B"]) -> Float[Tensor, "B T"]:
    """(2t − 1) / (t² + (1 − t)²) · r: the velocity between two populations of one centred Gaussian law."""
    return residuals * ((2 * t - 1) / (t**2 + (1 - t) ** 2)).unsqueeze(-1)


def straightened(
    correction: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Tensor, Tensor], Tensor]:
    """The velocity of u = r / a(t), a = √(t² + (1 − t)²), where r moves by `gaussian_velocity` + `correction`.

    The Gaussian part is solved exactly, since it only rescales r by a; u and r agree at t = 0 and t = 1.
    """

    def velocity(t: Tensor, u: Tensor) -> Tensor:
        a = (t**2 + (1 - t) ** 2).sqrt()
        return correction(t, a * u) / a

    return velocity
