"""One piece at a time: fit, predict, evaluate, and leave the scores; a finished piece is never done twice."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdfm.benchmarking.contest import compete, made_of
from scdfm.benchmarking.folds import Fold, Folds, predicted_in, prediction_path
from scdfm.benchmarking.plan import Piece, Plan
from scdfm.data import CONTROL, CellTable
from scdfm.errors import ConditionError, StorageError
from scdfm.evaluation import BASELINES, CEILING, LOWER_IS_BETTER, PRIOR, evaluate
from scdfm.evaluation.alignment import few
from scdfm.evaluation.prior import NO_PRIOR
from scdfm.files import REMEDY, file_digest, made, system_words, write_csv, write_h5ad, write_json
from scdfm.jobs import TimeLeft, duration
from scdfm.peers.command import measured

if TYPE_CHECKING:
    from anndata import AnnData

    from scdfm.peers import Answer
    from scdfm.run import Run

SCORES, RECORD, RUN, PREDICTED = "scores.csv", "piece.json", "run", "predicted.h5ad"
COLUMNS = ("model", "fold", "seed", "beside", "condition", "metric", "value", "n_cells")
"""Of the long table. `seed` -1: none. `beside` names the model for whose paired differences a reference was
scored again, on the conditions that its file holds, or whose prior this is; else it is empty."""
NO_SEED = -1
FAILED = "failed"
"""In the record of a piece that no key fits."""


@dataclass(frozen=True)
class Scored:
    """A finished piece: its long table (COLUMNS), notes on what was left out, the number of scored genes, and what a
    model cost (`tables.COSTS`)."""

    piece: Piece
    table: pd.DataFrame
    notes: tuple[str, ...]
    n_genes: int
    cost: Mapping[str, Any] = field(default_factory=dict)


def run_pieces(
    plan: Plan, cells: CellTable, out: Path, progress: bool = True, folds: Folds | None = None
) -> list[Scored]:
    """Every piece of `plan`, finished ones read from `out`, the others done and left there.

    `folds` None makes those of the plan. A fit that was interrupted continues where it stood. With `progress`,
    each piece ends in a line with the time that is left (on stderr).
    """
    data, folds = cells.digest(), folds or Folds(plan, cells)
    say = Progress(plan.pieces()) if progress else None
    done = []
    for piece in plan.pieces():
        begun = time.monotonic()
        fold = folds.fold(piece.fold)
        key = piece_key(plan, piece, fold, data)
        scored = read_piece(out / piece.folder, piece, key)
        fresh = scored is None
        if scored is None:
            scored = run_piece(plan, piece, fold, cells, out / piece.folder)
            stored_key = FAILED if scored.cost.get("failed") else key  # what failed is tried again on resume
            write_piece(out / piece.folder, scored, stored_key)
            # as any later reading finds it: the tables of a resumed benchmark are the same to the last digit
            scored = read_piece(out / piece.folder, piece, stored_key)
            assert scored is not None
        done.append(scored)
        if say:
            say(scored, time.monotonic() - begun if fresh else None)
    return done


def run_piece(plan: Plan, piece: Piece, fold: Fold, cells: CellTable, folder: Path) -> Scored:
    """Score one piece; a contender with a config is fitted and predicts first, with its run left in `folder`, and a
    command is run."""
    made(folder)
    table, notes, cost = _rows(plan, piece, fold, cells, folder)
    seed = NO_SEED if piece.seed is None else piece.seed
    beside = np.where(table["model"] == piece.name, "", "" if piece.contender is None else piece.name)
    table = table.assign(fold=piece.fold, seed=seed, beside=beside)[list(COLUMNS)]
    return Scored(piece, table, tuple(notes), len(fold.genes), cost)


def _rows(
    plan: Plan, piece: Piece, fold: Fold, cells: CellTable, folder: Path
) -> tuple[pd.DataFrame, list[str], dict[str, Any]]:
    """The scores of a piece, notes, and what it cost; empty where no work of a model was done."""
    contender = piece.contender
    cost: dict[str, Any] = {}
    options: dict[str, Any] = {"protocol": plan.protocol, "metrics": plan.metrics}
    if contender is None:
        table = scores_of(None, fold, fold.conditions, **options)
        return table, list(table.attrs["notes"]), cost
    if contender.command is not None:

        def scored(answer: Answer) -> pd.DataFrame:
            return scores_of(
                answer.cells, fold, answer.conditions, name=piece.name,
                references=len(answer.conditions) < len(fold.conditions), **options,
            )  # fmt: skip

        outcome = compete(plan, piece, fold, cells, folder, scored)
        return outcome.table, list(outcome.notes), outcome.cost
    if contender.config is None:
        held, notes = _held(plan, piece, fold, cells)
        table = scores_of(
            prediction_path(piece), fold, held, name=piece.name, references=len(held) < len(fold.conditions),
            **options,
        )  # fmt: skip
    else:
        with measured() as taken:
            run = fitted(plan, piece, cells, folder / RUN)
            predicted = _predicted(plan, piece, fold, run, cells, folder / PREDICTED)
            cost = taken()
        prior = _untrained(run, cells)
        notes = [NO_PRIOR] if prior is None else []
        table = scores_of(
            predicted, fold, fold.conditions, name=piece.name, references=False, check_scale=False,
            prior=prior, **options,
        )  # fmt: skip
    return table, [*notes, *(note for note in table.attrs["notes"] if note not in notes)], cost


def scores_of(predicted: Any, fold: Fold, conditions: Sequence[str], **options: Any) -> pd.DataFrame:
    """The long table of `evaluate` over the fold's groups, notes joined."""
    options |= {
        "control": fold.cells.control, "perturbation_key": fold.cells.perturbation_key, "training": fold.training,
        "seed": fold.number,
    }  # fmt: skip
    tables = [evaluate(predicted, fold.cells, conditions=group, **options) for group in fold.groups(conditions)]
    notes = dict.fromkeys(note for table in tables for note in table.attrs["notes"])
    joined = pd.concat(tables, ignore_index=True)
    joined.attrs["notes"] = list(notes)
    return joined


def _held(plan: Plan, piece: Piece, fold: Fold, cells: CellTable) -> tuple[tuple[str, ...], list[str]]:
    """The fold's test conditions that a file holds, and notes on those it lacks."""
    assert piece.contender is not None
    _, conditions = predicted_in(piece, cells)
    held = tuple(name for name in fold.conditions if name in conditions)
    missing = [name for name in fold.conditions if name not in conditions]
    if not held:
        raise ConditionError(
            f"{piece.label}: {prediction_path(piece)} holds none of the {len(missing)} test conditions (first: "
            f"{missing[0]}), expected some; predict them, or name a file for each fold with {{fold}} in its path"
        )
    notes = []
    if missing:
        notes.append(
            f"scored on {len(held)} of {len(fold.conditions)} test conditions; not predicted: {few(missing, 5)}"
        )
    if len(plan.folds) > 1 and "{fold}" not in str(piece.contender.predictions):
        notes.append("one file for all folds: its model may have been trained on conditions that a fold tests")
    return held, notes


def fitted(plan: Plan, piece: Piece, cells: CellTable, folder: Path) -> Run:
    """The run of a piece in `folder`; a fit that was interrupted there goes on."""
    from scdfm.training import fit

    if not (folder / "manifest.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)  # a fit that was killed before it had begun
    split, config = plan.piece_split(cells, piece), plan.config(piece)
    return fit(cells, split, config, out=folder, resume=True, progress=False)


def _predicted(plan: Plan, piece: Piece, fold: Fold, run: Run, cells: CellTable, path: Path) -> AnnData | Path:
    """The populations that `run` predicts for the scored conditions; an earlier file of the same is kept.

    Where all genes are solved together (`sampling.genes` "joint"), they are the scored ones, as published.
    """
    n_cells = run.config.sampling.cells if plan.n_cells is None else plan.n_cells
    assert piece.seed is not None
    genes = fold.genes if run.config.sampling.genes == "joint" else run.genes
    if path.is_file() and _same_prediction(path, run, fold.conditions, genes, n_cells, piece.seed):
        return path
    controls = None if run.config.training.keep_controls else cells
    predicted = run.predict(fold.conditions, controls, n_cells=n_cells, genes=genes, seed=piece.seed)
    write_h5ad(path, predicted)
    return predicted


def _untrained(run: Run, cells: CellTable) -> Run | None:
    """What predicts the row `prior` of `run`, from the control cells that `_predicted` takes."""
    prior = run.untrained()
    if prior is not None and not run.config.training.keep_controls:
        prior.controls = cells.select([CONTROL])
    return prior


def _same_prediction(
    path: Path, run: Run, conditions: Sequence[str], genes: Sequence[str], n_cells: int, seed: int
) -> bool:
    import anndata as ad

    adata = ad.read_h5ad(path, backed="r")
    try:
        made, held = adata.uns["scdfm"], set(adata.obs[run.manifest.perturbation_key])
        same_genes = list(adata.var_names) == list(genes)
    finally:
        adata.file.close()
    expected = (run.manifest.digests["weights.safetensors"], n_cells, seed)
    same = expected == (made["weights"], made["cells_per_condition"], made["seed"])
    return same and same_genes and held >= set(conditions)


def piece_key(plan: Plan, piece: Piece, fold: Fold, data: str) -> str:
    """sha256 of all that decides the scores of a piece; `data` is the digest of the screen.

    A fit whose piece was left by a version that scored no prior is scored again, not fitted again.
    """
    contender = piece.contender
    made: Any = None
    if contender is not None:
        if contender.config is not None:
            made = {"config": plan.config(piece).model_dump(mode="json"), "rows": ["model", PRIOR]}
        elif contender.command is not None:
            made = made_of(plan, contender)
        else:
            made = file_digest_of(prediction_path(piece))
    values = {
        "data": data, "fold": fold.digest, "training": list(fold.training.index), "protocol": plan.protocol,
        "metrics": plan.metrics, "n_cells": plan.n_cells, "piece": piece.label, "model": made,
        "version": version("scdfm"),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def file_digest_of(path: Path) -> str:
    """sha256 of a file, or of all files of a folder (a .zarr store)."""
    if path.is_dir():
        files = sorted(part for part in path.rglob("*") if part.is_file())
        parts = [f"{part.relative_to(path)} {file_digest(part)}" for part in files]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return file_digest(path)


def write_piece(folder: Path, scored: Scored, key: str) -> None:
    """Leave scores, then the record that declares them whole."""
    write_csv(folder / SCORES, scored.table)
    write_json(
        folder / RECORD,
        {
            "key": key,
            "scores": file_digest(folder / SCORES),
            "notes": list(scored.notes),
            "n_genes": scored.n_genes,
            "cost": dict(scored.cost),
        },
    )


def read_piece(folder: Path, piece: Piece, key: str) -> Scored | None:
    """The finished piece in `folder`; None unless it is there, whole, and made of what `key` stands for. StorageError where
    the disk fails: such a piece may be finished."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        whole = record["key"] == key and record["scores"] == file_digest(folder / SCORES)
        notes, n_genes = tuple(str(note) for note in record["notes"]), int(record["n_genes"])
        cost = dict(record.get("cost", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if (words := system_words(error)) is None:
            return None
        raise StorageError(f"{folder / RECORD} cannot be read ({words}); {REMEDY}") from error
    if not whole:
        return None
    table = pd.read_csv(folder / SCORES, float_precision="round_trip", keep_default_na=False, na_values={"value": [""]})
    return Scored(piece, table.astype({"model": str, "condition": str, "beside": str}), notes, n_genes, cost)


class Progress:
    """A line for each piece, with the time that is left once a piece of every model to come was timed."""

    def __init__(self, pieces: Sequence[Piece], write: Callable[[str], object] | None = None) -> None:
        self.time = TimeLeft(piece.name for piece in pieces)
        self.write = write or (lambda line: print(line, file=sys.stderr, flush=True))

    def __call__(self, scored: Scored, seconds: float | None) -> None:
        """Tell that a piece is finished; `seconds` None: it was finished before."""
        self.time.finish(seconds)
        took = "finished before" if seconds is None else duration(seconds)
        left = self.time.remaining()
        more = "" if left is None else f"; about {duration(left)} left"
        self.write(f"[{self.time.done}/{self.time.n}] {scored.piece.label}: {headline(scored)}; {took}{more}")


def headline(scored: Scored) -> str:
    """What a piece scored on the first metric, and its prior; of the references, the best baseline and the ceiling."""
    name = scored.piece.name
    table = scored.table[scored.table["beside"].isin(["", name])]
    metric = str(table["metric"].iloc[0])
    means = table[table["metric"] == metric].groupby("model", sort=False)["value"].mean()
    if reason := scored.cost.get("failed"):
        return str(reason)
    if scored.piece.contender is not None:
        before = f", {PRIOR} {means[PRIOR]:.4g}" if PRIOR in means else ""
        return f"{metric} {means[name]:.4g}{before}"
    rules = means[means.index.isin(BASELINES)].dropna().sort_values(ascending=metric in LOWER_IS_BETTER)
    best = [f"{rules.index[0]} {rules.iloc[0]:.4g}"] if len(rules) else []
    return f"{metric} " + ", ".join([*best, f"{CEILING} {means[CEILING]:.4g}"])
