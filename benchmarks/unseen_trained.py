"""Targets that nobody measured, with the flow trained: what the preset default adds to its prior, by description.

    python benchmarks/unseen_trained.py NORMAN_LIKE.h5ad DATA [--draws 8] [--steps 300] [--out runs/unseen]

Files as in benchmarks/unseen.py, sizes for a CPU (300 genes, width 32). Each draw leaves 12 targets out; a fit for each
description predicts singles and doubles of them, its prior and the weights that the keep rule chose apart. Fits are kept in
--out: repeat the command to go on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import scdfm
from accuracy import NARROW, unseen_targets
from scdfm.data import select_genes
from scdfm.data.features import combine
from scdfm.files import write_json
from scdfm.prior.kernel import every_target
from unseen import known_of_genes, shuffled, table

SIZE: dict[str, Any] = {
    "model": {"width": 32, "heads": 2, "layers": 2}, "flow": {"genes_per_step": 100}, "sampling": {"steps": 1},
    "training": {"validate_every": 100, "validation_cells": 64},
}  # fmt: skip
CELLS = 50
"""Predicted of each condition."""
NONE = "no features"


def fits(cells: scdfm.CellTable, draw: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Errors of one draw, a row for each description: L2 of the prior and of the fit, and the step of the weights kept."""
    config = scdfm.Config.preset("default").updated(NARROW).updated(SIZE)
    config = config.updated({"training": {"max_steps": args.steps}, "seed": draw})
    split = unseen_targets(cells, draw)
    everyone = every_target((*split.train, *split.validation, *split.test))
    genes = select_genes(cells, split, config.panel).genes
    go = known_of_genes(args.data, [*everyone, *genes])
    other = shuffled(go, draw, everyone)
    for name, features in {NONE: None, "GO": go, "GO of other genes": other, "both": combine([go, other])}.items():
        folder = args.out / f"{draw}-{name.replace(' ', '-')}-{args.steps}"
        record = folder.with_suffix(".json")
        if not record.is_file():
            run = scdfm.fit(cells, split, config, out=folder, features=features, progress=False, resume=folder.exists())
            row = {"features": name, "kept": int(run.manifest.result.get("step", 0))}
            for label, one in (("prior", run.untrained()), ("default", run)):
                assert one is not None
                row[label] = l2(one, cells)
            write_json(record, row)
            print(draw, row, flush=True)
        yield json.loads(record.read_text(encoding="utf-8"))


def l2(run: scdfm.Run, cells: scdfm.CellTable) -> dict[str, float]:
    """Mean L2 of the test conditions, singles and doubles apart."""
    scores = scdfm.evaluate(run.predict(n_cells=CELLS), cells, metrics=["l2"], references=False, progress=False)
    several = scores["condition"].str.contains("+", regex=False)
    return {name: float(scores["value"][which].mean()) for name, which in (("singles", ~several), ("doubles", several))}


def main() -> None:
    """Fit what is missing; print a table for singles and one for doubles."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("screen", type=Path)
    options.add_argument("data", type=Path)
    options.add_argument("--draws", type=int, default=8)
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--out", type=Path, default=Path("runs/unseen"))
    args = options.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    cells = scdfm.read_cells(args.screen)
    draws = [list(fits(cells, draw, args)) for draw in range(args.draws)]
    for part in ("singles", "doubles"):
        print(f"\n**{part}**, {args.draws} draws, {args.steps} steps\n")
        rows = [
            {f"{row['features']}, {label}": row[label][part] for row in draw for label in ("prior", "default")}
            for draw in draws
        ]
        print("\n".join(table(rows, f"{NONE}, prior")))
    kept = [row["kept"] for draw in draws for row in draw]
    print(f"\nTrained weights were kept in {sum(step > 0 for step in kept)} of {len(kept)} fits.")


if __name__ == "__main__":
    main()
