"""docs/paper.md: every place it names is where it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def lines():
    spec = importlib.util.spec_from_file_location("lines", DOCS / "lines.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_places_are_where_the_page_says(lines) -> None:
    text = (DOCS / "paper.md").read_text(encoding="utf-8")
    assert len(lines.PLACE.findall(text)) > 20
    assert lines.mended(text) == text, "run python docs/lines.py"


def test_a_name_that_is_nowhere_is_told(lines) -> None:
    with pytest.raises(KeyError, match="defines no Nothing"):
        lines.mended("`src/scdfm/flow/loss.py:3 Nothing`")
