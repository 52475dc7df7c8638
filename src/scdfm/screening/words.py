"""What screen.html calls things, and what it says of a screen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from scdfm.report.labels import count
from scdfm.screening.calibration import Calibration
from scdfm.screening.ensemble import Ensemble
from scdfm.screening.interaction import ADDITIVE, CLASSES
from scdfm.screening.store import Store


@dataclass(frozen=True)
class Column:
    """A numeric column of the table: its `title` and `meaning` for readers."""

    key: str
    title: str
    meaning: str


COLUMNS: Final = (
    Column("rank", "rank", "Place by the score the screen was ranked by."),
    Column("score", "score", "What the screen was ranked by."),
    Column("energy", "effect", "Energy distance of the predicted cells to control cells, on principal components."),
    Column("genes_shifted", "genes shifted", "Genes whose predicted mean is further from control than sampling explains."),
    Column("shift", "shift", "Length of the predicted mean shift from control."),
    Column("uncertainty", "uncertainty", "Length of the error to be expected of the predicted mean."),
    Column("novelty", "novelty", "Distance of the predicted mean to the nearest measured condition's."),
    Column("targets_seen", "targets seen", "Targets that training perturbed; fewer than there are is extrapolation."),
    Column("departure", "departure", "Distance of the double from the sum of its singles."),
    Column("c1", "c₁", "Share of the first single in the double, double ≈ c₁·first + c₂·second."),
    Column("c2", "c₂", "Share of the second single in the double."),
    Column("magnitude", "magnitude", "√(c₁² + c₂²); 1.41 for a pair that adds up."),
    Column("dominance", "dominance", "|log₁₀ c₁/c₂|; 0 where both singles count alike."),
    Column("dcor_singles", "singles alike", "Distance correlation of the two singles."),
    Column("dcor_double", "double like singles", "Distance correlation of both singles with the double."),
    Column("dcor_fit", "fit", "Distance correlation of the fitted and the predicted double."),
    Column("dcor_residual", "residual", "Distance correlation of the singles with what the fit leaves."),
    Column("measured_magnitude", "measured magnitude", "The magnitude in measured cells, where the run knows them."),
    Column("measured_departure", "measured departure", "The departure in measured cells, where the run knows them."),
    Column("proposed", "proposed", "Turn in which to measure it; 0 where it is not proposed."),
)  # fmt: skip
TEXTS: Final = ("kind", "measured_kind", "part", "nearest", "because")


def described(
    table: pd.DataFrame, shown: pd.DataFrame, store: Store, ensemble: Ensemble, calibration: Calibration
) -> Mapping[str, Any]:
    """The words of the page's template."""
    pairs = table[table["order"] == 2]
    kinds = [(kind, int((pairs["kind"] == kind).sum())) for kind in CLASSES]
    other = sum(n for kind, n in kinds if kind != ADDITIVE)
    headline = f"{count(len(table), 'condition')} predicted"
    if len(pairs):
        headline += f", {len(pairs):,} of them pairs; {other:,} pairs are not additive"
    facts = [(f"{n:,}", kind) for kind, n in kinds if n]
    notes = []
    beyond = int(table["extrapolated"].sum())
    if beyond:
        notes.append(
            f"{count(beyond, 'condition')} with targets, doses or covariates that training never had: extrapolation."
        )
    if len(shown) < len(table):
        notes.append(
            f"This page shows the first {len(shown):,} of {len(table):,} conditions; table.parquet holds all."
        )
    notes.append(calibration_note(calibration))
    return {
        "headline": headline + ".",
        "facts": facts,
        "notes": notes,
        "has_pairs": bool(pairs["departure"].notna().any()),
        "provenance": _provenance(store, ensemble),
    }


def calibration_note(calibration: Calibration) -> str:
    """How far the uncertainty can be trusted."""
    if calibration.conditions == "none":
        return "Uncertainty is the bare spread of the predictions: the runs store no measured mean to calibrate it with."
    text = (
        f"Uncertainty is calibrated on {count(calibration.n, 'measured condition')} ({calibration.conditions}): "
        f"error² ≈ {calibration.floor:.3g}² + ({calibration.factor:.3g} · spread)²."
    )
    if calibration.rank_agreement is not None:
        text += f" Rank correlation of spread and error there: {calibration.rank_agreement:.2f}."
    if "training" in calibration.conditions:
        text += " Training conditions took part, so it is optimistic."
    return text


def _provenance(store: Store, ensemble: Ensemble) -> list[tuple[str, str]]:
    versions = sorted({run.manifest.versions["scdfm"] for run in ensemble.runs})
    return [
        ("runs", ", ".join(run.path.name for run in ensemble.runs)),
        ("weights", ", ".join(run.manifest.digests["weights.safetensors"][:16] for run in ensemble.runs)),
        ("fitted with", f"scdfm {', '.join(versions)}"),
        ("genes", f"{len(store.genes):,}"),
    ]
