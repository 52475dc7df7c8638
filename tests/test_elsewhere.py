"""What only Linux has is taken away: the chain from file to scores gives the same numbers, also where no signal comes."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

import scdfm

LINUX = ("fork", "forkpty", "sysconf", "sched_getaffinity", "preadv", "pread", "register_at_fork", "getuid", "statvfs")
"""Calls of os that Windows, or macOS, or both lack."""
OPTIONS = {
    "model": {"width": 8, "heads": 1, "gene_heads": 1, "layers": 1},
    "flow": {"genes_per_step": 10},
    "training": {"max_steps": 3, "validate_every": 2, "validation_cells": 4},
}


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("screen") / "screen.h5ad"
    adata = scdfm.simulate(n_genes=20, n_targets=4, cells_per_condition=12, n_controls=40, truth_cells=5, seed=0)
    adata.write_h5ad(path)
    return path


def chain(screen: Path, out: Path) -> tuple[np.ndarray, float]:
    """Predicted cells and their mean L2, of a fit whose cells stay on disk."""
    cells = scdfm.read_cells(screen, backed=True)
    run = scdfm.fit(cells, config=scdfm.Config().updated(OPTIONS), out=out, progress=False)
    predicted = run.predict(n_cells=8, seed=0)
    table = scdfm.evaluate(predicted, cells, training=run, metrics=["l2", "de_spearman"], references=False)
    return predicted.X.toarray(), float(table.loc[table["metric"] == "l2", "value"].mean())


@pytest.fixture(scope="module")
def usual(screen: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, float]:
    return chain(screen, tmp_path_factory.mktemp("usual") / "run")


def test_calls_that_only_linux_has_are_not_needed(
    screen: Path, usual: tuple[np.ndarray, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LINUX:
        monkeypatch.delattr(os, name, raising=False)
    cells, l2 = chain(screen, tmp_path / "run")
    np.testing.assert_array_equal(cells, usual[0])
    assert l2 == usual[1]


def test_a_folder_that_cannot_be_opened_is_no_reason_to_fail(
    screen: Path, usual: tuple[np.ndarray, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_ = os.open

    def windows(path, *given, **options):
        if isinstance(path, str | Path) and Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return open_(path, *given, **options)

    monkeypatch.setattr(os, "open", windows)
    np.testing.assert_array_equal(chain(screen, tmp_path / "run")[0], usual[0])


def test_signals_are_not_needed(screen: Path, usual: tuple[np.ndarray, float], tmp_path: Path) -> None:
    """In a thread Python refuses handlers of signals; the fit goes on without."""
    found: list[np.ndarray] = []
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: found.append(chain(screen, tmp_path / "run")[0]))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0], usual[0])
    assert signal.getsignal(signal.SIGTERM) == before
