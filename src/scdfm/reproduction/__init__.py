"""The published experiments, end to end: data, splits, fits, predictions, scores, and a table beside the published one."""

from scdfm.reproduction.experiments import EXPERIMENTS, VARIANTS, Experiment
from scdfm.reproduction.reproduce import TOLERANCE, Check, Reproduction, reproduce

__all__ = ["EXPERIMENTS", "TOLERANCE", "VARIANTS", "Check", "Experiment", "Reproduction", "reproduce"]
