"""Writes the commit into a wheel, so that `scdfm --version` tells it; everything else stands in pyproject.toml."""

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithCommit(build_py):
    """Puts commit.txt beside the modules; without git, or outside of a checkout, there is none."""

    def run(self) -> None:
        super().run()
        if self.editable_mode or not (ROOT / ".git").exists():
            return
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return
        (Path(self.build_lib) / "scdfm" / "commit.txt").write_text(done.stdout, encoding="utf-8")


setup(cmdclass={"build_py": BuildWithCommit})
