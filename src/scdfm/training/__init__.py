"""Fitting: Lightning's loop around the flow objective, resumable to the bit on CPU."""

from scdfm.training.fit import fit

__all__ = ["fit"]
