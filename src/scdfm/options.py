"""Options as frozen, checked tables that are strict about keys, and those that say what a file of cells holds.

`DataConfig` is the table `[data]` of a TOML file; flags of the same names are made of it.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from scdfm.errors import ConfigError
from scdfm.files import read_text


class Section(BaseModel):
    """A frozen group of options that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python takes True for 1; whoever writes `max_steps = true` means something else."""
        assert info.field_name is not None
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("expected another kind of value than true or false")
        return value


S = TypeVar("S", bound=Section)


def checked(kind: type[S], values: Mapping[str, Any], where: str) -> S:
    """A section of nested `values`; ConfigError names the key, what was expected and what was found."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        said = "; ".join(_complaint(kind, item) for item in error.errors())
        raise ConfigError(f"{where}: {said}") from error


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with others put over them."""
    values = dict(base)
    for key, value in over.items():
        inner = values.get(key)
        values[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return values


def read_toml(path: str | Path) -> dict[str, Any]:
    """The values of a TOML file of options."""
    try:
        return tomllib.loads(read_text(path))
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read ({error.strerror}); check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"config file {path} is not TOML: {error}") from error


def _complaint(kind: type[Section], item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"unknown key '{key}'; known here: {', '.join(_known_keys(kind, item['loc'][:-1]))}"
    value = "" if isinstance(item["input"], dict) else f" (found {item['input']!r})"
    return f"{key or 'config'}: {item['msg'].removeprefix('Value error, ')}{value}"


def _known_keys(kind: type[Section], location: tuple[Any, ...]) -> list[str]:
    section: Any = kind
    for part in location:
        section = section.model_fields[part].annotation
    return list(section.model_fields)


TABLE = "data"
SCREENS = "screens"
JOINED_ON = ("intersection", "union")
"""On which genes screens are joined: those that all measured, or those that any did."""
Values = Literal["log1p", "log2", "log10", "log1p-twice", "linear"]
"""What numbers can be declared to be: natural, binary or decimal logarithms of 1 + x, log1p taken twice, or none."""


class DataConfig(Section):
    """Columns, names, scale and choice of the cells of a screen; `scdfm.read_cells` says what each of them does.

    `read_cells(path, **DataConfig.load("screen.toml").options())` reads what the command line reads with
    `--config screen.toml`. The flags of the command line are made of these fields.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    perturbation_key: str = "perturbation"
    """Column of obs that holds the condition of each cell; Drug1+Drug2 joins two columns."""
    control: str | tuple[str, ...] = "control"
    """Label of the control cells in that column, * for any text; may be repeated."""
    exclude: tuple[str, ...] = ()
    """Label of cells to leave out, * for any text, nan also for missing labels; may be repeated."""
    separator: str | None = None
    """What joins targets in labels beside +: |, __, _, ; or a comma; none where nothing does, as in Na+/K+."""
    guides: tuple[str, ...] = ()
    """Pool guides to genes by their names: GENE_sg*, where GENE stands for the gene; may be repeated."""
    genes: str | None = None
    """Column of var that names genes, such as gene_name; without it the index."""
    gene_versions: Literal["keep", "drop"] = "keep"
    """keep, or drop: the version of Ensembl ids (ENSG00000141510.18), of genes and targets."""
    covariates: tuple[str, ...] = ()
    """Columns of obs, separated by commas, that join the names of conditions: A|cell_type=B."""
    dose_key: str | None = None
    """Column of obs with the dose: a number, or one per target joined by +. Targets become A@DOSE."""
    time_key: str | None = None
    """Column of obs with the time, a number. Conditions become A|time=24."""
    match_controls: tuple[str, ...] | None = None
    """Columns of obs, separated by commas, that a cell shares with its controls; none for no column. Without it the
    covariates."""
    control_fallback: Literal["error", "all"] = "error"
    """error, or all: cells without control cells of their own take every control cell."""
    target_sum: float | Literal["median"] | None = None
    """Declares raw counts and normalises them to this total ('median' or a number), then log1p. Without it the values
    are declared log1p, and checked."""
    layer: str | None = None
    """Layer to read instead of X; raw is the matrix of .raw, with its own genes."""
    min_cells: Annotated[int, Field(ge=1)] = 1
    """Leave out perturbed conditions of fewer cells."""
    values: Values | None = None
    """What the numbers are, taken at its word: log1p, log2 or log10 of 1 + x, log1p-twice, or linear (counts, also with
    fractions or normalised; needs --target-sum). Without it log1p, with --target-sum counts, both checked."""
    min_genes: Annotated[int, Field(ge=0)] = 0
    """Leave out cells with fewer genes above 0; 1 leaves out empty ones."""
    dose_unit_key: str | None = None
    """Column of obs with the unit of each dose, where it stands beside it; doses become uM, or ug/ml."""
    subset: dict[str, str] = Field(default_factory=dict)
    """Keep cells with COLUMN=VALUE in obs; may be repeated. With --run that of the run, none for all cells."""

    @field_validator("target_sum", mode="plain")
    @classmethod
    def _total(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
            return float(value)
        if value in (None, "median"):
            return value
        raise ValueError("expected a number above 0 such as 10000, or 'median'")

    @field_validator("subset", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        """Values of obs are compared as texts, so that numbers may be written as such."""
        if not isinstance(value, Mapping):
            return value
        return {key: str(one) if isinstance(one, int | float) else one for key, one in value.items()}

    @classmethod
    def load(cls, path: str | Path, base: DataConfig | None = None) -> DataConfig:
        """The table `[data]` of a TOML file over `base`; its other tables are `Config.load`'s."""
        return (base or cls()).updated(table_of(read_toml(path), path), f"config file {path}, table [{TABLE}]")

    def updated(self, values: Mapping[str, Any], where: str) -> DataConfig:
        """This declaration with `values` put over it; ConfigError names the key."""
        return checked(DataConfig, merged(self.model_dump(), values), where)

    def options(self) -> dict[str, Any]:
        """The options of `read_cells`."""
        return {name: getattr(self, name) for name in type(self).model_fields} | {"subset": self.subset or None}


class Screens(NamedTuple):
    """The table `[screens]` of a TOML file: by name the `file` of each screen and options of `DataConfig` of its own, which
    genes they are joined on (None: not said), and how often training draws those that say so."""

    tables: dict[str, dict[str, Any]]
    genes: str | None
    weights: dict[str, float]


def screens_of(path: str | Path) -> Screens:
    """The tables `[screens.NAME]` of a TOML file, checked; none where it has none."""
    where = f"config file {path}, table [{SCREENS}]"
    screens = read_toml(path).get(SCREENS, {})
    genes = screens.pop("genes") if isinstance(screens, dict) and isinstance(screens.get("genes"), str) else None
    if not isinstance(screens, dict) or not all(isinstance(one, dict) for one in screens.values()):
        raise ConfigError(f"{where}: expected a table [{SCREENS}.NAME] for each screen")
    if genes not in (None, *JOINED_ON):
        raise ConfigError(f"{where}: genes is '{genes}'; expected one of {', '.join(JOINED_ON)}")
    weights = {name: one.pop("weight") for name, one in screens.items() if "weight" in one}
    for name, one in screens.items():
        if not isinstance(one.get("file"), str):
            raise ConfigError(f"{where}: '{name}' names no file; expected file = \"SCREEN.h5ad\"")
        DataConfig().updated({key: value for key, value in one.items() if key != "file"}, f"{where}, '{name}'")
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ConfigError(f"{where}: '{name}' has the weight {weight!r}; expected a number above 0 such as 2.0")
    return Screens(screens, genes, {name: float(weight) for name, weight in weights.items()})


def table_of(values: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """The table `[data]` among the values of a TOML file."""
    table = values.get(TABLE, {})
    if not isinstance(table, dict):
        raise ConfigError(f"config file {path}: {TABLE} is {table!r}; expected a table [{TABLE}] of options")
    return table
