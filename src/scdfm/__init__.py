"""scdfm predicts how populations of cells answer perturbations nobody has measured.

    cells = scdfm.read_cells("screen.h5ad", perturbation_key="perturbation", control="control")
    split = scdfm.additive_split(cells, fold=0)
    run = scdfm.fit(cells, split, scdfm.Config.preset("default"), out="run")
    predicted = run.predict(["A+B"], n_cells=200, seed=0)
    table = scdfm.evaluate(predicted, "screen.h5ad", training=run)

Names are imported when they are first used, so that `import scdfm` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scdfm.benchmarking import benchmark
    from scdfm.config import Config
    from scdfm.data import (
        CellTable,
        Split,
        additive_split,
        column_split,
        combinations_split,
        covariate_split,
        file_split,
        holdout_split,
        join_screens,
        make_split,
        read_cells,
        simulate,
    )
    from scdfm.errors import ScdfmError
    from scdfm.evaluation import differences, evaluate, evaluate_against, hits, read_counts, scaled, summarise
    from scdfm.options import DataConfig
    from scdfm.run import Run
    from scdfm.screening import Identification, Screen, identify, interactions, screen
    from scdfm.training import fit

_HOMES = {
    "scdfm.benchmarking": ("benchmark",),
    "scdfm.config": ("Config",),
    "scdfm.data": (
        "CellTable", "Split", "additive_split", "column_split", "combinations_split", "covariate_split", "file_split",
        "holdout_split", "join_screens", "make_split", "read_cells", "simulate",
    ),
    "scdfm.errors": ("ScdfmError",),
    "scdfm.evaluation": (
        "differences", "evaluate", "evaluate_against", "hits", "read_counts", "scaled", "summarise",
    ),
    "scdfm.options": ("DataConfig",),
    "scdfm.run": ("Run",),
    "scdfm.screening": ("Identification", "Screen", "identify", "interactions", "screen"),
    "scdfm.training": ("fit",),
}  # fmt: skip
"""Where each public name stands."""
_MODULES = {"datasets": "scdfm.datasets", "features": "scdfm.data.features"}

__all__ = [
    "CellTable", "Config", "DataConfig", "Identification", "Run", "ScdfmError", "Screen", "Split", "additive_split",
    "benchmark", "column_split", "combinations_split", "covariate_split", "differences", "evaluate",
    "evaluate_against", "file_split", "fit", "hits", "holdout_split", "identify", "interactions", "join_screens",
    "make_split", "read_cells", "read_counts", "scaled", "screen", "simulate", "summarise",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("scdfm")
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'scdfm' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
