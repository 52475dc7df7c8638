"""What a machine does not tell is not asked of it."""

from __future__ import annotations

import os

import pytest

from scdfm.training import machine


def test_memory_is_unknown_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.memory() > 1 << 28
    monkeypatch.delattr(os, "sysconf")
    assert machine.memory() is None
