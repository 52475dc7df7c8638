"""screen.html: one file with the map of interactions, effect against uncertainty, every condition, and its population."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import pdist

from scdfm.files import write_text
from scdfm.report.shell import render
from scdfm.screening.calibration import Calibration
from scdfm.screening.correlation import Floats
from scdfm.screening.effect import NOISE_LEVEL, Reference, Untreated
from scdfm.screening.ensemble import Ensemble
from scdfm.screening.space import members
from scdfm.screening.store import PAGE, Store
from scdfm.screening.words import COLUMNS, TEXTS, described

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
            {
                "key": column.key,
                "title": column.title,
                "meaning": column.meaning,
                "values": _numbers(shown[column.key]),
            }
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
    write_text(store.path / PAGE, html(data, described(table, shown, store, ensemble, calibration)))


def html(data: Mapping[str, Any], words: Mapping[str, Any]) -> str:
    """The page: `data` for its script, `words` for its template; every name in it is escaped."""
    home = "scdfm.screening"
    return render(
        (home, "screen.html"), {**words, "noise_level": NOISE_LEVEL}, styles=[(home, "screen.css")],
        script=(home, "screen.js"), data=data,
    )  # fmt: skip


def _numbers(values: pd.Series) -> list[float | int | None]:
    """Values with four significant digits, which a page needs; None where undefined."""
    found = values.to_numpy(np.float64)
    return [
        (int(value) if value == int(value) else float(f"{value:.4g}")) if np.isfinite(value) else None
        for value in found
    ]


def _pictures(
    store: Store, names: Sequence[str], untreated: Untreated
) -> tuple[Floats, list[list[list[float]]]]:
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
