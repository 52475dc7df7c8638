"""What a machine does not tell is not asked of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scdfm
from scdfm.cli.options import seconds_of
from scdfm.config import Config
from scdfm.errors import ConfigError
from scdfm.training import machine


def test_memory_is_unknown_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.memory() > 1 << 28
    monkeypatch.delattr(os, "sysconf")
    assert machine.memory() is None


def test_a_notebook_starts_no_further_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Config().updated({"training": {"accelerator": "cpu", "devices": 2}}).training
    machine.require_machine(two)
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(ConfigError, match="training.devices 2: a notebook or console cannot start the 2 processes"):
        machine.require_machine(two)
    machine.require_machine(two.model_copy(update={"devices": 1}))


SMALL = {
    "panel": {"n_genes": 25}, "graph": {"k": 5}, "model": {"width": 16, "heads": 2, "gene_heads": 2, "layers": 1},
    "training": {"max_steps": 500, "validate_every": 50, "validation_cells": 4, "accelerator": "cpu",
                 "cells_per_condition": 4, "keep": "last"},
    "flow": {"genes_per_step": 16}, "sampling": {"steps": 1, "cells": 5},
}  # fmt: skip


class Clock:
    """A clock that the fit moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def timed(monkeypatch: pytest.MonkeyPatch, preparation: float, step: float, validation: float) -> Any:
    """A fit that takes so long; its first three steps take longer."""
    clock = Clock()
    monkeypatch.setattr(machine, "time", clock)

    def fit(config: scdfm.Config, folder: Path, watch: machine.Stopwatch) -> None:
        clock.now += preparation
        for place in range(config.training.max_steps):
            clock.now += step * (5 if place < 3 else 1)
            watch.on_train_batch_end(None, None)
        watch.on_validation_start(None, None)
        clock.now += validation
        watch.on_validation_end(None, None)

    return fit


def test_steps_are_what_the_time_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe: 10 + 24 · .5 + 2 = 24 s; preparation 12.5 s and four validations 8 s again; each step .5 + 2 / 50 s."""
    fit = timed(monkeypatch, preparation=10.0, step=0.5, validation=2.0)
    config = scdfm.Config().updated(SMALL)
    assert machine.steps_within(300.0, config, fit) == int((300 - 24 - 12.5 - 8) / 0.54)


def test_too_short_a_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = timed(monkeypatch, preparation=10.0, step=0.5, validation=2.0)
    with pytest.raises(
        ConfigError, match=r"time 30 s: .* take 45 s here before a single step; give more time, or .*instant"
    ):
        machine.steps_within(30.0, scdfm.Config().updated(SMALL), fit)


def test_a_fit_writes_its_steps_into_the_run_and_repeats_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = scdfm.read_cells(scdfm.simulate(n_genes=30, n_targets=4, cells_per_condition=8, n_controls=20, seed=3))
    config = scdfm.Config().updated(SMALL)
    monkeypatch.setattr(sys.modules["scdfm.training.fit"], "steps_within", lambda seconds, config, fit: 7)
    run = scdfm.fit(cells, config=config, out=tmp_path / "timed", progress=False, seconds=60.0)
    assert run.config.training.max_steps == 7
    plain = scdfm.fit(
        cells, config=config.updated({"training": {"max_steps": 7}}), out=tmp_path / "plain", progress=False
    )
    np.testing.assert_array_equal(run.predict(seed=0).X.toarray(), plain.predict(seed=0).X.toarray())
    monkeypatch.setattr(sys.modules["scdfm.training.fit"], "steps_within", lambda seconds, config, fit: 9)
    again = scdfm.fit(cells, config=config, out=tmp_path / "timed", progress=False, seconds=60.0, resume=True)
    assert again.config.training.max_steps == 7


def test_the_probe_is_a_fit(tmp_path: Path) -> None:
    """With nothing replaced: some steps, no more than the time could hold at all, and the folder holds one run."""
    cells = scdfm.read_cells(scdfm.simulate(n_genes=30, n_targets=4, cells_per_condition=8, n_controls=20, seed=3))
    config = scdfm.Config().updated(SMALL)
    with pytest.raises(ConfigError, match="before a single step"):
        scdfm.fit(cells, config=config, out=tmp_path / "run", progress=False, seconds=1e-3)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"cannot be given with training.max_steps 0"):
        instant = config.updated({"training": {"max_steps": 0}})
        scdfm.fit(cells, config=instant, out=tmp_path / "run", progress=False, seconds=5.0)


def test_times() -> None:
    assert [seconds_of(text) for text in ("90s", "1.5m", "2h")] == [90, 90, 7200]
    for text in ("90", "m", "", "-3m", "infh", "3d"):
        with pytest.raises(ConfigError, match="expected a number and a unit"):
            seconds_of(text)
