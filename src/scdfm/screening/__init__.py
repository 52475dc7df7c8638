"""Screens in silico: every combination predicted, interactions scored, populations identified, experiments chosen."""

from scdfm.screening.identification import Candidates, Identification, identify
from scdfm.screening.interaction import interactions
from scdfm.screening.job import screen
from scdfm.screening.store import Screen

__all__ = ["Candidates", "Identification", "Screen", "identify", "interactions", "screen"]
