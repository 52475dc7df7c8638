"""How far two populations are from each other: gene by gene, as whole cells, and by the paper's MMD (§3).

MMD² is unbiased, with several Gaussian kernels whose widths come from the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scdfm.errors import DataError


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


SCALES = (0.5, 1.0, 2.0, 4.0)
SMALLEST_SQUARE = 1e-12
"""Least median of squared distances: cells that are all equal still get a kernel."""


def median_bandwidths(y: Any, scales: Sequence[float] = SCALES) -> Float[Tensor, "*batch W"]:
    """Kernel widths σ of populations `y` [..., n, T]: σ² = scale · m.

    m is the (lower) median of the squared distances between different cells, at least 1e-12. No gradient
    flows. Raises DataError for fewer than 2 cells.
    """
    y = _population(torch.as_tensor(y), "y").detach()
    n = y.shape[-2]
    row, column = torch.triu_indices(n, n, offset=1, device=y.device)
    median = squared_distances(y, y)[..., row, column].median(dim=-1).values.clamp(min=SMALLEST_SQUARE)
    return (median.unsqueeze(-1) * torch.as_tensor(scales, dtype=y.dtype, device=y.device)).sqrt()


def mmd2(x: Any, y: Any, bandwidths: Any) -> Float[Tensor, "*batch"]:
    """MMD² of populations `x` [..., n, T] and `y` [..., m, T]; leading axes are separate comparisons.

    The U-statistic (mean over pairs of different cells; can be negative), averaged over the kernels
    exp(−D/(2σ²)) of `bandwidths` σ [..., W]. Differentiable; float32 at least, also under autocast.
    Raises DataError for fewer than 2 cells or for cells of different sizes.
    """
    x, y = _population(torch.as_tensor(x), "x"), _population(torch.as_tensor(y), "y")
    if x.shape[-1] != y.shape[-1]:
        raise DataError(f"MMD: x has {x.shape[-1]} genes and y {y.shape[-1]}; give both the same genes")
    width = torch.as_tensor(bandwidths, dtype=x.dtype, device=x.device)
    factor = -0.5 / width.square()
    # |a|² + |b|² − 2ab loses digits when the cells lie far from 0; distances don't see the shift.
    center = y.detach().mean(dim=-2, keepdim=True)
    x, y = x - center, y - center
    within_x = _kernel_sum(x, x, factor) / (x.shape[-2] * (x.shape[-2] - 1))
    within_y = _kernel_sum(y, y, factor) / (y.shape[-2] * (y.shape[-2] - 1))
    between = _kernel_sum(x, y, factor) / (x.shape[-2] * y.shape[-2])
    discrepancy: Tensor = (within_x + within_y - 2 * between) / width.shape[-1]
    return discrepancy


def squared_distances(x: Float[Tensor, "*batch n T"], y: Float[Tensor, "*batch m T"]) -> Float[Tensor, "*batch n m"]:
    """‖x_i − y_j‖² by one matrix product, never negative."""
    norms = x.square().sum(-1).unsqueeze(-1) + y.square().sum(-1).unsqueeze(-2)
    with torch.autocast(x.device.type, enabled=False):
        return (norms - 2 * (x @ y.mT)).clamp(min=0)


def _kernel_sum(x: Tensor, y: Tensor, factor: Tensor) -> Tensor:
    """Σ over kernels and pairs [...]; the pairs of a cell with itself are left out when `x` is `y`."""
    distances = squared_distances(x, y)
    total = torch.stack([torch.exp(distances * f[..., None, None]) for f in factor.unbind(-1)]).sum(0)
    if x is y:
        return total.sum((-2, -1)) - total.diagonal(dim1=-2, dim2=-1).sum(-1)
    return total.sum((-2, -1))


def _population(x: Tensor, name: str) -> Tensor:
    if x.ndim < 2 or x.shape[-2] < 2:
        raise DataError(f"MMD: expected at least 2 cells in {name} [..., cells, genes], found shape {list(x.shape)}")
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
