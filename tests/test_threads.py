"""The number of threads the user gives to the process is left alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

WORK = {
    "scores": "scdfm.evaluate(None, cells, training=cells.means(), metrics=['de_spearman', 'energy'])",
    "genes": "scdfm.data.select_genes(cells, scdfm.additive_split(cells), scdfm.Config().panel.model_copy("
    "update={'n_genes': 20}))",
}


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("first", ["", "import torch; "], ids=["torch later", "torch first"])
def test_torch_keeps_the_threads_it_was_given(work, first):
    """In a process of its own: numba starts its pool once, and what that sets would stay."""
    code = (
        f"{first}import scdfm, scdfm.data\n"
        "cells = scdfm.read_cells(scdfm.simulate(n_genes=40, n_targets=5, cells_per_condition=10, n_controls=20))\n"
        f"{WORK[work]}\nimport torch\nprint(torch.get_num_threads())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert done.stdout.strip() == "1"
