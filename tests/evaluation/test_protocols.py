"""cell-eval's metrics, against what its two releases say of the same cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scdfm.evaluation import evaluate
from scdfm.evaluation.metrics import mae, mse, pearson_delta
from scdfm.evaluation.protocols import NAMES

PARITY = (*NAMES, "mse", "mae", "pearson_delta")


@pytest.mark.parametrize("release", ["0.5.42", "0.8.2"])
def test_golden(shared, release):
    golden = pd.read_csv(shared / "golden" / f"cell_eval_{release}.csv", index_col="perturbation")
    table = evaluate(
        shared / "golden" / "eval_pred.h5ad",
        shared / "golden" / "eval_real.h5ad",
        protocol="paper",
        release=release,
        metrics=PARITY,
        references=False,
    )
    ours = table.set_index(["condition", "metric"])["value"].unstack().loc[golden.index]  # noqa: PD010
    assert set(PARITY) <= set(golden.columns)
    np.testing.assert_allclose(ours[list(PARITY)], golden[list(PARITY)], rtol=0, atol=1e-6)


def test_published_run(shared):
    """The per-gene tables of one official run give its per-condition scores."""
    folder = shared / "data" / "scdfm_run"
    sides = [pd.read_csv(folder / name) for name in ("pred_de.csv", "real_de.csv")]
    golden = pd.read_csv(folder / "results.csv", index_col="perturbation")
    means, controls = [], []
    for side in sides:
        wide = side.set_index(["target", "feature"])[["target_mean", "reference_mean"]].unstack()  # noqa: PD010
        means.append(wide["target_mean"].loc[golden.index].to_numpy(dtype=float))
        controls.append(wide["reference_mean"].loc[golden.index].to_numpy(dtype=float))
    predicted, real = means
    # The run averaged 8,000 cells in float32, and so are its tables: five digits are left.
    for name, values in {
        "mse": mse(predicted, real),
        "mae": mae(predicted, real),
        "pearson_delta": pearson_delta(predicted, real, *controls),
    }.items():
        np.testing.assert_allclose(values, golden[name], rtol=1e-5, atol=1e-5 * (name == "pearson_delta"), err_msg=name)
