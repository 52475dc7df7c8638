"""docs/differences.md names real options, and every default that the preset `paper` changes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scdfm.config import Config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "differences.md"
SECTIONS = {name: value for name, value in Config().model_dump().items() if isinstance(value, dict)}


def named() -> set[str]:
    return set(re.findall(rf"`((?:{'|'.join(SECTIONS)})\.\w+)", PAGE.read_text(encoding="utf-8")))


def test_every_option_named_is_one() -> None:
    for option in named():
        section, key = option.split(".")
        assert key in SECTIONS[section], option


@pytest.mark.parametrize("section", SECTIONS)
def test_every_default_that_paper_changes_is_told(section: str) -> None:
    paper = Config.preset("paper").model_dump()[section]
    changed = {f"{section}.{key}" for key, value in SECTIONS[section].items() if paper[key] != value}
    assert changed <= named()


def test_the_values_of_the_page_are_those_of_the_preset() -> None:
    paper = Config.preset("paper")
    page = PAGE.read_text(encoding="utf-8")
    back = re.findall(r"`(\w+\.\w+) = ([^`]+)`", page)
    assert len(back) > 20
    published = {"negative_edges": "false", "source": '"poisson"', "solver": '"euler"', "steps": "100"}
    for option, value in back:
        key = option.split(".")[1]
        if published.get(key) != value:
            assert paper.with_settings([f"{option}={value}"]) == paper, f"{option} = {value}"
