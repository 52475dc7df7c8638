"""SIGKILL in the middle of a fit and of a prediction: nothing broken, and the same bits after going on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

KILLS = Path(__file__).parents[2] / "benchmarks" / "kills.py"


def test_killed_processes_break_no_file_and_resume_to_the_same_bits(tmp_path):
    specification = importlib.util.spec_from_file_location("kills", KILLS)
    kills = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(kills)
    table = kills.run(tmp_path, 2, seed=1, names=("fit", "predict"))
    assert sum(~table["ended_before"]) == 2
    assert set(table["command"]) == {"fit", "predict"}
    assert (table["broken"] == "").all()
    assert (table["differing"] == "").all()
    (tmp_path / "half.h5ad").write_bytes(b"HDF")
    assert not kills.is_whole(tmp_path / "half.h5ad")  # what the check above can see
