"""How far two populations are from each other: gene by gene, and as whole cells."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def wasserstein(x: Float[Tensor, "n T"], y: Float[Tensor, "m T"]) -> Float[Tensor, ""]:
    """Mean over genes of the 1-Wasserstein distance, between as many cells of `x` as of `y`: the first min(n, m).

    For populations of one size it is the mean distance of their sorted values; never below the error of the mean.
    """
    n = min(len(x), len(y))
    return (x[:n].sort(dim=0).values - y[:n].sort(dim=0).values).abs().mean()


def energy(x: Float[Tensor, "n T"], y: Float[Tensor, "m T"]) -> Float[Tensor, ""]:
    """Energy distance 2·E|x − y| − E|x − x'| − E|y − y'| of whole cells (Székely & Rizzo 2013), unbiased: 0 on average
    for two samples of one population, so a sample's may be negative. It sees means, spreads and what genes have in common.
    """
    between = torch.cdist(x, y).mean()
    within = [torch.cdist(z, z).sum() / max(len(z) * (len(z) - 1), 1) for z in (x, y)]
    return 2 * between - within[0] - within[1]
