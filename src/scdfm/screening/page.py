"""screen.html: one file with the map of interactions, effect against uncertainty, every condition, and its population."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import pdist

from scdfm.evaluation.pseudobulk import Floats
from scdfm.files import write_text
from scdfm.report.labels import count
from scdfm.report.shell import render
from scdfm.screening.effect import NOISE_LEVEL, Reference, Untreated
from scdfm.screening.ensemble import Calibration, Ensemble
from scdfm.screening.interaction import ADDITIVE, CLASSES
from scdfm.screening.space import members
from scdfm.screening.store import PAGE, Store


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
        notes.append(f"This page shows the first {len(shown):,} of {len(table):,} conditions; table.parquet holds all.")
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
        return (
            "Uncertainty is the bare spread of the predictions: the runs store no measured mean to calibrate it with."
        )
    text = (
        f"Uncertainty is calibrated on {count(calibration.n, 'measured condition')} ({calibration.conditions}): "
        f"error² ≈ {calibration.floor:.3g}² + ({calibration.factor:.3g} · spread)²."
    )
    if calibration.factor == 0:
        text += " The spread tells nothing of the error, so the uncertainty is the same for all; more runs tell more."
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


MOST_ROWS: Final = 10_000
"""Conditions on the page: the best ones of larger screens."""
TOP_GENES: Final = 10
CONTROL_POINTS: Final = 300
_UNKNOWN: Final = -32768


def write_page(
    store: Store, table: pd.DataFrame, ensemble: Ensemble, untreated: Untreated, calibration: Calibration
) -> None:
    """Write `screen.html` beside the table (best first) of a complete screen."""
    shown = table.iloc[:MOST_ROWS].reset_index(drop=True)
    points, top = _pictures(store, list(shown["condition"]), untreated)
    data = {
        "columns": [
            {"key": column.key, "title": column.title, "meaning": column.meaning, "values": _numbers(shown[column.key])}
            for column in COLUMNS
            if column.key in shown and shown[column.key].notna().any()
        ],
        "texts": {key: shown[key].astype(str).tolist() for key in TEXTS if key in shown},
        "names": shown["condition"].tolist(),
        "genes": list(store.genes),
        "top": top,
        "points": _packed(points, untreated.whole),
        "map": _map(shown),
    }
    write_text(store.folder / PAGE, html(data, described(table, shown, store, ensemble, calibration)))


def html(data: Mapping[str, Any], words: Mapping[str, Any]) -> str:
    """The page: `data` for its script, `words` for its template; every name in it is escaped."""
    home = "scdfm.screening"
    return render(
        (home, "screen.html"), {**words, "noise_level": NOISE_LEVEL}, styles=[(home, "screen.css")],
        script=(home, "screen.js"), data=data,
    )  # fmt: skip


def _numbers(values: pd.Series) -> list[float | int | None]:
    """Values with four significant digits, which a page needs; None where undefined."""
    numbers = values.to_numpy(np.float64)
    return [
        (int(value) if value == int(value) else float(f"{value:.4g}")) if np.isfinite(value) else None
        for value in numbers
    ]


def _pictures(store: Store, names: Sequence[str], untreated: Untreated) -> tuple[Floats, list[list[list[float]]]]:
    """Of each of `names`: predicted cells on the plane [K, n, 2], and [gene, shift] of the genes that move most."""
    row_of = {name: row for row, name in enumerate(names)}
    points: dict[int, Floats] = {}
    top: list[list[list[float]]] = [[] for _ in names]
    for shard in store.shards():
        for at, name in enumerate(shard.names):
            if name not in row_of:
                continue
            shift = shard.means[at] - untreated.of(name).mean
            most = np.argsort(-np.abs(shift), kind="stable")[:TOP_GENES]
            top[row_of[name]] = [[int(gene), float(f"{shift[gene]:.3g}")] for gene in most]
            points[row_of[name]] = shard.points[at]
    return np.stack([points[row] for row in range(len(names))]), top


def _packed(points: Floats, reference: Reference) -> dict[str, Any]:
    """Points [K, n, 2] as base64 of little-endian int16 in units of `scale`; missing ones have the smallest number."""
    control = reference.coordinates[:CONTROL_POINTS, :2]
    if control.shape[1] < 2:
        control = np.column_stack([control, np.zeros(len(control))])
    largest = max(float(np.nanmax(np.abs(points), initial=0)), float(np.abs(control).max(initial=0)), 1e-9)
    scale = largest / 32_000
    whole = np.where(np.isfinite(points), np.round(np.nan_to_num(points) / scale), _UNKNOWN)
    return {
        "scale": scale, "n": points.shape[1],
        "cells": base64.b64encode(whole.astype("<i2").tobytes()).decode(),
        "control": [[float(f"{x:.4g}"), float(f"{y:.4g}")] for x, y in control],
    }  # fmt: skip


def _map(shown: pd.DataFrame) -> dict[str, Any]:
    """Targets in the order of the map, similar ones beside each other, and the pairs as [row, i, j]."""
    parts = [members(name) for name in shown["condition"]]
    pairs = [(row, *names) for row, names in enumerate(parts) if len(names) == 2]
    targets = sorted({name for _, a, b in pairs for name in (a, b)})
    place = {name: at for at, name in enumerate(targets)}
    values = np.zeros((len(targets), len(targets)))
    departure = shown["departure"].fillna(0).to_numpy(np.float64)
    for row, a, b in pairs:
        values[place[a], place[b]] = values[place[b], place[a]] = departure[row]
    if len(targets) > 2:
        order = leaves_list(linkage(pdist(values), "average", optimal_ordering=len(targets) <= 300))
        targets = [targets[at] for at in order]
        place = {name: at for at, name in enumerate(targets)}
    return {"targets": targets, "pairs": [[row, place[a], place[b]] for row, a, b in pairs]}
