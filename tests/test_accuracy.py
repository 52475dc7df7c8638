"""The reason to use scdfm: on a screen whose doubles interact, the default preset is better than ridge."""

from __future__ import annotations

import pytest

import scdfm
from scdfm.evaluation import LOWER_IS_BETTER


@pytest.fixture(scope="module")
def means(tmp_path_factory):
    """Mean score of each model on held-out doubles; model and rules learn from the same cells."""
    screen = scdfm.simulate(n_genes=80, n_targets=14, cells_per_condition=80, interaction="strong", seed=3)
    cells = scdfm.read_cells(screen)
    config = scdfm.Config.preset("default").updated(
        {"training": {"max_steps": 40, "validate_every": 40, "ema_decay": 0.9}}
    )
    split = scdfm.additive_split(cells, fold=0, seed=0)
    run = scdfm.fit(cells, split, config, out=tmp_path_factory.mktemp("run") / "run", progress=False)
    table = scdfm.evaluate(run.predict(n_cells=60), cells, training=run, name="scdfm")
    return table.groupby(["metric", "model"])["value"].mean()


@pytest.mark.parametrize("metric", ["l2", "mse", "mae", "pearson_delta_hat", "energy", "variance_error"])
def test_the_default_preset_beats_ridge(means, metric: str) -> None:
    better = means[metric]["scdfm"] - means[metric]["ridge"]
    assert (better < 0) == (metric in LOWER_IS_BETTER), f"{metric}: {means[metric].to_dict()}"
