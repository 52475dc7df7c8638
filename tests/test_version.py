"""The version tells the commit: of a build what the build wrote, of a checkout where it stands, else nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import scdfm
from scdfm import version


def test_a_build_tells_the_commit_it_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / version.COMMIT).write_text("1a2b3c4\n")
    monkeypatch.setattr(version, "PACKAGE", tmp_path)
    assert version.version() == f"{scdfm.__version__} (commit 1a2b3c4)"


def test_without_a_commit_the_release_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "PACKAGE", tmp_path)
    monkeypatch.setattr(version, "standing_at", lambda: None)
    assert version.version() == scdfm.__version__


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_checkout_tells_where_it_stands_and_what_was_changed(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *own, *words], check=True, capture_output=True, text=True
        ).stdout

    assert version.standing_at(tmp_path) is None
    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "one")
    commit = version.standing_at(tmp_path)
    assert commit
    assert git("rev-parse", "HEAD").startswith(commit)
    (tmp_path / "a").write_text("2")
    assert version.standing_at(tmp_path) == f"{commit}-dirty"


def test_without_git_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert version.standing_at(tmp_path) is None
    monkeypatch.undo()
    assert version.standing_at(tmp_path) is None  # a folder that git refuses
