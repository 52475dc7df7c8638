"""The flow: path and loss, the MMD between populations, the solver, and generation."""

from scdfm.flow.generate import gene_chunks, generate
from scdfm.flow.matching import FlowLoss, flow_loss, in_units, interpolate, sample_source, sample_time
from scdfm.flow.mmd import median_bandwidths, mmd2, squared_distances
from scdfm.flow.origin import Frame, Origin, gaussian_velocity, sample_normal, straightened, uncensored
from scdfm.flow.shrinkage import Shrinkage
from scdfm.flow.solve import solve
from scdfm.flow.wasserstein import wasserstein

__all__ = [
    "FlowLoss",
    "Frame",
    "Origin",
    "Shrinkage",
    "flow_loss",
    "gaussian_velocity",
    "gene_chunks",
    "generate",
    "in_units",
    "interpolate",
    "median_bandwidths",
    "mmd2",
    "sample_normal",
    "sample_source",
    "sample_time",
    "solve",
    "squared_distances",
    "straightened",
    "uncensored",
    "wasserstein",
]
