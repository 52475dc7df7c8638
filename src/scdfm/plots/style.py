"""How every figure looks: one palette that colour-blind readers tell apart, one font, no window system.

Figures are made with matplotlib's object interface, so that drawing in a thread, a notebook or a test
leaves no state behind.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, ParamSpec, TypeVar, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, RULE = "#1f2933", "#66717d", "#d5dae0"
CONTROL, REAL, PREDICTED = "#a9b1ba", "#d55e00", "#0072b2"
WIDTH = 3.7
"""Inches of a figure that stands alone on a phone: 8.5 points of text are then 11 pixels."""

# Okabe and Ito's palette; the model under test is always blue, references always keep their colour.
REFERENCES: Mapping[str, str] = {
    "no change": "#8a939c",
    "training mean": "#e69f00",
    "additive": "#009e73",
    "ridge": "#cc79a7",
    "low-rank linear": "#56b4e9",
    "covariance": "#999933",
    "prior": "#882255",
    "duplicate": "#8c6d31",
    "ceiling": "#1f2933",
    "mean response": "#8c6d31",
    "replicate": "#1f2933",
}
PRIORS = "prior ("
"""How names of priors begin where several models have one: "prior (default)"."""
MODELS = (PREDICTED, "#d55e00", "#6a3d9a", "#b8a100", "#7f2704", "#17807e")

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # a condition may be called a$b
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8,
    "xtick.major.width": 0.7,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8,
    "ytick.major.width": 0.7,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",  # text stays text: it can be searched, selected and edited
    "svg.hashsalt": "scdfm",  # the same figure gives the same bytes
}


@contextmanager
def house_style() -> Iterator[None]:
    """scdfm's look for the figures drawn or saved inside, whatever the user's matplotlibrc says."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        cast(dict[str, Any], mpl.rcParams).update(RC)
        # Labels are the user's own; a script that the font lacks shows as boxes and is no reason to shout.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from (current )?font")
        yield


def styled(draw: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Make `draw` work under `house_style`."""

    @functools.wraps(draw)
    def drawn(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with house_style():
            return draw(*args, **kwargs)

    return drawn


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` × `height` inches that arranges its own margins."""
    return Figure(figsize=(width, height), layout="constrained")


def render(figure: Figure, kind: Literal["svg", "png"], dpi: int = 160) -> bytes:
    """The bytes of `figure`; the same figure gives the same bytes (no date, no random names)."""
    stream = io.BytesIO()
    metadata = {"Date": None, "Creator": "scdfm"} if kind == "svg" else {"Software": "scdfm"}
    with house_style():
        figure.savefig(stream, format=kind, dpi=dpi, metadata=metadata)
    figure.set_layout_engine("none")  # the margins are found; the next format takes them as they are
    return stream.getvalue()


def model_colours(models: Iterable[str]) -> dict[str, str]:
    """One colour per model: references keep theirs, others take the palette in their order; priors share one."""
    named = [model for model in dict.fromkeys(models) if model not in REFERENCES]
    priors = [model for model in named if model.startswith(PRIORS)]
    others = [model for model in named if model not in priors]
    return {
        **REFERENCES,
        **dict.fromkeys(priors, REFERENCES["prior"]),
        **{model: MODELS[index % len(MODELS)] for index, model in enumerate(others)},
    }


def mark(model: str) -> str:
    """A diamond for what a run predicts before training, a dot for everything else."""
    return "D" if model == "prior" or model.startswith(PRIORS) else "o"


def shortened(label: str, limit: int = 26) -> str:
    """`label` with its middle left out where it is longer than `limit` characters."""
    if len(label) <= limit:
        return label
    head = (limit - 1) * 2 // 3
    return f"{label[:head]}…{label[len(label) - (limit - 1 - head) :]}"


def said(axes: Axes, text: str) -> None:
    """Write `text` in the middle of empty `axes`: a figure with nothing to show says why."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, transform=axes.transAxes, wrap=True)
