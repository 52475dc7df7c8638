"""Where a flow starts when something is known before: around the expected mean, with the spread of real cells.

Expression is what is left of a latent value above 0, x = max(0, z) (a censored Gaussian, Tobin 1958): a zero stands
for some z ≤ 0. Cells of condition c are written as residuals r = d ⊙ (z − μ_c) / σ_c, where μ_c and σ_c are the latent
mean and deviation of each gene at which x has the mean that the prior expects and the variance that genes of this
mean have, and d is the gene's deviation in expression, so that genes weigh what they weigh there. The source of the flow
is the Gaussian r₀ = d ⊙ (Λf + ψ ⊙ ε + τ · η · shift_c / σ_c) with f, ε, η ~ N(0, I): common factors Λ and varying
strength τ of response, as training cells have them. Between two populations of that one Gaussian the velocity along
x_t = (1 − t)x₀ + t·x₁ is known, v = (2t − 1) / (t² + (1 − t)²) · r; a velocity field learns what real cells have beyond
it, and one that is 0 generates censored Gaussian cells with the expected means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scdfm.flow import Integrate, Output, sample_normal
from scdfm.prior.shrink import Shrinkage, shrunk


@dataclass(frozen=True)
class Frame:
    """Size and shape of residuals, genes along G; fitted by `scdfm.prior.fit_frame`."""

    size: float
    """Root mean square deviation of expression (log1p), the unit of `deviation`."""
    deviation: Float[Tensor, " G"]
    """d, of root mean square 1."""
    excess: Float[Tensor, " G"]
    """Variance of a gene over what `trend` says of its mean."""
    peak: Float[Tensor, " G"]
    """The highest mean of a gene in any training condition or its controls (log1p)."""
    trend: Float[Tensor, "2 knots"]
    """Variance over mean of genes, at logarithms of the mean: first the logarithms, ascending, then the ratios (log1p)."""
    loadings: Float[Tensor, "G k"]
    """Λ: Λ Λᵀ + diag(ψ²) has a diagonal of 1."""
    unique: Float[Tensor, " G"]
    """ψ"""
    spread: float
    """τ, the standard deviation of the strength of response between cells, relative to the mean."""
    highest: float
    """The highest expression of any gene in any training cell (log1p): nothing generated lies above it."""

    def of(self, genes: Tensor | slice) -> Frame:
        """The frame of some genes."""
        return self._changed(lambda tensor: tensor[genes])

    def to(self, device: torch.device | str) -> Frame:
        """The frame on another device."""
        return self._changed(lambda tensor: tensor.to(device))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Frame:
        names = ("deviation", "excess", "peak", "loadings", "unique")
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return replace(self, **changed)


@dataclass(frozen=True)
class PriorStart:
    """The start of C conditions: a frame, latent means μ (`centre`), deviations σ (`scale`), and `shift` from controls.

    `doubt` is u²: the squared length of the error that is expected of the means (log1p), over all genes of the run.
    With `shrinkage` the means of populations lie between those expected and the flow's.
    """

    frame: Frame
    centre: Float[Tensor, "C G"]
    scale: Float[Tensor, "C G"]
    shift: Float[Tensor, "C G"]
    doubt: Float[Tensor, " C"]
    shrinkage: Shrinkage | None = None

    @property
    def unit(self) -> float:
        """Root mean square deviation of expression (log1p)."""
        return self.frame.size

    def on(self, genes: Tensor | slice) -> PriorStart:
        """The start of some genes."""
        centre, scale, shift = (x[:, genes] for x in (self.centre, self.scale, self.shift))
        return replace(self, frame=self.frame.of(genes), centre=centre, scale=scale, shift=shift)

    def at(self, conditions: Tensor) -> PriorStart:
        """The start of some conditions."""
        return self._changed(lambda tensor: tensor[conditions])

    def to(self, device: torch.device | str) -> PriorStart:
        """The start on another device."""
        if self.centre.device == torch.device(device):
            return self
        return replace(self._changed(lambda tensor: tensor.to(device)), frame=self.frame.to(device))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> PriorStart:
        names = ("centre", "scale", "shift", "doubt")
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return replace(self, **changed)

    def draw(self, n: int, rng: torch.Generator) -> Float[Tensor, "n w"]:
        """Standard normal numbers behind the residuals of n cells: factors, genes, and the strength."""
        return sample_normal((n, self._width), rng)

    @property
    def _width(self) -> int:
        return self.frame.loadings.shape[1] + len(self.frame.unique) + 1

    def source(self, drawn: Float[Tensor, "B w"], condition: Int[Tensor, " B"]) -> Float[Tensor, "B G"]:
        """r₀ of one cell for each entry of `condition`, made of standard normal draws."""
        frame = self.frame
        widths = [frame.loadings.shape[1], len(frame.unique), 1]
        factors, unique, strength = torch.split(drawn.to(frame.unique.device), widths, dim=1)
        standard = factors @ frame.loadings.T + unique * frame.unique
        standard = torch.addcmul(standard, strength * frame.spread, (self.shift / self.scale)[condition])
        return frame.deviation * standard

    def population(
        self, condition: Int[Tensor, " M"], rng: torch.Generator, stratified: bool
    ) -> Float[Tensor, "M G"]:
        """r₀ of whole populations, on the CPU; a Latin hypercube within each where `stratified`."""
        drawn = sample_normal((len(condition), self._width), rng, condition if stratified else None)
        return self.to("cpu").source(drawn, condition.cpu())

    def to_flow(
        self, cells: Float[Tensor, "B G"], condition: Int[Tensor, " B"], uniform: Float[Tensor, "B G"]
    ) -> Float[Tensor, "B G"]:
        """Residuals of expression (log1p); `uniform` draws in [0, 1) say what stands behind the zeros."""
        centre, scale = self.centre[condition], self.scale[condition]
        latent = uncensored(cells, centre, scale, uniform)
        return self.frame.deviation * (latent - centre) / scale

    def latent(self, residuals: Float[Tensor, "B G"], condition: Int[Tensor, " B"]) -> Float[Tensor, "B G"]:
        """Latent values of residuals; expression is what of them is above 0."""
        scale = self.scale[condition] / self.frame.deviation
        return torch.addcmul(self.centre[condition], residuals, scale).clamp(max=self.frame.highest)

    def cells(
        self, end: Float[Tensor, "M G"], begin: Float[Tensor, "M G"], condition: Int[Tensor, " M"]
    ) -> Float[Tensor, "M G"]:
        """Latent values of whole populations, their means between those of their start and their own."""
        latent = self.latent(end, condition)
        if self.shrinkage is None:
            return latent
        weights = self.shrinkage.weights(self.doubt)
        return shrunk(latent, self.latent(begin, condition), condition, weights).clamp_(
            max=self.frame.highest
        )

    def inputs(self) -> dict[str, Tensor]:
        """The expected means, which the network reads beside the control."""
        return {"expected": self.centre}

    def velocity(self, output: Output, x_t: Float[Tensor, "B G"], t: Float[Tensor, " B"]) -> Tensor:
        """The velocity of one Gaussian law, and the correction that the network makes in standard deviations."""
        return self._correction(output, t, x_t) + gaussian_velocity(x_t, t)

    def solve(self, output: Output, begin: Float[Tensor, "M G"], integrate: Integrate) -> Tensor:
        """The end of the flow; the Gaussian part is solved exactly."""
        return integrate(straightened(lambda t, x: self._correction(output, t, x)), begin)

    def _correction(self, output: Output, t: Tensor, x: Tensor) -> Tensor:
        return output(t, x / self.frame.deviation) * self.frame.deviation


def uncensored(
    cells: Float[Tensor, "B G"],
    centre: Float[Tensor, "B G"],
    scale: Float[Tensor, "B G"],
    uniform: Float[Tensor, "B G"],
) -> Float[Tensor, "B G"]:
    """Latent values: expression where it is above 0, else a draw of N(centre, scale²) below 0."""
    below = torch.special.ndtr(-centre / scale)
    quantile = (uniform * below).clamp(min=1e-6, max=1 - 1e-6)
    drawn = torch.addcmul(centre, scale, torch.special.ndtri(quantile))
    return torch.where(cells > 0, cells, drawn.clamp(max=0))


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
