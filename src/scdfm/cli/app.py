"""The application that every group of commands registers with, its entry point, and what a user sees of errors."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from typing import Annotated, NoReturn

import typer

from scdfm.errors import RESUMABLE, ScdfmError
from scdfm.files import REMEDY, system_words

app = typer.Typer(
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Predict how populations of cells answer perturbations nobody has measured.",
)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print version and commit, and stop.")] = False,
) -> None:
    """Options of scdfm itself."""
    if version:
        from scdfm.version import version as told

        typer.echo(told())
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def main() -> None:
    """Entry point: a ScdfmError is one line and its exit code (2); anything else keeps its traceback in a file."""
    # Threads that wait for each other by spinning lose a factor of three as soon as the machine does anything else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch's advice to programmers is no news to users
    try:
        with _sigterm_heard():
            code = app(standalone_mode=False)
    except ScdfmError as error:
        code = _complain(f"error: {error}", error.exit_code)
    except _Terminated:
        text = "error: stopped by SIGTERM; repeat the command, with --resume where it has one"
        code = _complain(text, RESUMABLE)
    except (KeyboardInterrupt, typer.Abort):
        code = _complain("interrupted", 130)
    except Exception as error:  # the last line of defence: no traceback reaches the user, none is lost
        code = _misused(error) if hasattr(error, "format_message") else _failed(error)
    if code:
        sys.exit(code)


def _misused(error: Exception) -> int:
    """An option or command that does not exist, or a value of another type; its class moves between typer's releases."""
    text = error.format_message().rstrip(".")  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    where = "scdfm" if context is None else context.command_path
    return _complain(f"error: {text}; see {where} --help", getattr(error, "exit_code", 2))


def _failed(error: Exception) -> int:
    """What no module has told in its own words: a disk that fails is no fault of the program."""
    if (words := system_words(error)) is None:
        return _unexpected(error)
    name = getattr(error, "filename", None)
    return _complain(f"error: {name or 'a file'} cannot be read or written ({words}); {REMEDY}", 2)


def _unexpected(error: Exception) -> int:
    try:
        with tempfile.NamedTemporaryFile("w", prefix="scdfm-", suffix=".log", delete=False) as log:
            traceback.print_exception(error, file=log)
        kept = f"please report it with {log.name}"
    except OSError as trouble:
        kept = f"please report it (its log could not be kept: {trouble})"
    return _complain(f"unexpected error ({type(error).__name__}: {error}); {kept}", 1)


@contextlib.contextmanager
def _sigterm_heard() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Terminated(SystemExit):
    """SIGTERM where no work can be saved: files in writing go, what is finished stays."""


def _terminated(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Terminated(RESUMABLE)


def _complain(text: str, code: int) -> int:
    typer.echo(" ".join(text.split()), err=True)
    return code
