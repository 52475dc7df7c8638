"""From noise at t = 0 to cells at t = 1: a thin wrapper of torchdiffeq's solvers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torchdiffeq import odeint

from scdfm.errors import ConfigError

Solver = Literal["euler", "midpoint", "rk4", "dopri5"]
EVALUATIONS: dict[str, int] = {"euler": 1, "midpoint": 2, "rk4": 4}
"""Evaluations of the velocity per step."""


def solve(
    velocity: Callable[[Float[Tensor, ""], Tensor], Tensor],
    noise: Float[Tensor, "*shape"],
    method: str = "rk4",
    steps: int = 20,
    tolerance: float = 1e-4,
) -> Float[Tensor, "*shape"]:
    """x(1) of dx/dt = velocity(t, x), x(0) = noise.

    "euler", "midpoint" and "rk4" (the 3/8 rule) take `steps` equal steps: orders 1, 2 and 4. "dopri5" chooses
    its steps so that relative and absolute errors stay near `tolerance`. Raises ConfigError for another
    method or fewer than 1 step.
    """
    ends = torch.tensor([0.0, 1.0], dtype=noise.dtype, device=noise.device)
    if method == "dopri5":
        # A step must end at t = 1: stepping over it would ask for the velocity where there is none.
        options = {"step_t": ends[1:]}
        path = odeint(velocity, noise, ends, method=method, rtol=tolerance, atol=tolerance, options=options)
    elif method not in EVALUATIONS:
        raise ConfigError(f"solver '{method}': expected one of {', '.join((*EVALUATIONS, 'dopri5'))}")
    elif steps < 1:
        raise ConfigError(f"solver '{method}': expected at least 1 step, found {steps}")
    else:
        # The grid is given, and only its end returned: a step size would be rounded into one step too many.
        grid = torch.linspace(0.0, 1.0, steps + 1, dtype=noise.dtype, device=noise.device)
        path = odeint(velocity, noise, ends, method=method, options={"grid_constructor": lambda *_: grid})
    end: Tensor = path[-1]
    return end
