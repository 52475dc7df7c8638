"""Compiled and checkpointed layers give the numbers of plain ones; without a compiler a fit goes on and says so."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager

import scdfm
from scdfm.config import ModelConfig
from scdfm.model import VelocityField
from scdfm.training import module as compiling
from scdfm.training.module import compile_layers

CPU = torch.device("cpu")


def field(**options: Any) -> VelocityField:
    torch.manual_seed(0)
    return VelocityField(ModelConfig(**{"width": 16, "heads": 2, "layers": 3, **options}), None, 20)


def batch() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {
        "x_t": torch.randn(4, 9, generator=rng), "t": torch.rand(4, generator=rng),
        "control": torch.rand(4, 9, generator=rng), "genes": torch.arange(4, 13),
        "perturbation": torch.tensor([[5, 6], [7, 3]]), "condition": torch.tensor([0, 0, 1, 1]),
    }  # fmt: skip


def loss_and_gradients(of: VelocityField) -> list[Tensor]:
    torch.manual_seed(7)  # dropout
    of.zero_grad()
    loss = of(**batch()).square().mean()
    loss.backward()
    found = [parameter.grad for parameter in of.parameters() if parameter.grad is not None]
    assert len(found) > 20
    return [loss.detach(), *found]


def kept(of: VelocityField) -> int:
    """Values kept for the gradients."""
    total = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        of(**batch())
    return total


@pytest.mark.parametrize("backbone", ["differential_perceiver", "perceiver", "linear"])
def test_checkpointing_changes_no_bit_and_keeps_less(backbone: str) -> None:
    whole, again = field(backbone=backbone, dropout=0.3), field(backbone=backbone, dropout=0.3)
    again.checkpointing = True
    pairs = zip(loss_and_gradients(whole), loss_and_gradients(again), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert kept(again) < kept(whole) / 2


def test_compiled_layers_give_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: here shapes are checked at every call, which cannot be traced."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    processes, log = importlib.import_module("forked"), tmp_path / "log.txt"
    process = processes.forked(processes.program, Path(__file__), folder=tmp_path, log=log)
    process.join()
    assert process.exitcode == 0, log.read_text()[-2000:]
    assert log.read_text().splitlines() == ["layers compiled: 3", "codes: 2"]


def compare() -> None:
    """Traced and differentiated as for any device, but run by torch: no compiler is needed for it.

    Three layers share one code with gradients and one without: compiling takes as long as for one layer.
    """
    codes = 0

    def counting(graph: Any, inputs: Any) -> Any:
        nonlocal codes
        codes += 1
        return aot_eager(graph, inputs)

    compiling.BACKEND = counting  # type: ignore[assignment]
    plain, compiled = field(), field()
    assert compile_layers(compiled, "on", CPU)
    codes = 0  # of the layers, not of the probe
    for a, b in zip(loss_and_gradients(plain), loss_and_gradients(compiled), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(compiled(**batch()), plain(**batch()))
    print("layers compiled:", sum(layer._compiled_call_impl is not None for layer in compiled.layers))
    print("codes:", codes)


def test_on_a_gpu_only_a_long_fit_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: lambda _: None)  # the probe, that a device would run
    monkeypatch.setattr(torch, "ones", lambda *_, **__: None)
    gpu = torch.device("cuda")
    assert compile_layers(field(), "auto", gpu, steps=5000)
    assert not compile_layers(field(), "auto", gpu, steps=4999)
    assert compile_layers(field(), "on", gpu, steps=1)


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_on_a_cpu_nothing_is_compiled_unless_asked_for(mode: Any) -> None:
    untouched = field()
    assert not compile_layers(untouched, mode, CPU)
    assert all(layer._compiled_call_impl is None for layer in untouched.layers)


def test_without_a_compiler_a_fit_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no C++ compiler was found\nand more")

    cells = scdfm.read_cells(scdfm.simulate(n_genes=30, n_targets=4, cells_per_condition=8, n_controls=20, seed=3))
    config = scdfm.Config().updated(
        {"panel": {"n_genes": 20}, "model": {"width": 16, "heads": 2, "gene_heads": 2, "layers": 1},
         "training": {"max_steps": 2, "warmup_steps": 0, "accelerator": "cpu", "validate_every": 2, "keep": "last",
                      "validation_cells": 4}, "sampling": {"steps": 1}}
    )  # fmt: skip
    usual = scdfm.fit(cells, config=config, out=tmp_path / "usual", progress=False)
    monkeypatch.setattr(torch, "compile", missing)
    asked = config.updated({"training": {"compile": "on", "checkpointing": True}})
    with pytest.warns(UserWarning, match=r"'on': .* cpu here \(no C\+\+ compiler was found\); going on without"):
        run = scdfm.fit(cells, config=asked, out=tmp_path / "run", progress=False)
    states = zip(usual.field.state_dict().values(), run.field.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


if __name__ == "__main__":
    compare()
