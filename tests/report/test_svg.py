"""A figure inside a page: its identifiers are its own, and its words are heard."""

from __future__ import annotations

import re

import numpy as np

from scdfm import plots
from scdfm.report.figures import inlined


def figure() -> bytes:
    points = {name: np.random.default_rng(0).normal(size=(30, 2)) for name in ("control", "real")}
    return plots.render(plots.cell_map(points, title="A & <B>"), "svg")


def test_references_still_point_at_their_own_figure() -> None:
    text = inlined(figure(), "cells_best", "what it shows")
    defined = set(re.findall(r'\bid="([^"]+)"', text))
    used = set(re.findall(r'url\(#([^)"]+)\)', text)) | set(re.findall(r'href="#([^"]+)"', text))
    assert used
    assert used <= defined
    assert all(name.startswith("cells_best-") for name in defined)


def test_root_scales_and_speaks() -> None:
    root = inlined(figure(), "cells_best", 'shift of "A" & <B>').split(">", 1)[0]
    assert 'role="img"' in root
    assert 'aria-label="shift of &quot;A&quot; &amp; &lt;B&gt;"' in root
    assert " width=" not in root
    assert "viewBox=" in root


def test_nothing_points_outside() -> None:
    text = inlined(figure(), "x", "y")
    assert "<metadata" not in text
    outside = [link for link in re.findall(r'href="([^"]+)"', text) if not link.startswith(("#", "data:"))]
    assert outside == []
