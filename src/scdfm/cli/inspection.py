"""The command that looks at a file: inspect."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from scdfm.cli.app import app
from scdfm.cli.options import DataArgument


@app.command()
def inspect(
    data: DataArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Say what DATA holds, what could go wrong, and which `scdfm fit` line to begin with."""
    from scdfm.data.inspection import inspect as look
    from scdfm.data.inspection.text import text

    found = look(data)
    typer.echo(json.dumps(found.to_dict(), indent=1, allow_nan=False) if as_json else text(found))
