"""Which of several processes this is, and how they wait for each other.

`torchrun` starts all of them and says so in the environment; Lightning's own launcher (training.devices) starts the
others once the first has begun its run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from scdfm.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from scdfm.config import TrainingConfig


@dataclass(frozen=True)
class Place:
    """The place of a process that `torchrun` started: number `rank` of `world`, `local_world` on each of `nodes`."""

    rank: int
    world: int
    local_rank: int
    local_world: int

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return self.world // self.local_world


def launched() -> Place | None:
    """The place of this process under `torchrun`; None elsewhere."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Place(*(int(os.environ[name]) for name in names))


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks to the user."""
    place = launched()
    if place is not None:
        return place.rank == 0
    return all(os.environ.get(name, "0") == "0" for name in ("NODE_RANK", "LOCAL_RANK"))


def world_size(options: TrainingConfig) -> int:
    """How many processes fit together under `options`, here."""
    place = launched()
    if place is not None:
        return place.world
    if options.devices != "auto":
        return options.devices * options.nodes
    import torch

    return options.nodes * (1 if options.accelerator == "cpu" else max(1, torch.cuda.device_count()))


def require_one(command: str) -> None:
    """Refuse `torchrun` around a command that one process runs."""
    place = launched()
    if place is not None and place.world > 1:
        raise ConfigError(
            f"{command}: expected one process, found {place.world}; run it without torchrun, "
            "which fit and predict can use"
        )


@contextlib.contextmanager
def together(cpu: bool, seconds: float) -> Iterator[None]:
    """Let the processes of `torchrun` find each other, unless they have; TrainingError where another one dies.

    cpu: whether tensors stay on the CPU (gloo; with a GPU, NCCL joins it). seconds: how long one waits for the others.
    """
    import torch

    place = launched()
    begins = place is not None and place.world > 1 and not torch.distributed.is_initialized()
    try:
        if begins:
            torch.distributed.init_process_group(
                "gloo" if cpu else "cpu:gloo,cuda:nccl", timeout=timedelta(seconds=seconds)
            )
        yield
    except RuntimeError as error:
        if not _lost_another(error):
            raise
        raise TrainingError(
            f"another process of this job has stopped or cannot be reached ({_first_words(error)}); its own "
            "message says why: when that is mended, repeat the command with --resume"
        ) from error
    finally:
        if begins and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def wait_for_all() -> None:
    """Return when every process of the job has come here; at once where there is one."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(
            torch.zeros(1)
        )  # on the CPU whatever the device: barrier() would ask for one


def _lost_another(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _first_words(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]
