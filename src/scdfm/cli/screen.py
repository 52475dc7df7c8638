"""The options that say what a screen's file holds, the same on every command that reads one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from scdfm.cli.options import pairs_of, warn
from scdfm.errors import ConfigError

if TYPE_CHECKING:
    from scdfm.data import CellTable
    from scdfm.evaluation import Counts
    from scdfm.options import DataConfig
    from scdfm.run import Run

NONE = "none"
"""What stands for an empty list of columns, and for no subset."""


FLAGS: Final = {"genes": "--gene-column"}
"""Options whose flag has another name than their key."""
REPEATED: Final = frozenset({"control", "exclude", "guides", "subset"})
"""Options that may be given several times, each time one label or pair."""
_CONFIG: Final = typer.Option(
    help="TOML file whose table `data` holds these options (perturbation_key = ...); options given here go over it."
)
_BACKED: Final = typer.Option(
    "--backed/--in-memory",
    help="Keep the expression on disk, or in memory. Without it: on disk from 2 GiB (8 bytes a stored value). "
    "On disk needs as much scratch space, in TMPDIR; the numbers are the same.",
)


def declared(config: Path | None, given: dict[str, Any], **defaults: Any) -> DataConfig:
    """The options given, over the table [data] of the file, over `defaults`."""
    from scdfm.options import DataConfig

    values = {name: value for name, value in given.items() if value is not None}
    for name, become in _BECOME.items():
        if name in values and values[name] != [NONE]:
            values[name] = become(values[name])
    base = DataConfig(**defaults)
    if config is not None:
        base = DataConfig.load(config, base)
    if given.get("subset") == [NONE]:
        del values["subset"]
        base = base.model_copy(update={"subset": {}})
    return base.updated(values, "command line")


@dataclass(frozen=True)
class Reader:
    """How a command reads its screen: what was declared, and whether cells stay on disk; `given` declares over defaults."""

    declared: DataConfig
    backed: bool | None
    config: Path | None
    given: Callable[..., DataConfig]
    strict: bool = True
    """False where the options are those of another file, whose labels this one need not all hold."""

    def over(self, defaults: dict[str, Any]) -> Reader:
        """This reader with the options of another file where none were given."""
        return replace(self, declared=self.given(**defaults), strict=False)

    def read(self, data: Path) -> CellTable:
        """The cells of the file."""
        from scdfm.data.reading import read_cells, read_like
        from scdfm.data.stored import StoredMatrix

        options = self.declared.options()
        cells = (
            read_cells(data, **options, backed=self.backed) if self.strict else read_like(data, options, self.backed)
        )
        for note in cells.notes:
            warn(f"{data}: {note}")
        if self.backed is None and isinstance(cells.X, StoredMatrix):
            warn(f"{data}: larger than 2 GiB, so its cells stay on disk (--in-memory: do not)")
        return cells

    def read_of(self, data: Path, run: Run) -> CellTable:
        """The cells of a file, read as those of the run were but for the options given.

        Of a run of several screens it may be the file of one, under whose name its conditions then stand.
        """
        from scdfm.data.conditions import SCREEN
        from scdfm.data.joining import as_screen
        from scdfm.data.source import open_source

        like, names = run.manifest.reading, run.manifest.conditions.covariates.get(SCREEN)
        with open_source(data) as source:
            named = names is None or SCREEN in source.obs.columns
        if named:
            return self.over(like).read(data)
        if data.stem not in (names or ()):
            raise ConfigError(
                f"{data}: obs has no column '{SCREEN}', and '{data.stem}' is none of the run's screens "
                f"({', '.join(names or ())}); name the file as its screen, or join the screens' files into one (scdfm join)"
            )
        own = {key: value for key, value in like.items() if key not in ("covariates", "match_controls")}
        own["covariates"] = [key for key in like["covariates"] if key != SCREEN]
        if like["match_controls"] is not None:
            own["match_controls"] = [key for key in like["match_controls"] if key != SCREEN]
        return as_screen(self.over(own).read(data), data.stem)

    def read_all(self, files: list[Path], genes: str | None = None) -> CellTable:
        """The cells of one file, or of several joined: those given, by their stems, or the config file's [screens.NAME].

        genes: "union" or "intersection" of theirs; None: as the config file says, else the intersection.
        """
        from scdfm.data.joining import join_screens
        from scdfm.options import JOINED_ON, Screens, screens_of

        named, said, _ = Screens({}, None, {}) if self.config is None else screens_of(self.config)
        if genes not in (None, *JOINED_ON):
            raise ConfigError(f"--genes {genes}: expected one of {', '.join(JOINED_ON)}")
        if bool(files) == bool(named):
            count = f"{len(files)} files and {len(named)} tables [screens.NAME] of --config" if named else "none"
            raise ConfigError(f"which screens? {count} given; expected DATA files, or a config file that names them")
        if len(files) == 1:
            if genes is not None:
                raise ConfigError(f"--genes {genes} is about several screens; give more files, or leave it out")
            return self.read(files[0])
        screens = {name: (Path(one["file"]), one) for name, one in named.items()}
        screens |= {file.stem: (file, {}) for file in files}
        if len(screens) < len(files):
            raise ConfigError("two screens are files of one name; name them in tables [screens.NAME] of a config file")
        joined = join_screens(
            {name: self._one(name, file, own) for name, (file, own) in screens.items()},
            genes or said or "intersection",  # type: ignore[arg-type]
        )
        for note in joined.notes:
            warn(note)
        return joined

    def _one(self, name: str, file: Path, own: Mapping[str, Any]) -> CellTable:
        options = {key: value for key, value in own.items() if key != "file"}
        return replace(self, declared=self.declared.updated(options, f"screen '{name}'")).read(file)

    def controls(self, file: Path | None, run: Run, context: Mapping[str, str] | None = None) -> CellTable | None:
        """The control cells of a file, of a context where one is given, read as those of the run but for the options
        given; None without a file."""
        from scdfm.options import DataConfig
        from scdfm.run.controls import read_controls

        if file is None:
            if self.declared != DataConfig() or self.backed is not None:
                raise ConfigError(
                    "options that say how a file is read go with --controls FILE here; give it, or leave them out"
                )
            return None
        declared = self.given(**run.manifest.control_reading)
        cells = read_controls(file, run.manifest, declared.options(), self.backed, context)
        for note in cells.notes:
            warn(f"{file}: {note}")
        return cells

    def counts(self, predicted: Path, real: Path) -> tuple[Counts, Counts]:
        """The raw counts of a prediction (X) and of measured cells, which the layer is of."""
        from scdfm.evaluation import read_counts
        from scdfm.options import DataConfig

        default = DataConfig()
        for option in ("target_sum", "covariates", "dose_key", "time_key", "match_controls", "control_fallback"):
            if getattr(self.declared, option) != getattr(default, option):
                raise ConfigError(
                    f"{option} is no option of protocol vcc2026, which scores the counts of one context; leave it out "
                    "(choose cells with subset)"
                )
        if self.backed:
            raise ConfigError("--backed is no option of protocol vcc2026, whose counts are in memory; leave it out")
        given = self.declared
        key, control, subset = given.perturbation_key, given.control, given.subset or None
        return (
            read_counts(predicted, key, control, subset=subset, need_control=False),
            read_counts(real, key, control, given.layer, subset, given.min_cells),
        )

    def require_data_alone(self, command: str) -> None:
        """Refuse a config file with tables that `command` would not use."""
        from scdfm.options import TABLE, read_toml

        tables = [] if self.config is None else sorted(set(read_toml(self.config)) - {TABLE})
        if tables:
            raise ConfigError(
                f"{command}: config file {self.config} holds '{tables[0]}', expected the table [{TABLE}] alone; give other "
                "options with --set"
            )


def reads_screen(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command with a parameter `screen`, a Reader, the options of DataConfig in its place, with `defaults`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        keyword, annotations = inspect.Parameter.KEYWORD_ONLY, _annotations(defaults)
        options = [
            inspect.Parameter(name, keyword, default=None, annotation=annotation)
            for name, annotation in annotations.items()
        ]
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            own = [parameter.replace(kind=keyword)]
            parameters += options if parameter.name == "screen" else own

        @functools.wraps(command)
        def wrapped(**values: Any) -> None:
            given = {name: values.pop(name) for name in annotations}
            config, backed = given.pop("config"), given.pop("backed")
            reader = Reader(
                declared(config, given, **defaults), backed, config, functools.partial(declared, config, given)
            )
            command(screen=reader, **values)

        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapped

    return decorate


def _annotations(defaults: dict[str, Any]) -> dict[str, Any]:
    """The options by name; --help shows what stands where they are not given."""
    from scdfm.options import DataConfig

    parameters: dict[str, Any] = {"config": Annotated[Path | None, _CONFIG]}
    for name, field in DataConfig.model_fields.items():
        default = defaults.get(name, field.get_default(call_default_factory=True))
        kind = list[str] if name in REPEATED else int if field.annotation is int else str
        option = typer.Option(
            FLAGS.get(name, f"--{name.replace('_', '-')}"), help=field.description,
            show_default=str(default) if default else False,
        )  # fmt: skip
        parameters[name] = Annotated[kind | None, option]
    return parameters | {"backed": Annotated[bool | None, _BACKED]}


def _columns(text: str) -> tuple[str, ...]:
    """The columns of A,B; none of `none`."""
    if text == NONE:
        return ()
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _total(text: str) -> float | Literal["median"]:
    if text == "median":
        return "median"
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--target-sum {text}: expected a number such as 10000, or median") from None


def _labels(texts: list[str]) -> str | tuple[str, ...]:
    """One label as it is, several as a tuple."""
    return texts[0] if len(texts) == 1 else tuple(texts)


def _pairs(texts: list[str]) -> dict[str, str]:
    return pairs_of(texts, "--subset", "dataset=norman19")


_BECOME: Final[dict[str, Callable[[Any], Any]]] = {
    "control": _labels, "exclude": tuple, "guides": tuple, "covariates": _columns, "match_controls": _columns,
    "target_sum": _total, "subset": _pairs,
}  # fmt: skip
"""What becomes of the text of an option, where it is more than text or a number."""
