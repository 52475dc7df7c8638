"""What a prediction will take, said before it starts: by a probe on some of its cells."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from scdfm.config import SamplingConfig
from scdfm.flow.solve import EVALUATIONS
from scdfm.jobs import PROBE_SECONDS, duration, seconds_per_item
from scdfm.run.trained import Trained

LOG: Final = logging.getLogger("scdfm.predict")
LEAST_SECONDS: Final = 10.0
"""What takes less is not worth a line."""
LEAST_CELLS: Final = 20
"""Of fewer cells the probe, two of them at least, would be much of the work."""
clock: Callable[[], float] = time.perf_counter


@dataclass(frozen=True)
class Cost:
    """Seconds of a prediction, and what they go into; `evaluations` of the flow for each cell as `evaluations_of` says."""

    conditions: int
    cells: int
    genes: int
    evaluations: int | None
    seconds: float

    def __str__(self) -> str:
        flow = {None: "as many evaluations as dopri5 needs", 0: "no flow to solve"}.get(
            self.evaluations, f"{self.evaluations} evaluations a cell"
        )
        what = f"{self.conditions:,} conditions × {self.cells:,} cells × {self.genes:,} genes, {flow}"
        return f"{what}: about {duration(self.seconds)}"


def evaluations_of(sampling: SamplingConfig) -> int | None:
    """How often the velocity of each gene of a cell is evaluated; None where the solver finds out."""
    if sampling.solver == "dopri5":
        return None
    return EVALUATIONS[sampling.solver] * sampling.steps * (1 if sampling.guidance == 1 else 2)


def foretell(
    run: Trained,
    names: Sequence[str],
    n_cells: int,
    n_genes: int,
    at_once: int,
    work: Callable[[Sequence[str], int], object],
    say: Callable[[str], object] | None,
) -> None:
    """Tell `say`, and the log "scdfm.predict", what it takes to predict `n_cells` cells of each of `names`.

    `work(names, n)` predicts n cells of some of them, at most `at_once` conditions in one call. Nothing is probed where
    nobody listens; nothing is said of less than LEAST_SECONDS or LEAST_CELLS.
    """
    listening = say is not None or LOG.isEnabledFor(logging.INFO)
    if not listening or len(names) * n_cells < LEAST_CELLS:
        return
    seconds = len(names) * _seconds(names, n_cells, at_once, work)
    if seconds < LEAST_SECONDS:
        return
    evaluations = 0 if run.field.is_zero else evaluations_of(run.config.sampling)
    line = f"estimate: {Cost(len(names), n_cells, n_genes, evaluations, seconds)}"
    LOG.info(line)
    if say is not None:
        say(line)


def _seconds(names: Sequence[str], n_cells: int, at_once: int, work: Callable[[Sequence[str], int], object]) -> float:
    """Seconds of one condition: of some of its cells, and of several conditions where one takes no time to speak of."""
    cells = [names[-1]] * (n_cells * len(names))
    one = _of_a_call(lambda some: work(some[:1], len(some)), cells, n_cells)
    if one >= PROBE_SECONDS or one * len(names) < LEAST_SECONDS:
        return one
    at_once = min(at_once, len(names))
    return _of_a_call(lambda some: work(some, n_cells), names, at_once) / at_once


def _of_a_call(work: Callable[[Sequence[str]], object], items: Sequence[str], n: int) -> float:
    """Seconds of a call on n of the `items`: what each call takes, and what each item does, by calls on fewer of them."""
    taken: dict[int, float] = {}

    def timed(some: Sequence[str]) -> None:
        start = clock()
        work(some)
        taken[len(some)] = clock() - start  # of the first of one item nothing is kept: it warms up

    seconds_per_item(timed, items, n, clock)
    most = max(taken)
    each = max(taken[most] - taken[1], 0.0) / (most - 1) if most > 1 else taken[1]
    return taken[1] + each * (n - 1)
