"""Commands that need no model: inspect, demo, simulate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scdfm.cli.app import app
from scdfm.cli.options import DataArgument, DataArguments, Overwrite, Quiet, Seed, number_or_text, require_free
from scdfm.cli.screen import Reader, reads_screen
from scdfm.errors import ConfigError
from scdfm.files import write_csv, write_h5ad

if TYPE_CHECKING:
    from anndata import AnnData


@app.command()
def inspect(
    data: DataArgument, as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False
) -> None:
    """Say what DATA holds, what could go wrong, and which `scdfm fit` line to begin with."""
    from scdfm.data.inspection import inspect as look
    from scdfm.data.inspection.inspection import text

    inspection = look(data)
    typer.echo(json.dumps(inspection.to_dict(), indent=1, allow_nan=False) if as_json else text(inspection))


@app.command()
@reads_screen()
def join(
    out: Annotated[Path, typer.Option(help="File to write (.h5ad).", show_default=False)],
    screen: Reader,
    data: DataArguments = None,
    overwrite: Overwrite = False,
) -> None:
    """Write several screens as one file: log1p cells on the genes of all, with the screen as a covariate.

    `scdfm fit A.h5ad B.h5ad` joins them itself; this file is for every other command that reads a screen, with
    `--covariates screen`.
    """
    require_free(out, overwrite)
    cells = screen.read_all(data or [])
    write_h5ad(out, cells.to_adata())
    typer.echo(f"{out}: {cells.n} cells × {len(cells.genes)} genes, {len(cells.conditions) - 1} conditions")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for screen, run, predictions and report.")] = Path("demo"),
    seed: Seed = 0,
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
    kind: Annotated[
        str, typer.Option(help="combinations, doses, drugs (with features), or cell-types.")
    ] = "combinations",
    genes: Annotated[int | None, typer.Option(help="Number of genes.")] = None,
    targets: Annotated[int | None, typer.Option(help="Genes or drugs perturbed alone.")] = None,
    cells: Annotated[int | None, typer.Option(help="Cells per condition.")] = None,
    controls: Annotated[int | None, typer.Option(help="Control cells (of each cell type).")] = None,
    interaction: Annotated[
        str | None, typer.Option(help="combinations: strong, none, or a number (share of the effect).")
    ] = None,
    triples: Annotated[int | None, typer.Option(help="combinations: triples beside singles and doubles.")] = None,
    doses: Annotated[int | None, typer.Option(help="doses: doses of each drug.")] = None,
    shuffled: Annotated[bool, typer.Option("--shuffled", help="drugs: features that belong to other drugs.")] = False,
    types: Annotated[int | None, typer.Option(help="cell-types: number of them.")] = None,
    shared: Annotated[float | None, typer.Option(help="cell-types: share of an effect that all have.")] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write a simulated screen whose true means are known; `drugs` also writes OUT.features.csv."""
    given = {
        "genes": genes, "targets": targets, "cells": cells, "controls": controls, "triples": triples,
        "interaction": None if interaction is None else number_or_text(interaction), "doses": doses,
        "shuffled": shuffled or None, "types": types, "shared": shared,
    }  # fmt: skip
    simulator, arguments = _simulator(kind, {name: value for name, value in given.items() if value is not None})
    features = out.with_suffix(".features.csv")
    for path in (out, *([features] if kind == "drugs" else [])):
        require_free(path, overwrite)
    screen = simulator(seed=seed, **arguments)
    write_h5ad(out, screen)
    n_conditions = len(screen.uns["true_means"])
    typer.echo(f"{out}: {screen.n_obs} cells × {screen.n_vars} genes, {n_conditions} conditions")
    if kind == "drugs":
        write_csv(features, screen.uns["features"], index=True, index_label="name")
        typer.echo(f"{features}: features of {len(screen.uns['features'])} drugs")


def _simulator(kind: str, given: dict[str, Any]) -> tuple[Callable[..., AnnData], dict[str, Any]]:
    """The simulator of a kind, and the options given by its argument names; ConfigError for one that it lacks."""
    from scdfm.data import simulate, simulate_cell_types, simulate_doses, simulate_drugs

    common = {"genes": "n_genes", "cells": "cells_per_condition", "controls": "n_controls"}
    kinds: dict[str, tuple[Callable[..., AnnData], dict[str, str]]] = {
        "combinations": (simulate, {"targets": "n_targets", "interaction": "interaction", "triples": "n_triples"}),
        "doses": (simulate_doses, {"targets": "n_drugs", "doses": "n_doses"}),
        "drugs": (simulate_drugs, {"targets": "n_drugs", "shuffled": "shuffled"}),
        "cell-types": (simulate_cell_types, {"targets": "n_targets", "types": "n_types", "shared": "shared"}),
    }
    if kind not in kinds:
        raise ConfigError(f"--kind {kind}: expected one of {', '.join(kinds)}")
    simulator, own = kinds[kind]
    for name in given:
        if name not in common | own:
            fits = ", ".join(other for other, (_, names) in kinds.items() if name in names)
            raise ConfigError(f"--{name} goes with --kind {fits}, found --kind {kind}; leave it out")
    return simulator, {(common | own)[name]: value for name, value in given.items()}
