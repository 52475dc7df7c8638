"""README: short, its code prints what it says, its links are there; citation and recipe are of this version."""

from __future__ import annotations

import contextlib
import io
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"-?\d+\.\d+")


def test_it_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 120
    assert max(len(line) for line in lines if not line.startswith("|")) <= 120


def test_bullets_have_at_most_twelve_words() -> None:
    bullets = re.findall(r"^- (.+)$", README, flags=re.MULTILINE)
    assert len(bullets) >= 10
    for bullet in bullets:
        assert len(re.sub(r"\]\([^)]*\)", "]", bullet).split()) <= 12, bullet


def test_the_code_prints_what_stands_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", README, flags=re.DOTALL).groups()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "README.md", "exec"), {})
    assert NUMBER.sub("", said.getvalue()).split() == NUMBER.sub("", printed).split()
    found, expected = (list(map(float, NUMBER.findall(text))) for text in (said.getvalue(), printed))
    assert found == pytest.approx(expected, abs=0.03)  # another CPU rounds otherwise


def test_its_links_and_pictures_are_there() -> None:
    places = re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", README)
    assert len(places) > 30
    for place in filter(None, (one for pair in places for one in pair)):
        path, _, anchor = place.partition("#")
        assert (ROOT / path).is_file(), place
        if anchor:
            headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}, place


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert cited["version"] == declared["tool"]["setuptools_scm"]["fallback_version"]
    project = declared["project"]
    assert cited["license"] == project["license"]


def test_the_recipe_has_the_version_and_the_dependencies() -> None:
    recipe = yaml.safe_load((ROOT / "recipe/recipe.yaml").read_text(encoding="utf-8"))
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert recipe["context"]["version"] == declared["tool"]["setuptools_scm"]["fallback_version"]
    project = declared["project"]
    assert recipe["requirements"]["host"][2:] == [
        one.replace(">=", " >=") for one in declared["build-system"]["requires"]
    ]
    python, *run = recipe["requirements"]["run"]
    assert python == f"python {project['requires-python']}"
    conda = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
    names = [re.match(r"[\w-]+", one)[0] for one in project["dependencies"]]
    expected = [
        f"{conda.get(name, name)} {one[len(name) :]}" for name, one in zip(names, project["dependencies"], strict=True)
    ]
    assert run == expected
