"""Commands that decide what to measure next: screen, identify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scdfm.cli.app import app
from scdfm.cli.options import Controls, Overwrite, Quiet, Seed, names_of, require_free
from scdfm.errors import ConfigError

if TYPE_CHECKING:
    from scdfm.screening import Screen

SHOWN = 10
"""Conditions printed at the end."""


@app.command()
def screen(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folder; several make an ensemble, whose disagreement is the uncertainty.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for means, table and page.", show_default=False)],
    targets: Annotated[str | None, typer.Option(help="Targets to combine: A,B,C, or @FILE.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Combine every target that the run was trained on.")] = False,
    order: Annotated[int, typer.Option(help="1 singles, 2 and pairs, 3 and triples.")] = 2,
    conditions: Annotated[
        list[str] | None,
        typer.Option(
            help="Predict these instead, with their singles: A+B,C@2, or @FILE of one a line. May be repeated."
        ),
    ] = None,
    setting: Annotated[
        str, typer.Option(help="Covariates and time of every combination: cell_line=K562|time=24.")
    ] = "",
    genome: Annotated[
        bool, typer.Option("--genome", help="Every gene of the run too, as a single, also those nobody perturbed.")
    ] = False,
    cells: Annotated[int, typer.Option(help="Cells generated for each condition.")] = 128,
    rank_by: Annotated[
        str, typer.Option(help="effect, interaction, uncertainty, toward:CELLS.h5ad, or signature:UP.txt,DOWN.txt.")
    ] = "effect",
    propose: Annotated[int, typer.Option(help="Propose this many conditions for the next experiment.")] = 0,
    keep_cells: Annotated[bool, typer.Option("--keep-cells", help="Keep the predicted cells, not only means.")] = False,
    controls: Controls = None,
    seed: Seed = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the screen in --out, or rank a finished one anew.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Predict every combination of targets, score interactions, rank, and propose what to measure next."""
    if sum([targets is not None, every, bool(conditions)]) != 1:
        raise ConfigError("screen: choose exactly one of --targets A,B,C, --all and --conditions A+B,C")
    from scdfm.run import Run
    from scdfm.screening import screen as screen_conditions

    loaded = [Run.load(run) for run in runs]
    ranked = screen_conditions(
        loaded, out=out, targets=None if targets is None else names_of(targets, run=loaded[0]),
        order=order, conditions=names_of(*conditions, run=loaded[0]) if conditions else None, setting=setting,
        genome=genome, cells=cells, rank_by=rank_by, propose=propose,
        keep_cells=keep_cells, controls=controls, seed=seed, resume=resume, progress=not quiet,
        say=None if quiet else typer.echo,
    )  # fmt: skip
    typer.echo(_told(ranked, out))


def _told(ranked: Screen, out: Path) -> str:
    """What is said of a screen at its end: its first conditions and its files, or what other ranks have left to do."""
    if not ranked.is_complete:
        left = len(ranked.store.missing())
        return f"{out}: this rank is done, {left} shards are left to others; the last one writes the table"
    shown = ["rank", "condition", "score", "energy", "uncertainty", "novelty", "kind"]
    first = ranked.table[shown].head(SHOWN)
    lines = [first.to_string(index=False, float_format=lambda value: f"{value:.4g}")]
    if ranked.proposed:
        lines.append(f"measure next: {', '.join(ranked.proposed)}")
    lines.append(f"{len(ranked.table):,} conditions: {out / 'table.parquet'}, {out / 'screen.html'}")
    return "\n".join(lines)


@app.command()
def identify(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    observed: Annotated[
        Path, typer.Argument(help="Cells of one population (.h5ad, .zarr), observed or desired.", show_default=False)
    ],
    condition: Annotated[
        str | None,
        typer.Option(help="Only the cells of this condition, e.g. A, or A|cell_line=K562 where it has covariates."),
    ] = None,
    order: Annotated[int, typer.Option(help="Candidates: 1 singles, 2 and pairs, 3 and triples.")] = 2,
    targets: Annotated[str | None, typer.Option(help="Targets of the candidates; without it all trained on.")] = None,
    setting: Annotated[
        str,
        typer.Option(
            help="Covariates and time of candidates, cell_line=K562|time=24; without it those of --condition."
        ),
    ] = "",
    screen: Annotated[
        Path | None, typer.Option(help="Folder of a finished screen, which spares predicting the candidates.")
    ] = None,
    cells: Annotated[int, typer.Option(help="Cells predicted for each candidate that is compared cell by cell.")] = 128,
    shortlist: Annotated[int, typer.Option(help="Candidates compared cell by cell.")] = 20,
    controls: Controls = None,
    out: Annotated[Path | None, typer.Option(help="Table of every candidate to write (.csv).")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Find the perturbation that made a population, or would bring control cells to it."""
    if out is not None:
        require_free(out, overwrite)
    from scdfm.files import write_csv
    from scdfm.run import Run
    from scdfm.screening import identify

    loaded = Run.load(run)
    identification = identify(
        loaded, observed, condition=condition, order=order,
        targets=None if targets is None else names_of(targets, run=loaded),
        setting=setting, screen=screen, cells=cells,
        shortlist=shortlist, controls=controls, seed=seed, progress=not quiet,
    )  # fmt: skip
    if out is not None:
        write_csv(out, identification.table)
    shown = ["rank", "condition", "energy", "mean_distance", "probability", "part"]
    typer.echo(
        identification.table[shown].head(SHOWN).to_string(index=False, float_format=lambda value: f"{value:.4g}")
    )
    typer.echo(str(identification))
