"""The command about methods of others that the benchmark runs: peers."""

from __future__ import annotations

from typing import Annotated

import typer

from scdfm.cli.app import app
from scdfm.errors import ConfigError


@app.command()
def peers(
    action: Annotated[str, typer.Argument(help="install, check or list.", show_default=False)],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="cellflow, state, gears, cpa, scgpt, geneformer; without it all.", show_default=False
        ),
    ] = None,
) -> None:
    """Install published methods, each in an environment of its own, or check that they run here.

    `install` fetches packages (1 to 3 GB each) into $SCDFM_PEERS, else the user's cache folder. `check` installs what is
    missing and fits each for 20 steps on a tiny screen; it ends with code 2 where one fails.
    """
    from scdfm.peers.bundled import PEERS, environments, install, peer

    if action not in ("install", "check", "list"):
        raise ConfigError(f"peers {action}: expected install, check or list")
    chosen = [peer(name) for name in names or PEERS]
    if action == "install" and not names:
        raise ConfigError(f"peers install: name one or more of {', '.join(PEERS)}, or check all")
    good = True
    for one in chosen:
        if action == "check":
            from scdfm.peers.check import check

            found = check(one)
            good = good and found.good
            words = found.words
        else:
            told = install(one) if action == "install" else one.installed
            words = f"{told['packages']} packages, {told['mib']:,} MiB" if told else "not installed"
        typer.echo(f"{one.name}: {words}")
    if action == "install":
        typer.echo(f"environments: {environments()}")
    if not good:
        raise typer.Exit(2)
