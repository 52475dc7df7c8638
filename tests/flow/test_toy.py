"""Trained by its own loss, the velocity field finds the closed-form velocity of a Gaussian flow."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from gaussian import GaussianFlow
from torch import Tensor

from scdfm.config import MMDConfig, ModelConfig, SamplingConfig
from scdfm.flow import flow_loss, generate, interpolate, sample_normal, sample_time
from scdfm.model import VelocityField

MEANS = torch.tensor([[2.0, 0.5, 1.0], [0.5, 2.0, -1.0]])
"""μ of each of three genes under each of two perturbations."""
SCALE = 0.5
GENES = torch.tensor([4, 5, 6])
PERTURBATION = torch.tensor([[7, 3], [8, 3]])
N = 64


@pytest.fixture(scope="module")
def trained() -> VelocityField:
    """The field after 500 steps; checking shapes at each of them would double the time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    field = train()
    jaxtyping.config.update("jaxtyping_disable", False)
    return field


def train() -> VelocityField:
    torch.manual_seed(0)
    field = VelocityField(ModelConfig(width=32, heads=2, layers=1, dropout=0.0), None, 9)
    steps = 500
    optimizer = torch.optim.AdamW(field.parameters(), lr=4e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    rng = torch.Generator().manual_seed(0)
    condition = torch.arange(2).repeat_interleave(N // 2)
    for _ in range(steps):
        target = MEANS[condition] + SCALE * torch.randn(N, 3, generator=rng)
        noise, t = sample_normal((N, 3), rng), sample_time(N, rng, stratified=True)
        x_t, _ = interpolate(noise, target, t)
        predicted = field(
            x_t=x_t, t=t, control=torch.zeros(N, 3), genes=GENES, perturbation=PERTURBATION, condition=condition
        )
        loss = flow_loss(predicted, target - noise, x_t, target, t, 2, MMDConfig(weight=0.1))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        schedule.step()
    return field.eval()


def test_closed_form_velocity_is_recovered(trained: VelocityField) -> None:
    rng = torch.Generator().manual_seed(1)
    condition = torch.arange(2).repeat_interleave(500)
    flow = GaussianFlow(MEANS[condition], SCALE)
    for time in (0.1, 0.5, 0.9):
        t = torch.tensor(time)
        spread = ((1 - t) ** 2 + (t * SCALE) ** 2).sqrt()
        x_t = t * flow.mean + spread * torch.randn(1000, 3, generator=rng)
        exact = flow.velocity(t, x_t)
        with torch.no_grad():
            found = trained(
                x_t=x_t,
                t=t.expand(1000),
                control=torch.zeros(1000, 3),
                genes=GENES,
                perturbation=PERTURBATION,
                condition=condition,
            )
        unexplained = (found - exact).square().mean() / exact.var()
        assert unexplained < 0.02, f"t = {time}: {unexplained:.4f} of the variance is missed"


def test_generated_populations_have_the_right_moments(trained: VelocityField) -> None:
    condition = torch.arange(2).repeat_interleave(400)
    cells: Tensor = generate(
        trained,
        control=torch.zeros(800, 3),
        perturbation=PERTURBATION,
        condition=condition,
        genes=GENES,
        sampling=SamplingConfig(steps=10, clamp=False),
        genes_per_step=None,
        rng=torch.Generator().manual_seed(2),
    )
    for which, mean in enumerate(MEANS):
        population = cells[condition == which]
        torch.testing.assert_close(population.mean(0), mean, rtol=0, atol=0.12)
        torch.testing.assert_close(population.std(0), torch.full((3,), SCALE), rtol=0, atol=0.1)
