"""An archive of what this version writes: tests/archives/NAME, which every later version must read (test_archives.py).

    python tests/archives/make.py 0.1.0

`make release` asks for one of each release. Archives are never written anew: a version that cannot read an old one breaks
the promise of docs/reference/formats.md. Pages are left out, since nobody reads them back.

    screen.h5ad        the cells
    run                a fit without training, and what was predicted from it: predicted.h5ad
    begun              a fit that was stopped after its second step of four; fitted.npz holds the weights of its end
    half.h5ad.parts    a prediction that was stopped before its last part; it ends as predicted.h5ad
    ranked             a screen with its table
    bench              a benchmark of one fit
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import scdfm
from scdfm.run import shards
from scdfm.training.module import FlowModule

HERE = Path(__file__).resolve().parent
TINY: dict[str, Any] = {
    "panel": {"n_genes": 20},
    "graph": {"k": 3},
    "model": {"width": 8, "heads": 2, "gene_heads": 2, "layers": 1},
    "flow": {"genes_per_step": 16},
    "training": {"max_steps": 4, "warmup_steps": 1, "validate_every": 2, "conditions_per_batch": 2,
                 "cells_per_condition": 4, "validation_cells": 4, "accelerator": "cpu", "keep": "last"},
    "sampling": {"steps": 1, "cells": 6},
}  # fmt: skip
BENCHMARK: dict[str, Any] = {"models": ["instant"], "folds": [0], "seeds": 1, "metrics": ["l2", "mae"], "n_cells": 6}


def instant() -> scdfm.Config:
    """Options of a fit without training."""
    return scdfm.Config.preset("instant").updated({"model": TINY["model"], "sampling": TINY["sampling"]})


def config() -> scdfm.Config:
    """Options of a fit of four steps."""
    return scdfm.Config().updated(TINY)


def stopped_fit(cells: scdfm.CellTable, out: Path) -> None:
    """A fit that stops in its third step, after a checkpoint."""
    step = FlowModule.training_step

    def stops(self: FlowModule, *given: Any) -> Any:
        if self.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *given)

    with mock.patch.object(FlowModule, "training_step", stops), contextlib.suppress(scdfm.errors.InterruptedFitError):
        scdfm.fit(cells, config=config(), out=out, progress=False)


def make(folder: Path) -> None:
    """Write the archive `folder`, which must not be there."""
    folder.mkdir()
    scdfm.simulate(n_genes=24, n_targets=4, cells_per_condition=8, n_controls=20, truth_cells=4, seed=3).write_h5ad(
        folder / "screen.h5ad", compression="gzip"
    )
    cells = scdfm.read_cells(folder / "screen.h5ad")
    run = scdfm.fit(cells, config=instant(), out=folder / "run", progress=False)
    names = sorted(run.manifest.targets)[:3]
    with mock.patch.object(shards, "SHARD_CELLS", 6):
        run.predict_to(folder / "predicted.h5ad", names, seed=1)
        with mock.patch.object(shards.Shards, "join"):
            run.predict_to(folder / "half.h5ad", names, seed=1)
    (folder / "half.h5ad.parts" / "000002.h5ad").unlink()
    stopped_fit(cells, folder / "begun")
    ended = shutil.copytree(folder / "begun", folder / "ended")
    fitted = scdfm.fit(cells, config=config(), out=ended, resume=True, progress=False)
    weights = {name: value.numpy() for name, value in fitted.field.state_dict().items()}
    np.savez_compressed(folder / "fitted.npz", **weights)
    shutil.rmtree(ended)
    scdfm.screen(run, out=folder / "ranked", cells=4, keep_cells=True, propose=1)
    scdfm.benchmark(cells, out=folder / "bench", progress=False, **BENCHMARK)
    for page in folder.rglob("*.html"):
        page.unlink()


if __name__ == "__main__":
    if len(sys.argv) != 2 or (HERE / sys.argv[1]).exists():
        sys.exit("usage: python tests/archives/make.py NAME, of an archive that is not there yet")
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as place:  # files keep the path they were made at: none of somebody's home
        make(Path(place) / sys.argv[1])
        shutil.copytree(Path(place) / sys.argv[1], HERE / sys.argv[1])
