"""Tiny runs on a simulated screen, shared by the tests of screening."""

from __future__ import annotations

from pathlib import Path

import pytest

import scdfm

OPTIONS = {
    "panel": {"n_genes": 30},
    "graph": {"k": 5},
    "model": {"width": 16, "heads": 2, "gene_heads": 2, "layers": 1},
    "flow": {"genes_per_step": 36},
    "training": {"max_steps": 4, "warmup_steps": 1, "validate_every": 4, "conditions_per_batch": 2,
                 "cells_per_condition": 4, "validation_cells": 4, "accelerator": "cpu", "keep_controls": 20},
    "sampling": {"solver": "euler", "steps": 1, "cells": 5},
}  # fmt: skip
TARGETS = 5


@pytest.fixture(scope="session")
def options():
    """Options of a fit that takes a second."""
    return OPTIONS


@pytest.fixture(scope="session")
def cells():
    """Cells of five singles and eight of their ten pairs."""
    screen = scdfm.simulate(
        n_genes=40, n_targets=TARGETS, n_doubles=8, cells_per_condition=12, n_controls=30, truth_cells=10, seed=3
    )
    return scdfm.read_cells(screen)


@pytest.fixture(scope="session")
def runs(cells, tmp_path_factory) -> tuple[scdfm.Run, scdfm.Run]:
    """Two fits that differ by their seed."""
    folder = tmp_path_factory.mktemp("screening")
    split = scdfm.additive_split(cells, fold=0)
    return tuple(
        scdfm.fit(cells, split, scdfm.Config().updated({**OPTIONS, "seed": seed}), out=folder / f"run{seed}",
                  progress=False)
        for seed in (0, 1)
    )  # fmt: skip


@pytest.fixture(scope="session")
def run(runs) -> scdfm.Run:
    """One of them."""
    return runs[0]


@pytest.fixture(scope="session")
def finished(run, tmp_path_factory):
    """A finished screen of every pair, with its cells and two proposals."""
    out: Path = tmp_path_factory.mktemp("finished") / "screen"
    return scdfm.screen(run, out=out, cells=6, propose=2, keep_cells=True, shard=4, seed=1)
