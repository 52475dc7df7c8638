"""Commands around one model: fit, predict."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scdfm.cli.app import app
from scdfm.cli.options import (
    Controls,
    DataArguments,
    Overwrite,
    Quiet,
    Seed,
    cells_of,
    config_of,
    names_of,
    pairs_of,
    require_free,
    seconds_of,
    warn,
)
from scdfm.cli.screen import Reader, reads_screen
from scdfm.errors import ConfigError
from scdfm.processes import is_first

if TYPE_CHECKING:
    from scdfm.config import Config
    from scdfm.data import CellTable
    from scdfm.run import Run
    from scdfm.run.shards import PredictedFile


@app.command()
@reads_screen()
def fit(
    out: Annotated[Path, typer.Option(help="Run folder to create.", show_default=False)],
    screen: Reader,
    data: DataArguments = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="additive, holdout, combinations, covariate:NAME[=VALUE], FILE.toml, obs:COLUMN, or none (no test)."
        ),
    ] = None,
    fold: Annotated[int | None, typer.Option(help="Fold of the split.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="default, instant (no training), paper or tiny.", show_default="default")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value over preset and file; may be repeated.")
    ] = None,
    joined_on: Annotated[
        str | None,
        typer.Option(
            "--genes",
            help="Genes of several screens: intersection (all measured them), or union (any did; the others are masked).",
            show_default="intersection",
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="Describes perturbations: FILE.csv (with a column smiles: Morgan fingerprints), .parquet, "
            ".h5ad, smiles:COLUMN of obs, or genes by go:FILE[,OBO] (scdfm download go), gmt:FILE, edges:FILE, or by "
            "coexpression in control cells; may be repeated."
        ),
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    time: Annotated[
        str | None,
        typer.Option(help="As many steps as take about 90s, 30m or 2h on this machine, instead of --max-steps."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.")] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Run folder to start from: its options, weights, features and measured means are carried over, with a "
            "smaller learning rate. On its own screen it is trained for longer.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the fit that was interrupted in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that stands in --out.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a model on DATA, one screen or several joined, and leave a run folder at --out.

    The file of --config may hold every option of the fit beside its table `data`, over the preset; tables [screens.NAME],
    each with a `file` and options of its own, name several screens in the place of DATA.
    """
    parent: Run | None = None
    base: str | Config = preset or "default"
    if start_from is not None:
        if preset is not None:
            raise ConfigError(
                f"fit: --preset {preset} and --from {start_from} both give the options; leave --preset out (--max-steps 0 "
                "trains nothing), or fit without --from"
            )
        from scdfm.run import Run
        from scdfm.training.transfer import tuned

        parent = Run.load(start_from)
        base = tuned(parent)
    options = config_of(base, screen.config, settings or [], split, fold, max_steps, seed)
    if features:
        options = options.updated({"model": {"features": features}}, where="--features")
    if time is not None and max_steps is not None:
        raise ConfigError("--time and --max-steps both say how long to train; give one of them")
    seconds = None if time is None else seconds_of(time)
    cells = screen.read_all(data or [], joined_on)
    from scdfm.training import fit as fit_cells

    run = fit_cells(
        cells, config=options, out=out, resume=resume, progress=not quiet, say=warn, seconds=seconds, start_from=parent,
        overwrite=overwrite,
    )  # fmt: skip
    if is_first():
        _tell_fitted(run, out)


def _tell_fitted(run: Run, out: Path) -> None:
    """Say what a fit left, what an earlier run was worth to it, and what training added or can gain."""
    from scdfm.training import headroom, transfer
    from scdfm.training.validation import summary

    kept = ", ".join(
        f"{name} {value:.4g}"
        for name, value in run.manifest.result.items()
        if value is not None and not name.startswith("gain_")
    )
    typer.echo(
        f"run {out}: {len(run.genes)} genes, {len(run.split.train)} training, {len(run.split.validation)} validation "
        f"and {len(run.split.test)} test conditions; weights kept: {kept}"
    )
    manifest = run.manifest
    added = summary(manifest.result, len(run.split.validation))
    # A fit that trained has said it before its first step.
    can_gain = None if manifest.config.training.max_steps else headroom.told(manifest.headroom)
    for said in (_ended_early(run), transfer.told(manifest), can_gain, added):
        if said:
            typer.echo(said)


def _ended_early(run: Run) -> str | None:
    """That validation had stopped gaining before the last step, and where."""
    options, log = run.config.training, run.log
    if not options.patience or log.empty or not log["val_predicted"].count():
        return None
    if (last := int(log["step"].max())) >= options.max_steps:  # the last step of all is validated
        return None
    validations = "1 validation" if options.patience == 1 else f"{options.patience} validations"
    return f"stopped at step {last:,} of {options.max_steps:,}: nothing better in {validations} (training.patience)"


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
    all_pairs_of: Annotated[str | None, typer.Option(help="Every pair of these targets: A,B,C, or @FILE.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every condition of the run's split; of all contexts, with --context.")
    ] = False,
    controls: Controls = None,
    context: Annotated[
        list[str] | None,
        typer.Option(
            help="Covariate of the cells of --controls, cell_line=A549, and of conditions that name none; may be one that "
            "training never had. May be repeated."
        ),
    ] = None,
    fill_genes: Annotated[
        bool,
        typer.Option(
            "--fill-genes",
            help="Genes of the run that --controls lacks take the values of stored control cells; the output marks them.",
        ),
    ] = False,
    cells: Annotated[int | None, typer.Option(help="Cells per condition; without it the run's sampling.cells.")] = None,
    counts: Annotated[
        bool,
        typer.Option(
            "--counts",
            help="Whole counts in place of log1p values: library sizes of control cells, dispersion of training cells.",
        ),
    ] = False,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="scdfm, or vcc: a submission of counts as the Virtual Cell Challenge takes it, with control cells.",
        ),
    ] = "scdfm",
    cells_table: Annotated[
        Path | None,
        typer.Option(help="With --format vcc: CSV of condition and cells, one a line, in place of --cells."),
    ] = None,
    copy: Annotated[
        str | None,
        typer.Option(
            help="With --format vcc: columns of the control cells, batch,plate, that predicted cells take from theirs."
        ),
    ] = None,
    gene_axis: Annotated[
        Path | None,
        typer.Option(help="With --format vcc: file of the genes, one a line. Without it those of the control cells."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu or cuda.")] = "auto",
    seed: Seed = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the prediction that was interrupted at --out.")
    ] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Generate whole populations for conditions, measured or not.

    The file of --controls is read as the run's cells were; options on columns, labels and numbers are about it alone.
    """
    sizes = cells if cells_table is None else cells_of(cells_table)
    if isinstance(sizes, dict) and not (conditions or test or every or all_pairs_of):
        conditions = list(sizes)
    if sum([bool(conditions), test, every, all_pairs_of is not None]) != 1:
        raise ConfigError("predict: choose exactly one of --conditions A+B,C, --test, --all and --all-pairs-of A,B,C")
    named = pairs_of(context or [], "--context", "cell_line=A549")
    if (named or fill_genes) and controls is None:
        raise ConfigError(
            f"predict: {'--context' if named else '--fill-genes'} is about control cells of your own; give their file with "
            "--controls, or leave it out"
        )
    _consistent(form, {"--gene-axis": gene_axis, "--cells-table": cells_table, "--copy": copy}, resume)
    if cells_table is not None and cells is not None:
        raise ConfigError("predict: --cells and --cells-table both say how many cells; give one of them")
    from scdfm.run import Run
    from scdfm.run.predict import starting

    source = Run.load(run)
    table = screen.controls(controls, source, named)
    source, table = (source, None) if table is None else starting(source, table, named, fill_genes, seed)
    if test or every:
        names = _measured(source, test, named)
    elif conditions:
        names = names_of(*conditions, run=source)
    else:
        names = _pairs(names_of(all_pairs_of or "", run=source))
    if form == "vcc":  # one process writes it, whole
        if is_first():
            _submit(source, out, names, table, sizes, gene_axis, copy, named, seed, overwrite, not quiet, device)
        return
    written = source.predict_to(
        out, names, table, n_cells=cells, seed=seed, resume=resume, overwrite=overwrite, progress=not quiet,
        counts=counts, context=named, device=device, say=None if quiet else warn,
    )  # fmt: skip
    if is_first():
        _tell(written)


def _tell(written: PredictedFile) -> None:
    """Say what a prediction left."""
    from scdfm.run.extrapolation import told

    if not written.complete:
        typer.echo(f"{written.path}: this process has done its part; the one that ends last writes the file")
        return
    if written.extrapolated:
        typer.echo(told(written.extrapolated), err=True)
    typer.echo(
        f"{written.path}: {written.n_cells} cells × {written.n_genes} genes, {len(written.conditions)} conditions"
    )
    if written.counts:
        typer.echo(f"counts: {written.counts}")


def _measured(source: Run, test: bool, context: dict[str, str]) -> list[str] | None:
    """The test conditions of a run's split, or all of them, that it can predict; None for test ones where it can none."""
    from scdfm.run.contexts import every_condition
    from scdfm.run.extrapolation import unknown, untold

    conditions = source.split.test if test else every_condition(source, context)
    left = unknown(source.encoder, conditions)
    if 0 < len(left) < len(conditions) and is_first():
        typer.echo(untold(left, len(conditions), "test conditions" if test else "conditions"), err=True)
    # Where none can be predicted, the prediction itself says why.
    return [name for name in conditions if name not in left] or (None if test else list(conditions))


def _pairs(targets: list[str]) -> list[str]:
    """Every pair of different targets."""
    return ["+".join(pair) for pair in itertools.combinations(dict.fromkeys(targets), 2)]


def _consistent(form: str, of_submission: dict[str, object], resume: bool) -> None:
    """Refuse options that do not go with the format."""
    if form not in ("scdfm", "vcc"):
        raise ConfigError(f"predict: --format {form}: expected scdfm or vcc")
    given = [option for option, value in of_submission.items() if value is not None]
    if given and form != "vcc":
        raise ConfigError(f"predict: {given[0]} belongs to a submission; give it with --format vcc")
    if resume and form == "vcc":
        raise ConfigError("predict: --resume: a submission is written at once; leave it out")


def _submit(
    source: Run, out: Path, names: list[str] | None, controls: CellTable | None, cells: int | dict[str, int] | None,
    gene_axis: Path | None, copy: str | None, context: dict[str, str], seed: int, overwrite: bool, progress: bool,
    device: str,
) -> None:  # fmt: skip
    """Write a submission and say what is in it."""
    from scdfm.files import read_names, write_h5ad
    from scdfm.run.submission import CONTROL_LABEL, submission

    if out.suffix != ".h5ad":
        raise ConfigError(f"output {out}: expected a name that ends in .h5ad for --format vcc; rename it")
    require_free(out, overwrite)
    genes = None if gene_axis is None else read_names(gene_axis, "file of genes")
    copied = [name.strip() for name in (copy or "").split(",") if name.strip()]
    submitted = submission(
        source, names, controls, n_cells=cells, gene_axis=genes, copy=copied, context=context or None, seed=seed,
        progress=progress, device=device, say=warn if progress else None,
    )  # fmt: skip
    write_h5ad(out, submitted)
    n_control = int((submitted.obs["target"] == CONTROL_LABEL).sum())
    typer.echo(
        f"{out}: {submitted.n_obs - n_control} predicted and {n_control} control cells × {submitted.n_vars} genes\n"
        f"counts: {submitted.uns['scdfm']['counts']}"
    )
