"""Malformed inputs, case by case: the expected one line on stderr and its exit code, or the right result."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from bad_input import commands, designs, options, runs, screens
from bad_input.bench import Bench, Case

CASES = [
    *screens.FORMS, *screens.REFUSED, *designs.COLUMNS, *designs.FEATURES, *options.CASES, *runs.CASES,
    *runs.DESIGNED, *runs.PRIORS, *commands.INSPECTED, *commands.SCREENED, *commands.PREDICTED, *commands.CASES,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, bench: Bench, call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = call(*case.command(bench))
    if case.words is None:
        assert code == 0, err
        return
    # What a file makes worth telling stands in lines of its own, which begin with its name.
    lines = [line for line in err.splitlines() if not re.match(r"\S+\.h5ad: ", line)]
    assert (code, len(lines)) == (case.code, 1), err
    assert re.search(case.words, err), err
    assert out == ""


def test_the_table_is_long_and_names_each_case_once() -> None:
    names = [case.name for case in CASES]
    assert len(names) >= 80
    assert len(set(names)) == len(names)
