"""The manifest of a run folder: all that prediction needs to know beside the weights, as checked JSON."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from scdfm.config import Config
from scdfm.data import Scale, Split, Vocabulary, targets
from scdfm.data.design import Design
from scdfm.data.encoding import ConditionSchema
from scdfm.data.features import Part
from scdfm.data.naming import Naming
from scdfm.errors import RunError
from scdfm.files import read_text, write_json
from scdfm.options import Values
from scdfm.prior.shrink import Shrinkage

FORMAT = 1
"""Of the releases from 0.1.0 on."""
UNRELEASED = range(2, 9)
"""Numbers of formats before the first release, which no release takes; the last of them is FORMAT under another number."""
NAME = "manifest.json"
PACKAGES = ("scdfm", "torch", "lightning", "numpy", "scipy", "anndata", "scanpy", "torchdiffeq")


class FeatureSource(BaseModel):
    """The features that training read; their values are in the run folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    names: list[str]
    digest: str
    """sha256 of names and values."""
    parts: tuple[Part, ...] = ()
    """The descriptions whose columns stand side by side (of older runs: one)."""


class Ancestor(BaseModel):
    """A run that a fit started from."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    path: str
    weights: str
    """sha256 of its weights."""
    data: str
    """Digest of the cells that it was fitted on."""
    targets: list[str]
    """Targets seen in its training."""
    n_genes: int
    """How many of its genes the later cells have."""
    worth: float | None = None
    """Cells that its measured means are worth in the prior at most; 0: they take no part. None: there is no prior, or the
    cells are the same."""
    error: float | None = None
    """Squared error of left-out training conditions with that prior."""
    fresh_error: float | None = None
    """The same without the earlier run."""

    def as_given(self) -> Ancestor:
        """This, without what the fit found of it."""
        return self.model_copy(update=dict.fromkeys(("worth", "error", "fresh_error")))


class Headroom(BaseModel):
    """What training can gain over the prior (`scdfm.training.headroom`)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    gain: float
    """Energy distance (log1p units) that the right order of each gene's values takes off the prior's populations."""
    low: float
    high: float
    """The 95% interval of the gain over conditions."""
    energy: float
    """Energy distance of the prior's populations of independent cells."""
    conditions: int
    """Training conditions that tell it."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, strict=True)


class _Scale(_Record):
    transform: Literal["log1p"]
    target_sum: Annotated[float, Field(gt=0)] | None
    declared: Literal["log1p", "counts"]
    layer: str | None
    values: Values | None = None

    @model_validator(mode="after")
    def _total(self) -> _Scale:
        if (self.declared == "counts") != (self.target_sum is not None):
            raise ValueError("target_sum goes with declared 'counts', and only with it")
        return self


class _Data(_Record):
    path: str | None
    digest: str
    n_cells: Annotated[int, Field(ge=0)]
    n_genes: Annotated[int, Field(ge=0)]


class _Design(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    covariates: list[str]
    dose_key: str | None
    time_key: str | None
    match_controls: list[str] | None
    control_fallback: str
    dose_unit_key: str | None = None


class Manifest(BaseModel):
    """What a run folder says of itself; unknown or missing keys are refused when it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: Annotated[int, Field(strict=True, ge=1)]
    seed: Annotated[int, Field(strict=True, ge=0)]
    config: Config
    vocabulary: list[str]
    """Tokens in the order of the gene table's rows."""
    panel: list[str]
    """Names of the G modelled genes, in the order of the predictions' columns."""
    targets: list[str]
    """Targets seen in training."""
    split: dict[str, Any]
    scale: dict[str, Any]
    perturbation_key: str
    control: str
    """The first of the labels of untreated cells."""
    names: dict[str, Any] = {}
    """How the file names genes and conditions."""
    design: dict[str, Any] = {}
    """Columns of obs that hold covariates, dose and time, and those that match controls."""
    conditions: ConditionSchema = ConditionSchema()
    """Known values of covariates, and the units of dose and time."""
    control_populations: list[str] = []
    """Control populations trained as conditions."""
    features: FeatureSource | None = None
    data: dict[str, Any]
    """Where the cells came from: path, digest, shape."""
    subset: dict[str, str] = {}
    """Columns and values of obs that chose the cells of the file."""
    min_genes: Annotated[int, Field(strict=True, ge=0)] = 0
    """Fewest genes above 0 of the cells that were read."""
    n_cells: dict[str, int] = {}
    """Cells of control and of each training and validation condition."""
    unmeasured: dict[str, list[str]] = {}
    """By screen, the genes of the panel that it did not measure, where screens were joined on the genes of any."""
    groups: dict[str, dict[str, Annotated[int, Field(ge=1)]]] = {}
    """By measured condition its number of cells in each group of matched controls (`batch=1`), where controls are matched
    by more than covariates: predictions of a measured condition start from the controls of its groups."""
    lineage: list[Ancestor] = []
    """The runs that this one started from, the last one first."""
    versions: dict[str, str]
    result: dict[str, float | int | None] = {}
    """Step and validation scores of the weights kept; empty while the fit is under way."""
    headroom: Headroom | None = None
    """What training can gain, where the flow starts from the prior and two conditions have cells enough."""
    shrinkage: Shrinkage | None = None
    """How far predicted means follow the flow, where it starts from the prior and conditions validated."""
    digests: dict[str, str] = {}
    """sha256 of each file that belongs to the run."""

    @field_validator("scale")
    @classmethod
    def _scale(cls, value: dict[str, Any]) -> dict[str, Any]:
        _Scale.model_validate(value)
        Scale(**value)
        return value

    @field_validator("data")
    @classmethod
    def _data(cls, value: dict[str, Any]) -> dict[str, Any]:
        _Data.model_validate(value)
        return value

    @field_validator("split")
    @classmethod
    def _split(cls, value: dict[str, Any]) -> dict[str, Any]:
        Split.from_dict(value)
        return value

    @field_validator("design")
    @classmethod
    def _design(cls, value: dict[str, Any]) -> dict[str, Any]:
        if value:
            _Design.model_validate(value)
            Design(**value)
        return value

    @field_validator("names")
    @classmethod
    def _names(cls, value: dict[str, Any]) -> dict[str, Any]:
        if value:
            TypeAdapter(Naming).validate_python(value, strict=False)
        return value

    @field_validator("versions")
    @classmethod
    def _versions(cls, value: dict[str, str]) -> dict[str, str]:
        if "scdfm" not in value:
            raise ValueError("the version of scdfm is missing")
        return value

    @model_validator(mode="after")
    def _named(self) -> Manifest:
        vocabulary = Vocabulary(tuple(self.vocabulary))
        if not self.panel or len(set(self.panel)) < len(self.panel):
            raise ValueError("panel holds no gene, or one twice")
        if unknown := [name for name in self.panel if name not in vocabulary]:
            raise ValueError(f"'{unknown[0]}' of panel is not in the vocabulary")
        if strange := {gene for genes in self.unmeasured.values() for gene in genes} - set(self.panel):
            raise ValueError(f"'{min(strange)}' of unmeasured is not in the panel")
        if self.seed != self.config.seed:
            raise ValueError(f"seed {self.seed} is not the config's {self.config.seed}")
        for name in self.control_populations:
            if targets(name):
                raise ValueError(f"'{name}' of control_populations is no control population")
        if self.design and set(self.conditions.covariates) - set(self.design["covariates"]):
            raise ValueError("conditions holds covariates that design does not name")
        return self

    @property
    def naming(self) -> Naming:
        """How the file that the run was fitted on names genes and conditions."""
        return Naming(**self.names) if self.names else Naming((self.control,))

    @property
    def identity(self) -> str:
        """sha256 of what decides a fit's numbers: equal where one fit continues another."""
        selection = ("subset", "min_genes", "n_cells")  # the digest of the data says which cells these are
        without: dict[str, Any] = dict.fromkeys(
            ("data", "versions", "result", "headroom", "shrinkage", "digests", *selection), True
        )
        # What came after 0.1.0 counts where it says something: a fit that 0.1.0 began goes on.
        without |= {name: True for name in ("unmeasured", "groups") if not getattr(self, name)}
        options: dict[str, set[str]] = {}
        if not self.config.training.screen_weights:
            options["training"] = {"screen_weights"}
        if self.config.flow.pairing == "random":
            options["flow"] = {"pairing", "pairing_cells"}
        if options:
            without["config"] = options
        whole = self.model_copy(update={"config": self.comparable_config})
        decides = whole.model_dump_json(exclude=without)
        return hashlib.sha256(f"{decides}{self.data['digest']}".encode()).hexdigest()

    @property
    def comparable_config(self) -> Config:
        """The config as 0.1.0 wrote it: a tenth validates where nobody says how much. `split` holds the conditions."""
        unnamed = self.config.split.validation_fraction is None
        return self.config.updated({"split": {"validation_fraction": 0.1}}) if unnamed else self.config

    @property
    def numbers(self) -> dict[str, Any]:
        """The options of `read_cells` that say what numbers are and what they become, as the run's cells were read."""
        return {"target_sum": self.scale["target_sum"], "values": self.scale.get("values")}

    @property
    def reading(self) -> dict[str, Any]:
        """The options of `read_cells` that the run's cells were read with, but for `min_cells`."""
        said = {"perturbation_key": self.perturbation_key, "layer": self.scale["layer"], **self.numbers}
        said |= {"subset": self.subset, "min_genes": self.min_genes}
        return said | self.naming.to_dict() | (self.design or Design().to_dict())

    @property
    def control_reading(self) -> dict[str, Any]:
        """The options of `read_cells` for a file of control cells alone: without dose, time and choice among its cells."""
        without = dict.fromkeys(("layer", "dose_key", "time_key", "dose_unit_key"))
        return self.reading | without | {"subset": {}}

    def layer_in(self, readable: Collection[str]) -> str | None:
        """The layer that the run's cells were read from, where another file has it among `readable`; None: its X."""
        layer: str | None = self.scale["layer"]
        return layer if layer in readable else None

    def save(self, folder: Path) -> None:
        """Write the manifest into `folder`, whole or not at all."""
        write_json(folder / NAME, self.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read and check the manifest of `folder`."""
        path = folder / NAME
        try:
            values = json.loads(read_text(path))
        except FileNotFoundError:
            raise RunError(f"{folder} is not a run folder: {NAME} is missing; give the --out folder of a fit") from None
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path} cannot be read as JSON ({error}); fit again or restore the file") from error
        if isinstance(values, dict):
            values["format"] = _readable(values.get("format"), folder)
            _tell_pairing(values)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise RunError(
                f"run {folder}: {NAME} is damaged at {where} ({first['msg']}); restore it or fit again"
            ) from error


def _tell_pairing(values: dict[str, Any]) -> None:
    """Say of a run of 0.1.0 that its starts and cells were paired at random, which it does not."""
    flow = values["config"].get("flow") if isinstance(values.get("config"), dict) else None
    if isinstance(flow, dict):
        flow.setdefault("pairing", "random")


def _readable(number: Any, folder: Path) -> Any:
    """The number of a format that can be read, and what is no number; RunError for any other."""
    if not isinstance(number, int) or isinstance(number, bool) or 0 < number <= FORMAT:
        return number
    if number == UNRELEASED[-1]:
        return FORMAT
    if number in UNRELEASED:
        raise RunError(
            f"run {folder}: made before the first release (format {number}, this one reads {FORMAT}); fit again, or "
            "predict with the version that its manifest names"
        )
    if number > FORMAT:
        raise RunError(
            f"run {folder}: made by a newer scdfm (format {number}, this one reads up to {FORMAT}); upgrade scdfm"
        )
    return number


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a fit's numbers."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}
