"""Fixtures of every test: the public data folder, and shapes checked while testing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

SHARED = Path(__file__).resolve().parents[2] / "shared"

# Shapes in signatures are promises; beartype holds the code to them during tests.
install_import_hook(["scdfm.model", "scdfm.flow"], "beartype.beartype")


@pytest.fixture(autouse=True)
def threads_kept() -> Iterator[None]:
    """No test leaves torch with more threads: those would spin for a core, and make every later test many times slower."""
    before = torch.get_num_threads()
    yield
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == before, "openmp_threads_kept() belongs around the call that starts numba's threads"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of public data and golden files beside the checkout; without it the test is skipped (CI: fails)."""
    if not (SHARED / "golden").is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"real-data tests would be skipped: {SHARED} is missing")
        pytest.skip(f"needs public data files in {SHARED}")
    return SHARED


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run `scdfm ARGS` in this process: exit code, standard output, standard error."""
    from scdfm import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["scdfm", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = 0 if stop.code is None else int(stop.code)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
