"""Options that several commands share, and what they become."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scdfm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from scdfm.config import Config

DataArgument = Annotated[Path, typer.Argument(help="Screen as .h5ad or .zarr.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]


def config_of(
    preset: str, file: Path | None, settings: list[str], split: str | None, fold: int | None, max_steps: int | None,
    seed: int | None,
) -> Config:  # fmt: skip
    """Preset, then file, then --set, then the options with flags of their own."""
    from scdfm.config import Config, SplitConfig

    config = Config.preset(preset)
    if file is not None:
        config = Config.load(file, config)
    config = config.with_settings(settings)
    over: dict[str, Any] = {"split": {} if split is None else SplitConfig.named(split)}
    if fold is not None:
        over["split"]["fold"] = fold
    if max_steps is not None:
        over["training"] = {"max_steps": max_steps}
    if seed is not None:
        over["seed"] = seed
    return config.updated(over, where="command line")


def names_of(*texts: str) -> list[str]:
    """The names in texts such as A+B,C; those of a file, one a line and with their commas, where a text is @FILE."""
    from scdfm.screening.space import read_names

    names: list[str] = []
    for text in texts:
        if text.startswith("@"):
            names += read_names(Path(text[1:]), "file of names")
        else:
            names += [name.strip() for name in text.split(",") if name.strip()]
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


def write_h5ad(adata: Any, path: Path) -> None:
    """Write an AnnData whole or not at all."""
    from scdfm.files import written_whole

    with written_whole(path) as temporary:
        adata.write_h5ad(temporary, compression="gzip")
