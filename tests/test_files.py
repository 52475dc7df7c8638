"""Files appear whole or not at all; seeds name independent streams."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scdfm.errors import DataError
from scdfm.files import new_folder, write_json, written_whole
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
