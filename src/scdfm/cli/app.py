"""The application that every group of commands registers with, and the options it has itself."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Predict how populations of cells answer perturbations nobody has measured.",
)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print version and commit, and stop.")] = False,
) -> None:
    """Options of scdfm itself."""
    if version:
        from scdfm.version import version as told

        typer.echo(told())
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
