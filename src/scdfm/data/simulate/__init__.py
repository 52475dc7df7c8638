"""Simulated screens whose truth is known: combinations, doses, drugs with features, cell types."""

from scdfm.data.simulate.designs import (
    INTERACTIONS,
    hill,
    simulate,
    simulate_cell_types,
    simulate_doses,
    simulate_drugs,
)
from scdfm.data.simulate.screen import TARGET_SUM

__all__ = [
    "INTERACTIONS", "TARGET_SUM", "hill", "simulate", "simulate_cell_types", "simulate_doses", "simulate_drugs",
]  # fmt: skip
