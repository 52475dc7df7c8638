"""Options that several commands share, and what they become."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from scdfm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from scdfm.config import Config
    from scdfm.data import CellTable

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
Backed = Annotated[
    bool | None,
    typer.Option(
        "--backed/--in-memory",
        help="Keep the expression on disk, or in memory. Without it: on disk from 2 GiB (8 bytes a stored value). "
        "On disk needs as much scratch space, in TMPDIR; the numbers are the same.",
    ),
]
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


def cells_of(
    data: Path,
    key: str,
    control: str,
    target_sum: str | None,
    layer: str | None,
    subset: list[str] | None,
    min_cells: int = 1,
    backed: bool | None = None,
) -> CellTable:
    """The screen that the options describe."""
    from scdfm.data import read_cells
    from scdfm.data.stored import StoredMatrix

    pairs = dict(_pair(text) for text in subset or [])
    total = None if target_sum is None else _total(target_sum)
    cells = read_cells(
        data, key, control, target_sum=total, layer=layer, subset=pairs or None, min_cells=min_cells, backed=backed
    )  # fmt: skip
    if backed is None and isinstance(cells.X, StoredMatrix):
        typer.echo(f"{data}: larger than 2 GiB, so its cells stay on disk (--in-memory: do not)", err=True)
    return cells


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


def number_or_text(text: str) -> float | str:
    """A number where the text is one."""
    try:
        return float(text)
    except ValueError:
        return text


def require_free(path: Path, overwrite: bool) -> None:
    """Refuse to write over a file, or into a folder that is not there, before any work is done."""
    if path.exists() and not overwrite:
        raise DataError(f"output {path} exists; choose another name, or pass --overwrite")
    if not path.absolute().parent.is_dir():
        raise DataError(f"output {path}: the folder {path.absolute().parent} does not exist; create it first")


def write_h5ad(adata: Any, path: Path) -> None:
    """Write an AnnData whole or not at all."""
    from scdfm.files import written_whole

    with written_whole(path) as temporary:
        adata.write_h5ad(temporary, compression="gzip")
