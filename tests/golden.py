"""Golden runs: losses and predictions of small fits, kept in tests/training/golden and compared by test_golden.py.

`python tests/golden.py` writes them anew: only after a change that is meant to change what a fit learns, and saying so.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import scdfm
from scdfm.files import written_whole
from scdfm.training.module import FlowModule

FOLDER = Path(__file__).parent / "training" / "golden"
TERMS = ("cfm", "mmd", "loss")
PRESETS = ("default", "instant", "paper", "tiny")
GENES = 6
"""Genes that are kept of each predicted condition, about."""

# All that the preset says, but for what would take long; whichever weights are kept, they are the last.
TRACED: dict[str, Any] = {
    "training": {"max_steps": 20, "validate_every": 20, "validation_cells": 4, "accelerator": "cpu", "keep": "last"}
}
SMALL: dict[str, Any] = {
    "model": {"width": 16, "heads": 2, "gene_heads": 2, "layers": 2},
    "training": {"max_steps": 8, "warmup_steps": 2, "validate_every": 8, "validation_cells": 8,
                 "cells_per_condition": 8, "accelerator": "cpu", "keep": "last"},
    "sampling": {"cells": 12},
}  # fmt: skip


def config_of(preset: str) -> scdfm.Config:
    """The preset; of so few conditions one validates, as a tenth says, where the preset names no share."""
    config = scdfm.Config.preset(preset)
    unnamed = config.split.validation_fraction is None
    return config.updated({"split": {"validation_fraction": 0.1}}) if unnamed else config


def cells() -> scdfm.CellTable:
    """A screen of more genes than one step of the preset `default` draws."""
    screen = scdfm.simulate(n_genes=130, n_targets=6, cells_per_condition=16, n_controls=40, seed=11)
    return scdfm.read_cells(screen)


@contextmanager
def watched() -> Iterator[list[dict[str, float]]]:
    """The terms of each step's loss, as the module logs them, in a list that grows while a fit runs."""
    losses: list[dict[str, float]] = []
    log = FlowModule.log_dict

    def logged(self: FlowModule, values: Any, *args: Any, **options: Any) -> None:
        if "cfm" in values:
            losses.append({name: float(values[name]) for name in TERMS})
        log(self, values, *args, **options)

    with mock.patch.object(FlowModule, "log_dict", logged):
        yield losses


def trace(out: Path) -> list[dict[str, float]]:
    """Losses of the first 20 steps of the preset `default`."""
    with watched() as losses:
        scdfm.fit(cells(), config=config_of("default").updated(TRACED), out=out, progress=False)
    return losses


def predictions(preset: str, out: Path) -> dict[str, dict[str, list[float]]]:
    """Mean and deviation of a few genes in the predicted test conditions of a small fit of a preset."""
    config = config_of(preset)
    if config.training.max_steps:
        config = config.updated(SMALL)
    run = scdfm.fit(cells(), config=config, out=out, progress=False)
    predicted = run.predict(seed=5)
    table = predicted.to_df().iloc[:, :: len(run.genes) // GENES]
    of_condition = table.groupby(predicted.obs["perturbation"], observed=True)
    found = {"mean": of_condition.mean(), "deviation": of_condition.std()}
    return {
        name: {what: [float(x) for x in values.loc[name]] for what, values in found.items()} for name in run.split.test
    }


def main() -> None:
    """Write the golden files, or to the folder that is named."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        found: dict[str, Any] = {"losses": trace(Path(scratch) / "trace")}
        found |= {name: predictions(name, Path(scratch) / name) for name in PRESETS}
    for name, values in found.items():
        with written_whole(folder / f"{name}.json") as path:
            path.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
