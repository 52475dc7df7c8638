"""SIGTERM, as a scheduler sends it: exit code 75 (`try again`), nothing half-written, the same bits after `--resume`."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd
import pytest

import scdfm
from scdfm.benchmarking import pieces
from scdfm.errors import RESUMABLE
from scdfm.run import shards
from scdfm.training.module import FlowModule

SMALL = [
    "panel.n_genes=20", "graph.k=3", "model.width=16", "model.gene_heads=2", "model.layers=1", "flow.genes_per_step=16",
    "training.validate_every=2", "training.validation_cells=4", "training.cells_per_condition=4", "training.max_steps=2",
    "training.conditions_per_batch=2", "training.warmup_steps=1", "training.accelerator=cpu", "sampling.steps=1",
    "sampling.cells=4",
]  # fmt: skip
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("terminated") / "screen.h5ad"
    scdfm.simulate(n_genes=24, n_targets=4, cells_per_condition=8, n_controls=20, truth_cells=4, seed=3).write_h5ad(
        path
    )
    return path


def terminated_at(place: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, before whose n-th call this process gets SIGTERM."""
    calls = []

    @functools.wraps(function)
    def counted(*given: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == place:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*given, **options)

    return counted


def test_a_prediction_goes_on(call: Call, screen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, config = scdfm.read_cells(screen), scdfm.Config().with_settings(SMALL)
    run = scdfm.fit(cells, config=config, out=tmp_path / "run", progress=False)
    names = ",".join(run.manifest.targets)
    monkeypatch.setattr(shards, "SHARD_CELLS", 4)  # a condition in each shard
    line = ["predict", run.path, "--conditions", names, "--quiet", "--out"]
    assert call(*line, tmp_path / "whole.h5ad")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(shards, "populations", terminated_at(3, shards.populations))
        code, out, err = call(*line, tmp_path / "p.h5ad")
    assert (code, out) == (RESUMABLE, "")
    assert err == "error: stopped by SIGTERM; repeat the command, with --resume where it has one\n"
    assert not (tmp_path / "p.h5ad").exists()
    parts = sorted(path.name for path in (tmp_path / "p.h5ad.parts").iterdir())
    assert parts == ["000000.h5ad", "000001.h5ad", "request.json"]
    assert call(*line, tmp_path / "p.h5ad", "--resume")[0] == 0
    found, whole = (ad.read_h5ad(tmp_path / name) for name in ("p.h5ad", "whole.h5ad"))
    assert (found.X != whole.X).nnz == 0
    pd.testing.assert_frame_equal(found.obs, whole.obs)


@pytest.mark.parametrize(
    ("owner", "name", "place"), [(FlowModule, "training_step", 3), (pieces, "evaluate", 2)], ids=["fit", "score"]
)
def test_a_benchmark_goes_on(
    call: Call, screen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, place: int
) -> None:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    line = ["benchmark", screen, "--folds", "0", "--seeds", "2", "--metrics", "l2", "--quiet", *settings, "--out"]
    assert call(*line, tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, terminated_at(place, getattr(owner, name)))
        code, out, err = call(*line, tmp_path / "b")
    assert (code, out, err.count("\n")) == (RESUMABLE, "", 1)
    assert "--resume" in err
    assert call(*line, tmp_path / "b", "--resume")[0] == 0
    names = {path.name for path in (tmp_path / "whole").glob("*.csv")}
    tables = sorted(names - {"costs.csv"})  # seconds
    assert len(tables) > 1
    for table in tables:
        assert (tmp_path / "b" / table).read_bytes() == (tmp_path / "whole" / table).read_bytes()
