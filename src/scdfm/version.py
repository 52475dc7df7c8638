"""Which scdfm this is: the release, and the commit that it was built from or stands at."""

from __future__ import annotations

import shutil
import subprocess  # nosec B404
from importlib import metadata
from pathlib import Path

PACKAGE = Path(__file__).parent
COMMIT = "commit.txt"
"""Written into the package when a wheel is built in a checkout (setup.py)."""


def version() -> str:
    """The release and, where it can be known, the commit: `0.1.0 (commit 1a2b3c4)`; `-dirty` with changes of its own."""
    release, commit = metadata.version("scdfm"), built_from() or standing_at()
    return f"{release} (commit {commit})" if commit else release


def built_from() -> str | None:
    """The commit written by the build; None for a checkout, or a build outside of one."""
    written = PACKAGE / COMMIT
    return written.read_text(encoding="utf-8").strip() or None if written.is_file() else None


def standing_at(root: Path = PACKAGE.parents[1]) -> str | None:
    """The commit of the checkout `root`; None where there is none, or no git."""
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    command = [git, "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        # The command is fixed; only the place of this file enters it.
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603  # nosec B603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
