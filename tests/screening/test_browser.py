"""screen.html as a browser shows it, with 5,050 conditions: search, sorting, pages, both pictures, and no complaint."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import scdfm
from scdfm.evaluation.pseudobulk import Floats
from scdfm.screening.effect import Effect
from scdfm.screening.ensemble import Calibration, Ensemble
from scdfm.screening.job import untreated
from scdfm.screening.page import write_page
from scdfm.screening.ranking import Ranking, Tabulator
from scdfm.screening.store import Store

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000", "--dump-dom",
]  # fmt: skip
EVIL = "<img src=x onerror=alert(1)>"
PROBE = """
window.addEventListener("load", () => {
  const id = (name) => document.getElementById(name);
  const rows = () => [...id("rows").tBodies[0].rows].map((row) => row.cells[0].textContent);
  const column = (place) => [...id("rows").tBodies[0].rows].map((row) => row.cells[place].textContent);
  const said = () => id("found").textContent;
  const pixels = (canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer;
  const ink = (canvas) => new Set(new Uint32Array(pixels(canvas))).size;
  const type = (text) => { id("search").value = text; id("search").dispatchEvent(new Event("input")); };
  const found = { start: said(), rows: rows().length, images: document.images.length };
  const began = performance.now();
  type("T007+T0");
  found.took = performance.now() - began;
  found.searched = said();
  found.names = rows();
  type("neomorphism");
  found.kind = said();
  type("<img");
  found.evil = rows()[0];
  id("rows").querySelector("tbody tr").click();
  found.evilHead = id("condition-h").textContent;
  type("");
  id("later").click();
  found.second = said();
  const head = [...id("rows").querySelectorAll("thead th")].findIndex((cell) => cell.textContent === "uncertainty");
  id("rows").querySelectorAll("thead button")[head].click();
  found.ascending = column(head).map(Number);
  id("rows").querySelectorAll("thead button")[head].click();
  found.descending = column(head).map(Number);
  for (const [name, row] of [["map-canvas", 41], ["effects-canvas", 0]]) {
    const canvas = id(name), box = canvas.getBoundingClientRect();
    const [x, y] = canvas.placeOf(row);
    canvas.dispatchEvent(new MouseEvent("mousemove", { clientX: box.left + x, clientY: box.top + y }));
    canvas.dispatchEvent(new MouseEvent("click", { clientX: box.left + x, clientY: box.top + y }));
    const hover = id(name.replace("canvas", "hover")).textContent;
    found[name] = { picked: id("condition-h").textContent, hover, colours: ink(canvas) };
  }
  id("map-column").value = "magnitude";
  id("map-column").dispatchEvent(new Event("change"));
  found.cells = ink(id("cells-canvas"));
  found.genes = id("condition-genes").querySelectorAll("i").length;
  found.width = [document.documentElement.scrollWidth, window.innerWidth];
  document.body.dataset.found = JSON.stringify(found);
});
"""


@pytest.fixture(scope="module")
def browser() -> str:
    """The browser of this machine; without one the test is skipped (CI: fails)."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"the page would not be opened: none of {', '.join(BROWSERS)} is installed")
        pytest.skip(f"needs a browser: one of {', '.join(BROWSERS)}")
    return path


def effects(means: Floats, rng: np.random.Generator) -> list[Effect]:
    """Made-up populations around `means`."""
    return [
        Effect(mean, float(np.square(mean).sum()), int((np.abs(mean) > 1).sum()), float(np.linalg.norm(mean)),
               float(rng.uniform(1, 2)), rng.normal(mean[:2], 1, (24, 2)))
        for mean in means
    ]  # fmt: skip


@pytest.fixture(scope="module")
def large(run, tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    """The page and table of 100 targets and their 4,950 pairs, one of them with a name that would run if it could."""
    rng = np.random.default_rng(0)
    targets = [*(f"T{at:03d}" for at in range(99)), EVIL]
    names = tuple(sorted([*targets, *("+".join(sorted(pair)) for pair in itertools.combinations(targets, 2))],
                         key=lambda name: (name.count("+"), name)))  # fmt: skip
    ensemble = Ensemble((run,), tuple(run.genes[:12]))
    store = Store(tmp_path_factory.mktemp("large"), names, 1024, genes=ensemble.genes)
    controls = untreated(ensemble, run.controls, 0)
    alone = dict(zip(targets, rng.standard_normal((100, 12)), strict=True))
    means = np.array([sum(alone[part] for part in name.split("+")) for name in names])
    means += rng.standard_normal(means.shape) * rng.choice([0, 0.1, 2], (len(means), 1)) + controls.whole.mean
    for shard in range(len(store)):
        here = slice(shard * store.size, (shard + 1) * store.size)
        store.write(shard, effects(means[here], rng), None)
    calibration = Calibration(1, 2, 8, "validation", 0.5)
    tabulator = Tabulator(store, ensemble, controls, frozenset(names), calibration)
    table = tabulator.table(Ranking.of("effect", ensemble))
    table["proposed"] = (table["rank"] <= 3) * table["rank"]
    write_page(store, table, ensemble, controls, calibration)
    return store.folder / "screen.html", table


def opened(browser: str, page: Path, profile: Path, width: int = 1300) -> tuple[str, list[str]]:
    """The page's elements after its scripts have run, and what it said on the console."""
    command = [browser, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},2000", page.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line]


def test_five_thousand_conditions_in_a_browser(browser: str, large, tmp_path: Path) -> None:
    page, table = large
    text = page.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    probed = tmp_path / "probed.html"
    text = text.replace("script-src ", f"script-src 'sha256-{digest}' ")
    probed.write_text(text.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    elements, complaints = opened(browser, probed, tmp_path / "profile")
    assert complaints == []
    match = re.search(r'data-found="([^"]*)"', elements)
    assert match is not None
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    assert found["start"] == "5050 of 5050 conditions, page 1 of 101"
    assert found["rows"] == 50
    assert found["searched"] == "91 of 5050 conditions, page 1 of 2"
    assert all(name.startswith("T007+T0") for name in found["names"])
    assert found["kind"].startswith(f"{(table['kind'] == 'neomorphism').sum()} of 5050")
    assert (found["images"], EVIL in found["evil"], EVIL in found["evilHead"]) == (0, True, True)
    assert found["second"] == "5050 of 5050 conditions, page 2 of 101"
    assert found["ascending"] == sorted(found["ascending"])
    assert found["descending"] == sorted(found["descending"], reverse=True)
    assert table["order"][41] == 2
    picked = table["condition"][41]
    assert found["map-canvas"]["picked"] == picked
    assert found["effects-canvas"]["picked"] == table["condition"][0]
    assert found["map-canvas"]["hover"] == f"{picked}, {table['kind'][41]}"
    assert found["map-canvas"]["colours"] > 20
    assert found["effects-canvas"]["colours"] > 3
    assert found["cells"] > 2
    assert found["genes"] == 10
    assert found["width"][0] <= found["width"][1]


def test_an_untouched_page_of_singles_is_silent(browser: str, run, tmp_path: Path) -> None:
    screen = scdfm.screen(run, out=tmp_path / "s", order=1, cells=3)
    elements, complaints = opened(browser, screen.path / "screen.html", tmp_path / "profile", 500)
    assert complaints == []
    assert "5 conditions predicted." in elements
    assert "map-canvas" not in elements.split("<script>")[0]


def test_names_cannot_leave_the_data(large) -> None:
    text = large[0].read_text(encoding="utf-8")
    assert "<img" not in text
    assert "://" not in text.split("<script")[0]
