"""Every switch of the ablations changes the fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import scdfm

SMALL: dict[str, Any] = {
    "panel": {"n_genes": 30},
    "graph": {"k": 4},
    "model": {"width": 16, "heads": 2, "gene_heads": 2, "layers": 1, "dropout": 0.0},
    "flow": {"genes_per_step": 20},
    "training": {
        "max_steps": 3, "warmup_steps": 0, "conditions_per_batch": 1, "cells_per_condition": 6, "ema_decay": 0.0,
        "accelerator": "cpu",
    },
    "sampling": {"steps": 2, "cells": 4},
    "split": {"validation_fraction": 0.0},
}  # fmt: skip
SWITCHES: dict[str, dict[str, Any]] = {
    "no MMD": {"mmd": {"weight": 0.0}},
    "MMD weight": {"mmd": {"weight": 5.0}},
    "MMD scales": {"mmd": {"scales": [0.1]}},
    "MMD bandwidths": {"mmd": {"bandwidths": [3.0]}},
    "no graph": {"graph": {"enabled": False}},
    "graph k": {"graph": {"k": 1}},
    "positive edges": {"graph": {"negative_edges": False}},
    "faithful graph": {"graph": {"faithful": True, "negative_edges": False}},
    "softmax": {"model": {"attention": "softmax"}},
    "transformer": {"model": {"backbone": "differential_transformer"}},
    "perceiver": {"model": {"backbone": "perceiver"}},
    "linear": {"model": {"backbone": "linear", "latents": 4}},
    "drug table": {"model": {"perturbation": "drugs"}},
    "poisson": {"flow": {"source": "poisson"}},
    "uniform time": {"flow": {"time": "uniform"}},
    "genes per step": {"flow": {"genes_per_step": 10}},
}


@pytest.fixture(scope="module")
def cells() -> scdfm.CellTable:
    # Two singles and one double train: the drug table knows every target.
    return scdfm.read_cells(
        scdfm.simulate(n_genes=40, n_targets=4, cells_per_condition=10, n_controls=20, truth_cells=2, seed=3)
    )


def fitted(cells: scdfm.CellTable, options: dict[str, Any], out: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Weights by name, and a predicted population."""
    config = scdfm.Config().updated(SMALL).updated(options)
    run = scdfm.fit(cells, config=config, out=out, progress=False)
    predicted = run.predict([run.split.test[0]], seed=0)
    return run.field.state_dict(), torch.from_numpy(predicted.X.toarray())


@pytest.fixture(scope="module")
def full(
    cells: scdfm.CellTable, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    return fitted(cells, {}, tmp_path_factory.mktemp("full") / "run")


def test_the_same_switches_give_the_same_fit(
    cells: scdfm.CellTable, full: tuple[dict[str, torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    weights, predicted = fitted(cells, {}, tmp_path / "run")
    assert all(torch.equal(weights[name], value) for name, value in full[0].items())
    assert torch.equal(predicted, full[1])


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_changes_the_fit(
    cells: scdfm.CellTable, full: tuple[dict[str, torch.Tensor], torch.Tensor], tmp_path: Path, switch: str
) -> None:
    weights, predicted = fitted(cells, SWITCHES[switch], tmp_path / "run")
    assert predicted.shape == full[1].shape
    assert not torch.equal(predicted, full[1])
    common = [name for name in weights if name in full[0] and weights[name].shape == full[0][name].shape]
    assert any(not torch.equal(weights[name], full[0][name]) for name in common)


def test_a_poisson_source_is_not_all_zeros(cells: scdfm.CellTable, tmp_path: Path) -> None:
    """In the official code it is; here x₀ has the expected counts of the training cells."""
    from scdfm.flow import Noise
    from scdfm.seeds import torch_rng

    config = scdfm.Config().updated(SMALL).updated(SWITCHES["poisson"])
    run = scdfm.fit(cells, config=config, out=tmp_path / "run", progress=False)
    noise = Noise(len(run.genes), "poisson", run.rates).draw(4000, torch_rng(0, "test"))
    counts = noise.expm1().double()
    assert run.rates.min() >= 0
    assert run.rates.max() > 1
    error = (run.rates.double() / 4000).sqrt()
    assert ((counts.mean(0) - run.rates).abs() < 6 * error + 1e-3).all()
