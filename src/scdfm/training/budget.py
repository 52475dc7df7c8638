"""As many steps as fit into a time: a short fit tells what a step and a validation cost on this machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from scdfm.config import Config
from scdfm.errors import ConfigError

PROBE_STEPS = 12
WARM_UP = 4
"""First steps that are not timed: they compile, and fill caches."""
VALIDATIONS_AFTER = 4
"""Judging the trained weights takes as long as about so many validations."""


class Stopwatch(Callback):
    """When each step of a fit ended, and how long its validation took (seconds)."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.steps: list[float] = []
        self.validation = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *rest: Any) -> None:
        """Note the time."""
        self.steps.append(time.perf_counter())

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begin to time the validation."""
        self.validation = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """End to time it."""
        self.validation = time.perf_counter() - self.validation

    @property
    def step(self) -> float:
        """Seconds of a step."""
        timed = self.steps[WARM_UP - 1 :]
        return (timed[-1] - timed[0]) / (len(timed) - 1)

    @property
    def preparation(self) -> float:
        """Seconds from the beginning to the first step's end."""
        return self.steps[0] - self.begin


def steps_within(seconds: float, config: Config, fit: Callable[[Config, Path, Stopwatch], object]) -> int:
    """How many steps of `config` take about so many seconds, preparation, validations and the probe's own time included.

    fit: trains a run of a config in a folder, timed. Raises ConfigError where not even one step fits.
    """
    probe = config.updated(
        {"training": {"max_steps": PROBE_STEPS, "validate_every": PROBE_STEPS, "warmup_steps": 0}}
    )
    with tempfile.TemporaryDirectory(prefix="scdfm-probe-") as folder:
        watch = Stopwatch()
        fit(probe, Path(folder), watch)
        spent = time.perf_counter() - watch.begin
    left = seconds - spent - watch.preparation - VALIDATIONS_AFTER * watch.validation
    each = watch.step + watch.validation / config.training.validate_every
    steps = int(left / each)
    if steps < 1:
        needed = seconds - left + each
        raise ConfigError(
            f"time {seconds:g} s: preparing, probing and judging take {needed:.0f} s here before a single step; give more "
            "time, or take the preset instant, which trains nothing"
        )
    return steps
