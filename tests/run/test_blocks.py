"""Blocks of a shard: found again as they were, whoever else does the same shard."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from scdfm.errors import StorageError
from scdfm.run import blocks
from scdfm.run.blocks import Blocks


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the clock shows."""
    now = [0.0]
    monkeypatch.setattr(blocks, "clock", lambda: now[0])
    return now


def test_blocks_are_written_now_and_then_and_found_by_their_names(tmp_path: Path, time: list[float]) -> None:
    solved: list[float] = []

    def solve(value: float) -> torch.Tensor:
        solved.append(value)
        return torch.full((2, 3), value)

    first = Blocks(tmp_path / "s.blocks")
    first.of("A/B")("x", lambda: solve(1))
    assert not first.folder.exists()  # nothing is written of a shard that takes no time
    time[0] = 30.0
    first.of("A/B")("y", lambda: solve(2))
    first.of("A/B")("z", lambda: solve(3))  # after the last file: lost
    again = Blocks(tmp_path / "s.blocks")
    found = [again.of("A/B")(name, lambda: solve(4)) for name in "xyz"]
    assert torch.equal(torch.stack(found)[:, 0, 0], torch.tensor([1.0, 2.0, 4.0]))
    assert float(again.of("A+B")("x", lambda: solve(5))[0, 0]) == 5.0
    assert solved == [1, 2, 3, 4, 5]
    again.remove()
    assert not again.folder.exists()


def test_another_process_may_finish_the_shard_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then its blocks are gone and nobody needs these; a disk that fails is told all the same."""

    def failing(*_: object) -> None:
        raise StorageError("cannot be written")

    late = Blocks(tmp_path / "s.blocks")
    late.of("A")("x", lambda: torch.zeros(1))
    monkeypatch.setattr(blocks, "write_tensors", failing)
    with pytest.raises(StorageError):
        late.write()
    monkeypatch.setattr(blocks, "write_tensors", lambda *_: (shutil.rmtree(late.folder), failing()))
    late.write()
    assert not late.folder.exists()
