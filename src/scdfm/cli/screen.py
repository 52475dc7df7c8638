"""The options that say what a screen's file holds, the same on every command that reads one."""

from __future__ import annotations

import copy
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
    from scdfm.declaration import DataConfig
    from scdfm.evaluation import Counts

NONE = "none"
"""What stands for an empty list of columns."""


@dataclass(frozen=True)
class Screen:
    """What the options say of a file; each field is an option of every command under `reads_screen`, None: not given."""

    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file whose table `data` holds these options (perturbation_key = ...); options given "
            "here go over it."
        ),
    ] = None
    perturbation_key: Annotated[
        str | None,
        typer.Option(
            help="Column of obs that holds the condition of each cell.", show_default="perturbation"
        ),
    ] = None
    control: Annotated[
        str | None, typer.Option(help="Label of the control cells in that column.", show_default="control")
    ] = None
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
        str | None,
        typer.Option(
            help="error, or all: cells without control cells of their own take every control cell.",
            show_default="error",
        ),
    ] = None
    target_sum: Annotated[
        str | None,
        typer.Option(
            help="Declares raw counts and normalises them to this total ('median' or a number), then log1p. "
            "Without it the values are declared log1p, and checked."
        ),
    ] = None
    layer: Annotated[str | None, typer.Option(help="Layer to read instead of X.")] = None
    min_cells: Annotated[
        int | None, typer.Option(help="Leave out perturbed conditions of fewer cells.", show_default="1")
    ] = None
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

    def declared(self, **defaults: Any) -> DataConfig:
        """The options given, over the table [data] of the file, over `defaults`."""
        from scdfm.declaration import DataConfig

        given: dict[str, Any] = {
            entry.name: getattr(self, entry.name)
            for entry in fields(self)
            if entry.name in DataConfig.model_fields
        }
        given |= {name: _columns(given[name]) for name in ("covariates", "match_controls")}
        given["subset"] = None if self.subset is None else dict(map(_pair, self.subset))
        given["target_sum"] = None if self.target_sum is None else _total(self.target_sum)
        base = DataConfig(**defaults)
        if self.config is not None:
            base = DataConfig.load(self.config, base)
        return base.updated(
            {name: value for name, value in given.items() if value is not None}, "command line"
        )


@dataclass(frozen=True)
class Reader:
    """How a command reads its screen: what was declared, and whether cells stay on disk."""

    declared: DataConfig
    backed: bool | None
    config: Path | None

    def read(self, data: Path) -> CellTable:
        """The cells of the file."""
        from scdfm.data import read_cells
        from scdfm.data.stored import StoredMatrix

        cells = read_cells(data, **self.declared.options(), backed=self.backed)
        if self.backed is None and isinstance(cells.X, StoredMatrix):
            typer.echo(
                f"{data}: larger than 2 GiB, so its cells stay on disk (--in-memory: do not)", err=True
            )
        return cells

    def counts(self, predicted: Path, real: Path) -> tuple[Counts, Counts]:
        """The raw counts of a prediction (X) and of measured cells, which the layer is of."""
        from scdfm.declaration import DataConfig
        from scdfm.evaluation import read_counts

        default = DataConfig()
        for option in (
            "target_sum",
            "covariates",
            "dose_key",
            "time_key",
            "match_controls",
            "control_fallback",
        ):
            if getattr(self.declared, option) != getattr(default, option):
                raise ConfigError(
                    f"{option} is no option of protocol vcc2026, which scores the counts of one context; leave it out "
                    "(choose cells with subset)"
                )
        if self.backed:
            raise ConfigError(
                "--backed is no option of protocol vcc2026, whose counts are in memory; leave it out"
            )
        given = self.declared
        key, control, subset = given.perturbation_key, given.control, given.subset or None
        return (
            read_counts(predicted, key, control, subset=subset, need_control=False),
            read_counts(real, key, control, given.layer, subset, given.min_cells),
        )

    def require_data_alone(self, command: str) -> None:
        """Refuse a config file with tables that `command` would not use."""
        from scdfm.declaration import TABLE
        from scdfm.section import read_toml

        tables = [] if self.config is None else sorted(set(read_toml(self.config)) - {TABLE})
        if tables:
            raise ConfigError(
                f"{command}: config file {self.config} holds '{tables[0]}', expected the table [{TABLE}] alone; give other "
                "options with --set"
            )


def reads_screen(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command with a parameter `screen`, a Reader, the options of Screen in its place, with `defaults`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        keyword = inspect.Parameter.KEYWORD_ONLY
        options = [
            inspect.Parameter(name, keyword, default=None, annotation=annotation)
            for name, annotation in _annotations(defaults).items()
        ]
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            own = [parameter.replace(kind=keyword)]
            parameters += options if parameter.name == "screen" else own

        @functools.wraps(command)
        def wrapped(**values: Any) -> None:
            screen = Screen(**{entry.name: values.pop(entry.name) for entry in fields(Screen)})
            command(screen=Reader(screen.declared(**defaults), screen.backed, screen.config), **values)

        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapped

    return decorate


def _annotations(defaults: dict[str, Any]) -> dict[str, Any]:
    """The options of Screen by name; --help shows what stands where they are not given."""
    found: dict[str, Any] = {}
    for name, annotation in get_type_hints(Screen, include_extras=True).items():
        option = copy.copy(annotation.__metadata__[0])
        option.show_default = str(defaults[name]) if name in defaults else option.show_default
        found[name] = Annotated[annotation.__origin__, option]
    return found


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
