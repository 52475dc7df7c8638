"""Energy distance of two populations: how far one is from the other as a whole, means and spreads together."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from scdfm.flow.mmd import squared_distances


def energy_distance(x: Float[Tensor, "n T"], y: Float[Tensor, "m T"]) -> Float[Tensor, ""]:
    """2E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖ (Székely & Rizzo 2013), x' and y' other cells of the same population.

    Unbiased: 0 on average for two samples of one population. A population of one cell has no other: its term is 0.
    """
    center = y.mean(dim=-2, keepdim=True)
    x, y = x - center, y - center
    between: Tensor = squared_distances(x, y).sqrt().mean()
    return 2 * between - _within(x) - _within(y)


def _within(x: Tensor) -> Tensor:
    """Mean distance between different cells."""
    distances = squared_distances(x, x).sqrt()
    return (distances.sum() - distances.diagonal().sum()) / max(len(x) * (len(x) - 1), 1)
