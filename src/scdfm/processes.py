"""Which of several processes this is, and how they wait for each other.

`torchrun`, `srun` and job arrays start all of them and say so in the environment; Lightning's own launcher
(training.devices) starts the others once the first has begun its run.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from threadpoolctl import threadpool_limits

from scdfm.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from scdfm.config import TrainingConfig


@contextlib.contextmanager
def openmp_threads_kept() -> Iterator[None]:
    """Put the number of OpenMP threads back after numba's pool, which sets it for the whole process, torch included.

    Two threads where one was asked for make small tensor operations many times slower on a busy machine. The
    pool's runtime is loaded first: a limit holds for the runtimes that are there when it begins.
    """
    with contextlib.suppress(ImportError):  # a numba without OpenMP sets nothing
        importlib.import_module("numba.np.ufunc.omppool")
    with threadpool_limits(1, user_api="openmp"):
        yield


T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """The place of a process among those that share its work: number `rank` of `world`, `local_world` a node."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return self.world // self.local_world

    def mine(self, parts: Iterable[int]) -> list[int]:
        """Those of numbered parts that this process does: number i is done by rank i mod world."""
        return [part for part in parts if part % self.world == self.rank]


def place() -> Place:
    """The place of this process: of torchrun, of RANK and WORLD_SIZE as a job array sets them, or of srun; else alone."""
    if (started := launched()) is not None:
        return started
    names = ("RANK", "WORLD_SIZE")
    if not any(name in os.environ for name in names) and os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    texts = [os.environ.get(name, default) for name, default in zip(names, ("0", "1"), strict=True)]
    said = f"{names[0]} {texts[0]} of {names[1]} {texts[1]}"
    try:
        rank, world = map(int, texts)
    except ValueError:
        raise ConfigError(f"{said}: expected whole numbers; unset or correct them") from None
    if not 0 <= rank < world:
        raise ConfigError(f"{said}: expected 0 ≤ {names[0]} < {names[1]}; correct them")
    return Place(rank, world)


def launched() -> Place | None:
    """The place of this process under `torchrun`; None elsewhere."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Place(*(int(os.environ[name]) for name in names))


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks to the user."""
    started = launched()
    if started is not None:
        return started.rank == 0
    return all(os.environ.get(name, "0") == "0" for name in ("NODE_RANK", "LOCAL_RANK"))


def world_size(options: TrainingConfig) -> int:
    """How many processes fit together under `options`, here."""
    started = launched()
    if started is not None:
        return started.world
    if options.devices != "auto":
        return options.devices * options.nodes
    import torch

    return options.nodes * (1 if options.accelerator == "cpu" else max(1, torch.cuda.device_count()))


def require_one(command: str) -> None:
    """Refuse several processes of a command that one runs."""
    if (here := place()).world > 1:
        raise ConfigError(
            f"{command}: expected one process, found {here.world}; run it without torchrun, "
            "which fit, predict and screen can use"
        )


@contextlib.contextmanager
def together(cpu: bool, seconds: float) -> Iterator[None]:
    """Let the processes of `torchrun` find each other, unless they have; TrainingError where another one dies.

    cpu: whether tensors stay on the CPU (gloo; with a GPU, NCCL joins it). seconds: how long one waits for the others.
    """
    import torch

    started = launched()
    begins = started is not None and started.world > 1 and not torch.distributed.is_initialized()
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
        torch.distributed.all_reduce(torch.zeros(1))  # on the CPU whatever the device: barrier() would ask for one


def in_turn(make: Callable[[], T]) -> T:
    """What `make` gives: the first process calls it before the others, who find the files that it left."""
    made = make() if (first := is_first()) else None
    wait_for_all()
    return made if first else make()  # type: ignore[return-value]


def _lost_another(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _first_words(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0]
