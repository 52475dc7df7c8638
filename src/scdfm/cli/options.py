"""Options that several commands share, and what they become."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scdfm.errors import ConditionError, ConfigError, DataError

if TYPE_CHECKING:
    from scdfm.config import Config
    from scdfm.run import Run

DataArguments = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Screen as .h5ad or .zarr; of several the names become the covariate `screen`.", show_default=False
    ),
]
DataArgument = Annotated[Path, typer.Argument(help="Screen as .h5ad or .zarr.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]
Controls = Annotated[Path | None, typer.Option(help="File with control cells; without it those stored with the run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]


def warn(text: str) -> None:
    """Say what changes the meaning of a command's numbers; --quiet does not hide it."""
    typer.echo(text, err=True)


def config_of(
    preset: str | Config, file: Path | None, settings: list[str], split: str | None, fold: int | None,
    max_steps: int | None, seed: int | None,
) -> Config:  # fmt: skip
    """Preset or other config, then file, then --set, then the options with flags of their own."""
    from scdfm.config import Config, SplitConfig

    over: dict[str, Any] = {"split": {} if split is None else SplitConfig.named(split)}
    # The kind of split comes first too: the file and --set may hold options that go with it alone.
    begin = Config.preset(preset) if isinstance(preset, str) else preset
    config = begin.updated(over, where="command line")
    if file is not None:
        config = Config.load(file, config)
    config = config.with_settings(settings)
    if fold is not None:
        over["split"]["fold"] = fold
    if max_steps is not None:
        over["training"] = {"max_steps": max_steps}
    if seed is not None:
        over["seed"] = seed
    return config.updated(over, where="command line")


def names_of(*texts: str, run: Run | None = None) -> list[str]:
    """The names in texts such as A+B,C; those of a file, one a line and with their commas, where a text is @FILE.

    A comma within brackets, or in a name that `run` knows, is part of the name.
    """
    from scdfm.files import read_names

    names: list[str] = []
    for text in texts:
        if text.startswith("@"):
            names += read_names(Path(text[1:]), "file of names")
        else:
            names += _joined([part for part in _between_commas(text) if part], run)
    return names


def seconds_of(text: str) -> float:
    """Seconds of a text such as 90s, 30m or 2h."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    try:
        seconds = float(text[:-1]) * units[text[-1:]]
    except (KeyError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"time '{text}': expected a number and a unit, e.g. 90s, 30m or 2h")
    return seconds


def _between_commas(text: str) -> list[str]:
    """The texts between the commas that stand outside of brackets, or between all where brackets do not pair."""
    from scdfm.data.conditions import split_targets

    try:
        return split_targets(text, (",",))
    except ConditionError:
        return [part.strip() for part in text.split(",")]


def _joined(parts: list[str], run: Run | None) -> list[str]:
    """The parts, those joined again that together are a name of the run: `2` and `4-D` are `2,4-D` where it knows that."""
    names: list[str] = []
    while parts and run is not None:
        longest = range(len(parts), 1, -1)
        joined = [(sign.join(parts[:n]), n) for n in longest for sign in (",", ", ")]
        name, n = next((pair for pair in joined if run.knows(pair[0])), (parts[0], 1))
        names.append(name)
        parts = parts[n:]
    return names + parts


def cells_of(file: Path) -> dict[str, int]:
    """Cells by condition of a CSV file: a name and a number a line, under a line of headings or not."""
    import csv

    from scdfm.files import read_text

    try:
        rows = [row for row in csv.reader(read_text(file).splitlines()) if any(text.strip() for text in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"table of cells {file} cannot be read ({error}); expected lines such as A+B,128") from error
    if rows and not rows[0][-1].strip().isdecimal():
        rows = rows[1:]
    sizes: dict[str, int] = {}
    for row in rows:
        if len(row) != 2 or not row[1].strip().isdecimal() or not row[0].strip() or row[0].strip() in sizes:
            raise DataError(
                f"table of cells {file}: line '{','.join(row)}'; expected a condition, once, and its number of cells, "
                "A+B,128: correct it"
            )
        sizes[row[0].strip()] = int(row[1])
    if not sizes:
        raise DataError(f"table of cells {file} names no condition; expected lines such as A+B,128")
    return sizes


def pairs_of(texts: list[str], option: str, example: str) -> dict[str, str]:
    """The columns and values of texts such as COLUMN=VALUE."""
    pairs = {}
    for text in texts:
        column, sign, value = text.partition("=")
        if not sign or not column:
            raise ConfigError(f"{option} {text}: expected COLUMN=VALUE, e.g. {example}")
        pairs[column] = value
    return pairs


def number_or_text(text: str) -> float | str:
    """A number where the text is one."""
    try:
        return float(text)
    except ValueError:
        return text


def require_free(path: Path, overwrite: bool) -> None:
    """Refuse to write over a file, or into a folder that is not there, before any work is done."""
    from scdfm.files import require_place

    if "\0" in str(path):
        raise DataError(f"output {path!r}: no file can have this name; choose another")
    if path.is_file() and not overwrite:
        raise DataError(f"output {path} exists; choose another name, or pass --overwrite")
    if not path.absolute().parent.is_dir():
        raise DataError(f"output {path}: the folder {path.absolute().parent} does not exist; create it first")
    require_place(path)
