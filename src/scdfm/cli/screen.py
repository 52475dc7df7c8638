"""The options that say what a screen's file holds, the same on every command that reads one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from scdfm.errors import ConfigError

if TYPE_CHECKING:
    from scdfm.data import CellTable

NONE = "none"
"""What stands for an empty list of columns."""


@dataclass(frozen=True)
class Screen:
    """What the options say of a file; each field is an option of every command under `reads_screen`."""

    perturbation_key: Annotated[
        str, typer.Option(help="Column of obs that holds the condition of each cell.")
    ] = "perturbation"
    control: Annotated[str, typer.Option(help="Label of the control cells in that column.")] = "control"
    covariates: Annotated[
        str | None,
        typer.Option(
            help="Columns of obs, separated by commas, that join the names of conditions: A|cell_type=B."
        ),
    ] = None
    dose_key: Annotated[
        str | None,
        typer.Option(
            help="Column of obs with the dose: a number, or one per target joined by +. Targets become A@DOSE."
        ),
    ] = None
    time_key: Annotated[
        str | None, typer.Option(help="Column of obs with the time, a number. Conditions become A|time=24.")
    ] = None
    match_controls: Annotated[
        str | None,
        typer.Option(
            help="Columns of obs, separated by commas, that a cell shares with its controls; none for no column. "
            "Without it the covariates."
        ),
    ] = None
    control_fallback: Annotated[
        str,
        typer.Option(help="error, or all: cells without control cells of their own take every control cell."),
    ] = "error"
    target_sum: Annotated[
        str | None,
        typer.Option(
            help="Declares raw counts and normalises them to this total ('median' or a number), then log1p. "
            "Without it the values are declared log1p, and checked."
        ),
    ] = None
    layer: Annotated[str | None, typer.Option(help="Layer to read instead of X.")] = None
    subset: Annotated[
        list[str] | None, typer.Option(help="Keep cells with COLUMN=VALUE in obs; may be repeated.")
    ] = None
    backed: Annotated[
        bool | None,
        typer.Option(
            "--backed/--in-memory",
            help="Keep the expression on disk, or in memory. Without it: on disk from 2 GiB (8 bytes a stored value). "
            "On disk needs as much scratch space, in TMPDIR; the numbers are the same.",
        ),
    ] = None

    def read(self, data: Path, min_cells: int = 1) -> CellTable:
        """The cells of the file."""
        from scdfm.data import read_cells
        from scdfm.data.stored import StoredMatrix

        pairs = dict(_pair(text) for text in self.subset or [])
        cells = read_cells(
            data, self.perturbation_key, self.control,
            target_sum=None if self.target_sum is None else _total(self.target_sum),
            layer=self.layer, subset=pairs or None, min_cells=min_cells, covariates=_columns(self.covariates) or (),
            dose_key=self.dose_key, time_key=self.time_key, match_controls=_columns(self.match_controls),
            control_fallback=self.control_fallback, backed=self.backed,  # type: ignore[arg-type]
        )  # fmt: skip
        if self.backed is None and isinstance(cells.X, StoredMatrix):
            typer.echo(
                f"{data}: larger than 2 GiB, so its cells stay on disk (--in-memory: do not)", err=True
            )
        return cells


def reads_screen(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command with a parameter `screen` the options of Screen in its place, `defaults` over their own."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        types = get_type_hints(Screen, include_extras=True)
        keyword = inspect.Parameter.KEYWORD_ONLY
        options = [
            inspect.Parameter(
                entry.name,
                keyword,
                default=defaults.get(entry.name, entry.default),
                annotation=types[entry.name],
            )
            for entry in fields(Screen)
        ]
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            own = [parameter.replace(kind=keyword)]
            parameters += options if parameter.name == "screen" else own

        @functools.wraps(command)
        def wrapped(**values: Any) -> None:
            given = {entry.name: values.pop(entry.name) for entry in fields(Screen)}
            command(screen=Screen(**given), **values)

        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapped

    return decorate


def _columns(text: str | None) -> tuple[str, ...] | None:
    """The columns of A,B; none of `none`."""
    if text is None or text == NONE:
        return None if text is None else ()
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _total(text: str) -> float | Literal["median"]:
    if text == "median":
        return "median"
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--target-sum {text}: expected a number such as 10000, or median") from None


def _pair(text: str) -> tuple[str, str]:
    column, sign, value = text.partition("=")
    if not sign or not column:
        raise ConfigError(f"--subset {text}: expected COLUMN=VALUE, e.g. dataset=norman19")
    return column, value
