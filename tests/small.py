"""A small screen, small options and a small run, which many tests begin with; each test says what it has otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anndata import AnnData

import scdfm

SCREEN: dict[str, Any] = {"n_genes": 50, "n_targets": 5, "cells_per_condition": 12, "n_controls": 30, "seed": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    "panel": {"n_genes": 30},
    "graph": {"k": 5},
    "model": {"width": 16, "heads": 2, "gene_heads": 2, "layers": 1},
    "flow": {"genes_per_step": 24},
    "training": {"max_steps": 2, "warmup_steps": 1, "validate_every": 2, "conditions_per_batch": 2,
                 "cells_per_condition": 4, "validation_cells": 4, "accelerator": "cpu", "keep": "last"},
    "sampling": {"steps": 1, "cells": 5},
}  # fmt: skip


SIX_STEPS: dict[str, Any] = {"max_steps": 6, "warmup_steps": 2, "validate_every": 3}
"""Training that validates twice."""


def screen(**over: Any) -> AnnData:
    """A simulated screen of a few targets; `over`: other arguments of `simulate`."""
    return scdfm.simulate(**(SCREEN | over))


def options(**over: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of a fit of seconds; `over`: tables of them, whose entries stand instead."""
    return {name: OPTIONS.get(name, {}) | over.get(name, {}) for name in (*OPTIONS, *over.keys() - OPTIONS.keys())}


def config(**over: dict[str, Any]) -> scdfm.Config:
    """The config of `options`, over the preset `default`."""
    return scdfm.Config().updated(options(**over))


def run(out: Path, cells: scdfm.CellTable | None = None, **over: dict[str, Any]) -> scdfm.Run:
    """A run of that config on `cells` (None: those of `screen`) in the folder `out`."""
    cells = scdfm.read_cells(screen()) if cells is None else cells
    return scdfm.fit(cells, config=config(**over), out=out, progress=False)
