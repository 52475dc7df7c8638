"""The published experiments, end to end: data, splits, fits, predictions, scores, and a table beside the published one."""

from scdfm.reproduction.check import TOLERANCE, Check
from scdfm.reproduction.experiments import EXPERIMENTS, VARIANTS, Experiment
from scdfm.reproduction.reproduce import Reproduction, reproduce

__all__ = ["EXPERIMENTS", "TOLERANCE", "VARIANTS", "Check", "Experiment", "Reproduction", "reproduce"]
