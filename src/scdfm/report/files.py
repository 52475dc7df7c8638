"""Evaluate and leave everything in a folder: scores, summary, report, figures."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from scdfm.evaluation import evaluate, evaluate_against, summarise
from scdfm.evaluation.alignment import Cells
from scdfm.evaluation.evaluate import Protocol
from scdfm.files import written_whole
from scdfm.report.standing import standings
from scdfm.report.table import plain
from scdfm.report.verdict import verdict
from scdfm.report.write import made, write

if TYPE_CHECKING:
    from scdfm.data import CellTable
    from scdfm.run import Run


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_files` found: `path` of the page, `text` for a terminal, the long `table` and its `summary`."""

    path: Path
    text: str
    table: pd.DataFrame
    summary: pd.DataFrame


def evaluate_files(
    predicted: Cells,
    real: CellTable,
    out_dir: str | Path,
    *,
    training: Run | pd.DataFrame | None = None,
    protocol: Protocol = "scdfm",
    name: str = "model",
    against: Cells | None = None,
    against_name: str = "other",
    metrics: Iterable[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    seed: int = 0,
    backed: bool | None = None,
    progress: bool = False,
) -> Evaluation:
    """Score `predicted` against `real` and write `scores.csv`, `summary.csv`, `report.html` and `figures/`.

    predicted: path, AnnData or CellTable, with its conditions under the same obs column and its control under the
        same label as `real`. training: the run that predicted (adds its curves and provenance), a table of means, or
        None. against: another prediction, called `against_name`, that it is compared with pair by pair.
    provenance: further lines for the report, such as the command. The other options: `evaluate`.
    """
    key, control = real.perturbation_key, real.control
    given: dict[str, Any] = {
        "training": training, "protocol": protocol, "metrics": metrics, "perturbation_key": key, "name": name,
        "seed": seed, "backed": backed, "progress": progress,
    }  # fmt: skip
    if against is None:
        table = evaluate(predicted, real, control, **given)
    else:
        table = evaluate_against(predicted, against, real, control, against_name=against_name, **given)
    rival = None if against is None else against_name
    summary = summarise(table, seed=seed)
    out_dir = made(Path(out_dir))
    for file, frame in (("scores.csv", table), ("summary.csv", summary)):
        with written_whole(out_dir / file) as path:
            frame.to_csv(path, index=False)
    run = None if training is None or isinstance(training, pd.DataFrame) else training
    page = write(
        out_dir,
        table,
        predicted,
        real,
        control,
        run,
        model=name,
        against=rival,
        perturbation_key=key,
        provenance=provenance,
        seed=seed,
        backed=backed,
    )
    verdicts = [verdict(standings(table, name, seed, of), name) for of in dict.fromkeys((None, rival))]
    said = "\n".join(textwrap.fill(f"{one.sentence} {one.trained}".rstrip(), 100) for one in verdicts)
    return Evaluation(page, f"{plain(summary)}\n{said}", table, summary)
