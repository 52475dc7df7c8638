"""float32 stays as near to float64 as the theory of rounding says it must.

u = 2⁻²⁴ is half a unit in the last place, γ_n = n·u / (1 − n·u) bounds what n roundings in a row do to a product or
a sum of non-negative terms, in any order (Higham, Accuracy and Stability of Numerical Algorithms, chapter 3).
"""

from __future__ import annotations

import pytest
import torch
from gaussian import GaussianFlow
from torch import Tensor

from scdfm.config import MMDConfig
from scdfm.flow import flow_loss, interpolate, mmd2, solve, squared_distances

U = 2.0**-24
N, T = 24, 300


def gamma(n: int) -> float:
    return n * U / (1 - n * U)


@pytest.fixture(scope="module")
def cells() -> dict[str, Tensor]:
    """Noise, cells of log1p expression with silent genes, a velocity that is nearly right, times; in float32."""
    rng = torch.Generator().manual_seed(0)
    target = torch.relu(torch.randn(N, T, generator=rng) * 2 + 1)
    noise = torch.randn(N, T, generator=rng)
    velocity = target - noise + 0.3 * torch.randn(N, T, generator=rng)
    return {"noise": noise, "target": target, "velocity": velocity, "t": torch.rand(N, generator=rng)}


def test_interpolation(cells):
    """x₀ + t·(x₁ − x₀) rounds three times."""
    single, _ = interpolate(cells["noise"], cells["target"], cells["t"])
    noise, target, t = (cells[name].double() for name in ("noise", "target", "t"))
    exact = noise + t[:, None] * (target - noise)
    bound = gamma(3) * (noise.abs() + t[:, None] * (target - noise).abs())
    difference = (single.double() - exact).abs()
    assert (difference <= bound).all()
    assert difference.max() > 0


def test_flow_matching_loss(cells):
    """Two roundings make each difference e, and γ of as many as there are entries sums the squares."""
    x_t, own = interpolate(cells["noise"], cells["target"], cells["t"])
    single = flow_loss(cells["velocity"], own, x_t, cells["target"], cells["t"], 1, MMDConfig(weight=0.0))
    noise, target, velocity = (cells[name].double() for name in ("noise", "target", "velocity"))
    e = velocity - (target - noise)
    of_one = gamma(2) * ((target - noise).abs() + e.abs())
    squares = e.square().mean()
    bound = (2 * e.abs() * of_one + of_one.square()).mean() + gamma(N * T + 2) * squares
    assert abs(single.cfm.double() - squares) <= bound


def test_squared_distances(cells):
    """‖x‖² + ‖y‖² − 2xy: T products each, and what cancels does not make the rounding smaller."""
    x, y = cells["target"], cells["noise"]
    exact = torch.cdist(x.double(), y.double()).square()
    bound = gamma(T + 3) * (x.double().norm(dim=1)[:, None] + y.double().norm(dim=1)[None, :]).square()
    assert ((squared_distances(x, y).double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_mmd(cells, shift):
    """A kernel exp(−D/(2σ²)) errs by at most δD/(2σ²) and its own eight roundings; four means of kernels are added.

    δD is that of the centred cells, wherever they lie, so a shift changes nothing (but for its own rounding).
    """
    x, y = (cells[name] + shift for name in ("target", "noise"))
    widths = torch.tensor([8.0, 16.0, 32.0])
    exact = mmd2(x.double(), y.double(), widths.double())
    centre = y.double().mean(0)
    size = (x.double() - centre).norm(dim=1).max() + (y.double() - centre).norm(dim=1).max()
    steepest = 0.5 / widths.min().double().square()
    bound = 4 * (gamma(T + 6) * size**2 * steepest + gamma(8) + gamma(len(widths) * N * N))
    assert abs(mmd2(x, y, widths).double() - exact) <= bound


@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_sampling(method):
    """Each step rounds its state and velocity; the flow, of Lipschitz constant L < 2, lets what there is grow by e^L.

    A velocity is 12 roundings of numbers no larger than `size`, a step of the rule adds at most 8 of its own.
    """
    flow = GaussianFlow(torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64), scale=0.3)
    noise = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    steps, size = 20, 2 * (noise.abs().max().item() + 2.0)
    exact = solve(flow.velocity, noise.double(), method, steps)
    single = solve(GaussianFlow(flow.mean.float(), flow.scale).velocity, noise, method, steps)
    bound = torch.e**2 * steps * (gamma(8) * size + gamma(12) * 2 * size / steps)
    difference = (single.double() - exact).abs().max()
    assert 0 < difference <= bound
