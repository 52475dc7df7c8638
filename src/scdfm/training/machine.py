"""What a fit asks of the machine is there, or the fit is refused before anything is written."""

from __future__ import annotations

import importlib.util
import os
import sys

import torch

from scdfm.config import TrainingConfig
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
        raise ConfigError(
            "training.accelerator 'gpu': this machine has none that torch can use; choose auto or cpu"
        )
    cores = os.cpu_count() or 1
    there, what = (gpus, "GPUs") if gpus and options.accelerator != "cpu" else (max(2, cores), "CPU cores")
    if options.devices != "auto" and options.devices > there:
        raise ConfigError(
            f"training.devices {options.devices}: this machine has {there} {what}; ask for no more"
        )
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
