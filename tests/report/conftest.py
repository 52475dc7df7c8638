"""A small screen, a prediction of its doubles, and their evaluation as files."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

from scdfm.data import CellTable, read_cells
from scdfm.report import Evaluation, evaluate_files

GENES = [f"G{at:02d}" for at in range(40)]
SINGLES = ["G00", "G01", "G02", "G03"]
METRICS = ("l2", "pearson_delta", "ds", "energy")
DOUBLES = ["G00+G01", "G00+G02", "G01+G02", "G00+G03", "G01+G03", "G02+G03"]


def cells(means: dict[str, np.ndarray], n: int, rng: np.random.Generator) -> anndata.AnnData:
    """`n` cells around each mean, some genes silent in some cells."""
    X = np.concatenate(
        [rng.normal(mean, 0.3, (n, len(GENES))) * (rng.random((n, len(GENES))) < 0.9) for mean in means.values()]
    )
    obs = pd.DataFrame({"perturbation": np.repeat(list(means), n)}, index=[f"cell{at}" for at in range(len(X))])
    return anndata.AnnData(np.maximum(X, 0).astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))


@pytest.fixture(scope="session")
def screen() -> tuple[CellTable, anndata.AnnData]:
    """Real cells of control, four singles and six doubles (additive but for a tenth), and predicted doubles."""
    rng = np.random.default_rng(0)
    control = rng.uniform(0.5, 2, len(GENES))
    effects = {single: rng.normal(0, 0.6, len(GENES)) * (rng.random(len(GENES)) < 0.3) for single in SINGLES}
    means = {"control": control, **{single: control + effect for single, effect in effects.items()}}
    means |= {double: control + 0.9 * sum(effects[part] for part in double.split("+")) for double in DOUBLES}
    real = read_cells(cells(means, 40, rng))
    return real, cells({double: means[double] for double in DOUBLES}, 30, rng)


@pytest.fixture(scope="session")
def evaluation(screen: tuple[CellTable, anndata.AnnData], tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """The screen's evaluation, written as the command line writes it."""
    real, predicted = screen
    training = real.means().drop(index=DOUBLES)
    out = tmp_path_factory.mktemp("report")
    return evaluate_files(
        predicted, real, out, training=training, name="scdfm", metrics=METRICS, provenance={"command": "scdfm evaluate"}
    )
