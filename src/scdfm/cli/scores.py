"""Commands that score: evaluate, hits, benchmark."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from scdfm.cli.app import app
from scdfm.cli.options import DataArgument, Quiet, Seed, pairs_of, seconds_of, warn
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
    protocol: Annotated[
        str, typer.Option(help="scdfm, paper, or vcc2026 (raw counts; --layer is that of the measured cells).")
    ] = "scdfm",
    name: Annotated[str, typer.Option(help="Name of the predictions in the tables.")] = "model",
    against: Annotated[
        Path | None, typer.Option(help="Predicted cells of another model, compared pair by pair on what both predict.")
    ] = None,
    against_name: Annotated[str, typer.Option(help="Name of the other model in the tables.")] = "other",
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Metrics to score, separated by commas, de_recall, de_precision and de_direction (of the predicted cells) "
            "among them. Without it all others of the protocol."
        ),
    ] = None,
    predicted_key: Annotated[
        str | None,
        typer.Option(help="Column of obs with the predictions' conditions, where it is another than the real cells'."),
    ] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Score predictions beside simple baselines and write tables and a report.

    With --run the real cells are read as the run's were; options given here go over that. Of a run of several screens the
    file of one will do, named as its screen.
    """
    from scdfm.files import new_folder
    from scdfm.report import evaluate_files

    training = None
    if run is not None:
        from scdfm.run import Run

        training = Run.load(run)
    prediction: Any = predicted
    cells: Any
    if protocol == "vcc2026":
        reader = screen if training is None else screen.over(training.manifest.reading)
        prediction, cells = reader.counts(predicted, real)
    else:
        cells = screen.read(real) if training is None else screen.read_of(real, training)
    result = evaluate_files(
        prediction, cells, new_folder(out), training=training, protocol=protocol,  # type: ignore[arg-type]
        metrics=None if metrics is None else [one.strip() for one in metrics.split(",")],
        name=name, against=against, against_name=against_name, seed=seed, predicted_key=predicted_key,
        backed=screen.backed, progress=not quiet,
        provenance={"command": shlex.join(["scdfm", *sys.argv[1:]])},
    )  # fmt: skip
    for note in result.table.attrs["notes"]:
        warn(note)
    typer.echo(result.text)
    typer.echo(f"\nreport: {result.path}")


@app.command()
@reads_screen()
def hits(
    predicted: Annotated[
        Path, typer.Argument(help="Predicted cells (.h5ad), of scdfm or anybody.", show_default=False)
    ],
    real: Annotated[Path, typer.Argument(help="Measured cells (.h5ad, .zarr).", show_default=False)],
    out: Annotated[Path, typer.Option(help="CSV file for the table.", show_default=False)],
    screen: Reader,
    run: Annotated[Path | None, typer.Option(help="Run folder: its training means make the simple rules.")] = None,
    signature: Annotated[
        str | None, typer.Option(help="UP.txt,DOWN.txt: files of genes to go up and down; either may be empty.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the predictions in the table.")] = "model",
) -> None:
    """How many true hits stand in the first 5, 10 and 20% of the ranked library, beside simple rules and chance.

    With --run the real cells are read as the run's were; options given here go over that. Of a run of several screens the
    file of one will do, named as its screen.
    """
    from scdfm.evaluation import hits as found_hits
    from scdfm.files import write_csv

    training = None
    if run is not None:
        from scdfm.run import Run

        training = Run.load(run)
    cells = screen.read(real) if training is None else screen.read_of(real, training)
    weights = None
    if signature is not None:
        from scdfm.screening.ranking import signature as signature_of

        up, _, down = signature.partition(",")
        genes = [str(gene) for gene in cells.genes]
        weights = {g: float(w) for g, w in zip(genes, signature_of(up, down, genes), strict=True) if w}
    table = found_hits(
        predicted, cells, training=training, perturbation_key=cells.perturbation_key, control=cells.control, name=name,
        signature=weights, backed=screen.backed,
    )  # fmt: skip
    write_csv(out, table)
    typer.echo(table.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    typer.echo(f"\ntable: {out}")


@app.command()
@reads_screen()
def benchmark(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Folder for pieces, tables and page.", show_default=False)],
    screen: Reader,
    split: Annotated[
        str, typer.Option(help="additive, holdout, combinations, covariate:NAME[=VALUE], FILE.toml, or obs:COLUMN.")
    ] = "additive",
    folds: Annotated[
        str | None, typer.Option(help="Folds: 0-4, or 0,2. Without it 0-4; a file or column has fold 0.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Fits of each model in each fold, with seeds 0, 1, ...")] = 3,
    models: Annotated[
        list[str] | None,
        typer.Option(
            help="Presets (default, instant, tiny, paper), file:NAME=PRED.h5ad with {fold} and {seed} for their numbers, "
            "command:NAME=COMMAND, peers (cellflow, state, gears, cpa, scgpt, geneformer), or baselines for these alone; "
            "separated by commas, may be repeated. Without it default."
        ),
    ] = None,
    protocol: Annotated[str, typer.Option(help="scdfm or paper.")] = "scdfm",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value over every preset; may be repeated.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Training steps of every fit.")] = None,
    cells: Annotated[
        int | None, typer.Option(help="Predicted cells per condition; without it each preset's sampling.cells.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Metrics to score, separated by commas. Without it all of the protocol.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the benchmark in --out; models, folds, seeds may be added.")
    ] = False,
    final: Annotated[
        Path | None,
        typer.Option(help="Run folder to create after the folds: the model fitted on every condition, for use."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Time of one core that each command and peer has in a fold: 90s, 10m, 2h. Without it 10m."),
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(help="PEER=FOLDER: pretrained weights of scgpt or geneformer; may be repeated.")
    ] = None,
    go: Annotated[
        str | None, typer.Option(help="FILE[,NAMES] of GO annotations, for the peer gears (scdfm download go).")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Fit, predict and evaluate over folds and seeds: one table with intervals, beside all baselines."""
    numbers = None if folds is None else numbers_of(folds)
    steps = [] if max_steps is None else [f"training.max_steps={max_steps}"]
    screen.require_data_alone("benchmark")
    table = screen.read(data)
    from scdfm.benchmarking import PeerOptions
    from scdfm.benchmarking import benchmark as run_benchmark

    peers = PeerOptions(
        None if budget is None else seconds_of(budget), pairs_of(weights or [], "--weights", "scgpt=FOLDER"), go
    )

    result = run_benchmark(
        table, split, numbers, seeds, out=out, models=models or ["default"],
        protocol=protocol,  # type: ignore[arg-type]
        metrics=None if metrics is None else [name.strip() for name in metrics.split(",")],
        options=[*(settings or []), *steps], n_cells=cells, resume=resume, progress=not quiet,
        final=final, peers=peers,
    )  # fmt: skip
    typer.echo(result.text)
    typer.echo(f"\npage: {result.page}")
    if final is not None:
        typer.echo(f"run fitted on every condition, which no fold scored: {final}")


def numbers_of(text: str) -> list[int]:
    """The numbers of 0-4 or 0,2,4."""
    numbers: list[int] = []
    for part in text.split(","):
        first, sign, last = part.strip().partition("-")
        if not first.isdecimal() or (sign and not last.isdecimal()):
            raise ConfigError(f"--folds {text}: expected numbers such as 0-4 or 0,2")
        numbers += range(int(first), int(last or first) + 1)
    return numbers
