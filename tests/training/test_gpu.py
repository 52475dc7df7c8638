"""The same code on a CUDA device: a fit in bf16, its predictions, and their likeness to the CPU's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scdfm

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_a_run_fitted_on_a_gpu_predicts_there_as_on_the_cpu(tmp_path, monkeypatch):
    cells = scdfm.read_cells(scdfm.simulate(n_genes=60, n_targets=5, cells_per_condition=20, n_controls=60))
    config = scdfm.Config().updated(
        {"training": {"max_steps": 30, "validate_every": 10, "accelerator": "gpu", "precision": "bf16"}}
    )
    run = scdfm.fit(cells, config=config, out=tmp_path / "run", progress=False)
    on_gpu = run.predict(n_cells=16, seed=1)
    assert next(run.field.parameters()).is_cuda
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = scdfm.Run.load(run.path).predict(n_cells=16, seed=1)
    np.testing.assert_allclose(on_gpu.X.toarray(), on_cpu.X.toarray(), atol=1e-2)
