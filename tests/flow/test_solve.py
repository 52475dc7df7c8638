"""Solvers on the Gaussian flow: end points, orders, number of evaluations."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from gaussian import GaussianFlow
from torch import Tensor

from scdfm.errors import ConfigError
from scdfm.flow import solve

MEAN = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
FLOW = GaussianFlow(MEAN, scale=0.3)
NOISE = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def error(flow: GaussianFlow, method: str, steps: int) -> float:
    return float((solve(flow.velocity, NOISE, method, steps) - flow.end(NOISE)).abs().max())


@pytest.mark.parametrize(
    ("path", "method", "order"),
    [
        ("round", "euler", 1),
        ("round", "midpoint", 2),
        ("round", "rk4", 4),
        ("straight", "euler", 1),
        # On straight Gaussian paths the midpoint rule's leading error cancels.
        ("straight", "midpoint", 3),
        ("straight", "rk4", 4),
    ],
)
def test_orders(path: Literal["straight", "round"], method: str, order: int) -> None:
    """Twice the steps, 2^order times less error."""
    flow = GaussianFlow(MEAN, scale=0.3, path=path)
    seen = math.log2(error(flow, method, 80) / error(flow, method, 160))
    assert seen == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("method", "largest"), [("euler", 0.05), ("midpoint", 1e-4), ("rk4", 1e-6)])
def test_end_point(method: str, largest: float) -> None:
    assert error(FLOW, method, 40) < largest


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_adaptive_solver_keeps_its_tolerance_and_stays_in_time(tolerance: float) -> None:
    times: list[float] = []

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        times.append(float(t))
        return FLOW.velocity(t, x)

    end = solve(velocity, NOISE, "dopri5", tolerance=tolerance)
    assert (end - FLOW.end(NOISE)).abs().max() < 20 * tolerance
    assert 0 <= min(times) <= max(times) <= 1


@pytest.mark.parametrize(("method", "per_step"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
@pytest.mark.parametrize("steps", [1, 3, 19, 49, 100])
def test_no_evaluation_is_wasted(method: str, per_step: int, steps: int) -> None:
    times: list[float] = []

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        times.append(float(t))
        return torch.zeros_like(x)

    assert torch.equal(solve(velocity, NOISE.float(), method, steps), NOISE.float())
    assert len(times) == steps * per_step
    assert 0 <= min(times) <= max(times) <= 1


def test_a_constant_velocity_is_followed_exactly() -> None:
    for method in ("euler", "midpoint", "rk4", "dopri5"):
        end = solve(lambda t, x: torch.ones_like(x), NOISE, method, 4)
        torch.testing.assert_close(end, NOISE + 1)


def test_gradients_flow_through_the_solver() -> None:
    speed = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    solve(lambda t, x: speed * torch.ones_like(x), NOISE, "rk4", 3).sum().backward()
    assert speed.grad is not None
    assert speed.grad.item() == pytest.approx(NOISE.numel())


def test_unknown_solver_and_no_steps_are_told() -> None:
    with pytest.raises(ConfigError, match="solver 'magic': expected one of euler, midpoint, rk4, dopri5"):
        solve(FLOW.velocity, NOISE, "magic")
    with pytest.raises(ConfigError, match="at least 1 step, found 0"):
        solve(FLOW.velocity, NOISE, "euler", 0)
