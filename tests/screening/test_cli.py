"""scdfm screen and scdfm identify from the command line, and their refusals in one line."""

from __future__ import annotations

import pandas as pd
import pytest


def test_screen_and_identify(call, run, cells, tmp_path):
    a, b, c = run.manifest.targets[:3]
    out = tmp_path / "screen"
    code, said, _ = call("screen", run.path, "--targets", f"{a},{b},{c}", "--cells", 3, "--propose", 1, "--out", out)
    assert code == 0
    assert said.startswith("estimate: ")
    assert "6 conditions: " in said
    assert "measure next: " in said
    assert (out / "screen.html").is_file()
    assert len(pd.read_parquet(out / "table.parquet")) == 6
    code, said, _ = call(
        "screen", run.path, "--targets", f"{a},{b},{c}", "--cells", 3, "--out", out, "--resume", "--rank-by", "uncertainty",
        "--quiet",
    )  # fmt: skip
    assert code == 0
    assert "estimate" not in said

    cells.select([a]).to_adata().write_h5ad(tmp_path / "seen.h5ad")
    code, said, _ = call(
        "identify", run.path, tmp_path / "seen.h5ad", "--order", 1, "--cells", 3, "--shortlist", 2, "--screen", out,
        "--out", tmp_path / "found.csv", "--quiet",
    )  # fmt: skip
    assert code == 0
    assert "5 candidates: chance puts the answer first in 20 % of searches" in said
    assert len(pd.read_csv(tmp_path / "found.csv")) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "screen: choose exactly one of --targets A,B,C, --all and --conditions A+B,C"),
        (("--all", "--targets", "A"), "screen: choose exactly one of"),
        (("--targets", "X,Y"), "target 'X'"),
        (("--all", "--rank-by", "fame"), "--rank-by fame: expected effect"),
    ],
)
def test_refusals_are_one_line(call, run, tmp_path, arguments, message):
    code, _, said = call("screen", run.path, "--out", tmp_path / "s", *arguments)
    assert code == 2
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


def test_a_result_is_not_written_over(call, run, tmp_path):
    (tmp_path / "found.csv").write_text("kept")
    code, _, said = call("identify", run.path, "nowhere.h5ad", "--out", tmp_path / "found.csv")
    assert code == 2
    assert "exists; choose another name, or pass --overwrite" in said
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "kept").write_text("kept")
    code, _, said = call("screen", run.path, "--all", "--out", tmp_path / "s")
    assert code == 2
    assert "is not empty" in said
