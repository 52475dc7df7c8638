"""The manifest of a run folder: all that prediction needs to know beside the weights, as checked JSON."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from scdfm.config import Config
from scdfm.data.encoding import ConditionSchema
from scdfm.errors import RunError
from scdfm.files import write_json

FORMAT = 2
NAME = "manifest.json"
PACKAGES = ("scdfm", "torch", "lightning", "numpy", "scipy", "anndata", "scanpy", "torchdiffeq")


class FeatureSource(BaseModel):
    """The features that training read; their values are in the run folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    names: list[str]
    digest: str
    """sha256 of names and values."""


class Manifest(BaseModel):
    """What a run folder says of itself; unknown or missing keys are refused when it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    seed: int
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
    design: dict[str, Any] = {}
    """Columns of obs that hold covariates, dose and time, and those that match controls (from format 2 on)."""
    conditions: ConditionSchema = ConditionSchema()
    """Known values of covariates, and the units of dose and time."""
    control_populations: list[str] = []
    """Control populations trained as conditions."""
    features: FeatureSource | None = None
    data: dict[str, Any]
    """Where the cells came from: path, digest, shape."""
    versions: dict[str, str]
    result: dict[str, float | int | None] = {}
    """Step and validation scores of the weights kept; empty while the fit is under way."""
    digests: dict[str, str] = {}
    """sha256 of each file that belongs to the run."""

    def save(self, folder: Path) -> None:
        """Write the manifest into `folder`, whole or not at all."""
        write_json(folder / NAME, self.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read and check the manifest of `folder`."""
        path = folder / NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(
                f"{folder} is not a run folder: {NAME} is missing; give the --out folder of a fit"
            ) from None
        except (OSError, ValueError) as error:
            raise RunError(
                f"{path} cannot be read as JSON ({error}); fit again or restore the file"
            ) from error
        found = values.get("format") if isinstance(values, dict) else None
        if isinstance(found, int) and found > FORMAT:
            raise RunError(
                f"run {folder}: made by a newer scdfm (format {found}, this one reads up to {FORMAT}); upgrade scdfm"
            )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise RunError(
                f"run {folder}: {NAME} is damaged at {where} ({first['msg']}); restore it or fit again"
            ) from error


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a fit's numbers."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}
