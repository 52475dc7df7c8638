"""What every page of scdfm shares: one file that loads nothing, its policy, style and escaping, and its provenance."""

from __future__ import annotations

import base64
import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from scdfm.evaluation.comparison import OUTCOMES
from scdfm.report.labels import heading, number, percent

if TYPE_CHECKING:
    from scdfm.run import Run

PACKAGES = ("scdfm", "numpy", "scipy", "pandas", "anndata", "illico")
"""Packages that decide the numbers of an evaluation."""
AS_CODE = ("digest", "command", "weights", "path")
HOME = "scdfm.report"


@dataclass(frozen=True)
class Fact:
    """One line of provenance; `code` where every character matters."""

    name: str
    text: str
    code: bool


def provenance(given: Mapping[str, Any], evaluation: Mapping[str, Any], run: Run | None) -> list[Fact]:
    """What the caller gives (command, ...), what the evaluation noted, what the run's manifest says, and versions."""
    noted = {key: value for key, value in evaluation.items() if key != "versions"}
    facts = [*_flat(given), *_flat(noted)]
    if run is not None:
        manifest = run.manifest
        split = {key: manifest.split[key] for key in ("kind", "fold", "digest")}
        sizes = {part: len(manifest.split[part]) for part in ("train", "validation", "test")}
        facts += _flat({
            "training data": manifest.data,
            "split": {**split, "conditions": ", ".join(f"{n} {part}" for part, n in sizes.items())},
            "training seed": manifest.seed,
            "weights kept": manifest.result,
            "training versions": _list(manifest.versions),
        })  # fmt: skip
    versions = {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}
    return [*facts, Fact("evaluation versions", _list({**versions, **evaluation.get("versions", {})}), False)]


def _list(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[Fact]:
    """Nested values as one line each, empty ones left out."""
    for key, value in values.items():
        name = prefix + str(key).removeprefix("n_").replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}: ")
        elif value is not None and value != "":
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else _text(value)
            yield Fact(name, text, any(word in name for word in AS_CODE))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value > 99_999 else str(value)


def render(
    template: tuple[str, str],
    context: Mapping[str, Any],
    *,
    styles: Sequence[tuple[str, str]] = (),
    script: tuple[str, str] | None = None,
    data: Any = None,
) -> str:
    """One self-contained HTML file: every name in it is escaped, and its policy forbids any other source.

    template, styles, script: (package, file). The template extends shell.html and fills its blocks; `styles` come after
    style.css, `script` is the only code that the policy lets run, and `data` stands beside it as JSON.
    """
    loader = DictLoader({"shell.html": _asset(HOME, "shell.html"), "parts.html": _asset(HOME, "parts.html")})
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, heading=heading, number=number)
    environment.globals["outcomes"] = OUTCOMES
    code = "" if script is None else _asset(*script)
    # "<" never stands in the data as it is, so no name can end the element that holds it.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    shell = {
        "style": Markup("".join(_asset(*name) for name in ((HOME, "style.css"), *styles))),  # ours  # nosec B704
        "script": Markup(code),  # ours  # nosec B704
        "script_digest": base64.b64encode(hashlib.sha256(code.encode()).digest()).decode(),
        "data": None if data is None else Markup(text),  # escaped above  # nosec B704
    }
    return environment.from_string(_asset(*template)).render(context, **shell)


@cache
def _asset(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
