"""The probability path from noise to cells, and the loss that teaches its velocity.

x_t = (1 − t)·x₀ + t·x₁ with velocity x₁ − x₀; L = L_CFM + γ·MMD²(x̂₁, x₁), x̂₁ = x_t + (1 − t)·v.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scdfm.config import MMDConfig
from scdfm.errors import ConfigError
from scdfm.flow.mmd import median_bandwidths, mmd2
from scdfm.flow.origin import sample_normal


class FlowLoss(NamedTuple):
    """The loss of a batch, and its two terms before weighting."""

    total: Float[Tensor, ""]
    cfm: Float[Tensor, ""]
    mmd: Float[Tensor, ""]


def interpolate(
    noise: Float[Tensor, "B T"], target: Float[Tensor, "B T"], t: Float[Tensor, " B"]
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """The point x_t of each cell's straight path from noise to target, and its velocity."""
    velocity = target - noise
    return torch.addcmul(noise, t.unsqueeze(-1), velocity), velocity


def sample_time(n: int, rng: torch.Generator, stratified: bool = False) -> Float[Tensor, " n"]:
    """`n` times in [0, 1): uniform, or one in each of n equal pieces in random order (each still uniform)."""
    uniform = torch.rand(n, generator=rng)
    if not stratified:
        return uniform
    # The division can round up to 1, where the path has ended.
    largest = 1 - torch.finfo(uniform.dtype).eps / 2
    return ((torch.randperm(n, generator=rng) + uniform) / n).clamp(max=largest)


def sample_source(
    shape: tuple[int, ...],
    rng: torch.Generator,
    kind: Literal["gaussian", "poisson"] = "gaussian",
    rates: Float[Tensor, "*genes"] | None = None,
    strata: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, "*shape"]:
    """x₀ of this shape, on the CPU: N(0, I), or log1p of Poisson counts with mean `rates` (broadcast).

    With `strata` the Gaussian draws of each stratum of rows are a Latin hypercube (`sample_normal`).
    """
    if kind == "gaussian":
        return sample_normal(shape, rng, strata)
    if rates is None:
        raise ConfigError("flow.source 'poisson' needs the mean count of each gene (rates); none were given")
    return torch.poisson(rates.float().cpu().expand(shape), generator=rng).log1p()


def in_units(mmd: MMDConfig, size: float) -> MMDConfig:
    """The options for cells that are measured in units of `size` log1p."""
    if mmd.bandwidths is None:
        return mmd
    return mmd.model_copy(update={"bandwidths": tuple(width / size for width in mmd.bandwidths)})


def flow_loss(
    velocity: Float[Tensor, "B T"],
    x_t: Float[Tensor, "B T"],
    t: Float[Tensor, " B"],
    noise: Float[Tensor, "B T"],
    target: Float[Tensor, "B T"],
    n_conditions: int = 1,
    mmd: MMDConfig | None = None,
) -> FlowLoss:
    """Loss of a predicted `velocity` at x_t; the n = B/C cells of each of the C conditions lie together.

    CFM is the mean squared error of the velocity; MMD² compares the end point x̂₁ reached from x_t with the
    target cells within one condition, and is the mean over conditions. With weight 0 it is only watched.
    """
    mmd = mmd or MMDConfig()
    velocity = velocity.float()
    cfm = (velocity - (target - noise)).square().mean()
    with torch.set_grad_enabled(torch.is_grad_enabled() and mmd.weight > 0):
        end = torch.addcmul(x_t, (1 - t).unsqueeze(-1), velocity)
        discrepancy = _mmd_by_condition(end, target, n_conditions, mmd)
    total = cfm + mmd.weight * discrepancy if mmd.weight else cfm
    return FlowLoss(total, cfm, discrepancy)


def _mmd_by_condition(end: Tensor, target: Tensor, n_conditions: int, mmd: MMDConfig) -> Tensor:
    if len(target) % n_conditions:
        raise ConfigError(
            f"batch of {len(target)} cells cannot be cut into {n_conditions} conditions of equal size; "
            "give every condition the same number of cells"
        )
    end, target = (cells.view(n_conditions, -1, cells.shape[-1]) for cells in (end, target))
    widths = median_bandwidths(target, mmd.scales) if mmd.bandwidths is None else mmd.bandwidths
    return mmd2(end, target, widths).mean()
