"""Where a report's numbers come from: data, split, versions, seeds, command."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scdfm.run import Run

PACKAGES = ("scdfm", "numpy", "scipy", "pandas", "anndata", "illico")
"""Packages that decide the numbers of an evaluation."""
AS_CODE = ("digest", "command", "weights", "path")


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
    return (
        f"{value:,}"
        if isinstance(value, int) and not isinstance(value, bool) and value > 99_999
        else str(value)
    )
