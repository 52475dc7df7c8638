"""Commands that need no data: demo, simulate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scdfm.cli.app import app
from scdfm.cli.options import Overwrite, Quiet, number_or_text, require_free, write_h5ad


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for screen, run, predictions and report.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Simulate a screen, fit the tiny preset, predict unseen doubles, evaluate, and write the report."""
    from scdfm.demo import run_demo

    report = run_demo(out, seed=seed, overwrite=overwrite, progress=not quiet)
    typer.echo(report.text)
    typer.echo(f"\nreport: {report.path}")


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="File to write (.h5ad).", show_default=False)],
    genes: Annotated[int, typer.Option(help="Number of genes.")] = 200,
    targets: Annotated[int, typer.Option(help="Genes perturbed alone.")] = 12,
    cells: Annotated[int, typer.Option(help="Cells per condition.")] = 100,
    controls: Annotated[int, typer.Option(help="Control cells.")] = 400,
    interaction: Annotated[
        str, typer.Option(help="strong, none, or a number (share of the effect).")
    ] = "strong",
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write a simulated screen with interacting doubles and known true means."""
    from scdfm.data import simulate as simulate_screen

    require_free(out, overwrite)
    screen = simulate_screen(
        n_genes=genes, n_targets=targets, cells_per_condition=cells, n_controls=controls,
        interaction=number_or_text(interaction), seed=seed,  # type: ignore[arg-type]  # refused by simulate
    )  # fmt: skip
    write_h5ad(screen, out)
    typer.echo(
        f"{out}: {screen.n_obs} cells × {screen.n_vars} genes, {screen.obs['perturbation'].nunique()} conditions"
    )
