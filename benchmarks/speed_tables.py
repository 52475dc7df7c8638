"""The measurements of `benchmarks/speed.py` as Markdown."""

from __future__ import annotations

from typing import Any

from screens import heading

Column = tuple[str, str, str]
"""Key of a measurement, title, format."""

STEP = """## A training step
Optimiser included. `bound`: the ratio if scdfm's matrix products ran at the machine's best and all else cost
nothing. GB: peak beyond parameters and data. Where `plain cells` is below B, the plain form does not fit in memory with
B cells; its memory is that of fewer, its time that of fewer scaled to B."""
STEP_COLUMNS: list[Column] = [
    ("loss_difference", "relative loss difference", ".1e"),
    ("plain_s", "plain s", ".3g"),
    ("scdfm_s", "scdfm s", ".3g"),
    ("ratio", "**ratio**", ".2f"),
    ("roofline_ratio", "bound", ".2f"),
    ("plain_cells", "plain cells", "d"),
    ("plain_gb", "plain GB", ".2f"),
    ("scdfm_gb", "scdfm GB", ".2f"),
    ("plain_gflop", "plain GFLOP", ".0f"),
    ("scdfm_gflop", "scdfm GFLOP", ".0f"),
    ("peak_gflops", "best GFLOP/s", ".0f"),
    ("share_of_peak", "share of it", ".0%"),
]
SAMPLING = """## Sampling
Plain: the published 76 evaluations; scdfm: 16. Distances are of a cell, to the plain form's end."""
SAMPLING_COLUMNS: list[Column] = [
    ("same_solver_ratio", "ratio at 76", ".2f"),
    ("plain_s", "plain s", ".3g"),
    ("scdfm_s", "scdfm s", ".3g"),
    ("ratio", "**ratio**", ".2f"),
    ("error_same_solver", "distance at 76", ".1e"),
    ("error_default", "distance at 16", ".3g"),
    ("error_euler_100", "distance of Euler 100", ".3g"),
    ("norm", "norm of a cell", ".3g"),
    ("plain_gb", "plain GB", ".2f"),
    ("scdfm_gb", "scdfm GB", ".2f"),
]
DATA = """## Data
A batch of the whole panel straight from CSR (20,000 cells, a tenth of the values not 0) by itself, and a step without and
with it, when it is assembled beside the step before."""
DATA_COLUMNS: list[Column] = [
    ("assemble_s", "assembling s", ".2g"),
    ("still_s", "step without s", ".3g"),
    ("fed_s", "step with s", ".3g"),
    ("share", "**assembling / step**", ".1%"),
]
TABLES = ((STEP, STEP_COLUMNS), (SAMPLING, SAMPLING_COLUMNS), (DATA, DATA_COLUMNS))


def tables(found: dict[str, Any]) -> str:
    """All rows found, as Markdown."""
    stamps = sorted({f"{row['hardware']}; torch {row['torch']}; {row['date']}" for row in found.values()})
    parts = ["\n".join(heading("Speed beside the plain formulation")).rstrip(), *stamps]
    for head, columns in TABLES:
        chosen = {name: row for name, row in found.items() if columns[0][0] in row}
        if chosen:
            parts.append(head + "\n\n" + table(chosen, columns))
    return "\n\n".join(parts) + "\n"


def table(chosen: dict[str, Any], columns: list[Column]) -> str:
    """One Markdown table: a line for each row, a column for each measurement."""
    titles = ["row", "V", "T", "B", "d", "L", *(title for _, title, _ in columns)]
    lines = ["| " + " | ".join(titles) + " |", "|---" + "|---:" * (len(titles) - 1) + "|"]
    for name, row in chosen.items():
        sizes = [str(row["case"][key]) for key in ("tokens", "genes", "cells", "width", "layers")]
        lines.append("| " + " | ".join([name, *sizes, *(format(row[key], f) for key, _, f in columns)]) + " |")
    return "\n".join(lines)
