"""Flows known in closed form: from N(0, I) to N(μ, s²I), independent ends, x_t = a(t)·x₀ + b(t)·x₁.

x_t ~ N(bμ, σ_t²) with σ_t² = a² + b²s²; the velocity of the population is
v(x, t) = b'μ + (a·a' + s²·b·b')/σ_t² · (x − bμ), and it carries x₀ to bμ + σ_t·x₀.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianFlow:
    mean: Tensor
    """μ, broadcast against x."""
    scale: float
    """s."""
    path: Literal["straight", "round"] = "straight"
    """straight: a = 1 − t, b = t, the path of training; round: cosine and sine of πt/2."""

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        if self.path == "straight":
            a, b, slope_a, slope_b = 1 - t, t, -torch.ones_like(t), torch.ones_like(t)
        else:
            a, b = torch.cos(math.pi / 2 * t), torch.sin(math.pi / 2 * t)
            slope_a, slope_b = -math.pi / 2 * b, math.pi / 2 * a
        growth = (a * slope_a + self.scale**2 * b * slope_b) / (a**2 + self.scale**2 * b**2)
        return slope_b * self.mean + growth * (x - b * self.mean)

    def end(self, noise: Tensor) -> Tensor:
        """x(1) of the path that starts in `noise`."""
        return self.mean + self.scale * noise
