"""The run folder: a trained model with its provenance, and the populations it predicts."""

from scdfm.run.run import Run

__all__ = ["Run"]
