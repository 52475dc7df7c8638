"""Learning rate, weight average and checkpoints against their definitions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from scdfm.config import TrainingConfig
from scdfm.errors import RunError
from scdfm.training.checkpoint import SafetensorsIO, read_checkpoint
from scdfm.training.module import learning_rate_factor, parameter_groups
from scdfm.training.trainer import AveragedWeights


def test_warm_up_rises_linearly_then_a_cosine_falls_to_the_floor():
    options = TrainingConfig(max_steps=110, warmup_steps=10, learning_rate=1e-2, min_learning_rate=1e-4)
    factors = [learning_rate_factor(step, options) for step in range(120)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == pytest.approx(1.0)
    assert factors[60] == pytest.approx(0.01 + 0.99 * 0.5)  # half way down the cosine
    assert factors[110:] == pytest.approx([0.01] * 10)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


def test_published_schedule_is_torchs_cosine():
    options = TrainingConfig(max_steps=50, warmup_steps=0, learning_rate=5e-5, min_learning_rate=1e-6)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=5e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, eta_min=1e-6)
    for step in range(50):
        assert schedule.get_last_lr()[0] == pytest.approx(5e-5 * learning_rate_factor(step, options))
        optimizer.step()
        schedule.step()


def test_matrices_decay_and_nothing_else_does():
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    decays = {id(p): group["weight_decay"] for group in parameter_groups(layer, 0.3) for p in group["params"]}
    assert {name: decays[id(p)] for name, p in layer.named_parameters()} == {
        "0.weight": 0.3, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0,
    }  # fmt: skip


def test_average_is_the_ramped_exponential_moving_average():
    averaging = AveragedWeights(decay=0.9)
    average = averaging._kwargs["multi_avg_fn"]
    kept, closed = [torch.tensor([1.0])], 1.0
    for n, value in enumerate([2.0, 5.0, -3.0] * 40):
        average(kept, [torch.tensor([value])], torch.tensor(n))
        decay = min(0.9, (1 + n) / (10 + n))
        closed = decay * closed + (1 - decay) * value
    assert kept[0].item() == pytest.approx(closed, rel=1e-5)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    state = {
        "state_dict": {"a": shared, "b": shared.T},
        "optimizer_states": [
            {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}
        ],
        "callbacks": {"x": {"best": None, "score": math.inf, "name": "é", "flag": True}},
        "global_step": 7,
    }
    path = tmp_path / "deep" / "last.safetensors"
    SafetensorsIO().save_checkpoint(state, path)
    found = read_checkpoint(path)
    assert torch.equal(found["state_dict"]["a"], shared)
    assert torch.equal(found["state_dict"]["b"], shared.T)
    assert found["optimizer_states"][0]["param_groups"] == state["optimizer_states"][0]["param_groups"]
    assert found["optimizer_states"][0]["state"][0]["step"] == 3
    assert found["callbacks"] == state["callbacks"]
    assert found["global_step"] == 7
    assert [p.name for p in path.parent.iterdir()] == ["last.safetensors"]
    SafetensorsIO().remove_checkpoint(path)
    assert not path.exists()


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    path = tmp_path / "last.safetensors"
    SafetensorsIO().save_checkpoint({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(RunError, match="last.safetensors cannot be read"):
        read_checkpoint(path)
