"""An inspection as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from scdfm.data.inspection.columns import Guess
from scdfm.data.inspection.inspection import Inspection

_SIZES = {1: "singles", 2: "doubles", 3: "triples"}


def text(found: Inspection) -> str:
    """What a file holds, what could go wrong, and the line that fits it."""
    return "\n".join(
        [
            *_holds(found),
            *_listed("decided", found.decisions),
            *_listed("notes", found.notes),
            *_pitfalls(found),
            *_line(found),
        ]
    )


def _holds(found: Inspection) -> Iterator[str]:
    yield f"{found.file}: {found.n_cells:,} cells × {found.n_genes:,} genes"
    for matrix in found.matrices:
        used = "  ← used" if matrix == found.matrix else ""
        yield _row(matrix.name, f"{matrix.kind} ({matrix.evidence}; {matrix.density:.0%} not zero){used}")
    if found.perturbation is not None:
        yield _row("perturbation", f"{_column(found.perturbation)}; control '{found.perturbation.value}'")
    for other in found.alternatives[:5]:
        yield _row("  or", f"{_column(other)}; control '{other.value}'")
    if len(found.alternatives) > 5:
        yield _row("", f"and {len(found.alternatives) - 5} columns more")
    for covariate in found.covariates:
        yield _row("covariate", _column(covariate))
    for name in ("dose", "time", "smiles"):
        guess = getattr(found, name)
        if guess is not None:
            yield _row("SMILES" if name == "smiles" else name, _column(guess))
    for column in found.split_columns:
        yield _row("split", f"obs['{column}'] names train and test: --split obs:{column}")
    if found.cells_per_condition is not None:
        yield _row("conditions", f"{found.n_conditions:,} ({_sizes(found)}) and control")
        fewest, median = found.cells_per_condition
        yield _row(
            "cells",
            f"{found.n_controls:,} control, {fewest:,} to a condition at least, {median:,g} in the median",
        )


def _sizes(found: Inspection) -> str:
    return ", ".join(
        f"{n:,} {_SIZES.get(size, f'of {size} targets')}" for size, n in (found.targets or {}).items()
    )


def _pitfalls(found: Inspection) -> list[str]:
    return _listed("what could go wrong", found.pitfalls)


def _line(found: Inspection) -> list[str]:
    if found.line is None:
        return ["", "no fit line can be proposed: see above"]
    return [
        "",
        "fit it in seconds, without training (leave out --preset instant to train a network: fit says what it adds)",
        f"  {found.line}",
    ]


def _listed(title: str, items: tuple[str, ...]) -> list[str]:
    return ["", title, *(f"  - {item}" for item in items)] if items else []


def _row(name: str, value: str) -> str:
    return f"  {name:<16}{value}"


def _column(guess: Guess) -> str:
    return f"obs['{guess.column}'] ({guess.reason})"
