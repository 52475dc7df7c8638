"""Simulated screens whose truth is known: combinations, doses, drugs with features, cell types."""

from scdfm.data.simulate.cell_types import simulate_cell_types
from scdfm.data.simulate.combinations import INTERACTIONS, simulate
from scdfm.data.simulate.doses import hill, simulate_doses
from scdfm.data.simulate.drugs import simulate_drugs
from scdfm.data.simulate.screen import TARGET_SUM

__all__ = [
    "INTERACTIONS",
    "TARGET_SUM",
    "hill",
    "simulate",
    "simulate_cell_types",
    "simulate_doses",
    "simulate_drugs",
]
