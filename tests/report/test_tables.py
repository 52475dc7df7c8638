"""The summary as text: the right model is marked, nothing undefined is hidden, columns are aligned."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from scdfm.report.tables import decimals, markdown, plain, score_table


def summary(rows: list[tuple[str, str, float, int, int]]) -> pd.DataFrame:
    """Rows of (model, metric, mean, n, n_undefined), with an interval of ±10 %."""
    frame = pd.DataFrame(rows, columns=["model", "metric", "mean", "n", "n_undefined"])
    width = 0.1 * frame["mean"].abs()
    return frame.assign(median=frame["mean"], low=frame["mean"] - width, high=frame["mean"] + width)


NORMAN_LIKE = summary([
    ("scdfm", "l2", 3.1234, 39, 0), ("additive", "l2", 4.264, 39, 0), ("ridge", "l2", 3.386, 39, 0),
    ("ceiling", "l2", 1.28, 39, 0), ("scdfm", "pearson_delta", 0.9, 39, 0), ("additive", "pearson_delta", 0.903, 37, 2),
    ("ridge", "pearson_delta", 0.919, 39, 0), ("ceiling", "pearson_delta", 0.98, 39, 0),
])  # fmt: skip


def best(frame: pd.DataFrame, metric: str) -> set[str]:
    table = score_table(frame)
    return {model for model in table.models if table.cells[model, metric].best}


def test_best_follows_the_direction_of_the_metric() -> None:
    assert best(NORMAN_LIKE, "l2") == {"scdfm"}
    assert best(NORMAN_LIKE, "pearson_delta") == {"ridge"}


def test_ceiling_is_never_best_and_equal_texts_are_equally_best() -> None:
    frame = summary(
        [
            ("a", "ds", 0.90001, 5, 0),
            ("b", "ds", 0.90002, 5, 0),
            ("ceiling", "ds", 1.0, 5, 0),
            ("duplicate", "ds", 1.0, 5, 0),
        ]
    )
    assert best(frame, "ds") == {"a", "b"}


def test_a_mean_over_fewer_conditions_is_not_best() -> None:
    frame = summary([("additive", "l2", 1.0, 3, 36), ("ridge", "l2", 2.0, 39, 0), ("no change", "l2", math.nan, 0, 39)])
    assert best(frame, "l2") == {"ridge"}


def test_alone_is_not_best() -> None:
    frame = summary([("scdfm", "l2", 1.0, 5, 0), ("ridge", "l2", math.nan, 0, 5), ("ceiling", "l2", 0.5, 5, 0)])
    assert best(frame, "l2") == set()


def test_a_count_without_better_and_worse_has_no_best_and_no_arrow() -> None:
    frame = summary([("a", "de_nsig_counts_real", 10.0, 5, 0), ("b", "de_nsig_counts_real", 20.0, 5, 0)])
    assert best(frame, "de_nsig_counts_real") == set()
    assert score_table(frame).heads == {"de_nsig_counts_real": "de_nsig_counts_real"}


@pytest.mark.parametrize(
    ("values", "places"),
    [([8.811, 1.280], 3), ([0.0957, 0.0017, 0.0228], 5), ([123.4], 1), ([0.0, math.nan], 3), ([1e6], 0)],
)
def test_decimals_give_four_digits(values: list[float], places: int) -> None:
    assert decimals(pd.Series(values)) == places


def test_markdown() -> None:
    assert markdown(NORMAN_LIKE) == (
        "| model | L2 ↓ | Pearson Δ ↑ |\n"
        "|---|---:|---:|\n"
        "| scdfm | **3.123** | 0.9000 |\n"
        "| additive | 4.264 | 0.9030 [2 undefined] |\n"
        "| ridge | 3.386 | **0.9190** |\n"
        "| ceiling | 1.280 | 0.9800 |\n"
    )
    assert "**3.123** (2.811 to 3.436)" in markdown(NORMAN_LIKE, ["l2"], intervals=True)


def test_markdown_keeps_a_bar_in_a_name_out_of_the_columns() -> None:
    frame = summary([("a|b", "l2", 1.0, 5, 0)])
    assert "| a\\|b | 1.000 |" in markdown(frame)


def test_plain_is_aligned() -> None:
    assert plain(NORMAN_LIKE).splitlines() == [
        "           L2 ↓   Pearson Δ ↑",
        "scdfm     3.123*       0.9000",
        "additive  4.264        0.9030  [2 undefined]",
        "ridge     3.386        0.9190*",
        "ceiling   1.280        0.9800",
        "",
        "* best of those that see no test cells",
    ]


def test_plain_folds_into_the_width_of_the_terminal() -> None:
    assert plain(NORMAN_LIKE, width=40).splitlines()[5:9] == [
        "",
        "          Pearson Δ ↑",
        "scdfm          0.9000",
        "additive       0.9030  [2 undefined]",
    ]


def test_undefined_is_a_dash() -> None:
    frame = summary([("no change", "pearson_delta", math.nan, 0, 39), ("ridge", "pearson_delta", -0.5, 39, 0)])
    lines = plain(frame).splitlines()
    assert lines[1].split() == ["no", "change", "–"]
    assert lines[2].split() == ["ridge", "−0.5000"]
    assert lines[-1] == "– defined on no condition"
    assert "| no change | – |" in markdown(frame)
