"""Numbers that run away end a fit; nothing that is no number is written; extreme values are no reason to stop."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scdfm
from scdfm.errors import TrainingError
from scdfm.training.checkpoint import read_checkpoint, require_finite
from scdfm.training.module import FlowModule

SMALL = {
    "panel": {"n_genes": 20},
    "graph": {"k": 4},
    "model": {"width": 8, "heads": 2, "gene_heads": 2, "layers": 1},
    "flow": {"genes_per_step": 12},
    "training": {"max_steps": 40, "warmup_steps": 0, "validate_every": 2, "conditions_per_batch": 2,
                 "cells_per_condition": 4, "validation_cells": 4, "accelerator": "cpu"},
    "sampling": {"steps": 1, "cells": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def config() -> scdfm.Config:
    return scdfm.Config().updated(SMALL)


@pytest.fixture(scope="module")
def cells() -> scdfm.CellTable:
    return scdfm.read_cells(scdfm.simulate(n_genes=24, n_targets=4, cells_per_condition=8, n_controls=16, seed=1))


def all_finite(checkpoint) -> bool:
    try:
        require_finite(checkpoint, None, 0, None)
    except AttributeError:  # the error's own words need a run
        return False
    return True


@pytest.mark.parametrize("validated", [True, False])
def test_a_huge_learning_rate_stops_the_fit_and_the_last_good_checkpoint_stays(cells, config, tmp_path, validated):
    wild = config.updated(
        {
            "training": {"learning_rate": 1e8, "clip_norm": 0.0, "ema_decay": 0.9},
            "split": {} if validated else {"validation_fraction": 0.0},
        }
    )
    real = FlowModule.optimizer_step

    def tame_at_first(self, epoch, batch_idx, optimizer, closure):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 if self.global_step < 3 else group["lr"]
        return real(self, epoch, batch_idx, optimizer, closure)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingError) as raised:
        patch.setattr(FlowModule, "optimizer_step", tame_at_first)
        scdfm.fit(cells, config=wild, out=tmp_path / "run", progress=False)
    kept = read_checkpoint(tmp_path / "run/checkpoints/last.safetensors")
    assert all_finite([kept[name] for name in ("state_dict", "current_model_state", "optimizer_states")])
    message = str(raised.value)
    assert "the fit diverged at training.learning_rate 1e+08" in message
    assert f"the checkpoint of step {kept['global_step']} is good and stays" in message
    assert "set training.clip_norm, and fit into another --out" in message
    assert not (tmp_path / "run/weights.safetensors").exists()


def test_weights_that_end_as_no_numbers_are_not_kept(cells, config, tmp_path):
    last = config.updated({"training": {"max_steps": 3}, "split": {"validation_fraction": 0.0}})
    real = FlowModule.on_train_batch_end

    def spoil(self, outputs, batch, batch_idx):
        real(self, outputs, batch, batch_idx)
        if self.global_step == 3:
            next(self.field.parameters()).data.fill_(float("inf"))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingError, match="step 3: weights are not finite"):
        patch.setattr(FlowModule, "on_train_batch_end", spoil)
        scdfm.fit(cells, config=last.updated({"training": {"ema_decay": 0.0}}), out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run/weights.safetensors").exists()


def test_finite_means_every_tensor_of_the_tree():
    require_finite({"a": [torch.ones(2), (torch.tensor(3),)], "b": 1.0, "c": None}, None, 0, None)
    assert not all_finite({"a": [torch.ones(2), {"x": torch.tensor([1.0, float("nan")])}]})


def test_counts_of_a_million_and_silent_and_constant_genes_train(config, tmp_path):
    rng = np.random.default_rng(0)
    counts = rng.poisson(3.0, (64, 24)).astype(np.float32)
    counts[:, 0] = 0  # a gene that nobody expresses
    counts[:, 1] = 7  # one that is always the same
    counts[:, 2] = rng.choice([0, 1_000_000], 64)
    labels = np.repeat(["control", "G3", "G4", "G5", "G3+G4", "G3+G5", "G4+G5", "G6"], 8)
    genes = pd.DataFrame(index=[f"G{i}" for i in range(24)])
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(64)])
    adata = ad.AnnData(counts, obs=obs, var=genes)
    for target_sum in (1e4, "median", 1e6):
        table = scdfm.read_cells(adata, target_sum=target_sum)
        whole = config.updated(
            {"panel": {"n_genes": 24}, "training": {"max_steps": 4}, "split": {"test_fraction": 0.4}}
        )
        run = scdfm.fit(table, config=whole, out=tmp_path / str(target_sum), progress=False)
        assert {"G0", "G1", "G2"} <= set(run.genes)
        predicted = run.predict()
        assert np.isfinite(predicted.X.toarray()).all()
        assert np.isfinite(run.log["loss"].dropna()).all()
