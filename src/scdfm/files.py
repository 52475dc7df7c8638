"""Files are written whole or not at all: to a neighbour first, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scdfm.errors import DataError, RunError


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the final name, on failure it goes.

    The temporary name keeps the ending of `path`, since writers choose their format by it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, refusing NaN and infinity (they are not JSON)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def new_folder(path: str | Path) -> Path:
    """Create `path`; refuse a folder that holds something, so that no earlier result is overwritten."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise DataError(f"output {path}: expected a folder to create, found a file; choose another --out")
    if path.is_dir() and any(path.iterdir()):
        raise DataError(
            f"output folder {path} exists and is not empty; choose another --out, or remove it first"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"output folder {path} cannot be created ({error.strerror}); choose another --out"
        ) from error
    return path


def recorded_folder(path: str | Path, name: str, record: dict[str, Any], resume: bool) -> Path:
    """A new folder that keeps `record` in the JSON file `name`, or with `resume` the folder started with that record.

    A folder without the file starts anew. RunError where the record found says something else, key by key.
    """
    path = Path(path)
    if not resume or not (path / name).is_file():
        write_json(new_folder(path) / name, record)
        return path
    try:
        found = dict(json.loads((path / name).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path / name} cannot be read as JSON ({error}); choose another --out") from error
    differing = [key for key, value in record.items() if found.get(key) != value]
    if differing:
        raise RunError(
            f"--resume {path}: this folder was started with other {' and '.join(differing)}; "
            "repeat the options and data of its start, or choose another --out"
        )
    return path
