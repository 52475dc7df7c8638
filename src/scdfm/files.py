"""Files are written whole or not at all: to a neighbour first, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scdfm.errors import ConditionError, DataError, DiskFullError, ScdfmError, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ROOM = tuple(map(os.strerror, _FULL))
BROKEN = (*_FULL, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENODEV)
"""What the system says of a place where nothing can be read or written, whoever asks."""
PART = ".part"
"""In the name of a file that is not finished."""


@contextlib.contextmanager
def written_whole(path: str | Path, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the final name, on failure it goes.

    The temporary name keeps the ending of `path`, since writers choose their format by it. What a killed process
    left of the same file goes first. DiskFullError where there is no room; `size` is the bytes needed, if known.
    StorageError where the disk fails otherwise, DataError where a file of this name cannot stand.
    """
    path = Path(path)
    require_place(path)
    _remove_abandoned(path)
    temporary = _neighbour(path)
    with becoming(path, temporary, size):
        yield temporary


@contextlib.contextmanager
def becoming(path: Path, temporary: Path, size: int | None = None) -> Iterator[None]:
    """Write `temporary`, a file or a store, that then takes the name `path`; on failure it goes, as in `written_whole`."""
    with _nothing_ignored():
        try:
            with _nothing_ignored():
                yield
            for part in (temporary, *temporary.rglob("*")) if temporary.is_dir() else (temporary,):
                flush(part)
            if path.is_dir():
                remove(path)
            temporary.replace(path)
            flush(path.parent)
        except BaseException as error:
            written = temporary.stat().st_size if temporary.exists() else 0
            remove(temporary)
            words = system_words(error) if isinstance(error, Exception) else None
            if words is None or isinstance(error, ScdfmError):
                raise
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of coroutines that nobody waits for any more
                traceback.clear_frames(error.__traceback__)  # what they hold would complain of the disk later
            if words in NO_ROOM:
                raise DiskFullError(_full(path, written, size)) from error
            raise StorageError(f"{path} cannot be written ({words}); {REMEDY}") from error


REMEDY = "mend that, or choose another place, and repeat the command (with --resume where it has one)"


@contextlib.contextmanager
def _nothing_ignored() -> Iterator[None]:
    """Raise what h5py can but print: HDF5 writes what is left of an object when it is freed, and may fail in that."""
    ignored: list[BaseException] = []

    def noted(event: sys.UnraisableHookArgs) -> None:
        if "h5py" in repr(event.object) and event.exc_value is not None:
            ignored.append(event.exc_value)
        else:
            unraisable(event)

    unraisable, printed = sys.unraisablehook, sys.excepthook
    # Nothing else is printed as not caught while the block lasts: it would have left the block.
    sys.unraisablehook, sys.excepthook = noted, lambda *event: None
    try:
        yield
    finally:
        sys.unraisablehook, sys.excepthook = unraisable, printed
    if ignored:
        raise ignored[0]


def system_words(error: BaseException | None) -> str | None:
    """The system's word on a place that fails, in `error` or what led to it; None for any other error."""
    while error is not None:
        code, text = getattr(error, "errno", None), str(error).casefold()
        for number in BROKEN:
            if code == number or os.strerror(number).casefold() in text:
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def made(folder: Path) -> Path:
    """`folder`, made with its parents if need be; DataError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"output folder {folder} cannot be made ({error.strerror or error}); expected a writable place: choose another"
        ) from error
    return folder


def require_place(path: Path) -> None:
    """Refuse a name under which no file can be written: a folder, a place without the right to write, a name too long."""
    probe = _neighbour(path)
    try:
        if path.is_dir():
            raise DataError(f"output {path} is a folder; expected the name of a file: choose another")
        probe.touch()
        probe.unlink()
    except DataError:
        raise
    except (OSError, ValueError) as error:
        if system_words(error) in NO_ROOM:
            return  # said with the bytes needed when it is written
        words = getattr(error, "strerror", None) or error
        raise DataError(f"output {path} cannot be written ({words}); choose another place or name") from error


def _neighbour(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{_host()}-{os.getpid()}{PART}{path.suffix}")


def _full(path: Path, written: int, size: int | None) -> str:
    needed = f"{size:,} bytes are needed" if size else f"more than the {written:,} bytes written are needed"
    free = shutil.disk_usage(path.parent).free
    before = "; the file of that name is still the one before" if path.exists() else ""
    return (
        f"{path} cannot be written, the disk is full or a limit of file size is reached: {needed}, {free:,} are "
        f"free{before}; free some space and repeat the command (with --resume where it has one)"
    )


def _host() -> str:
    return re.sub(r"\W", "_", platform.node())[:32]


def _remove_abandoned(path: Path) -> None:
    """Remove the parts of `path` that processes of this host left which run no more."""
    form = re.compile(rf"\.{re.escape(path.stem)}\.{_host()}-(\d+)\.part{re.escape(path.suffix)}")
    for part in path.parent.glob(f".*{PART}*"):
        match = form.fullmatch(part.name)
        if match and not _runs(int(match[1])):
            part.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    if os.name == "nt":  # where os.kill ends a process whatever the signal
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def flush(path: Path) -> None:
    """Have the disk hold what was written to a file, or to a folder where the system opens folders (Windows does not)."""
    try:
        handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, without the mark that some editors put before it."""
    return Path(path).read_text(encoding="utf-8-sig")


def read_names(path: Path, what: str) -> list[str]:
    """The names in a text file, one a line; blank lines are left out."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConditionError(f"{what} {path} cannot be read ({error}); expected a text of one name a line") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ConditionError(f"{what} {path} holds no name; expected one a line")
    return names


def write_text(path: str | Path, text: str) -> None:
    """Write `text` (UTF-8) whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: str | Path, table: Any, *, index: bool = False, index_label: str | None = None) -> None:
    """Write a DataFrame as CSV with every digit, whole or not at all."""
    with written_whole(path) as temporary:
        table.to_csv(temporary, index=index, index_label=index_label)


def write_h5ad(path: str | Path, adata: Any, compression: str | None = "gzip") -> None:
    """Write an AnnData whole or not at all."""
    with written_whole(path) as temporary:
        adata.write_h5ad(temporary, compression=compression)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, refusing NaN and infinity (they are not JSON)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def require_replaceable(path: Path, marker: str) -> None:
    """Raise DataError unless `path` may be overwritten: there is nothing, or a folder that holds the file `marker`."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if path.is_symlink() or not (path / marker).is_file():
        raise DataError(
            f"output folder {path}: --overwrite replaces a folder of the same kind alone, with {marker} in it; remove it "
            "by hand, or choose another --out"
        )


def new_folder(path: str | Path) -> Path:
    """Create `path`; refuse a folder that holds something, so that no earlier result is overwritten.

    Parts of files that a killed process left are nothing.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_dir():
            raise DataError(f"output {path}: expected a folder to create, found a file; choose another --out")
        if path.is_dir() and any(not _is_part(entry) for entry in path.iterdir()):
            raise DataError(f"output folder {path} exists and is not empty; choose another --out, or remove it first")
        path.mkdir(parents=True, exist_ok=True)
    except DataError:
        raise
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or error
        raise DataError(f"output folder {path} cannot be created ({words}); choose another --out") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise DataError(f"output folder {path} cannot be written (permission denied); choose another --out")
    return path


def _is_part(path: Path) -> bool:
    return path.name.startswith(".") and PART in path.name


def file_digest(path: Path) -> str:
    """sha256 of a file; StorageError where it cannot be read to its end."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror or error}); {REMEDY}") from error
