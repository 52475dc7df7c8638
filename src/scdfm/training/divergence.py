"""A fit whose numbers run away stops before anything that is no number is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scdfm.config import Config
from scdfm.errors import TrainingError
from scdfm.training.checkpoint import CHECKPOINTS, LAST, read_checkpoint


def diverged(what: str, out: Path, step: int, config: Config) -> TrainingError:
    """The error of a fit in `out` that found `what` at `step`."""
    options, kept = config.training, last_good(out)
    good = (
        "no checkpoint was written before"
        if kept is None
        else f"the checkpoint of step {kept} is good and stays"
    )
    clip = (
        f"lower training.clip_norm (now {options.clip_norm:g})"
        if options.clip_norm
        else "set training.clip_norm"
    )
    return TrainingError(
        f"step {step}: {what}; the fit diverged at training.learning_rate {options.learning_rate:g}, and in {out} {good}: "
        f"lower the learning rate or {clip}, and fit into another --out"
    )


def last_good(out: Path) -> int | None:
    """The step of the checkpoint that the run folder `out` holds for resuming."""
    last = out / CHECKPOINTS / LAST
    return int(read_checkpoint(last)["global_step"]) if last.is_file() else None


def require_finite(value: Any, out: Path, step: int, config: Config) -> None:
    """Refuse a tree of weights and optimiser moments that are not all finite."""
    for tensor in _tensors(value):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise diverged("weights are not finite", out, step, config)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for item in value for tensor in _tensors(item)]
