"""The report as a browser shows it: every figure has a size, nothing complains, a phone need not scroll sideways."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scdfm.report import Evaluation

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=5000",
    "--dump-dom",
]

# Runs in a copy of the page: looks at the figures, then uses the table of conditions as a reader would.
PROBE = """
window.addEventListener("load", () => {
  const box = (element) => { const r = element.getBoundingClientRect(); return [r.width, r.height]; };
  const table = document.querySelector("table[data-sortable]");
  table.closest("details").open = true;
  const names = () => [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
  const numbers = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[2].dataset.value));
  const found = {
    figures: Object.fromEntries([...document.querySelectorAll("figure")].map((f) => [f.id, box(f.querySelector("svg"))])),
    images: [...document.images].map((image) => image.naturalWidth),
    width: [document.documentElement.scrollWidth, window.innerWidth],
    rows: names().length,
  };
  const button = table.querySelectorAll("th button")[2];
  button.click();
  found.ascending = numbers();
  button.click();
  found.descending = numbers();
  found.sorted = table.querySelectorAll("th")[2].getAttribute("aria-sort");
  const input = document.querySelector(".filter input");
  input.value = names()[0];
  input.dispatchEvent(new Event("input"));
  found.filtered = names();
  parent.postMessage(JSON.stringify(found), "*");
});
"""


# A window cannot be as narrow as a phone, a frame can.
FRAME = """<!doctype html><title>frame</title><body>
<script>window.addEventListener("message", (event) => { document.body.dataset.found = event.data; });</script>
<iframe src="probed.html" style="width:{width}px;height:2000px;border:0"></iframe>
"""


@pytest.fixture(scope="module")
def browser() -> str:
    """The browser of this machine; without one the test is skipped (CI: fails)."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"the report would not be opened: none of {', '.join(BROWSERS)} is installed")
        pytest.skip(f"needs a browser: one of {', '.join(BROWSERS)}")
    return path


def opened(browser: str, page: Path, profile: Path) -> tuple[str, list[str]]:
    """The page's elements after its scripts have run, and what it said on the console."""
    command = [browser, *FLAGS, f"--user-data-dir={profile}", "--window-size=1300,2000", page.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line]


def probed(page: Path, folder: Path, width: int) -> Path:
    """A frame of `width` pixels around a copy of `page` with PROBE, which its policy allows beside its own script."""
    text = page.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{digest}' ").replace(
        "</body>", f"<script>{PROBE}</script></body>"
    )
    (folder / "probed.html").write_text(text, encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME.replace("{width}", str(width)), encoding="utf-8")
    return frame


@pytest.mark.parametrize("width", [1200, 390])
def test_report_in_a_browser(browser: str, evaluation: Evaluation, tmp_path: Path, width: int) -> None:
    elements, complaints = opened(browser, probed(evaluation.path, tmp_path, width), tmp_path / "profile")
    assert complaints == []
    match = re.search(r'data-found="([^"]*)"', elements)
    assert match is not None
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    files = {path.stem for path in (evaluation.path.parent / "figures").glob("*.svg")}
    assert set(found["figures"]) == files
    assert all(w > 200 and h > 80 for w, h in found["figures"].values())
    assert all(natural > 0 for natural in found["images"])
    assert found["width"][0] <= found["width"][1] == width
    assert found["rows"] == evaluation.table["condition"].nunique()
    assert found["ascending"] == sorted(found["ascending"]) == found["descending"][::-1]
    assert found["sorted"] == "descending"
    assert len(found["filtered"]) == 1


def test_untouched_report_is_silent(browser: str, evaluation: Evaluation, tmp_path: Path) -> None:
    elements, complaints = opened(browser, evaluation.path, tmp_path / "profile")
    assert complaints == []
    assert "<h1>" in elements


def test_a_broken_page_is_heard(browser: str, tmp_path: Path) -> None:
    page = tmp_path / "broken.html"
    page.write_text("<!doctype html><h1>x</h1><script>missing.call()</script>", encoding="utf-8")
    _, complaints = opened(browser, page, tmp_path / "profile")
    assert any("missing is not defined" in line for line in complaints)
