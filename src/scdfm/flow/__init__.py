"""The flow: path and loss, the MMD between populations, the solver, and generation."""

from scdfm.flow.generate import gene_chunks, generate
from scdfm.flow.matching import FlowLoss, flow_loss, interpolate, sample_source, sample_time
from scdfm.flow.mmd import median_bandwidths, mmd2, squared_distances
from scdfm.flow.solve import solve

__all__ = [
    "FlowLoss",
    "flow_loss",
    "gene_chunks",
    "generate",
    "interpolate",
    "median_bandwidths",
    "mmd2",
    "sample_source",
    "sample_time",
    "solve",
    "squared_distances",
]
