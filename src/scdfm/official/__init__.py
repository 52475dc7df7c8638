"""Parameters and checkpoints of the official code (AI4Science-WestlakeU/scDFM)."""

from scdfm.official.convert import Conversion, convert
from scdfm.official.parameters import own_state, velocity_field

__all__ = ["Conversion", "convert", "own_state", "velocity_field"]
