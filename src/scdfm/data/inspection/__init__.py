"""What a file of cells holds, and the `scdfm fit` line that fits it."""

from scdfm.data.inspection.inspection import Inspection, inspect

__all__ = ["Inspection", "inspect"]
