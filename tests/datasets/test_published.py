"""The published figures are those of the paper's tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

from scdfm.datasets.screens import PUBLISHED_METRICS, published


def test_the_table_in_the_package_is_the_given_one(shared: Path) -> None:
    pd.testing.assert_frame_equal(published(), pd.read_csv(shared / "published.csv"))


def test_rows_are_chosen_by_data_set_and_split() -> None:
    table = published("norman", "holdout")
    assert set(table["part"]) == {"single", "double"}
    scdfm = table[(table["model"] == "scDFM") & (table["part"] == "double")].iloc[0]
    assert [scdfm[name] for name in PUBLISHED_METRICS] == [
        2.0309, 0.0047, 0.0235, 0.5676, 0.8357, 0.9189, 0.7769, 0.8688,
    ]  # fmt: skip
    assert len(published("combosciplex")) == 4


def test_the_data_sets_are_reached_from_the_package() -> None:
    code = "import scdfm, sys; assert 'scdfm.datasets' not in sys.modules; assert callable(scdfm.datasets.norman)"
    subprocess.run([sys.executable, "-c", code], check=True)
