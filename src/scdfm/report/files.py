"""Evaluate and leave everything in a folder: scores, summary, report, figures."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from scdfm.data import CellTable
from scdfm.evaluation import Counts, evaluate, evaluate_against, scaled, summarise
from scdfm.evaluation.alignment import Cells
from scdfm.evaluation.evaluate import Protocol
from scdfm.files import written_whole
from scdfm.report.standing import standings
from scdfm.report.table import plain, scaled_summary
from scdfm.report.verdict import verdict
from scdfm.report.write import made, write

if TYPE_CHECKING:
    from scdfm.run import Run


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_files` found: `path` of the page, `text` for a terminal, the long `table` and its `summary`."""

    path: Path
    text: str
    table: pd.DataFrame
    summary: pd.DataFrame


def evaluate_files(
    predicted: Cells | Counts,
    real: CellTable | Counts,
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
    predicted_key: str | None = None,
    backed: bool | None = None,
    progress: bool = False,
) -> Evaluation:
    """Score `predicted` against `real` and write `scores.csv`, `summary.csv`, `report.html` and `figures/`.

    predicted: path, AnnData or CellTable, with its control under the same label as `real` and its conditions under
        the same obs column, or under `predicted_key`. Protocol vcc2026 takes Counts (`read_counts`) of both, writes
        `scaled.csv` too, and draws no populations. training: the run that predicted (adds its curves and provenance), a
        table of means, or None. against: another prediction, called `against_name`, that it is compared with pair by
        pair. provenance: further lines for the report, such as the command. The other options: `evaluate`.
    """
    columns: dict[str, Any] = {}
    if isinstance(real, CellTable):
        columns = {"control": real.control, "perturbation_key": real.perturbation_key}
    given: dict[str, Any] = {
        "training": training, "protocol": protocol, "metrics": metrics, "name": name, "seed": seed,
        "predicted_key": predicted_key, "backed": backed, "progress": progress, **columns,
    }  # fmt: skip
    if against is None:
        table = evaluate(predicted, real, **given)
    else:
        table = evaluate_against(predicted, against, real, against_name=against_name, **given)
    rival = None if against is None else against_name
    summary = summarise(table, seed=seed)
    files, text = {"scores.csv": table, "summary.csv": summary}, plain(summary)
    if protocol == "vcc2026":
        files["scaled.csv"] = scaled(table)
        text += (
            f"\non the scale of the challenge (0 mean response, 1 replicate):\n{plain(scaled_summary(table))}"
        )
    out_dir = made(Path(out_dir))
    for file, frame in files.items():
        with written_whole(out_dir / file) as path:
            frame.to_csv(path, index=False)
    run = None if training is None or isinstance(training, pd.DataFrame) else training
    page = write(
        out_dir,
        table,
        None if isinstance(predicted, Counts) else predicted,
        None if isinstance(real, Counts) else real,
        run=run,
        model=name,
        against=rival,
        provenance=provenance,
        seed=seed,
        predicted_key=predicted_key,
        backed=backed,
        **columns,
    )
    verdicts = [verdict(standings(table, name, seed, of), name) for of in dict.fromkeys((None, rival))]
    said = "\n".join(textwrap.fill(f"{one.sentence} {one.trained}".rstrip(), 100) for one in verdicts)
    return Evaluation(page, f"{text}\n{said}", table, summary)
