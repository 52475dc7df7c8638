"""The flow of the paper (§3): path and loss, one training step, the solver, and generation."""

from scdfm.flow.distance import energy, median_bandwidths, mmd2, squared_distances, wasserstein
from scdfm.flow.generate import Keep, gene_chunks, generate
from scdfm.flow.loss import FlowLoss, flow_loss, in_units, step
from scdfm.flow.path import Integrate, Noise, Output, Start, interpolate, paired, sample_normal, sample_time
from scdfm.flow.solve import solve

__all__ = [
    "FlowLoss",
    "Integrate",
    "Keep",
    "Noise",
    "Output",
    "Start",
    "energy",
    "flow_loss",
    "gene_chunks",
    "generate",
    "in_units",
    "interpolate",
    "median_bandwidths",
    "mmd2",
    "paired",
    "sample_normal",
    "sample_time",
    "solve",
    "squared_distances",
    "step",
    "wasserstein",
]
