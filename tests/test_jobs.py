"""Work begun, shared and resumed: the folder of a request, its parts, and the time that is left."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from scdfm import jobs
from scdfm.errors import ConfigError, DataError, RunError
from scdfm.jobs import Parts, TimeLeft, begun, duration, part_size
from scdfm.processes import Place, place

RECORD = {"cells": 4, "names": ["A", "B"]}


def test_a_folder_is_begun_once_and_resumed_with_the_same_request(tmp_path: Path) -> None:
    folder = begun(tmp_path / "job", "job.json", RECORD, resume=False)
    assert begun(folder, "job.json", RECORD, resume=True) == folder
    with pytest.raises(DataError, match="exists and is not empty"):
        begun(folder, "job.json", RECORD, resume=False)
    with pytest.raises(RunError, match=r"started with other cells \(4, not 5\); repeat the options"):
        begun(folder, "job.json", RECORD | {"cells": 5}, resume=True)
    (folder / "job.json").write_text("[")
    with pytest.raises(RunError, match="cannot be read as JSON"):
        begun(folder, "job.json", RECORD, resume=True)


@pytest.mark.parametrize("text", ['{"shard": 0}', '{"shard": "4"}', '{"shard": null}', '{"other": 4}', "[]", "["])
def test_a_record_that_tells_no_size_of_parts_is_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.json").write_text(text)
    assert part_size(tmp_path / "job.json") is None
    assert part_size(tmp_path / "nowhere.json") is None
    (tmp_path / "job.json").write_text('{"shard": 4}')
    assert part_size(tmp_path / "job.json") == 4


def test_resume_of_nothing_begins(tmp_path: Path) -> None:
    assert (begun(tmp_path / "job", "job.json", RECORD, resume=True) / "job.json").is_file()


def test_the_others_wait_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = threading.Timer(0.5, begun, (tmp_path / "job", "job.json", RECORD, False, Place(0, 2)))
    first.start()
    begun(tmp_path / "job", "job.json", RECORD, False, Place(1, 2))
    first.join()
    with pytest.raises(RunError, match="other cells"):
        begun(tmp_path / "job", "job.json", {"cells": 9}, False, Place(1, 2))
    monkeypatch.setattr(jobs, "PATIENCE", 0.0)
    with pytest.raises(RunError, match="rank 1 waited 0 s for rank 0"):
        begun(tmp_path / "nowhere", "job.json", RECORD, False, Place(1, 2))


def test_every_part_is_done_by_one_process(tmp_path: Path) -> None:
    parts = Parts(tmp_path, tuple("ABCDEFG"), 2, "{:03d}.txt")
    assert [parts.conditions(part) for part in range(len(parts))] == [("A", "B"), ("C", "D"), ("E", "F"), ("G",)]
    parts.path(1).write_text("done")
    assert parts.missing() == [0, 2, 3]
    shared = [Place(rank, 3).mine(parts.missing()) for rank in range(3)]
    assert sorted(part for share in shared for part in share) == parts.missing()
    assert Place(1, 3).mine([0, 1, 3, 4]) == [1, 4]  # by number, whatever the others have done meanwhile


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Place()),
        ({"RANK": "1", "WORLD_SIZE": "3"}, Place(1, 3)),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}, Place(2, 4)),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Place()),
        ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"}, Place(0, 2)),
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}, Place()),  # an array may do other things
    ],
)
def test_the_place_of_a_process(environment: dict[str, str], expected: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert place() == expected


@pytest.mark.parametrize(
    ("rank", "world", "words"),
    [("2", "2", "RANK 2 of WORLD_SIZE 2: expected 0 ≤ RANK"), ("x", "2", "expected whole numbers")],
)
def test_a_wrong_place_is_refused(rank: str, world: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(ConfigError, match=words):
        place()


def test_the_time_left_is_that_of_the_same_kind() -> None:
    left = TimeLeft(["ridge", "model", "ridge", "model"])
    left.finish(1.0)
    assert left.remaining() is None  # nothing is known of a model
    left.finish(10.0)
    assert left.remaining() == 11.0
    left.finish(None)
    assert (left.done, left.n, left.remaining()) == (3, 4, 10.0)
    left.finish(20.0)
    assert left.remaining() is None


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (600, "10 min"), (9000, "2.5 h"), (200_000, "2.3 days")])
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text
