"""Figures show the numbers they are given, stay legible with many conditions, and leave no state behind."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from scdfm import plots
from scdfm.plots.style import REFERENCES, house_style, shortened

MODELS = ["scdfm", "no change", "additive", "ceiling"]
GENES = [f"GENE{index}" for index in range(200)]


def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def summary() -> pd.DataFrame:
    rows = [
        {
            "model": model,
            "metric": metric,
            "mean": 1.0 + at,
            "low": 0.5 + at,
            "high": 2.0 + at,
            "n": 9,
            "n_undefined": 0,
        }
        for metric in ("l2", "ds")
        for at, model in enumerate(MODELS)
    ]
    return pd.DataFrame(rows)


def shifts(n: int) -> pd.DataFrame:
    return pd.DataFrame(rng().normal(size=(n, 12)), index=[f"A{at}+B{at}" for at in range(n)], columns=GENES[:12])


def cells(n: int, mean: float, n_genes: int = 4) -> pd.DataFrame:
    return pd.DataFrame(np.maximum(rng().normal(mean, 1, (n, n_genes)), 0), columns=GENES[:n_genes])


def log() -> pd.DataFrame:
    steps = np.arange(1, 401)
    validated = np.where(steps % 100 == 0, 3.0 - steps / 400, np.nan)
    return pd.DataFrame({"step": steps, "loss": 1 / steps, "cfm": 1 / steps, "mmd": np.nan, "val_l2": validated})


def draw(name: str) -> Figure:
    scores = pd.DataFrame(rng().random((30, 2)), index=[f"C{at}" for at in range(30)], columns=["scdfm", "ridge"])
    positions = pd.DataFrame(
        {"model": ["scdfm", "ridge"] * 2, "metric": ["l2", "l2", "ds", "ds"], "position": [0.4, 0.6, -2.0, np.nan]}
    )
    real = pd.Series(rng().standard_t(3, 200), GENES)
    points = {name: rng().normal(size=(50, 2)) for name in ("control", "real", "predicted")}
    return FIGURES[name](scores, positions, real, points)


FIGURES: dict[str, Callable[..., Figure]] = {
    "dots": lambda *_: plots.metric_dots(summary(), columns=2),
    "track": lambda scores, positions, *_: plots.position_track(positions, "scdfm"),
    "ranking": lambda scores, *_: plots.ranking(scores, "scdfm", "ridge"),
    "sizes": lambda scores, *_: plots.effect_sizes(scores.set_axis(["real", "predicted"], axis=1), ["C3"]),
    "scatter": lambda scores, positions, real, _: plots.shift_scatter(real, 0.5 * real, GENES[:10], "A+B"),
    "map": lambda *frames: plots.cell_map(frames[-1], title="A+B"),
    "violins": lambda *_: plots.violins(cells(40, 1.0), cells(50, 2.0), pd.Series(1.0, GENES[:4])),
    "heat": lambda *_: plots.heat_map(shifts(10), shifts(10) / 2),
    "training": lambda *_: plots.training_curves(log()),
}


def texts(figure: Figure) -> list[str]:
    root = ElementTree.fromstring(plots.render(figure, "svg"))
    return ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_drawn_the_same_twice(name: str) -> None:
    first, second = draw(name), draw(name)
    assert plots.render(first, "svg") == plots.render(second, "svg")
    png = plots.render(first, "png", dpi=60)
    assert png.startswith(b"\x89PNG")
    assert png == plots.render(second, "png", dpi=60)


def test_no_global_state() -> None:
    before = dict(mpl.rcParams)
    plots.render(draw("dots"), "svg")
    assert dict(mpl.rcParams) == before
    program = "import sys, scdfm.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_every_model_keeps_its_own_colour() -> None:
    # Those of protocol vcc2026 stand in no table with the others.
    together = [name for name in REFERENCES if name not in ("mean response", "replicate")]
    colours = plots.model_colours(["scdfm", "peer", *together])
    assert len({colours[name] for name in ("scdfm", "peer", *together)}) == len(together) + 2
    assert plots.model_colours(["scdfm"])["ridge"] == plots.model_colours(["peer", "scdfm"])["ridge"]


def test_priors_share_a_colour_and_stand_out_by_their_mark() -> None:
    models = ["default", "prior (default)", "prior (tiny)", "tiny"]
    colours = plots.model_colours(models)
    assert colours["prior (default)"] == colours["prior (tiny)"] == REFERENCES["prior"]
    assert [colours[name] for name in ("default", "tiny")] == list(plots.model_colours(["a", "b"]).values())[-2:]
    table = pd.DataFrame(
        {"model": ["scdfm", "prior"], "metric": "l2", "mean": [1.0, 2.0], "low": 0.5, "high": 2.5, "n": 9}
    )
    dots = [line for line in plots.metric_dots(table).axes[0].lines if len(line.get_xdata()) == 1]
    assert [(dot.get_marker(), dot.get_color()) for dot in dots] == [
        ("o", plots.model_colours(["scdfm"])["scdfm"]),
        ("D", REFERENCES["prior"]),
    ]
    track = plots.position_track(
        pd.DataFrame({"model": ["scdfm", "prior"], "metric": "l2", "position": [0.5, 0.4]}), "scdfm"
    )
    corners = [len(points.get_paths()[0].vertices) for points in track.axes[0].collections if len(points.get_offsets())]
    assert corners[1] == 5  # a closed square, turned
    assert corners[0] > 5


def test_metric_dots_stand_at_the_means() -> None:
    figure = plots.metric_dots(summary(), ["ds"], {"ds": "DS ↑"})
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [(float(dot.get_xdata()[0]), float(dot.get_ydata()[0])) for dot in dots] == [(1, 3), (2, 2), (3, 1), (4, 0)]
    bars = [line for line in figure.axes[0].lines if line.get_marker() != "o"]
    assert [list(bar.get_xdata()) for bar in bars] == [[0.5, 2.0], [1.5, 3.0], [2.5, 4.0], [3.5, 5.0]]
    assert {"DS ↑", *MODELS} <= set(texts(figure))


def test_metric_dots_say_undefined() -> None:
    table = summary()
    table.loc[table["model"] == "additive", ["mean", "low", "high"]] = np.nan
    assert texts(plots.metric_dots(table, ["l2"])).count("undefined") == 1


def test_position_outside_the_picture_is_told() -> None:
    assert "−200%" in texts(draw("track"))


@pytest.mark.parametrize("higher", [True, False])
def test_ranking_shows_the_ends_of_many_conditions(higher: bool) -> None:
    scores = pd.DataFrame({"scdfm": np.linspace(0, 1, 500), "ridge": 0.5}, index=[f"C{at:03d}" for at in range(500)])
    figure = plots.ranking(scores, "scdfm", "ridge", higher_is_better=higher, most=10)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    expected = [*range(5), *range(495, 500)]
    assert names == [f"C{at:03d}" for at in (reversed(expected) if higher else expected)]
    assert figure.axes[0].get_xlabel() == "5 best and 5 worst of 500 conditions"
    assert len(set(figure.axes[0].get_yticks())) == 10


def test_ranking_leaves_out_undefined_conditions() -> None:
    scores = pd.DataFrame({"scdfm": [1.0, np.nan, 2.0]}, index=["A", "B", "C"])
    figure = plots.ranking(scores, "scdfm")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["C", "A"]
    assert "no condition has a defined value" in texts(plots.ranking(scores * np.nan, "scdfm"))


def test_scatter_names_genes_without_covering_any() -> None:
    real = pd.Series(np.linspace(1.0, 1.01, 15), GENES[:15])
    figure = plots.shift_scatter(real, real, GENES[:15])
    labels = [text for text in figure.axes[0].texts if text.get_text() in GENES]
    assert len(labels) == 15
    plots.render(figure, "png")  # arranges it
    boxes = sorted((Text.get_window_extent(text) for text in labels), key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 + 0.5 for lower, upper in itertools.pairwise(boxes))


def test_cell_map_marks_the_mean_and_bears_a_missing_population() -> None:
    figure = plots.cell_map({"control": np.array([[0.0, 0.0], [2.0, 4.0]]), "real": np.array([[1.0, 1.0]])})
    marked = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in figure.axes[0].lines}
    assert marked == {(1.0, 2.0), (1.0, 1.0)}
    assert "predicted" not in texts(figure)


def test_violins_lie_on_their_own_side_and_bear_constant_cells() -> None:
    flat = pd.DataFrame({"GENE0": np.zeros(20), "GENE1": np.ones(20)})
    figure = plots.violins(flat + rng().random((20, 2)), flat, pd.Series(0.5, ["GENE0", "GENE1"]))
    bodies = [body.get_paths()[0].vertices[:, 0] for body in figure.axes[0].collections[:4]]
    assert all(body.max() <= at for at, body in enumerate(bodies[:2]))
    assert all(body.min() >= at for at, body in enumerate(bodies[2:]))


def test_heat_map_has_one_scale_and_tells_what_it_left_out() -> None:
    figure = plots.heat_map(shifts(40), 10 * shifts(40), total=500)
    images = [axes.images[0] for axes in figure.axes[:2]]
    assert images[0].get_clim() == images[1].get_clim()
    assert any("40 of 500 conditions" in text for text in texts(figure))


def test_training_curves_leave_out_what_was_not_logged() -> None:
    titles = [axes.get_title(loc="left") for axes in plots.training_curves(log()).axes]
    assert [title for title in titles if title] == ["training loss", "flow matching term", "validation l2"]
    assert "the log holds no curve" in texts(plots.training_curves(pd.DataFrame({"step": []})))


@pytest.mark.parametrize("label", ["<script>alert(1)</script>", r"$\frac{", "細胞", "x" * 300])
def test_any_label_is_only_a_label(label: str) -> None:
    frame = shifts(3).set_axis([label, "B", "C"])
    shown = texts(plots.heat_map(frame, frame))
    assert shortened(label) in shown
    assert all(len(text) < 80 for text in shown)


def test_shortened_keeps_both_ends() -> None:
    assert shortened("short") == "short"
    name = shortened("Trametinib + Dabrafenib at 10 µM", 20)
    assert len(name) == 20
    assert name.startswith("Trametinib")
    assert name.endswith("µM")


def test_house_style_wins_over_a_users_settings() -> None:
    with mpl.rc_context({"axes.facecolor": "black"}), house_style():
        assert mpl.rcParams["axes.facecolor"] == "white"


def test_metric_dots_leave_out_models_that_were_not_scored() -> None:
    table = summary()
    table = table[(table["model"] == "scdfm") | (table["metric"] == "l2")]
    shown = texts(plots.metric_dots(table, ["ds"]))
    assert "scdfm" in shown
    assert "ceiling" not in shown
    assert "undefined" not in shown
