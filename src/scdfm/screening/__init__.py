"""Screens in silico: every combination predicted, interactions scored, populations identified, experiments chosen."""

from scdfm.screening.identification import Identification, identify
from scdfm.screening.interaction import interactions
from scdfm.screening.job import screen
from scdfm.screening.store import Screen

__all__ = ["Identification", "Screen", "identify", "interactions", "screen"]
