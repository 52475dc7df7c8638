"""How far the genes of one population are from those of another: means and spreads together, gene by gene."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def wasserstein(x: Float[Tensor, "n T"], y: Float[Tensor, "m T"]) -> Float[Tensor, ""]:
    """Mean over genes of the 1-Wasserstein distance, between as many cells of `x` as of `y`: the first min(n, m).

    For populations of one size it is the mean distance of their sorted values; never below the error of the mean.
    """
    n = min(len(x), len(y))
    return (x[:n].sort(dim=0).values - y[:n].sort(dim=0).values).abs().mean()
