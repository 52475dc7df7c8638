"""The exponential moving average of the weights, which validates and predicts."""

from __future__ import annotations

import torch
from lightning.pytorch.callbacks import WeightAveraging


class AveragedWeights(WeightAveraging):
    """θ̄ ← d·θ̄ + (1 − d)·θ after each step, with d = min(decay, (1 + n) / (10 + n)) after n updates.

    The ramp lets a short fit forget its random start.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: list[torch.Tensor], current: list[torch.Tensor], n: torch.Tensor | int) -> None:
            ramped = min(decay, (1 + int(n)) / (10 + int(n)))
            torch._foreach_lerp_(averaged, current, 1 - ramped)

        super().__init__(use_buffers=False, multi_avg_fn=average)
