"""Long work: begun with a record of what was asked, done part by part by any number of processes, resumed where it stopped.

A part is there whole or not at all, so what is missing is what is left to do. Predictions, screens, benchmarks and
reproductions work so; which process does what says `processes.place`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scdfm.errors import RunError
from scdfm.files import new_folder, read_text, write_json
from scdfm.processes import Place

PATIENCE: Final = 600.0
"""Seconds that the other processes wait for the first to begin the folder."""
PROBE_SECONDS: Final = 4.0
"""A probe grows until one batch takes this long..."""
PROBE_SHARE: Final = 0.04
"""... or it holds this share of the work."""


def begun(folder: str | Path, name: str, record: Mapping[str, Any], resume: bool, place: Place | None = None) -> Path:
    """A new folder that keeps `record` in the JSON file `name`, or with `resume` the one that was begun with that record.

    A folder without the file begins anew. Of several processes the first begins it, and the others wait for that.
    RunError where the record found says something else, key by key, or where the first does not come.
    """
    folder, place = Path(folder), place or Place()
    if place.rank:
        _wait(folder / name, place.rank)
    elif not resume or not (folder / name).is_file():
        write_json(new_folder(folder) / name, dict(record))
        return folder
    try:
        recorded = dict(json.loads(read_text(folder / name)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{folder / name} cannot be read as JSON ({error}); choose another --out") from error
    if differing := [
        _difference(key, recorded.get(key), value) for key, value in record.items() if recorded.get(key) != value
    ]:
        raise RunError(
            f"--resume {folder}: this folder was started with other {' and '.join(differing)}; "
            "repeat the options and data of its start, or choose another --out"
        )
    return folder


def part_size(path: Path) -> int | None:
    """How many items a part has of the work whose record is the JSON file `path`, by its key "shard"; None where no such
    record can be read, of which `begun` then says what differs."""
    try:
        size = json.loads(read_text(path))["shard"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return size if isinstance(size, int) and size > 0 else None


def _difference(key: str, before: Any, now: Any) -> str:
    """The name of what differs, with both values where they are numbers."""
    numbers = isinstance(before, int | float) and isinstance(now, int | float)
    return f"{key} ({before}, not {now})" if numbers else key


def _wait(path: Path, rank: int) -> None:
    start = time.monotonic()
    while not path.is_file():
        if time.monotonic() - start > PATIENCE:
            raise RunError(
                f"rank {rank} waited {PATIENCE:.0f} s for rank 0 to write {path}; start rank 0 with the same --out"
            )
        time.sleep(0.2)


@dataclass(frozen=True)
class Parts:
    """Conditions `names`, `size` of them in each part; part i is the file `pattern` (such as `{:06d}.h5ad`) in `folder`."""

    folder: Path
    names: tuple[str, ...]
    size: int
    pattern: str

    def __len__(self) -> int:
        return -(-len(self.names) // self.size)

    def conditions(self, part: int) -> tuple[str, ...]:
        """The conditions of a part."""
        return self.names[part * self.size : (part + 1) * self.size]

    def path(self, part: int) -> Path:
        """Where a part is, or will be."""
        return self.folder / self.pattern.format(part)

    def missing(self) -> list[int]:
        """The parts that are not there yet."""
        return [part for part in range(len(self)) if not self.path(part).is_file()]


class TimeLeft:
    """How long the items of a list will still take, by what those of the same kind took."""

    def __init__(self, kinds: Iterable[str]) -> None:
        self.left = list(kinds)
        self.n = len(self.left)
        self.seconds: dict[str, list[float]] = {}

    @property
    def done(self) -> int:
        """Number of items that are done."""
        return self.n - len(self.left)

    def finish(self, seconds: float | None) -> None:
        """The next item is done; `seconds` None: it was done before, which tells nothing."""
        kind = self.left.pop(0)
        if seconds is not None:
            self.seconds.setdefault(kind, []).append(seconds)

    def remaining(self) -> float | None:
        """Seconds left; None at the end, and while nothing is known of some kind to come."""
        if not self.left or not all(kind in self.seconds for kind in self.left):
            return None
        return sum(sum(self.seconds[kind]) / len(self.seconds[kind]) for kind in self.left)


def seconds_per_item(
    work: Callable[[Sequence[str]], object],
    names: Sequence[str],
    largest: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds that `work` takes for one of `names`, at the end of a probe on a growing number of them.

    The first call warms up (weights are read, memory is taken) and does not count. Batches double until one takes
    PROBE_SECONDS, holds PROBE_SHARE of the names, or `largest` of them, the number that the work will get at once.
    """
    # Items of the end of the list cost most (more targets); most of the work is like them.
    order = list(reversed(names))
    work(order[:1])
    size, most = 1, max(1, min(largest, round(PROBE_SHARE * len(names))))
    while True:
        start = clock()
        work([order[at % len(order)] for at in range(size)])
        taken = clock() - start
        if size >= most or taken >= PROBE_SECONDS:
            return taken / size
        size = min(2 * size, most)


def duration(seconds: float) -> str:
    """`seconds` for readers: 40 s, 12 min, 3.4 h, 2.1 days."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}" if name != "h" else f"{seconds / unit:.1f} h"
    return f"{seconds / 86_400:.1f} days"
