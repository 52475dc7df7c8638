"""Counts scored from the command line."""

from __future__ import annotations

import pandas as pd


def test_files_say_what_evaluate_says(call, real, predicted, tmp_path):
    layered = real.copy()
    layered.layers["counts"] = layered.X
    layered.X = layered.X.log1p()
    layered.write_h5ad(tmp_path / "real.h5ad")
    predicted.write_h5ad(tmp_path / "predicted.h5ad")
    asked = ["evaluate", tmp_path / "predicted.h5ad", tmp_path / "real.h5ad", "--protocol", "vcc2026"]
    code, out, _ = call(*asked, "--layer", "counts", "--out", tmp_path / "score", "--name", "mine")
    assert code == 0
    assert "on the scale of the challenge" in out
    scaled = pd.read_csv(tmp_path / "score" / "scaled.csv")
    assert {"mine", "mean response", "no change"} == set(scaled["model"])
    assert (scaled["metric"] == "avg_score").sum() == 3
    page = (tmp_path / "score" / "report.html").read_text()
    assert "On the scale of the challenge" in page
    assert "<b>7</b> conditions" in page
    code, _, err = call(*asked, "--out", tmp_path / "other")
    assert code == 2
    assert "vcc2026 scores raw counts (whole numbers): name the layer" in err
    assert not (tmp_path / "other" / "scores.csv").exists()
    code, _, err = call(*asked, "--layer", "counts", "--target-sum", "1e4", "--out", tmp_path / "other")
    assert (code, "target_sum is no option of protocol vcc2026" in err) == (2, True)
    code, _, err = call(*asked, "--layer", "counts", "--backed", "--out", tmp_path / "other")
    assert (code, "--backed is no option of protocol vcc2026" in err) == (2, True)
