"""What a screen will cost, measured on a few of its conditions before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from scdfm.jobs import duration

PROBE_SECONDS: Final = 4.0
"""The probe grows until one batch takes this long..."""
PROBE_SHARE: Final = 0.04
"""... or it holds this share of the screen."""


@dataclass(frozen=True)
class Estimate:
    """Seconds to predict `conditions`, and to score `pairs` afterwards."""

    conditions: int
    seconds_per_condition: float
    pairs: int = 0
    seconds_per_pair: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.conditions * self.seconds_per_condition + self.pairs * self.seconds_per_pair

    def __str__(self) -> str:
        return f"{self.conditions:,} conditions at {self.seconds_per_condition:.3g} s: about {duration(self.seconds)}"


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
    # Items of the end of the list cost most (more targets); most of a screen is like them.
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
