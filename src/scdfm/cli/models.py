"""Commands around one model: fit, predict."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import typer

from scdfm.cli.app import app
from scdfm.cli.options import (
    DataArgument,
    Overwrite,
    Quiet,
    config_of,
    names_of,
    seconds_of,
    warn,
)
from scdfm.cli.screen import Reader, reads_screen
from scdfm.errors import ConfigError
from scdfm.processes import is_first


@app.command()
@reads_screen()
def fit(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Run folder to create.", show_default=False)],
    screen: Reader,
    split: Annotated[
        str | None,
        typer.Option(
            help="additive, holdout, combinations, covariate:NAME[=VALUE], FILE.toml, or obs:COLUMN."
        ),
    ] = None,
    fold: Annotated[int | None, typer.Option(help="Fold of the split.")] = None,
    preset: Annotated[str, typer.Option(help="default, instant (no training), paper or tiny.")] = "default",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.key=value over preset and file; may be repeated."),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="Describes perturbations: FILE.csv (with a column smiles: Morgan fingerprints), .parquet, "
            ".h5ad, or smiles:COLUMN of obs; may be repeated."
        ),
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    time: Annotated[
        str | None,
        typer.Option(
            help="As many steps as take about 90s, 30m or 2h on this machine, instead of --max-steps."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the fit that was interrupted in --out.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a model on DATA and leave a run folder at --out.

    The file of --config may hold every option of the fit beside its table `data`, over the preset.
    """
    options = config_of(preset, screen.config, settings or [], split, fold, max_steps, seed)
    if features:
        options = options.updated({"model": {"features": features}}, where="--features")
    if time is not None and max_steps is not None:
        raise ConfigError("--time and --max-steps both say how long to train; give one of them")
    seconds = None if time is None else seconds_of(time)
    cells = screen.read(data)
    from scdfm.training import fit as fit_cells

    run = fit_cells(
        cells, config=options, out=out, resume=resume, progress=not quiet, say=warn, seconds=seconds
    )
    if not is_first():
        return
    kept = ", ".join(
        f"{name} {value:.4g}"
        for name, value in run.manifest.result.items()
        if value is not None and not name.startswith("gain_")
    )
    typer.echo(
        f"run {out}: {len(run.genes)} genes, {len(run.split.train)} training, {len(run.split.validation)} validation "
        f"and {len(run.split.test)} test conditions; weights kept: {kept}"
    )
    from scdfm.training.judge import summary

    if told := summary(run.manifest.result, len(run.split.validation)):
        typer.echo(told)


@app.command()
@reads_screen()
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder of a fit.", show_default=False)],
    out: Annotated[Path, typer.Option(help="File to write (.h5ad or .zarr).", show_default=False)],
    screen: Reader,
    conditions: Annotated[
        list[str] | None,
        typer.Option(
            help="Conditions, separated by commas: A+B,C, or @FILE of one a line (names may hold commas). May be repeated."
        ),
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="The test conditions of the run's split that can be predicted.")
    ] = False,
    all_pairs_of: Annotated[
        str | None, typer.Option(help="Every pair of these targets: A,B,C, or @FILE.")
    ] = None,
    controls: Annotated[
        Path | None, typer.Option(help="File with control cells; without it those stored with the run.")
    ] = None,
    cells: Annotated[
        int | None, typer.Option(help="Cells per condition; without it the run's sampling.cells.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the prediction that was interrupted at --out.")
    ] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Generate whole populations for conditions, measured or not.

    The file of --controls is read as the run's cells were; options on columns, labels and numbers are about it alone.
    """
    if sum([bool(conditions), test, all_pairs_of is not None]) != 1:
        raise ConfigError(
            "predict: choose exactly one of --conditions A+B,C, --test and --all-pairs-of A,B,C"
        )
    from scdfm.run import Run
    from scdfm.run.extrapolation import told, unknown, untold

    source = Run.load(run)
    names: list[str] | None = None
    if test:
        asked = source.split.test
        left = unknown(source.encoder, asked)
        # Where none can be predicted, the prediction itself says why.
        if 0 < len(left) < len(asked):
            names = [name for name in asked if name not in left]
            if is_first():
                typer.echo(untold(left, len(asked)), err=True)
    if conditions:
        names = names_of(*conditions, run=source)
    if all_pairs_of is not None:
        names = [
            "+".join(pair)
            for pair in itertools.combinations(dict.fromkeys(names_of(all_pairs_of, run=source)), 2)
        ]
    written = source.predict_to(
        out,
        names,
        screen.controls(controls, source),
        n_cells=cells,
        seed=seed,
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
    )
    if not is_first():
        return
    if written.extrapolated:
        typer.echo(told(written.extrapolated), err=True)
    typer.echo(
        f"{out}: {written.n_cells} cells × {written.n_genes} genes, {len(written.conditions)} conditions"
    )
