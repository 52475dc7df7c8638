"""Names from data never become elements of a page: in Chromium no script of theirs runs and no dialog opens."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scdfm.data import read_cells
from scdfm.report import evaluate_files

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000", "--dump-dom",
]  # fmt: skip
ATTACK = "<script>document.title='owned';alert(1)</script>"
IMAGE = "<img src=x onerror=\"document.title='owned'\">"
BREAKOUT = "\"'></td></svg></style><script>document.title='owned'</script>{{ 7 * 7 }}"


@pytest.fixture(scope="module")
def browser() -> str:
    """The browser of this machine; without one the test is skipped (CI: fails)."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"the report would not be opened: none of {', '.join(BROWSERS)} is installed")
        pytest.skip(f"needs a browser: one of {', '.join(BROWSERS)}")
    return path


def opened(browser: str, page: Path, profile: Path) -> str:
    """The page's elements after its scripts have run."""
    command = [browser, *FLAGS, f"--user-data-dir={profile}", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def cells(rng: np.random.Generator, labels: list[str], genes: list[str]) -> ad.AnnData:
    names = np.repeat(labels, 8)
    x = rng.gamma(1.0, 1.0, (len(names), len(genes))).astype(np.float32)
    obs = pd.DataFrame({ATTACK: names}, index=[f"{IMAGE}{at}" for at in range(len(names))])
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=genes))


def test_hostile_names_stay_text(browser: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    genes = [ATTACK, IMAGE, BREAKOUT, *(f"G{at}" for at in range(20))]
    labels = [ATTACK, IMAGE, BREAKOUT, f"{ATTACK}+{IMAGE}"]
    real = read_cells(cells(rng, ["control", *labels], genes), ATTACK)
    result = evaluate_files(
        cells(rng, ["control", *labels], genes), real, tmp_path / "score", name=ATTACK,
        metrics=("l2", "pearson_delta", "ds"), provenance={"command": BREAKOUT, IMAGE: IMAGE},
    )  # fmt: skip
    text = result.path.read_text(encoding="utf-8")
    assert text.count("<script") == 1  # the report's own
    assert "<img src=x" not in text
    assert "&lt;script&gt;document.title" in text
    assert "{{ 7 * 7 }}" in text  # nor is a name a template
    elements = opened(browser, result.path, tmp_path / "profile")
    assert "owned</title>" not in elements
    assert elements.count("<script") == 1
    for file in (tmp_path / "score" / "figures").glob("*.svg"):
        assert "<script" not in file.read_text(encoding="utf-8")


def test_without_escaping_the_attack_would_be_seen(browser: str, tmp_path: Path) -> None:
    page = tmp_path / "bare.html"
    page.write_text(f"<!doctype html><title>x</title>{ATTACK.replace('alert(1)', '')}", encoding="utf-8")
    assert "owned</title>" in opened(browser, page, tmp_path / "profile")


def test_the_page_lets_no_other_script_run_even_if_one_got_in(browser: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    genes = [f"G{at}" for at in range(12)]
    real = read_cells(cells(rng, ["control", "A", "B", "C"], genes), ATTACK)
    result = evaluate_files(cells(rng, ["A", "B", "C"], genes), real, tmp_path / "score", metrics=("l2", "ds"))
    text = result.path.read_text(encoding="utf-8")
    assert re.search(r"script-src 'sha256-[^' ]+'\"", text), json.dumps(text[:600])
    result.path.write_text(text.replace("</main>", f"</main>{ATTACK}{IMAGE}"), encoding="utf-8")
    assert "owned</title>" not in opened(browser, result.path, tmp_path / "profile")
