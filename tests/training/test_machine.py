"""What a machine does not tell is not asked of it."""

from __future__ import annotations

import os
import sys

import pytest

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
    with pytest.raises(
        ConfigError, match="training.devices 2: a notebook or console cannot start the 2 processes"
    ):
        machine.require_machine(two)
    machine.require_machine(two.model_copy(update={"devices": 1}))
