"""The command line: parse, call, print. Heavy imports wait until a command runs, so that --help is instant."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scdfm.errors import ConfigError, DataError, ScdfmError

if TYPE_CHECKING:
    from scdfm.config import Config
    from scdfm.data import CellTable

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Predict how populations of cells answer perturbations nobody has measured.",
)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Options of scdfm itself."""
    if version:
        import scdfm

        typer.echo(scdfm.__version__)


DataArgument = Annotated[Path, typer.Argument(help="Screen as .h5ad or .zarr.", show_default=False)]
Key = Annotated[
    str, typer.Option("--perturbation-key", help="Column of obs that holds the condition of each cell.")
]
Control = Annotated[str, typer.Option("--control", help="Label of the control cells in that column.")]
TargetSum = Annotated[
    str | None,
    typer.Option(help="Declares raw counts and normalises them to this total ('median' or a number), then log1p. "
                      "Without it the values are declared log1p, and checked."),
]  # fmt: skip
Layer = Annotated[str | None, typer.Option(help="Layer to read instead of X.")]
Subset = Annotated[
    list[str] | None, typer.Option(help="Keep cells with COLUMN=VALUE in obs; may be repeated.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]


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

    _free(out, overwrite)
    screen = simulate_screen(
        n_genes=genes, n_targets=targets, cells_per_condition=cells, n_controls=controls,
        interaction=_number_or_text(interaction), seed=seed,
    )  # fmt: skip
    _write_h5ad(screen, out)
    typer.echo(
        f"{out}: {screen.n_obs} cells × {screen.n_vars} genes, {screen.obs['perturbation'].nunique()} conditions"
    )


@app.command()
def fit(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Run folder to create.", show_default=False)],
    perturbation_key: Key = "perturbation",
    control: Control = "control",
    target_sum: TargetSum = None,
    layer: Layer = None,
    subset: Subset = None,
    min_cells: Annotated[int, typer.Option(help="Leave out perturbed conditions of fewer cells.")] = 1,
    split: Annotated[
        str | None, typer.Option(help="additive, holdout, combinations, FILE.toml, or obs:COLUMN.")
    ] = None,
    fold: Annotated[int | None, typer.Option(help="Fold of the split.")] = None,
    preset: Annotated[str, typer.Option(help="default, paper or tiny.")] = "default",
    config: Annotated[Path | None, typer.Option(help="TOML file of options over the preset.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.key=value over preset and file; may be repeated."),
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Training steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the fit that was interrupted in --out.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a model on DATA and leave a run folder at --out."""
    options = _config(preset, config, settings or [], split, fold, max_steps, seed)
    cells = _cells(data, perturbation_key, control, target_sum, layer, subset, min_cells)
    from scdfm.training import fit as fit_cells

    run = fit_cells(cells, config=options, out=out, resume=resume, progress=not quiet)
    kept = ", ".join(
        f"{name} {value:.4g}" for name, value in run.manifest.result.items() if value is not None
    )
    typer.echo(
        f"run {out}: {len(run.genes)} genes, {len(run.split.train)} training, {len(run.split.validation)} validation "
        f"and {len(run.split.test)} test conditions; weights kept: {kept}"
    )


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder of a fit.", show_default=False)],
    out: Annotated[Path, typer.Option(help="File to write (.h5ad).", show_default=False)],
    conditions: Annotated[
        list[str] | None, typer.Option(help="Conditions, separated by commas: A+B,C. May be repeated.")
    ] = None,
    test: Annotated[bool, typer.Option("--test", help="The test conditions of the run's split.")] = False,
    all_pairs_of: Annotated[str | None, typer.Option(help="Every pair of these targets: A,B,C.")] = None,
    controls: Annotated[
        Path | None, typer.Option(help="File with control cells; without it those stored with the run.")
    ] = None,
    cells: Annotated[
        int | None, typer.Option(help="Cells per condition; without it the run's sampling.cells.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Generate whole populations for conditions, measured or not."""
    if sum([bool(conditions), test, all_pairs_of is not None]) != 1:
        raise ConfigError(
            "predict: choose exactly one of --conditions A+B,C, --test and --all-pairs-of A,B,C"
        )
    _free(out, overwrite)
    from scdfm.run import Run

    names: list[str] | None = None
    if conditions:
        names = [name.strip() for text in conditions for name in text.split(",") if name.strip()]
    if all_pairs_of is not None:
        members = dict.fromkeys(name.strip() for name in all_pairs_of.split(",") if name.strip())
        names = ["+".join(pair) for pair in itertools.combinations(members, 2)]
    predicted = Run.load(run).predict(names, controls, n_cells=cells, seed=seed, progress=not quiet)
    _write_h5ad(predicted, out)
    extrapolated = list(predicted.uns["scdfm"]["extrapolated"])
    if extrapolated:
        typer.echo(
            f"extrapolation, a target was never perturbed in training: {', '.join(extrapolated)}", err=True
        )
    n_conditions = predicted.obs["source_control"].size // max(
        1, predicted.uns["scdfm"]["cells_per_condition"]
    )
    typer.echo(f"{out}: {predicted.n_obs} cells × {predicted.n_vars} genes, {n_conditions} conditions")


@app.command()
def evaluate(
    predicted: Annotated[
        Path, typer.Argument(help="Predicted cells (.h5ad), of scdfm or anybody.", show_default=False)
    ],
    real: Annotated[Path, typer.Argument(help="Measured cells (.h5ad, .zarr).", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for tables, figures and report.", show_default=False)],
    perturbation_key: Key = "perturbation",
    control: Control = "control",
    target_sum: TargetSum = None,
    layer: Layer = None,
    subset: Subset = None,
    run: Annotated[
        Path | None, typer.Option(help="Run folder: its training means make baselines and training curves.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="scdfm or paper.")] = "scdfm",
    name: Annotated[str, typer.Option(help="Name of the predictions in the tables.")] = "model",
    seed: Annotated[int, typer.Option(help="Seed of every random draw.")] = 0,
) -> None:
    """Score predictions beside simple baselines and write tables and a report."""
    from scdfm.files import new_folder
    from scdfm.report import evaluate_files

    training = None
    if run is not None:
        from scdfm.run import Run

        training = Run.load(run)
    cells = _cells(real, perturbation_key, control, target_sum, layer, subset)
    result = evaluate_files(
        predicted, cells, new_folder(out), training=training, protocol=protocol, name=name, seed=seed
    )
    typer.echo(result.text)
    typer.echo(f"\nreport: {result.path}")


def _config(
    preset: str, file: Path | None, settings: list[str], split: str | None, fold: int | None, max_steps: int | None,
    seed: int | None,
) -> Config:  # fmt: skip
    """Preset, then file, then --set, then the options with flags of their own."""
    from scdfm.config import Config

    config = Config.preset(preset)
    if file is not None:
        config = Config.load(file, config)
    config = config.with_settings(settings)
    over: dict[str, Any] = {"split": _split_options(split)}
    if fold is not None:
        over["split"]["fold"] = fold
    if max_steps is not None:
        over["training"] = {"max_steps": max_steps}
    if seed is not None:
        over["seed"] = seed
    return config.updated(over, where="command line")


def _split_options(split: str | None) -> dict[str, Any]:
    if split is None:
        return {}
    if split in ("additive", "holdout", "combinations"):
        return {"kind": split}
    if split.startswith("obs:"):
        return {"kind": "column", "column": split.removeprefix("obs:")}
    if split.endswith(".toml"):
        return {"kind": "file", "path": split}
    raise ConfigError(f"--split {split}: expected additive, holdout, combinations, FILE.toml or obs:COLUMN")


def _cells(
    data: Path,
    key: str,
    control: str,
    target_sum: str | None,
    layer: str | None,
    subset: list[str] | None,
    min_cells: int = 1,
) -> CellTable:
    from scdfm.data import read_cells

    pairs = dict(_pair(text) for text in subset or [])
    total = None if target_sum is None else _number_or_text(target_sum)
    if isinstance(total, str) and total != "median":
        raise ConfigError(f"--target-sum {target_sum}: expected a number such as 10000, or median")
    return read_cells(
        data, key, control, target_sum=total, layer=layer, subset=pairs or None, min_cells=min_cells
    )  # type: ignore[arg-type]


def _pair(text: str) -> tuple[str, str]:
    column, sign, value = text.partition("=")
    if not sign or not column:
        raise ConfigError(f"--subset {text}: expected COLUMN=VALUE, e.g. dataset=norman19")
    return column, value


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _free(path: Path, overwrite: bool) -> None:
    """Refuse to write over a file, or into a folder that is not there, before any work is done."""
    if path.exists() and not overwrite:
        raise DataError(f"output {path} exists; choose another name, or pass --overwrite")
    if not path.absolute().parent.is_dir():
        raise DataError(f"output {path}: the folder {path.absolute().parent} does not exist; create it first")


def _write_h5ad(adata: Any, path: Path) -> None:
    from scdfm.files import written_whole

    with written_whole(path) as temporary:
        adata.write_h5ad(temporary, compression="gzip")


def main() -> None:
    """Entry point: a ScdfmError is one line and exit code 2; anything else keeps its traceback in a file."""
    # Threads that wait for each other by spinning lose a factor of three as soon as the machine does anything else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except ScdfmError as error:
        sys.exit(_complain(f"error: {error}", 2))
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:  # the last line of defence: no traceback reaches the user, none is lost
        with tempfile.NamedTemporaryFile("w", prefix="scdfm-", suffix=".log", delete=False) as log:
            traceback.print_exc(file=log)
        sys.exit(
            _complain(
                f"unexpected error ({type(error).__name__}: {error}); please report it with {log.name}", 1
            )
        )


def _complain(text: str, code: int) -> int:
    typer.echo(" ".join(text.split()), err=True)
    return code
