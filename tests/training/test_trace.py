"""Twenty optimiser steps of scdfm's form and of the plain formulation leave the same trace of losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from scdfm.config import MMDConfig
from scdfm.flow import flow_loss, interpolate
from scdfm.model import reference
from scdfm.official import velocity_field

V, T, CELLS, CONDITIONS, HEADS, LAYERS, STEPS = 41, 17, 12, 3, 2, 2, 20
Batch = dict[str, Tensor]


def steps() -> Iterable[tuple[Batch, Tensor, Tensor]]:
    """Inputs, noise and target of each step."""
    rng = torch.Generator().manual_seed(3)
    for _ in range(STEPS):
        noise, target = torch.randn(CELLS, T, generator=rng), 3 * torch.rand(CELLS, T, generator=rng)
        t = torch.rand(CELLS, generator=rng)
        batch = {
            "x_t": interpolate(noise, target, t)[0], "t": t, "control": torch.rand(CELLS, T, generator=rng),
            "genes": torch.randperm(V, generator=rng)[:T],
            "perturbation": torch.randint(1, V, (CONDITIONS, 2), generator=rng),
            "condition": torch.arange(CONDITIONS).repeat_interleave(CELLS // CONDITIONS),
        }  # fmt: skip
        yield batch, noise, target


def trace(parameters: Iterable[Tensor], loss: Callable[[Batch, Tensor, Tensor], Tensor]) -> Tensor:
    """The loss before each step of Adam.

    Its epsilon lies above the rounding of gradients that are truly 0 (biases of keys), of which Adam makes whole steps.
    """
    optimizer = torch.optim.Adam(parameters, lr=1e-3, eps=1e-4)
    losses = []
    for batch, noise, target in steps():
        optimizer.zero_grad()
        value = loss(batch, noise, target)
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("backbone", ["differential_perceiver", "differential_transformer", "perceiver"])
def test_losses_of_twenty_steps_agree(backbone: str) -> None:
    state = reference.random_state(backbone, n_tokens=V, width=16, n_heads=HEADS, n_layers=LAYERS)
    masked = torch.rand(V, V, generator=torch.Generator().manual_seed(0)) < 0.7
    masked.fill_diagonal_(False)
    field = velocity_field(state, masked, HEADS, LAYERS, backbone, "genes")
    own = trace(
        field.parameters(),
        lambda batch, noise, target: (
            flow_loss(
                field(**batch), target - noise, batch["x_t"], target, batch["t"], CONDITIONS, MMDConfig(weight=0.5)
            ).total
        ),
    )
    learned = {name: value.clone().requires_grad_() for name, value in state.items()}
    sizes = {"n_heads": HEADS, "n_layers": LAYERS, "backbone": backbone}
    plain = trace(
        learned.values(),
        lambda batch, noise, target: reference.flow_loss(
            reference.velocity(learned, masked, **batch, **sizes), batch["x_t"], batch["t"], noise, target,
            CONDITIONS, 0.5,
        ),
    )  # fmt: skip
    torch.testing.assert_close(own, plain, rtol=1e-5, atol=1e-5)
    assert (plain[1:] != plain[:-1]).all()
