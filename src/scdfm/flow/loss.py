"""One training step and its loss (paper §3): L = L_CFM + γ·MMD²(x̂₁, x₁), x̂₁ = x_t + (1 − t)·v."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from scdfm.config import MMDConfig
from scdfm.errors import ConfigError
from scdfm.flow.distance import median_bandwidths, mmd2
from scdfm.flow.path import Output, Start, interpolate


class FlowLoss(NamedTuple):
    """The loss of a batch, and its two terms before weighting."""

    total: Float[Tensor, ""]
    cfm: Float[Tensor, ""]
    mmd: Float[Tensor, ""]


def in_units(mmd: MMDConfig, size: float) -> MMDConfig:
    """The options for cells that are measured in units of `size` log1p."""
    if mmd.bandwidths is None:
        return mmd
    return mmd.model_copy(update={"bandwidths": tuple(width / size for width in mmd.bandwidths)})


def flow_loss(
    predicted: Float[Tensor, "B T"],
    velocity: Float[Tensor, "B T"],
    x_t: Float[Tensor, "B T"],
    target: Float[Tensor, "B T"],
    t: Float[Tensor, " B"],
    n_conditions: int = 1,
    mmd: MMDConfig | None = None,
    real: Float[Tensor, "R T"] | None = None,
) -> FlowLoss:
    """Loss of a `predicted` velocity v at x_t; the n = B/C cells of each of the C conditions lie together.

    L_CFM is the mean squared error of v beside the path's own `velocity` u = x₁ − x₀. MMD² compares the end point
    x̂₁ = x_t + (1 − t)·v with the `real` cells (by default `target`, the x₁) within one condition, and is the mean over
    conditions. With weight 0 it is only watched.
    """
    mmd = mmd or MMDConfig()
    predicted = predicted.float()
    cfm = (predicted - velocity).square().mean()
    with torch.set_grad_enabled(torch.is_grad_enabled() and mmd.weight > 0):
        end = torch.addcmul(x_t, (1 - t).unsqueeze(-1), predicted)
        discrepancy = _mmd_by_condition(end, target if real is None else real, n_conditions, mmd)
    total = cfm + mmd.weight * discrepancy if mmd.weight else cfm
    return FlowLoss(total, cfm, discrepancy)


def _mmd_by_condition(end: Tensor, real: Tensor, n_conditions: int, mmd: MMDConfig) -> Tensor:
    if len(end) % n_conditions or len(real) % n_conditions:
        raise ConfigError(
            f"batch of {len(end)} cells cannot be cut into {n_conditions} conditions of equal size; "
            "give every condition the same number of cells"
        )
    end, real = (cells.view(n_conditions, -1, cells.shape[-1]) for cells in (end, real))
    widths = median_bandwidths(real, mmd.scales) if mmd.bandwidths is None else mmd.bandwidths
    return mmd2(end, real, widths).mean()


def step(
    output: Output,
    start: Start,
    source: Float[Tensor, "D T"],
    target: Float[Tensor, "D T"],
    t: Float[Tensor, " B"],
    n_conditions: int,
    mmd: MMDConfig,
) -> FlowLoss:
    """The loss of a network at the times t of the paths from `source` x₀ to `target` x₁, both in flow space.

    output: the network as a function of (t, x). The pairs of each of the C conditions lie together: D/C were drawn, of
    which the network sees the first n = B/C. The MMD compares with all cells drawn.
    """
    begin, end = (first(ends, len(t) // n_conditions, n_conditions) for ends in (source, target))
    x_t, velocity = interpolate(begin, end, t)
    predicted = start.velocity(output, x_t, t)
    return flow_loss(predicted, velocity, x_t, end, t, n_conditions, mmd, real=target)


def first(cells: Float[Tensor, "D T"], n: int, n_conditions: int) -> Float[Tensor, "B T"]:
    """The first n cells of each condition."""
    return cells.reshape(n_conditions, -1, cells.shape[-1])[:, :n].reshape(-1, cells.shape[-1])
