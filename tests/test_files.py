"""Files appear whole or not at all; seeds name independent streams."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import scdfm
from scdfm.errors import DataError, DiskFullError, StorageError
from scdfm.files import file_digest, new_folder, write_json, write_text, written_whole
from scdfm.seeds import derive, numpy_rng, torch_rng


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half way"), written_whole(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError("half way")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_a_write_takes_the_final_name_at_the_end_only(tmp_path):
    path = tmp_path / "table.csv"
    with written_whole(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.suffix == ".csv"
    assert path.read_text() == "new"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("Can't write data (errno = 28, error message = 'No space left on device')"),
    ],
)
def test_a_full_disk_leaves_the_old_file_and_says_how_much_is_needed(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with (
        pytest.raises(DiskFullError, match=r"table.csv cannot be written.*more than the 1,234 bytes") as raised,
        written_whole(path) as temporary,
    ):
        temporary.write_bytes(b"x" * 1234)
        raise error
    assert "is still the one before; free some space" in str(raised.value)
    with pytest.raises(DiskFullError, match="9,999 bytes are needed"), written_whole(path, 9999):
        raise error
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_a_limit_of_file_size_set_by_the_system_is_met(tmp_path):
    """The system itself refuses, in a process of its own."""
    code = """
import resource, sys
from scdfm.errors import DiskFullError
from scdfm.files import written_whole
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with written_whole(sys.argv[1]) as temporary:
        temporary.write_bytes(bytes(10_000))
except DiskFullError as error:
    print(error)
"""
    path = tmp_path / "table.csv"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert "more than the 4,096 bytes written are needed" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_parts_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path):
    path = tmp_path / "table.csv"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with written_whole(path) as living:
        living.write_text("mine")
        dead = living.with_name(living.name.replace(f"-{os.getpid()}.", f"-{ended.pid}."))
        other = tmp_path / dead.name.replace("table", "other")
        dead.write_text("ha")
        other.write_text("ha")
        with written_whole(tmp_path / "table.txt") as second:
            second.write_text("x")
        assert dead.exists()
    with written_whole(path) as temporary:
        temporary.write_text("new")
    assert {p.name for p in tmp_path.iterdir()} == {"table.csv", "table.txt", other.name}
    (tmp_path / "table.csv").unlink()
    (tmp_path / "table.txt").unlink()
    assert new_folder(tmp_path) == tmp_path  # an abandoned part is nothing


def test_json_refuses_what_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_new_folder_refuses_files_full_folders_and_folders_that_cannot_be(tmp_path):
    assert new_folder(tmp_path / "a" / "b").is_dir()
    assert new_folder(tmp_path / "a" / "b").is_dir()  # empty: fine
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="found a file; choose another --out"):
        new_folder(tmp_path / "file")
    with pytest.raises(DataError, match="cannot be created"):
        new_folder(tmp_path / "file" / "inside")
    with pytest.raises(DataError, match="exists and is not empty"):
        new_folder(tmp_path)


def test_streams_are_repeatable_and_distinct():
    assert derive(0, "a", 1) == derive(0, "a", 1)
    assert len({derive(seed, path, i) for seed in range(10) for path in "ab" for i in range(100)}) == 2000
    assert numpy_rng(3, "x").integers(1 << 60) == numpy_rng(3, "x").integers(1 << 60)
    assert torch.equal(torch.rand(3, generator=torch_rng(3, "x")), torch.rand(3, generator=torch_rng(3, "x")))
    draws = np.array([numpy_rng(0, "u", i).random() for i in range(2000)])
    assert abs(draws.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 2000)  # streams of neighbouring names are unrelated


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    from scdfm.data.splits import file_split
    from scdfm.files import read_names

    (tmp_path / "names.txt").write_text("A+B\nC\n", encoding="utf-8-sig")
    assert read_names(tmp_path / "names.txt", "names") == ["A+B", "C"]
    (tmp_path / "split.toml").write_text('test = ["A"]\n', encoding="utf-8-sig")
    assert file_split(tmp_path / "split.toml", ["A", "B", "C"]).test == ("A",)


def test_folders_that_the_system_does_not_open_are_not_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def without_folders(path: Any, *given: Any, **options: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied")
        return opened(path, *given, **options)

    monkeypatch.setattr(os, "open", without_folders)
    write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, os.strerror(errno.EIO)),
        RuntimeError("file write failed: errno = 5, error message = 'Input/output error'"),
    ],
)
def test_a_broken_disk_leaves_the_old_file_and_is_told_in_one_line(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with (
        pytest.raises(StorageError, match=r"table.csv cannot be written \(Input/output error\); mend that"),
        written_whole(path) as temporary,
    ):
        temporary.write_text("new")
        raise error
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("table.csv", "old")]


def test_what_hdf5_can_but_print_is_an_error(tmp_path, monkeypatch, capsys):
    """h5py ignores what fails when an object is freed; the file would lack its values."""
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)

    def freed(owner, error):
        sys.unraisablehook(SimpleNamespace(object=owner, exc_value=error))

    lost = RuntimeError("Can't decrement id ref count (error message = 'Input/output error')")
    with pytest.raises(StorageError, match="cannot be written"), written_whole(tmp_path / "a.h5ad") as part:
        part.write_bytes(b"lacks values")
        freed("h5py._objects.ObjectID.__dealloc__", lost)
    assert list(tmp_path.iterdir()) == []
    with written_whole(tmp_path / "a.h5ad") as part:
        part.write_bytes(b"whole")
        freed("somebody.else", lost)
    assert [told.object for told in heard] == ["somebody.else"]
    assert sys.unraisablehook == heard.append


def test_a_store_that_fails_leaves_no_coroutine_that_complains(tmp_path):
    async def later():
        pass

    def fails():
        waiting = later()
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(waiting))

    with pytest.raises(StorageError, match="cannot be written"), written_whole(tmp_path / "a"):
        fails()


def test_a_file_that_cannot_be_read_to_its_end_has_no_digest(tmp_path, monkeypatch):
    def broken(*given):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "a").write_text("a")
    monkeypatch.setattr(hashlib, "file_digest", broken)
    with pytest.raises(StorageError, match=r"a cannot be read \(Input/output error\); mend that"):
        file_digest(tmp_path / "a")


def test_a_disk_that_fails_elsewhere_is_no_fault_of_the_program(call, tmp_path, monkeypatch):
    def broken(*given, **options):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "some/file")

    monkeypatch.setattr(scdfm.Run, "load", broken)
    code, out, err = call("predict", tmp_path, "--test", "--out", tmp_path / "p.h5ad")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: some/file cannot be read or written (Input/output error); mend that")
