"""Commands about the publication and its peers: download, reproduce, convert-official, peers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scdfm.cli.app import app
from scdfm.cli.options import Quiet
from scdfm.cli.scores import numbers_of
from scdfm.cli.screen import Reader, reads_screen
from scdfm.errors import ConfigError

Settings = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value over the preset; may be repeated.")
]


@app.command()
def download(
    name: Annotated[
        str, typer.Argument(help="norman, combosciplex, or go (what is known of genes).", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Folder; without it $SCDFM_DATA, else the user's cache.")] = None,
    quiet: Quiet = False,
) -> None:
    """Download a public data set once; it is checked against its recorded hash ever after."""
    from scdfm.datasets import SETS, download_set

    files = download_set(name, out, progress=not quiet)
    typer.echo("\n".join(map(str, files)))
    if name in SETS:
        typer.echo(f"fit with --features {name}:{','.join(map(str, files))}")


@app.command()
def reproduce(
    experiment: Annotated[
        str, typer.Argument(help="norman-additive, norman-holdout, combosciplex or ablation.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Folder; without it reproduce/EXPERIMENT.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="A copy of the data set; without it the published one is downloaded.")
    ] = None,
    preset: Annotated[str, typer.Option(help="paper or default.")] = "paper",
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="The whole chain in seconds: tiny sizes, made-up data, figures mean nothing."),
    ] = False,
    folds: Annotated[str | None, typer.Option(help="Folds that are fitted: 0-4, or 0,2. Without it all.")] = None,
    seeds: Annotated[int, typer.Option(help="Fits of each model in each fold, with seeds 0, 1, ...")] = 1,
    settings: Settings = None,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="norman-holdout: test targets never train, harder than published.")
    ] = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Go on where the Control row is not the published one.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the reproduction in --out.")] = False,
    quiet: Quiet = False,
) -> None:
    """Run a published experiment and print its table beside the published rows."""
    from scdfm.reproduction import reproduce as run_experiment

    result = run_experiment(
        experiment, data, out=out or Path("reproduce") / experiment, preset=preset, smoke=smoke,
        folds=None if folds is None else numbers_of(folds), seeds=seeds, settings=settings or [], unseen=unseen,
        check=not no_check, resume=resume, progress=not quiet,
    )  # fmt: skip
    typer.echo(result.text)
    typer.echo(f"\ntable: {result.path / 'table.md'}")


@app.command("convert-official")
@reads_screen(perturbation_key="condition", control="ctrl")
def convert_official(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of the official code (.pt).", show_default=False)],
    vocab: Annotated[Path, typer.Option(help="Its gene vocabulary (.json).", show_default=False)],
    out: Annotated[Path, typer.Option(help="Run folder to create.", show_default=False)],
    screen: Reader,
    graph: Annotated[Path | None, typer.Option(help="Its graph mask (.pt).")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="The screen it was trained on: control cells, means, and the graph if none is given."),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="Its split: additive, holdout, combinations, covariate:NAME[=VALUE], FILE.toml, or obs:COLUMN."
        ),
    ] = "additive",
    fold: Annotated[int, typer.Option(help="Fold of the split.")] = 0,
    perturbation: Annotated[str, typer.Option(help="genes or drugs.")] = "genes",
    heads: Annotated[int | None, typer.Option(help="Heads of the blocks, for backbone perceiver alone.")] = None,
    settings: Settings = None,
) -> None:
    """Turn an official checkpoint into a run folder that predict takes; nothing in it is run."""
    if perturbation not in ("genes", "drugs"):
        raise ConfigError(f"--perturbation {perturbation}: expected genes or drugs")
    cells, made = None, None
    if data is not None:
        from scdfm.config import Config, SplitConfig
        from scdfm.data import make_split

        cells = screen.read(data)
        options = {**SplitConfig.named(split), "fold": fold, "validation_fraction": 0.0}
        made = make_split(cells, Config().updated({"split": options}, "command line").split)
    from scdfm.official import convert

    result = convert(
        checkpoint, vocab, out, graph=graph, cells=cells, split=made, perturbation=perturbation,  # type: ignore[arg-type]
        heads=heads, settings=settings or [],
    )  # fmt: skip
    for note in result.notes:
        typer.echo(note)
    typer.echo(f"run {out}: {len(result.run.genes)} genes, {len(result.run.vocabulary)} tokens")


@app.command()
def peers(
    action: Annotated[str, typer.Argument(help="install, check or list.", show_default=False)],
    names: Annotated[
        list[str] | None,
        typer.Argument(help="cellflow, state, gears, cpa, scgpt, geneformer; without it all.", show_default=False),
    ] = None,
) -> None:
    """Install published methods, each in an environment of its own, or check that they run here.

    `install` fetches packages (1 to 3 GB each) into $SCDFM_PEERS, else the user's cache folder. `check` installs what is
    missing and fits each for 20 steps on a tiny screen; it ends with code 2 where one fails.
    """
    from scdfm.peers.bundled import PEERS, check, environments, install, peer

    if action not in ("install", "check", "list"):
        raise ConfigError(f"peers {action}: expected install, check or list")
    methods = [peer(name) for name in names or PEERS]
    if action == "install" and not names:
        raise ConfigError(f"peers install: name one or more of {', '.join(PEERS)}, or check all")
    good = True
    for one in methods:
        if action == "check":
            checked = check(one)
            good = good and checked.good
            words = checked.words
        else:
            installed = install(one) if action == "install" else one.installed
            words = f"{installed['packages']} packages, {installed['mib']:,} MiB" if installed else "not installed"
        typer.echo(f"{one.name}: {words}")
    if action == "install":
        typer.echo(f"environments: {environments()}")
    if not good:
        raise typer.Exit(2)
