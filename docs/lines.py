"""Line numbers in docs/paper.md: `path:LINE name` says where a class or function is defined. Run to mend them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/paper.md"
PLACE = re.compile(r"`(?P<path>[\w/]+\.py):(?P<line>\d+) (?P<name>\w+)`")


def mended(text: str) -> str:
    """The text with every place at the line where its name is defined; KeyError for a name that is nowhere."""
    return PLACE.sub(lambda found: f"`{found['path']}:{line_of(found['path'], found['name'])} {found['name']}`", text)


def line_of(path: str, name: str) -> int:
    """The line that begins the definition of a class or function."""
    start = re.compile(rf"(class|def) {name}\b")
    for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1):
        if start.match(line):
            return number
    raise KeyError(f"{path} defines no {name}")


if __name__ == "__main__":
    PAGE.write_text(mended(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
