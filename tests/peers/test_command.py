"""A command runs on one thread, its seconds and memory are told, and nothing of it outlives its hard stop."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from scdfm.peers import run_command

PYTHON = (sys.executable, "-S", "-c")


def test_it_gets_the_folder_and_one_core(tmp_path):
    text = "import os, sys; print(sys.argv[1], os.environ['OMP_NUM_THREADS'], repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    ran = run_command((*PYTHON, text), tmp_path, 60)
    assert ran.reason is None
    assert (tmp_path / "log.txt").read_text().split() == [str(tmp_path), "1", "''"]


def test_seconds_and_memory_are_those_of_its_processes(tmp_path):
    # Memory is looked at every POLL: what is held stays for ten looks after the last page was touched.
    busy = "import time; x = bytearray(200 << 20); end = time.process_time() + 1\nwhile time.process_time() < end: pass"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {busy!r}])"
    ran = run_command((*PYTHON, child), tmp_path, 60)
    assert 1 < ran.cpu < 30
    if ran.peak is not None:  # this process, with torch, is larger
        assert 200 < ran.peak < 300


def test_a_crash_tells_its_last_line(tmp_path):
    ran = run_command((*PYTHON, "print('reads'); raise SystemExit('no GPU here')"), tmp_path, 60)
    assert ran.reason == "ended with code 1: no GPU here"
    ran = run_command((str(tmp_path / "absent"),), tmp_path, 60)
    assert ran.reason.startswith("cannot be started (")


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path):
    child = "open(sys.argv[1] + '/pid', 'w').write(str(os.getpid()))"
    text = f"import os, sys, time; {child} if os.fork() == 0 else 0; time.sleep(99)"
    ran = run_command((*PYTHON, text), tmp_path, 0.3)
    assert "far past its budget" in ran.reason
    child = int((tmp_path / "pid").read_text())
    for _ in range(50):  # the kill reaches it, then its new parent takes note
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if "State:\tZ" in Path(f"/proc/{child}/status").read_text():
            return
        time.sleep(0.1)
    pytest.fail("its child still runs")


def test_a_command_that_goes_on_and_on_is_ended_by_its_cpu_seconds(tmp_path):
    begun = time.monotonic()
    ran = run_command((*PYTHON, "while True: pass"), tmp_path, 0.5)
    assert "far past its budget" in ran.reason
    assert 1 < ran.cpu <= time.monotonic() - begun
