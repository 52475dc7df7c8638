"""Commands that decide what to measure next: screen, identify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scdfm.cli.app import app
from scdfm.cli.options import Quiet
from scdfm.errors import ConfigError

SHOWN = 10
"""Conditions printed at the end."""


@app.command()
def screen(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folder; several make an ensemble, whose disagreement is the uncertainty.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for means, table and page.", show_default=False)],
    targets: Annotated[str | None, typer.Option(help="Targets to combine: A,B,C.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Combine every target that the run was trained on.")
    ] = False,
    order: Annotated[int, typer.Option(help="1 singles, 2 and pairs, 3 and triples.")] = 2,
    conditions: Annotated[
        str | None,
        typer.Option(help="Predict these instead, separated by commas, with their singles: A+B,C@2."),
    ] = None,
    cells: Annotated[int, typer.Option(help="Cells generated for each condition.")] = 128,
    rank_by: Annotated[
        str,
        typer.Option(
            help="effect, interaction, uncertainty, toward:CELLS.h5ad, or signature:UP.txt,DOWN.txt."
        ),
    ] = "effect",
    propose: Annotated[int, typer.Option(help="Propose this many conditions for the next experiment.")] = 0,
    keep_cells: Annotated[
        bool, typer.Option("--keep-cells", help="Keep the predicted cells, not only means.")
    ] = False,
    controls: Annotated[
        Path | None, typer.Option(help="File with control cells; without it those stored with the run.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the screen in --out, or rank a finished one anew.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Predict every combination of targets, score interactions, rank, and propose what to measure next."""
    if sum([targets is not None, every, conditions is not None]) != 1:
        raise ConfigError("screen: choose exactly one of --targets A,B,C, --all and --conditions A+B,C")
    from scdfm.run import Run
    from scdfm.screening import screen as screen_conditions

    found = screen_conditions(
        [Run.load(run) for run in runs], out=out, targets=_names(targets), order=order,
        conditions=_names(conditions), cells=cells, rank_by=rank_by, propose=propose, keep_cells=keep_cells,
        controls=controls, seed=seed, resume=resume, progress=not quiet, say=None if quiet else typer.echo,
    )  # fmt: skip
    if not found.is_complete:
        left = len(found.store.missing())
        typer.echo(
            f"{out}: this rank is done, {left} shards are left to others; the last one writes the table"
        )
        return
    table = found.table
    shown = ["rank", "condition", "score", "energy", "uncertainty", "novelty", "kind"]
    typer.echo(table[shown].head(SHOWN).to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    if found.proposed:
        typer.echo(f"measure next: {', '.join(found.proposed)}")
    typer.echo(f"{len(table):,} conditions: {out / 'table.parquet'}, {out / 'screen.html'}")


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
