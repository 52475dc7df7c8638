"""What every group of options is: frozen, checked, and strict about keys, wherever its values come from."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

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
        values[key] = (
            merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
        )
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
    found = "" if isinstance(item["input"], dict) else f" (found {item['input']!r})"
    return f"{key or 'config'}: {item['msg'].removeprefix('Value error, ')}{found}"


def _known_keys(kind: type[Section], location: tuple[Any, ...]) -> list[str]:
    section: Any = kind
    for part in location:
        section = section.model_fields[part].annotation
    return list(section.model_fields)
