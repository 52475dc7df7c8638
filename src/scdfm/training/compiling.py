"""The layers of the velocity field as compiled code, where that pays and can be done."""

from __future__ import annotations

import warnings
from typing import Literal

import torch

from scdfm.model import VelocityField

BACKEND = "inductor"
VARIANTS = 64
"""Versions of a layer's code that may be kept: each layer, with and without gradients, for a few sizes."""


def compile_layers(field: VelocityField, mode: Literal["auto", "on", "off"], device: torch.device) -> bool:
    """Compile each layer of `field` in place, with `mode` "auto" on a GPU alone (docs/log.md); say if it is done.

    Layers compile one by one, at their first evaluation: one layer's code is small, and the whole field's would
    take minutes. Where nothing can be compiled (the CPU needs a C++ compiler, a GPU Triton) a warning says why, and the
    layers run as they are, with the same numbers to rounding.
    """
    if mode == "off" or (mode == "auto" and device.type != "cuda"):
        return False
    try:
        torch.compile(_probe, backend=BACKEND)(torch.ones(8, device=device))
    except Exception as error:  # whatever the compiler's tools raise: the fit can do without them
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(
            f"training.compile '{mode}': nothing can be compiled for the {device.type} here ({reason}); "
            "going on without, slower but with the same numbers",
            stacklevel=2,
        )
        return False
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    for layer in field.layers:
        layer.compile(backend=BACKEND)
    return True


def _probe(x: torch.Tensor) -> torch.Tensor:
    """Something to compile."""
    return x.exp() + 1
