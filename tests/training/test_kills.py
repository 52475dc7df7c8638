"""SIGKILL in the middle of a fit and of a prediction: nothing broken, and the same bits after going on."""

from __future__ import annotations

import importlib
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_killed_processes_break_no_file_and_resume_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    kills = importlib.import_module("kills")
    table = kills.run(tmp_path, 2, seed=1, names=("fit", "predict"))
    assert sum(~table["ended_before"]) == 2
    assert set(table["command"]) == {"fit", "predict"}
    assert (table["broken"] == "").all()
    assert (table["differing"] == "").all()
    (tmp_path / "half.h5ad").write_bytes(b"HDF")
    assert not kills.is_whole(tmp_path / "half.h5ad")  # what the check above can see
