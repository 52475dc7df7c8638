"""A sample of the failures of benchmarks/faults.py: every 120th file operation of a fit and of a prediction."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import scdfm

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)
def test_work_endures_that_a_file_operation_fails(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--commands", "fit,predict", "--every", "60"]
    command += ["--work", str(tmp_path), "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(scdfm.__file__).parents[1])}
    done = subprocess.run(
        [*command, "--work", str(tmp_path), "--out", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [
        line for line in (tmp_path / "faults.md").read_text().splitlines() if line.startswith(("| fit", "| predict"))
    ]
    assert len(rows) == 2
    for row in rows:
        points, faults = (int(row.split("|")[place]) for place in (2, -2))
        assert points > 2
        assert faults == 0
