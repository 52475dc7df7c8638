"""Processes forked from one that has imported what commands need: they start at once, and no shape is checked in them."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["scdfm.cli", "scdfm.benchmarking", "scdfm.training", "lightning", "scanpy", "torchdiffeq"]
)


def forked(target: Callable[..., Any], *given: Any, folder: Path, log: Path) -> ForkServerProcess:
    """`target(*given)` in `folder`, in a process group of its own and on one thread; what it says is added to `log`."""
    process = FORKS.Process(target=_alone, args=(target, given, folder, log))
    process.start()
    return process


def scdfm(arguments: Sequence[str]) -> None:
    """`scdfm ARGUMENTS`."""
    sys.argv = ["scdfm", *arguments]
    from scdfm.cli import main

    main()


def program(path: Path, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
    """`python PATH ARGUMENTS`, with `environment` added to that of the process."""
    os.environ.update(environment or {})
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


def _alone(target: Callable[..., Any], given: tuple[Any, ...], folder: Path, log: Path) -> None:
    import torch

    os.setsid()
    torch.set_num_threads(1)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.chdir(folder)
    target(*given)
