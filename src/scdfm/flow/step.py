"""One training step (paper §3): a point of each cell's path, the velocity there, and its loss."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from scdfm.config import MMDConfig
from scdfm.flow.loss import FlowLoss, flow_loss
from scdfm.flow.path import Output, Start, interpolate


def step(
    output: Output,
    start: Start,
    source: Float[Tensor, "B T"],
    target: Float[Tensor, "B T"],
    t: Float[Tensor, " B"],
    n_conditions: int,
    mmd: MMDConfig,
) -> FlowLoss:
    """The loss of a network at the times t of the paths from `source` x₀ to `target` x₁, both in flow space.

    output: the network as a function of (t, x). The n = B/C cells of each of the C conditions lie together.
    """
    x_t, velocity = interpolate(source, target, t)
    predicted = start.velocity(output, x_t, t)
    return flow_loss(predicted, velocity, x_t, target, t, n_conditions, mmd)
