"""What a fit asks of the machine: devices and memory, or it is refused before anything is written; steps in a given time.

A short fit tells what a step and a validation cost here.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from scdfm.config import Config, TrainingConfig
from scdfm.errors import ConfigError
from scdfm.processes import launched, world_size
from scdfm.run.trained import build_field
from scdfm.training.inputs import Inputs

# Weights, their gradients, the optimiser's two moments and the average are of one size each.
COPIES = 5
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}


def require_machine(options: TrainingConfig) -> None:
    """Raise ConfigError where accelerator, devices or logger of `options` are not on this machine."""
    packages = PACKAGES.get(options.logger, ())
    if packages and not any(map(importlib.util.find_spec, packages)):
        raise ConfigError(
            f"training.logger '{options.logger}' is not installed; install scdfm[{options.logger}], or choose csv"
        )
    gpus = torch.cuda.device_count() or int(torch.backends.mps.is_available())
    if options.accelerator == "gpu" and not gpus:
        raise ConfigError("training.accelerator 'gpu': this machine has none that torch can use; choose auto or cpu")
    cores = os.cpu_count() or 1
    there, what = (gpus, "GPUs") if gpus and options.accelerator != "cpu" else (max(2, cores), "CPU cores")
    if options.devices != "auto" and options.devices > there:
        raise ConfigError(f"training.devices {options.devices}: this machine has {there} {what}; ask for no more")
    if launched() is None and is_interactive() and (n := world_size(options)) > 1:
        raise ConfigError(
            f"training.devices {options.devices}: a notebook or console cannot start the {n} processes; expected 1 here: "
            "run `scdfm fit` or a script for more"
        )


def is_interactive() -> bool:
    """Whether this is a console or a notebook, which Lightning starts no further processes from."""
    return hasattr(sys, "ps1")


def require_memory(inputs: Inputs) -> None:
    """Raise ConfigError where training the model of `inputs` exceeds the machine's memory."""
    config = inputs.manifest.config
    with torch.device("meta"):
        blank = build_field(config, inputs.encoder)
    parameters = sum(parameter.numel() for parameter in blank.parameters())
    needed = 4 * COPIES * parameters
    there = memory()
    if there is not None and needed > there:
        raise ConfigError(
            f"a model of {parameters:,} parameters needs about {needed / 1e9:,.0f} GB to train, this machine has "
            f"{there / 1e9:,.0f} GB; choose a smaller model.width or model.layers"
        )


def memory() -> int | None:
    """Bytes of memory of this machine; None where its system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no such call, as on Windows, or no such name
        return None


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
    probe = config.updated({"training": {"max_steps": PROBE_STEPS, "validate_every": PROBE_STEPS, "warmup_steps": 0}})
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
