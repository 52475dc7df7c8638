"""What each model cost: seconds, memory, size of its environment; beside accuracy, and beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import pandas as pd

from scdfm.report.labels import count

if TYPE_CHECKING:
    from scdfm.benchmarking.pieces import Scored

COLUMNS: Final = (
    "budget", "seconds", "cpu", "peak_mib", "environment_mib", "steps", "parameters", "populations", "asked", "predicted",
    "below_zero", "failed",
)  # fmt: skip
"""Of a model in a fold: seconds allowed, of clock, of CPU; peak resident memory, and size of its environment, MiB; training
steps; parameters; what its cells are; conditions asked for and predicted; share of values cut at 0; why it failed."""


def costs(scored: Sequence[Scored]) -> pd.DataFrame:
    """model, fold, seed and COLUMNS of every piece that is a model's own."""
    rows = [
        {"model": done.piece.name, "fold": done.piece.fold, "seed": done.piece.seed} | dict(done.cost)
        for done in scored
        if done.cost
    ]
    return pd.DataFrame(rows, columns=["model", "fold", "seed", *COLUMNS])


def cost_rows(table: pd.DataFrame) -> list[list[str]]:
    """`costs` for readers, a row for each model after one of headings; no row where no command competes.

    Means over folds and seeds, of memory the largest; times of fits are in it where commands stand beside them.
    """
    if table["budget"].isna().all():
        return []
    rows = [["model", "conditions", "CPU s", "clock s", "budget s", "peak MiB", "environment MiB", "steps", "parameters",
             "cut at 0", "populations"]]  # fmt: skip
    for model, part in table.groupby("model", sort=False):
        failures = part["failed"].notna().sum()
        asked, predicted = part["asked"].sum(), part["predicted"].sum()
        said = f"{predicted:.0f} of {asked:.0f}" if asked else "all"
        if failures:
            said += f", {count(int(failures), 'failure')}"
        numbers = [
            part[name].astype(float).agg("max" if "mib" in name else "mean")
            for name in ("cpu", "seconds", "budget", "peak_mib", "environment_mib", "steps", "parameters")
        ]
        cut = part["below_zero"].astype(float).mean()
        kinds = [str(kind) for kind in part["populations"].dropna().unique()]
        rows.append([str(model), said, *(_whole(one) for one in numbers), "" if pd.isna(cut) else f"{cut:.1%}",
                     ", ".join(kinds)])  # fmt: skip
    return rows


def _whole(number: float) -> str:
    return "" if pd.isna(number) else f"{number:,.0f}"


def cost_markdown(table: pd.DataFrame) -> str:
    """`cost_rows` as Markdown; empty where there are none."""
    rows = cost_rows(table)
    if not rows:
        return ""
    head, *body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([head, "|---|---|" + "---:|" * (len(rows[0]) - 3) + "---|", *body]) + "\n"


def cost_text(table: pd.DataFrame) -> str:
    """`cost_rows` for a terminal; empty where there are none."""
    rows = cost_rows(table)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
        for row in rows
    )
