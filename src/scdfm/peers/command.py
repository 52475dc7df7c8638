"""A command of anybody, run in a process of its own: one thread, no GPU, a hard stop, its seconds and memory told."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess  # nosec B404
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scdfm.jobs import duration
from scdfm.peers.task import LOG

HARD_STOP: Final = 2.0
"""A command is ended when it has used this many times its budget of CPU seconds."""
IDLE_STOP: Final = 5.0
IDLE: Final = 0.05
"""It is ended too when the clock shows this many budgets and it used less than this share of the clock: it hangs. On a
busy machine a command that works may wait for long."""
_THREADS: Final = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "NUMBA")
ONE_CORE: Final = {f"{name}_NUM_THREADS": "1" for name in _THREADS} | {"CUDA_VISIBLE_DEVICES": ""}
POLL: Final = 0.1


@dataclass(frozen=True)
class Ran:
    """What a command took: seconds of clock and of CPU, and the peak of its processes' resident memory, MiB.

    cpu and peak are None where the system does not tell. `reason` says why it failed; None: it ended well.
    """

    seconds: float
    cpu: float | None
    peak: float | None
    reason: str | None


def run_command(argv: Sequence[str], folder: Path, budget: float, environment: Mapping[str, str] | None = None) -> Ran:
    """Run `argv` with `folder` as its last argument; what it prints goes into log.txt there.

    budget: seconds of one core; where it takes far more (HARD_STOP, IDLE_STOP) it and its children are killed.
    environment: of the process, None that of this one; one thread and no GPU in any case.
    """
    begun = time.monotonic()
    given = dict(os.environ if environment is None else environment) | ONE_CORE
    with (folder / LOG).open("wb") as log:
        try:
            process = subprocess.Popen(  # noqa: S603  # nosec B603
                [*argv, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=given,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            return Ran(0.0, None, None, f"cannot be started ({error}); check the command")
        try:
            code, cpu, peak = _watched(process, budget)
        finally:
            _end(process)
    seconds = time.monotonic() - begun
    if code is None:
        used = "" if cpu is None else f" ({duration(cpu)} of CPU)"
        reason = f"ended after {duration(seconds)}{used}, far past its budget of {duration(budget)}"
    elif code:
        reason = f"ended with code {code}: {_last_line(folder / LOG)}"
    else:
        reason = None
    return Ran(seconds, cpu, peak, reason)


def _watched(process: subprocess.Popen[bytes], budget: float) -> tuple[int | None, float | None, float | None]:
    """The exit code (None: time is up), CPU seconds and peak memory (MiB) of a process and its children."""
    begun = time.monotonic()
    peak: float | None = None
    used: float | None = None
    while True:
        if (held := _held(process.pid)) is not None:
            used, peak = held[0], max(held[1], peak or 0.0)
        code, cpu = _ended(process)
        clock = time.monotonic() - begun
        if code is not None:
            return code, cpu, peak
        if (used or 0.0) > HARD_STOP * budget or (clock > IDLE_STOP * budget and (used or 0.0) < IDLE * clock):
            return None, used, peak
        time.sleep(POLL)


def _ended(process: subprocess.Popen[bytes]) -> tuple[int | None, float | None]:
    """The exit code of a process, None while it runs, and its CPU seconds where the system tells."""
    if not hasattr(os, "wait4"):  # Windows
        return process.poll(), None
    pid, status, used = os.wait4(process.pid, os.WNOHANG)
    if pid == 0:
        return None, None
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_utime + used.ru_stime


def _held(session: int) -> tuple[float, float] | None:
    """CPU seconds and resident memory, MiB, of the processes of a session; None where there is no /proc.

    What the system counts as a child's peak begins with that of the process that started it.
    """
    if not Path("/proc/self/stat").is_file():
        return None
    ticks = pages = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += sum(map(int, fields[11:15]))
                pages += int(fields[21])
    return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a command: itself, and its children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)


def _last_line(path: Path) -> str:
    """The last words of a log."""
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else "it printed nothing"


@contextlib.contextmanager
def measured() -> Iterator[Callable[[], dict[str, Any]]]:
    """What a block takes in this process: call what is yielded after it. Peak memory where the system can reset it."""
    reset = False
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        reset = True
    begun, used = time.monotonic(), time.process_time()

    def usage() -> dict[str, Any]:
        taken = {"seconds": round(time.monotonic() - begun, 1), "cpu": round(time.process_time() - used, 1)}
        return taken | ({"peak_mib": _peak()} if reset else {})

    yield usage


def _peak() -> int | None:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next((round(int(line.split()[1]) / 1024) for line in lines if line.startswith("VmHWM")), None)
