"""Whether the bundled methods run here: each installed, and fitted for a few steps on a tiny screen."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scdfm.data import CONTROL, additive_split, read_cells, simulate
from scdfm.data.conditions import targets
from scdfm.errors import ScdfmError
from scdfm.peers.answer import read_answer
from scdfm.peers.bundled import Peer, install, isolated
from scdfm.peers.command import run_command
from scdfm.peers.task import Task, write_task

STEPS: Final = 20
BUDGET: Final = 300.0


@dataclass(frozen=True)
class Checked:
    """What came of a method: `words` for a reader, and whether it predicted what it was asked for."""

    name: str
    words: str
    good: bool


def check(peer: Peer) -> Checked:
    """Install `peer` where it is not, fit it for STEPS steps on a simulated screen, and read its answer."""
    try:
        installed = install(peer)
        with tempfile.TemporaryDirectory() as place:
            task, folder = tiny(), Path(place) / "task"
            write_task(folder, task)
            ran = run_command(peer.argv, folder, BUDGET, isolated())
            if ran.reason is not None:
                raise ScdfmError(ran.reason)
            answer = read_answer(folder, task)
    except ScdfmError as error:
        return Checked(peer.name, f"FAILED: {error}", False)
    words = (
        f"ok, {installed['packages']} packages, {installed['mib']:,} MiB, installed in {installed['seconds']:.0f} s; "
        f"{answer.facts.get('steps')} steps and {len(answer.conditions)} conditions in {ran.cpu or ran.seconds:.0f} s"
    )
    return Checked(peer.name, words, len(answer.conditions) == len(task.conditions))


def tiny() -> Task:
    """Six simulated targets, their doubles but for those of fold 0, and GO terms made up for them."""
    cells = read_cells(simulate(n_genes=60, n_targets=6, cells_per_condition=30, n_controls=90, seed=0))
    split = additive_split(cells, fold=0)
    trained = (*split.train, *split.validation)
    named = sorted({target for name in (*trained, *split.test) for target in targets(name)})
    terms = {name: ["all", f"half {place % 2}", f"third {place % 3}"] for place, name in enumerate(named)}
    return Task(
        cells.select([CONTROL, *trained]), split.test, tuple(map(str, cells.genes)), 0, BUDGET, 20,
        {"steps": STEPS, "terms": terms},
    )  # fmt: skip
