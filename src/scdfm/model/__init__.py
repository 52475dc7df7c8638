"""The velocity field: PAD-Transformer and the two other published backbones."""

from scdfm.model.velocity import Context, VelocityField

__all__ = ["Context", "VelocityField"]
