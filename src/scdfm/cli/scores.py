"""Commands that score: evaluate, benchmark."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from scdfm.cli.app import app
from scdfm.cli.options import DataArgument, Quiet, warn
from scdfm.cli.screen import Reader, reads_screen
from scdfm.errors import ConfigError


@app.command()
@reads_screen()
def evaluate(
    predicted: Annotated[
        Path, typer.Argument(help="Predicted cells (.h5ad), of scdfm or anybody.", show_default=False)
    ],
    real: Annotated[Path, typer.Argument(help="Measured cells (.h5ad, .zarr).", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for tables, figures and report.", show_default=False)],
    screen: Reader,
    run: Annotated[
        Path | None, typer.Option(help="Run folder: its training means make baselines and training curves.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="scdfm or paper.")] = "scdfm",
    name: Annotated[str, typer.Option(help="Name of the predictions in the tables.")] = "model",
    predicted_key: Annotated[
        str | None,
        typer.Option(
            help="Column of obs with the predictions' conditions, where it is another than the real cells'."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Score predictions beside simple baselines and write tables and a report.

    With --run the real cells are read as the run's were; options given here go over that.
    """
    from scdfm.files import new_folder
    from scdfm.report import evaluate_files

    training = None
    if run is not None:
        from scdfm.run import Run

        training = Run.load(run)
        screen = screen.over(training.manifest.reading)
    cells = screen.read(real)
    result = evaluate_files(
        predicted, cells, new_folder(out), training=training, protocol=protocol,  # type: ignore[arg-type]
        name=name, seed=seed, predicted_key=predicted_key, backed=screen.backed, progress=not quiet,
        provenance={"command": shlex.join(["scdfm", *sys.argv[1:]])},
    )  # fmt: skip
    for note in result.table.attrs["notes"]:
        warn(note)
    typer.echo(result.text)
    typer.echo(f"\nreport: {result.path}")


@app.command()
@reads_screen()
def benchmark(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Folder for pieces, tables and page.", show_default=False)],
    screen: Reader,
    split: Annotated[
        str,
        typer.Option(
            help="additive, holdout, combinations, covariate:NAME[=VALUE], FILE.toml, or obs:COLUMN."
        ),
    ] = "additive",
    folds: Annotated[
        str | None, typer.Option(help="Folds: 0-4, or 0,2. Without it 0-4; a file or column has fold 0.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Fits of each model in each fold, with seeds 0, 1, ...")] = 3,
    models: Annotated[
        list[str] | None,
        typer.Option(
            help="Presets (default, tiny, paper), file:NAME=PRED.h5ad with {fold} and {seed} for their numbers, "
            "or baselines for these alone; separated by commas, may be repeated. Without it default."
        ),
    ] = None,
    protocol: Annotated[str, typer.Option(help="scdfm or paper.")] = "scdfm",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value over every preset; may be repeated.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Training steps of every fit.")] = None,
    cells: Annotated[
        int | None,
        typer.Option(help="Predicted cells per condition; without it each preset's sampling.cells."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="Metrics to score, separated by commas. Without it all of the protocol."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the benchmark in --out; models, folds, seeds may be added."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Fit, predict and evaluate over folds and seeds: one table with intervals, beside all baselines."""
    numbers = None if folds is None else numbers_of(folds)
    steps = [] if max_steps is None else [f"training.max_steps={max_steps}"]
    screen.require_data_alone("benchmark")
    table = screen.read(data)
    from scdfm.benchmarking import benchmark as run_benchmark

    result = run_benchmark(
        table, split, numbers, seeds, out=out, models=models or ["default"],
        protocol=protocol,  # type: ignore[arg-type]
        metrics=None if metrics is None else [name.strip() for name in metrics.split(",")],
        options=[*(settings or []), *steps], n_cells=cells, resume=resume, progress=not quiet,
    )  # fmt: skip
    typer.echo(result.text)
    typer.echo(f"\npage: {result.page}")


def numbers_of(text: str) -> list[int]:
    """The numbers of 0-4 or 0,2,4."""
    numbers: list[int] = []
    for part in text.split(","):
        first, sign, last = part.strip().partition("-")
        if not first.isdecimal() or (sign and not last.isdecimal()):
            raise ConfigError(f"--folds {text}: expected numbers such as 0-4 or 0,2")
        numbers += range(int(first), int(last or first) + 1)
    return numbers
