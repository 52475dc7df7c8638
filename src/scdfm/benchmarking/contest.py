"""One command in one fold: its folder is written, it runs, its answer is scored; a failure becomes a row that says so."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from scdfm.benchmarking.folds import Fold
from scdfm.benchmarking.plan import Contender, Piece, Plan
from scdfm.data import CONTROL, CellTable
from scdfm.data.conditions import targets
from scdfm.data.knowledge import go_terms
from scdfm.errors import ScdfmError
from scdfm.evaluation import METRICS
from scdfm.evaluation.protocols import NAMES
from scdfm.files import file_digest, system_words
from scdfm.jobs import duration
from scdfm.peers import Answer, Ran, Task, read_answer, run_command, write_task
from scdfm.peers.bundled import isolated
from scdfm.peers.task import TRAIN

TASK: Final = "task"
"""Folder within a piece's own that a command is given."""
Score = Callable[[Answer], pd.DataFrame]


@dataclass(frozen=True)
class Outcome:
    """What came of a command: its long table (all NaN where it failed), notes, and what it cost (`tables.COSTS`)."""

    table: pd.DataFrame
    notes: tuple[str, ...]
    cost: dict[str, Any]


def compete(plan: Plan, piece: Piece, fold: Fold, cells: CellTable, folder: Path, score: Score) -> Outcome:
    """Run a command contender in `fold` and score its answer with `score`; a failure is an outcome, no error."""
    task = task_of(plan, piece, fold, cells)
    place = folder / TASK
    shutil.rmtree(place, ignore_errors=True)
    write_task(place, task)
    contender = piece.contender
    assert contender is not None
    assert contender.command is not None
    ran = run_command(contender.command, place, task.budget, isolated() if contender.peer else None)
    cost = _cost(ran, contender, task)
    try:
        if ran.reason is not None:
            raise ScdfmError(ran.reason)
        answer = read_answer(place, task)
        table = score(answer)
    except ScdfmError as error:
        if ran.reason is None and system_words(error) is not None:
            raise  # the disk fails, not the method
        reason = f"no score: {error}"
        return Outcome(_undefined(plan, fold, piece.name, cells), (reason,), cost | {"failed": reason})
    (place / TRAIN).unlink()  # of a failure it stays, to look into
    notes = [*answer.notes, *_of_budget(ran, task), *_told(answer.facts), *table.attrs["notes"]]
    cost |= {name: answer.facts.get(name) for name in ("steps", "parameters", "populations")}
    cost |= {"predicted": len(answer.conditions), "below_zero": answer.below_zero}
    return Outcome(table, tuple(dict.fromkeys(notes)), cost)


def task_of(plan: Plan, piece: Piece, fold: Fold, cells: CellTable) -> Task:
    """What is asked of a command in a fold: control and every condition that is not tested, over the scored genes."""
    contender = piece.contender
    assert contender is not None
    assert piece.seed is not None
    trained = (*fold.split.train, *fold.split.validation)
    extra: dict[str, Any] = {}
    if "weights" in contender.files:
        extra["weights"] = contender.files["weights"]
    if "go" in contender.files:
        named = {target for name in (*trained, *fold.conditions) for target in targets(name)}
        extra["terms"] = go_terms(contender.files["go"], named | set(fold.genes))
    return Task(
        cells.select([CONTROL, *trained]), fold.conditions, tuple(fold.genes), piece.seed, plan.budget, plan.command_cells,
        extra,
    )  # fmt: skip


def made_of(plan: Plan, contender: Contender) -> dict[str, Any]:
    """All of a command that decides its scores: its words, the files among them, its budget."""
    command = contender.command or ()
    files = [
        Path(word) for word in (*command, *contender.files.values()) if contender.peer is None or word not in command
    ]
    return {
        "command": command if contender.peer is None else contender.peer.digest(),
        "files": [file_digest(path) if path.is_file() else str(path) for path in files],
        "budget": plan.budget,
        "cells": plan.command_cells,
    }


def _cost(ran: Ran, contender: Contender, task: Task) -> dict[str, Any]:
    installed: Mapping[str, Any] = (contender.peer.installed if contender.peer else None) or {}
    return {
        "budget": task.budget, "seconds": round(ran.seconds, 1), "cpu": None if ran.cpu is None else round(ran.cpu, 1),
        "peak_mib": None if ran.peak is None else round(ran.peak), "environment_mib": installed.get("mib"),
        "asked": len(task.conditions), "predicted": 0,
    }  # fmt: skip


def _of_budget(ran: Ran, task: Task) -> list[str]:
    took = ran.seconds if ran.cpu is None else ran.cpu
    if took <= task.budget:
        return []
    return [f"took {duration(took)} of CPU, more than its budget of {duration(task.budget)}"]


def _told(facts: Mapping[str, Any]) -> list[str]:
    """What a method says of itself in facts.json."""
    notes = facts.get("notes", [])
    return [str(note) for note in notes] if isinstance(notes, list) else [str(notes)]


def _undefined(plan: Plan, fold: Fold, name: str, cells: CellTable) -> pd.DataFrame:
    """A long table without a value, so that the model stands in the tables."""
    usual = METRICS if plan.protocol == "scdfm" else (*METRICS, *NAMES)
    rows = [
        (name, condition, metric, np.nan, cells.n_cells(condition))
        for metric in plan.metrics or usual
        for condition in fold.conditions
    ]
    return pd.DataFrame(rows, columns=["model", "condition", "metric", "value", "n_cells"])
