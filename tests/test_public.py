"""What a user can name: the package's own names, and every command's help."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
import typer
from click.testing import CliRunner

import scdfm
from scdfm.cli import app

NAMES = {
    "CellTable", "Config", "DataConfig", "Identification", "Run", "ScdfmError", "Screen", "Split", "additive_split",
    "benchmark", "column_split", "combinations_split", "covariate_split", "differences", "evaluate",
    "evaluate_against", "file_split", "fit", "hits", "holdout_split", "identify", "interactions", "join_screens",
    "make_split", "read_cells", "read_counts", "scaled", "screen", "simulate", "summarise",
}  # fmt: skip


def commands(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command by the words that call it."""
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


def test_the_public_names_are_these() -> None:
    """A name is added or taken away on purpose."""
    assert set(scdfm.__all__) == NAMES
    assert all(getattr(scdfm, name) is not None for name in scdfm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = scdfm.train


def test_verbs_that_stand_above_a_run_are_none_of_its_own() -> None:
    assert not hasattr(scdfm.Run, "screen")
    assert not hasattr(scdfm.Run, "identify")


@pytest.mark.parametrize("words", list(commands(typer.main.get_command(app))), ids=" ".join)
def test_every_command_says_what_it_is(words: tuple[str, ...]) -> None:
    found = CliRunner().invoke(typer.main.get_command(app), [*words, "--help"])
    assert found.exit_code == 0
    assert "Usage:" in found.output
    assert found.output.count("\n") > 4
