"""The site says what the code has: generated pages are up to date, every name, metric and benchmark has its place."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import scdfm
from scdfm.evaluation.metrics import LOWER_IS_BETTER, METRICS, RANGES, RESPONDERS, VCC_SCORED

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SCORED = (*METRICS, *RESPONDERS, *VCC_SCORED)
ENTRIES = re.compile(r"### (\w+)\n\n.+\n\nDefinition\n: (?:.+\n)+\nRange\n: (.+)\.\n\nWhen it misleads\n: .+\n")


def module(name: str):
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def test_generated_pages_are_those_of_the_code() -> None:
    for path, made in module("generate").pages():
        assert path.read_text(encoding="utf-8") == made, f"{path.name}: run python docs/generate.py"


def test_a_new_option_changes_the_page() -> None:
    generate = module("generate")
    assert "`--propose`" in generate.cli_page()
    assert "`training.max_steps` *integer ≥ 0*, default `1000`" in generate.options_page()


@pytest.mark.parametrize("name", scdfm.__all__)
def test_every_public_name_is_in_the_reference_with_an_example(name: str) -> None:
    page = text("reference/api.md")
    assert re.search(rf"auto(function|class|exception):: scdfm\.{name}$", page, flags=re.MULTILINE)
    examples = "\n".join(re.findall(r"```\{code-cell\}\n(.*?)```", page, flags=re.DOTALL))
    objects = {"CellTable": "cells.", "Split": "split.", "Identification": "found.", "Run": "scdfm.Run"}
    assert objects.get(name, f"scdfm.{name}") in examples


def test_every_metric_has_definition_range_and_warning() -> None:
    told = dict(ENTRIES.findall(text("reference/metrics.md")))
    assert sorted(told) == sorted(SCORED)
    for name, said in told.items():
        low, high = RANGES.get(name, (-np.inf, np.inf))
        words = {
            (-np.inf, np.inf): "any number", (0, np.inf): "0 and up", (-1, 1): "−1 to 1", (0, 1): "0 to 1",
            (-np.inf, 1): "up to 1",
        }[low, high]  # fmt: skip
        better = "lower" if name in LOWER_IS_BETTER else "higher"
        assert said == f"{words}, {better} is better", name


def test_every_benchmark_page_is_linked() -> None:
    linked = set(re.findall(r"</benchmarks/results/([\w-]+)>", text("benchmarks.md")))
    assert linked == {path.stem for path in (ROOT / "benchmarks/results").glob("*.md")}


def test_the_glossary_has_thirty_terms_in_order() -> None:
    terms = re.findall(r"^(\S.*)\n  \S", text("glossary.md"), flags=re.MULTILINE)
    assert len(terms) == 30
    assert terms == sorted(terms, key=str.lower)


def test_every_page_is_in_the_index() -> None:
    listed = set(re.findall(r"^[\w/-]+$", text("index.md"), flags=re.MULTILINE))
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")} - {"index"}
    assert {entry for entry in listed if not entry.startswith("/")} == pages


@pytest.mark.parametrize(
    ("plain", "rst"),
    [
        (["One line", "goes on."], ["One line goes on.", ""]),
        (
            ["seed: names draws", "    and more.", "out: a folder."],
            ["- **seed**: names draws and more.", "- **out**: a folder.", ""],
        ),
        (["`a|b` and c|d, *e, f_"], ["``a|b`` and c\\|d, \\*e, f\\_", ""]),
    ],
)  # fmt: skip
def test_docstrings_become_lists_and_code(plain: list[str], rst: list[str]) -> None:
    assert module("docstrings").as_rst(plain) == rst
